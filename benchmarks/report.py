"""Writes what was measured: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.meter import PARTS
from benchmarks.scenarios import Figure
from benchmarks.table import CASES, Row

_COLUMNS = {
    **{f"speed {case}": (f"tokens/s, {case}", "{:.1f}") for case in CASES},
    "first": ("first text, ms", "{:.0f}"),
    "forwards": ("passes per token", "{:.2f}"),
    "tokens": ("tokens through the model per token", "{:.1f}"),
    "cpu": ("CPU per token, first row = 1", "{:.2f}"),
    "memory": ("memory of the process, MiB", "{:.0f}"),
    **{part: (f"CPU: {part}", "{:.1%}") for part in PARTS},
}
_LEGEND = """
Tokens a second with 1, 8 or 32 prompts at once, or 8 branches of one prompt; medians of repetitions in turn.
All other columns are of one prompt at a time; memory is that of a process with nothing else, 8 prompts at
once. A pass that candidates, simulations and questions share is split by its tokens.
"""


def markdown(rows: Sequence[Row], figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """Make the tables."""
    lines: list[str] = []
    if rows:
        lines += _table(("method", *(title for title, _ in _COLUMNS.values())))
        for row in rows:
            cells = row.cells(rows[0])
            cells["memory"] /= 1 << 20
            shown = [form.format(cells[key]) if cells.get(key) else "" for key, (_, form) in _COLUMNS.items()]
            lines.append(f"| {row.method} | {' | '.join(shown)} |")
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
        "table": [{"method": row.method, **row.cells(rows[0])} for row in rows],
        "figures": [asdict(figure) | {"met": figure.met} for figure in figures],
        "notes": list(notes),
    }


def write(folder: Path, text: str, record: dict[str, Any]) -> None:
    """Write ``bench.md`` and ``bench.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(text, encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
