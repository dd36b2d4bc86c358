"""Which models can be used, and how: one table for the README and for error messages.

Names of models that cannot be loaded (``gpt-4o-mini``, ``llama3.2:1b``) are recognised by their form, when an
engine is created and before anything is downloaded or sent.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rain_llm.errors import ModelNotFoundError
from rain_llm.settings.model import ModelSettings, names_gguf


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table.

    Attributes:
        models: the provider or the format.
        works: what RAIN can do with these models.
        needs: how to name or reach them.
    """

    models: str
    works: str
    needs: str


_ALL = "writes and judges; text and tool calls are guarded while they are written"
_MIDDLEWARE = "`RainMiddleware(ChatRain())` beside their own chat model"
GGUF = Kind("GGUF files (llama.cpp)", _ALL, '`model="FILE.gguf"`')
TRANSFORMERS = Kind(
    "transformers",
    _ALL,
    "`pip install 'rain-llm[transformers]'`; `model=` a folder or hub name (`owner/name`) of a causal model",
)
VLLM = Kind(
    "vLLM",
    _ALL,
    "`base_url=` its address, `tokenizer=` a folder or hub name (`pip install 'rain-llm[transformers]'`)",
)
LLAMA_SERVER = Kind("llama-server", _ALL, "`llama-server -m FILE.gguf -np 12`, and `base_url=` its address")
OLLAMA = Kind(
    "Ollama, LM Studio",
    "neither writes nor judges: their servers don't take and return token ids, which a rewind needs",
    f'name the GGUF file that they serve, `model="FILE.gguf"`; or, in an agent, {_MIDDLEWARE}',
)
HOSTED = Kind(
    "OpenAI, Anthropic, other hosted APIs",
    "neither writes nor judges (no token ids), but can be guarded in a LangChain agent: whole answers and "
    "tool calls are judged before they leave, and replaced or refused",
    f"in an agent, {_MIDDLEWARE}; `ChatRain`'s own model judges",
)
KINDS = (GGUF, TRANSFORMERS, VLLM, LLAMA_SERVER, OLLAMA, HOSTED)

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_LOCAL_SERVERS = ("ollama", "ollama_chat", "lmstudio", "lm_studio", "hf.co", "huggingface.co")
_PROVIDER = re.compile(
    r"ai21|anthropic(?:_bedrock)?|azure(?:_ai|_openai)?|bedrock(?:_converse)?|cohere|deepseek|fireworks|gemini"
    r"|google_(?:anthropic_vertex|genai|vertexai)|groq|mistral|openrouter|perplexity|together(?:_ai)?"
    r"|vertex_ai|xai"
)
_HOSTED_NAME = re.compile(
    r"chatgpt|gpt-\d|o[134](?:$|-(?:mini|pro|preview|deep|\d))|text-(?:davinci|embedding|bison)|davinci|claude"
    r"|gemini|grok-?\d|command(?:$|-[ra\d])|(?:mistral|ministral|codestral|magistral)-.*(?:latest|\d{4})$"
    r"|mistral-(?:tiny|small|medium|large)|deepseek-(?:chat|reasoner)$|sonar|nova-(?:micro|lite|pro)"
    r"|.*-latest$",
    re.IGNORECASE,
)
_BEDROCK_NAME = re.compile(r"[a-z]\w*\..*v\d+:\d+", re.IGNORECASE)  # anthropic.claude-3-haiku-20240307-v1:0
# No folder, no owner, and a longer run of letters and digits than any model's name has.
_KEY = re.compile(r"(?=.*\d)[^/\\]*[a-z0-9]{20}[^/\\]*", re.IGNORECASE)
# Ollama's names have no owner; names on the hub have one.
_OLLAMA_NAME = re.compile(
    r"(?:codellama|deepseek|gemma|gpt-oss|granite|llama|mistral|mixtral|phi-?\d|qwen|qwq|smollm|tinyllama"
    r"|vicuna)[\w.-]*",
    re.IGNORECASE,
)
_HOSTED_ADDRESS = re.compile(
    r"(?:.+\.)?(?:openai\.com|anthropic\.com|googleapis\.com|mistral\.ai|groq\.com|openrouter\.ai|cohere\.(?:ai|com)"
    r"|deepseek\.com|x\.ai|together\.(?:ai|xyz)|fireworks\.ai|amazonaws\.com|openai\.azure\.com)"
)


def table() -> str:
    """Return the table in Markdown."""
    head = Kind("your model", "with RAIN it", "how"), Kind("---", "---", "---")
    return "".join(f"| {row.models} | {row.works} | {row.needs} |\n" for row in (*head, *KINDS))


def summary() -> str:
    """Return the table in one line, for the error about an unknown model."""
    return "models that can be used: " + "; ".join(f"{row.models}: {row.needs}" for row in KINDS)


def kind_of(name: str) -> Kind:
    """Return the row for a model's name, by the name's form and the existing folders and files."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # too long, ~unknown user, a null character
        folder = Path(name).expanduser()
        if folder.is_dir():
            return GGUF if _only_gguf(folder) else TRANSFORMERS
    if names_gguf(name) or name.lower().endswith("-gguf"):
        return GGUF
    if _DRIVE.match(name):
        return TRANSFORMERS
    if ":" in name:  # not in hub names: LangChain's PROVIDER:MODEL, or Ollama's MODEL:TAG
        provider = name.partition(":")[0].lower()
        hosted = provider in ("openai", "mistralai") or _PROVIDER.fullmatch(provider)
        return HOSTED if hosted or _BEDROCK_NAME.fullmatch(name) else OLLAMA
    provider, slash, model = name.rpartition("/")
    provider = provider.partition("/")[0].lower()
    if provider in _LOCAL_SERVERS:
        return OLLAMA
    if _PROVIDER.fullmatch(provider) or (provider in ("", "openai", "google") and _HOSTED_NAME.match(model)):
        return HOSTED
    return OLLAMA if not slash and _OLLAMA_NAME.fullmatch(name) else TRANSFORMERS


def check(settings: ModelSettings) -> None:
    """Check by name and address that a model can be used; this loads nothing and sends no request.

    Raises:
        ModelNotFoundError: it cannot be used; the message contains the matching row of the table.
    """
    for url in settings.base_url:
        host = urlsplit(url).hostname or ""
        if _HOSTED_ADDRESS.fullmatch(host):
            raise ModelNotFoundError(_no(f"a model at {host}", HOSTED))
    if settings.base_url or settings.name is None:
        return  # a server may use any name for its model
    if _URL.match(settings.name):
        raise ModelNotFoundError(
            "model.name is an address: give it as base_url, if vLLM or llama-server answers there, or give "
            "a folder or hub name"
        )
    if _KEY.fullmatch(settings.name) and not Path(settings.name).exists():
        raise ModelNotFoundError(
            "model.name looks like a key, and so is not shown: a model is named by a folder or a hub name "
            "(owner/name), and a server's key is given as api_key"
        )
    if (kind := kind_of(settings.name)) is GGUF and not settings.is_gguf:
        raise ModelNotFoundError(
            f"{settings.name[:100]!r} holds GGUF files: give the path of one of them, FOLDER/FILE.gguf, as "
            "model.name (download it first if it is on a hub: nothing is downloaded here)"
        )
    if kind not in (GGUF, TRANSFORMERS):
        raise ModelNotFoundError(_no(f"{settings.name[:100]!r}", kind))


def _no(name: str, kind: Kind) -> str:
    return f"{name} cannot be loaded. {kind.models}: {kind.works}; {summary()}"


def _only_gguf(folder: Path) -> bool:
    return not (folder / "config.json").exists() and any(folder.glob("*.gguf"))
