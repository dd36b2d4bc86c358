"""Terminal output: tables that fit the screen, and text without control characters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unicodedata import category

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
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


def printable(text: str) -> str:
    """Replace the control characters of a text, except line breaks and tabs."""
    return "".join(c if c in "\n\t" or category(c) != "Cc" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _text(cell: object) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))
