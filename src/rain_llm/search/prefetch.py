"""Prefetching: what the next iterations will probably ask goes along with this one's requests.

A request's seed follows from its prefix, so its reply is the same whenever it is asked. A wrong guess costs
its tokens; it changes no choice (``docs/performance.md``). What to guess is the strategy's business.
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
    """Replies that came before they were needed, by request."""

    state: SearchState
    replies: dict[Sample, Samples] = field(default_factory=dict)

    def ask(
        self, requests: Sequence[Sample], prefetch_with: Callable[[], Sequence[Sample]] = tuple
    ) -> Generator[Sequence[Request], Replies, list[Samples]]:
        """Return the replies to ``requests``: those prefetched, and the rest in one round.

        Where a round is needed, the requests that ``prefetch_with`` returns go with it.
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
        """Keep replies until they are needed."""
        self.replies.update(zip(requests, cast("Sequence[Samples]", replies), strict=True))

    def keep_below(self) -> None:
        """Forget what continues anything but the accepted answer."""
        here = self.state.prefix()
        self.replies = {r: reply for r, reply in self.replies.items() if r.prefix[: len(here)] == here}
