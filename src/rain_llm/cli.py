"""The command line: ``rain generate``, ``check``, ``schema``, ``demo``, ``doctor``, ``distil`` and ``eval``.

The answer goes to stdout and everything else to stderr, so a pipe receives accepted text only. Each error is
one line, and so is each mistake in a settings file. No model is imported before it is needed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from rain_llm.check import check, schema
from rain_llm.criteria import BUILT_IN, HARMLESSNESS
from rain_llm.demo import MAX_NEW_TOKENS, REQUESTS, Chat, loading, show
from rain_llm.distil.command import EXIT_CODES as _DISTILLED
from rain_llm.distil.command import command as distil
from rain_llm.doctor.command import EXIT_CODES as _EXAMINED
from rain_llm.doctor.command import doctor
from rain_llm.engine import Rain
from rain_llm.errors import (
    BlindJudgeWarning,
    OldNameWarning,
    PromptError,
    RainError,
    SearchError,
    UnmeasuredJudgeWarning,
    UnsafeAnswerError,
)
from rain_llm.evals.command import evaluate
from rain_llm.generate import (
    check_writable,
    failed_criteria,
    read_context,
    read_prompt,
    save_trace,
    summary,
    write,
)
from rain_llm.missing import remedy
from rain_llm.screen import printable
from rain_llm.settings import PolicyError, RainSettings, explain
from rain_llm.types import StopReason

_EXIT_CODES = (
    "Exit codes: 0 accepted (or --plain), 1 error, 2 usage, "
    "3 nothing acceptable was found: the answer is refused, marked, raised or cut off before its first "
    "verdict; 130 interrupted."
)

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
        if getattr(sys, name) is None:  # closed by the parent process, as cron may do
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a model may write what the terminal cannot show
    if not os.environ.get("COLUMNS", "").strip("0"):
        os.environ.pop("COLUMNS", None)  # 0 means unknown, not a screen of that width
    _fit_help(shutil.get_terminal_size().columns)
    try:
        with _warnings_in_a_line():
            code = app(args, prog_name="rain", standalone_mode=False) or 0
        sys.stdout.flush()  # here, so that a full disk or a closed pipe is handled below
        return code
    except UnsafeAnswerError as error:
        return _said(str(error), 3)
    except ValidationError as error:
        return _said(explain(error), 1)
    except PolicyError as error:
        return max(_said(str(mistake), 1) for mistake in error.mistakes)
    except BrokenPipeError:  # the reader has closed the pipe, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RainError, OSError) as error:
        return _said(str(error), 1)
    except ImportError as error:
        return _said(remedy(error), 1)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        # Typer's usage errors: the module that defines them depends on its version.
        if (message := getattr(error, "format_message", None)) is None:
            raise
        return _said(message(), 2)


def _fit_help(columns: int) -> None:
    """Print help as plain text on a narrow screen, where typer's boxes would cut off the options' names."""
    narrow = columns < _BOXES_FROM
    app.rich_markup_mode = None if narrow else "rich"
    app.info.context_settings = {"terminal_width": max(columns, 30)} if narrow else {}


def _said(message: str, code: int) -> int:
    print(f"rain: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    return code


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print warnings about a blind judge or old names as one line each; leave other warnings alone."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def say(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, BlindJudgeWarning | UnmeasuredJudgeWarning | OldNameWarning):
                _said(str(message), 0)
            else:
                show(message, category, *place, **more)

        warnings.simplefilter("always", BlindJudgeWarning)
        warnings.simplefilter("always", UnmeasuredJudgeWarning)
        warnings.simplefilter("always", OldNameWarning)
        warnings.showwarning = say
        yield


def _rain(settings: RainSettings) -> Rain:
    """Make the engine; tests replace this function to use their own model."""
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
        typer.Argument(metavar="TEXT", help="The text to continue. Default, or '-': read standard input."),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Criterion to judge by, repeatable: {', '.join(BUILT_IN)}."),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings file, YAML or JSON.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Named settings: default, paper, ...")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="GGUF file, folder, hub name or a server's name for it. Default: the embedded model.",
        ),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Server that runs the model (vLLM, llama-server), repeatable."),
    ] = None,
    context: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with a text that must support the answer (groundedness)."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.json", help="Write the complete result, with its search tree, to this file."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the random numbers.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Maximum length of the answer, in tokens.")
    ] = None,
    on_unsafe: Annotated[
        str | None,
        typer.Option(
            metavar="HOW", help="If no answer passes: refuse (default), best (return it marked) or raise."
        ),
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="S", help="Stop before this string, repeatable.")
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template, with TEXT as the user's message."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Use the model unguarded, without judging.")] = False,
) -> None:
    """Write a guarded answer to TEXT.

    Only accepted text is written to standard output, as soon as it is accepted.
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
    passages = "" if context is None else read_context(context)
    if trace is not None:
        check_writable(trace)
    prompt = read_prompt(text)
    began = time.monotonic()
    try:
        with Console(file=sys.stderr).status(loading(chosen)) as status:
            rain = _rain(chosen)
            steps = rain.plain_stream(prompt) if plain else rain.stream(prompt, context=passages)
            status.update("writing, judging, rewinding" if not plain else "writing")
            result, marked = write(steps, status, everything=plain)
    except (UnsafeAnswerError, SearchError) as error:
        save_trace(error.result, trace)
        raise
    save_trace(result, trace)
    if sys.stdout.isatty():
        Console(stderr=True, highlight=False).print(summary(result, plain, time.monotonic() - began))
    if result.stop_reason in (StopReason.DEADLINE, StopReason.BUDGET):
        _said(f"cut off: the {result.stop_reason} was reached", 0)
    if not (plain or result.accepted):
        if marked:
            _said(f"not accepted ({failed_criteria(result)}), so not on standard output: {marked}", 3)
        raise typer.Exit(3)


def _given(**options: Any) -> dict[str, Any]:
    """Drop the options that were not given."""
    return {name: value for name, value in options.items() if value not in (None, [], {})}


app.command()(check)
app.command()(schema)


# --- rain demo ----------------------------------------------------------------------------------------


@app.command()
def demo(
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the random numbers.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="GGUF file, folder or hub name. Default: the embedded model."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Answer this request instead, repeatable.")
    ] = None,
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help="Criterion to judge by.")
    ] = HARMLESSNESS.name,
    save_svg: Annotated[Path | None, typer.Option(metavar="PATH", hidden=True)] = None,
) -> None:
    """Show how a model answers chats unguarded and with RAIN, side by side."""
    requests = {"own": tuple(dict.fromkeys(prompt))} if prompt else REQUESTS
    chats = [Chat(text, kind) for kind, texts in requests.items() for text in texts]
    if not all(chat.request.strip() for chat in chats):
        raise PromptError("a request is empty: give at least one word")
    settings = RainSettings().updated(
        model=_given(name=model),
        generation={"max_new_tokens": MAX_NEW_TOKENS, "seed": seed},
        evaluation={"criteria": [criterion]},
    )
    page = Console(record=save_svg is not None, highlight=False)
    progress = Console(file=sys.stderr, highlight=False)
    for console in (page, progress):
        console.width = min(console.width, 140)
    show(_rain(settings), chats, page, progress)
    if save_svg is not None:
        page.save_svg(str(save_svg), title="rain demo")


app.command(epilog=_EXAMINED)(doctor)
app.command("distil", epilog=_DISTILLED)(distil)
app.command("eval")(evaluate)
