"""Independent judges: each gives every answer a figure, from its text alone.

``by_words``, ``by_similarity``, ``by_classifier`` and ``fluency`` measure answers; ``applies`` says which
answers a figure is about; ``built_in`` lists the judges of every report; ``own`` makes judges of the user's
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import Item

Column: TypeAlias = NDArray[np.float64]
"""A figure for each row, in order; NaN where there is none."""

Items: TypeAlias = Mapping[tuple[str, str], Item]
"""The prompts with their reference answers, by task and item."""

Progress: TypeAlias = Callable[[str], None]
"""A function that receives a line about what is being done."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One figure for each answer.

    Attributes:
        name: the column's name.
        title: a short name for the head of a table.
        about: what the figure is, with its range, for the legend.
        better: 1 if more is better, -1 if less is better, 0 if neither.
        score: returns a figure for each row, NaN where there is none; None: only figures that were stored
            before are used.
        applies: whether the figure is defined for an answer.
        share: the figure is 0 or 1, so its mean is a share.
        tone: the figure describes how an answer sounds. Refusals are left out and counted separately.
        model: the model that computes the figure; figures are stored under this name. "": none is needed,
            and figures are computed again each time.
        note: what a reader must know about the figure, computed after ``score``.
        unavailable: why ``score`` is None.
    """

    name: str
    title: str
    about: str
    better: int
    score: Callable[[Sequence[Row], Items], Column] | None
    applies: Callable[[Row, Item], bool] = lambda row, item: True
    share: bool = False
    tone: bool = False
    model: str = ""
    note: Callable[[Items], str] = lambda items: ""
    unavailable: str = ""
