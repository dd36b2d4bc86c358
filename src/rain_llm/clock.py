"""Deadlines and cancellation of a user's call.

The clock starts when the user calls. All waiting of that call in a thread (for a model that is being loaded,
for a server's tokenizer) goes through this module, so that it ends at the deadline or on cancellation.
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
_NAP_S = 0.05  # interval of attempts to acquire a lock


class _Lock(Protocol):
    """A ``threading.Lock`` or ``threading.RLock``."""

    def acquire(self, blocking: bool = ..., timeout: float = ...) -> bool: ...

    def release(self) -> None: ...


class GivenUp(ModelError):
    """Raised in a call that was cancelled."""

    def __init__(self) -> None:
        super().__init__("the call was cancelled: its caller no longer waits for it")


class Call:
    """One call of a user, with its deadline.

    Args:
        seconds: time limit; None: no limit.
        began: start of the call by ``time.monotonic``; None: now.

    Attributes:
        seconds: time limit; None: no limit.
        began: start of the call.
        deadline: end of the time limit, by the same clock; None: no limit.
        ended: is done when the call was cancelled.
    """

    def __init__(self, seconds: float | None = None, began: float | None = None) -> None:
        self.seconds = seconds
        self.began = time.monotonic() if began is None else began
        self.deadline = None if seconds is None else self.began + seconds
        self.ended: Future[None] = Future()

    def end(self) -> None:
        """Cancel the call: all waiting in it stops at once. Thread-safe; may be called repeatedly."""
        with contextlib.suppress(Exception):  # it has ended already
            self.ended.set_result(None)

    def left(self) -> float | None:
        """Return the remaining seconds; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


_CALL: ContextVar[Call | None] = ContextVar("call", default=None)


def current() -> Call:
    """Return the call that this thread works for; if there is none, a call without a deadline."""
    return _CALL.get() or Call()


@contextlib.contextmanager
def working_for(call: Call) -> Iterator[Call]:
    """Make ``call`` the current call within this block."""
    token = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(token)


def result_of(future: Future[Found], timeout: float | None = None) -> Found:
    """Wait up to ``timeout`` seconds for a result, unless the current call is cancelled.

    Raises:
        TimeoutError: the timeout has passed.
        GivenUp: the call was cancelled.
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
    """Hold a lock that another call may hold for a long time, while it loads a model.

    Raises:
        ModelError: the deadline passed first.
        GivenUp: the call was cancelled.
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
