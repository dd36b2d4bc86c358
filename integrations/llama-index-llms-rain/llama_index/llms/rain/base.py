"""RAIN as a LlamaIndex language model.

Streaming is the one path: ``complete`` and ``chat`` are their streams' last chunk. Each of the
eight methods goes to the engine itself, so that LlamaIndex counts every call once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import asdict
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
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
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import BasePromptTemplate, SelectorPromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import Model, PydanticProgramMode, TokenAsyncGen, TokenGen
from llama_index.llms.rain.agents import told
from llama_index.llms.rain.errors import unswallowed
from llama_index.llms.rain.events import RainVerdictEvent
from llama_index.llms.rain.messages import ROLES, calls_of, from_llama_index, to_llama_index
from llama_index.llms.rain.options import GENERATION, known_only, schema_in, updated
from llama_index.llms.rain.parameters import REST, Parameters
from llama_index.llms.rain.rag import sources
from llama_index.llms.rain.structured import RainStructuredLLM, boxed, unboxed
from llama_index.llms.rain.tools import callable_tools, openai_tools, read_tools

from rain_llm import (
    IncompleteError,
    Message,
    PromptError,
    RainResult,
    RainSettings,
    SearchError,
    SettingsError,
    Step,
    StopReason,
    UnsafeAnswerError,
)
from rain_llm.chat import tool_choice_of
from rain_llm.settings import EvaluationSettings
from rain_llm.types import Task

dispatcher = get_dispatcher(__name__)

_OF_A_TASK = (
    *("context", "question", "schema", "response_format"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)


class RainLLM(Parameters, CustomLLM, FunctionCallingLLM):
    """A guarded language model for LlamaIndex.

    Constructing it loads nothing; the model loads with the first answer. A response's ``raw`` is a
    dictionary of ``verdict``, ``accepted``, ``stop_reason``, ``usage``, ``context``, ``question``,
    ``tool_calls``, ``trace`` and ``settings_hash``; for what passes through a query engine see
    :class:`VerdictCollector`.

    A single call may bring ``context`` (passages that the answer is judged against), ``question`` (what
    the judge is told was asked), ``schema`` (of a JSON document), ``settings``, ``max_tokens``, or any
    field of the settings' ``generation``: ``stop``, ``temperature``, ``seed``, ... A chat may bring
    ``tools``, ``tool_choice`` and ``parallel_tool_calls``, as ``chat_with_tools`` does. Anything else is
    refused.

    A chat is rendered with the model's chat template, unless ``messages_to_prompt`` is given. What that and
    ``completion_to_prompt`` write is text: a special token's name in it, such as ``<|im_start|>``, is just
    its characters. Only the chat template opens turns; for completions, by ``generation.chat_template``.

    Pickled, a model leaves its weights and callbacks behind: the copy loads its own. One with a ready engine
    (``rain``) cannot be.

    What LlamaIndex asks by a template is judged by the template's parts: ``context_str`` (``context_msg``
    and ``existing_answer`` where an answer is refined) is the context, ``query_str`` the question. A call
    that brings no context is judged by the criteria that need none; by the default criteria, if all of
    them do.

    Example:
        ```python
        from llama_index.core import Settings, VectorStoreIndex
        from llama_index.llms.rain import RainLLM

        Settings.llm = RainLLM()
        query_engine = VectorStoreIndex.from_documents(documents).as_query_engine()
        ```
    """

    guarded: bool = Field(default=True, description="False: the same model without RAIN.")
    pydantic_program_mode: PydanticProgramMode = Field(
        default=PydanticProgramMode.LLM,
        description="How structured predictions are made; 'llm': a document that fits the class's schema.",
    )
    _sources: tuple[tuple[str, ...], str] = PrivateAttr(default=((), ""))

    def warm_up(self) -> None:
        """Load the model now, or ask the server, which the first answer does otherwise."""
        self._rain.load()

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex serialises this class by."""
        return "RainLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans its prompts by; loads no model, but asks a server for its own.

        ``is_chat_model`` is the settings' ``generation.chat_template``: it decides whether LlamaIndex fills
        its templates for a text to be continued or for a user's turn. The chat methods, and with them tools,
        are there in both cases.
        """
        if self.settings.model.base_url:
            _ = self._rain.runtime  # it has been asked then
        return LLMMetadata(
            context_window=self.context_window or self._rain.context_length or DEFAULT_CONTEXT_WINDOW,
            num_output=self.settings.generation.max_new_tokens,
            is_chat_model=self.settings.generation.chat_template,
            is_function_calling_model=True,
            model_name=self._rain.model_name,
        )

    @property
    def tokenizer(self) -> Callable[[str], list[int]]:
        """The model's own, for ``Settings.tokenizer``: passages are packed by it. The first call loads it."""
        return lambda text: list(self._rain.runtime.writer.encode(text))

    def unguarded(self) -> RainLLM:
        """Return a twin on the same weights that writes without RAIN and judges nothing.

        For calls whose text nobody reads, such as condensing a question or choosing a route.
        """
        return self.model_copy(update={"guarded": False})

    # -- LlamaIndex's eight methods ----------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text."""
        return _as_completion(_last(list(self._stream(*self._completion(prompt, formatted, kwargs)))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Continue a text; each chunk is accepted before it is sent."""
        chunks = self._stream(*self._completion(prompt, formatted, kwargs))
        return (_as_completion(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continue a text without blocking the event loop."""
        chunks = self._astream(*self._completion(prompt, formatted, kwargs))
        return _as_completion(_last([chunk async for chunk in chunks]))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """Stream a continuation without blocking the event loop."""
        chunks = self._astream(*self._completion(prompt, formatted, kwargs))

        async def completions() -> CompletionResponseAsyncGen:
            async with aclosing(chunks):  # left early, it ends the search at once
                async for chunk in chunks:
                    yield _as_completion(chunk)

        return completions()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return _last(list(self._stream(*self._conversation(messages, kwargs))))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat; each chunk is accepted before it is sent."""
        return self._stream(*self._conversation(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat without blocking the event loop."""
        chunks = self._astream(*self._conversation(messages, kwargs))
        return _last([chunk async for chunk in chunks])

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """Stream the answer to a chat without blocking the event loop."""
        return self._astream(*self._conversation(messages, kwargs))

    # -- tools -------------------------------------------------------------------------------------

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of a chat with tools.

        ``tool_choice`` ("auto", "none", "any", "required" or a tool's name) goes before ``tool_required``.
        """
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg)
        return {
            "messages": messages,
            "tools": openai_tools(tools),
            "tool_choice": tool_choice or ("any" if tool_required else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Return what an answer asks for.

        Raises:
            ValueError: it asks for nothing, and ``error_on_no_tool_call``.
        """
        calls = calls_of(response.message)
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the answer holds no tool call: {response.message.content!r}")
        return [
            ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
            for call in calls
        ]

    # -- templates: what is to be answered, and by what --------------------------------------------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it; its passages are the context, its query the question.

        Raises:
            PredictionError: it cannot be answered; ``complete`` and ``chat`` raise its cause instead.
        """
        with unswallowed():
            return super(RainLLM, self._about(prompt, prompt_args)).predict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Fill a template and stream the answer; see :meth:`predict`."""
        return super(RainLLM, self._about(prompt, prompt_args)).stream(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it without blocking the event loop; see :meth:`predict`."""
        with unswallowed():
            return await super(RainLLM, self._about(prompt, prompt_args)).apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """Fill a template and stream without blocking the event loop; see :meth:`predict`."""
        return await super(RainLLM, self._about(prompt, prompt_args)).astream(prompt, **prompt_args)

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Fill a template and answer it by an instance of ``output_cls``: a grammar lets nothing else pass.

        Raises:
            UnsafeAnswerError: nothing passed. IncompleteError: ``max_new_tokens`` were too few.
            PredictionError: it cannot be answered. ValidationError: the class's own validator rejects it.
        """
        with unswallowed():
            asked = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
            return unboxed(super().structured_predict(*asked, **prompt_args), output_cls)

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As :meth:`structured_predict`, without blocking the event loop."""
        with unswallowed():
            asked = self._structured(output_cls, prompt, llm_kwargs, prompt_args)
            return unboxed(await super().astructured_predict(*asked, **prompt_args), output_cls)

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """As :meth:`structured_predict`: a document is accepted whole, so that the stream is one instance."""
        yield self.structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """As :meth:`stream_structured_predict`, without blocking the event loop."""

        async def instances() -> AsyncGenerator[Model | FlexibleModel, None]:
            yield await self.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        return instances()

    def predict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Call a tool of the model's choice; input is refused as by :meth:`predict`."""
        with unswallowed():
            return super().predict_and_call(callable_tools(tools), *args, **kwargs)

    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """As :meth:`predict_and_call`, without blocking the event loop."""
        with unswallowed():
            return await super().apredict_and_call(callable_tools(tools), *args, **kwargs)

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> RainStructuredLLM:
        """Return a model whose every answer is an instance of ``output_cls``."""
        given = {"callback_manager": self.callback_manager, **kwargs}
        return RainStructuredLLM(llm=self, output_cls=output_cls, **given)

    def _about(self, prompt: BasePromptTemplate, arguments: dict[str, Any]) -> RainLLM:
        """Return a twin that is told what its next prompt is about."""
        twin = self.model_copy()
        twin._sources = sources(prompt, arguments)
        return twin

    def _structured(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        arguments: dict[str, Any],
    ) -> tuple[type[BaseModel], BasePromptTemplate, dict[str, Any]]:
        """Return the class, a copy of the template, for LlamaIndex writes into it, and the call's arguments.

        What was asked is told to the judge without the schema that LlamaIndex writes behind it.
        """
        if isinstance(prompt, SelectorPromptTemplate):
            prompt = prompt.select(self)
        context, question = sources(prompt, arguments)
        replies, said = told(prompt.format_messages(llm=self, **arguments))
        asked: dict[str, Any] = {"context": context or replies, "question": question or said}
        box = boxed(output_cls)
        if self.pydantic_program_mode is PydanticProgramMode.LLM:
            asked["schema"] = box.model_json_schema()
        return box, prompt.partial_format(), asked | (llm_kwargs or {})

    # -- what the engine is asked --------------------------------------------------------------------

    def _completion(self, prompt: str, formatted: bool, options: dict[str, Any]) -> tuple[Task, RainSettings]:
        """A formatted prompt goes to the model as it is."""
        if not formatted:
            if self.completion_to_prompt is not None:
                prompt = self.completion_to_prompt(prompt)
            prompt = self._extend_prompt(prompt)
        return self._asked(prompt, options, verbatim=formatted)

    def _conversation(
        self, messages: Sequence[ChatMessage], options: dict[str, Any]
    ) -> tuple[Task, RainSettings]:
        """A system prompt in the messages replaces our own."""
        if not any(ROLES[message.role] == "system" for message in messages):
            messages = self._extend_messages(list(messages))
        if self.messages_to_prompt not in (None, messages_to_prompt):
            return self._asked(self.messages_to_prompt(messages), options, verbatim=True)
        return self._asked(from_llama_index(messages), options)

    def _asked(
        self, prompt: str | list[Message], options: dict[str, Any], verbatim: bool = False
    ) -> tuple[Task, RainSettings]:
        """Turn a call's keyword arguments into a task and its settings; None means not given.

        Args:
            prompt: for the model.
            options: the keyword arguments.
            verbatim: the prompt needs no chat template.
        """
        given = self._known(self.additional_kwargs) | self._known(options)
        if "response_format" in given:
            given.setdefault("schema", schema_in(given.pop("response_format")))
        context, question = self._sources
        task = Task(
            prompt,
            context=given.pop("context", context),
            question=given.pop("question", question),
            schema=given.pop("schema", None),
            tools=read_tools(given.pop("tools", ())),
            tool_choice=tool_choice_of(given.pop("tool_choice", "auto")),
            parallel_calls=given.pop("parallel_tool_calls", True),
        )
        if task.tools and isinstance(prompt, str):
            raise PromptError("tools are for chats, and for the model's own chat template: use chat or achat")
        settings = given.pop("settings", self.settings)
        if not isinstance(settings, RainSettings):
            raise SettingsError(f"settings must be RainSettings, not {type(settings).__name__}")
        if settings.model.name is None:
            settings = settings.model_copy(update={"model": self.settings.model})
        if verbatim:
            given["chat_template"] = False
        settings = updated(settings, given).unseeded()
        return task, settings if task.context else _without_context(settings, task)

    def _known(self, options: Mapping[str, Any]) -> dict[str, Any]:
        names = [*_OF_A_TASK, "settings", *GENERATION, *type(self.settings.generation).model_fields]
        return known_only(options, names, f"a call takes {', '.join(dict.fromkeys(names))}; {REST}")

    def _check_kwargs(self) -> None:
        self._asked("a text", {})

    # -- how it is driven ----------------------------------------------------------------------------

    def _stream(self, task: Task, settings: RainSettings) -> ChatResponseGen:
        """Ask the engine; what it refuses raises here, not at the first chunk."""
        if self.guarded:
            steps = self._rain.stream(task, settings=settings)
        else:
            steps = self._rain.plain_stream(task, settings=settings)
        return self._chunks(task, steps)

    def _chunks(self, task: Task, steps: Generator[Step, None, None]) -> ChatResponseGen:
        text = ""
        with self._telling(task), closing(steps):
            for step in steps:
                text += step.text
                if step.text or step.result:
                    yield self._chunk(task, text, step)

    async def _astream(self, task: Task, settings: RainSettings) -> ChatResponseAsyncGen:
        if self.guarded:
            steps = self._rain.astream(task, settings=settings)
        else:
            steps = self._rain.plain_astream(task, settings=settings)
        text = ""
        with self._telling(task):
            async with aclosing(steps):
                async for step in steps:
                    text += step.text
                    if step.text or step.result:
                        yield self._chunk(task, text, step)

    @contextmanager
    def _telling(self, task: Task) -> Iterator[None]:
        """Dispatch the event of an answer that ends in an error."""
        try:
            yield
        except (UnsafeAnswerError, IncompleteError, SearchError) as error:
            self._tell(task, error.result, accepted=False)
            raise

    def _tell(self, task: Task, result: RainResult, accepted: bool) -> None:
        """Dispatch the event of an answer, if it is guarded."""
        if not self.guarded:
            return
        event = RainVerdictEvent(
            text=result.text,
            tool_calls=result.tool_calls,
            verdict=result.verdict,
            accepted=accepted,
            stop_reason=result.stop_reason,
            sentences=result.sentences,
            usage=result.usage,
            trace=result.trace.summary(),
            settings_hash=result.settings_hash,
            **_subject(task),
        )
        dispatcher.event(event)

    def _chunk(self, task: Task, text: str, step: Step) -> ChatResponse:
        """Make the response for a step, after which ``text`` is the answer so far; calls come with its end.

        The counts stay out of the message, which chat histories keep.
        """
        result = step.result
        message = to_llama_index(text, result.tool_calls if result else ())
        if result is None:
            raw = {"verdict": step.verdict and asdict(step.verdict), "accepted": step.accepted}
            return ChatResponse(message=message, delta=step.text, raw=raw)
        if task.schema is not None and result.stop_reason is StopReason.REFUSED:
            raise UnsafeAnswerError("no document that fits the schema passed the criteria", result)
        self._tell(task, result, result.accepted)
        return ChatResponse(
            message=message,
            delta=step.text,
            raw=_raw(result) | _subject(task),
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
        "tool_calls": [asdict(call) for call in result.tool_calls],
        "trace": result.trace.summary(),
        "settings_hash": result.settings_hash,
        **({"sentences": [s.to_dict() for s in result.sentences]} if result.sentences else {}),
    }


def _subject(task: Task) -> dict[str, Any]:
    """Describe what an answer is judged by."""
    passages = (task.context,) if isinstance(task.context, str) else tuple(task.context)
    return {"context": tuple(filter(None, passages)), "question": task.question}


def _last(chunks: Sequence[ChatResponse]) -> ChatResponse:
    return chunks[-1].model_copy(update={"delta": None})


def _as_completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        raw=response.raw,
        additional_kwargs=response.additional_kwargs,
    )


def _without_context(settings: RainSettings, task: Task) -> RainSettings:
    """Return the settings for a task without a context: criteria that judge against one are left out.

    Not so where tools may be called or have replied, for their replies are a context; until there are some,
    the engine leaves those criteria out by itself. An answer that no criterion would be left for is judged by
    the default.
    """
    criteria = settings.evaluation.criteria
    others = [criterion for criterion in criteria if not criterion.needs_context]
    if len(others) == len(criteria):
        return settings
    replied = not isinstance(task.prompt, str) and any(turn.role == "tool" for turn in task.prompt)
    kept = criteria if replied or (task.tools and task.tool_choice != "none") else others
    default = () if others else EvaluationSettings().criteria
    return settings.updated(evaluation={"criteria": [*kept, *default]})
