"""Jobs: the state of a request from one forward pass to the next.

A job takes part in a forward pass in three steps, so that a failed pass does not change it:

1. ``read`` adds the tokens to compute to the pass;
2. ``weigh`` chooses tokens by its rows of the logits, without changing the job;
3. ``accept`` stores that decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

import numpy as np
import torch

from rain_llm.models.grammar import Matcher
from rain_llm.models.local.kv_cache import Path
from rain_llm.models.local.tree_attention import Pass
from rain_llm.requests import Continuation, Sample, Samples, Score, Scores
from rain_llm.types import TokenIds

CHUNK = 512
"""Maximum tokens of a prefix per pass, so that a long prompt does not delay other requests."""

Decision = TypeVar("Decision")


class _Job(ABC, Generic[Decision]):
    """Base of all jobs: the prefix is read first, in chunks if it is long."""

    def __init__(self, prefix: TokenIds) -> None:
        self.reply: Samples | Scores | None = None
        self.forwards = 0
        self.model_tokens = 0
        self.cached_tokens = 0  # tokens of the prefix, except the last, that need not be computed
        self._prefix = prefix
        self._path = Path()  # of the prefix
        self._been_read = 0  # tokens of the prefix that accepted passes have read for this job
        self._reading = 0  # the same, including the current pass

    def read(self, forward: Pass) -> list[int]:
        """Add the tokens that this job needs next to a pass; return the rows whose logits it needs."""
        forward.open_request()
        if not self.forwards:  # the last token is always computed, because its logits are needed
            self.cached_tokens = min(len(forward.cache.find(self._prefix, self._path)), len(self._prefix) - 1)
        self._reading = len(self._prefix)
        if len(self._prefix) > CHUNK:
            # Other requests may have evicted what earlier passes read. Continuing from the furthest
            # position reached ensures progress in every pass.
            known = len(forward.cache.find(self._prefix, self._path))
            self._reading = min(len(self._prefix), max(known, self._been_read) + CHUNK)
        if self._reading < len(self._prefix):
            forward.add(self._prefix[: self._reading], 0, self._path)
            return []
        return self._read_on(forward)

    def weigh(self, logits: torch.Tensor, logprobs: torch.Tensor) -> Decision | None:
        """Decide by the logits of the rows that ``read`` returned; None while the prefix is being read."""
        return self._decide(logits, logprobs) if self._reading == len(self._prefix) else None

    def accept(self, decision: Decision | None, cost: int) -> None:
        """Store the decision, and count the ``cost`` tokens that the pass computed for this job."""
        self.forwards += 1
        self.model_tokens += cost
        self._been_read = self._reading
        if decision is not None:
            self._keep(decision)

    @abstractmethod
    def _read_on(self, forward: Pass) -> list[int]: ...

    @abstractmethod
    def _decide(self, logits: torch.Tensor, logprobs: torch.Tensor) -> Decision: ...

    @abstractmethod
    def _keep(self, decision: Decision) -> None: ...


class SampleJob(_Job[list[tuple[int, float]]]):
    """A Sample request: each unfinished branch grows by one token per pass.

    Args:
        request: the request.
        special: tokens that end a continuation.
        piece: returns the text of a token.
        device: device of the logits.
        matchers: for a request with a schema, the matcher of each branch.
    """

    def __init__(
        self,
        request: Sample,
        special: frozenset[int],
        piece: Callable[[int], str],
        device: torch.device,
        matchers: Sequence[Matcher] = (),
    ) -> None:
        super().__init__(request.prefix)
        self.request = request
        self._special = special
        self._piece = piece
        self._matchers = matchers
        self._rng = torch.Generator(device).manual_seed(request.seed)
        self._state = self._rng.get_state()  # after the last accepted pass
        self._texts: list[TokenIds] = []  # of each branch, with the prefix; empty before the first token
        self._paths: list[Path] = []
        self._logprobs: list[list[float]] = [[] for _ in range(request.n)]
        self._end_logprob: dict[int, float] = {}  # of the branches that ended
        self._alive = list(range(request.n))

    def _read_on(self, forward: Pass) -> list[int]:
        if not self._texts:  # the first tokens all come from the prefix's logits
            return forward.add(self.request.prefix, 1, self._path)
        return [row for i in self._alive for row in forward.add(self._texts[i], 1, self._paths[i])]

    def _decide(self, logits: torch.Tensor, logprobs: torch.Tensor) -> list[tuple[int, float]]:
        if self.request.ranked:  # a ranking cannot be longer than the vocabulary
            best = logprobs[0].topk(min(self.request.n, logprobs.shape[-1]))
            return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self._rng.set_state(self._state)  # a failed pass may have advanced it
        drawn = _draw(self._masked(logits.expand(len(self._alive), -1)), self.request, self._rng)
        if self.request.greedy_first and self._alive[0] == 0:
            drawn[0] = logits[0].argmax()
        chosen = logprobs.expand(len(self._alive), -1).gather(-1, drawn[:, None])[:, 0]
        return list(zip(drawn.tolist(), chosen.tolist(), strict=True))

    def _masked(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask the tokens that the schema does not allow."""
        if not self._matchers:
            return logits
        allowed = np.stack([self._matchers[branch].allowed() for branch in self._alive])
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def _keep(self, decision: list[tuple[int, float]]) -> None:
        self._state = self._rng.get_state()
        if not self._texts:
            self._texts = [self.request.prefix] * len(decision)
            self._paths = [replace(self._path) for _ in decision]
        alive = []
        for branch, (token, logprob) in zip(self._alive, decision, strict=False):
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
        self._alive = alive
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
        self._places: list[list[int]] = []  # rows of each option's tokens in the current pass

    def _read_on(self, forward: Pass) -> list[int]:
        forward.cache.find(self.request.prefix, self._path)
        rows = [
            forward.add(self.request.prefix + option[:-1], len(option), replace(self._path))
            for option in self.request.options
        ]
        wanted = sorted({row for option in rows for row in option})
        place = {row: i for i, row in enumerate(wanted)}
        self._places = [[place[row] for row in option] for option in rows]
        return wanted

    def _decide(self, logits: torch.Tensor, logprobs: torch.Tensor) -> tuple[float, ...]:
        tokens = [token for option in self.request.options for token in option]
        values = iter(logprobs[[place for option in self._places for place in option], tokens].tolist())
        return tuple(sum(next(values) for _ in option) for option in self.request.options)

    def _keep(self, decision: tuple[float, ...]) -> None:
        self.reply = Scores(decision, self.model_tokens, self.forwards)


def _draw(logits: torch.Tensor, request: Sample, rng: torch.Generator) -> torch.Tensor:
    """Sample one token per row.

    This selects the token with the largest ``log p - log e``, where e is exponentially distributed (the
    Gumbel-max trick). Rounding errors of the logits, which depend on the batch, rarely change the result,
    unlike with the cumulative distribution. Every token of the vocabulary has its own random number: numbers
    for the ``top_k`` tokens alone would be swapped when two of these tokens swap ranks.
    """
    scores = logits / request.temperature
    if 0 < request.top_k < scores.shape[-1]:
        least = scores.topk(request.top_k, -1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if request.top_p < 1:
        ranked, order = scores.sort(-1, descending=True)
        probabilities = torch.softmax(ranked, -1)
        outside = probabilities.cumsum(-1) - probabilities >= request.top_p
        scores = scores.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    # The same numbers as exponential_ returns, which computes the logarithms one by one.
    uniform = torch.rand(scores.shape, generator=rng, dtype=torch.float64, device=scores.device)
    noise = uniform.neg_().log1p_().neg_().to(scores.dtype).log_()
    return (scores - noise).argmax(-1)
