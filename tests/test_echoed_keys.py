"""An API key that a server repeats, in any spelling, stands in no error."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from rain_llm import bounds
from rain_llm.errors import (
    ModelError,
)
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.models.servers.quoting import Quoting
from tests.servers.hostile import KEY, Connect, asked, changing, put, with_body, with_reply
from tests.servers.inside import Inside
from tests.servers.scripted import COMPLETIONS

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
