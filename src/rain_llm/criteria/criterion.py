r"""What an answer is judged by: the Criterion and the built-in ones.

A criterion is data. It can carry the material of all three question styles; a style that it has no
material for is refused by name when the evaluator is built. Writing one takes five lines::

    WARMTH = Criterion(
        name="warmth",
        labels=[("warm", "cold"), ("kind", "unkind")],
        frames=["Letter: {text}\nTone:"],
    )

Placeholders: ``{text}`` (the query continued by the answer), ``{query}``, ``{answer}``, ``{context}``.
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
"""Where, below what is validated (keys, and positions in lists), and what is wrong."""

NAMES = ("answer", "context", "query", "text")
"""What the placeholders of a template may be called."""


class Frozen(Redacted):
    """Base of all settings: immutable, and an unknown field is an error that offers the nearest."""

    # No bound is infinite, and a number that is none would let everything pass.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def refusal_at(title: str, *problems: Problem) -> ValidationError:
    """Make an error of problems at places below the one that is validated."""
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
    """Name the placeholders of a template.

    Raises:
        ValueError: the template is too long or malformed, names a placeholder that does not exist, or one
            with a format of its own, which could make any text as long as it likes.
    """
    if len(template.encode(errors="surrogatepass")) > FRAME_BYTES:
        raise ValueError(f"a template has at most {FRAME_BYTES:,} bytes: shorten it")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError("malformed template, a brace stands alone: write {{ or }} for a brace") from None
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
        raise ValueError("this frame ends in white space: labels bring their own")
    return template


def _valid_context(template: str) -> str:
    if placeholders(template) & {"text", "answer"}:
        raise ValueError("this context already shows the answer, which is to follow it")
    return template


Frame = Annotated[str, AfterValidator(_valid_frame)]
Context = Annotated[str, AfterValidator(_valid_context)]


class Choice(Frozen):
    """A multiple-choice question, asked twice with the options swapped (paper, section 3)."""

    question: str = Field(
        min_length=1, max_length=FRAME_BYTES, description="The question; it stands before the shown text."
    )
    good: str = Field(
        min_length=1, max_length=FRAME_BYTES, description="The option that meets the criterion."
    )
    bad: str = Field(min_length=1, max_length=FRAME_BYTES, description="The option that does not.")


class Channel(Frozen):
    """Two contexts for the answer: one that a good answer follows from, one that a bad one does."""

    good: Context = Field(description="Context before a good answer, e.g. 'A polite reply: {query}'.")
    bad: Context = Field(description="Context before a bad answer, of the same shape.")
    measure: Literal["nats", "share"] = Field(
        default="nats",
        description="Evidence is by how much likelier the good context makes the answer: 'nats' a token, or "
        "as the 'share' of what the answer was unlikely by behind the bad one (1: all of it).",
    )


class Guard(Frozen):
    """How a guard model answers: it reads the conversation in its own chat template.

    The defaults are Llama Guard 3's, whose template ends where it writes two line breaks and its verdict.
    """

    safe: str = Field(
        default="safe",
        min_length=1,
        max_length=FRAME_BYTES,
        description="Its word for an answer that it allows.",
    )
    unsafe: str = Field(
        default="unsafe",
        min_length=1,
        max_length=FRAME_BYTES,
        description="Its word for one that it does not.",
    )
    cue: str = Field(default="\n\n", max_length=FRAME_BYTES, description="What it writes before that word.")


class Example(Frozen):
    """A worked example, shown before the question."""

    query: str = Field(max_length=FRAME_BYTES, description="What was asked.")
    answer: str = Field(max_length=FRAME_BYTES, description="What was answered.")
    good: bool = Field(description="Whether this answer meets the criterion.")
    why: str = Field(default="", max_length=FRAME_BYTES, description="One sentence of explanation.")


class Calibration(Frozen):
    """Turns raw log-odds d into a probability: ``sigmoid((d - center) / scale)``.

    A small model's log-odds sit in a narrow band that is seldom centred on zero, so a threshold on
    the raw probability means little (see ``docs/evaluation.md``).
    """

    center: Annotated[float, Field(ge=-1e6, le=1e6)] | Literal["content_free"] = Field(
        default="content_free",
        description="The log-odds (nats) that mean 'cannot tell': a number that was measured; "
        "'content_free' asks the same question of texts without content.",
    )
    scale: float = Field(default=1.0, gt=0, le=1e6, description="Nats of log-odds for one unit of logit.")


class Criterion(Frozen):
    """One thing that an answer must be, and how to ask the model for it."""

    name: str = Field(
        min_length=1, max_length=100, pattern=r"^[\w-]+$", description="Letters, digits, _ and -."
    )
    labels: tuple[tuple[str, str], ...] = Field(
        default=(), max_length=1000, description="Style 'labels': pairs (good word, bad word); averaged."
    )
    frames: tuple[Frame, ...] = Field(
        default=("Text: {text}\nThis text is",),
        max_length=100,
        description="Style 'labels': the shapes in which the text is shown; averaged.",
    )
    choice: Choice | None = Field(default=None, description="Style 'choice': the question.")
    channel: Channel | None = Field(default=None, description="Style 'channel': the two contexts.")
    guard: Guard | None = Field(
        default=None, description="Style 'guard': the words of a guard model; its policy is its own."
    )
    guide: str = Field(
        default="",
        max_length=FRAME_BYTES,
        description="What a good answer would follow from; drafts behind a rewind are written behind it.",
    )
    style: Literal["labels", "choice", "channel", "guard"] | None = Field(
        default=None, description="How this criterion is asked for; null: as evaluation.style says."
    )
    evidence: bool = Field(
        default=False,
        description="Show of the context, for each sentence of the answer, only the one that speaks of it "
        "most: what a small judge can read, and little of what somebody hid among the passages.",
    )
    examples: tuple[Example, ...] = Field(default=(), max_length=1000, description="Worked examples.")
    threshold: float = Field(default=0.5, ge=0, lt=1, description="An answer passes above this probability.")
    target: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="With strategy 'keep_drafts' the search goes on until the probability is above this or "
        "the budget is spent; null: the threshold. Set it higher to steer, not only to guard.",
    )
    iterations: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Most iterations of a step that this criterion is worth: after so many, a text that "
        "passes it but is not on its target is taken; null: search.iterations.",
    )
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Share in the search's value.")
    calibration: Calibration | None = Field(
        default=Calibration(), description="How log-odds become a probability; null: as they are."
    )

    @model_validator(mode="after")
    def _askable(self) -> Criterion:
        called = f"criterion '{shown_name(self.name)}'"
        if not (self.labels or self.choice or self.channel or self.guard):
            raise ValueError(f"{called} cannot be asked: give labels, choice, channel or guard")
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
        """Whether some template shows ``{context}``."""
        shown = [*self.frames, *((self.channel.good, self.channel.bad) if self.channel else ())]
        return any("context" in placeholders(template) for template in shown)
