"""``RainLLM.as_structured_llm``: a model whose every answer is an instance of a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import chat_response_to_completion_response
from llama_index.core.bridge.pydantic import BaseModel, create_model
from llama_index.core.llms import (
    LLM,
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    MessageRole,
)
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate, SelectorPromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index.llms.rain.context import of_chat, of_template
from pydantic import RootModel

from rain_llm import PromptError


class RainStructuredLLM(StructuredLLM):
    """A :class:`~llama_index.llms.rain.RainLLM` whose every answer is an instance of ``output_cls``.

    Answers are JSON texts, as LlamaIndex's own wrapper writes them. That one fills a template before the
    model sees it, which loses the passages and the question, and counts each call twice. This one passes the
    template on; the model counts the call, for the wrapper's callbacks.
    """

    @property
    def _model(self) -> LLM:
        return self.llm.model_copy(update={"callback_manager": self.callback_manager})

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it."""
        answer: BaseModel = self._model.structured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """As :meth:`predict`, without blocking the event loop."""
        answer: BaseModel = await self._model.astructured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat; ``raw`` is the instance."""
        template = ChatPromptTemplate(messages)
        return _response(self._model.structured_predict(self.output_cls, template, kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As :meth:`chat`, without blocking the event loop."""
        template = ChatPromptTemplate(messages)
        return _response(await self._model.astructured_predict(self.output_cls, template, kwargs))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As :meth:`chat`: an instance is accepted as one, so that the stream has one response."""
        yield self.chat(messages, **kwargs)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As :meth:`stream_chat`, without blocking the event loop."""

        async def responses() -> ChatResponseAsyncGen:
            yield await self.achat(messages, **kwargs)

        return responses()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text as the user's turn of a chat."""
        return chat_response_to_completion_response(self.chat([ChatMessage(prompt)], **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As :meth:`complete`, without blocking the event loop."""
        return chat_response_to_completion_response(await self.achat([ChatMessage(prompt)], **kwargs))


def asked_for(
    llm: LLM, output_cls: type[BaseModel], prompt: BasePromptTemplate, options: Any, arguments: dict[str, Any]
) -> tuple[type[BaseModel], BasePromptTemplate, dict[str, Any]]:
    """Return the class, a copy of the template (LlamaIndex writes into it), and the options of the call.

    The question is among them: LlamaIndex writes the schema into the prompt, which the judge need not read.
    """
    if isinstance(prompt, SelectorPromptTemplate):
        prompt = prompt.select(llm)
    context, question = of_template(prompt, arguments)
    replies, asked = of_chat(prompt.format_messages(llm=llm, **arguments))
    judged: dict[str, Any] = {"context": context or replies, "question": question or asked}
    box = boxed(output_cls)
    if llm.pydantic_program_mode is PydanticProgramMode.LLM:
        judged["schema"] = box.model_json_schema()
    return box, prompt.partial_format(), judged | (options or {})


def boxed(output_cls: Any) -> type[BaseModel]:
    """Return a class that a JSON object fills, for LlamaIndex reads nothing else: a root model in a field.

    Raises:
        PromptError: it is no pydantic class.
    """
    if not (isinstance(output_cls, type) and issubclass(output_cls, BaseModel)):
        raise PromptError(
            f"output_cls is {output_cls!r:.80}: give a pydantic class, or RootModel[...] for another type; a "
            "JSON schema is given to chat or complete as schema="
        )
    is_root = issubclass(output_cls, RootModel)
    return create_model("Answer", root=(output_cls, ...)) if is_root else output_cls


def unboxed(instance: Any, output_cls: type[Model]) -> Model:
    """Return the instance that was asked for: see :func:`boxed`."""
    answer: Model = instance if isinstance(instance, output_cls) else instance.root
    return answer


def _response(instance: BaseModel) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=instance.model_dump_json())
    return ChatResponse(message=message, raw=instance)
