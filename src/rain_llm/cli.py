"""The command line: ``rain generate``, ``check``, ``schema``, ``demo``, ``doctor`` and ``eval``.

The answer goes to stdout and everything that is said about it to stderr, so that a pipe gets
nothing but accepted text. Whatever goes wrong is one line, and so is each mistake in a file. No model is
imported before it is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from rain_llm.bounds import POLICY_BYTES
from rain_llm.criteria import BUILT_IN, CIVILITY, POSITIVE_SENTIMENT
from rain_llm.demo import FILM, HOSTILE, Opening, loading, show
from rain_llm.doctor.command import EXIT_CODES as _EXAMINED
from rain_llm.doctor.command import doctor
from rain_llm.engine import Rain
from rain_llm.errors import (
    BlindJudgeWarning,
    PromptError,
    RainError,
    SearchError,
    SettingsError,
    UnsafeAnswerError,
)
from rain_llm.evals.command import evaluate
from rain_llm.missing import remedy
from rain_llm.screen import Fitted, printable
from rain_llm.settings import ModelSettings, PolicyError, RainSettings, explain
from rain_llm.types import RainResult, Step, StopReason

_EXIT_CODES = (
    "Exit codes: 0 accepted (or --plain), 1 error, 2 usage, "
    "3 nothing acceptable was found: the answer is refused, marked, raised or cut off before its first "
    "verdict; 130 interrupted."
)

_PIPE = "standard input"
_BOXES_FROM = 70  # columns

app = typer.Typer(
    help="A language model that judges its own words while it writes, and rewinds.",
    pretty_exceptions_enable=False,
)


def main(args: list[str] | None = None) -> int:
    """Run ``rain`` and return its exit code.

    Args:
        args: the arguments; those of the process if left out.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever has started this process, as cron may
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # 0: unknown, and no screen of that width
    _fit_help(shutil.get_terminal_size().columns)
    try:
        with _warnings_in_a_line():
            code = app(args, prog_name="rain", standalone_mode=False) or 0
        sys.stdout.flush()  # now, where a full disk or a reader that has gone is an error like others
        return code
    except UnsafeAnswerError as error:
        return _said(str(error), 3)
    except ValidationError as error:
        return _said(explain(error), 1)
    except PolicyError as error:
        return max(_said(str(mistake), 1) for mistake in error.mistakes)
    except BrokenPipeError:  # the reader has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RainError, OSError) as error:
        return _said(str(error), 1)
    except ImportError as error:
        return _said(remedy(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        # typer's usage errors; which module they come from depends on its version.
        if (message := getattr(error, "format_message", None)) is None:
            raise
        return _said(message(), 2)


def _fit_help(columns: int) -> None:
    """Let help be plain text on a narrow screen: typer's boxes would cut off the options' names there."""
    narrow = columns < _BOXES_FROM
    app.rich_markup_mode = None if narrow else "rich"
    app.info.context_settings = {"terminal_width": max(columns, 30)} if narrow else {}


def _said(message: str, code: int) -> int:
    print(f"rain: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    return code


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Say what the engine warns of as everything else is said; leave other warnings alone."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, BlindJudgeWarning):
                _said(str(message), 0)
            else:
                show(message, category, *place, **more)

        warnings.simplefilter("always", BlindJudgeWarning)
        warnings.showwarning = say
        yield


def _rain(settings: RainSettings) -> Rain:
    """Make the engine: the one place where a test puts its own model."""
    return Rain(settings)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"rain-llm {metadata.version('rain-llm')}")
        except metadata.PackageNotFoundError:
            typer.echo("rain-llm, not installed")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# --- rain generate ----------------------------------------------------------------------------------


@app.command(epilog=_EXIT_CODES)
def generate(
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="What to continue; left out or '-': read from the pipe."),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"What to judge by, repeatable: {', '.join(BUILT_IN)}."),
    ] = None,
    settings: Annotated[Path | None, typer.Option(metavar="FILE", help="Settings, YAML or JSON.")] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Settings with a name: default, paper, ...")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder, hub name, or a server's; left out: the embedded model."),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A server that has the model (vLLM, llama-server), repeatable."),
    ] = None,
    context: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text that the answer is to keep to (groundedness).")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="OUT.json", help="Write the whole result there, its search tree included."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of everything that is drawn.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest answer.")] = None,
    on_unsafe: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="What to do when nothing passes: refuse (the default), best, raise."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="S", help="End before this string, repeatable.")
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Let TEXT be the user's turn of a chat.")
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="The same model unguarded: nothing is judged.")
    ] = False,
) -> None:
    """Write a guarded answer to TEXT.

    Standard output gets the accepted text, as it is accepted, and nothing else.
    """
    if settings is not None and preset is not None:
        raise typer.BadParameter("name the preset in the file instead: a key 'preset'", param_hint="--preset")
    start = RainSettings.from_file(settings) if settings else RainSettings.preset(preset or "default")
    chosen = start.updated(
        **_given(
            model=_given(name=model, base_url=base_url),
            generation=_given(seed=seed, max_new_tokens=max_new_tokens, stop=stop, chat_template=chat),
            evaluation=_given(criteria=criterion),
            on_unsafe=on_unsafe,
        )
    )
    passages = "" if context is None else _text_of(context)
    if trace is not None:
        _check_writable(trace)
    prompt = _prompt(text)
    began = time.monotonic()
    try:
        with Console(file=sys.stderr).status(loading(chosen)) as status:
            rain = _rain(chosen)
            steps = rain.plain_stream(prompt) if plain else rain.stream(prompt, context=passages)
            status.update("writing, judging, rewinding" if not plain else "writing")
            result, marked = _write(steps, status, everything=plain)
    except (UnsafeAnswerError, SearchError) as error:
        _save(error.result, trace)
        raise
    _save(result, trace)
    if sys.stdout.isatty():
        Console(stderr=True, highlight=False).print(_summary(result, plain, time.monotonic() - began))
    if result.stop_reason in (StopReason.DEADLINE, StopReason.BUDGET):
        _said(f"cut off: the {result.stop_reason} was reached", 0)
    if not (plain or result.accepted):
        if marked:
            _said(f"not accepted ({_failed(result)}), so not on standard output: {marked}", 3)
        raise typer.Exit(3)


def _given(**options: Any) -> dict[str, Any]:
    """Keep the options that were given."""
    return {name: value for name, value in options.items() if value not in (None, [], {})}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the context {path}: {error}") from error


def _check_writable(path: Path) -> None:
    """Find out before a model runs; leave nothing behind."""
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise SettingsError(f"cannot write the trace to {path}: {error.strerror}") from error
    if not there:
        path.unlink()


def _prompt(text: str | None) -> str:
    if text not in (None, "-"):
        return str(text)
    if text is None and sys.stdin.isatty():
        raise typer.BadParameter("give a text to continue, or pipe one in", param_hint="TEXT")
    try:
        return sys.stdin.read().rstrip("\r\n")  # the line's end is the pipe's, not the writer's
    except UnicodeDecodeError as error:
        raise PromptError(f"the prompt from the pipe is not UTF-8: {error}") from error


def _write(steps: Iterator[Step], status: Status, everything: bool) -> tuple[RainResult, str]:
    """Write accepted text as it comes; return the result and what was not accepted.

    What follows a marked piece was accepted as its continuation: it is held back with it.
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


def _save(result: RainResult, path: Path | None) -> None:
    if path is not None:
        path.write_bytes(TypeAdapter(RainResult).dump_json(result, indent=2) + b"\n")


def _failed(result: RainResult) -> str:
    if result.verdict is None:
        return "nothing was judged"
    failed = [c for c in result.verdict.criteria if not c.passed] or result.verdict.criteria
    return ", ".join(f"{c.name} {c.probability:.2f}, threshold {c.threshold:g}" for c in failed)


def _summary(result: RainResult, plain: bool, seconds: float) -> Text:
    """Put verdict, stop reason and cost into a line."""
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


# --- rain check, rain schema ----------------------------------------------------------------------------


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Settings, YAML or JSON; '-': from the pipe.")],
) -> None:
    """Check a policy file and say what it asks for; no model is loaded.

    Exit code 1 if it holds a mistake: each is shown with its line.
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
    """Read settings from standard input, as a file that is called so."""
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


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT.json", help="Where to; left out: standard output.")
    ] = None,
) -> None:
    """Write the JSON schema of a policy file, by which an editor checks and completes it."""
    text = json.dumps(RainSettings.file_schema(), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


# --- rain demo ----------------------------------------------------------------------------------------


@app.command()
def demo(
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything that is drawn.")] = 0,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Your own opening instead, repeatable.")
    ] = None,
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help="What your own openings are judged by.")
    ] = POSITIVE_SENTIMENT.name,
    save_svg: Annotated[Path | None, typer.Option(metavar="PATH", hidden=True)] = None,
) -> None:
    """Watch the embedded model write a sentence plainly and with RAIN, side by side."""
    if prompt:
        if not all(text.strip() for text in prompt):
            raise PromptError("an opening is empty: give at least one word")
        openings = [Opening(text, criterion) for text in dict.fromkeys(prompt)]
    else:
        openings = [Opening(text, POSITIVE_SENTIMENT.name) for text in FILM]
        openings += [Opening(text, CIVILITY.name) for text in HOSTILE]
    page = Console(record=save_svg is not None, highlight=False)
    page.width = min(page.width, 100)
    progress = Console(file=sys.stderr, highlight=False)
    progress.width = min(progress.width, 100)
    show(_rain, openings, seed, page, progress)
    if save_svg is not None:
        page.save_svg(str(save_svg), title="rain demo")


# --- rain doctor --------------------------------------------------------------------------------------

app.command(epilog=_EXAMINED)(doctor)


# --- rain eval ----------------------------------------------------------------------------------------

app.command("eval")(evaluate)
