"""The verdict on an answer as an instrumentation event, for query engines and agents drop it on their way."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, ClassVar, Self

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent

from rain_llm import SentenceVerdict, StopReason, Usage, Verdict
from rain_llm.types import ToolCall


class RainVerdictEvent(BaseEvent):
    """Dispatched at the end of every guarded answer, whoever asked for it, also where it ends in an error.

    Attributes:
        text: the whole answer. tool_calls: what it asks for; only calls that passed.
        verdict: on it; None if it was cut off before it was judged.
        accepted: every piece of it was accepted, and it did not end in an error.
        stop_reason: why it ended. usage: what it cost.
        sentences: of an answer with passages that did not pass, the verdict on each of its sentences and the
            nearest passage. The words of a rejected sentence are withheld, unless the settings'
            ``evaluation.sentences`` is "texts".
        context: the passages that came with the prompt, to be judged against; (): none did.
        question: what the judge was told was asked; "": the prompt itself.
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

    A streamed answer ends when its stream has been read: read it before the collector closes. A collector
    may be opened again once it is closed, and goes on collecting; while it is open that is an error.
    Requests that run at once are told apart by LlamaIndex's ``instrument_tags``, which every event
    carries in ``tags``.
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
        """Whether there was an answer, and every one was accepted: what the events say.

        A verdict's ``passed`` may differ. It is on the last text that was judged, such as a rejected draft,
        or an answer that passes as a whole though a marked piece of it did not.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        root = get_dispatcher()
        with self._registration:  # by identity: two collectors with the same events are equal
            root.event_handlers = [each for each in root.event_handlers if each is not self]
