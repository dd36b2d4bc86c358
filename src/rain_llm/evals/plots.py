"""Two plots as SVG, with the colours of the page around them.

They need no library and no script, fit light and dark pages, and are readable in print. The ``<title>`` of a
mark, which browsers show under the pointer, says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rain_llm.evals.statistics import Estimate

_WIDTH, _HEIGHT = 400, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 16, 42
_LABEL = 13  # height of a line of text
_ROW, _NAMES, _COLUMN, _HEAD = 21, 178, 128, 52


@dataclass(frozen=True, slots=True)
class Point:
    """A method in a plot of quality against tokens.

    Attributes:
        tokens: through the model, for an answer. quality: by a judge.
        kind: its CSS class: "plain", "ladder", "rain" or "part".
        label: text beside it; may be empty.
    """

    name: str
    tokens: Estimate
    quality: Estimate
    kind: str
    label: str = ""


def curve(points: Sequence[Point], title: str, write: Callable[[float], str]) -> str:
    """Plot quality against tokens (logarithmic); the ladder of best-of-N is a line with a band.

    Args:
        points: methods with at least one answer.
        title: of the quality, for its axis.
        write: a quality as text.
    """
    tokens = [p.tokens.value for p in points]
    x = _Axis(_logs(min(tokens), max(tokens)), (_LEFT, _WIDTH - _RIGHT), log=True)
    ends = [end for p in points for end in _ends(p.quality)]
    y = _Axis(_nice(min(ends), max(ends)), (_HEIGHT - _BOTTOM, _TOP))
    parts = []
    for tick in y.ticks:
        parts += [_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid")]
        parts += [_text(_LEFT - 7, y(tick) + 4, write(tick), "end tick")]
    for tick in x.ticks:
        parts += [_line(x(tick), _TOP, x(tick), _HEIGHT - _BOTTOM, "grid")]
        parts += [_text(x(tick), _HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle tick")]
    parts += [_text((_LEFT + _WIDTH) / 2, _HEIGHT - 6, "tokens through the model for an answer", "middle")]
    ladder = sorted((p for p in points if p.kind == "ladder"), key=lambda p: p.tokens.value)
    if len(ladder) > 1:
        upper = [(x(p.tokens.value), y(_ends(p.quality)[1])) for p in ladder]
        lower = [(x(p.tokens.value), y(_ends(p.quality)[0])) for p in reversed(ladder)]
        parts += [f'<polygon class="band" points="{_path(upper + lower)}"/>']
        middle = [(x(p.tokens.value), y(p.quality.value)) for p in ladder]
        parts += [f'<polyline class="ladder" points="{_path(middle)}"/>']
    taken: list[tuple[float, float, float]] = []
    for p in sorted(points, key=lambda p: ("part", "ladder", "plain", "rain").index(p.kind)):
        here, there = x(p.tokens.value), y(p.quality.value)
        low, high = _ends(p.quality)
        hint = (
            f"{p.name}: {write(p.quality.value)} [{write(low)}, {write(high)}], {p.tokens.value:.0f} tokens"
        )
        bar = [] if p.kind in ("ladder", "part") else [_line(here, y(low), here, y(high), "bar")]
        radius = {"ladder": 3, "part": 2.5}.get(p.kind, 5)
        dot = f'<circle cx="{here:.1f}" cy="{there:.1f}" r="{radius}"/>'
        parts += [f'<g class="{p.kind}"><title>{escape(hint)}</title>{"".join(bar)}{dot}</g>']
    for p in sorted((p for p in points if p.label), key=lambda p: p.kind == "ladder"):
        parts += [_label(p, x(p.tokens.value), y(p.quality.value), taken)]
    return _svg(_WIDTH, _HEIGHT, f"{title} against tokens", parts)


@dataclass(frozen=True, slots=True)
class Effects:
    """One column of a forest plot: differences to one base by one judge.

    Attributes:
        title: the judge's.
        better: 1 if more is better, -1 if less is, 0 if neither.
        changes: (difference, verdict) of each method, in the rows' order.
        write: a difference as text.
    """

    title: str
    better: int
    changes: Sequence[tuple[Estimate, str]]
    write: Callable[[float], str]


def forest(methods: Sequence[str], columns: Sequence[Effects]) -> str:
    """Plot differences with their intervals, methods by judges; what is better lies to the right."""
    width, height = _NAMES + _COLUMN * len(columns), _HEAD + _ROW * len(methods) + 22
    bottom = height - 18
    parts = []
    for row, method in enumerate(methods):
        middle = _HEAD + _ROW * (row + 0.5)
        parts += [_text(_NAMES - 12, middle + 4, method, "end")]
        if row % 2 == 0:
            parts.insert(
                0, f'<rect class="stripe" x="0" y="{middle - _ROW / 2}" width="{width}" height="{_ROW}"/>'
            )
    for place, column in enumerate(columns):
        left = _NAMES + place * _COLUMN
        sign = column.better or 1
        known = [e for e, _ in column.changes if e.answers]
        reach = max((abs(end) for e in known for end in _ends(e)), default=0) or 0.1
        x = _Axis([-reach * 1.08, reach * 1.08], (left + 12, left + _COLUMN - 8))
        step = _round_down(0.85 * reach)
        parts += [_text(x(0), 16, column.title, "middle strong")]
        parts += [_text(x(0), 32, "better →" if column.better else "more →", "middle tick")]
        for tick in (-step, 0.0, step):
            parts += [_line(x(tick), _HEAD - 6, x(tick), bottom, "zero" if tick == 0 else "grid")]
            parts += [_text(x(tick), bottom + 14, column.write(sign * tick) if tick else "0", "middle tick")]
        for row, (estimate, verdict) in enumerate(column.changes):
            if not estimate.answers:
                continue
            middle = _HEAD + _ROW * (row + 0.5)
            low, high = sorted(sign * end for end in _ends(estimate))
            hint = (
                f"{methods[row]}, {column.title}: {column.write(estimate.value)} "
                f"[{', '.join(map(column.write, _ends(estimate)))}], {verdict}"
            )
            parts += [
                f'<g class="{escape(verdict.replace(" ", "-"))}"><title>{escape(hint)}</title>'
                f"{_line(x(low), middle, x(high), middle, 'bar')}"
                f'<circle cx="{x(sign * estimate.value):.1f}" cy="{middle:.1f}" r="4"/></g>'
            ]
    return _svg(width, height, "differences with their intervals", parts)


class _Axis:
    """Maps figures to places."""

    def __init__(self, ticks: Sequence[float], places: tuple[float, float], log: bool = False) -> None:
        self.ticks = ticks
        self._of = math.log10 if log else float
        self._from, self._to = places
        self._low, self._high = self._of(ticks[0]), self._of(ticks[-1])

    def __call__(self, value: float) -> float:
        share = (self._of(value) - self._low) / (self._high - self._low)
        return self._from + share * (self._to - self._from)


def _ends(estimate: Estimate) -> tuple[float, float]:
    if math.isnan(estimate.low):
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def _nice(low: float, high: float) -> list[float]:
    """Round ticks, about five, that enclose an interval."""
    span = (high - low) or abs(high) or 1.0
    step = min(
        (m * 10.0 ** math.floor(math.log10(span / 4)) for m in (1, 2, 2.5, 5, 10)),
        key=lambda s: abs(span / s - 5),
    )
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * i for i in range(first, max(last, first + 1) + 1)]


def _logs(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5, 10, ... that enclose an interval."""
    marks = [m * 10.0**e for e in range(-1, 9) for m in (1, 2, 5)]
    first = max((m for m in marks if m <= low), default=marks[0])
    last = min((m for m in marks if m >= high and m > first), default=marks[-1])
    return [m for m in marks if first <= m <= last]


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max(m * power for m in (1, 1.5, 2, 3, 4, 5, 6, 8) if m * power <= value)


def _label(point: Point, x: float, y: float, taken: list[tuple[float, float, float]]) -> str:
    """Write beside a point, where nothing is written yet."""
    width = 6.6 * len(point.label)
    beside = 9.0 if x + width + 9 < _WIDTH - _RIGHT else -9.0 - width
    tries: Iterable[tuple[float, float]]
    if point.kind == "ladder":
        tries = [(-width / 2, -9.0), (-width / 2, 17.0)]
    else:
        tries = [(beside, 4.0 + shift) for shift in (0, -12, 12, -24, 24, -36, 36)]
    for dx, dy in tries:
        box = (x + dx, x + dx + width, y + dy)
        free = all(box[1] < a or box[0] > b or abs(box[2] - at) >= _LABEL - 1 for a, b, at in taken)
        if free and _TOP < box[2] < _HEIGHT - _BOTTOM + 2:
            taken.append(box)
            return _text(box[0], box[2], point.label, f"{point.kind}-label")
    return ""


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
