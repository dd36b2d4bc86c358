"""Write the fitted settings to a file that ``RainSettings.from_file`` loads."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from rain_llm.doctor.findings import SAID, Diagnosis, Examination, Held, Trust


def settings_file(diagnosis: Diagnosis, named: Sequence[str], actions: Collection[str]) -> str:
    """Return a YAML settings file with the fitted settings.

    It contains the criteria that can be judged at least weakly; comments explain why others are left out.
    Each criterion has its own style. All share the chat template and the worked examples: the file has those
    of most criteria, and leaves out criteria that need others.

    Args:
        diagnosis: the result of the examination.
        named: criteria that the user selected: these are included even if they need a context.
        actions: names of criteria that judge tool calls.
    """
    found = [e.recommended.style.shared for e in diagnosis.examinations if _usable(e)]
    usable = Counter(one for one in found if one)
    shared = usable.most_common(1)[0][0] if usable else None
    entries: dict[str, list[tuple[str, bool]]] = {"criteria": [], "actions": []}
    for examination in diagnosis.examinations:
        place = "actions" if examination.criterion.name in actions else "criteria"
        entries[place].append(_entry(examination, shared, named))
    model, source = (" ".join(name.split()) for name in (diagnosis.model, diagnosis.data))  # on one line
    head = (
        f"# Fitted by `rain doctor` to {model}; answers: {source}; seed {diagnosis.seed}.\n"
        "# AUC: the chance that a good answer scores above a bad one, on answers that nothing was\n"
        "# fitted to, with its 95 % interval; 0.5 is a coin.\n"
    )
    loaded = {"name": None, **diagnosis.settings.model_dump(mode="json", exclude_defaults=True)}
    data: dict[str, Any] = {"evaluation": {"judge": loaded}} if diagnosis.judges_only else {"model": loaded}
    if any(holds for listed in entries.values() for _, holds in listed):
        common = dict(zip(("chat_template", "examples"), shared, strict=True)) if shared else {}
        data["evaluation"] = {**data.get("evaluation", {}), **common, "mode": "soft"}
    lists = (_list(place, listed) for place, listed in entries.items() if listed)
    return head + yaml.safe_dump(data, sort_keys=False) + "".join(lists)


def _list(place: str, entries: Sequence[tuple[str, bool]]) -> str:
    """Return the YAML of a list of criteria; without an active one, only comments: the default applies."""
    text = "".join(text for text, _ in entries)
    if not any(holds for _, holds in entries):
        return text
    return f"  {place}:\n{textwrap.indent(text, '    ')}"


def _usable(examination: Examination) -> bool:
    return examination.trust in (Trust.YES, Trust.WEAK)


def _entry(
    examination: Examination, shared: tuple[bool, bool] | None, named: Sequence[str]
) -> tuple[str, bool]:
    """Return a criterion's part of the list, and whether it is active (not a comment)."""
    name, held = examination.criterion.name, examination.recommended
    auc = held.complete.auc
    result = f"# {name} {SAID[examination.trust]}: AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]"
    if not _usable(examination):
        return f"{result}; left out.\n", False
    if held.style.shared not in (None, shared):
        return (
            f"{result}, but asked\n# otherwise ({held.style.name}): rain doctor --criterion {name}\n",
            False,
        )
    block = yaml.dump(
        [_criterion(held)],
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        width=1000,
        allow_unicode=True,
    )
    if examination.criterion.needs_context and name not in named:
        needs = "# It needs a context with every answer; take away the '# ' to judge by it:"
        return f"{result}\n{needs}\n{textwrap.indent(block, '# ')}", False
    return f"{result}\n{block}", True


def _criterion(held: Held) -> dict[str, Any]:
    """Return a criterion with the fields that its style needs, and the fitted numbers."""
    criterion = held.style.criterion
    material = {"labels", "frames"} if criterion.style == "labels" else {str(criterion.style)}
    material |= {"examples"} if held.style.settings.examples else set()
    asks = criterion.style != "probe"  # where there is no probe any more, it is asked as before
    unused = {"labels", "frames", "choice", "channel", "guard", "examples"} - material if asks else set()
    fitted_anew = {"threshold", "target", "calibration"}
    shown = criterion.model_dump(mode="json", exclude_defaults=True, exclude=unused | fitted_anew)
    return {**shown, **fitted_numbers(held)}


def fitted_numbers(held: Held) -> dict[str, Any]:
    """Return the fitted threshold, target (if the criterion has one) and calibration."""
    fitted = held.fit
    assert fitted is not None  # every criterion that can be judged was fitted
    numbers: dict[str, Any] = {"threshold": _rounded(fitted.threshold, below=1)}
    if held.style.criterion.target is not None:  # the median of the good answers
        numbers["target"] = max(numbers["threshold"], _rounded(fitted.clear, below=1))
    if held.style.criterion.style == "probe":  # its file is calibrated
        return numbers
    return {**numbers, "calibration": {"center": _rounded(fitted.center), "scale": _rounded(fitted.scale)}}


def _rounded(value: float, below: float = math.inf) -> float:
    """Round to four significant digits, and keep the value below a bound."""
    return min(float(f"{value:.4g}"), below - 1e-6)


class _Dumper(yaml.SafeDumper):
    """YAML dumper that writes frames and short lists on one line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _text)
