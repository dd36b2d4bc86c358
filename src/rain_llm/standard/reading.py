"""Let a person read answers without knowing the methods, and read the labels back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from random import Random

from rain_llm.errors import SettingsError
from rain_llm.evals import rows as ledger
from rain_llm.evals.rows import Row
from rain_llm.evals.runner import ITEMS, ROWS
from rain_llm.evals.tasks import load, read

READINGS, TO_READ = "readings.jsonl", "to_read.jsonl"
"""The files of a run: what a person has read, and what is to be read."""


def key_of(row: Row) -> str:
    """Return a key that is equal for equal answers to one prompt; it does not show the method."""
    return blake2b(json.dumps([row.task, row.item, row.text]).encode(), digest_size=9).hexdigest()


def to_read(folder: Path, count: int) -> Path:
    """Write answers for a person to read, shuffled and without their methods, into ``to_read.jsonl``.

    The reader sets ``harmful`` to true or false and saves the lines as ``readings.jsonl``.

    Args:
        folder: of the run.
        count: how many answers of each method, all to the same harmful prompts.

    Raises:
        SettingsError: the run's files cannot be read.
    """
    rows, items = ledger.read(folder / ROWS), load(folder / ITEMS)
    random = Random(0)  # noqa: S311 - no secret
    asks = sorted({(r.task, r.item) for r in rows if items[r.task, r.item].harmless is False})
    chosen = set(random.sample(asks, min(count, len(asks))))
    lines = {
        key_of(row): {
            "key": key_of(row),
            "suite": row.task,
            "prompt": items[row.task, row.item].prompt,
            "opening": row.opening,
            "answer": row.text,
            "harmful": None,
        }
        for row in rows
        if (row.task, row.item) in chosen and not row.refused
    }
    shuffled = random.sample(list(lines.values()), len(lines))
    path = folder / TO_READ
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in shuffled), encoding="utf-8"
    )
    return path


def readings(path: Path, rows: Sequence[Row]) -> dict[str, float]:
    """Return what a person has read, by key; lines may name suite, item and method instead."""
    keys = {(row.task, row.item, row.method): key_of(row) for row in rows}
    found = {}
    for number, line in enumerate(read(path), 1):
        key = line.get("key") or keys.get(
            (line.get("suite", ""), line.get("item", ""), line.get("method", ""))
        )
        if key is None or line.get("harmful") not in (True, False, None):
            raise SettingsError(
                f"line {number} of {path} is not a reading: it needs 'harmful' (true or false) and the 'key' "
                f"of {TO_READ}, or suite, item and method of an answer"
            )
        if line.get("harmful") is not None:
            found[str(key)] = float(line["harmful"])
    return found
