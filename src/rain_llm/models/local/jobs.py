"""Jobs: the state of a request from one forward pass to the next, for every engine in this process.

A job takes part in a forward pass in three steps, so that a failed pass does not change it:

1. ``read`` adds the tokens to compute to the pass (:class:`Forward`);
2. ``weigh`` chooses tokens by its rows of the logits (:class:`Rows`), without changing the job;
3. ``accept`` stores that decision.

A draw depends on the request, the position and the branch only, so no random generator outlives a pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from rain_llm.models.grammar import Mask, Matcher
from rain_llm.requests import Continuation, Read, Sample, Samples, Score, Scores, Values
from rain_llm.types import TokenIds

CHUNK = 512
"""Maximum tokens of a prefix per pass, so that a long prompt does not delay other requests."""

Place: TypeAlias = Any
"""Where a text is in an engine's prefix cache. Jobs only keep and copy it."""

Decision = TypeVar("Decision")


class Rows(Protocol):
    """The logits of the rows that a job asked for, in its order; log-probabilities are computed on use."""

    def draw(
        self, request: Sample, branches: Sequence[int], position: int, allowed: Mask | None
    ) -> list[tuple[int, float]]:
        """Choose the next token of each branch.

        Random numbers depend on the request's seed, the position, the branch and the token only. With
        ``greedy_first``, branch 0 takes the most likely token.

        Args:
            request: temperature, top_k, top_p, greedy_first and seed.
            branches: the branches to draw for. There is one row for each, or one row for all.
            position: how many tokens each of them has.
            allowed: tokens that a schema allows, [branches, vocabulary]; None: all.

        Returns:
            Each branch's token and its log-probability, over the whole vocabulary at temperature 1.
        """
        ...

    def ranked(self, n: int) -> list[tuple[int, float]]:
        """Return the first row's n most likely tokens, with log-probabilities; at most the vocabulary."""
        ...

    def logprobs(self, places: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each ``tokens[i]`` in row ``places[i]``."""
        ...


class Forward(Protocol):
    """A forward pass that is being put together."""

    def open_request(self) -> None:
        """Start a request: the texts added from now on belong to it."""
        ...

    def place(self) -> Place:
        """Return a new place, at the beginning of the cache's tree; ``copy.copy`` copies a place."""
        ...

    def find(self, tokens: TokenIds, place: Place) -> int:
        """Return how many tokens at the beginning of a text are cached.

        Args:
            tokens: the text.
            place: of this text or of a prefix of it; updated.
        """
        ...

    def add(self, tokens: TokenIds, logits: int = 1, place: Place | None = None) -> list[int]:
        """Add a text; return the rows of its last ``logits`` tokens.

        Args:
            tokens: the text, with what is cached.
            logits: how many tokens at its end need logits.
            place: of this text or of a prefix of it; updated.
        """
        ...

    def read(self, request: Read, place: Place) -> tuple[tuple[float, ...], ...]:
        """Return what was read from the hidden states of a request's tokens, once the pass is computed.

        Args:
            request: the request.
            place: of its complete text, which is cached.
        """
        ...


class _Job(ABC, Generic[Decision]):
    """Base of all jobs: the prefix is read first, in chunks if it is long.

    Attributes:
        counts_shared_passes: whether a pass counts that computed no token for this job alone.
    """

    counts_shared_passes = True

    def __init__(self, prefix: TokenIds) -> None:
        self.reply: Samples | Scores | Values | None = None
        self.forwards = 0
        self.model_tokens = 0
        self.cached_tokens = 0  # tokens of the prefix, except the last, that need not be computed
        self._prefix = prefix
        self._place: Place | None = None  # of the prefix
        self._been_read = 0  # tokens of the prefix that accepted passes have read for this job
        self._reading = 0  # the same, including the current pass

    @property
    @abstractmethod
    def width(self) -> int:
        """Return how many branches the next pass has for this job, at most."""

    def read(self, forward: Forward) -> list[int]:
        """Add the tokens that this job needs next to a pass; return the rows whose logits it needs."""
        forward.open_request()
        if self._place is None:
            self._place = forward.place()
        if not self.forwards:  # the last token is always computed, because its logits are needed
            self.cached_tokens = min(forward.find(self._prefix, self._place), len(self._prefix) - 1)
        self._reading = len(self._prefix)
        if len(self._prefix) > CHUNK:
            # Other requests may have evicted what earlier passes read. Continuing from the furthest
            # position reached ensures progress in every pass.
            known = forward.find(self._prefix, self._place)
            self._reading = min(len(self._prefix), max(known, self._been_read) + CHUNK)
        if self._reading < len(self._prefix):
            forward.add(self._prefix[: self._reading], 0, self._place)
            return []
        return self._read_on(forward)

    def weigh(self, rows: Rows) -> Decision | None:
        """Decide by the logits of the rows that ``read`` returned; None while the prefix is being read."""
        return self._decide(rows) if self._reading == len(self._prefix) else None

    def accept(self, decision: Decision | None, cost: int) -> None:
        """Store the decision, and count the ``cost`` tokens that the pass computed for this job."""
        self.forwards += 1 if cost or self.counts_shared_passes else 0
        self.model_tokens += cost
        self._been_read = self._reading
        if decision is not None:
            self._keep(decision)

    @abstractmethod
    def _read_on(self, forward: Forward) -> list[int]: ...

    @abstractmethod
    def _decide(self, rows: Rows) -> Decision: ...

    @abstractmethod
    def _keep(self, decision: Decision) -> None: ...


class SampleJob(_Job[list[tuple[int, float]]]):
    """A Sample request: each unfinished branch grows by one token per pass.

    Args:
        request: the request.
        special: tokens that end a continuation.
        piece: returns the text of a token.
        matchers: for a request with a schema, the matcher of each branch.
        most: branches of one pass. If there are more, the first ones are finished first.
    """

    def __init__(
        self,
        request: Sample,
        special: frozenset[int],
        piece: Callable[[int], str],
        matchers: Sequence[Matcher] = (),
        most: int = 1 << 30,
    ) -> None:
        super().__init__(request.prefix)
        self.request = request
        self._special = special
        self._piece = piece
        self._matchers = matchers
        self._most = most
        self._texts: list[TokenIds] = []  # of each branch, with the prefix; empty before the first token
        self._places: list[Place] = []
        self._logprobs: list[list[float]] = [[] for _ in range(request.n)]
        self._end_logprob: dict[int, float] = {}  # of the branches that ended
        self._alive = list(range(request.n))

    @property
    def width(self) -> int:
        """Return how many branches the next pass has: one until each has its first token."""
        return len(self._turn) if self._texts else 1

    @property
    def _turn(self) -> list[int]:
        """Return the branches of the next pass, which all have the same length."""
        if not self._texts:
            return self._alive
        group = self._alive[0] // self._most
        return [branch for branch in self._alive if branch // self._most == group]

    def _read_on(self, forward: Forward) -> list[int]:
        if not self._texts:  # the first tokens all come from the prefix's logits
            return forward.add(self.request.prefix, 1, self._place)
        return [row for i in self._turn for row in forward.add(self._texts[i], 1, self._places[i])]

    def _decide(self, rows: Rows) -> list[tuple[int, float]]:
        if self.request.ranked:
            return rows.ranked(self.request.n)
        turn = self._turn
        matchers = [self._matchers[branch] for branch in turn] if self._matchers else []
        allowed = np.stack([matcher.allowed() for matcher in matchers]) if matchers else None
        position = self.request.start + len(self._logprobs[turn[0]])
        return rows.draw(self.request, turn, position, allowed)

    def _keep(self, decision: list[tuple[int, float]]) -> None:
        turn = self._turn
        if not self._texts:
            self._texts = [self.request.prefix] * len(decision)
            self._places = [copy(self._place) for _ in decision]
        alive = [branch for branch in self._alive if branch > turn[-1]]
        for branch, (token, logprob) in zip(turn, decision, strict=False):
            if token in self._special:
                if not self._matchers or self._matchers[branch].fits:
                    self._end_logprob[branch] = logprob
                continue
            self._texts[branch] += (token,)
            self._logprobs[branch].append(logprob)
            if self._matchers:
                self._matchers[branch].advance((token,))
                if self._matchers[branch].whole:
                    if self._matchers[branch].fits:
                        self._end_logprob[branch] = 0.0  # the end is the only possibility
                    continue
            full = len(self._logprobs[branch]) >= self.request.max_tokens
            if not full and not (self.request.ends and self._piece(token).endswith(self.request.ends)):
                alive.append(branch)
        self._alive = sorted(alive)
        if not alive:
            start = len(self.request.prefix)
            self.reply = Samples(
                tuple(
                    Continuation(
                        text[start:],
                        tuple(logprobs),
                        branch in self._end_logprob,
                        sum(logprobs) + self._end_logprob.get(branch, 0.0),
                    )
                    for branch, (text, logprobs) in enumerate(zip(self._texts, self._logprobs, strict=False))
                ),
                self.model_tokens,
                self.forwards,
                self.cached_tokens,
            )


class ScoreJob(_Job[tuple[float, ...]]):
    """A Score request: once its prefix is read, all options are scored in one pass."""

    def __init__(self, request: Score) -> None:
        super().__init__(request.prefix)
        self.request = request
        self._rows: list[list[int]] = []  # of each option's tokens in the current pass

    @property
    def width(self) -> int:
        """Return how many branches the next pass has: one for each option once the prefix is read."""
        return len(self.request.options)

    def _read_on(self, forward: Forward) -> list[int]:
        forward.find(self.request.prefix, self._place)
        rows = [
            forward.add(self.request.prefix + option[:-1], len(option), copy(self._place))
            for option in self.request.options
        ]
        wanted = sorted({row for option in rows for row in option})
        index = {row: i for i, row in enumerate(wanted)}
        self._rows = [[index[row] for row in option] for option in rows]
        return wanted

    def _decide(self, rows: Rows) -> tuple[float, ...]:
        tokens = [token for option in self.request.options for token in option]
        values = iter(rows.logprobs([row for option in self._rows for row in option], tokens))
        return tuple(sum(next(values) for _ in option) for option in self.request.options)

    def _keep(self, decision: tuple[float, ...]) -> None:
        self.reply = Scores(decision, self.model_tokens, self.forwards)


class ReadJob(_Job[tuple[tuple[float, ...], ...]]):
    """A Read request: once its text is computed, what was read from it. What is cached needs no pass."""

    counts_shared_passes = False

    def __init__(self, request: Read) -> None:
        super().__init__(request.prefix + request.tokens)
        self.request = request
        self._forward: Forward

    @property
    def width(self) -> int:
        """Return how many branches the next pass has: one."""
        return 1

    def _read_on(self, forward: Forward) -> list[int]:
        self._forward = forward
        return forward.add(self._prefix, 0, self._place)

    def _decide(self, rows: Rows) -> tuple[tuple[float, ...], ...]:
        return self._forward.read(self.request, self._place)

    def _keep(self, decision: tuple[tuple[float, ...], ...]) -> None:
        self.reply = Values(decision, self.model_tokens, self.forwards)
