"""Proxies of the environment: never for a server on this machine, named in errors without a password."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from rain_llm.errors import ServerError
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.models.servers.proxies import is_loopback, proxy_for, shown
from rain_llm.settings import ModelSettings
from tests.servers.process import free_port
from tests.servers.scripted import scripted_server

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

SECRET = "hunter2"
FAR = "http://models.example.com:8000"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leave out what the environment says of proxies."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def connect(url: str) -> CompletionsModel:
    limits = {"attempts": 1, "connect_s": 1.0, "read_s": 1.0, "total_s": 1.0}
    return CompletionsModel(ModelSettings.model_validate({"base_url": url, "limits": limits}))


def refused(url: str) -> ServerError:
    with pytest.raises(ServerError) as raised:
        connect(url)
    seen: BaseException | None = raised.value
    while seen is not None:
        assert SECRET not in f"{seen} {seen!r}"
        seen = seen.__cause__ or seen.__context__
    return raised.value


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x", "http://["])
def test_a_server_on_this_machine_is_reached_directly(
    environment: pytest.MonkeyPatch, llama: str, name: str, proxy: str
):
    environment.setenv(name, proxy)
    assert connect(llama).encode("Hi")


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with scripted_server("llama") as server:
        yield server.url


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1")),
        *((host, True) for host in ("127.255.0.3", "127.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "0")),
        *((host, False) for host in ("10.0.0.1", "example.com", "localhost.example.com", "1.27.0.0", "::2")),
        *((host, False) for host in ("", "mylocalhost", "128.0.0.1", "gpu1")),
    ],
)
def test_what_this_machine_is_called(host: str, here: bool):
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    ("url", "exceptions", "proxied"),
    [
        (FAR, "", True),
        (FAR, "example.com", False),
        (FAR, ".example.com", False),
        (FAR, "*.example.com", False),
        (FAR, "other.com, models.example.com", False),
        (FAR, "models.example.com:8000", False),
        (FAR, "models.example.com:9000", True),
        (FAR, "xample.com", True),
        (FAR, "*", False),
        ("http://10.1.2.3:8000", "10.0.0.0/8", False),
        ("http://10.1.2.3:8000", "10.1.2.3", False),
        ("http://11.1.2.3:8000", "10.0.0.0/8", True),
        ("http://[fd00::7]:8000", "fd00::/8", False),
        ("http://[::1]:8000", "", False),
        ("https://models.example.com", "", False),
    ],
)
def test_exceptions_are_heeded(environment: pytest.MonkeyPatch, url: str, exceptions: str, proxied: bool):
    environment.setenv("HTTP_PROXY", "proxy.example.org:3128")
    environment.setenv("NO_PROXY", exceptions)
    assert proxy_for(url) == ("http://proxy.example.org:3128" if proxied else None)


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        (f"http://user:{SECRET}@proxy:3128", "http://proxy:3128"),
        (f"socks5://{SECRET}@[::2]:1080/x", "socks5://[::2]:1080"),
        (f"http://user:{SECRET}@proxy:port", "that the environment names"),
        ("http://[", "that the environment names"),
    ],
)
def test_a_proxy_is_shown_without_its_password(proxy: str, text: str):
    assert shown(proxy) == text


def test_a_proxy_that_is_not_there_is_named(environment: pytest.MonkeyPatch):
    port = free_port()
    environment.setenv("HTTP_PROXY", f"http://user:{SECRET}@127.0.0.1:{port}")
    error = refused(FAR)
    assert error.server == FAR
    assert "cannot be reached" in error.cause
    assert error.cause.endswith(f"through the proxy http://127.0.0.1:{port}")
    assert "check the proxy, or add models.example.com to NO_PROXY" in error.remedy


class Refusing(BaseHTTPRequestHandler):
    """A proxy that lets nobody through."""

    status = 407

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(self.status)


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_refuses_is_named(environment: pytest.MonkeyPatch, status: int):
    Refusing.status = status
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    try:
        address = f"127.0.0.1:{proxy.server_address[1]}"
        environment.setenv("HTTP_PROXY", f"user:{SECRET}@{address}")
        error = refused(FAR)
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
    assert f"status {status}" in error.cause
    assert f"through the proxy http://{address}" in error.cause
    assert "NO_PROXY" in error.remedy


@pytest.mark.skipif(find_spec("socksio") is not None, reason="SOCKS can be spoken here")
@pytest.mark.parametrize("kind", ["socks5", "socks5h"])
def test_socks_without_its_package_is_an_error_with_its_remedy(environment: pytest.MonkeyPatch, kind: str):
    environment.setenv("ALL_PROXY", f"{kind}://user:{SECRET}@127.0.0.1:1080")
    error = refused(FAR)
    assert f"{kind}://127.0.0.1:1080 needs the package socksio" in error.cause
    assert "pip install 'httpx[socks]'" in error.remedy
    assert "models.example.com to NO_PROXY" in error.remedy


@pytest.mark.parametrize(
    "proxy",
    [
        *(
            "ftp://{}@proxy:1",
            "socks4://{}@proxy:1",
            "http://user:{}@proxy:port",
            "http://{}@",
            "http://{}@[",
        ),
        *("http://user:{}@proxy:0", "http://user:{}@pro xy:1", "http://user:{}@p\x01y:1", "://{}"),
    ],
)
def test_a_proxy_whose_address_cannot_be_read_is_an_error(environment: pytest.MonkeyPatch, proxy: str):
    environment.setenv("HTTP_PROXY", proxy.format(SECRET))
    error = refused(FAR)
    assert "cannot be used" in error.cause or "cannot be reached" in error.cause
    assert "NO_PROXY" in error.remedy
