"""``RainLLM.as_structured_llm``: LlamaIndex's wrapper, which passes on what an answer is judged by."""

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
from llama_index.core.prompts import BasePromptTemplate, ChatPromptTemplate
from llama_index.core.types import Model
from llama_index.llms.rain.agents import told, unfolded
from pydantic import RootModel

from rain_llm import PromptError


class RainStructuredLLM(StructuredLLM):
    """A :class:`~llama_index.llms.rain.RainLLM` whose every answer is an instance of ``output_cls``.

    LlamaIndex's own wrapper fills a prompt's template before the model sees it, so that passages and
    question are not told apart any more, and counts each call beside the model's own count. This one hands
    the template on, and a call is the model's, told to the wrapper's callbacks. Answers are JSON texts, as
    there. Where an agent asks, what its tools have told is the context.
    """

    @property
    def _model(self) -> LLM:
        return self.llm.model_copy(update={"callback_manager": self.callback_manager})

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it."""
        answer: BaseModel = self._model.structured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it without blocking the event loop."""
        answer: BaseModel = await self._model.astructured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat; ``raw`` is the instance."""
        return _said(self._model.structured_predict(self.output_cls, *_asked(messages, kwargs)))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat without blocking the event loop."""
        return _said(await self._model.astructured_predict(self.output_cls, *_asked(messages, kwargs)))

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer a chat; an instance is accepted whole, so each response is complete."""
        instances = self._model.stream_structured_predict(self.output_cls, *_asked(messages, kwargs))
        return (_said(instance) for instance in instances)

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """As :meth:`stream_chat`, without blocking the event loop."""
        instances = await self._model.astream_structured_predict(self.output_cls, *_asked(messages, kwargs))
        return (_said(instance) async for instance in instances)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a text as the user's turn of a chat."""
        return chat_response_to_completion_response(self.chat([ChatMessage(prompt)], **kwargs))

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """As :meth:`complete`, without blocking the event loop."""
        return chat_response_to_completion_response(await self.achat([ChatMessage(prompt)], **kwargs))


def _asked(
    messages: Sequence[ChatMessage], options: dict[str, Any]
) -> tuple[BasePromptTemplate, dict[str, Any]]:
    """Return a chat as a template, and the options of the call with what the judge is told."""
    context, question = told(unfolded(messages))
    return ChatPromptTemplate(messages), {"context": context, "question": question, **options}


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


def _said(instance: BaseModel) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=instance.model_dump_json())
    return ChatResponse(message=message, raw=instance)
