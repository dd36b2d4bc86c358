"""Read the hidden states of labelled answers, averaged over the beginning of each answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rain_llm.doctor.items import Item
from rain_llm.errors import ModelError, PromptError
from rain_llm.judging.reading import prefix_of
from rain_llm.models.base import Readable

CUTS = (4, 8, 16, 32)
"""Lengths in tokens at which answers are cut off. A shorter answer is complete."""

COMPLETE, HALF = -1, -2
"""Places of the complete answer and of its first half, after those of ``CUTS``."""

_DEPTHS = (0.345, 0.414, 0.483, 0.552, 0.62, 0.69, 0.76)
"""Depths of the layers that are read; middle layers know most (``docs/doctor.md``)."""


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states of answers, each averaged over an answer's first tokens.

    Attributes:
        layers: the blocks whose output was read.
        means: shape [answers, cuts, layers, width]; the last cuts are ``HALF`` and ``COMPLETE``.
        model_tokens: tokens of prompts and answers.
    """

    layers: tuple[int, ...]
    means: NDArray[np.float32]
    model_tokens: int

    def of(self, layers: Sequence[int]) -> NDArray[np.float32]:
        """Return the states of these layers beside each other, shape [answers, cuts, layers * width]."""
        chosen = self.means[:, :, [self.layers.index(layer) for layer in layers]]
        return chosen.reshape(*chosen.shape[:2], -1)


def candidates(depth: int) -> list[tuple[int, ...]]:
    """Return the sets of layers to choose from: each of some middle ones of ``depth`` blocks, or all."""
    middle = tuple(sorted({min(depth - 1, round(depth * share)) for share in _DEPTHS}))
    return [*((layer,) for layer in middle), *([middle] if len(middle) > 1 else [])]


def read_states(
    model: Readable, items: Sequence[Item], tell: Callable[[int], None] = lambda read: None
) -> States:
    """Read the states of all answers.

    Args:
        model: the model.
        items: the answers.
        tell: called with 1 after each answer.

    Raises:
        PromptError: an answer has no tokens, or exceeds the model's context.
        ModelError: the model computes states that are not finite.
    """
    layers = tuple(sorted({layer for chosen in candidates(model.depth) for layer in chosen}))
    means = np.empty((len(items), len(CUTS) + 2, len(layers), model.width), np.float32)
    texts = [(prefix_of(model, item.subject), model.encode(item.said)) for item in items]
    for number in sorted(range(len(items)), key=texts.__getitem__):  # prompts that are alike after each other
        (prompt, answer), item = texts[number], items[number]
        try:
            states = model.states(prompt, answer, layers)
        except PromptError as error:
            raise type(error)(f"item {item.id}: {error}") from error
        if not np.isfinite(states).all():
            raise ModelError(
                f"item {item.id}: the hidden states of {model.name} are not finite numbers: "
                "its weights are damaged, or it needs a wider dtype"
            )
        sums = states.cumsum(0, dtype=np.float64)
        for place, cut in enumerate((*CUTS, (len(answer) + 1) // 2, len(answer))):
            kept = min(cut, len(answer))
            means[number, place] = sums[kept - 1] / kept
        tell(1)
    return States(layers, means, sum(len(prompt) + len(answer) for prompt, answer in texts))
