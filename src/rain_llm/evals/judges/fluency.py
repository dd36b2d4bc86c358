"""Fluency: how likely a language model finds the words of an answer."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import cast

import numpy as np

from rain_llm.evals.judges import Column, Items, Progress
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import TASKS, Item
from rain_llm.models.base import LanguageModel
from rain_llm.models.transcript import shows_chats
from rain_llm.requests import Score
from rain_llm.task import task_of
from rain_llm.types import Message

_BATCH = 16


def fluency_by(
    writer: LanguageModel, progress: Progress, unchatty: Container[str]
) -> Callable[[Sequence[Row], Items], Column]:
    """Return a function that scores answers: the mean log-probability of their tokens, nats.

    Args:
        writer: computes the log-probabilities.
        progress: receives a line for each batch.
        unchatty: hashes of the settings that use no chat template.
    """
    has_template = shows_chats(writer)

    def request(row: Row, item: Item) -> Score:
        task = TASKS[row.task]
        chat = has_template and row.settings_hash not in unchatty and not (task.continues or task.attacked)
        asked = task_of(task.prompt(item, chat))
        if chat:
            one = isinstance(asked.prompt, str)
            turns = [Message("user", str(asked.prompt))] if one else cast("Sequence[Message]", asked.prompt)
            prompt = writer.render_chat(turns)
        else:
            prompt = writer.start + writer.encode(str(asked.prompt))
        answer = writer.encode(row.text)
        # The model that wrote a text has room for it; another model may have less.
        return Score(prompt[max(0, len(prompt) + len(answer) - writer.context_length) :], (answer,))

    def score(rows: Sequence[Row], items: Items) -> Column:
        requests = [request(row, items[row.task, row.item]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: requests[i].prefix)  # each prompt is read once
        found = np.empty(len(rows))
        for start in range(0, len(rows), _BATCH):
            progress(f"fluency by {writer.name}: {start} of {len(rows)} answers")
            places = order[start : start + _BATCH]
            for i, reply in zip(places, writer.score([requests[i] for i in places]), strict=True):
                found[i] = reply.logprobs[0] / len(requests[i].options[0])
        return found

    return score
