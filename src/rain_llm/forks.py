"""Replace locks, threads and connections in forked processes.

A forked child has one thread: locks held by other threads of the parent stay locked, and worker threads,
event loops and connections do not work (gunicorn with ``preload_app``, ``multiprocessing`` with "fork").
Objects that have any of these register here, and their ``after_fork`` is called in every child.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import cached_property
from typing import Protocol


class _Forked(Protocol):
    def after_fork(self) -> None:
        """Replace locks, threads and connections; called in the child, which has no other threads."""
        ...


_registered: weakref.WeakValueDictionary[int, _Forked] = weakref.WeakValueDictionary()


def renew_after_fork(owner: _Forked) -> None:
    """Call ``owner.after_fork`` in each child that is forked while ``owner`` exists."""
    _registered[id(owner)] = owner


def _after_fork() -> None:
    for owner in list(_registered.values()):
        _free_properties(type(owner))
        owner.after_fork()


def _free_properties(kind: type) -> None:
    """Replace the locks of cached properties, which exist in Python 3.11."""
    for attribute in vars(kind).values():
        if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
            attribute.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
