"""Models on servers in this process whose replies a test changes, and what a valid answer is."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import math
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rain_llm.errors import (
    ServerError,
)
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.models.tokenizer import Tokenizer
from rain_llm.requests import Sample, Samples, Score
from rain_llm.settings import ModelSettings
from rain_llm.types import Message
from tests.servers import babble
from tests.servers.inside import Inside

KEY = "sk-Do/not+tell=7f3a"
URL = "http://server-"
DIALECTS = ("vllm", "llama")
SIZE = babble.SIZE


Connect = Callable[..., tuple[CompletionsModel, Inside]]


def connecting(tokenizer: Tokenizer) -> Iterator[Connect]:
    """Connect to a server of a dialect in this process, whose replies may be changed from the start."""
    patched = pytest.MonkeyPatch()
    import ssl

    context = ssl.create_default_context()
    patched.setattr("httpx.create_ssl_context", lambda: context)
    patched.setattr(Tokenizer, "load", lambda *_, **__: tokenizer)
    servers: dict[str, Inside] = {}

    def client(*_: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.MockTransport(lambda sent: servers[sent.url.host].answer(sent))
        )

    patched.setattr("rain_llm.models.servers.attempt.new_client", client)

    def make(dialect: str, change: Any = None, **changes: Any) -> tuple[CompletionsModel, Inside]:
        server = Inside(dialect)
        server.change = change
        host = f"server-{len(servers)}"
        servers[host] = server
        limits = {"attempts": 1, "read_s": 2.0, "total_s": 4.0} | changes.pop("limits", {})
        chosen = {"base_url": f"http://{host}", "api_key": KEY, "limits": limits} | changes
        if dialect == "vllm":
            chosen["tokenizer"] = "there"
        return CompletionsModel(ModelSettings(**chosen)), server

    yield make
    patched.undo()


@contextlib.contextmanager
def changing(server: Inside, change: Any) -> Iterator[None]:
    """Change its replies meanwhile."""
    server.change = change
    try:
        yield
    finally:
        server.change = None


# --- what is asked, and what a valid answer is ------------------------------------------------------------

REQUEST = Sample(tuple(babble.encode("Good day people, it is")), n=3, max_tokens=4, seed=5)
REQUESTS = {
    "sample": REQUEST,
    "greedy": replace(REQUEST, greedy_first=True),
    "ends": replace(REQUEST, n=2, max_tokens=9, ends=(".", "!")),
    "ranked": replace(REQUEST, n=5, max_tokens=1, ranked=True),
    "document": replace(REQUEST, n=2, max_tokens=30, schema='{"const":{"a":1}}'),
    "score": Score(REQUEST.prefix, ((9,), (9, 8), (70,))),
}


def asked(model: CompletionsModel, kind: str) -> None:
    """Ask once, and check that what comes is what was asked for."""
    request = REQUESTS.get(kind)
    if isinstance(request, Sample):
        (reply,) = model.sample([request])
        check_samples(model, request, reply)
    elif isinstance(request, Score):
        (scores,) = model.score([request])
        assert len(scores.logprobs) == len(request.options)
        assert all(math.isfinite(logprob) and logprob <= 0.1 for logprob in scores.logprobs)
        assert scores.model_tokens >= 0 <= scores.forwards
    else:
        text = f"Good day {time.monotonic()}"  # which is remembered otherwise
        chat = [Message("user", text)]
        tokens = model.encode(text) if kind == "encode" else model.render_chat(chat)
        assert all(type(token) is int and 0 <= token < SIZE for token in tokens)


def check_samples(model: CompletionsModel, request: Sample, reply: Samples) -> None:
    assert len(reply.continuations) == request.n
    for found in reply.continuations:
        assert len(found.tokens) == len(found.logprobs) <= request.max_tokens
        assert all(type(token) is int and 0 <= token < SIZE for token in found.tokens)
        assert all(type(logprob) is float and -9000 < logprob <= 0.01 for logprob in found.logprobs)
        assert math.isfinite(found.logprob)
        assert model.decode(found.tokens).encode()
    assert reply.model_tokens >= 0 and 0 <= reply.cached_tokens <= len(request.prefix) * 4


def refused(model: CompletionsModel, kind: str) -> ServerError:
    with pytest.raises(ServerError) as raised:
        asked(model, kind)
    checked(raised.value)
    return raised.value


def checked(error: BaseException) -> None:
    """Check that an error names the server, a cause and a remedy, briefly, printable and without the key."""
    message = str(error)
    assert message.startswith(URL)
    assert len(message) < 1000
    assert message.isprintable() and message.encode()
    if isinstance(error, ServerError):
        assert error.cause and error.remedy
    seen: BaseException | None = error
    while seen is not None:
        assert KEY not in f"{seen} {seen!r} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__


# --- changes ---------------------------------------------------------------------------------------------


Edit = Callable[[Any], Any]


def with_reply(at: str, edit: Edit) -> Any:
    """Change every reply at a path: the JSON that it holds."""

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        if path != at or good.status_code != 200:
            return None
        body = json.dumps(edit(json.loads(good.content))).replace("Infinity", "1e999")
        return httpx.Response(200, content=body.encode(), headers={"Content-Type": "application/json"})

    return change


def with_body(content: bytes, kind: str = "application/json", status: int = 200, **headers: str) -> Any:
    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        sent = {"Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.Response(status, stream=httpx.ByteStream(content), headers=sent)

    return change


def put(*path: Any) -> Edit:
    """Put the last of ``path`` at the place that the others lead to."""

    def edit(reply: Any) -> Any:
        holder = reply
        for name in path[:-2]:
            holder = holder[name]
        holder[path[-2]] = path[-1]
        return reply

    return edit


class Endless(httpx.AsyncByteStream):
    """A body that comes piece by piece; counts them."""

    def __init__(self, piece: bytes, times: int, pause_s: float = 0.0) -> None:
        self.piece = piece
        self.times = times
        self.pause_s = pause_s
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self.times):
            if self.pause_s:
                await asyncio.sleep(self.pause_s)
            self.sent += len(self.piece)
            yield self.piece


@functools.cache
def bomb() -> bytes:
    """Return 100 MB of blanks in gzip."""
    packing = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packing.compress(b" " * (1 << 20)) for _ in range(100)) + packing.flush()
