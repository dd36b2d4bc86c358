"""Labelled answers: the small sets that are included, or (better) the user's own file.

Each line is a JSON object in one of two forms::

    {"query": "The film was", "answer": " a delight.", "good": true, "pair": "film-1"}
    {"text": "The film was a delight.", "label": "positive"}

``context``, ``dialogue``, ``id`` and ``cut`` may be left out, and so may ``query`` and ``pair``. The lines of
XSTest's and JailbreakBench's answers are read as they are.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rain_llm.errors import SettingsError
from rain_llm.judging.questions import JudgeInput
from rain_llm.probing.known_data import as_item
from rain_llm.settings import explain

LEAST = 8
"""Minimum number of good and of bad answers: half of them are for fitting, half for reporting."""

_LABELS = {"positive": True, "good": True, "true": True, "1": True}
_LABELS |= {"negative": False, "bad": False, "false": False, "0": False}


class Item(BaseModel):
    """One labelled answer."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str
    query: str = Field(default="", description="The prompt, or the user's turn.")
    answer: str = Field(min_length=1)
    context: str = Field(default="", description="The passages that the answer must be supported by.")
    dialogue: bool = Field(default=False, description="Whether the answer is a reply to the query.")
    good: bool = Field(description="Whether the answer meets the criterion.")
    pair: str = Field(description="Shared by similar items, such as good and bad answers to one query.")
    cut: bool = Field(default=False, description="Whether the answer is cut off.")
    unsafe: bool | None = Field(default=None, description="Whether the request asks for something harmful.")
    kind: str | None = Field(default=None, description="What the answer does: complies, refuses or partly.")
    hazard: str | None = Field(default=None, description="The kind of harm.")
    language: str | None = Field(default=None, description="The language, such as 'en'.")
    source: str = Field(default="", description="Name of the file that it comes from.")

    @model_validator(mode="before")
    @classmethod
    def _from_text_and_label(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "text" in data:
            data = {"answer": data["text"], **data}
        if "label" not in data:
            return data
        label = str(data["label"]).lower()
        if label not in _LABELS:
            known = ", ".join(_LABELS)
            raise ValueError(f"unknown label {data['label']!r}: there are {known}")
        return {**data, "good": _LABELS[label]}

    @model_validator(mode="after")
    def _says_something(self) -> Item:
        if not self.answer.strip():
            raise ValueError("the answer is empty")
        return self

    @property
    def subject(self) -> JudgeInput:
        """Return the query and the context for the judge."""
        return JudgeInput(self.query, self.context, self.dialogue)

    @property
    def said(self) -> str:
        """Return the answer as it follows the query: a continuation begins with white space."""
        glued = self.query and not self.dialogue and self.answer[0].isalnum()
        return f" {self.answer}" if glued and not self.query[-1].isspace() else self.answer

    def halved(self) -> Item:
        """Return the item with the answer cut off after half of its words (at least one)."""
        words = self.said.split(" ")
        first = next(i for i, word in enumerate(words) if word)
        kept = " ".join(words[: first + max(1, (len(words) - first) // 2)])
        return self.model_copy(update={"answer": kept, "cut": True})


def shipped(criterion: str) -> list[Item]:
    """Return the included items for a built-in criterion.

    Raises:
        SettingsError: there are none for this criterion.
    """
    folder = resources.files("rain_llm.doctor").joinpath("items")
    named = (f for f in folder.iterdir() if f.name.startswith(f"{criterion}.") and f.name.endswith(".jsonl"))
    files = sorted(named, key=lambda file: (len(file.name), file.name))
    if not files:
        raise SettingsError(
            f"no labelled answers are included for the criterion '{criterion}': "
            "give your own with --data FILE.jsonl"
        )
    return [item for file in files for item in _items(file.read_text(encoding="utf-8"), file.name, file.name)]


def read(*paths: Path) -> list[Item]:
    """Read items from JSONL files, each of which is a source.

    Raises:
        SettingsError: the file cannot be read, a line is invalid (the message names it), or there are too
            few good or bad answers.
    """
    items = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the labelled answers {path}: {error}") from error
        items += _items(text, str(path), path.name)
    complete = [item.good for item in items if not item.cut]
    good, bad = sum(complete), len(complete) - sum(complete)
    if min(good, bad) < LEAST:
        raise SettingsError(
            f"{', '.join(map(str, paths))} holds {good} good and {bad} bad complete answers: give at least "
            f"{LEAST} of each, half for fitting and half for reporting"
        )
    return items


def _items(text: str, where: str, source: str) -> list[Item]:
    lines = enumerate(text.split("\n"), 1)
    return [_item(line, f"{where}, line {n}", str(n), source) for n, line in lines if line.strip()]


def _item(line: str, where: str, number: str, source: str) -> Item:
    try:
        data = json.loads(line)
        if isinstance(data, dict):
            name = data.get("id", number)
            data = {"id": name, "pair": name, **as_item(data), "source": source}
        return Item.model_validate(data)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where} is not a JSON object: {error}") from error
    except ValidationError as error:
        raise SettingsError(
            f'{where}: {explain(error)}; a line is {{"query", "answer", "good"}} or {{"text", "label"}}'
        ) from error
