"""``rain check`` and ``rain schema``: validate a policy file, and print its JSON schema."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rain_llm.bounds import POLICY_BYTES
from rain_llm.errors import SettingsError
from rain_llm.screen import Fitted
from rain_llm.settings import ModelSettings, PolicyError, RainSettings

_PIPE = "standard input"


def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Settings file, YAML or JSON; '-' reads standard input.")
    ],
) -> None:
    """Validate a policy file and print its criteria, without loading a model.

    Exit code 1 if it has mistakes, which are shown with their lines.
    """
    try:
        settings = _piped_settings() if str(file) == "-" else RainSettings.from_file(file)
    except PolicyError as error:
        page = Console(stderr=True, highlight=False, soft_wrap=True)
        for mistake in error.mistakes:
            page.print(Text(str(mistake), "red"))
            if mistake.source:
                page.print(Text(mistake.source), Text("^".rjust(mistake.column), "red"), sep="\n")
        raise typer.Exit(1) from None
    page = Console(highlight=False, soft_wrap=True)
    page.print(Fitted(_policy(settings)))
    model, judge = settings.model, settings.evaluation.judge
    page.print(
        Text(
            f"written by {_model_name(model)}, judged by {_model_name(judge) if judge else 'the same'}, "
            f"style {settings.evaluation.style}; "
            f"at most {settings.search.iterations} iterations for a step\n"
            f"on_unsafe {settings.on_unsafe}, hash {settings.hash}"
        )
    )


def _piped_settings() -> RainSettings:
    """Read settings from standard input; mistakes name it as their file."""
    content = sys.stdin.buffer.read(POLICY_BYTES + 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "settings.json" if content.lstrip()[:1] == b"{" else "settings.yaml")
        file.write_bytes(content)
        try:
            return RainSettings.from_file(file)
        except PolicyError as error:
            raise PolicyError(replace(mistake, file=_PIPE) for mistake in error.mistakes) from None
        except SettingsError as error:
            raise SettingsError(str(error).replace(str(file), _PIPE)) from None


def _policy(settings: RainSettings) -> Table:
    table = Table("criterion", "judges", "passes above", "target", "iterations", "weight", box=None)
    evaluation, most = settings.evaluation, settings.search.iterations
    for judged, criteria in (("text", evaluation.criteria), ("calls", evaluation.actions)):
        for criterion in criteria:
            target = criterion.threshold if criterion.target is None else criterion.target
            numbers = (criterion.threshold, target, criterion.iterations or most, criterion.weight)
            table.add_row(criterion.name, judged, *(f"{number:g}" for number in numbers))
    return table


def _model_name(model: ModelSettings) -> str:
    name = model.name or ("the model" if model.base_url else "the embedded model")
    return f"{name} at {', '.join(model.base_url)}" if model.base_url else name


def schema(
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT.json", help="File to write. Default: standard output.")
    ] = None,
) -> None:
    """Write the JSON schema of policy files, with which an editor validates and completes them."""
    text = json.dumps(RainSettings.file_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
