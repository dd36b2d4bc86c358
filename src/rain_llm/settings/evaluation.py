"""Settings of the self-evaluation: criteria, question style, judge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rain_llm.bounds import CRITERIA
from rain_llm.criteria import BUILT_IN, HARMLESS_ACTIONS, HARMLESSNESS
from rain_llm.criteria.criterion import Criterion, Frozen, Problem, refusal_at
from rain_llm.redaction import quoted_name, shown_name
from rain_llm.settings.merging import merged
from rain_llm.settings.model import ModelSettings


def _named(item: Any) -> Any:
    """Replace the name of a built-in criterion, or an extension of one, by the criterion itself."""
    if isinstance(item, str):
        return _built_in(item)
    if isinstance(item, dict) and "extends" in item:
        try:
            base = _built_in(item["extends"])
        except ValueError as error:
            raise refusal_at("Criterion", (("extends",), str(error))) from None
        return merged(base.model_dump(), {key: item[key] for key in item if key != "extends"})
    return item


def _built_in(name: object) -> Criterion:
    if not isinstance(name, str) or name not in BUILT_IN:
        raise ValueError(
            f"unknown criterion {quoted_name(name, BUILT_IN)}: built in are {', '.join(BUILT_IN)}"
        )
    return BUILT_IN[name]


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) > CRITERIA:
        raise ValueError(f"{len(value):,} criteria are more than {CRITERIA}: leave some out")
    return (value,) if isinstance(value, str | Criterion | dict) else value


Criteria = Annotated[tuple[Annotated[Criterion, BeforeValidator(_named)], ...], BeforeValidator(_listed)]
"""A list of criteria, names of built-in ones, or changes to built-in ones; a single item is a list of one."""


class EvaluationSettings(Frozen):
    """Settings of the self-evaluation: the criteria, and how the judge is asked about them."""

    criteria: Criteria = Field(
        default=(HARMLESSNESS,),
        min_length=1,
        description="The criteria that an answer must meet: criteria, names of built-in ones, or built-in "
        "ones with changes ({extends: harmlessness, threshold: 0.4}).",
    )
    actions: Criteria = Field(
        default=(HARMLESS_ACTIONS,),
        description="The criteria that tool calls must meet; []: tool calls are not checked.",
    )
    style: Literal["auto", "probe", "labels", "choice", "channel", "guard"] = Field(
        default="auto",
        description="How a criterion is judged, unless it sets its own style. 'auto' reads the judge's "
        "hidden states where there is a probe for this model and criterion, and else asks: by the first of "
        "labels, choice, channel, guard that the criterion has. 'probe' always reads. 'labels' compares "
        "label words; 'choice' is the paper's multiple-choice question; 'channel' compares the answer's "
        "likelihood after a good and a bad context; 'guard' shows the conversation to a guard model such as "
        "Llama Guard and uses its probability without calibration, with a threshold of at least 0.5.",
    )
    mode: Literal["soft", "hard"] = Field(
        default="soft",
        description="'hard': each question votes for its likelier option (paper); 'soft': log-odds are "
        "averaged.",
    )
    swap: bool = Field(
        default=True, description="For 'choice': ask each question again with the options swapped."
    )
    examples: bool = Field(
        default=False, description="Show the criterion's worked examples before the question."
    )
    chat_template: bool = Field(default=False, description="Put questions into the judge's chat template.")
    judge: ModelSettings | None = Field(
        default=None, description="The model that judges; null: the same as the writer."
    )
    sentences: Literal["none", "verdicts", "texts"] = Field(
        default="verdicts",
        description="What a result reports about each sentence if an answer with passages did not pass. "
        "'verdicts': its probabilities and the nearest passage; 'texts': also the words of a rejected text, "
        "which are otherwise withheld; 'none': nothing, and no sentence is judged.",
    )

    @model_validator(mode="after")
    def _askable(self) -> EvaluationSettings:
        problems = [*self._problems("criteria", self.criteria), *self._problems("actions", self.actions)]
        if problems:
            raise refusal_at(type(self).__name__, *problems)
        return self

    def _problems(self, place: str, criteria: tuple[Criterion, ...]) -> Iterator[Problem]:
        names = [criterion.name for criterion in criteria]
        for index, criterion in enumerate(criteria):
            called = f"'{shown_name(criterion.name)}'"
            if criterion.name in names[:index]:
                yield (place, index), f"criteria must have different names: another is {called} too"
            if place == "actions" and any(c.name == criterion.name and c != criterion for c in self.criteria):
                yield (place, index), f"another criterion is named {called}: rename one of them"
            style = criterion.style or self.style
            if style not in ("auto", "probe") and not getattr(criterion, style):
                yield (
                    (place, index),
                    f"criterion {called} has no '{style}': give it one or choose another style",
                )
            if self.examples and not criterion.examples and place == "criteria":
                yield (
                    (place, index),
                    f"criterion {called} has no examples: give it some, or examples=False",
                )
