"""Types of what a search yields, receives and returns, and the exception that interrupts it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rain_llm.errors import ModelError
from rain_llm.requests import Reply, Request
from rain_llm.types import SentenceVerdict, Step, StopReason, TokenIds, ToolCall, Verdict

Replies: TypeAlias = Sequence[Reply]
Rounds: TypeAlias = Generator[Sequence[Request], Replies, None]


class Interrupted(Exception):
    """Ends a search when thrown into it: the search returns its answer so far, with this reason."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a search, which the engine converts into a ``RainResult``.

    Attributes:
        text: the complete answer.
        tail: the end of ``text`` that no ``Step`` contained.
        tokens: tokens of the answer.
        verdict: the last verdict; None if nothing was judged.
        accepted: whether the answer passed.
        stop_reason: why the answer ended.
        iterations: iterations of the inner loop, over all steps.
        evaluations: number of texts judged.
        cached_tokens: prompt tokens that the model had in its prefix cache.
        tool_calls: the tool calls in the answer.
        cause: the model error that ended the answer, if one did.
        sentences: verdicts on single sentences, if they were asked for.
    """

    text: str
    tail: str
    tokens: TokenIds
    verdict: Verdict | None
    accepted: bool
    stop_reason: StopReason
    iterations: int = 0
    evaluations: int = 0
    cached_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    cause: ModelError | None = None
    sentences: tuple[SentenceVerdict, ...] = ()


Search: TypeAlias = Generator[Sequence[Request] | Step, Replies, Outcome]
"""Yields rounds of requests and accepted steps, receives replies, returns the outcome."""
