"""Read messages in the form of OpenAI's API.

Only text can be judged, so only text is accepted: an image in a user's message is an error, since the answer
would depend on something that the judge has not read. In a tool's reply or an assistant's turn a marker
replaces the image, so that an agent can continue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rain_llm.errors import PromptError
from rain_llm.redaction import brief
from rain_llm.types import Message, ToolCall

_ROLES: dict[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",  # before there were tools
}
_TEXTS = (None, "text", "text-plain", "input_text", "output_text")
_MARKS = {"cachePoint", "cache_control"}  # parts with only these keys are cache marks
_BYTES = ("base64", "blob", "bytes", "data", "file_data")  # keys of binary data
_DATA_URL = re.compile(r"data:[^,\s]{0,200};base64,")
_LONGEST_SHORT = 64  # characters; shorter values are taken for text
_MEDIA = re.compile(r"(?:input_)?(image|audio|video|file|document|media)(?:_url)?")


def media_kind(block: Mapping[str, Any]) -> str:
    """Return the kind of media in a content block, such as "image"; "": it may be text."""
    found = _MEDIA.fullmatch(str(block.get("type")))
    return found[1] if found else ""


def left_out(kind: str) -> str:
    """Return the marker that replaces media."""
    return f"[{kind} left out]"


def messages_of(turns: Sequence[Any]) -> list[Message]:
    """Return the messages of a chat; dicts are read in the form of OpenAI's API.

    Raises:
        PromptError: one is not a message, or holds something other than text.
    """
    names: dict[str, str] = {}  # names of calls by id: a reply may have only the id
    messages = []
    for turn in turns:
        message = _read(turn, names) if isinstance(turn, Mapping) else _checked(turn)
        names |= {call.id: call.name for call in message.tool_calls}
        messages.append(message)
    return messages


def replies_of(messages: Sequence[Message]) -> list[str]:
    """Return the tools' replies after the user's last turn; if there are none, all of the chat's."""
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=-1)
    replies = [(place, message.content) for place, message in enumerate(messages) if message.role == "tool"]
    return [reply for place, reply in replies if place > last] or [reply for _, reply in replies]


def _checked(turn: object) -> Message:
    roles = dict.fromkeys(_ROLES.values())
    if isinstance(turn, Message) and turn.role in roles and isinstance(turn.content, str):
        return turn
    what = brief(turn)
    if isinstance(turn, Message):
        what = f"Message({brief(turn.role)}, content={brief(turn.content)})"
    raise PromptError(
        f"a chat holds {what}: give rain_llm.Message(role, text), or {{'role': ..., 'content': ...}}, "
        f"the role one of {', '.join(roles)}"
    )


def _read(turn: Mapping[str, Any], names: Mapping[str, str]) -> Message:
    role = turn.get("role")
    if role not in _ROLES:
        raise PromptError(
            f"a message has the role {brief(role)}: there are {', '.join(_ROLES)}, as in "
            "{'role': 'user', 'content': 'Hello'}"
        )
    calls = tuple(_call(call) for call in turn.get("tool_calls") or ())
    if old := turn.get("function_call"):
        calls += (_call({"function": old}),)
    content = turn.get("content")
    if content is None and isinstance(turn.get("refusal"), str):
        content = turn["refusal"]
    if content is None and not calls:
        raise PromptError(f"a message of the role {role!r} has no content: give {{'content': ...}}")
    text = _text(content, role)
    if _ROLES[role] != "tool":
        return Message(_ROLES[role], text, calls)
    id = turn.get("tool_call_id") or ""
    return Message("tool", text, name=turn.get("name") or names.get(id, ""), tool_call_id=id)


def _text(content: object, role: str) -> str:
    """Return the text of a message: the words of an assistant's turn, all data of a tool's reply as JSON.

    Raises:
        PromptError: another turn holds media, which neither the model nor the judge can read.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if (
            isinstance(part, Mapping)
            and part.get("type") == "refusal"
            and isinstance(part.get("refusal"), str)
        ):
            if part["refusal"] not in texts:  # our own refusals are there as text, too
                texts.append(part["refusal"])
        elif (words := _words(part, role)) is not None:
            texts.append(words)
    return "".join(texts)


def is_readable(part: object) -> bool:
    """Return whether a part of a message is text or a cache mark."""
    if not isinstance(part, Mapping):
        return isinstance(part, str)
    return part.keys() <= _MARKS or (part.get("type") in _TEXTS and isinstance(part.get("text"), str))


def _words(part: object, role: str) -> str | None:
    """Return the text of a part of a message; None: it has none."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise PromptError(f"a message of the role {role!r} holds a {type(part).__name__}: give text")
    if is_readable(part):
        return str(part["text"]) if "text" in part else None
    if role == "assistant":  # reasoning, calls and searches of another model are skipped
        return left_out(kind) if (kind := media_kind(part)) else None
    if _ROLES[role] == "tool":
        return _data(part)
    raise PromptError(
        f"a message of the role {role!r} holds a part of the type {brief(part.get('type'))}: "
        "only text can be judged; leave it out, or describe it in words"
    )


def _data(part: Mapping[str, Any]) -> str:
    """Return data of a tool's reply as JSON, with markers for media."""
    try:
        read = _without_media(part)
        return read if isinstance(read, str) else json.dumps(read, ensure_ascii=False, default=str)
    except RecursionError:
        return left_out(str(part.get("type")))


def _without_media(value: Any) -> Any:
    if isinstance(value, Mapping):
        if kind := media_kind(value):
            return left_out(kind)
        return {key: _without_bytes(key, _without_media(part)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_media(part) for part in value]
    return left_out("data") if isinstance(value, bytes | bytearray) else value


def _without_bytes(key: object, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_long = len(value) > _LONGEST_SHORT and " " not in value
    return left_out("data") if (key in _BYTES and is_long) or _DATA_URL.match(value) else value


def _call(call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise PromptError(f"a message holds a tool call that cannot be read: {brief(call)}")
    name, arguments = function.get("name"), function.get("arguments", {})
    try:
        read = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        if not isinstance(name, str) or not isinstance(read, Mapping):
            raise ValueError("a call has a name, and as arguments a JSON object")
    except (ValueError, RecursionError) as error:
        raise PromptError(f"a message holds a call of {name!r:.140} that cannot be read: {error}") from error
    return ToolCall(name, read, str(call.get("id") or ""))
