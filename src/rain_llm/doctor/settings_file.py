"""What was fitted, as a settings file that ``RainSettings.from_file`` loads."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from rain_llm.doctor.findings import SAID, Diagnosis, Examination, Held, Trust


def settings_file(diagnosis: Diagnosis, named: Sequence[str], actions: Collection[str]) -> str:
    """Write YAML with what was fitted, for ``RainSettings.from_file``.

    It holds the criteria that can be judged, weakly or better, and says in a comment why the others
    are left out. Each is written with its own style; chat template and worked examples are shared by
    the file, which takes those of most criteria and leaves out what is asked otherwise.

    Args:
        diagnosis: what was found.
        named: criteria that were asked for by name: these hold even if they need a context.
        actions: names of criteria that judge calls of tools.
    """
    usable = Counter(e.recommended.style.shared for e in diagnosis.examinations if _usable(e))
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
    told = diagnosis.settings.model_dump(mode="json", exclude_defaults=True)
    loaded = {"name": None, **told}
    data: dict[str, Any] = {"evaluation": {"judge": loaded}} if diagnosis.judges_only else {"model": loaded}
    if shared is not None and any(holds for found in entries.values() for _, holds in found):
        asked = dict(zip(("chat_template", "examples"), shared, strict=True))
        data["evaluation"] = {**data.get("evaluation", {}), **asked, "mode": "soft"}
    lists = (_list(place, found) for place, found in entries.items() if found)
    return head + yaml.safe_dump(data, sort_keys=False) + "".join(lists)


def _list(place: str, entries: Sequence[tuple[str, bool]]) -> str:
    """Write a list of criteria; where all are comments, there is none, and the default holds."""
    text = "".join(text for text, _ in entries)
    if not any(holds for _, holds in entries):
        return text
    return f"  {place}:\n{textwrap.indent(text, '    ')}"


def _usable(examination: Examination) -> bool:
    return examination.trust in (Trust.YES, Trust.WEAK)


def _entry(
    examination: Examination, shared: tuple[bool, bool] | None, named: Sequence[str]
) -> tuple[str, bool]:
    """Return a criterion's part of the list, and whether it holds or is only a comment."""
    name, held = examination.criterion.name, examination.recommended
    auc = held.complete.auc
    said = f"# {name} {SAID[examination.trust]}: AUC {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}]"
    if not _usable(examination):
        return f"{said}; left out.\n", False
    if held.style.shared != shared:
        return f"{said}, but asked\n# otherwise ({held.style.name}): rain doctor --criterion {name}\n", False
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
        return f"{said}\n{needs}\n{textwrap.indent(block, '# ')}", False
    return f"{said}\n{block}", True


def _criterion(held: Held) -> dict[str, Any]:
    """Return a criterion with what its style needs, and what was fitted."""
    criterion = held.style.criterion
    material = {"labels", "frames"} if criterion.style == "labels" else {str(criterion.style)}
    material |= {"examples"} if held.style.settings.examples else set()
    unused = {"labels", "frames", "choice", "channel", "guard", "examples"} - material
    fitted_anew = {"threshold", "target", "calibration"}
    shown = criterion.model_dump(mode="json", exclude_defaults=True, exclude=unused | fitted_anew)
    return {**shown, **fitted_numbers(held)}


def fitted_numbers(held: Held) -> dict[str, Any]:
    """Return threshold, target (where the criterion has one) and calibration, as they were fitted."""
    fitted = held.fit
    assert fitted is not None  # what can be judged has been fitted
    numbers: dict[str, Any] = {"threshold": _rounded(fitted.threshold, below=1)}
    if held.style.criterion.target is not None:  # as many good answers are above it as below
        numbers["target"] = max(numbers["threshold"], _rounded(fitted.clear, below=1))
    return {**numbers, "calibration": {"center": _rounded(fitted.center), "scale": _rounded(fitted.scale)}}


def _rounded(value: float, below: float = math.inf) -> float:
    """Round to digits that matter, however small the value is, and keep it below a bound."""
    return min(float(f"{value:.4g}"), below - 1e-6)


class _Dumper(yaml.SafeDumper):
    """Writes frames on one line, and short lists too."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _text)
