"""Settings of sampling: length, temperature, stop strings, seed."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from rain_llm.criteria.criterion import Frozen

LEAST_TEMPERATURE = 0.01
"""The lowest temperature that servers accept; with much less, the divided logits overflow."""


class GenerationSettings(Frozen):
    """Settings of sampling, used by plain generation and by the search's rollouts."""

    max_new_tokens: int = Field(
        default=128, ge=1, le=1_000_000, description="Maximum length of an answer, in tokens."
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        le=10,
        description="Sampling temperature: divides the logits. Values below 0.01 are raised to 0.01, which "
        "nearly always samples the likeliest token, so that all unguided rollouts are equal.",
    )
    top_k: int = Field(
        default=0, ge=0, le=1_000_000, description="Sample from the k most likely tokens; 0: from all."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample from the smallest set of tokens with this total probability.",
    )
    stop: tuple[str, ...] = Field(
        default=(), max_length=1000, description="The answer ends before the first of these strings."
    )
    seed: int | None = Field(
        default=0,
        ge=0,
        lt=1 << 63,
        description="Seed of the request's random generator; null: a random seed, recorded in the trace.",
    )
    chat_template: bool = Field(
        default=False,
        description="Insert a text prompt into the model's chat template as the user's turn. "
        "Lists of messages always use the template.",
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
