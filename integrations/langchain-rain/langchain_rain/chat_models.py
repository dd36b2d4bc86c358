"""ChatRain: the guarded language model as a LangChain ``BaseChatModel``.

A call becomes a :class:`rain_llm.Task`, and the engine's steps become chunks: an answer is the sum of its
chunks, also where it is not streamed.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, ClassVar, Literal, Self, cast

from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langchain_core.runnables.config import get_config_list
from pydantic import BaseModel

from langchain_rain._engine import GuardedModel
from langchain_rain._errors import PromptTooLongError as PromptTooLongError
from langchain_rain._errors import standard_errors
from langchain_rain._messages import chat_of, chunk_of, traceable
from langchain_rain._schemas import AnyTool, document_schema, named, openai_tool, traced_schema
from langchain_rain._structured import RawReader, Reader, unless_refused
from rain_llm import Rain, RainSettings, SettingsError, Task
from rain_llm.chat import ASKED, task_of_chat, tool_choice_of, tools_of

_Messages = list[BaseMessage]
_OF_ONE_MODEL = {"revision": None, "tokenizer": None, "context_length": None}
"""Settings that do not apply to another model that a call names."""
_AT_ONCE = 64
"""Answers of a batch: each has a thread that waits, while one engine writes them all."""
_PROFILE = {
    **dict.fromkeys(("text_inputs", "text_outputs", "temperature"), True),
    **dict.fromkeys(("image_inputs", "audio_inputs", "pdf_inputs", "video_inputs"), False),
    **dict.fromkeys(("image_outputs", "audio_outputs", "video_outputs"), False),
    **dict.fromkeys(("tool_calling", "tool_choice", "tool_call_streaming"), True),
    "structured_output": False,  # create_agent would ask for it together with tools, which is not possible
}


def check_chat(chat: object) -> None:
    """Check that it is a ``ChatRain`` itself, and not a wrapper with other parameters.

    Raises:
        TypeError: it is a name, or a model that parameters were bound to.
    """
    if not isinstance(chat, ChatRain):
        raise TypeError(
            f"a ChatRain is wanted, not a {type(chat).__name__}: give parameters to ChatRain(...) itself, in "
            "place of bind or with_config"
        )


class ChatRain(GuardedModel, BaseChatModel):
    """A chat model that judges its own words and actions while it writes, and rewinds.

    Only accepted text and accepted tool calls are returned, also while streaming. Text that
    ``on_unsafe="best"`` returns is marked: ``response_metadata["accepted"]`` is False. The model loads on
    first use, once for all objects that name it.

    LangChain's standard parameters are other names for places in ``settings``. A call, or ``bind``, may
    override them, any field of ``settings.generation``, any other section (``on_unsafe="raise"``), or all
    ``settings`` at once; and give a ``context`` and a ``question``. Without a ready engine it may also name
    another ``model``, which is then loaded beside the first.

    An answer's ``response_metadata`` has ``verdict``, ``accepted``, ``stop_reason``, ``finish_reason``,
    ``usage`` (the whole cost, judging included), ``settings_hash`` and ``model_name``. Its
    ``usage_metadata`` counts the prompt and the answer alone, as other models do.

    Example:
        ```python
        from langchain_rain import ChatRain

        chat = ChatRain(max_tokens=32)
        chat.invoke("What is a good gift for a neighbour?")
        ```

    Raises:
        UnsafeAnswerError: nothing passed, and ``on_unsafe="raise"``.
        IncompleteError: a tool call or a document did not fit into ``max_tokens``.
        PromptTooLongError: the chat and ``max_tokens`` exceed the model's context.
        Further errors are those of ``rain_llm.Rain.generate``.
    """

    streaming: bool | None = None
    """True: ``invoke``, too, sends each accepted piece to the callbacks; False: it never does."""

    _of_a_task: ClassVar[tuple[str, ...]] = ASKED

    # -- what LangChain asks about a model -----------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "rain-chat"

    def _resolve_model_profile(self) -> ModelProfile:
        profile: dict[str, Any] = dict(_PROFILE)
        engine = self.rain or Rain(self.settings)  # LangChain asks before there is self._rain
        if length := engine.context_length:  # else known only once the model is loaded
            profile["max_input_tokens"] = length
        known = ModelProfile.__annotations__  # it grows from version to version
        return cast("ModelProfile", {name: value for name, value in profile.items() if name in known})

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the cache key of a call: calls that mean the same share it."""
        chat, asked = self._asked(stop, kwargs)
        return str(sorted({**chat._identifying_params, "_type": chat._llm_type, **asked}.items()))

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[AnyTool] | None = None
    ) -> int:
        """Return the number of tokens of a chat as the model reads it; loads the model. No messages: 0."""
        if not messages:
            return 0
        task = Task(chat_of(messages), tools=tools_of(openai_tool(tool) for tool in tools or ()))
        return len(self._rain.encode(task, self.settings))

    # -- tools and structured output -----------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[AnyTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return the model with tools that it may call.

        The arguments of a call always match the tool's schema. A call is returned only if it passes
        ``settings.evaluation.actions``.

        Args:
            tools: functions, pydantic classes, tools of LangChain, or their OpenAI or JSON schemas.
            tool_choice: "auto" or None: text, calls or both; "none": no call; "any", "required" or
                True: a call; a tool's name, or a dict that holds it: a call of this tool.
            parallel_tool_calls: one answer may hold several calls; None is True.
            kwargs: bound with them.

        Raises:
            ValueError: a tool is no function, or the choice names no tool.
        """
        bound = [openai_tool(tool) for tool in tools]
        choice = tool_choice_of(tool_choice)
        names = [tool["function"]["name"] for tool in bound]
        if choice not in ("auto", "none", "any", *names):
            raise ValueError(f"tool_choice '{choice}' names no tool: there are {', '.join(names) or 'none'}")
        return self.bind(tools=bound, tool_choice=choice, parallel_tool_calls=parallel_tool_calls, **kwargs)

    def with_structured_output(
        self,
        schema: Any,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Return the model with answers that match a schema.

        Args:
            schema: a pydantic class, a dataclass, an ``Enum`` or another type that pydantic reads (then
                answers are its objects); a ``TypedDict``, or a JSON schema, also in the wrapper of OpenAI,
                Anthropic or MCP (then they are plain data).
            method: "json_schema": the answer is one document, written by constrained decoding;
                "function_calling": the arguments of a forced tool call, written likewise;
                "json_mode": any JSON object, parsed by the schema afterwards.
            include_raw: return a dict of ``raw`` (the message), ``parsed`` and ``parsing_error``.
            kwargs: ``strict`` changes nothing; others are bound.

        Raises:
            ValueError: there is no such method, or answers cannot be held to the schema.
            OutputParserException: when called; the model refused (``ModelRefusalError`` where langchain-core
                has it), or the class rejects the answer.
            IncompleteError: when called; the answer did not fit into ``max_tokens``.
        """
        document = document_schema(schema)
        traced = {"kwargs": {"method": method}, "schema": traced_schema(schema, document)}
        kwargs["ls_structured_output_format"] = traced
        llm: Runnable[LanguageModelInput, AIMessage]
        if method == "function_calling":
            tool = openai_tool(named(schema))
            choice = tool["function"]["name"]
            llm = self.bind_tools([tool], tool_choice=choice, parallel_tool_calls=False, **kwargs)
        elif method == "json_schema":
            asked = {"type": "json_schema", "json_schema": {"schema": document}}
            llm = self.bind(response_format=asked, **kwargs)
        elif method == "json_mode":
            llm = self.bind(response_format={"type": "json_object"}, **kwargs)
        else:
            raise ValueError(
                f"there is no method {method!r}: choose 'json_schema', 'function_calling' or 'json_mode'"
            )
        reader = Reader(schema, calls=method == "function_calling")
        if include_raw:
            raw = RawReader(llm, reader)
            return RunnableLambda(raw.ask, raw.aask).with_config(max_concurrency=_AT_ONCE)
        return llm | RunnableLambda(reader.read)

    # -- what one call asks for ----------------------------------------------------------------

    def _overridden(self, overrides: Mapping[str, Any]) -> Self:
        rest = self._understood(overrides)
        name = rest.pop("model", None)
        if not name or name == self.settings.model.name:
            return super()._overridden(rest)
        if self.rain is not None:
            raise SettingsError(f"a ready engine has its model: make another ChatRain for model={name!r}")
        settings = self.settings.updated(model={"name": name, **_OF_ONE_MODEL})
        other = self.model_copy(update={"settings": settings})
        other._rain = self._others.setdefault(str(name), Rain(settings))
        return other._overridden(rest)

    def _call(
        self, messages: _Messages, stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Rain, Task, RainSettings]:
        """Return the engine, the task and the settings of one call."""
        chat, asked = self._asked(stop, kwargs)
        if asked.get("tools") and tool_choice_of(asked.get("tool_choice")) not in ("auto", "none"):
            _check_last(messages)
        if "tools" in asked:
            asked["tools"] = [openai_tool(tool) for tool in asked["tools"] or ()]
        if isinstance(asked.get("response_format"), type):
            document = document_schema(asked["response_format"])
            asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": document}}
        task = task_of_chat(chat_of(messages), asked, chat.context, chat.question)
        return chat._rain, task, chat.settings

    # -- from LangChain to the engine and back -------------------------------------------------

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        given = super()._convert_input(model_input)
        return ChatPromptValue(messages=traceable(given.to_messages()))

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answer inputs side by side: 64 at a time, unless ``max_concurrency`` says otherwise."""
        configs = get_config_list(config, len(inputs))
        if configs and configs[0].get("max_concurrency") is None:
            configs = [{**one, "max_concurrency": _AT_ONCE} for one in configs]
        return super().batch(inputs, configs, **kwargs)

    def _generate(
        self, messages: _Messages, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, run_manager, **kwargs))

    async def _agenerate(
        self, messages: _Messages, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, run_manager, **kwargs))

    def _stream(
        self, messages: _Messages, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        rain, task, settings = self._call(messages, stop, kwargs)
        numbers = itertools.count(1)
        with standard_errors(), closing(rain.stream(task, settings=settings)) as steps:
            for step in steps:
                if chunk := chunk_of(step, numbers):
                    yield chunk

    async def _astream(
        self, messages: _Messages, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        rain, task, settings = self._call(messages, stop, kwargs)
        numbers = itertools.count(1)
        with standard_errors():
            async with aclosing(rain.astream(task, settings=settings)) as steps:
                async for step in steps:
                    if chunk := chunk_of(step, numbers):
                        yield chunk


def _check_last(messages: Sequence[BaseMessage]) -> None:
    """Raise if an agent repeats a refused request: for a structured answer it would do so for ever."""
    last = messages[-1] if messages else None
    if isinstance(last, AIMessage) and last.response_metadata.get("model_provider") == "rain":
        unless_refused(last)
