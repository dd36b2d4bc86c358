"""The methods that an evaluation compares, by name, and the settings of each.

* ``plain``: the model unguarded.
* ``self-check``: the plain answer, or the refusal if the model's own verdict on it fails (as guardrails do).
* ``best-of``: up to 16 samples, from which the model's own verdict chooses one. The first n of them are
  best-of-n, so one run gives the whole curve of quality against tokens.
* ``guided-best-of``: the same, with every sample written after the criteria's guides.
* ``rain`` and its variants (``VARIANTS``). The user's own settings files are more of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rain_llm.criteria.criterion import Criterion
from rain_llm.engine import Rain
from rain_llm.errors import SettingsError
from rain_llm.evals.tasks import Task
from rain_llm.models.transcript import shows_chats
from rain_llm.redaction import nearest
from rain_llm.settings import RainSettings

START = RainSettings(on_unsafe="best")
"""The settings that methods start from if none are given: a refusal has no tone or truth to measure."""

LADDER = (1, 2, 3, 4, 6, 8, 12, 16)
"""The values of n for which ``best-of`` reports best-of-n."""

UNGUARDED = ("plain", "self-check", "best-of")
CARE = "care"
"""Rolls back a fixed buffer and reflects (``rain_llm.standard.care``)."""

GUIDED = "guided-"
"""The prefix of best-of methods whose samples are written after the criteria's guides."""

_PAPER = "rain-paper"


@dataclass(frozen=True, slots=True)
class Variant:
    """RAIN with some settings changed.

    Attributes:
        summary: what is changed, in a few words.
        settings: changes to the settings.
        criterion: changes to the fields of each criterion.
    """

    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    criterion: Callable[[Criterion], Mapping[str, Any]] = lambda criterion: {}


ABLATIONS: dict[str, Variant] = {
    "no-guide": Variant("no guide prefixes", {"search": {"guided": False}}),
    "no-tree": Variant(
        "every rollout starts from the prompt",
        {"search": {"token_set_lengths": (10**6,), "widening": 10**6}},
    ),
    "no-lookahead": Variant("judges after every token", {"search": {"simulation_tokens": 1}}),
    "one-pair": Variant("one pair of label words", criterion=lambda c: {"labels": c.labels[:1]}),
    "hard": Variant("each question votes by argmax", {"evaluation": {"mode": "hard"}}),
}
"""The default with one part changed or switched off: does the part earn its cost?"""

VARIANTS: dict[str, Variant] = {
    "rain": Variant("the default"),
    "rain-refuse": Variant("refuses where nothing passes", {"on_unsafe": "refuse"}),
    "rain-asked": Variant(
        "asked in words, though there is a probe",
        {"evaluation": {"style": "labels"}, "search": {"strategy": "keep_drafts"}},
    ),
    _PAPER: Variant("the paper's constants and question"),
    **ABLATIONS,
}

COMPARED_WITH_RAIN = ("rain-refuse", *ABLATIONS)
"""Variants that a report compares with ``rain``; all other methods are compared with ``plain``."""

GROUPS: dict[str, tuple[str, ...]] = {
    "ablations": tuple(ABLATIONS),
    "all": (*UNGUARDED, *VARIANTS),
}


def chosen(names: Sequence[str], own: Mapping[str, RainSettings]) -> list[str]:
    """Check the names of methods and replace groups by their members.

    Args:
        names: methods, ``best-of-N``, or groups: "ablations", "all".
        own: the user's own methods.

    Raises:
        SettingsError: a method is unknown, or one of the user's has a name that is taken.
    """
    for name in own:
        if not name or name in VARIANTS or name in GROUPS or name.removeprefix(GUIDED).startswith(UNGUARDED):
            raise SettingsError(f"a method of your own cannot be called '{name}': choose another name")
    found: list[str] = []
    for name in names:
        if name in (*VARIANTS, *UNGUARDED, CARE, *own) or ladder(name):
            found.append(name)
        elif name in GROUPS:
            found += GROUPS[name]
        else:
            raise _unknown(name, own)
    ladders = [name for name in found if name.removeprefix(GUIDED) == "best-of"]
    rungs = {rung for name in ladders for rung in labels(name)}  # a ladder writes these rows itself
    return list(dict.fromkeys(name for name in found if name not in rungs))


def _unknown(name: str, own: Mapping[str, RainSettings]) -> SettingsError:
    known = (*UNGUARDED, "best-of-N", "guided-best-of", CARE, *VARIANTS, *own, *GROUPS)
    near = nearest(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return SettingsError(
        f"unknown method {name!r}: {hint}there are {', '.join(known)}, and NAME=settings.yaml"
    )


def ladder(method: str) -> tuple[int, ...]:
    """Return the values of n that a best-of method reports; () for other methods."""
    method = method.removeprefix(GUIDED)
    if method == "best-of":
        return LADDER
    number = method.removeprefix("best-of-")
    return (int(number),) if number != method and re.fullmatch("[1-9][0-9]{0,3}", number) else ()


def labels(method: str) -> tuple[str, ...]:
    """Return the method names that appear in the rows of one run of ``method``."""
    guided = GUIDED if method.startswith(GUIDED) else ""
    return tuple(f"{guided}best-of-{n}" for n in ladder(method)) or (method,)


def settings_for(
    method: str, task: Task, start: RainSettings, tokens: int | None, own: Mapping[str, RainSettings]
) -> RainSettings:
    """Return a method's settings for a task.

    The task sets the answer's length, and the criterion unless the settings name criteria themselves.
    ``rain-paper`` takes model, temperature, ``top_k`` and ``top_p`` from ``start``.

    Raises:
        SettingsError: they contradict each other, or raise an error where nothing passes.
    """
    start = own.get(method, start)
    variant = VARIANTS.get(method, VARIANTS["rain"])
    criteria = start.evaluation.criteria
    if criteria == RainSettings().evaluation.criteria:
        criteria = (task.criterion,)
    settings, changes = start, dict(variant.settings)
    evaluation: dict[str, Any] = changes.pop("evaluation", {})
    if method == _PAPER:
        settings = _paper(task, start)
        asked = settings.evaluation.criteria
        if [c.name for c in asked] == [c.name for c in criteria]:
            criteria = asked  # the paper's own question, with its worked examples
        else:
            evaluation = {"examples": False}
    criteria = tuple(Criterion(**{**dict(c), **variant.criterion(c)}) for c in criteria)
    settings = settings.updated(
        **changes,
        generation=task.generation(tokens, chat=not start.says_no_chat_template),
        evaluation={**evaluation, "criteria": criteria},
    )
    if settings.on_unsafe == "raise":
        raise SettingsError(
            f"method '{method}' has on_unsafe='raise', which leaves no answer to evaluate: "
            "choose 'best' or 'refuse'"
        )
    if method.startswith(GUIDED) and not any(c.guide or c.instruction for c in settings.evaluation.criteria):
        raise SettingsError(
            f"method '{method}' needs a guide, and no criterion of task '{task.name}' has one: "
            "add a guide, or leave the method out"
        )
    return settings


def _paper(task: Task, start: RainSettings) -> RainSettings:
    """Return the paper's preset for a task, with the models and sampling of ``start``."""
    return RainSettings.preset(task.preset).updated(
        **start.data("model", "generation", "on_unsafe", "refusal"),
        evaluation={"judge": start.evaluation.judge},
    )


def fitting(settings: RainSettings, rain: Rain, task: Task) -> RainSettings:
    """Return a method's settings without the chat template where a model has none.

    Args:
        settings: of :func:`settings_for`.
        rain: has the models; this loads them.
        task: that is answered.

    Raises:
        ModelError: a model cannot be loaded.
    """
    changes: dict[str, Any] = {}
    generation = settings.generation
    if generation.chat_template and not shows_chats(rain.runtime.writer):
        changes["generation"] = task.generation(generation.max_new_tokens, chat=False)
    if settings.evaluation.chat_template and not shows_chats(rain.runtime.judge):
        changes["evaluation"] = {"chat_template": False}
    return settings.updated(**changes) if changes else settings
