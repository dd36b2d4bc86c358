"""Row: one answer by one method, and the JSONL file of a run's rows.

Rows are only ever appended, one block of work at a time, and are on the disk before the next block begins. A
killed process leaves at most one incomplete line, which the next process removes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from rain_llm.errors import SettingsError
from rain_llm.jsonl import lock

_BEGINNING = b'{"task": "'  # of every row, even an incomplete one


@dataclass(frozen=True, slots=True)
class Row:
    """One answer by one method. Independent judges measure its text later.

    Attributes:
        task: the task's name.
        method: "plain", "self-check", "best-of-4", "rain", ...
        item: the item's id within its task.
        seed: of all random numbers, >= 0.
        prompt: what is to be continued or answered.
        context: the passage that must support the answer, or "".
        text: the answer.
        accepted: it passed the model's own judgement.
        refused: the method itself refused: ``text`` is its refusal.
        stop_reason: why the answer ended; a ``StopReason``.
        self_score: the model's own verdict on it, in [-1, 1]; None if nothing was judged.
        output_tokens: length of the answer.
        model_tokens: all tokens through writer and judge for this answer, without the calibration that
            a model needs once.
        evaluation_tokens: the judge's share of ``model_tokens``.
        forwards: forward passes in which this answer took part.
        cpu_s: CPU seconds of its block, divided by the block's answers; not reproducible.
        settings_hash: of the method's settings for the task, without their seed.
        passed: whether each criterion passed by the model's own verdict; None if nothing was judged.
        opening: how the assistant's turn began, already written; in a transcript ``prompt`` ends with it.
        first_token_forwards: forward passes until the first accepted text was shown; None: unknown.
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
    passed: Mapping[str, bool] | None = None
    opening: str = ""
    first_token_forwards: int | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Identifies the answer: task, method, item and seed."""
        return self.task, self.method, self.item, self.seed


def read(path: Path) -> list[Row]:
    """Read all rows; an incomplete last line is ignored.

    Raises:
        SettingsError: the file cannot be read, or a line is not a row.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SettingsError(f"cannot read the rows {path}: {error.strerror}") from error
    names = {field.name for field in fields(Row)}
    required = {field.name for field in fields(Row) if field.default is MISSING}  # older rows lack the others
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        if not isinstance(data, dict) or not required <= set(data) <= names:
            raise _no_row(number, path)
        rows.append(Row(**data))
    return rows


def _no_row(number: int, path: Path) -> SettingsError:
    return SettingsError(
        f"line {number} of {path} is not a row of an evaluation: move the file away, or choose another --out"
    )


def append(file: BinaryIO, rows: Iterable[Row]) -> None:
    """Append rows in one write; they are on the disk when this returns."""
    file.write("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows).encode())
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def appending(path: Path) -> Generator[BinaryIO, None, None]:
    """Open the file for appending, remove an incomplete last line, and lock the file.

    Raises:
        SettingsError: another process writes to it (detected if the system has ``flock``), or it holds
            something else.
    """
    with path.open("ab") as file:
        lock(file, path)
        content = path.read_bytes()
        if not read(path) and not content.startswith(_BEGINNING[: len(content)]):
            raise _no_row(1, path)  # another kind of file: leave it as it is
        file.truncate(content.rfind(b"\n") + 1)
        yield file
