"""What the tests of RainLLM share: a model that knows whole answers by heart, and a counter of events."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.llms.rain import RainLLM
from pydantic import PrivateAttr

from rain_llm import CIVILITY, GROUNDEDNESS, Calibration, Rain, RainSettings
from rain_llm.criteria import BUILT_IN, HARMLESS_ACTIONS
from rain_llm.models.scripted import END, NextWords, ScriptedModel
from rain_llm.requests import Score

SETTINGS = RainSettings().updated(
    evaluation={"criteria": [CIVILITY]},
    generation={"max_new_tokens": 16, "seed": 0},
    search={"iterations": 32},
)
BY_WORDS = GROUNDEDNESS.model_copy(
    update={"style": "labels", "evidence": False, "target": None, "calibration": Calibration()}
)
"""Groundedness asked in words about all passages: a scripted model can have an opinion on that."""
_GUIDES = re.compile(f"^(?:(?:{'|'.join(re.escape(c.guide) for c in BUILT_IN.values() if c.guide)})\\s*)*")
_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_GOOD = {good for criterion in (CIVILITY, GROUNDEDNESS, HARMLESS_ACTIONS) for good, _ in criterion.labels}


def says(answers: Mapping[str, Mapping[str, float]]) -> NextWords:
    """Make a script: to what a prompt ends with, some whole answers with their weights."""

    def next_words(text: str) -> Mapping[str, float]:
        asked = max(answers, key=text.rfind)
        assert asked in text, f"nobody has an answer to {text!r}"
        said = _GUIDES.sub("", text.rpartition(asked)[2])
        words: dict[str, float] = {}
        for answer, weight in answers[asked].items():
            if answer.startswith(said):
                rest = _WORDS.match(answer, len(said))
                word = rest[0] if rest else END
                words[word] = words.get(word, 0) + weight
        return words or {END: 1}

    return next_words


def opinion(question: str, label: str) -> float:
    """Praise what is splendid; find fault with what is rubbish, and with who wipes things."""
    tone = ("splendid" in question) - ("rubbish" in question or "wipe(" in question)
    return -4.0 + (tone if label.strip() in _GOOD else -tone)


def scripted(answers: Mapping[str, Mapping[str, float]], room: int = 96, **changes: Any) -> RainLLM:
    """Make a model that knows some answers, and may write ``room`` tokens."""
    settings = SETTINGS.updated(generation={"max_new_tokens": room}).updated(**changes)
    return RainLLM(rain=Rain(settings, model=ScriptedModel(says(answers), opinion)))


def model_of(llm: RainLLM) -> ScriptedModel:
    """Return the scripted model."""
    assert llm.rain is not None
    writer = llm.rain.runtime.writer
    assert isinstance(writer, ScriptedModel)
    return writer


def judged(model: ScriptedModel) -> str:
    """Return everything that the judge was shown."""
    return "\n".join(model.decode(r.prefix) for r in model.requests if isinstance(r, Score))


def memory() -> ChatMemoryBuffer:
    """A chat's memory; LlamaIndex's default is a database that it leaves open."""
    return ChatMemoryBuffer.from_defaults(token_limit=1000)


class Recorder(BaseEventHandler):
    """Keeps every instrumentation event."""

    _seen: list[BaseEvent] = PrivateAttr(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """How many there were of each kind."""
        return Counter(event.class_name() for event in self._seen)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Keep it."""
        self._seen.append(event)


@contextmanager
def recording() -> Iterator[Recorder]:
    """Keep the events of a while."""
    root, recorder = get_dispatcher(), Recorder()
    before = root.event_handlers
    root.event_handlers = [*before, recorder]
    yield recorder
    root.event_handlers = before
