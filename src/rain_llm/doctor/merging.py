"""Merge fitted settings into an existing settings file; all other settings stay as they are."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import yaml

from rain_llm.criteria import BUILT_IN, HARMLESS_ACTIONS
from rain_llm.criteria.criterion import Criterion
from rain_llm.doctor.findings import SAID, Diagnosis, Held, Trust
from rain_llm.doctor.settings_file import fitted_numbers
from rain_llm.settings import EvaluationSettings, RainSettings

_ASKED = ("style", "probe", "labels", "frames", "choice", "channel")
_PLACES = ("criteria", "actions")


def merged(
    policy: Mapping[str, Any], settings: RainSettings, diagnosis: Diagnosis, fitted: Mapping[str, Held]
) -> dict[str, Any]:
    """Return the content of a settings file with the fit merged in, and without API keys.

    Args:
        policy: the content of the file.
        settings: the settings created from it.
        diagnosis: the results.
        fitted: see :func:`usable`.
    """
    data: dict[str, Any] = copy.deepcopy(dict(policy))
    section = dict(data.get("evaluation") or {})
    own = {criterion.name for criterion in (*settings.evaluation.criteria, *settings.evaluation.actions)}
    new: dict[str, list[Criterion]] = {place: [] for place in _PLACES}
    for examination in diagnosis.examinations:
        criterion = examination.criterion
        if criterion.name in fitted and criterion.name not in own:
            new["actions" if criterion.name == HARMLESS_ACTIONS.name else "criteria"].append(criterion)
    for place in _PLACES:
        there: Sequence[Criterion] = getattr(settings.evaluation, place)
        if any(criterion.name in fitted for criterion in (*there, *new[place])):
            entries = [*_entries(section.get(place), there), *map(_entry, new[place])]
            section[place] = [
                _fitted(entry, criterion, settings.evaluation, fitted.get(criterion.name))
                for entry, criterion in zip(entries, [*there, *new[place]], strict=True)
            ]
    if fitted:
        section["mode"] = "soft"
        shared = next((held.style.shared for held in fitted.values() if held.style.shared), None)
        if shared and shared != (settings.evaluation.chat_template, settings.evaluation.examples):
            section |= dict(zip(("chat_template", "examples"), shared, strict=True))
        data["evaluation"] = section
    _name_the_model(data, settings, diagnosis)
    return _without_keys(data)  # type: ignore[no-any-return]


def usable(diagnosis: Diagnosis, evaluation: EvaluationSettings) -> dict[str, Held]:
    """Return the usable fit of each criterion, by the criterion's name.

    All criteria share the chat template and the worked examples. These change only if all criteria of the
    file were fitted with the same ones; otherwise each criterion keeps its current style.
    """
    best = {e.criterion.name: e.recommended for e in diagnosis.examinations if _usable(e.recommended)}
    names = {criterion.name for criterion in (*evaluation.criteria, *evaluation.actions)}
    if names <= set(best) and len({held.style.shared for held in best.values()} - {None}) <= 1:
        return best
    as_set = evaluation.chat_template, evaluation.examples
    kept: dict[str, Held] = {}
    for examination in diagnosis.examinations:
        for held in (examination.recommended, examination.as_set):
            if _usable(held) and held.style.shared in (None, as_set):
                kept.setdefault(examination.criterion.name, held)
    return kept


def text_of(data: Mapping[str, Any], diagnosis: Diagnosis, lines: Sequence[str], as_json: bool) -> str:
    """Return the text of a settings file; YAML has comments with the result for each criterion."""
    if as_json:
        return json.dumps(data, indent=2) + "\n"
    model, source = (" ".join(name.split()) for name in (diagnosis.model, diagnosis.data))  # on one line
    head = f"Fitted by `rain doctor` to {model}; answers: {source}; seed {diagnosis.seed}."
    comments = "".join(f"# {line}\n" for line in (head, *lines))
    return comments + yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def found(diagnosis: Diagnosis, fitted: Collection[str]) -> list[str]:
    """Return a line for each criterion: whether it can be judged, and whether it was left as it was."""
    lines = []
    for examination in diagnosis.examinations:
        name, auc = examination.criterion.name, examination.recommended.complete.auc
        line = f"{name} {SAID[examination.trust]}: AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]"
        if name not in fitted:
            way = f", but only asked otherwise ({examination.recommended.style.name})"
            line += f"{way if _usable(examination.recommended) else ''}; left as it was"
        lines.append(line)
    return lines


def changes(before: RainSettings, after: RainSettings) -> list[str]:
    """Return a line for each difference: field, old and new value."""
    old, new = (dict(_flat(settings.model_dump(mode="json"))) for settings in (before, after))
    names = dict.fromkeys([*old, *new])
    return [
        f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _usable(held: Held) -> bool:
    return held.fit is not None and held.trust in (Trust.YES, Trust.WEAK)


def _entries(written: Any, criteria: Sequence[Criterion]) -> list[Any]:
    """Return the entries of a list in the file; if it has none, those of its preset."""
    if written is None:
        return [_entry(criterion) for criterion in criteria]
    return list(written) if isinstance(written, list) else [written]


def _entry(criterion: Criterion) -> Any:
    if BUILT_IN.get(criterion.name) == criterion:
        return criterion.name
    return criterion.model_dump(mode="json", exclude_defaults=True)


def _fitted(entry: Any, criterion: Criterion, evaluation: EvaluationSettings, held: Held | None) -> Any:
    """Return an entry with the fitted numbers, and with the fields of the style that change."""
    if held is None:
        return entry
    new = held.style.criterion.model_dump(mode="json")
    old = {**criterion.model_dump(mode="json"), "style": criterion.style or evaluation.style}
    different = {name: new[name] for name in _ASKED if new[name] != old[name]}
    base = {"extends": entry} if isinstance(entry, str) else dict(entry)
    return {**base, **different, **fitted_numbers(held)}


def _name_the_model(data: dict[str, Any], settings: RainSettings, diagnosis: Diagnosis) -> None:
    """Set the name of the examined model, if it differs from that in the file."""
    own = settings.evaluation.judge or settings.model
    if diagnosis.settings.name == own.name:
        return
    section = data.setdefault("evaluation", {}) if diagnosis.judges_only else data
    place = "judge" if diagnosis.judges_only else "model"
    was = section.get(place)
    was = {"name": was} if isinstance(was, str) else dict(was or {})
    section[place] = {**was, "name": diagnosis.settings.name, "revision": diagnosis.settings.revision}


def _without_keys(data: Any) -> Any:
    """Remove the API keys of servers."""
    if isinstance(data, dict):
        return {name: _without_keys(value) for name, value in data.items() if name != "api_key"}
    return [_without_keys(item) for item in data] if isinstance(data, list) else data


def _flat(data: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted path, which contains criteria by name."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _flat(value, f"{place}.{name}" if place else name)
    elif isinstance(data, list) and data and all(isinstance(item, dict) and "name" in item for item in data):
        for item in data:
            yield from _flat(item, f"{place}.{item['name']}")
    else:
        yield place, data


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Dumper(yaml.SafeDumper):
    """YAML dumper that does not use aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: write every value in full."""
        return True
