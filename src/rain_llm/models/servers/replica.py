"""Keep the state of one server: its address, its connections, its recent failures."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from rain_llm.models.servers import proxies
from rain_llm.models.servers.failures import FIRST_PAUSE_S, Failed

_LONGEST_PAUSE_S = 5.0


@dataclass(eq=False)
class Replica:
    """One of the servers that serve the same model. Times are by ``time.monotonic``.

    Attributes:
        url: its address, without a path.
        max_concurrency: requests that may be in flight at once; ``free`` counts those left.
        proxy: the address of the proxy to it; None without one.
        idle_clients: clients without a request, the one used last at the end. Each has one connection:
            a client with many looks at all of them for every request.
        checked: it serves the right model, and has not failed since that was checked.
        checking: held by the request that checks it.
        in_flight: requests at this moment.
        failures: in a row; the last one is ``last_failure``, at ``failed_at``.
        retry_at: no request is sent to it before.
    """

    url: str
    max_concurrency: int
    proxy: str | None = None
    free: asyncio.Semaphore = field(init=False)
    idle_clients: list[httpx.AsyncClient] = field(default_factory=list)
    checked: bool = False
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    in_flight: int = 0
    failures: int = 0
    failed_at: float = 0.0
    retry_at: float = 0.0
    last_failure: Failed | None = None

    def __post_init__(self) -> None:
        self.limit_concurrency(self.max_concurrency)

    @property
    def proxy_hints(self) -> tuple[str, str]:
        """Return what an error adds to its cause and to its remedy when a proxy leads to the server."""
        if self.proxy is None:
            return "", ""
        through = f" through the proxy {proxies.shown(self.proxy)}"
        return through, f"; check the proxy, or add {urlsplit(self.url).hostname} to NO_PROXY"

    def limit_concurrency(self, most: int) -> None:
        """Allow ``most`` requests in flight at once."""
        self.max_concurrency = most
        self.free = asyncio.Semaphore(most)

    def after_fork(self) -> None:
        """Start without connections in a forked child; locks and their waiters belong to the parent."""
        self.limit_concurrency(self.max_concurrency)
        self.checking = asyncio.Lock()
        self.idle_clients, self.in_flight = [], 0

    def fail(self, failed: Failed) -> None:
        """Send it nothing for a while: as long as it asked for, or else twice as long as last time."""
        now = time.monotonic()
        if now < self.retry_at:
            return  # other requests have reported it
        self.last_failure = failed
        self.failed_at = now
        self.failures += 1
        backoff = min(_LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.failures - 1, 10))
        self.retry_at = now + (backoff if failed.pause_s is None else failed.pause_s)
        self.checked = False  # another model may come back at this address

    def succeed(self, began: float) -> None:
        """Forget its failures, if the request that succeeded ``began`` after the last of them."""
        if began > self.failed_at:
            self.failures, self.retry_at = 0, 0.0
