"""A slow judge labels each draft, and what it has said is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from rain_llm.distil.drafts import Line, Tell
from rain_llm.engine import Rain
from rain_llm.errors import ModelError, SettingsError
from rain_llm.jsonl import JsonLines
from rain_llm.settings import RainSettings
from rain_llm.types import Message, Prompt, Task


class Judged(NamedTuple):
    """A label, with the probability that the draft is good."""

    good: bool
    probability: float | None = None


class Act(Enum):
    """What a person may do instead of labelling a draft."""

    UNDO = "u"
    STOP = "q"


Label: TypeAlias = Callable[[str | Sequence[Message], str], bool | float | Judged | Act | None]
"""Returns whether a draft to a prompt is good, the probability that it is, or None to leave it out."""


def by_settings(path: Path, criterion: str, chat: bool) -> Label:
    """Return a label by the criterion and the judge of a settings file; the judge is loaded now.

    Raises:
        SettingsError: the file is invalid, or does not have the criterion.
        ModelError: the judge cannot be loaded or reached.
    """
    chosen = RainSettings.from_file(path)
    there = {one.name: one for one in chosen.evaluation.criteria}
    if criterion not in there:
        raise SettingsError(
            f"{path} does not judge '{criterion}' but {', '.join(there)}: "
            "add it to evaluation.criteria, or choose another --criterion"
        )
    alone = {"criteria": (there[criterion],), "actions": (), "judge": None}
    evaluation = chosen.evaluation.model_copy(update=alone)
    model = chosen.evaluation.judge or chosen.model
    settings = RainSettings(model=model, evaluation=evaluation, search=chosen.search)
    judge = Rain(settings.updated(generation={"chat_template": chat}))
    judge.load()

    def label(prompt: Prompt, draft: str) -> Judged:
        verdict = judge.judge(prompt, draft)
        return Judged(verdict.passed, verdict.criteria[0].probability)

    return label


def label_drafts(
    drafts: Sequence[Line],
    tasks: Mapping[str, Task],
    label: Label,
    judge: str,
    at_once: int,
    labels: JsonLines,
    skipped: JsonLines,
    tell: Tell,
) -> None:
    """Label the drafts that have no label yet; each label is on the disk before the next is asked for.

    Args:
        drafts: the drafts, in the order in which they are labelled.
        tasks: the prompts, by their digest.
        label: the judge.
        judge: its name, which is kept with its labels.
        at_once: number of drafts that are labelled at the same time, in threads.
        labels: receives the labels, as ``rain doctor`` reads them.
        skipped: receives the drafts that were left out.
        tell: receives the progress.

    Raises:
        ModelError: the judge returns something that is no label.
    """
    done = {line["id"] for file in (labels, skipped) for line in file.lines}
    todo = [draft for draft in drafts if draft["id"] not in done]
    history: list[JsonLines] = []  # where each label of this run was written
    with ThreadPoolExecutor(at_once) as pool:
        # One at a time is labelled in this thread: Ctrl-C interrupts no other.
        each = pool.map if at_once > 1 else map
        while len(history) < len(todo):
            tell("labelling", len(labels.lines), len(drafts) - len(skipped.lines))
            block = todo[len(history) : len(history) + at_once]
            answers = each(lambda draft: label(tasks[draft["pair"]].prompt, draft["answer"]), block)
            for draft, found in zip(block, answers, strict=True):
                if found is Act.STOP:
                    return
                if found is Act.UNDO:
                    if history:
                        history.pop().drop()
                    break
                history.append(skipped if found is None else labels)
                history[-1].append(draft if found is None else {**draft, **_said(found, judge)})


def _said(found: bool | float | Judged | Act, judge: str) -> Line:
    if isinstance(found, bool | np.bool_):
        found = Judged(bool(found))
    elif isinstance(found, int | float) and 0 <= found <= 1:
        found = Judged(found >= 0.5, float(found))
    if not isinstance(found, Judged):
        raise ModelError(
            f"the judge '{judge}' returned a {type(found).__name__} for a draft: return True, False, "
            "a probability from 0 to 1, or None to leave the draft out"
        )
    return {"good": found.good, "probability": found.probability, "judge": judge}
