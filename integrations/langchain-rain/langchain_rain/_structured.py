"""Structured output: documents and tool calls parsed into objects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import langchain_core.exceptions
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import TypeAdapter
from typing_extensions import is_typeddict

from langchain_rain._messages import unfinished
from langchain_rain._schemas import is_function, is_pydantic_1
from langchain_rain._typeddict import readable
from rain_llm import IncompleteError, StopReason

REFUSED: type[Exception] = getattr(langchain_core.exceptions, "ModelRefusalError", OutputParserException)


def unless_refused(message: AIMessage) -> AIMessage:
    """Return a message unless it is a refusal.

    Raises:
        OutputParserException: it is one; ``ModelRefusalError`` where langchain-core has that.
    """
    if message.response_metadata.get("stop_reason") == StopReason.REFUSED:
        raise REFUSED(f"the model refused to answer: {message.text}")
    return message


@dataclass(frozen=True)
class Reader:
    """Parses the text of a message, or the arguments of its first call. Can be pickled.

    Attributes:
        kind: the class or type of the parsed object; a schema, a function, a tool or a ``TypedDict`` stands
            for plain data.
        calls: parse the arguments of the first call, not the text.
    """

    kind: Any
    calls: bool = False

    def read(self, message: AIMessage) -> Any:
        """Return the parsed object.

        Raises:
            OutputParserException: the message is a refusal, or the class rejects it.
        """
        unless_refused(message)
        if self.calls and not message.tool_calls:
            raise OutputParserException("the answer holds no call of a tool", llm_output=message.text)
        text = json.dumps(message.tool_calls[0]["args"]) if self.calls else message.text
        try:
            return self._read(text)
        except (ValueError, RecursionError) as error:  # of the class's own validators, too
            reason = f"the answer does not match {getattr(self.kind, '__name__', 'its schema')}: {error}"
            raise OutputParserException(reason, llm_output=text) from error

    def _read(self, text: str) -> Any:
        plain = is_function(self.kind) or isinstance(self.kind, Mapping | BaseTool)
        if plain or is_typeddict(self.kind):
            return json.loads(text)
        if is_pydantic_1(self.kind):
            return self.kind.parse_raw(text)
        return TypeAdapter(readable(self.kind)).validate_json(text)


@dataclass(frozen=True)
class RawReader:
    """Calls the model and returns ``raw``, ``parsed`` and ``parsing_error``. Can be pickled."""

    llm: Runnable[LanguageModelInput, AIMessage]
    reader: Reader

    def ask(self, prompt: LanguageModelInput, config: RunnableConfig, **kwargs: Any) -> dict[str, Any]:
        """Call the model and parse its answer."""
        try:
            return self._read(self.llm.invoke(prompt, config, **kwargs))
        except IncompleteError as error:
            return _raw(unfinished(error.result), error=error)

    async def aask(self, prompt: LanguageModelInput, config: RunnableConfig, **kwargs: Any) -> dict[str, Any]:
        """Call the model and parse its answer without blocking the event loop."""
        try:
            return self._read(await self.llm.ainvoke(prompt, config, **kwargs))
        except IncompleteError as error:
            return _raw(unfinished(error.result), error=error)

    def _read(self, raw: AIMessage) -> dict[str, Any]:
        try:
            return _raw(raw, self.reader.read(raw))
        except Exception as error:  # a class's own validators may raise anything
            return _raw(raw, error=error)


def _raw(raw: AIMessage, parsed: Any = None, error: Exception | None = None) -> dict[str, Any]:
    return {"raw": raw, "parsed": parsed, "parsing_error": error}
