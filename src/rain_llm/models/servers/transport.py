"""Exchange one HTTP request and reply with a server, and bound the size of the reply.

A reply is read in pieces, up to its bound, which counts before and after decompression. The caller bounds the
time. A redirect is not followed: the reply has its status.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from ssl import SSLContext

import httpx

from rain_llm.bounds import ERROR_BYTES
from rain_llm.models.servers.reading import Malformed, shown
from rain_llm.settings import ServerLimits

_SIZES = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply; one with an error status has an empty body if that was too long."""

    status: int
    headers: httpx.Headers
    body: bytes

    @property
    def kind(self) -> str:
        """Its content type."""
        return str(self.headers.get("content-type", "something")).partition(";")[0].strip()


def new_client(
    limits: ServerLimits, tls: SSLContext, key: str, proxy: httpx.Proxy | None
) -> httpx.AsyncClient:
    """Return a client that keeps one connection, and no cookies."""
    headers = {"Accept-Encoding": "gzip, deflate"}  # decompressed below, within the bound
    client = httpx.AsyncClient(
        headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=4.0),
        verify=tls,
        proxy=proxy,
        trust_env=False,  # see ``proxies``
    )
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))  # their size has no bound
    return client


async def exchange(
    client: httpx.AsyncClient, method: str, url: str, content: bytes | None, most: int
) -> Reply:
    """Send a request and read at most ``most`` bytes of the reply.

    Raises:
        Malformed: there are more, or they cannot be decompressed. httpx.RequestError: no complete reply.
    """
    headers = {"Content-Type": "application/json"} if content else None
    async with client.stream(method, url, content=content, headers=headers) as reply:
        body = b""
        if reply.status_code == httpx.codes.OK:
            body = await _read(reply, most)
        else:
            with suppress(Malformed):  # the status says enough without a body
                body = await _read(reply, ERROR_BYTES)
        return Reply(reply.status_code, reply.headers, body)


async def _read(reply: httpx.Response, most: int) -> bytes:
    """Read a body of at most ``most`` bytes."""
    unpacked = _Unpacking(reply.headers.get("content-encoding", ""))
    body = bytearray()
    too_large = Malformed(f"sent more than {most:,} bytes, the bound for this reply")
    announced = reply.headers.get("content-length", "")[:20]
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    received = 0
    async for piece in reply.aiter_raw():
        received += len(piece)
        body += unpacked.more(piece, most + 1 - len(body))
        if max(len(body), received) > most:
            raise too_large
    unpacked.check_end()
    return bytes(body)


class _Unpacking:
    """Decompresses a body in pieces, each of a bounded size."""

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        self._decoder = None
        if name not in ("", "identity"):
            if name not in _SIZES:
                raise Malformed(f"sent a reply encoded as {shown(name)}, not gzip or deflate")
            self._decoder = zlib.decompressobj(_SIZES[name])

    def more(self, piece: bytes, room: int) -> bytes:
        if self._decoder is None:
            return piece
        try:
            return self._decoder.decompress(piece, room)
        except zlib.error as error:
            raise Malformed(f"sent a reply that cannot be decompressed ({error})") from None

    def check_end(self) -> None:
        if self._decoder is not None and not self._decoder.eof:
            raise Malformed("sent a reply that ends before its compressed data does")
