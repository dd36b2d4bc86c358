"""Served models are connected to in a thread of their own, once for all calls that need the same one.

A call waits no longer than its deadline allows, and not at all once it has been given up. Connecting goes
on meanwhile within the limits of the model, so that the next call finds it done or further.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from weakref import WeakValueDictionary

from rain_llm.clock import current, result_of
from rain_llm.errors import ServerError
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.settings import ModelSettings

_lock = threading.Lock()
_models: WeakValueDictionary[ModelSettings, CompletionsModel] = WeakValueDictionary()
_under_way: dict[ModelSettings, Future[CompletionsModel]] = {}
_latest: list[CompletionsModel] = []  # kept, as those who wanted it may have met their deadlines


def connected(settings: ModelSettings) -> CompletionsModel:
    """Return the model of these settings, connected and probed.

    Raises:
        ServerError: no answer before the deadline of the current call; or as ``CompletionsModel``.
    """
    with _lock:
        model = _models.get(settings)
        if model is not None:
            return model
        future = _under_way.get(settings)
        if future is None:
            future = _under_way[settings] = Future()
            connect = threading.Thread(
                target=_connect, args=(settings, future), name="rain-connect", daemon=True
            )
            connect.start()
    call = current()
    try:
        return result_of(future, call.left())
    except TimeoutError:
        if future.done():  # one of its own
            raise
    raise ServerError(
        settings.base_url[0],
        f"was not connected to within search.deadline_s = {call.seconds:g}",
        "see whether it hangs or is overloaded, or raise search.deadline_s",
    )


def _connect(settings: ModelSettings, future: Future[CompletionsModel]) -> None:
    try:
        model = CompletionsModel(settings)
    except BaseException as error:  # whatever it is, those who wait must get it
        with _lock:
            del _under_way[settings]
        future.set_exception(error)
        return
    with _lock:
        _models[settings] = model
        _latest[:] = [model]
        del _under_way[settings]
    future.set_result(model)


def _after_fork() -> None:
    """What was being connected stays with the parent."""
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


if hasattr(os, "register_at_fork"):  # not everywhere
    os.register_at_fork(after_in_child=_after_fork)
