"""From labels to a probe: some prompts are held out, and the probe is tested on these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rain_llm.criteria import BUILT_IN
from rain_llm.distil.drafts import Tell
from rain_llm.doctor.items import LEAST, Item
from rain_llm.doctor.measures import Groups, auc_interval
from rain_llm.errors import SettingsError
from rain_llm.judging.probe import Measured, Probe
from rain_llm.judging.reading import prefix_of
from rain_llm.models.base import Readable
from rain_llm.probing.examining import answers_of, examine_probe
from rain_llm.probing.findings import Probed, Row
from rain_llm.requests import Read


class TooFewLabels(SettingsError):
    """Raised if no probe can be fitted to the labels so far; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Distilled:
    """What has become of the labels.

    Attributes:
        probed: the probe and its examination in folds; its probe is None if it is no better than chance.
        good, bad: number of labels of each kind, including those held out.
        tests: the AUC of this very probe on the prompts that were held out, and on the user's own answers.
        notes: what could not be measured, and what casts doubt on it.
        settings: the settings file that uses the probe; None without a probe.
    """

    probed: Probed
    good: int
    bad: int
    tests: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Path | None = None


def parted(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split labelled drafts into those to fit to and those held out: whole prompts, labels spread evenly."""
    groups = _groups(items)
    names = np.unique(groups)
    labels = np.array([item.good for item in items])
    good = [labels[groups == name].mean() for name in names]
    order = names[np.lexsort((np.random.default_rng(seed).permutation(len(names)), good))]
    count = round(share * len(names))
    held = np.isin(groups, [order[int((place + 0.5) * len(names) / count)] for place in range(count)])
    fitted, kept = ([items[i] for i in np.flatnonzero(held == out).tolist()] for out in (False, True))
    return fitted, kept


def _groups(items: Sequence[Item]) -> Groups:
    """Return the number of each item's prompt."""
    return np.unique([" ".join(item.query.casefold().split()) for item in items], return_inverse=True)[1]


def fit(
    model: Readable,
    name: str | None,
    criterion: str,
    items: Sequence[Item],
    test: Sequence[Item],
    share: float,
    seed: int,
    folder: Path,
    tell: Tell,
) -> Distilled:
    """Fit a probe to labelled drafts, test it, and write its file and the settings that use it.

    Raises:
        TooFewLabels: there are too few of one label, or too few prompts.
    """
    fitted, held = parted(items, share, seed)
    _check(criterion, len(items), fitted)
    progress = iter(range(1, len(fitted) + 1))

    def read(count: int) -> None:
        done = next(progress)
        tell("reading drafts" if done < len(fitted) else "fitting to drafts", done, len(fitted))

    probed = examine_probe(model, criterion, fitted, seed, read)
    good = sum(item.good for item in items)
    if probed.probe is None:
        return Distilled(probed, good, len(items) - good)
    tests, notes = [], []
    for title, some in ((f"{len({i.pair for i in held})} prompts held out", held), ("own test", test)):
        if len({item.good for item in some}) == 2:
            scores = np.array(_log_odds(model, probed.probe, some))
            labels = np.array([item.good for item in some])
            tests.append(Row(title, len(some), auc_interval(scores, labels, _groups(some), seed)))
        elif some:
            notes.append(f"{title}: all {len(some)} answers have the same label, so there is no AUC")
    known = {item.query for item in fitted}
    if again := sum(item.query in known for item in test):
        notes.append(f"own test: {again} answers are to prompts that the probe was fitted to")
    figures = tuple(
        Measured(name=f"AUC, {row.name}", value=row.auc.value, low=row.auc.low, high=row.auc.high, n=row.n)
        for row in tests
    )
    file = folder / f"{criterion}.probe.json"
    new = file.with_suffix(".new")
    probed.probe.model_copy(update={"held_out": (*figures, *probed.probe.held_out)}).save(new)
    os.replace(new, file)
    entry = {"extends" if criterion in BUILT_IN else "name": criterion, "probe": str(file.resolve())}
    data: dict[str, Any] = {"model": {"name": name}} if name else {}
    data |= {"generation": {"chat_template": True}} if fitted[0].dialogue else {}
    data |= {"evaluation": {"criteria": [entry]}}
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return Distilled(probed, good, len(items) - good, tuple(tests), tuple(notes), settings)


def _check(criterion: str, labelled: int, fitted: Sequence[Item]) -> None:
    good = sum(item.good for item in fitted)
    counts = {"good": good, "bad": len(fitted) - good}
    few = [f"{LEAST - count} {kind} ones are missing" for kind, count in counts.items() if count < LEAST]
    reason = f"at least {LEAST} of each are needed: {', '.join(few)}" if few else ""
    if not few:
        try:
            answers_of(fitted)[0].check()
        except SettingsError as error:
            reason = str(error)
    if reason:
        wanted = " that lead to bad drafts" if counts["bad"] < LEAST else ""
        raise TooFewLabels(
            f"{labelled} drafts are labelled for '{criterion}'; {counts['good']} good and {counts['bad']} "
            f"bad ones are not held out: {reason}. The labels are kept: append prompts{wanted}, or raise "
            "--drafts, and give the command again"
        )


def _log_odds(model: Readable, probe: Probe, items: Sequence[Item]) -> list[float]:
    """Read answers by the probe, in the way of a guarded answer."""
    reading = probe.reading
    model.watch([reading])
    found = []
    for item in items:
        read = Read(prefix_of(model, item.subject), model.encode(item.said), (reading.name,))
        found += [probe.log_odds(reply.values[0]) for reply in model.read([read])]
    return found
