"""Writes what was measured: Markdown for people, JSON for programs, a chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.meter import PARTS
from benchmarks.scenarios import Figure
from benchmarks.table import PLAIN, Row

_MIB = 1 << 20
_HEAD = (
    "method",
    "tokens through the model per output token",
    "forward passes per output token",
    "CPU per output token over plain",
    "repetitions",
    "peak memory above the weights, MiB",
    "keys and values, MiB",
    *(f"CPU: {part}" for part in PARTS),
    "(outside the network)",
)
_LEGEND = """
Counts are exact; CPU is a ratio within this run, the median of the repetitions, which take turns. A pass
that candidates, simulations and questions share is split by its tokens. `(outside the network)` is the
part of the first three that the network itself did not take: masks, sampling.
"""


def markdown(rows: Sequence[Row], figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """Make the tables."""
    lines: list[str] = []
    if rows:
        lines += _table(_HEAD)
        for row in rows:
            cells = row.cells()
            lines.append(
                f"| {row.method} | {cells['tokens']:.1f} | {cells['forwards']:.2f} | {cells['cpu']:.2f} "
                f"| {cells['repetitions']:.0f} | {cells['memory'] / _MIB:.0f} | {cells['cache'] / _MIB:.1f} "
                + "| "
                + " | ".join(f"{cells[part]:.1%}" for part in (*PARTS, "bookkeeping"))
                + " |"
            )
        lines.append(_LEGEND)
    if figures:
        lines += _table(("scenario", "figure", "measured", "bar", "met"))
        for figure in figures:
            bar = "" if figure.bar is None else f"{'≥' if figure.more else '≤'} {figure.bar:g}"
            met = {True: "yes", False: "**no**", None: ""}[figure.met]
            lines.append(f"| {figure.scenario} | {figure.what} | {figure.value:.3g} | {bar} | {met} |")
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _table(head: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def data(
    rows: Sequence[Row], figures: Sequence[Figure], notes: Sequence[str], about: dict[str, Any]
) -> dict[str, Any]:
    """Make what goes into the JSON file."""
    return {
        "about": about,
        "table": [{"method": row.method, **row.cells()} for row in rows],
        "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
        "notes": list(notes),
    }


def chart(rows: Sequence[Row], path: Path) -> None:
    """Draw the CPU of each method, by part, as multiples of plain generation."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 0.6 * len(rows) + 1.6), layout="constrained")
    axes = canvas.subplots()
    names = [row.method for row in rows][::-1]
    cells = [row.cells() for row in rows][::-1]
    left = [0.0] * len(rows)
    for part in PARTS:
        widths = [cell["cpu"] * cell[part] for cell in cells]
        axes.barh(names, widths, left=left, label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for place, cell in enumerate(cells):
        axes.text(cell["cpu"] * 1.03, place, f"{cell['cpu']:.1f}", va="center")
    axes.set_xlim(0, max(left) * 1.1)
    axes.set_xlabel(f"CPU per output token, {PLAIN} = 1")
    canvas.legend(loc="outside upper center", ncols=len(PARTS))
    canvas.savefig(path)


def write(folder: Path, text: str, record: dict[str, Any], rows: Sequence[Row]) -> list[str]:
    """Write ``bench.md``, ``bench.json`` and ``bench.svg``; return notes on what could not be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(text, encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if rows:
        try:
            chart(rows, folder / "bench.svg")
        except ModuleNotFoundError:
            return ["No chart: it needs matplotlib (pip install 'rain-llm[dev]')."]
    return []
