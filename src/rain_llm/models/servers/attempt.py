"""Make one HTTP attempt at one server, and say what its outcome means.

::

    no connection, broken off, longer than ``read_s``               Failed
    status 408, 429, 502, 503, 504                                  Failed, ``busy``
    any other 5xx, or a reply that cannot be read                   Failed, ``there``
    any other status                                                Refused: another attempt would not help

Which server is asked, and whether another attempt follows, is decided in ``replicas``.
"""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from rain_llm.bounds import REPLY_BYTES
from rain_llm.errors import ServerError, SettingsError
from rain_llm.forks import renew_after_fork
from rain_llm.models.servers import proxies
from rain_llm.models.servers.failures import (
    STRANGE,
    Failed,
    Refused,
    broken_off,
    content_of,
    pause_of,
    refused,
    said,
)
from rain_llm.models.servers.loop import event_loop, leave_to_parent
from rain_llm.models.servers.quoting import Quoting
from rain_llm.models.servers.reading import Malformed, Unreadable
from rain_llm.models.servers.replica import Replica
from rain_llm.models.servers.transport import Reply, exchange, new_client
from rain_llm.settings import ServerLimits

_BUSY = {408, 429, 502, 503, 504}

Answer = TypeVar("Answer")


@dataclass
class Counts:
    """Count what was sent so far.

    Attributes:
        requests: attempts over HTTP. retries: those that were not the first of their request.
        moves: searches that changed to another server.
    """

    requests: int = 0
    retries: int = 0
    moves: int = 0


def secret_of(key: SecretStr | None) -> str:
    """Return the API key: ``key``, else the environment variable RAIN_LLM_API_KEY, else "".

    Raises:
        SettingsError: it holds a character that no HTTP header may hold.
    """
    secret = (key.get_secret_value() if key else os.environ.get("RAIN_LLM_API_KEY", "")).strip()
    if not (secret.isascii() and secret.isprintable()):  # httpx would quote it
        raise SettingsError("the API key holds a character that is not printable ASCII: give it as one line")
    return secret


class Attempts:
    """Makes HTTP attempts, each over a connection of its own that is kept for the next one.

    Its coroutines run in the background loop; see ``loop``.

    Args:
        limits: how long an attempt may take.
        secret: the API key, sent as a bearer token; "" for none.

    Attributes:
        clean: prepares what a server sent for an error; see ``quoting``. counts: what was sent so far.
    """

    def __init__(self, limits: ServerLimits, secret: str) -> None:
        self.clean = Quoting(secret)
        self.counts = Counts()
        self._limits = limits
        self._secret = secret
        self._tls = httpx.create_ssl_context()  # once: it reads all certificates
        self._clients: list[httpx.AsyncClient] = []
        weakref.finalize(self, _close, self._clients).atexit = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave the connections to the parent."""
        leave_to_parent(self._clients)
        self._clients.clear()

    async def send(
        self,
        replica: Replica,
        method: str,
        path: str,
        content: bytes | None,
        *,
        known: tuple[int, ...] = (),
        patience: float | None = None,
        most: int = REPLY_BYTES,
    ) -> Reply:
        """Send a request once, and return the reply.

        Args:
            replica: the server.
            method: GET or POST.
            path: at its address.
            content: the body of the request, JSON.
            known: statuses besides 200 that the caller expects.
            patience: seconds until the reply must be complete; None: ``limits.read_s``.
            most: bytes of the reply.

        Raises:
            Failed: another attempt may succeed. Refused: none will. ServerError: the proxy is unusable.
        """
        self.counts.requests += 1
        client = replica.idle_clients.pop() if replica.idle_clients else self._new_client(replica)
        patience = patience or self._limits.read_s
        replica.in_flight += 1
        reply: Reply | None = None
        failed: Failed | None = None
        try:
            async with asyncio.timeout(patience):  # httpx bounds each read, not the whole reply
                url = replica.url + path
                try:
                    reply = await exchange(client, method, url, content, most)
                except httpx.RemoteProtocolError as error:
                    if "without sending a response" not in str(error):
                        raise
                    # The server had closed the connection that was kept here.
                    reply = await exchange(client, method, url, content, most)
        except (TimeoutError, httpx.RequestError) as error:
            failed = self.failed(replica, *broken_off(error, self._limits, patience), error=error)
        except Malformed as error:
            failed = self.failed(replica, str(error), STRANGE, there=True)
        finally:
            replica.in_flight -= 1
            if reply is not None:
                replica.idle_clients.append(client)
            else:  # cancelled at a bad moment, its pool may wait for ever for its only connection
                self._clients.remove(client)
                _close([client])
        if failed is not None:  # raised here, so that ``error`` is its cause only where ``failed`` sets it
            raise failed
        assert reply is not None
        if reply.status == 200 or reply.status in known:
            return reply
        raise self._status_error(replica, reply)

    def read(self, replica: Replica, reply: Reply, read: Callable[[Any], Answer]) -> Answer:
        """Return what ``read`` makes of a reply of status 200: of its JSON, or of a stream's events.

        Raises:
            Failed: the reply is neither, or not what ``read`` expects.
        """
        try:
            found = content_of(reply)
        except Malformed as error:
            cause = f"answered with {reply.kind} that is not JSON ({error})"
            remedy = "check base_url: is it a completions server, or a proxy's page?"
        else:
            try:
                return read(found)
            except Unreadable as error:
                cause, remedy = str(error), STRANGE
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                cause, remedy = f"answered with JSON of an unexpected shape ({error!r})", STRANGE
        raise self.failed(replica, cause, remedy, there=True)

    def failed(
        self,
        replica: Replica,
        cause: str,
        remedy: str,
        *,
        there: bool = False,
        busy: bool = False,
        pause_s: float | None = None,
        error: BaseException | None = None,
    ) -> Failed:
        """Make the failure of an attempt: the key is hidden, a proxy is named; see ``failures.Failed``."""
        through, around = replica.proxy_hints
        failed = Failed(self.clean(cause) + through, remedy + around, there, busy, pause_s)
        if error is not None and not self.clean.holds_key(error):
            failed.__cause__ = error
        return failed

    def _status_error(self, replica: Replica, reply: Reply) -> Failed | Refused:
        """Make the error of a reply whose status is no success."""
        status = reply.status
        quoted = self.clean(said(reply))
        cause = f"answered with status {status}" + (f": {quoted}" if quoted else "")
        if status in _BUSY:
            remedy = "it is overloaded or starting: wait, or add servers"
            return self.failed(replica, cause, remedy, busy=True, pause_s=pause_of(reply))
        if status >= 500:
            return self.failed(replica, cause, "check the server's own log", there=True)
        through, around = replica.proxy_hints
        return refused(replica.url, status, cause, through, around)

    def _new_client(self, replica: Replica) -> httpx.AsyncClient:
        """Return a client for one connection to the server.

        Raises:
            ServerError: the proxy to the server cannot be used.
        """
        unusable: proxies.UnusableProxy | None = None
        try:
            proxy = None if replica.proxy is None else proxies.usable(replica.proxy, replica.url)
        except proxies.UnusableProxy as error:
            unusable = error
        if unusable is not None:
            raise ServerError(replica.url, str(unusable), unusable.remedy)
        client = new_client(self._limits, self._tls, self._secret, proxy)
        self._clients.append(client)
        return client


def encoded(body: dict[str, Any]) -> bytes:
    """Return a request's body as JSON."""
    return json.dumps(body, separators=(",", ":")).encode()


def _close(clients: list[httpx.AsyncClient]) -> None:
    for client in clients:
        asyncio.run_coroutine_threadsafe(client.aclose(), event_loop())
