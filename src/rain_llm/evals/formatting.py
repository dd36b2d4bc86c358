"""Figures, differences and intervals as the text of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rain_llm.evals.judges import Judge
from rain_llm.evals.page import Cell
from rain_llm.evals.statistics import Estimate


class Scale:
    """Formats the figures of one judge with as many digits as their intervals allow."""

    def __init__(self, judge: Judge, estimates: Sequence[Estimate], changes: Sequence[Estimate] = ()) -> None:
        self._factor, self._unit = (100.0, " %") if judge.share else (1.0, "")
        widths = [(e.high - e.low) / 2 * self._factor for e in estimates if e.high - e.low > 1e-9]
        width = float(np.median(widths)) if widths else self._factor
        self._digits = min(3, max(0, -math.floor(math.log10(width / 3))))
        while any(e.differs_from(0) and self._hides(e) for e in changes) and self._digits < 5:
            self._digits += 1

    def value(self, value: float, sign: bool = False) -> str:
        """Format a number without its unit."""
        if math.isnan(value):
            return "–"
        rounded = round(value * self._factor, self._digits)
        if rounded == 0:
            return "0"
        return f"{rounded:{'+' if sign else ''}.{self._digits}f}".replace("-", "−")

    def _hides(self, estimate: Estimate) -> bool:
        """Tell whether rounding moves an end of an interval to zero."""
        return any(round(end * self._factor, self._digits) == 0 for end in (estimate.low, estimate.high))

    def signed(self, value: float) -> str:
        """Format a difference."""
        return self.value(value, sign=True)

    def figure(self, value: float) -> str:
        """Format a number with its unit."""
        return self.value(value) + ("" if math.isnan(value) else self._unit)

    def interval(self, estimate: Estimate, sign: bool = False) -> str:
        """Format the interval, in brackets."""
        if math.isnan(estimate.low):
            return ""
        return f"[{self.value(estimate.low, sign)}, {self.value(estimate.high, sign)}]"

    def change(self, estimate: Estimate) -> str:
        """Format a difference with its interval; shares differ by percentage points."""
        if estimate.low == estimate.high == estimate.value == 0:
            return "0"
        return f"{self.value(estimate.value, sign=True)} {self.interval(estimate, sign=True)}".rstrip()


def verdict_of(estimate: Estimate, better: int) -> str:
    """Return what a difference means: a key of ``page.MARKS``."""
    if not estimate.differs_from(0):
        return "no significant difference"
    if better == 0:
        return "more" if estimate.value > 0 else "less"
    return "better" if estimate.value * better > 0 else "worse"


def percent(value: float) -> str:
    """Format a share."""
    return f"{100 * value:.0f} %"


def measured(estimate: Estimate, digits: int) -> Cell:
    """Format an estimate, with its interval beside it."""
    if math.isnan(estimate.value):
        return Cell("–")
    interval = f"[{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return Cell(f"{estimate.value:.{digits}f}", "" if math.isnan(estimate.low) else interval)


def listed(*parts: str) -> str:
    """Join the parts that are not empty."""
    return "; ".join(filter(None, parts))


def title_of(judge: Judge) -> str:
    """Return the head of a judge's column: its title, and an arrow towards what is better."""
    return f"{judge.title} {'↑' if judge.better > 0 else '↓' if judge.better < 0 else ''}".rstrip()
