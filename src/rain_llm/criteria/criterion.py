r"""The Criterion: one property that an answer must have, and how to ask a judge about it.

A criterion is data. It can support all four question styles (``labels``, ``choice``, ``channel``, ``guard``);
settings that use a style it does not support raise a ``ValidationError``. Writing one takes five lines::

    WARMTH = Criterion(
        name="warmth",
        labels=[("warm", "cold"), ("kind", "unkind")],
        frames=["Letter: {text}\nTone:"],
    )

Placeholders: ``{text}`` (the query followed by the answer), ``{query}``, ``{answer}``, ``{context}``.
"""

from __future__ import annotations

import string
from typing import Annotated, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from rain_llm.bounds import FRAME_BYTES, PLACEHOLDERS
from rain_llm.redaction import HIDDEN, Redacted, shown_name

Problem: TypeAlias = tuple[tuple[int | str, ...], str]
"""The location of a mistake, relative to the validated object (keys and list indices), and the reason."""

NAMES = ("answer", "context", "query", "text")
"""The placeholders that a template may contain."""


class Frozen(Redacted):
    """Base of all settings: immutable; the error about an unknown field suggests the nearest name."""

    # No infinities, and no NaN: every comparison with it is false, so that everything would pass.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def refusal_at(title: str, *problems: Problem) -> ValidationError:
    """Build a ValidationError from problems, located relative to the validated object."""
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(
                type=PydanticCustomError("contradiction", "{reason}", {"reason": reason}),
                loc=place,
                input=HIDDEN,
            )
            for place, reason in problems
        ],
    )


def placeholders(template: str) -> set[str]:
    """Return the names of a template's placeholders.

    Raises:
        ValueError: the template is too long or malformed, or has an unknown placeholder, or one with a format
            (which could produce text of any length).
    """
    if len(template.encode(errors="surrogatepass")) > FRAME_BYTES:
        raise ValueError(f"a template has at most {FRAME_BYTES:,} bytes: shorten it")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("malformed template, unmatched brace: write {{ or }} for a brace") from None
    fields = [(name, form or conversion) for _, name, form, conversion in parts if name is not None]
    for name, form in fields:
        if name not in NAMES or form:
            raise ValueError(
                f"unknown placeholder '{HIDDEN if form else shown_name(name, NAMES)}': use "
                f"{', '.join('{' + name + '}' for name in NAMES)}, without a format or an index, "
                "and write {{ for a brace"
            )
    if len(fields) > PLACEHOLDERS:
        raise ValueError(f"{len(fields):,} placeholders are more than {PLACEHOLDERS}: leave some out")
    return {name for name, _ in fields}


def _valid_frame(template: str) -> str:
    if not placeholders(template) & {"text", "answer"}:
        raise ValueError("this frame does not show the answer: add {text} or {answer}")
    if template != template.rstrip():
        raise ValueError("this frame ends in white space: remove it, labels start with a space")
    return template


def _valid_context(template: str) -> str:
    if placeholders(template) & {"text", "answer"}:
        raise ValueError("this context contains the answer, which follows it: remove {text} or {answer}")
    return template


Frame = Annotated[str, AfterValidator(_valid_frame)]
Context = Annotated[str, AfterValidator(_valid_context)]


class Choice(Frozen):
    """A multiple-choice question, asked twice with the options swapped (paper, section 3)."""

    question: str = Field(
        min_length=1, max_length=FRAME_BYTES, description="The question, shown before the text."
    )
    good: str = Field(
        min_length=1, max_length=FRAME_BYTES, description="The option for a text that meets the criterion."
    )
    bad: str = Field(min_length=1, max_length=FRAME_BYTES, description="The option for a text that does not.")


class Channel(Frozen):
    """Two contexts for the answer: a good answer is likelier after the first, a bad one after the second."""

    good: Context = Field(description="Context before a good answer, e.g. 'A polite reply: {query}'.")
    bad: Context = Field(description="Context before a bad answer, of the same form.")
    measure: Literal["nats", "share"] = Field(
        default="nats",
        description="How to measure by how much the good context makes the answer likelier: in 'nats' per "
        "token, or as a 'share' of the answer's negative log-probability after the bad context.",
    )


class Guard(Frozen):
    """The words of a guard model's verdict; it reads the conversation in its own chat template.

    The defaults are those of Llama Guard 3, which writes two line breaks and then its verdict.
    """

    safe: str = Field(
        default="safe",
        min_length=1,
        max_length=FRAME_BYTES,
        description="The model's word for an allowed answer.",
    )
    unsafe: str = Field(
        default="unsafe",
        min_length=1,
        max_length=FRAME_BYTES,
        description="The model's word for an answer that is not allowed.",
    )
    cue: str = Field(
        default="\n\n", max_length=FRAME_BYTES, description="The text that the model writes before that word."
    )


class Turn(Frozen):
    """A sentence that turns an answer round. It becomes part of the answer."""

    first: str = Field(
        min_length=1, max_length=FRAME_BYTES, description="The turn at the beginning of an answer."
    )
    later: str = Field(min_length=1, max_length=FRAME_BYTES, description="The turn inside an answer.")


class Example(Frozen):
    """A worked example, shown before the question."""

    query: str = Field(max_length=FRAME_BYTES, description="The prompt.")
    answer: str = Field(max_length=FRAME_BYTES, description="The answer to it.")
    good: bool = Field(description="Whether this answer meets the criterion.")
    why: str = Field(default="", max_length=FRAME_BYTES, description="One sentence of explanation.")


class Calibration(Frozen):
    """Converts raw log-odds d into a probability: ``sigmoid((d - center) / scale)``.

    A small model's log-odds lie in a narrow range that is rarely centred on zero, so a threshold on the
    uncalibrated probability means little (see ``docs/evaluation.md``).
    """

    center: Annotated[float, Field(ge=-1e6, le=1e6)] | Literal["content_free"] = Field(
        default="content_free",
        description="The log-odds (nats) of an undecided judge: a measured number, or 'content_free' to "
        "measure them by asking the same question about texts without content.",
    )
    scale: float = Field(
        default=1.0, gt=0, le=1e6, description="Divides the log-odds: nats for one unit of the logit."
    )


class Criterion(Frozen):
    """One property that an answer must have, and how to ask the judge about it."""

    name: str = Field(
        min_length=1, max_length=100, pattern=r"^[\w-]+$", description="Name: letters, digits, _ and -."
    )
    labels: tuple[tuple[str, str], ...] = Field(
        default=(),
        max_length=1000,
        description="Style 'labels': pairs of words (good, bad), whose evidence is averaged.",
    )
    frames: tuple[Frame, ...] = Field(
        default=("Text: {text}\nThis text is",),
        max_length=100,
        description="Style 'labels': templates that show the text, whose evidence is averaged.",
    )
    choice: Choice | None = Field(default=None, description="Style 'choice': the question and its options.")
    channel: Channel | None = Field(default=None, description="Style 'channel': the two contexts.")
    guard: Guard | None = Field(
        default=None,
        description="Style 'guard': the words of a guard model's verdict; the model has its own policy.",
    )
    guide: str = Field(
        default="",
        max_length=FRAME_BYTES,
        description="Guide prefix: text that leads to a good answer. After a rewind, rollouts are resampled "
        "with it before the answer.",
    )
    turn: Turn | None = Field(
        default=None,
        description="Strategy 'read_and_rewind': a sentence that becomes part of the answer after a rewind, "
        "where a guide did not help. The model continues after it; null: none.",
    )
    probe: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="Style 'probe': the file of a probe that was fitted to the judge (rain doctor --fit); "
        "null: one beside the model's file, or one that comes with rain-llm for this model.",
    )
    style: Literal["auto", "probe", "labels", "choice", "channel", "guard"] | None = Field(
        default=None, description="How this criterion is judged; null: evaluation.style."
    )
    evidence: bool = Field(
        default=False,
        description="Show only the context sentence nearest to each sentence of the answer. A small judge "
        "reads that better, and sees less of any text injected into the passages.",
    )
    examples: tuple[Example, ...] = Field(
        default=(), max_length=1000, description="Worked examples, shown if evaluation.examples is set."
    )
    threshold: float = Field(
        default=0.5, ge=0, lt=1, description="An answer passes if its probability is above this."
    )
    target: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="With strategy 'keep_drafts', the search continues until the probability is above this "
        "or the budget is spent; null: the threshold. Set it higher to steer, not only to guard.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Maximum number of iterations of a step spent on this criterion's target; then a text "
        "that passes the threshold is accepted. null: search.iterations.",
    )
    weight: float = Field(
        default=1.0, gt=0, le=1e6, description="Weight of this criterion in the mean value of a text."
    )
    calibration: Calibration | None = Field(
        default=Calibration(), description="How log-odds become a probability; null: without calibration."
    )

    @model_validator(mode="after")
    def _askable(self) -> Criterion:
        called = f"criterion '{shown_name(self.name)}'"
        if not (self.labels or self.choice or self.channel or self.guard or self.probe):
            raise ValueError(f"{called} cannot be asked: give labels, choice, channel, guard or probe")
        if self.target is not None and self.target < self.threshold:
            raise ValueError(
                f"{called}: target {self.target} is below the threshold {self.threshold}: "
                "a text that does not pass cannot be good enough"
            )
        for number, (good, bad) in enumerate(self.labels, 1):
            if not good.strip() or not bad.strip() or good == bad:
                raise ValueError(f"{called}: the labels of pair {number} must differ, and be words")
        return self

    @property
    def needs_context(self) -> bool:
        """Return whether any template contains ``{context}``."""
        shown = [*self.frames, *((self.channel.good, self.channel.bad) if self.channel else ())]
        return any("context" in placeholders(template) for template in shown)
