"""What a forked child makes anew: it has one thread, and whatever the others held stays held for ever.

A lock that another thread of the parent holds, a worker thread, an event loop and its connections are of no
use in a child (gunicorn with ``preload_app``, ``multiprocessing`` with "fork"). Who has such a thing
registers itself, and its ``after_fork`` is called in every child.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import cached_property
from typing import Protocol


class _Forked(Protocol):
    def after_fork(self) -> None:
        """Make locks, threads and connections anew; called in the child, where nothing else runs."""
        ...


_registered: weakref.WeakValueDictionary[int, _Forked] = weakref.WeakValueDictionary()


def renew_after_fork(owner: _Forked) -> None:
    """Let ``owner.after_fork`` be called in each child that is forked while ``owner`` lives."""
    _registered[id(owner)] = owner


def _after_fork() -> None:
    for owner in list(_registered.values()):
        _free_properties(type(owner))
        owner.after_fork()


def _free_properties(kind: type) -> None:
    """Free the locks that cached properties have in Python 3.11."""
    for attribute in vars(kind).values():
        if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
            attribute.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
