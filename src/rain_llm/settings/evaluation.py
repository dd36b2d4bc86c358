"""How the model is asked to judge."""

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
    """Put the built-in criterion where its name stands, or where it is extended: with the changes."""
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
"""Criteria, or names of built-in ones, or changes to built-in ones; one alone stands for a list of one."""


class EvaluationSettings(Frozen):
    """How the model is asked to judge itself."""

    criteria: Criteria = Field(
        default=(HARMLESSNESS,),
        min_length=1,
        description="What an answer is judged by: criteria, names of built-in ones, or built-in ones with "
        "changes ({extends: harmlessness, threshold: 0.4}).",
    )
    actions: Criteria = Field(
        default=(HARMLESS_ACTIONS,),
        description="What calls of tools are judged by; [] hands them out unjudged.",
    )
    style: Literal["labels", "choice", "channel", "guard"] = Field(
        default="labels",
        description="'choice' is the paper's question; 'labels' compares label words; 'channel' "
        "compares the answer's likelihood in a good and a bad context; 'guard' shows the conversation to a "
        "guard model as judge (Llama Guard): its probability as it is, the threshold 0.5 or more. A "
        "criterion's own style comes first.",
    )
    mode: Literal["soft", "hard"] = Field(
        default="soft",
        description="'hard' lets each question vote by argmax (paper); 'soft' keeps the odds.",
    )
    swap: bool = Field(default=True, description="'choice': ask again with the options swapped.")
    examples: bool = Field(default=False, description="Show the criterion's worked examples.")
    chat_template: bool = Field(default=False, description="Ask through the judge's chat template.")
    judge: ModelSettings | None = Field(default=None, description="Another model as judge; null: the writer.")
    sentences: Literal["none", "verdicts", "texts"] = Field(
        default="verdicts",
        description="What a result says of the sentences of an answer with passages that did not pass: "
        "'verdicts': the probabilities and the nearest passage of each; 'texts': also the words of a "
        "rejected draft, which are otherwise withheld; 'none': nothing, and no sentence is judged.",
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
            if not getattr(criterion, style):
                yield (
                    (place, index),
                    f"criterion {called} has no '{style}': give it one or choose another style",
                )
            if self.examples and not criterion.examples and place == "criteria":
                yield (
                    (place, index),
                    f"criterion {called} has no examples: give it some, or examples=False",
                )
