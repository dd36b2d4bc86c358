"""``rain generate``: reads the prompt, and writes the answer, the trace and a summary.

Accepted text goes to standard output as it is accepted, and nothing else does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import typer
from pydantic import TypeAdapter
from rich.status import Status
from rich.text import Text

from rain_llm.errors import PromptError, SettingsError
from rain_llm.screen import printable
from rain_llm.types import RainResult, Step


def read_context(path: Path) -> str:
    """Read the text that the answer must be supported by.

    Raises:
        PromptError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the context {path}: {error}") from error


def check_writable(path: Path) -> None:
    """Check that the trace can be written, before a model runs; leave no file behind.

    Raises:
        SettingsError: it cannot.
    """
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise SettingsError(f"cannot write the trace to {path}: {error.strerror}") from error
    if not there:
        path.unlink()


def read_prompt(text: str | None) -> str:
    """Return the prompt: the argument, or what is piped in.

    Raises:
        PromptError: it is not UTF-8.
    """
    if text not in (None, "-"):
        return str(text)
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter("give a text to continue, or pipe one in", param_hint="TEXT")
    try:
        return sys.stdin.read().rstrip("\r\n")  # the line's end belongs to the pipe, not to the prompt
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt from the pipe is not UTF-8: {error}") from error


def write(steps: Iterator[Step], status: Status, everything: bool) -> tuple[RainResult, str]:
    """Write accepted text as it is accepted.

    Args:
        steps: of the answer; the last one holds the result.
        status: a status line, which stops when the first text is written.
        everything: write all text, accepted or not.

    Returns:
        The result, and the text that was not written: a piece that was not accepted, with all that follows
        it, since that was accepted only as its continuation.
    """
    marked, last = "", ""
    holding, seen = False, sys.stdout.isatty()
    result: RainResult | None = None
    try:
        for step in steps:
            result = step.result
            holding = holding or not (everything or step.accepted)
            if holding:
                marked += step.text
            elif step.text:
                status.stop()
                last = step.text
                sys.stdout.write(printable(last) if seen else last)
                sys.stdout.flush()
    finally:
        status.stop()
        if last and not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
    assert result is not None  # a stream that ends without an error ends with the result
    return result, marked


def save_trace(result: RainResult, path: Path | None) -> None:
    """Write the complete result as JSON, if a path is given."""
    if path is not None:
        path.write_bytes(TypeAdapter(RainResult).dump_json(result, indent=2) + b"\n")


def failed_criteria(result: RainResult) -> str:
    """Return the criteria that failed, with their probabilities and thresholds."""
    if result.verdict is None:
        return "nothing was judged"
    failed = [c for c in result.verdict.criteria if not c.passed] or result.verdict.criteria
    return ", ".join(f"{c.name} {c.probability:.2f}, threshold {c.threshold:g}" for c in failed)


def summary(result: RainResult, plain: bool, seconds: float) -> Text:
    """Return one line with verdict, stop reason and cost."""
    usage = result.usage
    if plain:
        line = Text("unguarded", "yellow")
    elif result.accepted:
        line = Text("accepted", "green")
    else:
        line = Text("not accepted", "red")
    for criterion in result.verdict.criteria if result.verdict else ():
        line.append(f" · {criterion.name} {criterion.probability:.2f}", "" if criterion.passed else "red")
    line.append(
        f" · ended by {result.stop_reason} · {usage.output_tokens} tokens, {usage.model_tokens} through the"
        f" model, {usage.forwards} forwards, {usage.iterations} iterations · {seconds:.1f} s",
        "dim",
    )
    return line
