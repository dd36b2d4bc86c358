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

import httpx
from pydantic import SecretStr

from rain_llm.errors import ModelError, ServerError, SettingsError
from rain_llm.forks import renew_after_fork
from rain_llm.models.tokenizer import first_line
from rain_llm.settings import ServerLimits

_NOT_NOW = {408, 429, 502, 503, 504}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LONGEST_ASKED_S = 60.0  # that a server may ask for
_DEFAULT_CONCURRENCY = 64
_QUOTED = 300  # characters of what a server says that an error repeats
_STRANGE = "see whether this server is one of those supported"

Answer = TypeVar("Answer")


class Unreadable(Exception):
    """A reply of status 200 that is not what was asked for; says what it is instead."""


class Refused(ServerError):
    """A request that a server will not answer, however often it is asked (status 4xx)."""


class Failed(Exception):
    """One attempt that failed, and may be made again.

    Attributes:
        cause: in words. remedy: in words.
        there: the server answered, only not as it should. busy: it said "not now". Neither: it is away.
        pause_s: for how long it asks to be left alone; None if it does not say.
    """

    def __init__(
        self,
        cause: str,
        remedy: str,
        there: bool = False,
        busy: bool = False,
        pause_s: float | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy
        self.there = there
        self.busy = busy
        self.pause_s = pause_s


@dataclass(eq=False)
class Replica:
    """One server, and how it has been doing.

    Attributes:
        url: its address, without a path. places: for requests that are under way at once; room: those left.
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
    room: asyncio.Semaphore = field(init=False)
    lanes: list[httpx.AsyncClient] = field(default_factory=list)
    checked: bool = False
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    under_way: int = 0
    failures: int = 0
    failed_at: float = 0.0
    rests_until: float = 0.0
    last: Failed | None = None

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
            return  # other requests have told
        self.last = failed
        self.failed_at = now
        self.failures += 1
        own = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self.failures - 1, 10))
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
        self._secret = secret
        self._check = check
        self._homes: weakref.WeakKeyDictionary[object, Replica] = weakref.WeakKeyDictionary()
        room = limits.max_concurrency or _DEFAULT_CONCURRENCY
        self.replicas = [Replica(url, room) for url in urls]
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
                answer = _read(reply, read)
            except Failed as failed:
                failure = failed
                wrong += failed.there
                if not failed.there or len(self.replicas) > 1:  # alone, it may answer the others
                    replica.fail(failed)
            except ModelError as error:
                if replica.checked or len(self.replicas) == 1:
                    raise
                failure = Failed(f"is not what it was ({error})", "let all addresses serve the same model")
                replica.fail(failure)
            except TimeoutError:
                if tried is None:
                    failure = Failed(
                        "no answer in time", "see whether it is overloaded, or raise limits.total_s"
                    )
            else:
                replica.succeed(asked)
                return answer
            now = time.monotonic()
            if wrong >= self.limits.attempts or now >= end:
                raise self.error(replica, failure, f" (given up after {now - began:.1f} s)")
            tried = replica
            if failure.there:
                await asyncio.sleep(min(_FIRST_PAUSE_S * 2**wrong, max(0.0, end - now)))

    async def once(self, replica: Replica, path: str, body: dict[str, Any] | None = None) -> Any:
        """Ask one server, once: POST with a body, else GET. Return the JSON of its reply.

        None: it knows no such path.

        Raises:
            Failed: it is not there, or does not answer as it should. ServerError: it refuses.
        """
        method, content = ("GET", None) if body is None else ("POST", _encoded(body))
        reply = await self._ask(replica, method, path, content, known=(404, 405, 501))
        return _read(reply, lambda found: found) if reply.status_code == 200 else None

    async def connect(self) -> Replica:
        """Make sure of every server that can be reached; return one that is right.

        One that says that it is still starting is waited for, if there is no other.

        Raises:
            ServerError: none can be reached, or one must not be used.
        """
        end = time.monotonic() + self.limits.total_s
        while True:
            found = await asyncio.gather(*map(self._make_sure, self.replicas), return_exceptions=True)
            failures = [error for error in found if error is not None]
            for error in failures:
                if not isinstance(error, Failed):
                    raise error
            for replica in self.replicas:
                if replica.checked:
                    return replica
            failed = next((f for f in failures if isinstance(f, Failed) and f.busy), failures[0])
            assert isinstance(failed, Failed)  # the others were raised
            if not failed.busy or time.monotonic() > end:
                raise self.error(self.replicas[0], failed)
            await asyncio.sleep(failed.pause_s or _FIRST_PAUSE_S)

    async def _make_sure(self, replica: Replica) -> None:
        """Check a server that is new or was away; one request does so for all."""
        async with replica.checking:
            if replica.checked:
                return
            if replica.last is not None and time.monotonic() < replica.rests_until:
                raise replica.last  # found out while this request waited
            await self._check(replica)
            replica.checked = True

    # -- one attempt ---------------------------------------------------------------------------------

    async def _ask(
        self,
        replica: Replica,
        method: str,
        path: str,
        content: bytes | None,
        known: tuple[int, ...] = (),
        patience: float | None = None,
    ) -> httpx.Response:
        """Make one attempt, for ``patience`` seconds. ``known``: refusals that the caller understands."""
        self.counts.requests += 1
        headers = {"Content-Type": "application/json"} if content else None
        client = replica.lanes.pop() if replica.lanes else self._lane()
        replica.under_way += 1
        reply: httpx.Response | None = None
        try:
            async with asyncio.timeout(patience or self.limits.read_s):  # for a reply that only trickles
                url = replica.url + path
                try:
                    reply = await client.request(method, url, content=content, headers=headers)
                except httpx.RemoteProtocolError as error:
                    if "without sending a response" not in str(error):
                        raise  # else: a connection that was kept here, and not over there
                    reply = await client.request(method, url, content=content, headers=headers)
        except httpx.ConnectTimeout as error:
            raise Failed(
                f"cannot be reached within {self.limits.connect_s:g} s",
                "check the address and the network, or raise limits.connect_s",
            ) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Failed(
                f"no complete reply within {patience or self.limits.read_s:.3g} s",
                "see whether it hangs or is overloaded, or raise limits.read_s",
            ) from error
        except httpx.ConnectError as error:
            raise Failed(
                f"cannot be reached ({first_line(error)})", "start the server, or check base_url"
            ) from error
        except httpx.RequestError as error:
            raise Failed(
                f"broke off the connection ({first_line(error)})", "look into the server's own log"
            ) from error
        finally:
            replica.under_way -= 1
            if reply is not None:
                replica.lanes.append(client)
            else:  # given up at a bad moment, its pool may wait for ever for its only connection
                self._clients.remove(client)
                _close([client])
        status = reply.status_code
        if status == 200 or status in known:
            return reply
        cause = f"answered with status {status}{self._said(reply)}"
        if status in _NOT_NOW:
            raise Failed(
                cause, "it is overloaded or starting: wait, or add servers", False, True, _pause(reply)
            )
        if status >= 500:
            raise Failed(cause, "look into the server's own log", there=True)
        remedies = {
            401: "give the right key as api_key",
            403: "give the right key as api_key",
            404: "check base_url and the model's name",
        }
        remedy = remedies.get(status, "this request cannot be answered there: see what it says")
        raise Refused(replica.url, cause, remedy)

    def _patience(self, end: float) -> float:
        """Return the seconds for an attempt: where there is another server, it gets half of the time."""
        half = (end - time.monotonic()) / 2 if len(self.replicas) > 1 else math.inf
        return max(0.05, min(self.limits.read_s, half))

    def error(self, replica: Replica, failed: Failed, more: str = "") -> ServerError:
        """Make what a user is told of an attempt that will not be made again."""
        told = ServerError(replica.url, self.clean(failed.cause) + more, failed.remedy)
        told.__cause__ = failed.__cause__
        return told

    def clean(self, text: str) -> str:
        """Quote what a server says: without the key, and not at length."""
        text = " ".join(text.split())
        return (text.replace(self._secret, "...") if self._secret else text)[:_QUOTED]

    def _lane(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._secret}"} if self._secret else {},
            timeout=httpx.Timeout(self.limits.read_s, connect=self.limits.connect_s),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=4.0),
            verify=self._tls,
        )
        self._clients.append(client)
        return client

    def _said(self, reply: httpx.Response) -> str:
        """Quote what a server says of an error, without the key."""
        try:
            body = reply.json()
            error = body.get("error", body) if isinstance(body, dict) else body
            said = error.get("message") or error.get("detail") if isinstance(error, dict) else error
        except ValueError:
            said = reply.headers.get("content-type", "no JSON")
        text = self.clean(str(said or ""))
        return f": {text}" if text else ""

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


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _read(reply: httpx.Response, read: Callable[[Any], Answer]) -> Answer:
    """Read a reply of status 200: JSON, or the list of a stream's events."""
    kind = reply.headers.get("content-type", "something").partition(";")[0]
    try:
        found = _events(reply.text) if kind == "text/event-stream" else reply.json()
    except (ValueError, RecursionError):
        remedy = "check base_url: is it a completions server, or a proxy's page?"
        raise Failed(f"answered with {kind} that is no JSON", remedy, there=True) from None
    try:
        return read(found)
    except Unreadable as error:
        raise Failed(str(error), _STRANGE, there=True) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Failed(f"answered with JSON of another shape ({error!r})", _STRANGE, there=True) from error


def _events(text: str) -> list[Any]:
    """Return the events of a whole stream (server-sent events); its end must be among them."""
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    if "[DONE]" not in lines:
        raise ValueError("a stream without an end")
    return [json.loads(line) for line in lines if line != "[DONE]"]


def _pause(reply: httpx.Response) -> float | None:
    """Return for how many seconds a server asks to be left alone; None if it does not say."""
    try:
        return min(_LONGEST_ASKED_S, max(_FIRST_PAUSE_S, float(reply.headers["retry-after"])))
    except (KeyError, ValueError):  # or a date
        return None


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
    """Run a coroutine in :func:`event_loop` and wait for it."""
    if threading.current_thread().name == _THREAD:
        work.close()
        raise RuntimeError("the loop cannot wait for itself")
    return asyncio.run_coroutine_threadsafe(work, event_loop()).result()


def _close(clients: list[httpx.AsyncClient]) -> None:
    for client in clients:
        asyncio.run_coroutine_threadsafe(client.aclose(), event_loop())
