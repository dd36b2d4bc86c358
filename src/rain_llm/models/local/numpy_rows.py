"""Choose tokens by the logits of a pass, with numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rain_llm.errors import ModelError
from rain_llm.models.grammar import Mask
from rain_llm.requests import Sample

Floats = NDArray[np.float32]


class NumpyRows:
    """The logits of the rows that a job asked for.

    Args:
        logits: shape [rows, vocabulary]; not kept longer than the job decides.
    """

    def __init__(self, logits: Floats) -> None:
        self._logits = logits
        self._chances: dict[int, tuple[float, Floats, float]] = {}

    def draw(
        self, request: Sample, branches: Sequence[int], position: int, allowed: Mask | None
    ) -> list[tuple[int, float]]:
        """Choose the next token of each branch; return it with its log-probability.

        This selects the token with the largest ``p / e``, where e is exponentially distributed (the same as
        the Gumbel-max trick). Rounding errors of the logits, which depend on the batch, rarely change the
        result, unlike with the cumulative distribution. Every token of the vocabulary has its own random
        number: numbers for the ``top_k`` tokens alone would be swapped when two of these tokens swap ranks.
        The numbers depend on seed, position and branch alone, so that a pass can be repeated.
        """
        found = []
        for i, branch in enumerate(branches):
            row = i if len(self._logits) > 1 else 0
            greedy = request.greedy_first and branch == 0
            mask = None if allowed is None else allowed[i]
            token = self._greedy(row, mask) if greedy else self._drawn(request, row, branch, position, mask)
            found.append((token, self._logprob(row, token)))
        return found

    def ranked(self, n: int) -> list[tuple[int, float]]:
        """Return the ``n`` most likely tokens of the first row (all, if there are fewer), best first."""
        logits = self._logits[0]
        n = min(n, len(logits))
        best = np.argpartition(-logits, n - 1)[:n]
        best = best[np.argsort(-logits[best], kind="stable")]
        return [(int(token), self._logprob(0, int(token))) for token in best]

    def logprobs(self, places: Sequence[int], tokens: Sequence[int]) -> list[float]:
        """Return the log-probability of each token in its row."""
        return [self._logprob(place, token) for place, token in zip(places, tokens, strict=True)]

    def _known(self, row: int) -> tuple[float, Floats, float]:
        """Return a row's largest logit, its probabilities divided by the largest, and their sum's logarithm.

        Raises:
            ModelError: the model computed something that is not a number.
        """
        if row not in self._chances:
            logits = self._logits[row]
            most = float(logits.max())
            if not np.isfinite(most):
                raise ModelError("the model computed logits that are not numbers: its file may be damaged")
            chances = np.exp(logits - np.float32(most))
            self._chances[row] = most, chances, float(np.log(chances.sum(dtype=np.float64)))
        return self._chances[row]

    def _logprob(self, row: int, token: int) -> float:
        most, _, total = self._known(row)
        return float(self._logits[row, token]) - most - total

    def _greedy(self, row: int, mask: Mask | None) -> int:
        logits = self._logits[row]
        return int((logits if mask is None else np.where(mask, logits, -np.inf)).argmax())

    def _drawn(self, request: Sample, row: int, branch: int, position: int, mask: Mask | None) -> int:
        most, chances, _ = self._known(row)
        if mask is not None:
            logits = np.where(mask, self._logits[row], np.float32(-np.inf))
            most = float(logits.max())
            chances = np.exp((logits - np.float32(most)) / np.float32(request.temperature))
        elif request.temperature != 1:
            chances = np.exp((self._logits[row] - np.float32(most)) / np.float32(request.temperature))
        if 0 < request.top_k < len(chances):
            least = np.partition(chances, -request.top_k)[-request.top_k]
            chances = np.where(chances < least, np.float32(0), chances)
        if request.top_p < 1:
            order = np.argsort(-chances, kind="stable")
            ranked = chances[order].astype(np.float64)
            before = ranked.cumsum() - ranked
            chances = chances.copy()
            chances[order[before >= request.top_p * ranked.sum()]] = 0
        numbers = np.random.Generator(np.random.PCG64((request.seed, position, branch)))
        return int((chances / numbers.standard_exponential(len(chances))).argmax())
