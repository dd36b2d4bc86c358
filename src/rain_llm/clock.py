"""How long a call may take: until its deadline, or until nobody waits for it any more.

The clock starts when a user calls. Whatever the call then waits for in a thread (a model that is being
loaded, a server's tokenizer) is waited for through this module, so that the wait ends in time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from rain_llm.errors import ModelError

Found = TypeVar("Found")
_NAP_S = 0.05  # between two looks at a lock


class _Lock(Protocol):
    """A lock of ``threading``, of either kind."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class GivenUp(ModelError):
    """Nobody waits for the call any more."""

    def __init__(self) -> None:
        super().__init__("the call was given up: nobody waits for it any more")


class Call:
    """One call of a user.

    Args:
        seconds: how long it may take; None: as long as it takes.
        began: when the clock started, by ``time.monotonic``; None: now.

    Attributes:
        seconds, began: as given. deadline: by the same clock.
    """

    def __init__(self, seconds: float | None = None, began: float | None = None) -> None:
        self.seconds = seconds
        self.began = time.monotonic() if began is None else began
        self.deadline = None if seconds is None else self.began + seconds
        self.ended: Future[None] = Future()

    def end(self) -> None:
        """Give the call up: whoever waits in it stops at once. From any thread, at any time."""
        with contextlib.suppress(Exception):  # it was ended before
            self.ended.set_result(None)

    def left(self) -> float | None:
        """Return the seconds that are left; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_CALL: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call:
    """Return the call that this thread works for; without one, a call that has no deadline."""
    return _CALL.get() or Call()


@contextlib.contextmanager
def working_for(call: Call) -> Iterator[Call]:
    """Do what follows for ``call``."""
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def result_of(future: Future[Found], timeout: float | None = None) -> Found:
    """Wait for a result, for ``timeout`` seconds, as long as somebody waits for the current call.

    Raises:
        TimeoutError: it is not there in time. GivenUp: the call has ended.
    """
    ended = current().ended
    both: list[Future[Any]] = [future, ended]
    wait(both, timeout, FIRST_COMPLETED)
    if future.done():
        return future.result()
    if ended.done():
        raise GivenUp
    raise TimeoutError


@contextlib.contextmanager
def held(lock: _Lock) -> Iterator[None]:
    """Hold a lock that another call may hold for long: while it loads a model.

    Raises:
        ModelError: the deadline came first. GivenUp: the call has ended.
    """
    call = current()
    while not lock.acquire(timeout=_NAP_S):
        if call.ended.done():
            raise GivenUp
        if call.left() == 0:
            raise ModelError(
                f"the model was not loaded within search.deadline_s = {call.seconds:g}: another call is "
                "still loading it: raise search.deadline_s, or load the model first"
            )
    try:
        yield
    finally:
        lock.release()
