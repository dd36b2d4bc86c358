"""Terminal output: tables that fit the screen, and text without control characters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text


class Fitted:
    """A table that is shown row by row, as lines, if the screen is too narrow for it.

    Args:
        table: a table of text cells.
        least: minimum screen width at which cells may wrap; 0: they never wrap.
    """

    def __init__(self, table: Table, least: int = 0) -> None:
        self._table = table
        self._least = least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, or each row as lines of heading and cell."""
        wide = options.update(max_width=max(options.max_width, 1000))
        needed = self._least or Measurement.get(console, wide, self._table).maximum
        if needed <= options.max_width:
            yield self._table
            return
        columns = [(_text(column.header), [*column.cells]) for column in self._table.columns]
        (_, names), *others = columns
        for row, name in enumerate(names):
            yield Text.assemble(_text(name), overflow="fold", style="bold")
            for heading, cells in others:
                cell = _text(cells[row])
                if cell.plain.strip():
                    label = (f"  {heading.plain}: ", "dim") if heading.plain else "  "
                    yield Text.assemble(label, cell, overflow="fold")
            if self._table.leading:
                yield Text()


@contextmanager
def advancing(console: Console, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar that disappears at the end; yield the function that advances it."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(task, total=total)
        yield lambda steps: progress.advance(bar, steps)


class Countdown:
    """A progress bar with the time that is left; hidden where standard error is no terminal."""

    def __init__(self, line: str) -> None:
        console = Console(file=sys.stderr)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(line, total=None, left="")

    def __enter__(self) -> Countdown:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(
        self, line: str, done: int | None = None, total: int | None = None, left_s: float | None = None
    ) -> None:
        """Show what is being done, how many of how many are done, and the seconds that are left."""
        left = "" if left_s is None else f"about {spelt(left_s)} left"
        self._bar.update(self._task, description=line, completed=done, total=total, left=left, refresh=True)


def spelt(seconds: float) -> str:
    """Format a time as seconds, minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def printable(text: str) -> str:
    """Replace the control characters of a text, except line breaks and tabs."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
