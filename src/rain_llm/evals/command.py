"""``rain eval``: the options of the command, and its progress bar."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from rain_llm.engine import Rain
from rain_llm.errors import SettingsError
from rain_llm.evals import report
from rain_llm.evals.judges import built_in
from rain_llm.evals.judges import own as own_judges
from rain_llm.evals.methods import GROUPS, START, UNGUARDED, VARIANTS
from rain_llm.evals.runner import DEFAULT_METHODS, Progress, run
from rain_llm.evals.tasks import TASKS
from rain_llm.settings import RainSettings


def _rain(settings: RainSettings) -> Rain:
    """Make the engine; tests replace this function to use their own model."""
    return Rain(settings)


def evaluate(
    suite: Annotated[
        list[str] | None,
        typer.Argument(metavar="SUITE", help=f"Tasks to evaluate: {', '.join(TASKS)}; or all."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="GGUF file, folder or hub name. Default: the embedded model."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Public data: a folder, a file, or OWNER/NAME of a data set."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="dev|test|all", help="Which items to use.")] = "all",
    methods: Annotated[
        str,
        typer.Option(
            metavar="A,B,...",
            help=f"Methods to compare: {', '.join(UNGUARDED)}, best-of-N, {', '.join(VARIANTS)}; groups: "
            f"{', '.join(GROUPS)}; your own: NAME=settings.yaml.",
        ),
    ] = ",".join(DEFAULT_METHODS),
    seeds: Annotated[int, typer.Option(metavar="N", help="Number of seeds, from 0 on.")] = 1,
    first: Annotated[
        int | None, typer.Option(metavar="N", help="Use only the first N items of each task.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="sentence|N", help="Length of an answer. Default: the task's own.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file that the methods start from.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND:NAME",
            help="Your own judge, repeatable: transformers:FOLDER[:LABEL] or langchain:PROVIDER:MODEL.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for answers and report; an interrupted run continues there."
        ),
    ] = None,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Make the report in --out again, without writing answers.")
    ] = False,
) -> None:
    """Compare methods: all answer the same prompts, and independent judges measure the answers.

    An interrupted run continues if the same command is given again.
    """
    names = [name for part in suite or () for name in part.split(",") if name]
    if not names and not (report_only and out):
        raise typer.BadParameter(f"name tasks: {', '.join(TASKS)}; or all", param_hint="SUITE")
    folder = out or Path("rain-eval") / "-".join(names)
    built_in.check()
    others = own_judges.named(judge or ())
    writer = None
    with _Watch() as watch:
        if not report_only:
            start = RainSettings.from_file(settings) if settings else START
            if model is not None:
                start = start.updated(model={"name": model})
            ways, own = _methods(methods)
            run(
                names,
                folder,
                methods=ways,
                data=data,
                split=split,
                seeds=seeds,
                first=first,
                tokens=_tokens(tokens),
                settings=start,
                own=own,
                make=_rain,
                tell=watch.tell,
            )
            writer = _rain(start).runtime.writer  # for the fluency of the answers
        page = report.write(folder, writer=writer, data=data, own=others, progress=watch.say)
    typer.echo(page)


def _methods(text: str) -> tuple[list[str], dict[str, RainSettings]]:
    """Split the names of methods; read the user's own settings files."""
    names, own = [], {}
    for part in text.split(","):
        name, is_own, file = part.strip().partition("=")
        if is_own:
            own[name] = RainSettings.from_file(file)
        names.append(name)
    return names, own


def _tokens(text: str | None) -> int | None:
    if text is None or text == "sentence":
        return None
    if not text.isdecimal():
        raise SettingsError(f"--tokens {text} is neither a number nor 'sentence'")
    return int(text)


class _Watch:
    """A progress bar with the time that is left; hidden where standard error is no terminal."""

    def __init__(self) -> None:
        console = Console(file=sys.stderr)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("loading the model", total=None, left="")

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def tell(self, progress: Progress) -> None:
        """Show the progress of the run."""
        self._bar.update(
            self._task,
            description=f"{progress.task}: {progress.method}",
            completed=progress.done,
            total=progress.total,
            left="" if progress.left_s is None else f"about {_spell(progress.left_s)} left",
            refresh=True,
        )

    def say(self, line: str) -> None:
        """Show what is done after the run."""
        self._bar.update(self._task, description=line, left="")


def _spell(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
