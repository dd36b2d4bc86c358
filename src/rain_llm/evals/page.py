"""The parts of a report, and how they are written as Markdown or as one self-contained HTML page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources

MARKS = {"better": "▲", "worse": "▼", "more": "↑", "less": "↓", "no significant difference": "○", "": ""}
"""The mark beside a difference."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in a table.

    Attributes:
        text: the figure.
        beside: its interval, or its difference to another method with that interval.
        verdict: one of ``MARKS``.
    """

    text: str
    beside: str = ""
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells under a head; the first cell of a row names it.

    Attributes:
        strong: names of the rows to highlight.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    strong: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """The answers to one prompt: (method, answer, figures of the main judges)."""

    prompt: str
    answers: Sequence[tuple[str, str, str]]


@dataclass
class Section:
    """One task's part of a report.

    Attributes:
        plots: quality against tokens: (caption, SVG).
        forest: differences to plain, as SVG.
        upsetting: its texts may be offensive.
    """

    task: str
    about: str
    tables: list[Table] = field(default_factory=list)
    plots: list[tuple[str, str]] = field(default_factory=list)
    forest: str = ""
    examples: list[Example] = field(default_factory=list)
    upsetting: bool = False


@dataclass
class Page:
    """A report.

    Attributes:
        sentences: the main result of each task.
        policy: the criteria of the answers, and how many passed.
        about: what was run.
        findings: the results in one table.
        legend: (figure, what it is, what a reader must know about it).
        reading: how to read the report, in paragraphs.
    """

    sentences: list[str]
    policy: Table
    about: list[str]
    findings: Table
    sections: list[Section]
    legend: list[tuple[str, str, str]]
    reading: list[str]


def as_html(page: Page) -> str:
    """Return the HTML page: no scripts, nothing loaded from elsewhere; all texts are escaped."""
    from jinja2 import Environment

    source = resources.files("rain_llm.evals").joinpath("page.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(page=page, marks=MARKS)


def as_markdown(page: Page) -> str:
    """Return the Markdown page; texts of models are escaped, and folded if they may be offensive."""
    lines = ["# What guarding the model does", "", *(f"- {line}" for line in page.sentences)]
    lines += ["", " · ".join(page.about)]
    for title, table in (("The policy", page.policy), ("In short", page.findings)):
        if table.rows:
            lines += ["", f"## {title}", "", *_table(table), "", table.note]
    for section in page.sections:
        lines += ["", f"## {section.task}", "", section.about]
        for table in section.tables:
            lines += ["", f"**{table.caption}**", "", *_table(table)]
            lines += ["", table.note] if table.note else []
        lines += ["", *_examples(section)]
    lines += ["", "## What the figures are", ""]
    lines += [f"- **{name}**: {about}" + f" ({note})" * bool(note) for name, about, note in page.legend]
    lines += ["", "## How to read them", "", *(f"- {line}" for line in page.reading)]
    return "\n".join(lines) + "\n"


def _table(table: Table) -> list[str]:
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    return [_row(table.head), "|" + "---|" * len(table.head), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    return " ".join(filter(None, (cell.text, cell.beside, MARKS[cell.verdict])))


def _examples(section: Section) -> list[str]:
    warning = ", which may be offensive" * section.upsetting
    lines = ["<details>", f"<summary>Examples{warning}</summary>", ""] if section.examples else []
    for example in section.examples:
        lines += [f"> {_plain(example.prompt)}", ""]
        lines += [f"- {method} ({figure}): {_plain(text)}" for method, text, figure in example.answers]
        lines += [""]
    return lines + ["</details>"] * bool(lines)


def _plain(text: str) -> str:
    """Escape a model's text for Markdown, on one line."""
    marked = re.sub(r"([\\`*_{}\[\]()#+!|~^$@:]|(?<=www)\.)", r"\\\1", " ⏎ ".join(text.strip().splitlines()))
    return html.escape(marked, quote=False) or "(nothing)"
