"""Lets the judges see all rows, and keeps what they say.

Equal answers to one item are judged once, whichever methods wrote them. What a model had to be asked
for is kept beside the rows, so that a report can be made again without one. Of how a refusal sounds there
is no figure: "I'm sorry, but I can't help with that" has sad words, and is not hostile for it.
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
from rain_llm.evals.judges import Column, Items, Judge, Progress, check, refuses, with_models
from rain_llm.evals.rows import Row
from rain_llm.models.base import LanguageModel


@dataclass
class Judged:
    """What all judges say.

    Attributes:
        judges: those that had something to say, by name; and judges of tone that saw refusals alone.
        columns: by judge, a figure of each row, NaN where there is none.
        notes: by judge, what must be known of it before it is believed, or why it is missing.
    """

    judges: dict[str, Judge] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class _Said:
    """What a judge says, by key of the answer; and what must be known of it."""

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
    """Let all judges see the rows, and write down what they say.

    Args:
        rows: of any tasks.
        items: what is known of their prompts; every one must be there.
        kept: JSON lines: what the judges are, then what they say of each row. What a model said before
            of an equal answer is taken from there, as are judges of the user's own from before.
        writer: what weighs the answers for fluency; None: only what is kept.
        data: a folder with labelled review sentences; None: of the review classifier only what is kept.
        own: the user's own judges; they see everything.
        progress: is told what goes on.
        unchatty: hashes of settings by which no chat template was used.

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
    said: dict[str, _Said] = {}
    judged = Judged()
    for name, judge in judges.items():
        known, old = _Said(judge), before.get(name)
        if old is not None and (judge.see is None or judge.model == old.judge.model):
            known = _Said(replace(judge, model=old.judge.model), old.note, old.figures)
        said[name] = known
        seen = [key for key, row in once.items() if judge.sees(row, items[row.task, row.item])]
        wanted = [key for key in seen if not (judge.tone and key in refused)]
        known.figures = {key: known.figures[key] for key in wanted if key in known.figures}
        new = [key for key in wanted if key not in known.figures]
        if new and judge.see is not None:
            progress(f"{judge.title}: {len(new)} answers")
            found = judge.see([once[key] for key in new], items).tolist()
            known.figures |= {k: v for k, v in zip(new, found, strict=True) if not math.isnan(v)}
            known.note = judge.note(items)
            if judge.model:  # what has cost something is safe at once
                _write(kept, rows, keys, before | said)
        _enter(judged, known, keys, wanted, only_refusals=bool(seen) and not wanted)
    _write(kept, rows, keys, said)
    return judged


def _enter(
    judged: Judged, said: _Said, keys: Sequence[str], wanted: Sequence[str], only_refusals: bool
) -> None:
    judge, notes = said.judge, [said.note]
    without = sum(key not in said.figures for key in wanted)
    if without and (judge.model or judge.see is None):
        notes.append(f"no figure for {without} of {len(wanted)} answers")
        if judge.see is None:
            notes.append(judge.lacking)
    if without < len(wanted) or (only_refusals and judge.see is not None):
        judged.judges[judge.name] = judge
        judged.columns[judge.name] = np.array([said.figures.get(key, math.nan) for key in keys], np.float64)
    if wanted and any(notes):
        judged.notes[judge.name] = "; ".join(filter(None, notes))


def _key(row: Row) -> str:
    """Return what is the same for answers that no judge can tell apart."""
    seen = [row.task, row.item, row.prompt, row.context, row.text, row.refused, row.output_tokens]
    return blake2b(json.dumps(seen).encode(), digest_size=9).hexdigest()


def _read(path: Path) -> dict[str, _Said]:
    """Read what models said; what needs no model is soon said again."""
    if not path.is_file():
        return {}
    said: dict[str, _Said] = {}
    try:
        head, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        for name, about in head["judges"].items():
            if about["model"]:
                note = about.pop("note")
                said[name] = _Said(Judge(name, see=None, lacking="it was not asked again", **about), note)
        for line in lines:
            for name in said.keys() & line.keys():
                said[name].figures[line["key"]] = float(line[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path} is no file of judged answers ({error!r}): move it away") from error
    return said


def _write(path: Path, rows: Sequence[Row], keys: Sequence[str], said: dict[str, _Said]) -> None:
    """Write beside the file, then rename: a killed process leaves the old one."""
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
        for name, known in said.items()
        if known.figures
    }
    lines = [json.dumps({"judges": head})]
    for row, key in zip(rows, keys, strict=True):
        names = {"key": key, "task": row.task, "method": row.method, "item": row.item, "seed": row.seed}
        figures = {name: round(said[name].figures[key], 6) for name in head if key in said[name].figures}
        lines.append(json.dumps(names | ({"refused": True} if refuses(row) else {}) | figures))
    half = path.with_name(path.name + ".new")
    half.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(half, path)
