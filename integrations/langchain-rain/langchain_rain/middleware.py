"""RainMiddleware: another model plans; RAIN judges its text and tool calls before they are returned.

With ``stream_mode="messages"`` every raw token is sent before a guardrail after the model can block the
message (langchain issue 35011). So while the other model answers, the handlers that stream its output are
removed from the running config.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import asdict, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables.config import ensure_config, set_config_context

from langchain_rain._errors import standard_errors
from langchain_rain._foreign import text_and_calls
from langchain_rain.chat_models import ChatRain, check_chat
from rain_llm import HARMLESSNESS, Message, Task, Tool, Verdict
from rain_llm.chat import is_readable, left_out, media_kind

try:
    from langchain.agents.middleware import (
        AgentMiddleware,
        ExtendedModelResponse,
        ModelRequest,
        ModelResponse,
    )
    from langchain.agents.structured_output import ProviderStrategy, StructuredOutputError, ToolStrategy
    from langgraph.types import Command
except ImportError as error:
    raise ImportError("RainMiddleware needs langchain: pip install 'langchain-rain[agents]'") from error


class RainMiddleware(AgentMiddleware[Any, Any, Any]):
    """Judges each answer of an agent's model before it is returned; RAIN answers in place of one that fails.

    Text is judged by ``settings.evaluation.criteria``, tool calls by ``settings.evaluation.actions``; images
    and other media are not checked. An answer that passes is returned unchanged. In place of one that fails,
    RAIN's own engine answers the same messages in words, without tools; its accepted text is streamed. If
    that does not pass either, RAIN refuses, also with ``on_unsafe="best"``. Where RAIN answers for an agent
    with a ``response_format``, there is text, and no ``structured_response``.

    The message's ``response_metadata["rain"]`` holds who wrote it (``written_by``: "outside" or "rain") and
    the ``verdict`` on the outside model's answer (None: it was empty).

    Put it last in the list of middleware: only what the middleware after it returns is judged. Your own
    callbacks and tracers still see the outside model's answer; streams of any mode and ``astream_events`` do
    not.

    Example:
        ```python
        from langchain.agents import create_agent
        from langchain_rain import ChatRain, RainMiddleware

        agent = create_agent("openai:gpt-5", tools=[...], middleware=[RainMiddleware(ChatRain())])
        ```

    Args:
        chat: who judges and answers; by default the embedded model with the tuned settings.

    Raises:
        UnsafeAnswerError: when called; RAIN's answer did not pass, and ``on_unsafe="raise"``.
        PromptTooLongError: when called; an answer is too long to be judged, and is not returned.
    """

    def __init__(self, chat: ChatRain | None = None) -> None:
        super().__init__()
        chat = ChatRain() if chat is None else chat
        check_chat(chat)
        settings = chat.settings
        if settings.on_unsafe == "best":
            chat = chat.model_copy(update={"settings": settings.updated(on_unsafe="refuse")})
        self._chat = chat

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Ask the outside model without streaming it; return its answer, or RAIN's."""
        failed: StructuredOutputError | None = None
        try:
            with _unstreamed() as context:
                response = context.run(handler, request)
        except StructuredOutputError as error:  # it holds the answer, which must be judged first
            failed, response = error, ModelResponse([error.ai_message])
        verdict = None
        if answer := self._answer(request, response):
            with standard_errors():
                verdict = self._chat._rain.judge(**answer)
        if verdict and not verdict.passed:
            return _replaced(self._chat.invoke(_readable(request), **self._options(request)), verdict)
        return _passed(response, verdict, failed)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | ExtendedModelResponse[Any]:
        """Do what ``wrap_model_call`` does without blocking the event loop."""

        async def asked() -> ModelResponse[Any]:
            return await handler(request)

        failed: StructuredOutputError | None = None
        try:
            with _unstreamed() as context:
                response = await asyncio.create_task(asked(), context=context)
        except StructuredOutputError as error:
            failed, response = error, ModelResponse([error.ai_message])
        verdict = None
        if answer := self._answer(request, response):
            with standard_errors():
                verdict = await self._chat._rain.ajudge(**answer)
        if verdict and not verdict.passed:
            return _replaced(await self._chat.ainvoke(_readable(request), **self._options(request)), verdict)
        return _passed(response, verdict, failed)

    def _answer(self, request: ModelRequest[Any], response: ModelResponse[Any]) -> dict[str, Any]:
        """Return the arguments of ``Rain.judge`` for an answer; {}: there is nothing to judge."""
        messages = [message for message in response.result if isinstance(message, AIMessage)]
        text, calls = text_and_calls(messages, _structured_calls(request.response_format))
        if not text.strip() and not calls:
            return {}
        asked = [turn.text for turn in request.messages if turn.type == "human" and turn.text.strip()]
        task = Task(
            [Message("user", asked[-1] if asked else "...")],
            self._chat.context or _replies(request),
            self._chat.question,
            tools=[Tool("some_tool")],  # their replies may be yet to come
        )
        return {"prompt": task, "text": text, "tool_calls": calls, "settings": self._chat.settings}

    def _options(self, request: ModelRequest[Any]) -> dict[str, Any]:
        """Return the options of RAIN's own answer: the tools' replies are its context."""
        context = self._chat.context or _replies(request)
        criteria = self._chat.settings.evaluation.criteria
        if context or not any(c.needs_context for c in criteria):
            return {"context": context}
        others = [criterion for criterion in criteria if not criterion.needs_context]
        return {"evaluation": {"criteria": others or [HARMLESSNESS]}}


def _structured_calls(response_format: Any) -> set[str]:
    """Return the names of the calls that hold a structured answer."""
    if response_format is None or isinstance(response_format, ProviderStrategy):
        return set()
    if not isinstance(response_format, ToolStrategy):
        response_format = ToolStrategy(getattr(response_format, "schema", response_format))
    return {spec.name for spec in response_format.schema_specs}


def _replies(request: ModelRequest[Any]) -> list[str]:
    """Return the tools' replies since the user's last turn."""
    replies: list[str] = []
    for turn in request.messages:
        if turn.type == "human":
            replies = []
        elif turn.type == "tool":
            replies.append(turn.text)
    return replies


@contextmanager
def _unstreamed() -> Iterator[Context]:
    """Give a context whose running config has no handlers that stream model output."""
    config = ensure_config()
    callbacks = config.get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):  # inside a graph it always is
        callbacks = callbacks.copy()
        callbacks.handlers = [h for h in callbacks.handlers if not _streams(h)]
        callbacks.inheritable_handlers = [h for h in callbacks.inheritable_handlers if not _streams(h)]
        config["callbacks"] = callbacks
    with set_config_context(config) as context:
        yield context


def _streams(handler: object) -> bool:
    """Whether it is one of the handlers of ``stream``, ``astream_events`` and ``astream_log``."""
    return hasattr(handler, "tap_output_iter")


def _readable(request: ModelRequest[Any]) -> list[BaseMessage]:
    """Return an agent's chat for a model that reads text, with a marker for anything else."""
    system = [request.system_message] if request.system_message else []
    messages: list[BaseMessage] = []
    for message in (*system, *request.messages):
        if isinstance(message.content, list):
            words = [_in_words(block, message.type == "human") for block in message.content]
            message = message.model_copy(update={"content": words})
        messages.append(message)
    return messages


def _in_words(block: str | dict[str, Any], by_user: bool) -> str | dict[str, Any]:
    """Return a block that can be read; ``ChatRain`` itself reads the data of other turns than the user's."""
    if isinstance(block, str):
        return block
    kind = media_kind(block) or ("data" if by_user and not is_readable(block) else "")
    return left_out(kind) if kind else block


def _replaced(answer: AIMessage, verdict: Verdict) -> ExtendedModelResponse[Any]:
    """Return RAIN's answer, with which the agent ends: it would ask for a structured one for ever."""
    end: Command[Any] = Command(update={"jump_to": "end"})
    return ExtendedModelResponse(ModelResponse([_marked(answer, "rain", verdict)]), end)


def _passed(
    response: ModelResponse[Any], verdict: Verdict | None, failed: StructuredOutputError | None
) -> ModelResponse[Any]:
    """Return the outside model's answer, or raise the agent's own error about it."""
    if failed:
        raise failed
    result = [_marked(m, "outside", verdict) if isinstance(m, AIMessage) else m for m in response.result]
    return replace(response, result=result)


def _marked(message: AIMessage, writer: str, verdict: Verdict | None) -> AIMessage:
    rain = {"written_by": writer, "verdict": asdict(verdict) if verdict else None}
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "rain": rain}})
