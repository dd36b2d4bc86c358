"""Run the requests of all models of this process in one event loop, which has a thread of its own."""

from __future__ import annotations

import asyncio
import os
import selectors
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from rain_llm.clock import result_of

Result = TypeVar("Result")

_THREAD = "rain-http"
_starting = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_selector: selectors.BaseSelector | None = None  # of the loop: knows its connections
_left: list[object] = []  # the parent's, kept alive: their finalizers would call a loop that does not run


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the background loop of this process; the first call starts its thread."""
    global _loop, _selector
    with _starting:
        if _loop is None:
            _selector = selectors.DefaultSelector()
            _loop = asyncio.SelectorEventLoop(_selector)
            threading.Thread(target=_loop.run_forever, name=_THREAD, daemon=True).start()
        return _loop


def in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the background loop and wait for its result, until the current call ends.

    Raises:
        RuntimeError: called from the loop's own thread.
    """
    if threading.current_thread().name == _THREAD:
        work.close()
        raise RuntimeError("the loop cannot wait for itself")
    future = asyncio.run_coroutine_threadsafe(work, event_loop())
    try:
        return result_of(future)
    except BaseException:
        future.cancel()  # nobody waits for it any more
        raise


def leave_to_parent(objects: Iterable[object]) -> None:
    """Keep objects of the parent process alive in a forked child, so that they are never finalized here."""
    _left.extend(objects)


def _after_fork() -> None:
    """Drop the parent's loop, whose thread does not exist in a child.

    Its connections are closed here; otherwise they would stay open after the parent closes them to stop a
    server. Their file descriptors stay taken, because stale objects will close them once more.
    """
    global _loop, _selector, _starting
    if _loop is not None and _selector is not None:
        leave_to_parent((_loop, _selector))
        nothing = os.open(os.devnull, os.O_RDWR)
        for key in _selector.get_map().values():
            os.dup2(nothing, key.fd, inheritable=False)
        os.close(nothing)
    _loop, _selector, _starting = None, None, threading.Lock()


if hasattr(os, "register_at_fork"):  # not everywhere
    os.register_at_fork(after_in_child=_after_fork)
