"""Render a chat with a model's template, so that no message can forge a turn or a special token.

A template is a program that writes a chat as text, including special tokens. It never receives the texts of
messages, tools and calls, but unguessable marks in their place. In its output, each mark is replaced by the
tokens of its text, encoded as plain text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from rain_llm.bounds import TEMPLATE_VALUE
from rain_llm.errors import ModelNotSupportedError
from rain_llm.tools import CLOSING, OPENING, json_text, quoted, read, spoken
from rain_llm.types import Message, TokenIds, Tool, ToolCall

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]] | None], str]
"""Renders messages and tools (both in OpenAI's format) up to the beginning of the assistant's turn.

Raises:
    ModelNotSupportedError: The template cannot render them.
"""

# Texts of these characters contain no special token, so that a template may see them (an argument's type).
_HARMLESS = re.compile(r"[A-Za-z0-9_.,$ -]*")


OPTIONS = {"enable_thinking": False}
"""Variables passed to every template: with them, those of Qwen, GLM and others write an empty thought."""

# If a template opens a thought anyway, the model would have to think: the thought is closed again, empty.
_THOUGHT = ("<think>", "\n\n</think>\n\n")


def merged(messages: Sequence[Message]) -> list[Message]:
    """Merge consecutive messages of the same role, since many templates require alternating roles."""
    joined: list[Message] = []
    for turn in messages:
        if joined and joined[-1].role == turn.role != "tool":
            before = joined.pop()
            content = "\n\n".join(filter(None, (before.content, turn.content)))
            turn = replace(turn, content=content, tool_calls=(*before.tool_calls, *turn.tool_calls))
        joined.append(turn)
    return joined


_GO_ON = Message("user", "Go on.")


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """Rearrange a chat for templates that require alternating roles.

    Later system messages become user messages, and missing user turns before and after the assistant's are
    filled in with a few words.
    """
    first, *others = messages
    turns = [first, *(replace(m, role="user") if m.role == "system" else m for m in others)]
    start = 1 if first.role == "system" else 0
    if turns[start:] == [] or turns[start].role == "assistant":
        turns.insert(start, _GO_ON)
    if turns[-1].role == "assistant":
        turns.append(_GO_ON)
    return merged(turns)


class ChatTemplate:
    """Renders chats to tokens. Thread-safe.

    Args:
        render: the model's template.
        encode: encodes text as ordinary tokens.
        encode_template: encodes text including the special tokens that it names.
        name: name of the model, for error messages.
    """

    def __init__(
        self,
        render: Render,
        encode: Callable[[str], TokenIds],
        encode_template: Callable[[str], TokenIds],
        name: str,
    ) -> None:
        self._render = render
        self._encode = encode
        self._encode_template = encode_template
        self._name = name

    def tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Return the tokens of a chat, up to the beginning of the assistant's turn.

        Raises:
            ModelNotSupportedError: the template cannot render the messages, or leaves one out.
        """
        with_tools = tools or any(message.tool_calls or message.role == "tool" for message in messages)
        if with_tools and not (self.shows_tools and self._is_text(_Marked(messages, tools).unmarked)):
            messages, tools = spoken(messages, tools), ()
        if any(message.role == "system" for message in messages) and not self.shows_system:
            messages = merged([replace(m, role="user") if m.role == "system" else m for m in messages])
        if messages and messages[-1].role == "assistant" and not self.answers_itself:
            messages = [*messages, _GO_ON]
        try:
            return self._tokens(messages, tools)
        except ModelNotSupportedError:
            if (alternating := _alternating(messages)) == list(messages):
                raise
            return self._tokens(alternating, tools)

    def _tokens(self, messages: Sequence[Message], tools: Sequence[Tool]) -> TokenIds:
        chat = _Marked(messages, tools)
        text = self._render(chat.messages, chat.tools)
        if len(text) > TEMPLATE_VALUE:
            raise ModelNotSupportedError(
                f"the chat template of {self._name} writes {len(text)} characters, more than {TEMPLATE_VALUE}"
            )
        written, places = chat.found(text)
        shown = [place for place in places if place in chat.contents]
        for place, role in chat.contents.items():
            if place not in shown:
                raise ModelNotSupportedError(
                    f"the chat template of {self._name} leaves out a message of role '{role}'"
                )
        if shown != list(chat.contents):
            raise ModelNotSupportedError(f"the chat template of {self._name} reorders or repeats messages")
        if (ending := written[-1].rstrip()).endswith(_THOUGHT[0]):
            written[-1] = ending + _THOUGHT[1]
        tokens = self._encode_template(written[0])
        for before, place, after in zip(written, places, written[1:], strict=False):
            text = chat.texts[place]
            in_json = before.endswith('"') and after.startswith('"')
            tokens += self._encode(json_text(text)[1:-1] if in_json else text) + self._encode_template(after)
        return tokens

    def _is_text(self, texts: Sequence[str]) -> bool:
        """Return whether texts contain no special token (some vocabularies have ones that are words)."""
        joined = "\n".join(texts)
        return self._encode(joined) == self._encode_template(joined)

    @cached_property
    def shows_system(self) -> bool:
        """Return whether the template renders system messages; if not, they become user messages."""
        chat = _Marked((Message("system", "Be brief."), Message("user", "What is rain?")), ())
        try:
            _, places = chat.found(self._render(chat.messages, None))
        except ModelNotSupportedError:
            return False
        return places == list(chat.contents)

    @cached_property
    def answers_itself(self) -> bool:
        """Return whether the template opens another assistant turn after an assistant message."""
        asked = Message("user", "What is rain?")
        after = []
        for messages in ((asked,), (asked, Message("assistant", "Water."))):
            chat = _Marked(messages, ())
            try:
                written, _ = chat.found(self._render(chat.messages, None))
            except ModelNotSupportedError:
                return False
            after.append(written[-1])
        return after[1].endswith(after[0].lstrip())

    @cached_property
    def shows_tools(self) -> bool:
        """Return whether the template renders tools, results, and calls in the form of ``rain_llm.tools``.

        For other models, tools are described in words: those whose template has no tools, and those whose
        calls have another form (special tokens as in Llama 3 and Mistral, Python, XML).
        """
        call = ToolCall("look_up", {"word": "rain"}, "call00001")
        messages = (
            Message("user", "What is rain?"),
            Message("assistant", "I look it up.", (call,)),
            Message("tool", "Water.", name=call.name, tool_call_id=call.id),
        )
        chat = _Marked(messages, (Tool(call.name), Tool("not_called")))
        try:
            text = self._render(chat.messages, chat.tools)
        except ModelNotSupportedError:
            return False
        written, places = chat.found(text)
        if places != list(chat.contents) or "not_called" not in text:
            return False
        _, opened, rest = written[2].partition(OPENING)  # between the assistant's text and the tool's result
        try:
            _, calls = read(opened + rest.partition(CLOSING)[0] + CLOSING)
        except ValueError:
            return False
        return calls == (replace(call, id=""),)


class _Marked:
    """A chat and its tools in the template's format, with unguessable marks in place of texts.

    Attributes:
        messages: the messages.
        tools: the tools; None if there are none.
        texts: the texts that marks stand for.
        contents: role of each message by the index of its content in ``texts``.
        unmarked: texts that were not replaced.
    """

    def __init__(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        self.texts: list[str] = []
        self.contents: dict[int, str] = {}
        self.unmarked: list[str] = []
        self._secret = f"rain{secrets.token_hex(8)}"
        self._known: dict[str, str] = {}
        self.messages = [self._message(message) for message in messages]
        self.tools = [self._tool(tool) for tool in tools] or None

    def found(self, text: str) -> tuple[list[str], list[int]]:
        """Split a text at its marks; return the parts, and the marks' indices in ``texts``."""
        parts = re.split(rf"{self._secret}x(\d+)x", text)
        return parts[::2], [int(place) for place in parts[1::2]]

    def _message(self, message: Message) -> dict[str, Any]:
        content = quoted(message.content) if message.role == "tool" else message.content
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if content or not message.tool_calls:  # templates test whether there is text besides the calls
            self.contents[len(self.texts)] = message.role
            turn["content"] = self._mark(content)
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        about = {"name": message.name, "tool_call_id": message.tool_call_id}
        return turn | {key: self._value(value) for key, value in about.items() if value}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": self._value(call.name), "arguments": self._value(call.arguments)}
        return {"type": "function", "function": function} | ({"id": self._value(call.id)} if call.id else {})

    def _tool(self, tool: Tool) -> dict[str, Any]:
        function = {
            "name": self._value(tool.name),
            "description": self._value(tool.description),
            "parameters": self._value(tool.parameters),
        }
        return {"type": "function", "function": function}

    def _value(self, value: Any) -> Any:
        """Return a JSON value with marks in place of its texts; equal texts have the same mark."""
        if isinstance(value, Mapping):
            return {self._value(key): self._value(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(part) for part in value]
        if not isinstance(value, str):
            return value
        if _HARMLESS.fullmatch(value):
            self.unmarked.append(value)
            return value
        if value not in self._known:
            self._known[value] = self._mark(value)
        return self._known[value]

    def _mark(self, text: str) -> str:
        self.texts.append(text)
        return f"{self._secret}x{len(self.texts) - 1}x"
