"""Choose one of the servers that serve the same model, retry, and keep the deadline.

A search stays with the server that it began on, where its prefixes are cached, until that one fails; then
it continues on another. After a failure no request is sent to a server for a while, which grows with each
failure in a row.

::

    no connection, broken off, longer than ``read_s``,
    or "not now" (408, 429, 502, 503, 504)                          again, until ``total_s``
    any other 5xx, or a reply that cannot be read                   again, up to ``attempts`` times
    any other status                                                an error at once

One HTTP attempt is made in ``attempt``.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr

from rain_llm.bounds import DESCRIPTION_BYTES, QUOTED
from rain_llm.errors import ModelError, ServerError, SettingsError
from rain_llm.forks import renew_after_fork
from rain_llm.models.servers import proxies
from rain_llm.models.servers.attempt import Attempts, encoded, secret_of
from rain_llm.models.servers.failures import FIRST_PAUSE_S, STRANGE, Failed
from rain_llm.models.servers.reading import Unreadable
from rain_llm.models.servers.replica import Replica
from rain_llm.settings import ServerLimits

_DEFAULT_CONCURRENCY = 64

Answer = TypeVar("Answer")


class Replicas:
    """Sends requests to servers that serve the same model.

    Its coroutines run in the background loop; see ``loop``.

    Args:
        urls: their addresses.
        key: sent as a bearer token; None: the environment variable RAIN_LLM_API_KEY, if it is set.
        limits: how long to wait, how often to try.
        check: called before the first request to a server, and again after it has failed; raises
            ServerError for a server that must not be used.

    Attributes:
        limits: as given. replicas: the servers. counts: what was sent so far.
        clean: prepares what a server sent for an error; see ``quoting``.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        key: SecretStr | None,
        limits: ServerLimits,
        check: Callable[[Replica], Awaitable[None]],
    ) -> None:
        secret = secret_of(key)
        if not all(map(_is_address, urls)):  # not repeated: it may hold anything
            raise SettingsError("a base_url is not a valid address: write it as http://host:port")
        most = limits.max_concurrency or _DEFAULT_CONCURRENCY
        self.limits = limits
        self.replicas = [Replica(url, most, proxies.proxy_for(url)) for url in urls]
        self._attempts = Attempts(limits, secret)
        self.counts = self._attempts.counts
        self.clean = self._attempts.clean
        self._check = check
        self._homes: weakref.WeakKeyDictionary[object, Replica] = weakref.WeakKeyDictionary()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Start without connections and without searches in a forked child."""
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
        """Post ``body`` until one server answers, and return what ``read`` makes of its reply.

        Args:
            path: at the server's address.
            body: of the request.
            read: gets the JSON of the reply; raises :class:`Unreadable` if it is not what was asked for.
            search: the search that the request belongs to; None: no search.
            deadline: by ``time.monotonic``; None: only ``limits.total_s`` counts.

        Raises:
            ServerError: no server answered before the deadline or within ``total_s``; or one refused.
        """
        began = time.monotonic()
        end = min(began + self.limits.total_s, math.inf if deadline is None else deadline)
        bound = "search.deadline_s" if end == deadline else "limits.total_s"
        content = encoded(body)
        tried: Replica | None = None
        wrong = 0  # attempts that got an unusable reply
        while True:
            replica = self._choose(search, avoid=tried)
            try:
                async with asyncio.timeout(end - time.monotonic()):
                    now = time.monotonic()
                    await asyncio.sleep(min(max(0.0, replica.retry_at - now), (end - now) / 2))
                    if not replica.checked:
                        await self._ensure_checked(replica)
                    async with replica.free:
                        self.counts.retries += tried is not None
                        asked = time.monotonic()
                        reply = await self._attempts.send(
                            replica, "POST", path, content, patience=self._patience(end)
                        )
                answer = self._attempts.read(replica, reply, read)
            except Failed as failed:
                failure = failed
                wrong += failed.there
                if not failed.there or len(self.replicas) > 1:  # a single server may answer other requests
                    replica.fail(failed)
            except ModelError as error:
                if replica.checked or len(self.replicas) == 1:
                    raise
                cause = self.clean(f"does not serve the same model as before ({error})")
                failure = Failed(cause, "use addresses that all serve the same model")
                replica.fail(failure)
            except TimeoutError:
                if tried is None:
                    failure = Failed(
                        "no answer in time", f"check whether it hangs or is overloaded, or raise {bound}"
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
        """Ask one server, once: POST with a body, else GET.

        Args:
            replica: the server.
            path: at its address.
            body: of the request.
            most: bytes of the reply.

        Returns:
            The JSON of its reply; None if it knows no such path.

        Raises:
            Failed: another attempt may succeed. ServerError: it refuses.
        """
        method, content = ("GET", None) if body is None else ("POST", encoded(body))
        reply = await self._attempts.send(replica, method, path, content, known=(404, 405, 501), most=most)
        return self._attempts.read(replica, reply, lambda found: found) if reply.status == 200 else None

    async def check_again(self) -> Replica:
        """Check the servers that were reached once more; as :meth:`connect`."""
        reached = [replica for replica in self.replicas if replica.checked]
        for replica in reached:
            replica.checked = False
        return await self._connect(reached)

    async def connect(self) -> Replica:
        """Check every server that can be reached, and return one that may be used.

        Waits for a server that is still starting, if there is no other.

        Raises:
            ServerError: none can be reached, or one must not be used.
        """
        return await self._connect(self.replicas)

    async def _connect(self, replicas: Sequence[Replica]) -> Replica:
        end = time.monotonic() + self.limits.total_s
        while True:
            found = await asyncio.gather(*map(self._ensure_checked, replicas), return_exceptions=True)
            failures = [(r, e) for r, e in zip(replicas, found, strict=True) if e is not None]
            for _, error in failures:
                if not isinstance(error, Failed):
                    raise error
            for replica in replicas:
                if replica.checked:
                    return replica
            replica, failed = next(
                ((r, f) for r, f in failures if isinstance(f, Failed) and f.busy), failures[0]
            )
            assert isinstance(failed, Failed)  # the others were raised
            if not failed.busy or time.monotonic() > end:
                raise self.error(replica, failed)
            await asyncio.sleep(failed.pause_s or FIRST_PAUSE_S)

    def error(self, replica: Replica, failed: Failed, more: str = "") -> ServerError:
        """Make the error that a user gets when no further attempt follows."""
        error = ServerError(replica.url, self.clean(failed.cause, 2 * QUOTED) + more, failed.remedy)
        error.__cause__ = failed.__cause__
        return error

    async def _ensure_checked(self, replica: Replica) -> None:
        """Check a server that is new or has failed; of several requests, one does so for all."""
        async with replica.checking:
            if replica.checked:
                return
            if replica.last_failure is not None and time.monotonic() < replica.retry_at:
                raise replica.last_failure  # which happened while this request waited
            try:
                await self._check(replica)
                replica.checked = True
            except Unreadable as error:
                failed = self._attempts.failed(replica, str(error), STRANGE, there=True)
        if not replica.checked:
            raise failed  # here, where the text of the server is no longer its context

    def _patience(self, end: float) -> float:
        """Return the seconds for one attempt: half of what is left, if another server can be asked next."""
        half = (end - time.monotonic()) / 2 if len(self.replicas) > 1 else math.inf
        return max(0.05, min(self.limits.read_s, half))

    def _choose(self, search: object, avoid: Replica | None) -> Replica:
        """Return the server of a search: the one it is on while that works, else another from now on.

        ``avoid`` is the server on which this same request has just failed.
        """
        now = time.monotonic()
        home = self._homes.get(search) if search is not None else None
        ready = [r for r in self.replicas if r.retry_at <= now]
        better = [r for r in ready if r is not avoid]
        if home in better:
            return home
        if not ready:  # all have failed: the first that may be asked again
            return min(self.replicas, key=lambda replica: replica.retry_at)
        searches = Counter(self._homes.values())
        chosen = min(better or ready, key=lambda replica: (searches[replica], replica.in_flight))
        if search is not None:
            self.counts.moves += home is not None and home is not chosen
            self._homes[search] = chosen
        return chosen


def _is_address(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, UnicodeError):  # of a host's name
        return False
