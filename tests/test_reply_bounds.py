"""No reply is read beyond its bound in bytes and time, however it is packed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from rain_llm import bounds
from rain_llm.errors import (
    ServerError,
)
from rain_llm.types import Message
from tests.servers.hostile import Connect, Endless, bomb, checked
from tests.servers.scripted import COMPLETIONS


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
from rain_llm.models.servers import attempt
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.settings import ModelSettings
from tests.servers.hostile import Endless, bomb
settings = ModelSettings(base_url="http://server.test", limits={"attempts": 1})
server = Inside("llama")
attempt.new_client = lambda *_: httpx.AsyncClient(transport=httpx.MockTransport(server.answer))
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


@pytest.mark.slow
def test_a_reply_of_more_than_a_gigabyte_takes_little_memory():
    ended = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, timeout=60, cwd=Path(__file__).parents[1]
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
