"""A model's chat template, in which nothing that comes from outside can forge a turn or a special token.

A template is a program that writes a chat as text, special tokens among it. It never sees what comes from
outside: messages, tools and calls reach it with marks in the place of their texts. In what it wrote, each
mark gives way to the tokens of its text, encoded on their own as plain text.
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
"""Writes messages and tools, both as OpenAI's API has them, up to where the assistant begins to speak.

Raises:
    ModelNotSupportedError: the template cannot show them.
"""

# What hardly any special token is spelled with: a template may look at it (at an argument's type, say).
_HARMLESS = re.compile(r"[A-Za-z0-9_.,$ -]*")


OPTIONS = {"enable_thinking": False}
"""What every template is told: those of Qwen, GLM and others write an empty thought then."""

# A template that opens a thought leaves its model no choice but to think; so it is closed again, empty.
_THOUGHT = ("<think>", "\n\n</think>\n\n")


def merged(messages: Sequence[Message]) -> list[Message]:
    """Join what one role says in turns that follow each other: templates want roles to alternate."""
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
    """Return a chat for templates that are strict about roles.

    The system speaks first or in the user's turns, and the user speaks before and after the assistant: where
    nobody has, a turn of a few words is put in.
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
    """Renders chats to tokens. May be used from many threads.

    Args:
        render: the model's template.
        encode: turns text into ordinary tokens.
        encode_template: turns text into tokens, special ones where it spells them.
        name: of the model, for errors.
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
        """Return the tokens of a chat, up to where the assistant begins to speak.

        Raises:
            ModelNotSupportedError: the template cannot show the messages, or leaves one out.
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
            raise ModelNotSupportedError(
                f"the chat template of {self._name} shows a message in another order or twice"
            )
        if (asked := written[-1].rstrip()).endswith(_THOUGHT[0]):
            written[-1] = asked + _THOUGHT[1]
        tokens = self._encode_template(written[0])
        for before, place, after in zip(written, places, written[1:], strict=False):
            text = chat.texts[place]
            in_json = before.endswith('"') and after.startswith('"')
            tokens += self._encode(json_text(text)[1:-1] if in_json else text) + self._encode_template(after)
        return tokens

    def _is_text(self, texts: Sequence[str]) -> bool:
        """Whether no special token is spelled, as a vocabulary may have some that are words."""
        joined = "\n".join(texts)
        return self._encode(joined) == self._encode_template(joined)

    @cached_property
    def shows_system(self) -> bool:
        """Whether the template has a place for what the system says; else it is told in the user's turn."""
        chat = _Marked((Message("system", "Be brief."), Message("user", "What is rain?")), ())
        try:
            _, places = chat.found(self._render(chat.messages, None))
        except ModelNotSupportedError:
            return False
        return places == list(chat.contents)

    @cached_property
    def answers_itself(self) -> bool:
        """Whether the template opens another turn of the assistant after one of its own."""
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
        """Whether the template shows tools, their replies, and calls as ``rain_llm.tools`` writes them.

        Models whose own calls look otherwise (special tokens as of Llama 3 and Mistral, where an answer ends
        here; Python; XML) are told of tools in words, and so are those whose template knows of none.
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
        _, opened, rest = written[2].partition(OPENING)  # between what the assistant says and the reply
        try:
            _, calls = read(opened + rest.partition(CLOSING)[0] + CLOSING)
        except ValueError:
            return False
        return calls == (replace(call, id=""),)


class _Marked:
    """A chat and its tools as a template takes them, with marks, words that nobody can guess, for texts.

    Attributes:
        messages: of the chat. tools: None if there are none.
        texts: that have a mark. contents: places in ``texts`` of the messages' contents, with their roles.
        unmarked: texts that were left as they are.
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
        """Return what stands between the marks of a text, and the places in ``texts`` of the marks."""
        parts = re.split(rf"{self._secret}x(\d+)x", text)
        return parts[::2], [int(place) for place in parts[1::2]]

    def _message(self, message: Message) -> dict[str, Any]:
        content = quoted(message.content) if message.role == "tool" else message.content
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if content or not message.tool_calls:  # templates ask whether anything was said beside the calls
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
        """Return a JSON value with marks for its texts: the same text has the same mark."""
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
