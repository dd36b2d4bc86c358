"""``rain eval``: the options of the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rain_llm.engine import Rain
from rain_llm.errors import SettingsError
from rain_llm.evals import report
from rain_llm.evals.judges import built_in
from rain_llm.evals.judges import own as own_judges
from rain_llm.evals.methods import CARE, GROUPS, START, UNGUARDED, VARIANTS
from rain_llm.evals.runner import DEFAULT_METHODS, run
from rain_llm.evals.tasks import TASKS
from rain_llm.screen import Countdown
from rain_llm.settings import RainSettings
from rain_llm.standard import page
from rain_llm.standard.reading import to_read
from rain_llm.standard.suites import STANDARD, STANDARD_METHODS, SUITES, named


def _rain(settings: RainSettings) -> Rain:
    """Make the engine; tests replace this function to use their own model."""
    return Rain(settings)


def evaluate(
    suite: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SUITE",
            help=f"Tasks to evaluate: {', '.join(TASKS)}; or all. Suites of public prompts: "
            f"{', '.join(SUITES)}; or {STANDARD}, which is all of them.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="GGUF file, folder or hub name. Default: the embedded model."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Public data: a folder, a file, or OWNER/NAME of a data set."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="dev|test|all", help="Which items to use. Default: all; of suites, test."),
    ] = None,
    suites: Annotated[str, typer.Option(metavar="A,B,...", help=f"Only these suites of {STANDARD}.")] = "",
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help=f"Methods to compare: {', '.join(UNGUARDED)}, best-of-N, {CARE}, {', '.join(VARIANTS)}; "
            f"groups: {', '.join(GROUPS)}; your own: NAME=settings.yaml. "
            f"Default: {','.join(DEFAULT_METHODS)}; for suites {','.join(STANDARD_METHODS)}.",
        ),
    ] = None,
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
    beside: Annotated[
        list[Path] | None,
        typer.Option("--growth", metavar="FOLDER", help="A run of suites by another model, repeatable."),
    ] = None,
    shuffle_readings: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Write N answers of each method to suites for you to read."),
    ] = None,
) -> None:
    """Compare methods: all answer the same prompts, and independent judges measure the answers.

    An interrupted run continues if the same command is given again.
    """
    names = [name for part in suite or () for name in part.split(",") if name]
    if suites and STANDARD in names:
        names = suites.split(",")
    standard = not {STANDARD, *SUITES}.isdisjoint(names)
    split = split or ("test" if standard else "all")
    if not names and not (report_only and out):
        raise typer.BadParameter(f"name tasks: {', '.join(TASKS)}; or all", param_hint="SUITE")
    folder = out or Path("rain-eval") / "-".join(names)
    built_in.check()
    others = own_judges.named(judge or ())
    writer = None
    with Countdown("loading the model") as bar:
        if not report_only:
            usual = START.updated(on_unsafe="refuse") if standard else START
            start = RainSettings.from_file(settings) if settings else usual
            if model is not None:
                start = start.updated(model={"name": model})
            ways, own = _methods(methods or ",".join(STANDARD_METHODS if standard else DEFAULT_METHODS))
            run(
                named(names, data, split),
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
                tell=lambda at: bar.show(f"{at.task}: {at.method}", at.done, at.total, at.left_s),
            )
            writer = _rain(start).runtime.writer  # for the fluency of the answers
        if standard:
            known = Path(data).expanduser() if data else None
            made = page.write(
                folder, data=known, writer=writer, own=others, beside=beside or (), progress=bar.show
            )
            typer.echo(to_read(folder, shuffle_readings) if shuffle_readings else made)
            return
        made = report.write(folder, writer=writer, data=data, own=others, progress=bar.show)
    typer.echo(made)


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
