"""Say what a failed attempt means: whether to retry, the cause in words, the remedy."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from rain_llm.bounds import EVENTS
from rain_llm.errors import PromptTooLongError, ServerError
from rain_llm.models.servers.reading import Malformed, parsed
from rain_llm.models.servers.transport import Reply
from rain_llm.models.tokenizer import first_line
from rain_llm.settings import ServerLimits

FIRST_PAUSE_S = 0.2
_LONGEST_ASKED_S = 60.0  # seconds of "retry-after" that are respected
STRANGE = "check that it is one of the supported servers"
_DATA = re.compile(rb"data:([^\r\n]*)")  # of one event of a stream, at the beginning of a line
_TOO_LONG = re.compile(r"context[ _](length|size|window)", re.IGNORECASE)  # vLLM, llama-server, OpenAI
_REMEDIES = {
    401: "give the right key as api_key",
    403: "give the right key as api_key",
    404: "check base_url and the model's name",
    407: "give the proxy's user and password in its address",
}


class Refused(ServerError):
    """A request that a server rejects, and would reject again (status 3xx or 4xx)."""


class TooLong(Refused, PromptTooLongError):
    """A request that is longer than the server's context, as the server reports."""


class Failed(Exception):
    """One attempt that failed, though another may succeed.

    Attributes:
        cause: in words. remedy: in words.
        there: the server answered, with a failure or an unusable reply. busy: it answered "not now".
            Neither: there was no reply.
        pause_s: for how long it asks not to be asked again; None if it does not say.
    """

    def __init__(
        self,
        cause: str,
        remedy: str,
        there: bool = False,
        busy: bool = False,
        pause_s: float | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.there = there
        self.busy = busy
        self.pause_s = pause_s


def broken_off(error: Exception, limits: ServerLimits, patience: float) -> tuple[str, str]:
    """Return cause and remedy of an attempt without a complete reply within ``patience`` seconds."""
    said = first_line(error)
    if isinstance(error, httpx.ConnectTimeout):
        return (
            f"cannot be reached within {limits.connect_s:g} s",
            "check the address and the network, or raise limits.connect_s",
        )
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return (
            f"no complete reply within {patience:.3g} s",
            "check whether it hangs or is overloaded, or raise limits.read_s",
        )
    if isinstance(error, httpx.ConnectError | httpx.ProxyError):
        return f"cannot be reached ({said})", "start the server, or check base_url"
    return f"broke off the connection ({said})", "check the server's own log"


def remedy_of(status: int) -> str:
    """Return the remedy for a status after which no retry helps."""
    if 300 <= status < 400:
        return "give the address that it redirects to as base_url: redirects are not followed"
    return _REMEDIES.get(status, "see the message of the server, which rejects this request")


def refused(server: str, status: int, cause: str, through: str = "", around: str = "") -> Refused:
    """Make the error of a request that the server rejects.

    Args:
        server: its address.
        status: of the reply.
        cause: in words.
        through: the proxy to the server, in words; added to the cause.
        around: how to do without that proxy; added to the remedy.
    """
    if _TOO_LONG.search(cause):
        return TooLong(server, cause, "shorten the prompt, or set model.context_length to the server's")
    return Refused(server, cause + through, remedy_of(status) + around)


def said(reply: Reply) -> str:
    """Return the error message in a reply; "" if it holds none."""
    try:
        body = parsed(reply.body)
    except Malformed:
        return reply.kind if "content-type" in reply.headers else "no JSON"
    error = body.get("error", body) if isinstance(body, dict) else body
    found = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return found if isinstance(found, str) else json.dumps(found) if found else ""


def pause_of(reply: Reply) -> float | None:
    """Return the seconds of the header "retry-after", within bounds; None without a number there."""
    try:
        return min(_LONGEST_ASKED_S, max(FIRST_PAUSE_S, float(reply.headers["retry-after"])))
    except (KeyError, ValueError):  # or a date
        return None


def content_of(reply: Reply) -> Any:
    """Return the JSON of a reply of status 200, or the list of a stream's events.

    Raises:
        Malformed: the reply is neither.
    """
    return _events(reply.body) if reply.kind == "text/event-stream" else parsed(reply.body)


def _events(body: bytes) -> list[Any]:
    """Return the events of a complete stream (server-sent events), which must end with ``[DONE]``."""
    if body.count(b"data:") > EVENTS:
        raise Malformed(f"a stream of more than {EVENTS:,} events")
    lines = (line for line in _DATA.finditer(body) if line.start() == 0 or body[line.start() - 1] in b"\r\n")
    data = [line[1].strip() for line in lines]
    if b"[DONE]" not in data:
        raise Malformed("a stream without an end")
    found: list[Any] = parsed(b"[" + b",".join(line for line in data if line != b"[DONE]") + b"]")
    return found
