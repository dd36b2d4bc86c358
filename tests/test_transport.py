"""What is sent over a socket without end, or bit by bit, is over in time, and within bounds."""

from __future__ import annotations

import contextlib
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from rain_llm.errors import ServerError
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.settings import ModelSettings, ServerLimits

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

KEY = "sk-do-not-tell"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SENT: dict[str, tuple[bytes, bytes, float]] = {
    "endless headers": (OK, b"X-More: " + b"x" * 1000 + b"\r\n", 0),
    "a header without end": (OK + b"X-More: ", b"x" * 1000, 0),
    "endless early replies": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", 0),
    "endless chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 5000, 0),
    "a chunk size without end": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 1000, 0),
    "a body without a length": (OK + b"\r\n", b" " * 65536, 0),
    "a byte at a time": (OK + b"Content-Length: 999999\r\n\r\n", b" ", 0.05),
    "a header at a time": (OK, b"A: b\r\n", 0.05),
    "no HTTP": (b"", b"SSH-2.0-OpenSSH_9.2 " + KEY.encode() + b"\r\n", 0),
    "the key as a header's name": (OK, b"X\x00" + KEY.encode() + b": 1\r\n", 0),
    "nothing": (b"", b"", 0.05),
}


@contextlib.contextmanager
def babbling(first: bytes, more: bytes, pause_s: float) -> Iterator[str]:
    """Answer every request by ``first`` and then ``more``, again and again."""
    end = threading.Event()

    class Babbling(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(first)
                while not end.is_set():
                    self.request.sendall(more)
                    time.sleep(pause_s)

    class Serving(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Serving(("127.0.0.1", 0), Babbling) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{serving.server_address[1]}"
        finally:
            end.set()
            serving.shutdown()
            thread.join()


@pytest.mark.parametrize("sent", SENT)
def test_whatever_comes_over_a_socket_is_over_in_time(sent: str):
    limits = ServerLimits(attempts=1, read_s=0.25, total_s=0.3)
    with babbling(*SENT[sent]) as url:
        began = time.monotonic()
        with pytest.raises(ServerError) as raised:
            CompletionsModel(
                ModelSettings.model_validate({"base_url": url, "api_key": KEY, "limits": limits})
            )
        assert time.monotonic() - began < 2
    assert raised.value.server == url
    seen: BaseException | None = raised.value
    while seen is not None:
        assert KEY not in f"{seen} {seen!r}"
        seen = seen.__cause__ or seen.__context__
