"""The command ``rain distil``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from rain_llm.distil import TooFewLabels, distil
from rain_llm.distil.drafts import read_prompts
from rain_llm.distil.labels import Label, by_settings
from rain_llm.distil.person import Person
from rain_llm.doctor.items import read
from rain_llm.errors import SettingsError
from rain_llm.models.base import LanguageModel
from rain_llm.probing import report
from rain_llm.screen import printable

EXIT_CODES = (
    "Exit codes: 0 a probe was fitted, 1 error, 2 usage, 3 no probe: too few labels, or they cannot be read; "
    "130 interrupted."
)
_AT_ONCE = 8  # drafts that the judge of a settings file labels at the same time
_WIDTH = 100
_KEYS = "g good, b bad, s skip, u undo, q enough"


def command(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="GGUF file, folder or hub name. Default: the embedded model."),
    ] = None,
    *,
    prompts: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Your prompts, one a line.")],
    judge: Annotated[
        str, typer.Option(metavar="WHO", help="Who labels the drafts: person, or settings:FILE.yaml.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder for drafts, labels and probe; a run continues there."),
    ],
    criterion: Annotated[
        str, typer.Option(metavar="NAME", help="What is labelled, such as civility; or a name of your own.")
    ] = "harmlessness",
    drafts: Annotated[int, typer.Option(metavar="N", help="Number of drafts to each prompt.")] = 4,
    tokens: Annotated[int, typer.Option(metavar="N", help="Maximum length of a draft.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of drafts and folds.")] = 0,
    hold_out: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the prompts to test on, not to fit to.")
    ] = 0.4,
    test: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Labelled answers to test on, too.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Prompts are a user's turns, or texts to continue.")
    ] = True,
) -> None:
    """Let a slow judge label MODEL's own drafts, and fit a probe that judges at no cost.

    Give an interrupted command again to go on.
    """
    asked = read_prompts(prompts)
    tests = read(test) if test else []
    page = Console(highlight=False)
    page.width = min(page.width, _WIDTH)
    watch = _Watch(page, criterion, judge == "person")
    label, at_once = _judge(judge, criterion, chat, watch)
    try:
        found = distil(
            _model(model),
            asked,
            label,
            criterion=criterion,
            folder=out,
            drafts=drafts,
            tokens=tokens,
            seed=seed,
            hold_out=hold_out,
            chat=chat,
            test=tests,
            judge=judge,
            at_once=at_once,
            tell=watch.tell,
        )
    except KeyboardInterrupt:
        typer.echo("rain: stopped; give the same command again to go on", err=True)
        raise
    except TooFewLabels as error:
        page.print(Text(str(error), "yellow"))
        raise typer.Exit(3) from None
    finally:
        watch.close()
    counts = f"{found.good} good and {found.bad} bad drafts to {len(asked)} prompts, labelled by {judge}"
    page.print(Text(f"{criterion}: {counts}"), report.page(found.probed.findings))
    if found.settings is None:
        page.print(Text("\nNo probe: it would be no better than chance. The labels are kept.", "yellow"))
        raise typer.Exit(3)
    for row in found.tests:
        auc = f"AUC {row.auc.value:.2f} [{row.auc.low:.2f}, {row.auc.high:.2f}]"
        page.print(Text.assemble(f"\n{row.name}, {row.n} answers: ", (auc, "bold")))
    page.print(*(Text(note, "yellow") for note in found.notes), sep="\n")
    page.print(Text(f'Use it: rain generate --settings {found.settings} "..."'), soft_wrap=True)


def _model(name: str | None) -> str | LanguageModel | None:
    """Return the model to distil into (tests replace this function)."""
    return name


def _judge(name: str, criterion: str, chat: bool, watch: _Watch) -> tuple[Label, int]:
    kind, _, file = name.partition(":")
    if name == "person":
        return watch.person, 1
    if kind == "settings" and file:
        return by_settings(Path(file), criterion, chat), _AT_ONCE
    raise SettingsError("unknown judge: write --judge person, or --judge settings:FILE.yaml")


def _key() -> str:
    """Wait for a key on a terminal, or read a character from a pipe."""
    try:
        return typer.getchar() if sys.stdin.isatty() else sys.stdin.read(1)
    except EOFError:  # Ctrl-D
        return ""


class _Watch:
    """Shows the progress on standard error, or above the drafts that a person labels."""

    def __init__(self, page: Console, criterion: str, by_person: bool) -> None:
        self._page = page
        self._criterion = criterion
        self._by_person = by_person
        self._status = Console(file=sys.stderr, highlight=False).status("loading the model")
        self.person = Person(self._show, _key)

    def tell(self, stage: str, done: int, total: int) -> None:
        """Show the progress of a stage."""
        if self._by_person and stage == "labelling":
            self._status.stop()
            self.person.title = f"draft, {done} of {total} labelled: {self._criterion}? {_KEYS}"
        else:
            self._status.update(f"{stage}, {done:,} of {total:,}")
            self._status.start()

    def close(self) -> None:
        """Remove the progress from the screen."""
        self._status.stop()

    def _show(self, title: str, text: str) -> None:
        self._page.print(Text(title, "bold"), Panel(Text(printable(text))), sep="\n")
