"""RAIN as a LlamaIndex language model.

``complete`` and ``chat`` are the last chunk of their streams. Each of LlamaIndex's eight methods asks the
engine itself, so that LlamaIndex counts every call once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt
from llama_index.core.bridge.pydantic import BaseModel, Field, PrivateAttr
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
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
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import Model, PydanticProgramMode, TokenAsyncGen, TokenGen
from llama_index.llms.rain.answers import chat_response, completion, completions, last
from llama_index.llms.rain.context import of_template, with_criteria_for
from llama_index.llms.rain.errors import unswallowed
from llama_index.llms.rain.events import report
from llama_index.llms.rain.messages import from_llama_index
from llama_index.llms.rain.parameters import Configured
from llama_index.llms.rain.structured import RainStructuredLLM, asked_for, unboxed
from llama_index.llms.rain.tools import callable_tools, openai_tools

from rain_llm import Message, PromptError, RainError, RainSettings, Step, StopReason, Task, UnsafeAnswerError
from rain_llm.chat import task_of_chat

Options = dict[str, Any]
"""Keyword arguments of a call."""
Asked = tuple[Task, RainSettings]
"""What the engine is asked."""


class RainLLM(Configured, CustomLLM, FunctionCallingLLM):
    """A guarded language model for LlamaIndex.

    Creating it loads nothing; the model loads with the first answer. A pickled one has no weights and no
    callbacks: the copy loads its own. One with a ready engine (``rain``) cannot be pickled.

    A call takes ``context`` (passages that the answer is judged against), ``question`` (what the judge reads
    as the question), ``schema`` (of a JSON document), ``settings``, ``max_tokens``, ``timeout``, or any field
    of the settings' ``generation``; a chat also ``tools``, ``tool_choice`` and ``parallel_tool_calls``.
    Anything else is an error.

    A filled template is judged by its parts: ``context_str`` (``context_msg``, and ``existing_answer`` where
    an answer is refined) is the context, ``query_str`` the question. A call without a context is judged by
    the criteria that need none; by the default criteria, if all of them do.

    A response's ``raw`` has the ``verdict``, ``accepted``, ``stop_reason``, ``usage``, ``context``,
    ``question``, ``tool_calls``, ``trace`` and ``settings_hash``. Query engines drop it: see
    :class:`VerdictCollector`.

    What ``completion_to_prompt`` and ``messages_to_prompt`` write is text: a special token's name in it, such
    as ``<|im_start|>``, is just its characters. Only the model's chat template opens turns.

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
        description="How structured predictions are made; 'llm': a document that matches the class's schema.",
    )
    _judged: tuple[tuple[str, ...], str] = PrivateAttr(default=((), ""))

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

        ``is_chat_model`` decides whether LlamaIndex fills its templates for a text to be continued or for a
        user's turn. The chat methods, and with them tools, are there in both cases.
        """
        if self.settings.model.base_url:
            _ = self._rain.runtime  # asks it
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
        return completion(last(self._stream(*self._completion(prompt, formatted, kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Continue a text; each chunk is accepted before it is sent."""
        chunks = self._stream(*self._completion(prompt, formatted, kwargs))
        return (completion(chunk) for chunk in chunks)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As :meth:`complete`, without blocking the event loop."""
        chunks = self._astream(*self._completion(prompt, formatted, kwargs))
        return completion(last([chunk async for chunk in chunks]))

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As :meth:`stream_complete`, without blocking the event loop."""
        return completions(self._astream(*self._completion(prompt, formatted, kwargs)))

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat."""
        return last(self._stream(*self._conversation(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat; each chunk is accepted before it is sent."""
        return self._stream(*self._conversation(messages, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As :meth:`chat`, without blocking the event loop."""
        return last([chunk async for chunk in self._astream(*self._conversation(messages, kwargs))])

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As :meth:`stream_chat`, without blocking the event loop."""
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
        """Return the arguments of a chat with tools; ``tool_choice`` overrides ``tool_required``."""
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
        """Return the tool calls in an answer.

        Raises:
            ValueError: there are none, and ``error_on_no_tool_call``.
        """
        calls = from_llama_index([response.message])[0].tool_calls
        if not calls and error_on_no_tool_call:
            raise ValueError(f"the answer holds no tool call: {response.message.content!r}")
        return [
            ToolSelection(tool_id=call.id, tool_name=call.name, tool_kwargs=dict(call.arguments))
            for call in calls
        ]

    def predict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Call a tool of the model's choice; raises as :meth:`predict` does."""
        with unswallowed():
            return super().predict_and_call(callable_tools(tools), *args, **kwargs)

    async def apredict_and_call(
        self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any
    ) -> AgentChatResponse:
        """As :meth:`predict_and_call`, without blocking the event loop."""
        with unswallowed():
            return await super().apredict_and_call(callable_tools(tools), *args, **kwargs)

    # -- templates ---------------------------------------------------------------------------------

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it; its passages are the context, its query the question.

        Raises:
            PredictionError: it cannot be answered; ``complete`` and ``chat`` raise its cause instead.
        """
        with unswallowed():
            return super(RainLLM, self._for(prompt, prompt_args)).predict(prompt, **prompt_args)

    def stream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenGen:
        """Fill a template and stream the answer; see :meth:`predict`."""
        return super(RainLLM, self._for(prompt, prompt_args)).stream(prompt, **prompt_args)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As :meth:`predict`, without blocking the event loop."""
        with unswallowed():
            return await super(RainLLM, self._for(prompt, prompt_args)).apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """As :meth:`stream`, without blocking the event loop."""
        return await super(RainLLM, self._for(prompt, prompt_args)).astream(prompt, **prompt_args)

    def _for(self, prompt: BasePromptTemplate, arguments: dict[str, Any]) -> RainLLM:
        """Return a twin whose next answer is judged by what a template is filled with."""
        twin = self.model_copy()
        twin._judged = of_template(prompt, arguments)
        return twin

    # -- structured prediction ---------------------------------------------------------------------

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: Options | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Fill a template and answer it by an instance of ``output_cls``, by constrained decoding.

        Raises:
            UnsafeAnswerError: nothing passed. IncompleteError: ``max_new_tokens`` were too few.
            PredictionError: it cannot be answered. ValidationError: the class's own validator rejects it.
        """
        with unswallowed():
            asked = asked_for(self, output_cls, prompt, llm_kwargs, prompt_args)
            return unboxed(super().structured_predict(*asked, **prompt_args), output_cls)

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: BasePromptTemplate,
        llm_kwargs: Options | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As :meth:`structured_predict`, without blocking the event loop."""
        with unswallowed():
            asked = asked_for(self, output_cls, prompt, llm_kwargs, prompt_args)
            return unboxed(await super().astructured_predict(*asked, **prompt_args), output_cls)

    def stream_structured_predict(
        self, output_cls: type[Model], *args: Any, **kwargs: Any
    ) -> Generator[Model | FlexibleModel, None, None]:
        """As :meth:`structured_predict`: a document is accepted as one, so the stream is one instance."""
        yield self.structured_predict(output_cls, *args, **kwargs)

    async def astream_structured_predict(
        self, output_cls: type[Model], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """As :meth:`stream_structured_predict`, without blocking the event loop."""

        async def instances() -> AsyncGenerator[Model | FlexibleModel, None]:
            yield await self.astructured_predict(output_cls, *args, **kwargs)

        return instances()

    def as_structured_llm(self, output_cls: type[BaseModel], **kwargs: Any) -> RainStructuredLLM:
        """Return a model whose every answer is an instance of ``output_cls``."""
        given = {"callback_manager": self.callback_manager, **kwargs}
        return RainStructuredLLM(llm=self, output_cls=output_cls, **given)

    # -- what the engine is asked --------------------------------------------------------------------

    def _completion(self, prompt: str, formatted: bool, options: Options) -> Asked:
        """A formatted prompt goes to the model as it is."""
        if not formatted:
            if self.completion_to_prompt is not None:
                prompt = self.completion_to_prompt(prompt)
            prompt = self._extend_prompt(prompt)
        return self._asked(prompt, options, verbatim=formatted)

    def _conversation(self, messages: Sequence[ChatMessage], options: Options) -> Asked:
        """A system prompt in the messages replaces our own."""
        if not any(message.role in ("system", "developer") for message in messages):
            messages = self._extend_messages(list(messages))
        if self.messages_to_prompt not in (None, messages_to_prompt):
            return self._asked(self.messages_to_prompt(messages), options, verbatim=True)
        return self._asked(from_llama_index(messages), options)

    def _asked(self, prompt: str | list[Message], options: Options, verbatim: bool = False) -> Asked:
        """Return a call's task and settings; a verbatim prompt needs no chat template."""
        given, settings = self._understood(options)
        if verbatim:
            settings = settings.updated(generation={"chat_template": False})
        context, question = self._judged
        task = task_of_chat(prompt, given, given.get("context", context), given.get("question", question))
        task = replace(task, schema=given.get("schema", task.schema))
        if task.tools and isinstance(prompt, str):
            raise PromptError("tools are for chats, and for the model's own chat template: use chat or achat")
        return task, with_criteria_for(task, settings)

    # -- how it is driven ----------------------------------------------------------------------------

    def _stream(self, task: Task, settings: RainSettings) -> ChatResponseGen:
        """Ask the engine: errors about the input raise here, not at the first chunk."""
        ask = self._rain.stream if self.guarded else self._rain.plain_stream
        return self._chunks(task, ask(task, settings=settings))

    def _chunks(self, task: Task, steps: Generator[Step, None, None]) -> ChatResponseGen:
        text = ""
        with self._reporting(task), closing(steps):
            for step in steps:
                text += step.text
                if step.text or step.result:
                    yield self._chunk(task, text, step)

    async def _astream(self, task: Task, settings: RainSettings) -> ChatResponseAsyncGen:
        ask = self._rain.astream if self.guarded else self._rain.plain_astream
        text = ""
        with self._reporting(task):
            async with aclosing(ask(task, settings=settings)) as steps:
                async for step in steps:
                    text += step.text
                    if step.text or step.result:
                        yield self._chunk(task, text, step)

    @contextmanager
    def _reporting(self, task: Task) -> Iterator[None]:
        """Dispatch the event of an answer that ends in an error."""
        try:
            yield
        except RainError as error:
            if self.guarded and (result := getattr(error, "result", None)):
                report(task, result, accepted=False)
            raise

    def _chunk(self, task: Task, text: str, step: Step) -> ChatResponse:
        """Return the response for a step, and dispatch the event of an answer at its end."""
        if result := step.result:
            if task.schema is not None and result.stop_reason is StopReason.REFUSED:
                raise UnsafeAnswerError("no document that matches the schema passed the criteria", result)
            if self.guarded:
                report(task, result, result.accepted)
        return chat_response(task, text, step)
