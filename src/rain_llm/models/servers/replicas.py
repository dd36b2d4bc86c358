"""Servers that serve the same model: which one is asked, how long it is waited for, when it is asked again.

One thread with one event loop carries the requests of all models of the process. A search stays with
the server that it began on, where its prefixes are cached, until that one fails; then it goes on with
another. A server that fails is left alone for a while that grows with each failure, by all alike.

::

    it cannot be reached, breaks off, takes longer than read_s,
    or says "not now" (429, 502, 503, 504)                           again, until total_s
    it fails (500), or answers what cannot be read                   again, ``attempts`` times
    it refuses (any other 4xx)                                       an error at once
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import selectors
import threading
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from rain_llm.bounds import DESCRIPTION_BYTES, QUOTED, REPLY_BYTES
from rain_llm.clock import result_of
from rain_llm.errors import ModelError, ServerError, SettingsError
from rain_llm.forks import renew_after_fork
from rain_llm.models.servers import proxies
from rain_llm.models.servers.failures import (
    FIRST_PAUSE_S,
    STRANGE,
    Failed,
    Refused,
    broken_off,
    content_of,
    pause_of,
    refused,
    said,
)
from rain_llm.models.servers.quoting import Quoting
from rain_llm.models.servers.reading import Malformed, Unreadable
from rain_llm.models.servers.transport import Reply, exchange, new_client
from rain_llm.settings import ServerLimits

_NOT_NOW = {408, 429, 502, 503, 504}
_LONGEST_PAUSE_S = 5.0
_DEFAULT_CONCURRENCY = 64

Answer = TypeVar("Answer")


@dataclass(eq=False)
class Replica:
    """One server, and how it has been doing.

    Attributes:
        url: its address, without a path. places: for requests that are under way at once; room: those left.
        proxy: the address of the proxy that leads to it; None where none does.
        lanes: clients that none of these uses, the one used last on top. Each has one connection: a
            client's own pool looks at all of its connections for every request.
        checked: it has been seen to serve the right model since it was last away.
        checking: held while that is being found out.
        under_way: requests at this moment.
        failures: in a row; the last of them is ``last``, at ``failed_at``.
        rests_until: it is not asked before. Times are by ``time.monotonic``.
    """

    url: str
    places: int
    proxy: str | None = None
    room: asyncio.Semaphore = field(init=False)
    lanes: list[httpx.AsyncClient] = field(default_factory=list)
    checked: bool = False
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    under_way: int = 0
    failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0
    last: Failed | None = None

    @property
    def detour(self) -> tuple[str, str]:
        """Return what errors add to a cause and to a remedy where a proxy leads to the server."""
        if self.proxy is None:
            return "", ""
        through = f" through the proxy {proxies.shown(self.proxy)}"
        return through, f"; check the proxy, or add {urlsplit(self.url).hostname} to NO_PROXY"

    def __post_init__(self) -> None:
        self.allow(self.places)

    def allow(self, places: int) -> None:
        """Let this many requests be under way at once."""
        self.places = places
        self.room = asyncio.Semaphore(places)

    def after_fork(self) -> None:
        """Begin without connections; what waits on a lock or holds it is the parent's."""
        self.allow(self.places)
        self.checking = asyncio.Lock()
        self.lanes, self.under_way = [], 0

    def fail(self, failed: Failed) -> None:
        """Leave it alone for a while: as long as it said, or else twice as long as last time."""
        now = time.monotonic()
        if now < self.rests_until:
            return  # other requests have reported it
        self.last = failed
        self.failed_at = now
        self.failures += 1
        own = min(_LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.failures - 1, 10))
        self.rests_until = now + (own if failed.pause_s is None else failed.pause_s)
        self.checked = False  # who knows what comes back

    def succeed(self, began: float) -> None:
        """Take it as well again, if the request began after it last failed."""
        if began > self.failed_at:
            self.failures, self.rests_until = 0, 0.0


@dataclass
class Counts:
    """What was sent so far.

    Attributes:
        requests: attempts over HTTP. retries: those that were not the first of their request.
        moves: searches that went on with another server.
    """

    requests: int = 0
    retries: int = 0
    moves: int = 0


class Replicas:
    """Asks servers that serve the same model. Its coroutines run in the loop of :func:`in_loop`.

    Args:
        urls: their addresses.
        key: sent as a bearer token; None: the environment variable RAIN_LLM_API_KEY, if it is set.
        limits: how long to wait, how often to try.
        check: asked once of each server, and again when one has been away; raises ServerError for one
            that must not be used.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        key: SecretStr | None,
        limits: ServerLimits,
        check: Callable[[Replica], Awaitable[None]],
    ) -> None:
        self.limits = limits
        self.counts = Counts()
        secret = (key.get_secret_value() if key else os.environ.get("RAIN_LLM_API_KEY", "")).strip()
        if not (secret.isascii() and secret.isprintable()):  # httpx would quote it
            raise SettingsError("the API key holds a character that no key has: give it as one line of ASCII")
        if not all(map(_is_address, urls)):  # not repeated: it may hold anything
            raise SettingsError("a base_url is no address that can be reached: write it as http://host:port")
        self._secret = secret
        self.clean = Quoting(secret)
        self._check = check
        self._homes: weakref.WeakKeyDictionary[object, Replica] = weakref.WeakKeyDictionary()
        room = limits.max_concurrency or _DEFAULT_CONCURRENCY
        self.replicas = [Replica(url, room, proxies.proxy_for(url)) for url in urls]
        self._tls = httpx.create_ssl_context()  # once: it reads all certificates
        self._clients: list[httpx.AsyncClient] = []
        weakref.finalize(self, _close, self._clients).atexit = False
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Leave the connections to the parent."""
        _left.extend(self._clients)
        self._clients.clear()
        self._homes = weakref.WeakKeyDictionary()
        for replica in self.replicas:
            replica.after_fork()

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[Any], Answer],
        search: object = None,
        deadline: float | None = None,
    ) -> Answer:
        """Post ``body`` until one server answers; return what ``read`` makes of the JSON of its reply.

        ``read`` raises :class:`Unreadable` for a reply that is not what was asked for; ``search`` is whose
        request it is; ``deadline`` is by ``time.monotonic``.

        Raises:
            ServerError: no server answered in ``total_s``, or before the deadline; or one refused.
        """
        began = time.monotonic()
        end = min(began + self.limits.total_s, math.inf if deadline is None else deadline)
        raised = "search.deadline_s" if end == deadline else "limits.total_s"
        content = _encoded(body)
        tried: Replica | None = None
        wrong = 0  # attempts that were answered wrongly
        while True:
            replica = self._home(search, avoid=tried)
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    now = time.monotonic()
                    await asyncio.sleep(min(max(0.0, replica.rests_until - now), (end - now) / 2))
                    if not replica.checked:
                        await self._make_sure(replica)
                    async with replica.room:
                        self.counts.retries += tried is not None
                        asked = time.monotonic()
                        reply = await self._ask(replica, "POST", path, content, patience=self._patience(end))
                answer = self._read(replica, reply, read)
            except Failed as failed:
                failure = failed
                wrong += failed.there
                if not failed.there or len(self.replicas) > 1:  # alone, it may answer the others
                    replica.fail(failed)
            except ModelError as error:
                if replica.checked or len(self.replicas) == 1:
                    raise
                cause = self.clean(f"is not what it was ({error})")
                failure = Failed(cause, "let all addresses serve the same model")
                replica.fail(failure)
            except TimeoutError:
                if tried is None:
                    failure = Failed(
                        "no answer in time", f"see whether it hangs or is overloaded, or raise {raised}"
                    )
            else:
                replica.succeed(asked)
                return answer
            now = time.monotonic()
            if wrong >= self.limits.attempts or now >= end:
                times = f"{wrong} attempts, " if wrong else ""
                raise self.error(replica, failure, f" (given up after {times}{now - began:.1f} s)")
            tried = replica
            if failure.there:
                await asyncio.sleep(min(FIRST_PAUSE_S * 2**wrong, max(0.0, end - now)))

    async def once(
        self,
        replica: Replica,
        path: str,
        body: dict[str, Any] | None = None,
        most: int = DESCRIPTION_BYTES,
    ) -> Any:
        """Ask one server, once: POST with a body, else GET. Return the JSON of its reply.

        ``most`` bounds the bytes of the reply. None: it knows no such path.

        Raises:
            Failed: it is not there, or does not answer as it should. ServerError: it refuses.
        """
        method, content = ("GET", None) if body is None else ("POST", _encoded(body))
        reply = await self._ask(replica, method, path, content, known=(404, 405, 501), most=most)
        return self._read(replica, reply, lambda found: found) if reply.status == 200 else None

    async def connect(self) -> Replica:
        """Make sure of every server that can be reached; return one that is right.

        One that says that it is still starting is waited for, if there is no other.

        Raises:
            ServerError: none can be reached, or one must not be used.
        """
        end = time.monotonic() + self.limits.total_s
        while True:
            found = await asyncio.gather(*map(self._make_sure, self.replicas), return_exceptions=True)
            failures = [(r, e) for r, e in zip(self.replicas, found, strict=True) if e is not None]
            for _, error in failures:
                if not isinstance(error, Failed):
                    raise error
            for replica in self.replicas:
                if replica.checked:
                    return replica
            replica, failed = next(
                ((r, f) for r, f in failures if isinstance(f, Failed) and f.busy), failures[0]
            )
            assert isinstance(failed, Failed)  # the others were raised
            if not failed.busy or time.monotonic() > end:
                raise self.error(replica, failed)
            await asyncio.sleep(failed.pause_s or FIRST_PAUSE_S)

    async def _make_sure(self, replica: Replica) -> None:
        """Check a server that is new or was away; one request does so for all."""
        async with replica.checking:
            if replica.checked:
                return
            if replica.last is not None and time.monotonic() < replica.rests_until:
                raise replica.last  # found out while this request waited
            try:
                await self._check(replica)
                replica.checked = True
            except Unreadable as error:
                failed = self._failed(replica, str(error), STRANGE, there=True)
        if not replica.checked:
            raise failed  # here, where the text of the server is no longer its context

    # -- one attempt ---------------------------------------------------------------------------------

    async def _ask(
        self,
        replica: Replica,
        method: str,
        path: str,
        content: bytes | None,
        known: tuple[int, ...] = (),
        patience: float | None = None,
        most: int = REPLY_BYTES,
    ) -> Reply:
        """Make one attempt, for ``patience`` seconds. ``known``: refusals that the caller understands.

        Raises:
            Failed: it may be made again. Refused: it may not. ServerError: there is no way to the server.
        """
        self.counts.requests += 1
        client = replica.lanes.pop() if replica.lanes else self._lane(replica)
        patience = patience or self.limits.read_s
        replica.under_way += 1
        reply: Reply | None = None
        failed: Failed | None = None
        try:
            async with asyncio.timeout(patience):  # for a reply that only trickles
                url = replica.url + path
                try:
                    reply = await exchange(client, method, url, content, most)
                except httpx.RemoteProtocolError as error:
                    if "without sending a response" not in str(error):
                        raise  # else: a connection that was kept here, and not over there
                    reply = await exchange(client, method, url, content, most)
        except (TimeoutError, httpx.RequestError) as error:
            failed = self._failed(replica, *broken_off(error, self.limits, patience), error=error)
        except Malformed as error:
            failed = self._failed(replica, str(error), STRANGE, there=True)
        finally:
            replica.under_way -= 1
            if reply is not None:
                replica.lanes.append(client)
            else:  # given up at a bad moment, its pool may wait for ever for its only connection
                self._clients.remove(client)
                _close([client])
        if failed is not None:  # raised here, so that what it came from is its cause or nothing
            raise failed
        assert reply is not None
        if reply.status == 200 or reply.status in known:
            return reply
        raise self._refusal(replica, reply)

    def _refusal(self, replica: Replica, reply: Reply) -> Failed | Refused:
        """Make the error of a reply whose status is no success."""
        status = reply.status
        quoted = self.clean(said(reply))
        cause = f"answered with status {status}" + (f": {quoted}" if quoted else "")
        if status in _NOT_NOW:
            remedy = "it is overloaded or starting: wait, or add servers"
            return self._failed(replica, cause, remedy, busy=True, pause_s=pause_of(reply))
        if status >= 500:
            return self._failed(replica, cause, "look into the server's own log", there=True)
        through, around = replica.detour
        return refused(replica.url, status, cause, through, around)

    def _failed(
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
        """Make the failure of an attempt: what a server said is quoted, a proxy is named."""
        through, around = replica.detour
        failed = Failed(self.clean(cause) + through, remedy + around, there, busy, pause_s)
        if error is not None and not self.clean.holds_key(error):
            failed.__cause__ = error
        return failed

    def _patience(self, end: float) -> float:
        """Return the seconds for an attempt: where there is another server, it gets half of the time."""
        half = (end - time.monotonic()) / 2 if len(self.replicas) > 1 else math.inf
        return max(0.05, min(self.limits.read_s, half))

    def error(self, replica: Replica, failed: Failed, more: str = "") -> ServerError:
        """Make the error that a user gets of an attempt that will not be made again."""
        error = ServerError(replica.url, self.clean(failed.cause, 2 * QUOTED) + more, failed.remedy)
        error.__cause__ = failed.__cause__
        return error

    def _lane(self, replica: Replica) -> httpx.AsyncClient:
        """Return a new client.

        Raises:
            ServerError: the proxy that leads to the server cannot be used.
        """
        unusable: proxies.UnusableProxy | None = None
        try:
            proxy = None if replica.proxy is None else proxies.usable(replica.proxy, replica.url)
        except proxies.UnusableProxy as error:
            unusable = error
        if unusable is not None:
            raise ServerError(replica.url, str(unusable), unusable.remedy)
        client = new_client(self.limits, self._tls, self._secret, proxy)
        self._clients.append(client)
        return client

    def _read(self, replica: Replica, reply: Reply, read: Callable[[Any], Answer]) -> Answer:
        """Read a reply of status 200: JSON, or the list of a stream's events.

        Raises:
            Failed: it is neither, or not what ``read`` expects.
        """
        try:
            found = content_of(reply)
        except Malformed as error:
            cause = f"answered with {reply.kind} that is no JSON ({error})"
            remedy = "check base_url: is it a completions server, or a proxy's page?"
        else:
            try:
                return read(found)
            except Unreadable as error:
                cause, remedy = str(error), STRANGE
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                cause, remedy = f"answered with JSON of another shape ({error!r})", STRANGE
        raise self._failed(replica, cause, remedy, there=True)

    # -- which server ----------------------------------------------------------------------------------

    def _home(self, search: object, avoid: Replica | None) -> Replica:
        """Return the server of a search: its own while that does well, else another, for good.

        ``avoid`` is the one that has just failed this very request.
        """
        now = time.monotonic()
        home = self._homes.get(search) if search is not None else None
        awake = [r for r in self.replicas if r.rests_until <= now]
        better = [r for r in awake if r is not avoid]
        if home in better:
            return home
        if not awake:  # all rest: the first that may be asked again
            return min(self.replicas, key=lambda replica: replica.rests_until)
        busy = Counter(self._homes.values())
        chosen = min(better or awake, key=lambda replica: (busy[replica], replica.under_way))
        if search is not None:
            self.counts.moves += home is not None and home is not chosen
            self._homes[search] = chosen
        return chosen


def _is_address(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, UnicodeError):  # of a host's name
        return False


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


# -- the loop of the process ------------------------------------------------------------------------

_THREAD = "rain-http"
_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_selector: selectors.BaseSelector | None = None  # of the loop: knows its connections
_left: list[object] = []  # of the parent, kept: their finalizers would talk to a loop that does not run


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that carries all requests of this process; it runs in a thread of its own."""
    global _loop, _selector
    with _starting:
        if _loop is None:
            _selector = selectors.DefaultSelector()
            _loop = asyncio.SelectorEventLoop(_selector)
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
        return _loop


def _after_fork() -> None:
    """The loop's thread stays with the parent: what was made there cannot be used in a child.

    Its connections are closed here, or they would stay open where the parent closes them, to stop a server.
    Their numbers stay taken, as stale objects will close them once more.
    """
    global _loop, _selector, _starting
    if _loop is not None and _selector is not None:
        _left.extend((_loop, _selector))
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in _selector.get_map().values():
            os.dup2(nothing, key.fd, inheritable=False)
        os.close(nothing)
    _loop, _selector, _starting = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not everywhere
    os.register_at_fork(after_in_child=_after_fork)


def in_loop(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine in :func:`event_loop` and wait for it, as long as the current call goes on."""
    if threading.current_thread().name == _THREAD:
        work.close()
        raise RuntimeError("the loop cannot wait for itself")
    future = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return result_of(future)
    except BaseException:
        future.cancel()  # where nobody waits for it any more
        raise


def _close(clients: list[httpx.AsyncClient]) -> None:
    for client in clients:
        asyncio.run_coroutine_threadsafe(client.aclose(), event_loop())
