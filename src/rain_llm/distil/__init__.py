"""``rain distil``: a slow judge labels the model's own drafts, and a probe is fitted to these labels.

Modules, from the lowest layer up: ``drafts`` (prompts, plan, drafts), ``labels``, ``person`` (a judge),
``fitting`` (the probe), ``command`` (the command line).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from rain_llm.bounds import DRAFT_TOKENS
from rain_llm.criteria import BUILT_IN, HARMLESS_ACTIONS
from rain_llm.distil.drafts import Tell, check_lengths, checked, settle, write_drafts
from rain_llm.distil.fitting import Distilled, TooFewLabels, fit
from rain_llm.distil.labels import Act, Judged, Label, label_drafts
from rain_llm.doctor.items import Item
from rain_llm.engine import Rain
from rain_llm.errors import ModelNotSupportedError, SettingsError
from rain_llm.jsonl import JsonLines
from rain_llm.models.base import LanguageModel, Readable
from rain_llm.settings import RainSettings, explain
from rain_llm.types import Prompt

__all__ = ["Act", "Distilled", "Judged", "Label", "TooFewLabels", "distil"]


def distil(
    model: str | LanguageModel | None,
    prompts: Sequence[Prompt],
    label: Label,
    *,
    criterion: str,
    folder: str | Path,
    drafts: int = 4,
    tokens: int = 64,
    seed: int = 0,
    hold_out: float = 0.4,
    chat: bool = True,
    test: Sequence[Item] = (),
    judge: str = "function",
    at_once: int = 1,
    tell: Tell = lambda stage, done, total: None,
) -> Distilled:
    """Fit a probe to what a slow judge says of the model's own drafts.

    Drafts and labels are kept in the folder: the same call continues an interrupted one. Prompts may be
    appended, and ``drafts`` may be raised.

    Args:
        model: GGUF file, folder or hub name; or a loaded model; None: the embedded model.
        prompts: texts, or lists of chat messages.
        label: receives a prompt and a draft; returns whether the draft meets the criterion, the probability
            that it does, or None to leave it out.
        criterion: name of the criterion, a built-in one or your own.
        folder: receives ``drafts.jsonl``, ``labels.jsonl``, the probe, and the settings that use it.
        drafts: number of drafts to each prompt.
        tokens: maximum length of a draft.
        seed: seed of the drafts, the split and the folds.
        hold_out: share of the prompts that the probe is tested on, and not fitted to.
        chat: prompts are a user's turns; otherwise texts to continue.
        test: labelled answers of your own to test the probe on, too.
        judge: name of the judge, which is kept with its labels.
        at_once: number of drafts that are labelled at the same time, in threads.
        tell: receives the progress: what is done, how much of it, of how much.

    Raises:
        SettingsError: an option is out of bounds, or the folder holds drafts of another plan.
        PromptError: a prompt cannot be answered.
        ModelNotSupportedError: the model gives no hidden states.
        TooFewLabels: there are too few labels of a kind; they are kept.
    """
    known = BUILT_IN.get(criterion)
    if not re.fullmatch(r"[\w-]{1,100}", criterion):
        raise SettingsError("the name of a criterion has 1 to 100 letters, digits, _ and -: give another one")
    if known and (known.needs_context or known == HARMLESS_ACTIONS):
        raise SettingsError(
            f"'{criterion}' judges passages or tool calls, which drafts do not have: "
            "fit it to labelled answers of your own, with rain doctor --fit"
        )
    if drafts < 1 or at_once < 1 or not 1 <= tokens <= DRAFT_TOKENS or not 0 <= hold_out <= 0.8:
        raise SettingsError(
            f"drafts={drafts}, at_once={at_once}, tokens={tokens}, hold_out={hold_out:g}: "
            f"give at least 1, at least 1, 1 to {DRAFT_TOKENS:,}, and a share from 0 to 0.8"
        )
    name = model if isinstance(model, str) else None
    settings = RainSettings().updated(
        model={"name": name} if name else {}, generation={"max_new_tokens": tokens, "chat_template": chat}
    )
    tasks = checked(prompts, drafts, settings)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot make the folder {folder}: {error.strerror}") from error
    rain = Rain(settings, model=None if isinstance(model, str) else model)
    writer = rain.runtime.writer
    if not isinstance(writer, Readable):
        raise ModelNotSupportedError(
            f"{writer.name} gives no hidden states: use a GGUF file or a transformers model in this process"
        )
    check_lengths(rain, tasks)
    with (
        JsonLines(folder / "drafts.jsonl") as written,
        JsonLines(folder / "labels.jsonl") as labels,
        JsonLines(folder / "skipped.jsonl") as skipped,
    ):
        plan = {"criterion": criterion, "model": writer.fingerprint, "seed": seed, "tokens": tokens}
        settle(folder, {**plan, "chat": chat, "drafts": drafts}, list(tasks))
        found = write_drafts(rain, tasks, drafts, seed, written, tell)
        label_drafts(found, tasks, label, judge, at_once, labels, skipped, tell)
        items = [_item(line, number) for number, line in enumerate(labels.lines, 1)]
    return fit(writer, name, criterion, items, test, hold_out, seed, folder, tell)


def _item(line: dict[str, object], number: int) -> Item:
    try:
        return Item.model_validate({**line, "source": "labels.jsonl"})
    except ValidationError as error:
        raise SettingsError(f"line {number} of labels.jsonl is not a label: {explain(error)}") from error
