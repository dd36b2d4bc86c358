"""Row: one answer by one method, and the JSONL file that rows are kept in.

A file only grows, by whole blocks of rows: each is one write, on the disk before the next one is
begun. A process that is killed leaves at most one half-written line, which the next one cuts off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rain_llm.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Row:
    """One answer by one method. What independent judges say of it is worked out later, from the text.

    Attributes:
        task: the task's name. method: "plain", "self-check", "best-of-4", "rain", ...
        item: the item's name within its task. seed: of everything that was drawn, >= 0.
        prompt: what was to be continued or answered.
        context: the passage that the answer is to keep to, or "".
        text: the answer.
        accepted: it passed the model's own judgement.
        refused: the method itself refused: ``text`` is its refusal.
        stop_reason: why the answer ended; a ``StopReason``.
        self_score: the model's own verdict on it, in [-1, 1]; None where nothing was judged.
        output_tokens: length of the answer.
        model_tokens: all tokens through writer and judge for this answer, without the calibration
            that a model needs once.
        evaluation_tokens: the judge's share of ``model_tokens``.
        forwards: forward passes in which this answer took part.
        cpu_s: CPU seconds of its block, divided by the block's answers; a seed does not repeat it.
        settings_hash: of the settings it was written with.
    """

    task: str
    method: str
    item: str
    seed: int
    prompt: str
    context: str
    text: str
    accepted: bool
    refused: bool
    stop_reason: str
    self_score: float | None
    output_tokens: int
    model_tokens: int
    evaluation_tokens: int
    forwards: int
    cpu_s: float | None
    settings_hash: str


def read(path: Path) -> list[Row]:
    """Read all rows; a last line that was never finished is no row.

    Raises:
        SettingsError: a line is no row.
        OSError: the file cannot be read.
    """
    rows = []
    names = {field.name for field in fields(Row)}
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            data = json.loads(line)
            if set(data) != names:
                raise ValueError(f"it has {', '.join(sorted(data))}")
        except (ValueError, TypeError) as error:
            raise SettingsError(
                f"line {number} of {path} is no row of an evaluation: {error}; move the file away"
            ) from error
        rows.append(Row(**data))
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Write rows behind those that are there, in one piece; they are on the disk when this returns."""
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


def repair(path: Path) -> None:
    """Cut off a last line that was never finished."""
    with path.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        os.fsync(file.fileno())
