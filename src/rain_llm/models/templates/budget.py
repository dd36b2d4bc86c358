"""The resource budget of a chat template: steps, memory and time; see ``sandbox.py``."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateError
from jinja2.runtime import Macro

from rain_llm.bounds import TEMPLATE_MEMORY, TEMPLATE_S, TEMPLATE_STEPS, TEMPLATE_VALUE

WIDTH = 1000  # maximum width of a field, an indentation or a batch
_PARTED: tuple[Any, ...] = (
    list,
    tuple,
    dict,
    set,
    frozenset,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
)
_WIDE = re.compile(r"\d{4}[.hlLdiouxXeEfFgGcrsa%]|\.\d{4}")  # a wide field in a ``%`` format


class BoundError(TemplateError):
    """A template exceeds a bound of its budget."""


class Budget:
    """The remaining steps, memory and time of one rendering."""

    def __init__(self) -> None:
        self._steps = TEMPLATE_STEPS
        self._memory = TEMPLATE_MEMORY
        self._end = time.thread_time() + TEMPLATE_S
        self._weights: dict[int, tuple[int, object]] = {}  # the object too, so that its id stays its own

    def tick(self, size: int = 0) -> None:
        """Count one step that allocates ``size`` bytes."""
        self._steps -= 1
        self._memory -= size
        if self._steps < 0:
            raise BoundError(f"it takes more than {TEMPLATE_STEPS} steps")
        if self._memory < 0:
            raise BoundError(f"it allocates more than {TEMPLATE_MEMORY >> 20} MiB of data")
        if time.thread_time() > self._end:
            raise BoundError(f"it takes more than {TEMPLATE_S:g} s")

    def expect(self, size: int) -> None:
        """Check the size of a value, in characters or items, before it is created."""
        if size > TEMPLATE_VALUE:
            raise BoundError(f"it creates a value of more than {TEMPLATE_VALUE} characters or items")

    def keep(self, value: Any, fresh: bool = False) -> Any:
        """Count a created value and return it; ``fresh``: its items may be new, too."""
        self.expect(self.weight(value))
        size = 200 + 16 * len(value) if isinstance(value, _PARTED) else sys.getsizeof(value)
        if fresh and isinstance(value, list | tuple):
            size += sum(map(sys.getsizeof, value))
        self.tick(size)
        return value

    def weight(self, value: Any) -> int:
        """Return the size of a value in characters and items; shared items count each time."""
        if isinstance(value, str | bytes | range):
            return len(value) + 2
        if isinstance(value, int):
            return value.bit_length() // 3 + 2
        if isinstance(value, Macro):
            return 100 + len(value.name)
        if not isinstance(value, _PARTED):
            return 24
        known = self._weights.get(id(value))
        if known is None:
            parts: Iterable[Any] = value
            if isinstance(value, dict):
                parts = (part for item in value.items() for part in item)
            known = self._weights[id(value)] = (1 + sum(map(self.weight, parts)), value)
        return known[0]

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Iterate over items, counting a step for each."""
        for item in items:
            self.tick()
            yield item


budget_now: ContextVar[Budget] = ContextVar("budget_now")


# --- upper bounds for the results of operations that can produce large values ---------------------


def narrow(number: Any) -> int:
    """Check a width or depth and return it; 0 if it is not an integer."""
    if isinstance(number, int) and abs(number) > WIDTH:
        raise BoundError(f"it uses a width, depth or number of {number:.3g}, more than {WIDTH}")
    return number if isinstance(number, int) else 0


def _padded(value: Any, width: Any = 80, *fill: Any) -> int:
    return len(str(value)) + narrow(width)


def _parted(value: Any, linecount: Any = 0, fill_with: Any = None, slices: Any = 0) -> int:
    return narrow(linecount) + narrow(slices)


def _split(value: Any, *args: Any, **given: Any) -> int:
    return 8 * len(str(value))  # a string of one letter takes about fifty bytes


def _stripped(value: Any, chars: Any = "") -> int:
    return narrow(len(chars or ""))  # each one is compared at each position


def _rounded(value: Any, precision: Any = 0, method: str = "") -> int:
    return narrow(precision)


def _indented(value: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    text = str(value)
    return len(text) + (len(text.splitlines()) + 1) * (
        len(width) if isinstance(width, str) else narrow(width)
    )


def _replaced(value: Any, old: Any, new: Any, count: Any = -1) -> int:
    text = str(value)
    return len(text) + text.count(str(old)) * len(str(new))


def joined(glue: Any, parts: Any) -> int:
    """Return the size of items joined by ``glue``."""
    return budget_now.get().weight(parts) + len(parts) * len(str(glue))


def _summed(value: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise BoundError("its sum starts with a value that is not a number")
    return 0


def formatted(value: Any, *shown: Any, **named: Any) -> int:
    """Return the size of a ``%`` format; a width is in the text or, for a ``*``, among the values."""
    text, budget = str(value), budget_now.get()
    parts = [*shown, *named.values()]
    numbers = [
        n for part in parts for n in (part if isinstance(part, tuple) else (part,)) if isinstance(n, int)
    ]
    if _WIDE.search(text) or ("*" in text and any(abs(number) > WIDTH for number in numbers)):
        raise BoundError(f"it writes a field wider than {WIDTH}")
    return len(text) + text.count("%") * (WIDTH + sum(map(budget.weight, parts)))


GROWTH: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("batch", "slice"), _parted),
    **dict.fromkeys(("lstrip", "rstrip", "strip", "trim"), _stripped),
    **dict.fromkeys(("title", "urlencode", "wordcount"), _split),
    "format": formatted,
    "indent": _indented,
    "replace": _replaced,
    "round": _rounded,
    "sum": _summed,
}
