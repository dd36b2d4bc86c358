"""How many examples a property is tried on: all by ``make test``, a quarter by ``make check``."""

from __future__ import annotations

import os

QUICK = "RAIN_LLM_QUICK_TESTS"


def examples(count: int) -> int:
    """Return how many of ``count`` examples are to be tried."""
    return max(10, count // 4) if os.environ.get(QUICK) else count
