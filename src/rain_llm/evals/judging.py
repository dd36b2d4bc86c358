"""Lets the judges see all rows, and keeps what they say.

Equal answers to one item are judged once, whichever methods wrote them. What a model had to be asked
for is kept beside the rows, so that a report can be made again without one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rain_llm.errors import SettingsError
from rain_llm.evals.judges import Column, Items, Judge, Progress, check, with_models
from rain_llm.evals.rows import Row
from rain_llm.models.base import LanguageModel


@dataclass
class Judged:
    """What all judges say.

    Attributes:
        judges: those that had something to say, by name.
        columns: by judge, a figure of each row, NaN where there is none.
        notes: by judge, what must be known of it before it is believed, or why it is missing.
    """

    judges: dict[str, Judge] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class _Said:
    """What a judge said before: by key of the answer, by which model, and what is to be known of it."""

    model: str
    note: str
    figures: dict[str, float] = field(default_factory=dict)


def judge(
    rows: Sequence[Row],
    items: Items,
    kept: Path,
    *,
    writer: LanguageModel | None = None,
    data: Path | None = None,
    own: Sequence[Judge] = (),
    progress: Progress = lambda line: None,
) -> Judged:
    """Let all judges see the rows, and write down what they say.

    Args:
        rows: of any tasks.
        items: what is known of their prompts; every one must be there.
        kept: JSON lines: what the judges are, then what they say of each row. What a model said before
            of an equal answer is taken from there.
        writer: what weighs the answers for fluency; None: only what is kept.
        data: a folder with labelled review sentences; None: of the review classifier only what is kept.
        own: the user's own judges; they see everything.
        progress: is told what goes on.

    Raises:
        SettingsError: a library is missing, or ``kept`` cannot be read.
    """
    check()
    keys = [_key(row) for row in rows]
    once = dict(zip(keys, rows, strict=True))
    before = _read(kept)
    said: dict[str, _Said] = {}
    judged = Judged()
    for judge in (*with_models(writer, data, progress), *own):
        wanted = [key for key, row in once.items() if judge.sees(row, items[row.task, row.item])]
        known = before.get(judge.name)
        if known is None or (judge.see is not None and judge.model != known.model) or not judge.keeps:
            known = _Said(judge.model, "")
        new = [key for key in wanted if key not in known.figures]
        if new and judge.see is not None:
            progress(f"{judge.title}: {len(new)} answers")
            found = judge.see([once[key] for key in new], items).tolist()
            known.figures |= {k: v for k, v in zip(new, found, strict=True) if not math.isnan(v)}
            known.note = judge.note(items)
        said[judge.name] = known
        _enter(judged, judge, known, keys, wanted)
    _write(kept, rows, keys, judged, said)
    return judged


def _enter(judged: Judged, judge: Judge, known: _Said, keys: Sequence[str], wanted: Sequence[str]) -> None:
    without = sum(key not in known.figures for key in wanted)
    notes = [known.note]
    if judge.keeps and without:
        notes.append(f"no figure for {without} of {len(wanted)} answers")
        if judge.see is None:
            notes.append(judge.lacking)
    if without < len(wanted):
        judged.judges[judge.name] = judge
        judged.columns[judge.name] = np.array([known.figures.get(key, math.nan) for key in keys])
    if wanted and (note := "; ".join(filter(None, notes))):
        judged.notes[judge.name] = note


def _key(row: Row) -> str:
    """Return what is the same for answers that no judge can tell apart."""
    seen = [row.task, row.item, row.prompt, row.context, row.text, row.refused, row.output_tokens]
    return blake2b(json.dumps(seen).encode(), digest_size=9).hexdigest()


def _read(path: Path) -> dict[str, _Said]:
    if not path.is_file():
        return {}
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        said = {
            name: _Said(about["model"], about["note"]) for name, about in json.loads(head)["judges"].items()
        }
        for line in lines:
            entry = json.loads(line)
            for name in said.keys() & entry.keys():
                said[name].figures[entry["key"]] = float(entry[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no file of judged answers ({error!r}): move it away") from error
    return said


def _write(
    path: Path, rows: Sequence[Row], keys: Sequence[str], judged: Judged, said: dict[str, _Said]
) -> None:
    """Write beside the file, then rename: a killed process leaves no half behind."""
    head = {name: {"model": said[name].model, "note": said[name].note} for name in judged.columns}
    lines = [json.dumps({"judges": head})]
    for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
        figures = {name: float(column[i]) for name, column in judged.columns.items()}
        names = {"key": key, "task": row.task, "method": row.method, "item": row.item, "seed": row.seed}
        lines.append(json.dumps(names | {n: round(v, 6) for n, v in figures.items() if not math.isnan(v)}))
    half = path.with_suffix(".part")
    half.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(half, path)
