"""Connect to a model on servers in a thread, once for all calls that need the same model.

A call waits until its deadline, or until it is cancelled. The thread goes on connecting, within the limits of
the model, so that the next call waits less.
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
_latest: list[CompletionsModel] = []  # kept alive: the calls that wanted it may have ended


def connected(settings: ModelSettings) -> CompletionsModel:
    """Return the model of these settings, connected and probed.

    Raises:
        ServerError: not connected before the deadline of the current call; or as ``CompletionsModel``.
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
        if future.done():  # raised while connecting
            raise
    raise ServerError(
        settings.base_url[0],
        f"was not connected to within search.deadline_s = {call.seconds:g}",
        "check whether it hangs or is overloaded, or raise search.deadline_s",
    )


def _connect(settings: ModelSettings, future: Future[CompletionsModel]) -> None:
    try:
        model = CompletionsModel(settings)
    except BaseException as error:  # any kind: the threads that wait must get it
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
    """Forget connections in progress: their threads do not exist in a forked child."""
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


if hasattr(os, "register_at_fork"):  # not everywhere
    os.register_at_fork(after_in_child=_after_fork)
