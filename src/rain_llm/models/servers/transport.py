"""One HTTP exchange with a server: what is sent, and how much of what comes back is read.

A reply is read piece by piece, and no further than its bound, which is counted before and after
decompression. How long that may take is the caller's affair. A redirect is not followed: it is a status.
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
    """What came back; of one that reports an error, no body where that is long."""

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
    headers = {"Accept-Encoding": "gzip, deflate"}  # which are unpacked below
    client = httpx.AsyncClient(
        headers=headers | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s),
        limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=4.0),
        verify=tls,
        proxy=proxy,
        trust_env=False,  # see ``proxies``
    )
    client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))  # nothing bounds them
    return client


async def exchange(
    client: httpx.AsyncClient, method: str, url: str, content: bytes | None, most: int
) -> Reply:
    """Send a request and read at most ``most`` bytes of the reply.

    Raises:
        Malformed: there are more, or they cannot be unpacked. httpx.RequestError: it broke off.
    """
    headers = {"Content-Type": "application/json"} if content else None
    async with client.stream(method, url, content=content, headers=headers) as reply:
        body = b""
        if reply.status_code == httpx.codes.OK:
            body = await _read(reply, most)
        else:
            with suppress(Malformed):  # then its status says enough
                body = await _read(reply, ERROR_BYTES)
        return Reply(reply.status_code, reply.headers, body)


async def _read(reply: httpx.Response, most: int) -> bytes:
    """Read a body of at most ``most`` bytes."""
    unpacked = _Unpacking(reply.headers.get("content-encoding", ""))
    body = bytearray()
    too_large = Malformed(f"sent more than {most:,} bytes, the most that is read of this reply")
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
    """Unpacks a body piece by piece, no more at once than there is room for."""

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        self._decoder = None
        if name not in ("", "identity"):
            if name not in _SIZES:
                raise Malformed(f"sent a reply packed as {shown(name)}, where gzip or deflate was asked for")
            self._decoder = zlib.decompressobj(_SIZES[name])

    def more(self, piece: bytes, room: int) -> bytes:
        if self._decoder is None:
            return piece
        try:
            return self._decoder.decompress(piece, room)
        except zlib.error as error:
            raise Malformed(f"sent a reply that cannot be unpacked ({error})") from None

    def check_end(self) -> None:
        if self._decoder is not None and not self._decoder.eof:
            raise Malformed("sent a reply that ends before its compressed data does")
