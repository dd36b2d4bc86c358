"""RAIN as a LlamaIndex language model, and its verdicts as instrumentation events.

Streaming is the one path: ``complete`` and ``chat`` are their streams' last chunk. Each of the
eight methods goes to the engine itself, so that LlamaIndex counts every call once.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, cast

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.base.llms.types import TextBlock
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr, model_validator
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback

from rain_llm import (
    Message,
    PromptError,
    Rain,
    RainResult,
    RainSettings,
    SettingsError,
    Step,
    StopReason,
    Usage,
    Verdict,
)

dispatcher = get_dispatcher(__name__)

_EMBEDDED = ("embedded:SmolLM2-135M-Instruct", 8192)
_IGNORED = {"extra_headers"}  # LlamaIndex's DocumentContextExtractor sends them to every model
_ROLES: dict[MessageRole, Literal["system", "user", "assistant"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


# --- the verdict as an event --------------------------------------------------------------------


class RainVerdictEvent(BaseEvent):
    """Dispatched at the end of every guarded answer, whoever asked for it.

    Attributes:
        text: the whole answer. verdict: on it; None if it was cut off before it was judged.
        accepted: every piece of it was accepted. stop_reason: why it ended. usage: what it cost.
        settings_hash: of the settings that it was written with.
    """

    text: str
    verdict: Verdict | None
    accepted: bool
    stop_reason: StopReason
    usage: Usage
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
        collector.verdicts[-1].passed

    A streamed answer ends when its stream has been read: read it before the collector closes.
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

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Keep the event if it is a verdict."""
        if isinstance(event, RainVerdictEvent):
            self._events.append(event)

    def __enter__(self) -> Self:
        root = get_dispatcher()
        with self._registration:
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


# --- the language model -------------------------------------------------------------------------


class RainLLM(CustomLLM):
    """A guarded language model for LlamaIndex.

    Constructing it loads nothing; the model loads with the first answer. A response's ``raw`` is a
    dictionary of ``verdict``, ``accepted``, ``stop_reason``, ``usage`` and ``settings_hash``; for
    what passes through a query engine see :class:`VerdictCollector`.

    A single call may bring ``context`` (passages that the answer is judged against), ``settings``,
    ``max_tokens``, or any field of the settings' ``generation``: ``stop``, ``temperature``,
    ``seed``, ... Anything else is refused.

    A chat is rendered with the model's chat template, unless ``messages_to_prompt`` is given.

    Example:
        ```python
        from llama_index.core import Settings, VectorStoreIndex
        from llama_index.llms.rain import RainLLM

        Settings.llm = RainLLM()
        query_engine = VectorStoreIndex.from_documents(documents).as_query_engine()
        ```
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: str | None = Field(default=None, description="A folder or hub name; null: what the settings name.")
    settings: RainSettings = Field(
        default_factory=RainSettings, description="All that the engine may be told."
    )
    guarded: bool = Field(default=True, description="False: the same model without RAIN.")
    context_window: int | None = Field(
        default=None, gt=0, description="Tokens of the model's context; null: by its config.json."
    )
    rain: Rain | None = Field(
        default=None, exclude=True, repr=False, description="A ready engine instead of a model."
    )
    _rain: Rain = PrivateAttr()

    @model_validator(mode="after")
    def _make_engine(self) -> Self:
        if self.rain is not None:
            if self.model is not None:
                raise ValueError("give model or rain, not both: a ready engine has its model")
            if "settings" not in self.model_fields_set:
                self.settings = self.rain.settings
        elif self.model is not None:
            self.settings = self.settings.updated(model={"name": self.model})
        self._rain = self.rain or Rain(self.settings)
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex serialises this class by."""
        return "RainLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans its prompts by; loads no model, but asks a server for its own.

        The context of a hub model that was never downloaded is not known yet: LlamaIndex's own
        cautious default stands in for it, unless ``context_window`` is given.
        """
        if self.rain is not None or self.settings.model.base_url:
            writer = self._rain.runtime.writer
            name, window = writer.name, writer.context_length
        else:
            name, window = _described(self.settings.model.name, self.settings.model.revision)
        return LLMMetadata(
            context_window=self.context_window or window,
            num_output=self.settings.generation.max_new_tokens,
            is_chat_model=self.settings.generation.chat_template,
            model_name=name,
        )

    def unguarded(self) -> RainLLM:
        """Return a twin on the same weights that writes without RAIN and judges nothing.

        For calls whose text nobody reads, such as condensing a question or choosing a route.
        """
        return self.model_copy(update={"guarded": False})

    # -- LlamaIndex's eight methods ----------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text."""
        return _last(list(self._stream(*self._completion(prompt, formatted, kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Continue a text; each chunk is accepted before it is sent."""
        return self._stream(*self._completion(prompt, formatted, kwargs))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text without blocking the event loop."""
        chunks = self._astream(*self._completion(prompt, formatted, kwargs))
        return _last([chunk async for chunk in chunks])

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Stream a continuation without blocking the event loop."""
        return self._astream(*self._completion(prompt, formatted, kwargs))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return _as_chat(_last(list(self._stream(*self._conversation(messages, kwargs)))))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat; each chunk is accepted before it is sent."""
        chunks = self._stream(*self._conversation(messages, kwargs))
        return (_as_chat(chunk) for chunk in chunks)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat without blocking the event loop."""
        chunks = self._astream(*self._conversation(messages, kwargs))
        return _as_chat(_last([chunk async for chunk in chunks]))

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Stream the answer to a chat without blocking the event loop."""
        chunks = self._astream(*self._conversation(messages, kwargs))
        return (_as_chat(chunk) async for chunk in chunks)

    # -- what the engine is asked --------------------------------------------------------------------

    def _completion(
        self, prompt: str, formatted: bool, options: dict[str, Any]
    ) -> tuple[str, str, RainSettings]:
        """Return prompt, context and settings. A formatted prompt goes to the model as it is."""
        context, settings = self._chosen(options)
        if formatted:
            return prompt, context, _verbatim(settings)
        if self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return self._extend_prompt(prompt), context, settings

    def _conversation(
        self, messages: Sequence[ChatMessage], options: dict[str, Any]
    ) -> tuple[str | list[Message], str, RainSettings]:
        """Return prompt, context and settings. A system prompt in the messages replaces our own."""
        context, settings = self._chosen(options)
        if not any(_ROLES.get(message.role) == "system" for message in messages):
            messages = self._extend_messages(list(messages))
        if self.messages_to_prompt not in (None, messages_to_prompt):
            return self.messages_to_prompt(messages), context, _verbatim(settings)
        return [_message(message) for message in messages], context, settings

    def _chosen(self, options: dict[str, Any]) -> tuple[str, RainSettings]:
        """Turn a call's keyword arguments into context and settings; None means not given."""
        given = {
            key: value
            for key, value in options.items()
            if key not in _IGNORED and (value is not None or key == "seed")
        }
        context = given.pop("context", "")
        settings = given.pop("settings", self.settings)
        if not isinstance(settings, RainSettings):
            raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
        if settings.model.name is None:
            settings = settings.model_copy(update={"model": self.settings.model})
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        known = type(self.settings.generation).model_fields
        for key in given:
            if key not in known:
                raise SettingsError(
                    f"unknown argument '{key}': a call takes context, settings, max_tokens, "
                    f"{', '.join(known)}; all else is in settings=RainSettings(...)"
                )
        return context, settings.updated(generation=given) if given else settings

    # -- how it is driven ----------------------------------------------------------------------------

    def _stream(
        self, prompt: str | list[Message], context: str, settings: RainSettings
    ) -> Generator[CompletionResponse, None, None]:
        """Ask the engine; what it refuses raises here, not at the first chunk."""
        if self.guarded:
            steps = self._rain.stream(prompt, context=context, settings=settings)
        else:
            steps = self._rain.plain_stream(prompt, settings=settings)
        return self._chunks(steps)

    def _chunks(self, steps: Generator[Step, None, None]) -> Generator[CompletionResponse, None, None]:
        text = ""
        with closing(steps):
            for step in steps:
                text += step.text
                if step.text or step.result:
                    yield self._chunk(text, step)

    async def _astream(
        self, prompt: str | list[Message], context: str, settings: RainSettings
    ) -> AsyncGenerator[CompletionResponse, None]:
        if self.guarded:
            steps = self._rain.astream(prompt, context=context, settings=settings)
        else:
            steps = self._rain.plain_astream(prompt, settings=settings)
        text = ""
        async with aclosing(steps):
            async for step in steps:
                text += step.text
                if step.text or step.result:
                    yield self._chunk(text, step)

    def _chunk(self, text: str, step: Step) -> CompletionResponse:
        """Make the response for a step, after which ``text`` is the answer so far."""
        result = step.result
        if result is None:
            raw = {"verdict": step.verdict and asdict(step.verdict), "accepted": step.accepted}
            return CompletionResponse(text=text, delta=step.text, raw=raw)
        if self.guarded:
            dispatcher.event(
                RainVerdictEvent(
                    text=result.text,
                    verdict=result.verdict,
                    accepted=result.accepted,
                    stop_reason=result.stop_reason,
                    usage=result.usage,
                    settings_hash=result.settings_hash,
                )
            )
        return CompletionResponse(
            text=text,
            delta=step.text,
            raw=_raw(result),
            additional_kwargs={
                "prompt_tokens": result.usage.prompt_tokens,
                "completion_tokens": result.usage.output_tokens,
                "total_tokens": result.usage.prompt_tokens + result.usage.output_tokens,
            },
        )


# --- small words ----------------------------------------------------------------------------------


def _raw(result: RainResult) -> dict[str, Any]:
    """Describe a result in plain data; LlamaIndex counts tokens by its ``usage``."""
    return {
        "verdict": result.verdict and asdict(result.verdict),
        "accepted": result.accepted,
        "stop_reason": result.stop_reason.value,
        "usage": asdict(result.usage),
        "settings_hash": result.settings_hash,
    }


def _last(chunks: Sequence[CompletionResponse]) -> CompletionResponse:
    return chunks[-1].model_copy(update={"delta": None})


def _as_chat(response: CompletionResponse) -> ChatResponse:
    """Make a chat response; the counts stay out of the message, which chat histories keep."""
    return ChatResponse(
        message=ChatMessage(role=MessageRole.ASSISTANT, content=response.text),
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def _message(message: ChatMessage) -> Message:
    if message.role not in _ROLES:
        raise PromptError(
            f"a message has the role '{message.role.value}', which no chat template knows: "
            f"use {', '.join(role.value for role in _ROLES)}"
        )
    for block in message.blocks:
        if not isinstance(block, TextBlock):
            raise PromptError(f"a message holds a {type(block).__name__}: only text is understood")
    return Message(_ROLES[message.role], message.content or "")


def _verbatim(settings: RainSettings) -> RainSettings:
    """Return the settings without the chat template, for a prompt that needs none."""
    if not settings.generation.chat_template:
        return settings
    return settings.updated(generation={"chat_template": False})


def _described(model: str | None, revision: str | None) -> tuple[str, int]:
    """Return a model's name and context length without loading it."""
    if model is None:
        return _EMBEDDED
    config = _config(model, revision)
    lengths = (
        part.get(key)
        for part in (config, config.get("text_config", {}))
        for key in ("max_position_embeddings", "n_positions")
    )
    name = f"{model}@{revision}" if revision else model
    return name, next((length for length in lengths if length), DEFAULT_CONTEXT_WINDOW)


def _config(model: str, revision: str | None) -> dict[str, Any]:
    """Read ``config.json`` in a folder or the hub's cache; empty where there is none to read."""
    path = Path(model).expanduser() / "config.json"
    try:
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            path = Path(cast("str", try_to_load_from_cache(model, "config.json", revision=revision)))
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # a TypeError: not in the cache
        return {}
