"""The command ``rain doctor``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.text import Text

from rain_llm.criteria import BUILT_IN
from rain_llm.criteria.criterion import Criterion
from rain_llm.demo import loading
from rain_llm.doctor.examine import examine, expected
from rain_llm.doctor.findings import Diagnosis, Trust
from rain_llm.doctor.items import read, shipped
from rain_llm.doctor.merging import changes, found, merged, text_of, usable
from rain_llm.doctor.report import page, sentence, summary, title
from rain_llm.doctor.settings_file import settings_file
from rain_llm.engine import Rain
from rain_llm.errors import SettingsError
from rain_llm.models.base import LanguageModel
from rain_llm.probing.halves import MOST_READ, subset
from rain_llm.screen import advancing
from rain_llm.settings import EvaluationSettings, RainSettings, read_policy

_WIDTH = 100
EXIT_CODES = "Exit codes: 0 examined, 1 error, 2 usage, 3 with --strict: something can't be judged."


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="GGUF file, folder or hub name. Default: the embedded model."),
    ] = None,
    criterion: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"What to examine, repeatable: {', '.join(BUILT_IN)}."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.jsonl", help="Your own labelled answers, repeatable. Default: ours."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings, YAML or JSON: judge and criteria."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="File to write the fitted settings to.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the probes. Default: that of --out.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="File to write the complete results to.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Seed of the split and of the intervals.")
    ] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a judgement is not above chance.")
    ] = False,
) -> None:
    """Test whether MODEL can judge answers, and fit the question style, calibration and threshold."""
    chosen = RainSettings.from_file(settings) if settings else RainSettings()
    criteria = _criteria(criterion or [], chosen.evaluation if settings else None)
    if data and len(criteria) > 1:
        raise typer.BadParameter(
            "select the criterion of the labelled answers: --criterion NAME", param_hint="--data"
        )
    most = None if fit or out else MOST_READ
    items = {c.name: read(*data) if data else subset(shipped(c.name), most, seed) for c in criteria}
    folder = fit or (out.parent if out else None)
    probes = [folder / f"{c.name}.probe.json" for c in criteria] if folder else []
    if folder is not None:
        folder.mkdir(exist_ok=True, parents=True)
    for path in (out, json, *probes):
        if path is not None:
            _check_target(path, force)

    began = time.monotonic()
    judge_settings = chosen.evaluation.judge or chosen.model
    if model is not None:
        named = {**judge_settings.model_dump(), "name": model, "revision": None}
        named["api_key"] = judge_settings.api_key
        judge_settings = RainSettings().updated(model=named).model
    progress = Console(file=sys.stderr, highlight=False)
    alone = RainSettings(model=judge_settings)
    with progress.status(loading(alone)):
        judge = _judge(alone)
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH)
    size = sum(len(found) for found in items.values())
    source = ", ".join(map(str, data)) if data else "those that ship"
    console.print(title(judge.name, f"{size} labelled answers, {source}", seed))
    examinations = []
    for number, one in enumerate(criteria, 1):
        task = f"{one.name}, {number} of {len(criteria)}"
        total = expected(one, chosen.evaluation, items[one.name], reads=True)
        with advancing(progress, task, total) as tell:
            found = examine(judge, one, chosen.evaluation, items[one.name], seed, tell, folder, reads=True)
        console.print(page(found, console.width))
        examinations.append(found)
    diagnosis = Diagnosis(
        judge.name,
        judge_settings,
        chosen.evaluation.judge is not None,
        source,
        seed,
        tuple(examinations),
        time.monotonic() - began,
    )
    console.print(summary(diagnosis))
    notes: list[str] = []
    if json is not None:
        _save_diagnosis(diagnosis, json)
        notes.append(f"Complete results: {json}")
    if out is not None and settings is not None:
        notes += _save_merged(diagnosis, read_policy(settings), chosen, settings, out)
    elif out is not None:
        text = settings_file(diagnosis, criterion or [], [c.name for c in chosen.evaluation.actions])
        out.write_text(text, encoding="utf-8")
    if out is not None:
        notes.append(f'Settings: {out}; use them: rain generate --settings {out} "..."')
    tokens = sum(examination.model_tokens for examination in diagnosis.examinations)
    cost = Text(f"\n{tokens:,} tokens through the model, {diagnosis.seconds:.0f} s", "dim")
    console.print(cost, *map(Text, notes), sep="\n")
    if strict and not all(e.trust in (Trust.YES, Trust.WEAK) for e in examinations):
        raise typer.Exit(3)


def _judge(settings: RainSettings) -> LanguageModel:
    """Load the model to examine (tests replace this function)."""
    return Rain(settings).runtime.judge


def _criteria(names: list[str], own: EvaluationSettings | None) -> list[Criterion]:
    """Return the criteria with these names, from the user's settings or else the built-in ones."""
    known = BUILT_IN | {c.name: c for c in ((*own.criteria, *own.actions) if own else ())}
    for name in names:
        if name not in known:
            raise SettingsError(
                f"unknown criterion '{name}': there are {', '.join(known)}; "
                "add your own to a settings file and pass it with --settings FILE"
            )
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return list(own.criteria if own else BUILT_IN.values())


def _check_target(path: Path, force: bool) -> None:
    """Check that a file can be written, before a model runs."""
    if path.exists() and not force:
        raise SettingsError(f"{path} exists: name another file, or overwrite it with --force")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"cannot write {path}: name a file in a folder that may be written to")


def _save_diagnosis(diagnosis: Diagnosis, path: Path) -> None:
    data = {"verdict": sentence(diagnosis), **TypeAdapter(Diagnosis).dump_python(diagnosis, mode="json")}
    path.write_bytes(TypeAdapter(dict).dump_json(data, indent=2) + b"\n")


def _save_merged(
    diagnosis: Diagnosis, policy: dict[str, Any], chosen: RainSettings, source: Path, path: Path
) -> list[str]:
    """Write the settings file with the fit merged in; return the lines that report it."""
    fitted = usable(diagnosis, chosen.evaluation)
    data = merged(policy, chosen, diagnosis, fitted)
    after = RainSettings.from_data(data)
    lines = found(diagnosis, fitted)
    path.write_text(text_of(data, diagnosis, lines, path.suffix == ".json"), encoding="utf-8")
    changed = changes(chosen, after) or ["nothing"]
    keys = [model.api_key for model in (chosen.model, chosen.evaluation.judge) if model is not None]
    return [
        f"{path} contains all of {source}, without its comments. What is different:",
        *(f"  {line}" for line in changed),
        *(line for line in lines if line.endswith("left as it was")),
        *(["The API key is left out: set RAIN_LLM_API_KEY, or add it."] if any(keys) else []),
    ]
