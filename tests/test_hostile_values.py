"""Values that no server should send, one at a time: each is a ServerError."""

from __future__ import annotations

import gzip
import math
import zlib
from typing import Any

import httpx
import pytest

from rain_llm import bounds
from rain_llm.errors import (
    ModelNotFoundError,
    ModelNotSupportedError,
    ServerError,
    SettingsError,
)
from rain_llm.models.servers.completions import CompletionsModel
from tests.servers.hostile import (
    DIALECTS,
    KEY,
    SIZE,
    Connect,
    Edit,
    asked,
    changing,
    checked,
    put,
    refused,
    with_body,
    with_reply,
)
from tests.servers.inside import Inside
from tests.servers.scripted import COMPLETIONS

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
