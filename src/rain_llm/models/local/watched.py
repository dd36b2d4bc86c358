"""What is read from the hidden states of every pass of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rain_llm.errors import ModelError
from rain_llm.models.local.numpy_rows import Floats
from rain_llm.requests import Read, Reading

MOST = 64
"""Readings that one model watches."""


class Watched:
    """The readings of a model, as one matrix.

    Attributes:
        layers: the blocks whose output is needed, in order.
    """

    def __init__(self) -> None:
        self.layers: tuple[int, ...] = ()
        self._readings: dict[str, Reading] = {}
        self._matrix: Floats = np.empty((0, 0), np.float32)

    def add(self, readings: Sequence[Reading]) -> bool:
        """Add readings; return whether one of them is new.

        Raises:
            ModelError: these would be too many.
        """
        new = {reading.name: reading for reading in readings if reading.name not in self._readings}
        if not new:
            return False
        if len(self._readings) + len(new) > MOST:
            raise ModelError(
                f"one model reads {MOST} probes at most: use fewer different probes in one process"
            )
        every = self._readings | new
        layers = sorted({layer for reading in every.values() for layer in reading.layers})
        width = next(iter(every.values())).weights.shape[1]
        matrix = np.zeros((len(layers), width, len(every)), np.float32)
        for column, reading in enumerate(every.values()):
            for layer, weights in zip(reading.layers, reading.weights, strict=True):
                matrix[layers.index(layer), :, column] = weights
        self._readings, self.layers = every, tuple(layers)
        self._matrix = matrix.reshape(-1, len(every))
        return True

    def check(self, request: Read) -> None:
        """Check that all readings of a request are watched.

        Raises:
            ModelError: one is not.
        """
        if unknown := [name for name in request.readings if name not in self._readings]:
            raise ModelError(f"the reading {unknown[0]} is not watched: call watch() before asking for it")

    def numbers(self, states: Floats | None) -> list[list[float]]:
        """Return what is read from each row of a pass: a number for each reading.

        Args:
            states: hidden states, [rows, layers, width]; None: nothing is read.
        """
        if states is None:
            return []
        numbers: list[list[float]] = (states.reshape(len(states), -1) @ self._matrix).tolist()
        return numbers

    def chosen(self, request: Read, numbers: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
        """Return the numbers of a request's readings: for each reading, one for each token."""
        names = list(self._readings)
        columns = [names.index(name) for name in request.readings]
        return tuple(tuple(row[column] for row in numbers) for column in columns)
