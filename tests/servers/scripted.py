"""A completions server without a neural network, which answers as vLLM or llama-server and fails on demand.

``python -m tests.servers.scripted --port 8080 --dialect llama`` runs it until it is killed;
``scripted_server()`` is the context manager of the tests. ``GET /_stats`` tells what was asked of it,
``GET /_prompts`` the last prompts; ``POST /_control`` says how it fails from now on::

    {"fault": NAME or null, "times": how often, "after": how many requests are answered well before,
     "path": which requests, "retry_after": seconds, of 429, "delay": seconds before every completion,
     "forget": true to count anew}

    500, 503, 429        that status
    refuse               400
    html                 a proxy's page, status 200
    wrong_json           JSON that is no completion
    hang                 never answers
    trickle              a byte every 0.2 s
    garbled              says that it is compressed, and is not
    cut                  closes in the middle of the body
    cut_stream           ends a stream before its end
    clip                 reads the last half of the prompt only, and says so
    clip_output          draws half as many tokens as were asked for
    ignore_n             one continuation
    ignore_bias          no logit bias
    ignore_schema        prose where a document was asked for
    no_labels            no logprob_token_ids
    no_ids               tells no token ids
    abort                finish_reason "abort"

Every error repeats the Authorization header, as no server should.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Literal

from tests.servers.faults import asked, told
from tests.servers.replies import Json, Llama, Refused, Vllm, events

if TYPE_CHECKING:
    from tests.servers.process import Server

COMPLETIONS = "/v1/completions"
CONTEXT = 2048
SLOTS = 4
DIALECTS: dict[str, type[Vllm | Llama]] = {"vllm": Vllm, "llama": Llama}


# --- for tests --------------------------------------------------------------------------------------------


def scripted_server(
    dialect: Literal["vllm", "llama"] = "vllm",
    *,
    name: str = "scripted",
    key: str | None = None,
    context: int = CONTEXT,
    slots: int = SLOTS,
    delay: float = 0.0,
    fault: str | None = None,
    root: str = "scripted",
    vocabulary: int | None = None,
    port: int | None = None,
) -> Server:
    """Return a scripted server that runs while its context is open.

    Args:
        dialect: whose way to answer.
        name: the model's name.
        key: the bearer token that it wants.
        context: tokens of a prompt and its continuation.
        slots: of llama-server: the most continuations of a request.
        delay: seconds before every completion.
        fault: how it fails from the start.
        root: where it says that the model's files are.
        vocabulary: of llama-server: how many tokens it reports.
        port: where it listens; None takes a free port.
    """
    from tests.servers.process import Server  # httpx would double the start of the server itself

    command = [sys.executable, "-m", "tests.servers.scripted", "--port", "{port}", "--dialect", dialect]
    command += ["--name", name, "--context", str(context), "--slots", str(slots), "--delay", str(delay)]
    command += ["--root", root]
    command += ["--key", key] if key else []
    command += ["--fault", fault] if fault else []
    command += ["--vocabulary", str(vocabulary)] if vocabulary else []
    return Server(command, port=port)


def control(server: Server, fault: str | None = None, **how: Any) -> None:
    """Say how it fails from now on; without a fault, no more."""
    _call(server, "POST", "/_control", {"fault": fault, **how})


def stats(server: Server) -> Json:
    """Return what was asked of it: see ``Stats``; ``requests`` are counted by path."""
    found: Json = _call(server, "GET", "/_stats")
    return found


def prompts(server: Server) -> list[list[int]]:
    """Return the last 1000 prompts, by token ids."""
    found: list[list[int]] = _call(server, "GET", "/_prompts")
    return found


def _call(server: Server, method: str, path: str, body: Json | None = None) -> Any:
    with contextlib.closing(HTTPConnection(server.url.removeprefix("http://"), timeout=10)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        assert reply.status == HTTPStatus.OK, reply.read()
        return json.loads(reply.read())


# --- the server -------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """How it fails.

    Attributes:
        times: how often yet; None: always. after: requests that are answered well before.
        retry_after: seconds, of 429.
    """

    name: str | None = None
    times: int | None = None
    after: int = 0
    path: str = COMPLETIONS
    retry_after: float = 1.0

    def strikes(self, path: str) -> str | None:
        """Return the name of the fault if this request meets it."""
        if self.name is None or path != self.path or self.times == 0:
            return None
        if self.after > 0:
            self.after -= 1
            return None
        if self.times is not None:
            self.times -= 1
        return self.name


@dataclass
class Stats:
    """What was asked.

    Attributes:
        requests: by path. in_flight, most_in_flight: completions that are being answered.
        disconnects: clients that went before their answer. connections: open now.
        prompts: in all completions.
    """

    requests: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    disconnects: int = 0
    connections: int = 0
    prompts: int = 0


@dataclass
class Service:
    """What all connections share."""

    speaker: Vllm | Llama
    key: str | None
    delay: float
    fault: Fault
    stats: Stats = field(default_factory=Stats)
    seen: deque[Any] = field(default_factory=lambda: deque(maxlen=1000))

    def own(self, path: str, body: Json) -> Any:
        """Answer the tests."""
        if path == "/_control":
            self.delay = body.pop("delay", self.delay)
            if body.pop("forget", False):
                self.stats = Stats(connections=self.stats.connections)
                self.seen.clear()
            self.fault = Fault(body.pop("fault", None), **body)
            return {}
        return list(self.seen) if path == "/_prompts" else vars(self.stats)


class Connection(asyncio.Protocol):
    """One client: reads requests, answers one after another."""

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._received = b""
        self._working: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._service.stats.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.stats.connections -= 1
        if self._working is not None and not self._working.done():
            self._service.stats.disconnects += 1
            self._working.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._next()

    def _next(self) -> None:
        while self._working is None and not self.transport.is_closing():
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            first, *lines = head.decode("latin-1").split("\r\n")
            method, path, _ = first.split(" ", 2)
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            content, self._received = rest[:length], rest[length:]
            self._answer(method, path.partition("?")[0], headers, content)

    def _answer(self, method: str, path: str, headers: dict[str, str], content: bytes) -> None:
        service = self._service
        try:
            body = json.loads(content) if content else {}
        except ValueError:
            return self._send(400, {"error": {"message": "the body is no JSON"}})
        if path.startswith("/_"):
            return self._send(200, service.own(path, body))
        service.stats.requests[path] += 1
        sent = headers.get("authorization", "")
        if path == "/health":
            return self._send(200, {"status": "ok"})
        if service.key is not None and sent != f"Bearer {service.key}":
            return self._send(401, _error(401, "wrong key", sent))
        fault = service.fault.strikes(path)
        if path == COMPLETIONS and method == "POST":
            self._work(self._complete(body, fault, sent))
        elif fault is not None:
            self._work(self._fail(fault, sent, {}))
        else:
            reply = service.speaker.other(path, body)
            self._send(
                404 if reply is None else 200, _error(404, "Not Found", "") if reply is None else reply
            )

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        self._working = asyncio.get_running_loop().create_task(work)
        self._working.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._send(500, _error(500, f"a bug of the scripted server: {error!r}", ""))
        self._next()

    # -- a completion ----------------------------------------------------------------------------------

    async def _complete(self, body: Json, fault: str | None, sent: str) -> None:
        service, counts = self._service, self._service.stats
        batch = body.get("prompt") or []
        batch = batch if batch and isinstance(batch[0], list) else [batch]
        counts.prompts += len(batch)
        service.seen += batch
        counts.in_flight += 1
        counts.most_in_flight = max(counts.most_in_flight, counts.in_flight)
        try:
            if service.delay:
                await asyncio.sleep(service.delay)
            try:
                reply = told(service.speaker.complete(asked(body, fault)), fault)
            except Refused as refused:
                return self._send(refused.status, refused.body)
            if fault is not None:
                await self._fail(fault, sent, reply, bool(body.get("stream")))
            elif body.get("stream"):
                self._stream(events(reply))
            else:
                self._send(200, reply)
        finally:
            counts.in_flight -= 1

    async def _fail(self, fault: str, sent: str, reply: Json, stream: bool = False) -> None:
        """Fail in the way of the fault; one that only changed the reply sends that."""
        if fault in ("500", "503"):
            return self._send(int(fault), _error(int(fault), "out of order", sent))
        if fault == "429":
            pause = f"Retry-After: {self._service.fault.retry_after:g}\r\n"
            return self._send(429, _error(429, "too many requests", sent), pause)
        if fault == "refuse":
            return self._send(400, _error(400, "nothing of that kind here", sent))
        if fault == "html":
            return self._send(200, b"<!DOCTYPE html><html><body>Welcome</body></html>", kind="text/html")
        if fault == "garbled":
            return self._send(200, reply, "Content-Encoding: gzip\r\n")
        if fault == "wrong_json":
            return self._send(200, {"hello": "world"})
        if fault == "hang":
            await asyncio.get_running_loop().create_future()
        whole = json.dumps(reply).encode()
        if fault == "trickle":
            self.transport.write(_head(200, "application/json", len(whole)))
            for i in range(len(whole)):
                self.transport.write(whole[i : i + 1])
                await asyncio.sleep(0.2)
        elif fault == "cut" or (fault == "cut_stream" and not stream):
            self.transport.write(_head(200, "application/json", len(whole)) + whole[: len(whole) // 2])
            self.transport.close()
        elif fault == "cut_stream":
            self._stream(events(reply)[:1])
        elif stream:
            self._stream(events(reply))
        else:
            self._send(200, reply)

    def _send(self, status: int, reply: Any, more: str = "", kind: str = "application/json") -> None:
        content = reply if isinstance(reply, bytes) else json.dumps(reply, separators=(",", ":")).encode()
        self.transport.write(_head(status, kind, len(content), more) + content)

    def _stream(self, made: Sequence[bytes]) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in made)
            + b"0\r\n\r\n"
        )


def _head(status: int, kind: str, length: int, more: str = "") -> bytes:
    first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"
    return f"{first}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def _error(status: int, message: str, sent: str) -> Json:
    return {"error": {"message": f"{message} (Authorization: {sent})", "type": "scripted", "code": status}}


async def serve(port: int, service: Service) -> None:
    """Serve on the loopback interface until SIGTERM."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, end.set)
    server = await loop.create_server(lambda: Connection(service), "127.0.0.1", port, backlog=1000)
    await end.wait()
    server.close()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dialect", choices=DIALECTS, default="vllm")
    parser.add_argument("--name", default="scripted")
    parser.add_argument("--root", default="scripted")
    parser.add_argument("--key")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--fault")
    parser.add_argument("--vocabulary", type=int)
    given = parser.parse_args()
    speaker = DIALECTS[given.dialect](given.name, given.root, given.context, given.slots)
    if given.vocabulary and isinstance(speaker, Llama):
        speaker.vocabulary = given.vocabulary
    asyncio.run(serve(given.port, Service(speaker, given.key, given.delay, Fault(given.fault))))


if __name__ == "__main__":
    main()
