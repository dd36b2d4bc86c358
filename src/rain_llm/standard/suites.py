"""Suites: public sets of prompts that are harmful (harm is counted) or not (needless refusals are counted).

Each suite is a task of ``rain eval``. Its prompts are divided into those that our settings were chosen on
("dev") and those on which nothing was chosen ("test").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from rain_llm.criteria import HARMLESSNESS
from rain_llm.errors import SettingsError
from rain_llm.evals.tasks import TASKS, Item, Task, read
from rain_llm.models.transcript import STOPS
from rain_llm.types import Prompt
from rain_llm.types import Task as Asked

STANDARD = "standard"
"""The name of all suites together."""

STANDARD_METHODS = ("plain", "self-check", "best-of-4", "care", "rain")
"""The methods that are compared if none are named."""

TOKENS = 64
"""The most tokens of an answer."""


@dataclass(frozen=True)
class Suite(Task):
    """A task whose prompts are all harmful or all harmless, with the halves that it is divided into.

    Attributes:
        asks_harm: the prompts are harmful; otherwise a refusal is needless.
        where: use only rows whose field has this value.
        spread: order the rows so that the values of this field take turns: the first N are balanced.
        dev: places of the rows (those that ``where`` keeps, from 1) that settings were chosen on. A row's own
            field "split" comes first.
    """

    asks_harm: bool = True
    where: tuple[str, Any] | None = None
    spread: str = ""
    dev: range = range(0)

    def generation(self, tokens: int | None, chat: bool = True) -> dict[str, Any]:
        """Return the generation settings, for ``tokens`` tokens (None: 64)."""
        return {
            "max_new_tokens": tokens or TOKENS,
            "stop": () if chat else STOPS,
            "chat_template": chat,
        }

    def prompt(self, item: Item, chat: bool = True) -> Prompt:
        """Return the prompt of an item; an opening stands in the assistant's turn of the chat template."""
        if item.opening and chat:
            return Asked(item.prompt, opening=item.opening)
        return super().prompt(item, chat)

    def has_items(self, data: str | None, split: str) -> bool:
        """Whether there are items of this half."""
        there = self._own_file().is_file() if self.own else bool(data and self.finds(data))
        return there and (split != "dev" or bool(self.dev or self.own))

    def _own_file(self) -> Any:
        return resources.files("rain_llm.standard") / "data" / self.own

    def _own(self) -> Iterator[tuple[str, Item]]:
        if self.own:
            yield from self._made(_rows_of(self._own_file()), self.own, "")

    def _made(self, rows: Sequence[Mapping[str, Any]], source: str, split: str) -> Iterator[tuple[str, Item]]:
        numbered = list(enumerate(rows, 1))
        if self.where:
            field, value = self.where
            numbered = [(number, row) for number, row in numbered if row.get(field) == value]
        if self.spread:
            numbered = _taking_turns(numbered, self.spread)
        for place, (number, row) in enumerate(numbered, 1):
            group = str(row.get(self.spread, "")) if self.spread else source.partition(".")[0]
            item = self._item(row, f"{group}-{number}", source)
            half = "dev" if place in self.dev else "test"
            yield str(row.get("split", half)), replace(item, harmless=not self.asks_harm)


def _rows_of(file: Any) -> list[Mapping[str, Any]]:
    """Read a file of the project's own; [] if there is none."""
    with resources.as_file(file) as path:
        return read(path) if path.is_file() else []


def _taking_turns(
    numbered: Sequence[tuple[int, Mapping[str, Any]]], field: str
) -> list[tuple[int, Mapping[str, Any]]]:
    """Return first the first row of each value of the field, then the second ones, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for number, row in numbered:
        value = str(row.get(field, ""))
        turns.append((seen[value], number, row))
        seen[value] += 1
    return [(number, row) for _, number, row in sorted(turns, key=lambda turn: turn[:2])]


def _suite(name: str, *files: str, harm: bool = True, **others: Any) -> Suite:
    return Suite(name, HARMLESSNESS, public=files, asks_harm=harm, **others)


_XSTEST = ("xstest_prompts.jsonl",)
_ADVBENCH = ("advbench_behaviors.jsonl", "harmful_behaviors.csv")
_ALTERNATE = range(1, 10**9, 2)

SUITES = {
    suite.name: suite
    for suite in (
        _suite("hh-red-team", "hh_red_team_prompts.jsonl", dev=range(1, 81)),
        _suite("xstest-unsafe", *_XSTEST, where=("safe", False), dev=_ALTERNATE),
        _suite("harmbench", "harmbench_behaviors.jsonl"),
        _suite("ailuminate", "ailuminate_prompts.jsonl", spread="hazard"),
        _suite("advbench-opening", *_ADVBENCH, attacked=True, dev=range(1, 49)),
        _suite("advbench", *_ADVBENCH, dev=range(1, 49)),
        _suite("jailbreakbench", "jailbreakbench_answers.jsonl"),
        _suite("catqa", "catqa_prompts.jsonl", spread="language"),
        _suite("xstest-safe", *_XSTEST, where=("safe", True), harm=False, dev=_ALTERNATE),
        _suite("notinject", "notinject_prompts.jsonl", harm=False),
        _suite("truthfulqa", "truthfulqa.jsonl", harm=False),
        _suite("benign", harm=False, own="benign_chats.jsonl"),
    )
}
"""All suites by name, in the order of the page."""


def named(names: Sequence[str], data: str | None, split: str) -> list[str | Task]:
    """Replace "standard" by all suites that have items, and the name of a suite by the suite.

    Args:
        names: of suites and of other tasks, which are returned as they are.
        data: the data folder.
        split: "dev", "test" or "all".

    Raises:
        SettingsError: a name is unknown, or no suite has items.
    """
    if unknown := [name for name in names if name not in (*SUITES, *TASKS, STANDARD, "all")]:
        raise SettingsError(
            f"unknown task {unknown[0]!r}: there are {', '.join(TASKS)}, or all of them by 'all'; "
            f"and the suites {', '.join(SUITES)}, or all of them by '{STANDARD}'"
        )
    found: list[str | Task] = []
    for name in names:
        if name == STANDARD:
            found += [suite for suite in SUITES.values() if suite.has_items(data, split)]
        else:
            found.append(SUITES.get(name, name))
    if not found:
        raise SettingsError(f"there are no prompts for 'standard' in {data}: name a folder with --data")
    return found
