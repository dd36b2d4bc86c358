"""Servers that send what no server should: a valid answer or a ServerError comes of it, within bounds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import functools
import gzip
import json
import math
import re
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm import bounds
from rain_llm.errors import (
    ModelError,
    ModelNotFoundError,
    ModelNotSupportedError,
    PromptError,
    ServerError,
    SettingsError,
)
from rain_llm.models.completions import CompletionsModel
from rain_llm.models.quoting import Quoting
from rain_llm.models.tokenizer import Tokenizer
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, Sample, Samples, Score
from tests.servers import babble
from tests.servers.inside import Inside
from tests.servers.scripted import COMPLETIONS

KEY = "sk-Do/not+tell=7f3a"
URL = "http://server-"
DIALECTS = ("vllm", "llama")
SIZE = babble.SIZE
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        -5,
        1,
        2**40,
        2**63,
        10**400,
        SIZE,
        SIZE - 1,
        1e308,
        -1e308,
        5e-324,
        0.5,
        7.5,
    ),
    *(
        math.inf,
        -math.inf,
        math.nan,
        -9999.0,
        "",
        "4096",
        "1",
        "\ud800",
        "\x1b[31m\x00",
        "x" * 5000,
        "token_id:-1",
    ),
    *([], [[]], [None], [1.5], [True], {}, {"a": None}, {"token_id:7": "x"}, [[[[[[]]]]]], [0] * 3000),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(babble.write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Tokenizer:
    return Tokenizer.load(folder)


Connect = Callable[..., tuple[CompletionsModel, Inside]]


@pytest.fixture(scope="module")
def connect(tokenizer: Tokenizer) -> Iterator[Connect]:
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

    patched.setattr("rain_llm.models.replicas.new_client", client)

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


@pytest.fixture(scope="module")
def both(connect: Connect) -> dict[str, tuple[CompletionsModel, Inside]]:
    """A model on a server of each dialect, to which nothing has happened yet."""
    return {dialect: connect(dialect) for dialect in DIALECTS}


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


# --- replies that were changed at random ------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value of a reply."""
    yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, child in list(children)[:12]:
        yield from places(child, (*path, name))


def changed(reply: Any, where: int, how: str, odd: Any) -> Any:
    """Return a copy of a reply with one of its values changed."""
    paths = list(places(reply))
    path = paths[where % len(paths)]
    if not path:
        return odd
    reply = copy.deepcopy(reply)
    holder = reply
    for name in path[:-1]:
        holder = holder[name]
    if how == "delete":
        del holder[path[-1]]
    elif how == "repeat" and isinstance(holder, list):
        holder.insert(path[-1], holder[path[-1]])
    elif how == "add" and isinstance(holder[path[-1]], list):
        holder[path[-1]].append(odd)
    else:
        holder[path[-1]] = odd
    return reply


MUTATIONS = st.tuples(
    st.integers(0, 10_000),
    st.sampled_from(["replace", "replace", "replace", "delete", "repeat", "add", "bytes", "cut", "twice"]),
    st.sampled_from(ODD),
)


def mutated(response: httpx.Response, where: int, how: str, odd: Any) -> httpx.Response:
    body = response.content
    stream = body.startswith(b"data:")
    if how == "cut":
        body = body[: where % (len(body) + 1)]
    elif how == "bytes":
        place = where % (len(body) + 1)
        body = body[:place] + (b"\xff", b'"', b"}", b"9", b"-", b"\x00")[where % 6] + body[place + 1 :]
    elif how == "twice":
        body = body.replace(b'":', b'":null,"model":', 1)
    elif stream:
        lines = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line]
        listed = changed([json.loads(line) for line in lines[:-1]], where, how, odd)
        listed = listed if isinstance(listed, list) else [listed]
        body = (
            b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in listed) + b"data: [DONE]\n\n"
        )
    else:
        body = json.dumps(changed(json.loads(body), where, how, odd)).encode()
        body = body.replace(b"Infinity", b"1e999")
    return httpx.Response(200, content=body, headers={"Content-Type": response.headers["Content-Type"]})


@settings(max_examples=250)
@given(
    st.sampled_from(DIALECTS), st.sampled_from([*REQUESTS, "encode", "chat"]), st.integers(0, 3), MUTATIONS
)
def test_a_changed_reply_gives_a_valid_answer_or_a_server_error(
    both: dict[str, tuple[CompletionsModel, Inside]],
    dialect: str,
    kind: str,
    after: int,
    how: tuple[int, str, Any],
):
    model, server = both[dialect]
    counted = iter(range(10_000))

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        return mutated(good, *how) if good.status_code == 200 and next(counted) == after else None

    began = time.monotonic()
    try:
        with changing(server, change):
            asked(model, kind)
    except ServerError as error:
        checked(error)
    except (PromptError, ModelNotSupportedError) as error:  # well-formed, and of no use for this text
        assert kind in ("encode", "chat")
        assert "special token" in str(error) or "chat template" in str(error)
    assert time.monotonic() - began < 2


@settings(max_examples=80)
@given(st.sampled_from(DIALECTS), st.integers(0, 7), MUTATIONS)
def test_a_changed_reply_at_the_start_gives_a_model_or_a_server_error(
    connect: Connect, dialect: str, after: int, how: tuple[int, str, Any]
):
    counted = iter(range(10_000))

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        return mutated(good, *how) if good.status_code == 200 and next(counted) == after else None

    began = time.monotonic()
    try:
        model, _ = connect(dialect, change)
    except (ServerError, ModelNotFoundError) as error:
        checked(error)
    except PromptError as error:
        assert dialect == "llama" and "special token" in str(error)
    else:
        assert 1 <= model.context_length <= bounds.CONTEXT
    assert time.monotonic() - began < 2


# --- one change at a time -----------------------------------------------------------------------------------

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


NO_NAMES: list[Any] = ["\ud800", 7, None, "x" * 10**5, []]
NO_LENGTHS: list[Any] = [-5, 0, "4096", True, 10**12, math.inf]
NO_IDS: list[Any] = [2**40, -1, SIZE, True, 7.0, "7"]
NO_LOGPROBS: list[Any] = [math.inf, -math.inf, math.nan, "-1.0", True, None, 7.5, -1e308, 10**400, [], {}]
CHOICE = ("choices", 0)
CONTENT = (*CHOICE, "logprobs", "content", 0)
ONE_CHANGE: list[tuple[str, str, Edit]] = [
    *(("vllm", "sample", put(*CHOICE, "token_ids", 0, odd)) for odd in (*NO_IDS, [7], 10**400)),
    *(("vllm", "sample", put(*CHOICE, "logprobs", "token_logprobs", 0, odd)) for odd in NO_LOGPROBS),
    ("vllm", "sample", put("choices", [])),
    ("vllm", "sample", put("choices", {})),
    ("vllm", "sample", put("choices", None)),
    ("vllm", "sample", put("choices", [None] * 3)),
    ("vllm", "sample", lambda reply: reply | {"choices": reply["choices"] * 2}),
    ("vllm", "sample", put(*CHOICE, "index", 1)),
    ("vllm", "sample", put(*CHOICE, "index", "0")),
    ("vllm", "sample", put(*CHOICE, "logprobs", None)),
    ("vllm", "sample", put(*CHOICE, "logprobs", "token_logprobs", [-1.0])),
    ("vllm", "sample", put(*CHOICE, "token_ids", list(range(3, 100)))),
    ("vllm", "sample", put(*CHOICE, "finish_reason", {"a": 1})),
    ("vllm", "sample", put("model", "\ud800" * 3)),
    ("vllm", "sample", put("model", KEY)),
    ("vllm", "sample", put("usage", "prompt_tokens", True)),
    ("vllm", "sample", put("usage", [])),
    ("vllm", "sample", put("usage", "prompt_tokens_details", {"cached_tokens": 2**40})),
    ("vllm", "sample", put("usage", "prompt_tokens_details", {"cached_tokens": -5})),
    ("vllm", "score", put(*CHOICE, "logprobs", "top_logprobs", 0, {"token_id:9": math.inf})),
    (
        "vllm",
        "ranked",
        put(*CHOICE, "logprobs", "top_logprobs", 0, {f"token_id:{2**40 + i}": -1.0 for i in range(9)}),
    ),
    *(("llama", "sample", put(*CONTENT, "id", odd)) for odd in NO_IDS),
    *(("llama", "sample", put(*CONTENT, "logprob", odd)) for odd in (math.inf, math.nan, "-1", True, 7.5)),
    ("llama", "sample", put(*CONTENT, "bytes", [300])),
    ("llama", "sample", put(*CONTENT, "bytes", "abc")),
    ("llama", "sample", put(*CHOICE, "logprobs", "content", "abc")),
    ("llama", "sample", put("usage", "completion_tokens", 10**400)),
    *(("llama", "score", put(*CONTENT, "top_probs", 0, "prob", odd)) for odd in (math.inf, -0.5, True, "1")),
    ("llama", "score", put(*CONTENT, "logprob", math.inf)),
    ("llama", "ranked", put(*CONTENT, "top_logprobs", 0, "id", 2**40)),
    ("llama", "ranked", put(*CONTENT, "top_logprobs", [])),
]


@pytest.mark.parametrize(("dialect", "kind", "edit"), ONE_CHANGE)
def test_a_value_that_cannot_be_is_a_server_error(
    both: dict[str, tuple[CompletionsModel, Inside]], dialect: str, kind: str, edit: Edit
):
    model, server = both[dialect]

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        try:
            found: httpx.Response | None = with_reply(COMPLETIONS, edit)(path, good)
            return found
        except (KeyError, IndexError):  # another kind of request of the same call
            return None

    with changing(server, change):
        refused(model, kind)


@pytest.mark.parametrize(("path", "odd"), [("/tokenize", odd) for odd in (2**40, -1, True, 7.0, "7", None)])
def test_tokens_of_a_text_that_are_none(
    both: dict[str, tuple[CompletionsModel, Inside]], path: str, odd: Any
):
    model, server = both["llama"]
    with changing(server, with_reply(path, put("tokens", [odd]))):
        refused(model, "encode")
    with changing(server, with_reply("/apply-template", put("prompt", odd if odd != "7" else "\ud800"))):
        refused(model, "chat")


def test_a_text_has_no_more_tokens_than_its_length_allows(both: dict[str, tuple[CompletionsModel, Inside]]):
    """Texts are remembered, by the thousand."""
    model, server = both["llama"]
    with changing(server, with_reply("/tokenize", put("tokens", [7] * 10_000))):
        assert "at most" in refused(model, "encode").cause


@pytest.mark.parametrize("host", ["ex☃ample", "xn--a.com", "a\x00b", "256.1.1.1", "\ud800.com"])
def test_an_address_that_is_none_is_an_error_of_the_settings(connect: Connect, host: str):
    with pytest.raises(SettingsError, match="write it as http://host:port") as raised:
        connect("vllm", base_url=f"http://{host}")
    assert str(raised.value).isprintable() and host not in str(raised.value)


MODEL = ("data", 0)
N_CTX = ("default_generation_settings", "n_ctx")
AT_START: list[tuple[str, str, Edit]] = [
    *(("vllm", "/v1/models", put(*MODEL, "max_model_len", odd)) for odd in NO_LENGTHS),
    *(("vllm", "/v1/models", put(*MODEL, "id", odd)) for odd in NO_NAMES),
    ("vllm", "/v1/models", put(*MODEL, "root", "\ud800")),
    ("vllm", "/v1/models", put("data", [{"id": f"model {i}"} for i in range(100_000)])),
    ("vllm", "/v1/models", put("data", [{"id": i} for i in range(bounds.MODELS + 1)])),
    ("vllm", "/v1/models", put("data", [None])),
    ("vllm", "/v1/models", put("data", {})),
    ("vllm", "/v1/models", lambda reply: [[[reply]]]),
    ("vllm", "/tokenize", put("tokens", [2**40])),
    ("vllm", "/tokenize", put("tokens", list(range(3, 10_000)))),
    *(("llama", "/props", put("total_slots", odd)) for odd in (-5, "4", True, 10**12, 1.5)),
    *(("llama", "/props", put(*N_CTX, odd)) for odd in (-5, 0, "4096", True, 10**12)),
    ("llama", "/props", put("default_generation_settings", "none")),
    *(
        ("llama", "/v1/models", put(*MODEL, "meta", {"n_vocab": odd}))
        for odd in (10**9, -1, 0, True, "400", None, 1e999)
    ),
    ("llama", COMPLETIONS, put(*CONTENT, "top_logprobs", [{"id": 2**40, "bytes": []}])),
    ("llama", COMPLETIONS, put(*CONTENT, "top_logprobs", [{"id": 0, "bytes": [2**40]}])),
]


@pytest.mark.parametrize(("dialect", "path", "edit"), AT_START)
def test_what_a_server_says_of_itself_is_bounded(connect: Connect, dialect: str, path: str, edit: Edit):
    with pytest.raises(ServerError) as raised:
        connect(dialect, with_reply(path, edit))
    checked(raised.value)


def test_many_models_are_listed_in_part(connect: Connect):
    names = [{"id": f"{KEY} \x07 model {i}", "max_model_len": 100} for i in range(900)]
    with pytest.raises(ModelNotFoundError, match="and 880 more: give one of them as model") as raised:
        connect("vllm", with_reply("/v1/models", put("data", names)))
    assert KEY not in str(raised.value) and str(raised.value).isprintable()
    assert len(str(raised.value)) < 2000


DEEP = b"[" * 100_000
BODIES: dict[str, Any] = {
    "empty": with_body(b""),
    "blanks": with_body(b"  \n"),
    "truncated": with_body(b'{"choices": [{"ind'),
    "html": with_body(b"<!DOCTYPE html><html>Welcome</html>", "text/html"),
    "a page that says it is JSON": with_body(b"<html></html>"),
    "JSON that says it is a stream": with_body(b'{"choices": []}', "text/event-stream"),
    "deep": with_body(DEEP),
    "deep and closed": with_body(DEEP + b"]" * 100_000),
    "a number of 10,000 digits": with_body(b'{"usage": 1' + b"0" * 10_000 + b"}"),
    "NaN": with_body(b'{"choices": NaN}'),
    "no UTF-8": with_body(b'{"model": "\xff\xfe"}'),
    "UTF-16": with_body('{"choices": []}'.encode("utf-16")),
    "a field twice": with_body(b'{"choices": [], "choices": []}'),
    "null": with_body(b"null"),
    "a number": with_body(b"7"),
    "no stream": with_body(b"data: {}\n\n", "text/event-stream"),
    "a stream of many lines": with_body(b"ab\n" * 2_000_000 + b"data: [DONE]\n\n", "text/event-stream"),
    "a stream of many events": with_body(b"data:1\n" * 600_000 + b"data: [DONE]\n\n", "text/event-stream"),
    "a broken stream": with_body(b"data: {\n\ndata: [DONE]\n\n", "text/event-stream"),
    "a stream of an error": with_body(
        b'data: {"error": {"message": ["\\u001b[31m"]}}\n\ndata: [DONE]\n\n', "text/event-stream"
    ),
    "another encoding": with_body(b'{"choices": []}', "application/json; charset=rot13"),
    "brotli": with_body(b"\x0b\x02\x80{}\x03", content_encoding="br"),
    "packed twice": with_body(gzip.compress(gzip.compress(b"{}")), content_encoding="gzip, gzip"),
    "not packed": with_body(b"{}", content_encoding="gzip"),
    "packed and cut": with_body(gzip.compress(b"{}" * 999)[:20], content_encoding="gzip"),
    "a redirect": with_body(b"", status=307, location=f"http://elsewhere.test/{KEY}"),
    "no content": with_body(b"", status=204),
    "a refusal of many lines": with_body(b'{"error": "\\u001b[2J\\n' + b"x" * 9999 + b'"}', status=400),
    "a refusal of 200 kB": with_body(b'{"error": "' + b"x" * 200_000 + b'"}', status=400),
    "a refusal that is packed wrongly": with_body(b"x", status=500, content_encoding="gzip"),
    "half a surrogate": with_body(b'{"detail": [{"msg": "\\ud800"}]}', status=422),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_cannot_be_read_is_a_server_error(
    both: dict[str, tuple[CompletionsModel, Inside]], connect: Connect, dialect: str, body: str
):
    model, server = both[dialect]
    for kind in ("sample", "score") + (("encode", "chat") if dialect == "llama" else ()):
        with (
            changing(server, BODIES[body]),
            pytest.raises((ServerError, ModelNotSupportedError)) as raised,
        ):
            asked(model, kind)
        assert "elsewhere" not in str(raised.value)
        assert isinstance(raised.value, ServerError) or kind == "chat"
    with pytest.raises(ServerError) as raised:
        connect(dialect, BODIES[body])
    checked(raised.value)


def test_a_reply_that_is_packed_is_unpacked(both: dict[str, tuple[CompletionsModel, Inside]]):
    model, server = both["vllm"]
    for packed, encoding in ((gzip.compress, "gzip"), (zlib.compress, "deflate")):

        def change(
            path: str, good: httpx.Response, packed: Any = packed, encoding: str = encoding
        ) -> httpx.Response:
            headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
            return httpx.Response(200, headers=headers, stream=httpx.ByteStream(packed(good.content)))

        with changing(server, change):
            asked(model, "sample")
            asked(model, "score")


def test_a_line_separator_ends_no_event(both: dict[str, tuple[CompletionsModel, Inside]]):
    """As str.splitlines would."""
    model, server = both["llama"]

    def change(path: str, good: httpx.Response) -> httpx.Response | None:
        if not good.content.startswith(b"data"):
            return None
        body = good.content.replace(b'"text": "', b'"text": "\xe2\x80\xa8')
        assert body != good.content
        return httpx.Response(200, content=body, headers=good.headers)

    with changing(server, change):
        asked(model, "ends")


# --- size -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("path", ["/v1/models", "/props", "/tokenize", "/apply-template", COMPLETIONS])
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("packed", [False, True])
def test_no_reply_is_read_beyond_its_bound(connect: Connect, path: str, status: int, packed: bool):
    stream = Endless(bomb() if packed else b" " * (1 << 20), 1200)

    def change(asked: str, good: httpx.Response) -> httpx.Response | None:
        if asked != path:
            return None
        headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if packed else {})
        return httpx.Response(status, headers=headers, stream=stream)

    with pytest.raises(ServerError) as raised:
        connect("llama", change)[0].render_chat([Message("user", "Hi")])
    checked(raised.value)
    most = bounds.ERROR_BYTES if status == 500 else bounds.REPLY_BYTES
    assert stream.sent <= most + (2 << 20)


def test_a_length_that_is_too_large_is_refused_before_it_comes(connect: Connect):
    stream = Endless(b" ", 10)

    def change(path: str, good: httpx.Response) -> httpx.Response:
        return httpx.Response(200, headers={"Content-Length": str(10**12)}, stream=stream)

    with pytest.raises(ServerError, match="sent more than 4,194,304 bytes"):
        connect("llama", change)
    assert not stream.sent


def test_a_body_that_trickles_ends_in_time(connect: Connect):
    def change(path: str, good: httpx.Response) -> httpx.Response:
        return httpx.Response(200, stream=Endless(b" ", 10**6, 0.05))

    began = time.monotonic()
    with pytest.raises(ServerError, match=r"no complete reply within 0\.3 s"):
        connect("llama", change, limits={"read_s": 0.3})
    assert time.monotonic() - began < 2


MEMORY = """
import resource, sys
from tests.servers.inside import Inside
import httpx
from rain_llm.errors import ServerError
from rain_llm.models import replicas
from rain_llm.models.completions import CompletionsModel
from rain_llm.settings import ModelSettings
from tests.test_hostile_servers import Endless, bomb
settings = ModelSettings(base_url="http://server.test", limits={"attempts": 1})
server = Inside("llama")
replicas.new_client = lambda *_: httpx.AsyncClient(transport=httpx.MockTransport(server.answer))
model = CompletionsModel(settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
packed = bomb()
values = b'{"a":1},' * (1 << 17)
for kind, piece in (("", b"x" * (1 << 20)), ("gzip", packed), ("", values)):
    def change(path, good):
        headers = {"Content-Encoding": kind} if kind else {}
        return httpx.Response(200, headers=headers, stream=Endless(piece, 1200))
    server.change = change
    try:
        model.encode(kind + str(len(piece)))
        sys.exit("was read")
    except ServerError as error:
        print(error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before
print(grown, "MB")
sys.exit(grown > 300)
"""


def test_a_reply_of_more_than_a_gigabyte_takes_little_memory():
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, timeout=60, cwd=Path(__file__).parents[1]
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)


# --- the key ----------------------------------------------------------------------------------------------

ECHOES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in upper case": str.upper,
    "as a header": lambda key: f"Authorization: Bearer {key}",
    "percent-encoded in part": lambda key: quote(key, safe=""),
    "percent-encoded wholly": lambda key: "".join(f"%{ord(sign):02X}" for sign in key),
    "in a query": lambda key: f"http://server.test/?key={quote(key)}&more",
    "escaped as JSON": lambda key: "".join(f"\\u{ord(sign):04x}" for sign in key),
    "escaped for HTML": lambda key: "".join(f"&#{ord(sign)};" for sign in key),
    "in JSON": lambda key: json.dumps({"key": key}).replace("/", "\\/"),
    "split by blanks": " ".join,
    "split over lines": lambda key: key[:5] + "\r\n  " + key[5:],
    "split by nothing that shows": "\u200b".join,
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64 with a prefix": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "in base64 between others": lambda key: base64.urlsafe_b64encode(f"user:x{key}more".encode()).decode(),
    "as hex digits": lambda key: key.encode().hex(),
    "many times": lambda key: key * 200,
}


FORMS: list[Callable[[str], str]] = [
    lambda sign: f"%{ord(sign):02x}",
    lambda sign: f"\\u{ord(sign):04x}",
    lambda sign: f"&#{ord(sign)};",
]


def leaks(text: str) -> bool:
    """Whether the key can be read from a text."""
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    spelled = {re.sub(r"[^a-z0-9]", "", one.lower()) for one in (KEY, quote(KEY, safe=""), quote(KEY))}
    halves = {code[i : i + 10].lower() for code in map(echo_base64, range(3)) for i in (4, 10)}
    return (
        any(one in plain for one in spelled)
        or KEY.encode().hex() in plain
        or any(half in text.lower() for half in halves)
        or any(
            "".join(form.format(ord(s)) for s in KEY[4:9]) in text.lower()
            for form in ("%{:02x}", "\\u{:04x}", "&#{};")
        )
    )


def echo_base64(ahead: int) -> str:
    return base64.b64encode(b" " * ahead + KEY.encode()).decode()


@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_a_server_repeats_stands_in_no_error(
    both: dict[str, tuple[CompletionsModel, Inside]], connect: Connect, echo: str
):
    said = ECHOES[echo](KEY)
    assert leaks(said)
    answers: list[Any] = [
        with_body(json.dumps({"error": {"message": f"bad: {said}"}}).encode(), status=status)
        for status in (400, 500, 401)
    ]
    answers += [
        with_body(b"<html>", said.replace("\r\n", " ").encode("ascii", "ignore").decode()),
        with_reply(COMPLETIONS, put("model", said)),
        with_reply(COMPLETIONS, put("choices", [{"finish_reason": said}])),
        with_reply("/v1/models", put("data", 0, "max_model_len", said)),
        with_reply("/v1/models", put("data", 0, "id", said)),
    ]
    model, server = both["vllm"]
    for answer in answers:
        for work in (lambda: asked(model, "score"), lambda answer=answer: connect("vllm", answer)):
            try:
                with changing(server, answer):
                    work()
            except ModelError as error:
                seen: BaseException | None = error
                while seen is not None:
                    assert not leaks(f"{seen} {seen!r}"), f"{seen}"
                    seen = seen.__cause__ or seen.__context__


def test_a_key_that_is_none_hides_no_words():
    """As the OpenAI client wants a key where the server wants none."""
    quoting = Quoting("test")
    assert quoting("the test-model says Bearer test to testers") == (
        "the test-model says Bearer ... to testers"
    )


def test_what_is_no_key_is_quoted():
    quoting = Quoting("sk-abc123")
    assert quoting("the model 'sky' is abc12 of 123") == "the model 'sky' is abc12 of 123"
    assert quoting("a\x1b[31mb\ud800\n\tc") == "a\\x1b[31mb\\ud800 c"
    assert len(quoting("x" * 10**6)) == bounds.QUOTED
    began = time.monotonic()
    for hostile in ("s" * 10**6, "sk-abc12" * 10**5, "s " * 10**6, "A" * 10**6, "%" * 10**6):
        quoting(hostile)
    assert time.monotonic() - began < 1
