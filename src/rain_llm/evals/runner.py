"""Run methods on tasks, block by block, into a folder; a killed run continues where it stopped.

A block is one task, seed, method and up to eight items. Models are reset before each block, so its rows do
not depend on earlier blocks; they are written together. All methods answer the same few items before any
continues with the next ones, so even an unfinished run compares them fairly.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from rain_llm.engine import Rain
from rain_llm.errors import SettingsError
from rain_llm.evals import answering
from rain_llm.evals import methods as ways
from rain_llm.evals import rows as ledger
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import Item, Task, dump, load
from rain_llm.evals.tasks import chosen as chosen_tasks
from rain_llm.settings import RainSettings

ROWS, ITEMS, ASKED = "rows.jsonl", "items.jsonl", "run.json"
"""The files of a run: the answers, the items with their references, the options with all settings."""

DEFAULT_METHODS = ("plain", "self-check", "best-of", "rain")

_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run.

    Attributes:
        done: items answered, counted for each method and seed, including earlier runs.
        total: items to answer, counted in the same way.
        task, method: of the current block; "" at the end.
        left_s: estimated seconds left; None before the first block is done.
    """

    done: int
    total: int
    task: str = ""
    method: str = ""
    left_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    task: Task
    method: str
    seed: int
    items: tuple[Item, ...]

    @property
    def keys(self) -> list[tuple[str, str, str, int]]:
        """Return the keys of its rows."""
        return [
            (self.task.name, label, item.id, self.seed)
            for label in ways.labels(self.method)
            for item in self.items
        ]


def run(
    tasks: Sequence[str | Task],
    out: Path,
    *,
    methods: Sequence[str] = DEFAULT_METHODS,
    data: str | None = None,
    split: str = "all",
    seeds: int = 1,
    first: int | None = None,
    tokens: int | None = None,
    settings: RainSettings | None = None,
    own: Mapping[str, RainSettings] | None = None,
    make: Callable[[RainSettings], Rain] = Rain,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Let methods write answers to tasks into a folder, or continue an earlier run there.

    Seeds, methods and tasks may be added later; all other options must be the same.

    Args:
        tasks: tasks or their names, or "all".
        out: the folder; created if it does not exist.
        methods: names of methods or of groups of them.
        data: a folder or file of public data, or the name of a data set (``Task.items``).
        split: "dev", "test" or "all" items.
        seeds: number of seeds, from 0 on.
        first: use only the first items of each task.
        tokens: the most tokens of an answer; None: a sentence, or the task's own.
        settings: that the methods start from; the default if left out.
        own: the user's own methods: settings by name.
        make: makes the engine from settings.
        tell: receives the progress.

    Raises:
        SettingsError: a task or method is unknown, the folder holds answers to other options, or another
            process is writing to it.
        PromptError: an item is too long.
        RainError: a model cannot be loaded, or fails; rows written until then are kept.
    """
    for name, value in (("seeds", seeds), ("first", first), ("tokens", tokens)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}, and must be at least 1")
    start, own = settings or ways.START, own or {}
    chosen = chosen_tasks(tasks, data)
    names = ways.chosen(methods, own)
    items = {task.name: task.items(data, split, first) for task in chosen}
    engines = {}
    for task in chosen:
        for name in names:
            asked = ways.settings_for(name, task, start, tokens, own)
            rain = make(asked)
            fitting = ways.fitting(asked, rain, task)
            engines[task.name, name] = rain if fitting is asked else make(fitting)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot make the folder {out}: {error.strerror}") from error
    with ledger.appending(out / ROWS) as file:
        there = {row.key for row in ledger.read(out / ROWS)}
        if not there:  # an earlier run without answers: start again
            (out / ASKED).unlink(missing_ok=True)
        used = {key: rain.settings for key, rain in engines.items()}
        _note(out, chosen, names, items, used, seeds, split)
        blocks = list(_blocks(chosen, names, items, seeds))
        todo = [block for block in blocks if not there.issuperset(block.keys)]
        for task, name in dict.fromkeys((block.task, block.method) for block in todo):
            answering.check(name, engines[task.name, name], task, items[task.name])
        clock = _Clock(blocks, todo)
        for block in todo:
            tell(clock.now(block))
            began = time.monotonic()
            rows = _write(engines[block.task.name, block.method], block)
            # A process that was killed while writing may have left some of these rows.
            ledger.append(file, [row for row in rows if row.key not in there])
            clock.add(block, time.monotonic() - began)
        tell(clock.now())


def _blocks(
    tasks: Sequence[Task], methods: Sequence[str], items: Mapping[str, Sequence[Item]], seeds: int
) -> Iterator[_Block]:
    """Return the blocks in the order in which they are run."""
    for task in tasks:
        there = items[task.name]
        for seed in range(seeds):
            for place in range(0, len(there), _BLOCK):
                for method in methods:
                    yield _Block(task, method, seed, tuple(there[place : place + _BLOCK]))


def _write(rain: Rain, block: _Block) -> list[Row]:
    """Write the rows of a block, after resetting the models."""
    rain.runtime.forget()
    answering.calibrate(rain, dialogue=rain.settings.generation.chat_template)
    began = time.process_time()
    rows = answering.write(block.method, rain, block.task, block.items, block.seed)
    spent = (time.process_time() - began) / len(block.items)
    # The time of a best-of ladder is that of its largest n; that of smaller ones is not known.
    longest = ways.labels(block.method)[-1]
    return [replace(row, cpu_s=round(spent, 4)) if row.method == longest else row for row in rows]


class _Clock:
    """Estimates the time left from the time that each method has taken on each task so far."""

    def __init__(self, blocks: Sequence[_Block], todo: Sequence[_Block]) -> None:
        self._total = sum(len(block.items) for block in blocks)
        self._left: dict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._answered: dict[tuple[str, str], int] = defaultdict(int)
        for block in todo:
            self._left[block.task.name, block.method] += len(block.items)

    def add(self, block: _Block, seconds: float) -> None:
        """Record that a block is done."""
        key = block.task.name, block.method
        self._left[key] -= len(block.items)
        self._answered[key] += len(block.items)
        self._seconds[key] += seconds

    def now(self, block: _Block | None = None) -> Progress:
        """Return how far the run is, about to do ``block``."""
        done = self._total - sum(self._left.values())
        left = sum(count * self._each(*key) for key, count in self._left.items()) if self._answered else None
        if block is None:
            return Progress(done, self._total, left_s=0.0)
        return Progress(done, self._total, block.task.name, block.method, left)

    def _each(self, task: str, method: str) -> float:
        """Return the seconds of an answer, measured, or estimated from the most similar blocks."""
        alike = [key for key in self._answered if key == (task, method)]
        alike = alike or [key for key in self._answered if key[1] == method] or list(self._answered)
        return sum(self._seconds[key] for key in alike) / sum(self._answered[key] for key in alike)


# --- the options of a run -----------------------------------------------------------------------------------


def _note(
    out: Path,
    tasks: Sequence[Task],
    methods: Sequence[str],
    items: Mapping[str, Sequence[Item]],
    settings: Mapping[tuple[str, str], RainSettings],
    seeds: int,
    split: str,
) -> None:
    """Store the options of a run; raise if the folder holds answers to other options."""
    before: dict[str, Any] = {"rain_llm": _version(), "date": date.today().isoformat(), "seeds": 0}
    before |= {"splits": {}, "methods": {}, "settings": {}}
    kept: dict[tuple[str, str], Item] = {}
    if (out / ASKED).exists():
        before |= read_asked(out)
        kept = load(out / ITEMS)
    if before["rain_llm"] != _version():
        _refuse(out, f"rain-llm {before['rain_llm']} wrote it, and this is {_version()}")
    ways, known = dict(before["methods"]), dict(before["settings"])
    for task in tasks:
        there = [item for (name, _), item in kept.items() if name == task.name]
        if there not in ([], list(items[task.name])):
            _refuse(out, f"it has other items of task '{task.name}' (data, split or first)")
        ways[task.name] = dict(ways.get(task.name, {}))
        for method in methods:
            chosen = settings[task.name, method]
            if ways[task.name].setdefault(method, chosen.hash) != chosen.hash:
                _refuse(out, f"its method '{method}' of task '{task.name}' has other settings")
            known[chosen.hash] = chosen.model_dump(mode="json")
        kept |= {(task.name, item.id): item for item in items[task.name]}
    splits = before["splits"] | {task.name: split for task in tasks if task.continues or split != "all"}
    asked = before | {
        "seeds": max(seeds, before["seeds"]),
        "splits": splits,
        "methods": ways,
        "settings": known,
    }
    replace_text(out / ITEMS, dump(kept))
    replace_text(out / ASKED, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")


def _version() -> str:
    try:
        return metadata.version("rain-llm")
    except metadata.PackageNotFoundError:
        return "not installed"


def _refuse(out: Path, difference: str) -> None:
    raise SettingsError(
        f"{out} holds answers to something else: {difference}; use the same options, or choose another --out"
    )


def read_asked(out: Path) -> dict[str, Any]:
    """Read the options of a run.

    Raises:
        SettingsError: it cannot be read.
    """
    path = out / ASKED
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{path} is not JSON: {error}; choose another --out") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path} is not from a run: choose another --out")
    return data


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step: a killed process leaves the old or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
