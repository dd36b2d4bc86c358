"""What a user gives and receives: tasks with messages and tools, verdicts, steps and results.

All of it is frozen data. A user receives a :class:`Step` for each accepted piece of an answer, and a
:class:`RainResult` at its end. Requests to models and their replies are in ``rain_llm.requests``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

TokenIds: TypeAlias = tuple[int, ...]

_LARGEST = 1e300  # JSON has no infinity


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        name: 1 to 128 letters, digits, ``_``, ``-``, ``.`` and ``/``.
        description: what it does, for the model to read.
        parameters: JSON schema of its arguments, an object; also as a class or in the wrapper of another
            API, as a task's ``schema`` may be.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model, with arguments that match the tool's schema.

    Attributes:
        id: identifies the call; the tool's reply refers to it.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    Attributes:
        tool_calls: the calls of an assistant's message, after its content.
        name: the tool that replies, in a tool's message.
        tool_call_id: the call that it replies to.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A request for one answer. A bare prompt is a task without the other fields.

    Attributes:
        prompt: a text to continue, or a list of chat messages to answer: ``Message``, or dicts as in
            OpenAI's API. If the last message is the assistant's, the answer is another message of its own.
        context: passages for criteria that judge against them (groundedness). The writer does not read
            them: it reads the prompt only.
        question: the question that the judge reads; "": the prompt, or a chat's last user message.
        tools: what the model may call; the prompt is then a chat.
        tool_choice: "auto": text, calls or both; "none": no call; "any": a call; otherwise the name of the
            tool to call.
        parallel_calls: one answer may hold several calls.
        schema: the answer is one JSON document that matches it: a JSON schema, also in OpenAI's wrapper
            (``{"name": ..., "schema": {...}}``), or a type that pydantic has a schema for (a model, an
            ``Enum``).
        opening: how the answer begins: the model goes on from there, and it is no part of the result. The
            judge reads what follows. Not with ``tools`` or ``schema``.
    """

    prompt: str | Sequence[Message]
    context: str | Sequence[str] = ""
    question: str = ""
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True
    schema: Any = None
    opening: str = ""


Prompt: TypeAlias = str | Sequence[Message] | Sequence[Mapping[str, Any]] | Task


# --- verdicts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CriterionScore:
    """The judge's score for one criterion.

    Attributes:
        name: the criterion's name.
        probability: that the text meets the criterion, in [0, 1]; calibrated if the
            criterion has a ``Calibration``, otherwise the raw two-way probability.
        threshold: of the criterion, in [0, 1).
        passed: ``probability > threshold``.
        on_target: ``probability`` is above the criterion's target, so the search for a better text ends.
        log_odds: before calibration, nats.
    """

    name: str
    probability: float
    threshold: float
    passed: bool
    on_target: bool
    log_odds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self) | {"log_odds": min(_LARGEST, max(-_LARGEST, self.log_odds))}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The model's judgement of one text.

    Attributes:
        score: weighted mean over the criteria of ``2 * probability - 1``, in [-1, 1].
        passed: every criterion passed.
        on_target: every criterion is on target.
        criteria: one entry for each criterion, in the settings' order.
    """

    score: float
    passed: bool
    on_target: bool
    criteria: tuple[CriterionScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {
            "score": self.score,
            "passed": self.passed,
            "on_target": self.on_target,
            "criteria": [score.to_dict() for score in self.criteria],
        }


@dataclass(frozen=True, slots=True)
class SentenceVerdict:
    """The verdict on one sentence of a text.

    Attributes:
        index: of the sentence in the text, from 0.
        start, end: its position in the text, in characters.
        verdict: on this sentence alone.
        passage: index of the nearest passage, from 0: the one with the sentence that shares most words with
            it (and the question); None: there are no passages, or none shares a word.
        passage_text: that sentence of the passage, or its beginning if it is long; "": none.
        text: the sentence; "": withheld, because it did not pass and ``evaluation.sentences`` does not ask
            for it.
    """

    index: int
    start: int
    end: int
    verdict: Verdict
    passage: int | None = None
    passage_text: str = ""
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self) | {"verdict": self.verdict.to_dict()}


# --- what a user receives ---------------------------------------------------------------------------


class StopReason(StrEnum):
    """Why an answer ended."""

    EOS = "eos"  # the model ended it
    STOP = "stop"  # a stop string was met
    LENGTH = "length"  # max_new_tokens
    TOOL_CALLS = "tool_calls"  # the answer ends with calls and waits for their results
    INCOMPLETE = "incomplete"  # max_new_tokens, in the middle of a call or a document
    REFUSED = "refused"  # nothing passed, on_unsafe="refuse"
    UNSAFE = "unsafe"  # nothing passed, on_unsafe="raise"
    DEADLINE = "deadline"  # search.deadline_s
    BUDGET = "budget"  # search.max_model_tokens
    CANCELLED = "cancelled"  # by the caller
    ERROR = "error"  # a model failed


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; all counts exact.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: tokens of the prompt that were in the model's cache already.
        output_tokens: length of the returned answer.
        model_tokens: all tokens that went through writer and judge, evaluation included.
        evaluation_tokens: the judge's share of ``model_tokens``.
        forwards: forward passes in which this answer took part, evaluation included.
        evaluations: texts that were judged (a text judged before is not counted again).
        iterations: search iterations (one select, simulate, evaluate, back up).
        embeddings: texts embedded for the similarity update.
        first_forwards: forward passes until the first text left; 0: it left at the end, or there is none.
    """

    prompt_tokens: int = 0
    output_tokens: int = 0
    model_tokens: int = 0
    evaluation_tokens: int = 0
    forwards: int = 0
    evaluations: int = 0
    iterations: int = 0
    embeddings: int = 0
    cached_tokens: int = 0
    first_forwards: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that the search visited for one step, with its subtree.

    The tree has at most 32 levels; in the last one, a candidate is the rest of a rollout.

    Attributes:
        text: of its own token set.
        prior: in [0, 1].
        visits: real visits.
        weight: visits, with the shares from similar siblings.
        value: mean value, in [-1, 1].
        best: the best single verdict at or below it, in [-1, 1].
        chosen: whether it was committed; what was not chosen was rewound.
    """

    text: str
    prior: float
    visits: int
    weight: float
    value: float
    best: float
    chosen: bool
    children: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One committed piece of the answer. Joined in order, the texts of all steps are the answer.

    Attributes:
        text: may be empty (the last step, or while a stop string may be beginning).
        tokens: the committed token ids.
        accepted: the text passed. False marks text of ``on_unsafe="best"``.
        refusal: the text is the user's refusal, not the model's.
        verdict: on the answer so far, with the look-ahead that was judged with it.
        iterations: of the search for this step.
        candidates: the tree that was searched; what is not ``chosen`` was rewound.
        tool_calls: calls that passed; they are no part of ``text``.
        result: the complete result, on the last step only.
    """

    text: str
    tokens: TokenIds = ()
    accepted: bool = True
    refusal: bool = False
    verdict: Verdict | None = None
    iterations: int = 0
    candidates: tuple[Candidate, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    result: RainResult | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Trace:
    """How an answer was found. ``seed`` and the settings with this hash reproduce it."""

    seed: int
    settings_hash: str
    model: str
    steps: tuple[Step, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return plain data that is as safe to show as the answer: it holds no rewound text."""
        return {
            "seed": self.seed,
            "model": self.model,
            "steps": [
                {
                    "text": step.text,
                    "accepted": step.accepted,
                    "score": step.verdict.score if step.verdict else None,
                    "iterations": step.iterations,
                    "rewound": sum(not candidate.chosen for candidate in step.candidates),
                    "tool_calls": [call.name for call in step.tool_calls],
                }
                for step in self.steps
            ],
        }


@dataclass(frozen=True, slots=True)
class RainResult:
    """A finished answer.

    Attributes:
        text: the answer: all of its accepted text, marked text and refusal; with a schema, JSON.
        verdict: on the complete answer; None only if nothing was judged (``Rain.plain`` without
            ``judge=True``, or an answer cut off before its first verdict).
        stop_reason: why it ended.
        accepted: every piece of it was accepted, and there was at least one verdict.
        usage: what it cost.
        trace: how it was found.
        settings_hash: of all settings that can change the answer.
        tool_calls: calls that passed.
        sentences: if an answer with passages did not pass, the verdicts on its last 256 sentences
            (``evaluation.sentences``); for a refused answer, those of the rejected text.
    """

    text: str
    verdict: Verdict | None
    stop_reason: StopReason
    accepted: bool
    usage: Usage
    trace: Trace
    settings_hash: str
    tool_calls: tuple[ToolCall, ...] = ()
    sentences: tuple[SentenceVerdict, ...] = ()
