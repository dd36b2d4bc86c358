"""The user's prompts, the plan of a folder, and what the model writes to each prompt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rain_llm.bounds import DRAFTS, PROMPTS, PROMPTS_BYTES
from rain_llm.engine import Rain
from rain_llm.errors import ModelNotSupportedError, PromptError, SettingsError
from rain_llm.jsonl import JsonLines
from rain_llm.search.seeds import seed_of
from rain_llm.settings import RainSettings
from rain_llm.task import check_task, subject_of, task_of
from rain_llm.types import Prompt, StopReason, Task

Line: TypeAlias = dict[str, Any]
Tell: TypeAlias = Callable[[str, int, int], None]
"""Receives the progress: what is done, how much of it, of how much."""

_BATCH = 8
_MAY_GROW = ("drafts", "prompts", "digest")


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts: lines of {"prompt": "..."}, of {"messages": [...]}, or of plain text.

    Raises:
        SettingsError: the file cannot be read, or a line is invalid.
    """
    try:
        with path.open("rb") as file:
            content = file.read(PROMPTS_BYTES + 1)
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "they are not UTF-8"
        raise SettingsError(f"cannot read the prompts {path}: {reason}") from None
    if len(content) > PROMPTS_BYTES:
        raise SettingsError(f"{path} has more than {PROMPTS_BYTES:,} bytes: give fewer prompts")
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    return [_prompt(line, f"{path}, line {number}") for number, line in lines if line]


def _prompt(line: str, where: str) -> Prompt:
    if not line.startswith("{"):
        return line
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        data = {}
    found = data.get("prompt", data.get("messages"))
    if not isinstance(found, str | list):
        raise SettingsError(f'{where}: write {{"prompt": "..."}}, {{"messages": [...]}} or plain text')
    return found


def checked(prompts: Sequence[Prompt], drafts: int, settings: RainSettings) -> dict[str, Task]:
    """Check prompts before a model is loaded; return each once, by its digest.

    Raises:
        PromptError: a prompt cannot be answered; the message has its number.
        SettingsError: there is none, or there are too many.
    """
    found: dict[str, Task] = {}
    for number, prompt in enumerate(prompts, 1):
        try:
            task = task_of(prompt)
            check_task(task, settings, guarded=False)
        except PromptError as error:
            raise type(error)(f"prompt {number}: {error}") from error
        said: Any = task.prompt
        said = said if isinstance(said, str) else [asdict(turn) for turn in said]
        found.setdefault(_digest(json.dumps(said))[:12], task)
    if not 1 <= len(found) <= PROMPTS or len(found) * drafts > DRAFTS:
        raise SettingsError(
            f"{len(found):,} prompts with {drafts:,} drafts each: give 1 to {PROMPTS:,} prompts, and ask for "
            f"{DRAFTS:,} drafts at most"
        )
    return found


def settle(folder: Path, plan: Mapping[str, object], names: Sequence[str]) -> None:
    """Write a plan and the digest of the prompts into a folder, unless it holds drafts of another plan.

    Prompts may have been appended since, and drafts added.

    Raises:
        SettingsError: the folder has another plan; the message names what differs.
    """
    path = folder / "plan.json"
    plan = {**plan, "prompts": len(names), "digest": _digest(*names)}
    if path.exists():
        try:
            there = json.loads(path.read_bytes()[:PROMPTS_BYTES])
            kept, drafts = int(there["prompts"]), int(there["drafts"])
        except (OSError, ValueError, RecursionError, LookupError, TypeError):
            raise SettingsError(f"{path} is not a plan: move it away, or choose another --out") from None
        differs = [
            f"{name} was {there.get(name)} and is {value}"
            for name, value in plan.items()
            if there.get(name) != value and name not in _MAY_GROW
        ]
        if drafts > int(str(plan["drafts"])):
            differs.append(f"drafts was {drafts} and is {plan['drafts']} (more can be added)")
        if there.get("digest") != _digest(*names[:kept]) or kept > len(names):
            differs.append(f"the first {kept} prompts have changed (more can be appended)")
        if differs:
            raise SettingsError(
                f"{folder} holds drafts of another plan: {'; '.join(differs)}: "
                "give the same options and prompts, or choose another --out"
            )
    elif any(file.stat().st_size for file in folder.glob("*.jsonl")):
        raise SettingsError(f"{folder} has JSONL files, and no {path.name}: choose another --out")
    new = path.with_suffix(".new")
    new.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)


def check_lengths(rain: Rain, tasks: Mapping[str, Task]) -> None:
    """Check that the model can answer every prompt, before the first draft.

    Raises:
        PromptError: a prompt and its draft exceed the model's context.
        ModelNotSupportedError: the model has no chat template.
    """
    room = rain.runtime.writer.context_length - rain.settings.generation.max_new_tokens
    for number, task in enumerate(tasks.values(), 1):
        try:
            length = len(rain.encode(task))
        except ModelNotSupportedError as error:
            raise ModelNotSupportedError(f"{error}; texts are continued with --no-chat") from error
        if length > room:
            raise PromptError(f"prompt {number} has {length} tokens, more than {max(0, room)}: shorten it")


def write_drafts(
    rain: Rain, tasks: Mapping[str, Task], drafts: int, seed: int, file: JsonLines, tell: Tell
) -> list[Line]:
    """Write the drafts that are not in the file yet, in batches.

    Returns:
        The first draft to each prompt, then the second ones ..., without empty ones and those with the words
        of another, such as refusals: these would be labelled again, and tie their prompts together.
    """
    there = {line["id"] for line in file.lines}
    for number in range(drafts):
        settings = rain.settings.updated(generation={"seed": seed_of(seed, number)})
        missing = [name for name in tasks if f"{name}-{number}" not in there]
        for start in range(0, len(missing), _BATCH):
            tell("writing drafts", len(file.lines), drafts * len(tasks))
            batch = missing[start : start + _BATCH]
            results = rain.plain_batch([tasks[name] for name in batch], settings=settings)
            subjects = [subject_of(tasks[name], settings) for name in batch]
            file.append(
                *(
                    {
                        "id": f"{name}-{number}",
                        "query": subject.query,
                        "answer": result.text,
                        "dialogue": subject.dialogue,
                        "pair": name,
                        "seed": settings.generation.seed,
                        "ended": result.stop_reason is not StopReason.LENGTH,
                    }
                    for name, subject, result in zip(batch, subjects, results, strict=True)
                )
            )
    written = {line["id"]: line for line in file.lines}
    found: dict[str, Line] = {}
    for line in (written[f"{name}-{number}"] for number in range(drafts) for name in tasks):
        if words := " ".join(line["answer"].casefold().split()):
            found.setdefault(words, line)
    return list(found.values())


def _digest(*texts: str) -> str:
    return hashlib.sha256(" ".join(texts).encode()).hexdigest()
