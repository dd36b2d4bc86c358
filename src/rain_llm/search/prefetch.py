"""Prefetching: what the next iterations will probably ask goes along with this one's requests.

A request's seed follows from its prefix, so its reply is the same whenever it is asked. A wrong guess costs
its tokens; it changes no choice (``docs/performance.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import cast

from rain_llm.search.budget import settled
from rain_llm.search.outcome import Replies
from rain_llm.search.requests import (
    candidates_request,
    first_token_request,
    lacks_children,
    rollout_length,
    rollout_request,
)
from rain_llm.search.state import Iteration, SearchState, tokens_of
from rain_llm.search.tree import Node
from rain_llm.types import Request, Sample, Samples


@dataclass(slots=True)
class Prefetch:
    """Replies that came before they were needed, by request."""

    state: SearchState
    replies: dict[Sample, Samples] = field(default_factory=dict)

    def ask(
        self, requests: Sequence[Sample], along: Callable[[], Sequence[Sample]] = tuple
    ) -> Generator[Sequence[Request], Replies, list[Samples]]:
        """Return the replies to ``requests``: those prefetched, and the rest in one round.

        Where a round is needed, the requests that ``along`` returns go with it.
        """
        missing = [request for request in requests if request not in self.replies]
        if missing:
            asked = [*missing, *along()]
            self.remember(asked, (yield asked))
        found = [self.replies.pop(request) for request in requests]
        if self.state.cached is None:
            self.state.cached = found[0].cached_tokens
        return found

    def remember(self, requests: Sequence[Sample], replies: Replies) -> None:
        """Keep replies until they are needed."""
        self.replies.update(zip(requests, cast("Sequence[Samples]", replies), strict=True))

    def keep_below(self) -> None:
        """Forget what continues anything but the accepted answer."""
        here = self.state.prefix()
        self.replies = {r: reply for r, reply in self.replies.items() if r.prefix[: len(here)] == here}

    def with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what goes along with the rollouts of ``iterations``."""
        return [] if self.state.settings.search.commit == "verdict" else self._expected(iterations)

    def with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what goes along with the questions about ``iterations``."""
        verdict = self.state.settings.search.commit == "verdict"
        return self._first_tokens(iterations) if verdict else self._expected(iterations)

    def _first_tokens(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Ask for the first token after each rollout: what comes next if it is committed."""
        if not self.state.settings.search.foresight:
            return []
        going = [iteration for iteration in iterations if not self.state.ends(iteration.path)]
        firsts = dict.fromkeys(first_token_request(self.state, iteration.tokens) for iteration in going)
        return [first for first in firsts if first not in self.replies]

    def _expected(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what the next iterations will ask if the verdicts on ``iterations`` are no surprise."""
        state = self.state
        if not iterations:
            return []
        expected = state.latest.score if state.latest else 1.0
        marks = [state.tree.pretend(iteration.path, expected) for iteration in iterations]
        asked: dict[Sample, None] = {}
        for _ in range(state.settings.search.foresight):
            path, request = self._next_request()
            if request is not None and request not in self.replies:
                asked[request] = None
            if path is None or settled(state):
                break
            marks.append(state.tree.pretend(path, expected))
        for mark in reversed(marks):
            state.tree.undo(mark)
        return list(asked)

    def _next_request(self) -> tuple[list[Node] | None, Sample | None]:
        """Select as the next iteration would.

        Returns the path to its leaf (None: it depends on candidates that are not known yet), and what it
        would ask there (None: nothing).
        """
        state = self.state
        path = [state.tree.root]
        while True:
            if lacks_children(state, path):
                return None, candidates_request(state, path, peek=True)
            if state.tree.is_leaf(path[-1]):
                break
            if state.tree.wants_addition(path[-1]):
                return None, candidates_request(state, path, peek=True)
            path.append(state.tree.best_child(path[-1]))
        if state.ends(path):
            return path, None
        tokens = tokens_of(path[1:])
        length = rollout_length(state, tokens)
        return path, rollout_request(state, tokens, length, peek=True, guided=bool(state.guided))
