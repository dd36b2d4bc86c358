"""Labelled answers: the project's own small sets, and the user's own file, which is better.

One JSON object a line, in one of two shapes::

    {"query": "The film was", "answer": " a delight.", "good": true, "pair": "film-1"}
    {"text": "The film was a delight.", "label": "positive"}

``context``, ``dialogue``, ``id`` and ``cut`` may be left out, and so may ``query`` and ``pair``.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rain_llm.errors import SettingsError
from rain_llm.judging.questions import JudgeInput
from rain_llm.settings import explain

LEAST = 8
"""Good answers, and bad ones, that an examination needs: half of them fit, half report."""

_LABELS = {"positive": True, "good": True, "true": True, "1": True}
_LABELS |= {"negative": False, "bad": False, "false": False, "0": False}


class Item(BaseModel):
    """One answer that somebody has labelled."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    id: str
    query: str = Field(default="", description="The prompt, or the user's turn.")
    answer: str = Field(min_length=1)
    context: str = Field(default="", description="The passages that the answer is to keep to.")
    dialogue: bool = Field(default=False, description="The answer replies to the query.")
    good: bool = Field(description="It meets the criterion.")
    pair: str = Field(description="Items alike, such as a good and a bad answer to one query, share it.")
    cut: bool = Field(default=False, description="The answer is cut off.")

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
        """What is answered, as the judge sees it."""
        return JudgeInput(self.query, self.context, self.dialogue)

    @property
    def said(self) -> str:
        """The answer as it follows the query: a continuation begins with white space."""
        glued = self.query and not self.dialogue and self.answer[0].isalnum()
        return f" {self.answer}" if glued and not self.query[-1].isspace() else self.answer

    def halved(self) -> Item:
        """Cut the answer off after half of its words (at least one)."""
        words = self.said.split(" ")
        first = next(i for i, word in enumerate(words) if word)
        kept = " ".join(words[: first + max(1, (len(words) - first) // 2)])
        return self.model_copy(update={"answer": kept, "cut": True})


def shipped(criterion: str) -> list[Item]:
    """Return the project's own items for a built-in criterion.

    Raises:
        SettingsError: there are none for this criterion.
    """
    file = resources.files("rain_llm.doctor").joinpath("items", f"{criterion}.jsonl")
    if not file.is_file():
        raise SettingsError(
            f"no labelled answers ship for the criterion '{criterion}': give your own with --data FILE.jsonl"
        )
    return _items(file.read_text(encoding="utf-8"), file.name)


def read(path: Path) -> list[Item]:
    """Read items from a JSONL file.

    Raises:
        SettingsError: the file cannot be read, a line of it cannot be used (it is named), or there
            are too few good or bad answers.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the labelled answers {path}: {error}") from error
    return _items(text, str(path))


def _items(text: str, where: str) -> list[Item]:
    items = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            items.append(_item(line, f"{where}, line {number}", str(number)))
    whole = [item.good for item in items if not item.cut]
    good, bad = sum(whole), len(whole) - sum(whole)
    if min(good, bad) < LEAST:
        raise SettingsError(
            f"{where} holds {good} good and {bad} bad complete answers: give at least {LEAST} of each, "
            "for half of them fit and half report"
        )
    return items


def _item(line: str, where: str, number: str) -> Item:
    try:
        data = json.loads(line)
        if isinstance(data, dict):
            name = data.get("id", number)
            data = {"id": name, "pair": name, **data}
        return Item.model_validate(data)
    except json.JSONDecodeError as error:
        raise SettingsError(f"{where} is no JSON object: {error}") from error
    except ValidationError as error:
        raise SettingsError(
            f'{where}: {explain(error)}; a line is {{"query", "answer", "good"}} or {{"text", "label"}}'
        ) from error
