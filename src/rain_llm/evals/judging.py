"""Run all judges on the rows of a run, and store their figures.

Equal answers to one item are judged once, whichever methods wrote them. Figures that need a model are stored
beside the rows, so that a report can be made again without one. Judges of tone skip refusals: "I'm sorry,
but I can't help with that" has sad words, but is not hostile.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rain_llm.errors import SettingsError
from rain_llm.evals.judges import Column, Items, Judge, Progress
from rain_llm.evals.judges.built_in import check, with_models
from rain_llm.evals.judges.by_words import refuses
from rain_llm.evals.rows import Row
from rain_llm.models.base import LanguageModel


@dataclass
class Judged:
    """The figures of all judges.

    Attributes:
        judges: by name, those that have figures, and judges of tone for which all answers are refusals.
        columns: by judge, a figure for each row, NaN where there is none.
        notes: by judge, what a reader must know about it, or why it is missing.
    """

    judges: dict[str, Judge] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class _Figures:
    """One judge's figures, by key of the answer, and what a reader must know about them."""

    judge: Judge
    note: str = ""
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
    unchatty: Container[str] = (),
) -> Judged:
    """Run all judges on the rows, and store their figures.

    Args:
        rows: answers to any tasks.
        items: the items of all rows.
        kept: a file of JSON lines: the judges, then the figures of each row. Figures that a model computed
            earlier for an equal answer are read from it, as are the user's own judges of earlier reports.
        writer: computes fluency; None: only stored figures are used.
        data: a folder with labelled review sentences; None: only stored figures of the review classifier
            are used.
        own: the user's own judges.
        progress: receives a line for each judge.
        unchatty: hashes of the settings that use no chat template.

    Raises:
        SettingsError: a library is missing, or ``kept`` cannot be read.
        ModelError: a judge's model fails.
    """
    check()
    keys = [_key(row) for row in rows]
    once = dict(zip(keys, rows, strict=True))
    refused = {key for key, row in once.items() if refuses(row)}
    before = _read(kept)
    judges = {judge.name: judge for judge in (*with_models(writer, data, progress, unchatty), *own)}
    judges |= {name: old.judge for name, old in before.items() if name not in judges}
    figures: dict[str, _Figures] = {}
    judged = Judged()
    for name, judge in judges.items():
        known, old = _Figures(judge), before.get(name)
        if old is not None and (judge.score is None or judge.model == old.judge.model):
            known = _Figures(replace(judge, model=old.judge.model), old.note, old.figures)
        figures[name] = known
        about = [key for key, row in once.items() if judge.applies(row, items[row.task, row.item])]
        wanted = [key for key in about if not (judge.tone and key in refused)]
        known.figures = {key: known.figures[key] for key in wanted if key in known.figures}
        new = [key for key in wanted if key not in known.figures]
        if new and judge.score is not None:
            progress(f"{judge.title}: {len(new)} answers")
            found = judge.score([once[key] for key in new], items).tolist()
            known.figures |= {k: v for k, v in zip(new, found, strict=True) if not math.isnan(v)}
            known.note = judge.note(items)
            if judge.model:  # store at once what took a model
                _write(kept, rows, keys, before | figures)
        _enter(judged, known, keys, wanted, only_refusals=bool(about) and not wanted)
    _write(kept, rows, keys, figures)
    return judged


def _enter(
    judged: Judged, known: _Figures, keys: Sequence[str], wanted: Sequence[str], only_refusals: bool
) -> None:
    judge, notes = known.judge, [known.note]
    without = sum(key not in known.figures for key in wanted)
    if without and (judge.model or judge.score is None):
        notes.append(f"no figure for {without} of {len(wanted)} answers")
        if judge.score is None:
            notes.append(judge.unavailable)
    if without < len(wanted) or (only_refusals and judge.score is not None):
        judged.judges[judge.name] = judge
        judged.columns[judge.name] = np.array([known.figures.get(key, math.nan) for key in keys], np.float64)
    if wanted and any(notes):
        judged.notes[judge.name] = "; ".join(filter(None, notes))


def _key(row: Row) -> str:
    """Return a key that is equal for answers that all judges treat alike."""
    seen = [row.task, row.item, row.prompt, row.context, row.text, row.refused, row.output_tokens]
    return blake2b(json.dumps(seen).encode(), digest_size=9).hexdigest()


def _read(path: Path) -> dict[str, _Figures]:
    """Read the figures that took a model; the others are computed again."""
    if not path.is_file():
        return {}
    found: dict[str, _Figures] = {}
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        for name, about in head["judges"].items():
            if about["model"]:
                note = about.pop("note")
                found[name] = _Figures(
                    Judge(name, score=None, unavailable="it was not asked again", **about), note
                )
        for line in lines:
            for name in found.keys() & line.keys():
                found[name].figures[line["key"]] = float(line[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is not a file of judged answers ({error!r}): move it away") from error
    return found


def _write(path: Path, rows: Sequence[Row], keys: Sequence[str], found: dict[str, _Figures]) -> None:
    """Replace the file in one step: a killed process leaves the old one."""
    head = {
        name: {
            "title": known.judge.title,
            "about": known.judge.about,
            "better": known.judge.better,
            "share": known.judge.share,
            "tone": known.judge.tone,
            "model": known.judge.model,
            "note": known.note,
        }
        for name, known in found.items()
        if known.figures
    }
    lines = [json.dumps({"judges": head})]
    for row, key in zip(rows, keys, strict=True):
        names = {"key": key, "task": row.task, "method": row.method, "item": row.item, "seed": row.seed}
        figures = {name: round(found[name].figures[key], 6) for name in head if key in found[name].figures}
        lines.append(json.dumps(names | ({"refused": True} if refuses(row) else {}) | figures))
    half = path.with_name(path.name + ".new")
    half.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(half, path)
