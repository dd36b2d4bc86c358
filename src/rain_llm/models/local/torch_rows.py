"""Rows of logits as a torch tensor: draw, rank and score tokens on the tensor's device.

Only the chosen tokens and their log-probabilities are copied from the device, in one transfer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rain_llm.models.grammar import Mask
from rain_llm.requests import Sample
from rain_llm.search.seeds import seed_of


class TorchRows:
    """One job's rows of the logits (see :class:`~rain_llm.models.local.jobs.Rows`).

    Args:
        logits: [rows, vocabulary], float32, on any device.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def draw(
        self, request: Sample, branches: Sequence[int], position: int, allowed: Mask | None
    ) -> list[tuple[int, float]]:
        """Choose the next token of each branch; return it with its log-probability."""
        logits = self._logits.expand(len(branches), -1)
        masked = logits
        if allowed is not None:
            masked = logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
        drawn = _draw(masked, request, branches, position)
        if request.greedy_first and branches[0] == 0:
            drawn[0] = logits[0].argmax()
        chosen = logits.gather(-1, drawn[:, None]) - self._logits.logsumexp(-1, keepdim=True)
        return _pairs(drawn, chosen[:, 0])

    def ranked(self, n: int) -> list[tuple[int, float]]:
        """Return the n most likely tokens of the first row (at most the vocabulary)."""
        best = self._logits[0].topk(min(n, self._logits.shape[-1]))
        return _pairs(best.indices, best.values - self._logits[0].logsumexp(-1))

    def logprobs(self, places: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each ``tokens[i]`` in row ``places[i]``."""
        # numpy's array becomes one transfer to the device; torch makes one of each list otherwise.
        rows, columns = torch.from_numpy(np.array([places, tokens], np.int64)).to(self._logits.device)
        found: list[float] = (self._logits[rows, columns] - self._logits.logsumexp(-1)[rows]).tolist()
        return found


def _pairs(tokens: torch.Tensor, logprobs: torch.Tensor) -> list[tuple[int, float]]:
    """Copy tokens and log-probabilities from the device in one transfer; doubles represent both exactly."""
    both = torch.stack((tokens.double(), logprobs.double())).tolist()
    return [(int(token), logprob) for token, logprob in zip(*both, strict=True)]


def _draw(logits: torch.Tensor, request: Sample, branches: Sequence[int], position: int) -> torch.Tensor:
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
    uniform = _uniform(scores, request.seed, branches, position)
    noise = uniform.neg_().log1p_().neg_().to(scores.dtype).log_()
    return (scores - noise).argmax(-1)


def _uniform(like: torch.Tensor, seed: int, branches: Sequence[int], position: int) -> torch.Tensor:
    """Return random numbers in [0, 1), float64, of the shape of ``like``: a row for each branch.

    The generator is seeded for each branch. Seeding costs about 1 us; drawing a row of 49,152 numbers costs
    230 us on a CPU, so drawing rows also for the branches that have ended would cost more.
    """
    uniform = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    generator = torch.Generator(like.device)
    for row, branch in zip(uniform, branches, strict=True):
        row.uniform_(generator=generator.manual_seed(seed_of(seed, position, branch)))
    return uniform
