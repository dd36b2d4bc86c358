"""The scripted servers without sockets: what is sent to them is answered in the same process.

A test may change a reply before it is sent; see :class:`Inside`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx

from tests.servers.replies import Json, Llama, Refused, Vllm, events
from tests.servers.scripted import COMPLETIONS, CONTEXT, DIALECTS, SLOTS

Change = Callable[[str, httpx.Response], httpx.Response | None]
"""Gets the path and the good reply; returns another one, or None to leave it as it is."""


class Inside:
    """A server of the ``dialect``.

    Attributes:
        change: changes the replies from now on; None leaves them as they are. seen: the paths asked for.
    """

    def __init__(self, dialect: str, name: str = "scripted") -> None:
        self._speaker: Vllm | Llama = DIALECTS[dialect](name, "scripted", CONTEXT, SLOTS)
        self.change: Change | None = None
        self.seen: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        """Answer; the handler of a ``httpx.MockTransport``."""
        path = request.url.path
        self.seen.append(path)
        good = self._answer(path, json.loads(request.content) if request.content else {})
        reply = (self.change and self.change(path, good)) or good
        if not reply.is_stream_consumed:
            return reply
        return httpx.Response(
            reply.status_code, headers=reply.headers, stream=httpx.ByteStream(reply.content)
        )

    def _answer(self, path: str, body: Json) -> httpx.Response:
        if path != COMPLETIONS:
            reply = self._speaker.other(path, body)
            return httpx.Response(404) if reply is None else httpx.Response(200, json=reply)
        try:
            found = self._speaker.complete(body)
        except Refused as refused:
            return httpx.Response(refused.status, json=refused.body)
        if body.get("stream"):
            kind = {"Content-Type": "text/event-stream"}
            return httpx.Response(200, content=b"".join(events(found)), headers=kind)
        return httpx.Response(200, json=found)
