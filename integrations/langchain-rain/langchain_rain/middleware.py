"""RainMiddleware: an outside model plans, RAIN judges what it says and wants to do before anybody sees it.

A guardrail behind the model comes too late for streams: with ``stream_mode="messages"`` every raw token
has left before the finished message is blocked (langchain issue 35011). So here the outside model answers
unheard: while it is asked, the handlers that stream what models say are taken out of the running config.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from dataclasses import asdict, replace
from typing import Any

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables.config import ensure_config, set_config_context
from langchain_core.tools import BaseTool

from langchain_rain.chat_models import ChatRain, check_chat
from rain_llm import HARMLESSNESS, Message, Task, Tool, ToolCall, Verdict

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
    from langchain.agents.structured_output import StructuredOutputError
except ImportError as error:
    raise ImportError("RainMiddleware needs langchain: pip install 'langchain-rain[agents]'") from error


class RainMiddleware(AgentMiddleware[Any, Any, Any]):
    """Judges each answer of an agent's model before it leaves; where it does not pass, RAIN answers instead.

    What the model says is judged by ``settings.evaluation.criteria``, what it wants to call by
    ``settings.evaluation.actions``. An answer that passed goes on as it is. One that did not, with all its
    calls, is heard by nobody: RAIN's own engine answers the same messages, in words and without tools, and
    its accepted text is streamed. Where nothing of that passes either, it refuses, with
    ``on_unsafe="best"`` too.

    The message says in ``response_metadata["rain"]`` who wrote it (``written_by``: "outside" or "rain") and
    holds the ``verdict`` on the outside model's answer (None: it said nothing). Words, reasoning and calls
    are judged; images and the like pass unseen. An agent with a ``response_format`` that RAIN had to answer
    for has no ``structured_response``: words instead.

    Put it last in the list of middleware, or in front of others that change the answer unheard: only what
    the middleware behind it returns is judged. Callbacks and tracers of your own still see what the outside
    model said; streams of any mode and ``astream_events`` do not.

    Example:
        ```python
        from langchain.agents import create_agent
        from langchain_rain import ChatRain, RainMiddleware

        agent = create_agent("openai:gpt-5", tools=[...], middleware=[RainMiddleware(ChatRain())])
        ```

    Args:
        chat: who judges and answers; by default the embedded model with the tuned settings.

    Raises:
        UnsafeAnswerError: when called, where RAIN's answer did not pass and ``on_unsafe="raise"``.
        PromptError: when called, where an answer is too long to be judged: it does not leave.
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
    ) -> ModelResponse[Any] | AIMessage:
        """Ask the outside model unheard; pass its answer on, or answer in its place."""
        failed: StructuredOutputError | None = None
        try:
            with _unheard() as context:
                response = context.run(handler, request)
        except StructuredOutputError as error:  # it has the answer in it, which is to be judged first
            failed, response = error, ModelResponse([error.ai_message])
        verdict = None
        if answer := self._answer(request, response):
            verdict = self._chat._rain.judge(**answer)
            if not verdict.passed:
                return _marked(
                    self._chat.invoke(_messages(request), **self._instead(request)), "rain", verdict
                )
        if failed:
            raise failed
        return _passed(response, verdict)

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any] | AIMessage:
        """Do what ``wrap_model_call`` does without blocking the event loop."""

        async def asked() -> ModelResponse[Any]:
            return await handler(request)

        failed: StructuredOutputError | None = None
        try:
            with _unheard() as context:
                response = await asyncio.create_task(asked(), context=context)
        except StructuredOutputError as error:
            failed, response = error, ModelResponse([error.ai_message])
        verdict = None
        if answer := self._answer(request, response):
            verdict = await self._chat._rain.ajudge(**answer)
            if not verdict.passed:
                return _marked(
                    await self._chat.ainvoke(_messages(request), **self._instead(request)), "rain", verdict
                )
        if failed:
            raise failed
        return _passed(response, verdict)

    def _answer(self, request: ModelRequest[Any], response: ModelResponse[Any]) -> dict[str, Any]:
        """Return what ``Rain.judge`` is told of an answer; {}: there is nothing to judge."""
        tools = {tool.name if isinstance(tool, BaseTool) else tool.get("name") for tool in request.tools}
        words: list[str] = []
        calls: list[ToolCall] = []
        for message in response.result:
            if not isinstance(message, AIMessage):
                continue  # what the agent says of a structured answer
            for block in message.content_blocks:
                if block["type"] not in ("tool_call", "invalid_tool_call", *_MEDIA):
                    words.extend(_texts({k: v for k, v in block.items() if k not in ("type", "id", "index")}))
            words.extend(_texts(message.additional_kwargs.get("refusal")))
            words.extend(_texts(message.additional_kwargs.get("reasoning_content")))
            for call in message.tool_calls:
                if request.response_format is None or call["name"] in tools:
                    calls.append(ToolCall(call["name"], call["args"], call["id"] or ""))
                else:  # a structured answer comes as a call, too, but does nothing
                    words.append(str(call["args"]))
            for broken in message.invalid_tool_calls:
                calls.append(ToolCall(broken["name"] or "", {"arguments": broken["args"]}))
        text = "\n\n".join(filter(None, words))
        if not text.strip() and not calls:
            return {}
        asked = [turn.text for turn in request.messages if turn.type == "human" and turn.text.strip()]
        task = Task(
            [Message("user", asked[-1] if asked else "...")],
            self._chat.context or _told(request),
            self._chat.question,
            tools=[Tool("some_tool")],  # what such ones tell may be yet to come
        )
        return {"prompt": task, "text": text, "tool_calls": calls, "settings": self._chat.settings}

    def _instead(self, request: ModelRequest[Any]) -> dict[str, Any]:
        """Return what RAIN's own answer is asked with: what tools told is what it is to keep to."""
        context = self._chat.context or _told(request)
        criteria = self._chat.settings.evaluation.criteria
        if context or not any(c.needs_context for c in criteria):
            return {"context": context}
        others = [criterion for criterion in criteria if not criterion.needs_context]
        return {"evaluation": {"criteria": others or [HARMLESSNESS]}}


_MEDIA = ("image", "audio", "video", "file")


def _texts(part: object) -> list[str]:
    """Return every text within a block, of whatever provider."""
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, Mapping) else part if isinstance(part, list | tuple) else ()
    return [text for one in parts for text in _texts(one)]


def _told(request: ModelRequest[Any]) -> list[str]:
    """Return what tools have replied since the user's last turn."""
    told: list[str] = []
    for turn in request.messages:
        if turn.type == "human":
            told = []
        elif turn.type == "tool":
            told.append(turn.text)
    return told


@contextmanager
def _unheard() -> Iterator[Context]:
    """Give a context whose running config has no handlers that stream what models say."""
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
    """Whether it is one of the handlers behind ``stream``, ``astream_events`` and ``astream_log``."""
    return hasattr(handler, "tap_output_iter")


def _messages(request: ModelRequest[Any]) -> list[BaseMessage]:
    system = [request.system_message] if request.system_message else []
    return [*system, *request.messages]


def _passed(response: ModelResponse[Any], verdict: Verdict | None) -> ModelResponse[Any]:
    result = [_marked(m, "outside", verdict) if isinstance(m, AIMessage) else m for m in response.result]
    return replace(response, result=result)


def _marked(message: AIMessage, writer: str, verdict: Verdict | None) -> AIMessage:
    rain = {"written_by": writer, "verdict": asdict(verdict) if verdict else None}
    return message.model_copy(update={"response_metadata": {**message.response_metadata, "rain": rain}})
