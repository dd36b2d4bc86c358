"""Prefetching: send the requests that the next iterations will probably need with the current round.

A request's seed depends on its prefix, so its reply is the same whenever it is sent. A wrong guess costs its
tokens and changes no result (``docs/performance.md``). The strategy decides what to prefetch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import cast

from rain_llm.requests import Request, Sample, Samples
from rain_llm.search.outcome import Replies
from rain_llm.search.state import SearchState


@dataclass(slots=True)
class Prefetch:
    """Keep prefetched replies, by request, until the search needs them."""

    state: SearchState
    replies: dict[Sample, Samples] = field(default_factory=dict)

    def ask(
        self, requests: Sequence[Sample], prefetch_with: Callable[[], Sequence[Sample]] = tuple
    ) -> Generator[Sequence[Request], Replies, list[Samples]]:
        """Return the replies to ``requests``: prefetched ones, and the rest in one round.

        If a round is needed, it also contains the requests that ``prefetch_with`` returns.
        """
        missing = [request for request in requests if request not in self.replies]
        if missing:
            asked = [*missing, *prefetch_with()]
            self.remember(asked, (yield asked))
        found = [self.replies.pop(request) for request in requests]
        if self.state.cached is None:
            self.state.cached = found[0].cached_tokens
        return found

    def remember(self, requests: Sequence[Sample], replies: Replies) -> None:
        """Store replies until they are needed."""
        self.replies.update(zip(requests, cast("Sequence[Samples]", replies), strict=True))

    def keep_below(self) -> None:
        """Drop the replies that do not continue the accepted answer."""
        here = self.state.prefix()
        self.replies = {r: reply for r, reply in self.replies.items() if r.prefix[: len(here)] == here}
