"""How the time of a piece of work grows with its size: a ratio, alike on slow and fast machines."""

from __future__ import annotations

import time
from collections.abc import Callable

TIMES = 4  # the larger input
MOST = 10  # squared it would be 16 times as long


def grows_like_its_input(work: Callable[[int], object], size: int) -> bool:
    """Whether four times the input takes less than ten times as long; a disturbed measurement is repeated.

    Args:
        work: is given the size of its input.
        size: of the smaller input; large enough that a constant part does not hide what grows.
    """
    return any(
        _seconds(work, TIMES * size) < MOST * min(_seconds(work, size) for _ in range(3)) for _ in range(3)
    )


def _seconds(work: Callable[[int], object], size: int) -> float:
    began = time.thread_time()  # of this thread alone: others may run beside it
    work(size)
    return time.thread_time() - began
