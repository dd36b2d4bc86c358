"""What a search yields, receives and returns, and how it is interrupted."""

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
    """Thrown into a search to end it: it returns what it has, with this reason."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search returns; the engine makes a ``RainResult`` of it.

    ``tail`` is the end of ``text`` that no step has carried; ``cause`` is why a model could not go on;
    ``cached_tokens`` are those of the prompt that the model had in its prefix cache.
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
