"""Question styles to try for a criterion, each as evaluation settings with one criterion.

Styles differ in the criterion's ``style``, ``frames`` and ``labels``, and in ``chat_template`` and
``examples``, which all criteria of a settings file share. Soft scores and hard votes are not separate styles:
both are computed from the same replies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rain_llm.criteria.criterion import Criterion, placeholders
from rain_llm.errors import LabelError, ModelNotSupportedError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.models.base import LanguageModel
from rain_llm.settings import EvaluationSettings
from rain_llm.types import Message


@dataclass(frozen=True, slots=True)
class Style:
    """A question style.

    Attributes:
        name: its name in reports, such as "labels, frame 2".
        settings: evaluation settings in soft mode, with one criterion, whose ``style`` is set.
    """

    name: str
    settings: EvaluationSettings

    @property
    def criterion(self) -> Criterion:
        """Return the criterion with the style, frames and labels of this question style."""
        return self.settings.criteria[0]

    @property
    def shared(self) -> tuple[bool, bool] | None:
        """Return the settings that all criteria of a file share: chat template, examples; None: any."""
        asks = self.criterion.style != "probe"
        return (self.settings.chat_template, self.settings.examples) if asks else None


def styles(criterion: Criterion, as_set: EvaluationSettings) -> list[Style]:
    """Return the question styles of a criterion: first that of the settings, then all that it supports."""
    style: str = criterion.style or as_set.style
    if style in ("auto", "probe"):  # as it is asked where there is no probe
        style = next(way for way in ("labels", "choice", "channel", "guard") if getattr(criterion, way))
    as_is = criterion.model_copy(update={"style": style})
    own = EvaluationSettings(
        criteria=(as_is,), actions=(), examples=as_set.examples, chat_template=as_set.chat_template
    )
    found: dict[EvaluationSettings, str] = {}
    chats = as_set.chat_template or "chat_template" not in as_set.model_fields_set  # not disabled explicitly

    def add(name: str, changes: dict[str, Any] | None = None, **shared: bool) -> None:
        asked = criterion.model_copy(update={"style": name.partition(",")[0], **(changes or {})})
        found.setdefault(EvaluationSettings(criteria=(asked,), actions=(), **shared), name)

    if criterion.labels:
        add("labels")
        if len(criterion.frames) > 1:
            for number, frame in enumerate(criterion.frames, 1):
                add(f"labels, frame {number}", {"frames": (frame,)})
        add("labels, first pair", {"labels": criterion.labels[:1]})
        add("labels, yes or no", _yes_or_no(criterion))
        if chats:
            add("labels, chat template", chat_template=True)
    if criterion.choice:
        add("choice")
        if chats:
            add("choice, chat template", chat_template=True)
        if criterion.examples:
            add("choice, examples", examples=True)
    if criterion.channel:
        add("channel")
    first = Style(found.pop(own, "as set"), own)
    return [first, *(Style(name, settings) for settings, name in found.items())]


def askable(style: Style, judge: LanguageModel) -> str | None:
    """Return why a judge does not support this style; None if it does."""
    try:
        if style.settings.chat_template:
            judge.render_chat([Message("user", "?")])
        SelfEvaluator(style.settings, judge)
    except (LabelError, ModelNotSupportedError) as error:
        return str(error)
    return None


def _yes_or_no(criterion: Criterion) -> dict[str, Any]:
    """Return labels and a frame that ask whether the first good label applies, yes or no."""
    shown = criterion.frames[0].rpartition("\n")[0].rstrip()
    if not placeholders(shown) & {"text", "answer"}:
        shown = "{text}"
    question = f"Is this {criterion.labels[0][0].strip()}, yes or no?"
    return {"labels": (("yes", "no"),), "frames": (f"{shown}\n{question}\nAnswer:",)}
