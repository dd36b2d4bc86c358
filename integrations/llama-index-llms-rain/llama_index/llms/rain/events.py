"""The verdict on an answer as an instrumentation event: query engines and agents drop it otherwise."""

from __future__ import annotations

import threading
from typing import Any, ClassVar, Self

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.llms.rain.context import of_task

from rain_llm import RainResult, SentenceVerdict, StopReason, Task, ToolCall, Usage, Verdict


class RainVerdictEvent(BaseEvent):
    """Dispatched at the end of every guarded answer, also of one that ends in an error.

    Attributes:
        text: the answer. tool_calls: what it asks for; only calls that passed.
        verdict: on it; None if it was cut off before it was judged.
        accepted: every piece of it was accepted, and it did not end in an error.
        stop_reason: why it ended. usage: what it cost.
        sentences: of an answer with passages that did not pass, the verdict on each of its sentences and the
            nearest passage. The words of a rejected sentence are withheld, unless the settings'
            ``evaluation.sentences`` is "texts".
        context: the passages that it is judged against; (): none.
        question: what the judge reads as the question; "": the prompt itself.
        trace: how it came about, without what was rewound.
        settings_hash: of the settings that it was written with.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    verdict: Verdict | None
    accepted: bool
    stop_reason: StopReason
    sentences: tuple[SentenceVerdict, ...] = ()
    usage: Usage
    context: tuple[str, ...]
    question: str
    trace: dict[str, Any]
    settings_hash: str

    @classmethod
    def class_name(cls) -> str:
        """Return the event's name."""
        return "RainVerdictEvent"


class VerdictCollector(BaseEventHandler):
    """Collects the verdicts of all guarded answers that end while it is open, in any thread.

    Query engines drop an answer's ``raw``, and the verdict with it::

        with VerdictCollector() as collector:
            response = query_engine.query("How are the tomatoes?")
        if not collector.accepted:
            print(collector.events[-1].sentences)

    A streamed answer ends when its stream has been read: read it before the collector closes. A closed
    collector may be opened again, and goes on collecting. To distinguish requests that run at once, use
    LlamaIndex's ``instrument_tags``, which every event has in ``tags``.
    """

    _registration: ClassVar[threading.Lock] = threading.Lock()
    _events: list[RainVerdictEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """Return the handler's name."""
        return "VerdictCollector"

    @property
    def events(self) -> list[RainVerdictEvent]:
        """The events so far, in the order in which the answers ended."""
        return list(self._events)

    @property
    def verdicts(self) -> list[Verdict | None]:
        """The verdict of each event; None for an answer that was cut off before it was judged."""
        return [event.verdict for event in self._events]

    @property
    def accepted(self) -> bool:
        """Whether there was an answer, and every one was accepted.

        A verdict's ``passed`` may differ: it is on the last text that was judged, such as a rejected rollout.
        """
        return bool(self._events) and all(event.accepted for event in self._events)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Keep the event if it is a verdict."""
        if isinstance(event, RainVerdictEvent):
            self._events.append(event)

    def __enter__(self) -> Self:
        root = get_dispatcher()
        with self._registration:
            if any(each is self for each in root.event_handlers):
                raise RuntimeError("this collector is open already: open another VerdictCollector()")
            root.event_handlers = [*root.event_handlers, self]
        return self

    def __exit__(self, *error: object) -> None:
        root = get_dispatcher()
        with self._registration:  # by identity: two collectors with the same events are equal
            root.event_handlers = [each for each in root.event_handlers if each is not self]


def report(task: Task, result: RainResult, accepted: bool) -> None:
    """Dispatch the event of an answer."""
    same = ("text", "tool_calls", "verdict", "stop_reason", "sentences", "usage", "settings_hash")
    event = {name: getattr(result, name) for name in same} | of_task(task)
    event |= {"accepted": accepted, "trace": result.trace.summary()}
    get_dispatcher(__name__).event(RainVerdictEvent(**event))
