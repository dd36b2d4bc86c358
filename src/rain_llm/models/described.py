"""Find out a model's name and context length without loading it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from rain_llm.bounds import CONFIG_BYTES, CONTEXT
from rain_llm.models.local.embedded import CONTEXT_LENGTH, NAME
from rain_llm.settings import ModelSettings


def known_of(settings: ModelSettings) -> tuple[str, int | None]:
    """Return a model's name and its context length in tokens.

    The length is None if it is not known: for a hub model that was never downloaded, and for a server.
    """
    if settings.base_url:
        return settings.name or "", settings.context_length
    if settings.name is None:
        return NAME, CONTEXT_LENGTH
    if settings.is_gguf:
        file = Path(settings.name).expanduser()
        return (f"{file.name}@{fingerprint(file)}", None) if file.is_file() else (file.name, None)
    config = _config(settings.name, settings.revision)
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    lengths = (part.get(key) for part in parts for key in ("max_position_embeddings", "n_positions"))
    name = settings.name + (f"@{settings.revision}" if settings.revision else "")
    sound = (length for length in lengths if type(length) is int and 0 < length <= CONTEXT)
    return name, next(sound, None)


def _config(name: str, revision: str | None) -> dict[str, Any]:
    """Read ``config.json`` from a folder or the hub's cache; empty if there is no readable one."""
    path = Path(name).expanduser() / "config.json"
    try:
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            path = Path(cast("str", try_to_load_from_cache(name, "config.json", revision=revision)))
        if path.stat().st_size > CONFIG_BYTES:
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
        return config if isinstance(config, dict) else {}
    # An ImportError: no transformers here; a TypeError: not in the cache.
    except (ImportError, OSError, TypeError, ValueError, RecursionError):
        return {}


def fingerprint(file: Path) -> str:
    """Return a short digest of a model's file: of its beginning, its end, its size and samples between."""
    size, block = file.stat().st_size, 1 << 16
    seen = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for i in range(65):
            opened.seek((size - block) * i // 64 if size > block else 0)
            seen.update(opened.read(block))
    return seen.hexdigest()[:12]
