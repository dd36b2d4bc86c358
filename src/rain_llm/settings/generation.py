"""How text is sampled."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from rain_llm.criteria.criterion import Frozen

LEAST_TEMPERATURE = 0.01
"""The least that servers take; logits that are divided by much less overflow."""


class GenerationSettings(Frozen):
    """How text is drawn; plain generation and the search's simulations share it."""

    max_new_tokens: int = Field(default=128, ge=1, le=1_000_000, description="Longest answer, tokens.")
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Divides the logits. Less than 0.01 is taken for 0.01, nearly always the likeliest "
        "token: then all unguided drafts are the same.",
    )
    top_k: int = Field(
        default=0, ge=0, le=1_000_000, description="Draw from the k most likely tokens; 0: from all."
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="Draw from the smallest set of this mass.")
    stop: tuple[str, ...] = Field(
        default=(), max_length=1000, description="The answer ends before the first of these strings."
    )
    seed: int | None = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="Seed of the request's random generator; null draws a fresh one (see the trace).",
    )
    chat_template: bool = Field(
        default=False,
        description="Put a text prompt into the model's chat template as the user's turn. "
        "Lists of messages always use it.",
    )

    @field_validator("temperature")
    @classmethod
    def _not_frozen(cls, value: float) -> float:
        return max(value, LEAST_TEMPERATURE)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop string would end every answer at once: leave it out")
        return value
