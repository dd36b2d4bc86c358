"""What can be known of a model without loading it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW

_EMBEDDED = ("embedded:SmolLM2-135M-Instruct", 8192)


def described(model: str | None, revision: str | None) -> tuple[str, int]:
    """Return a model's name and context length without loading it.

    The context of a hub model that was never downloaded is not known yet: LlamaIndex's own cautious
    default stands in for it.
    """
    if model is None:
        return _EMBEDDED
    config = _config(model, revision)
    lengths = (
        part.get(key)
        for part in (config, config.get("text_config", {}))
        for key in ("max_position_embeddings", "n_positions")
    )
    name = f"{model}@{revision}" if revision else model
    return name, next((length for length in lengths if length), DEFAULT_CONTEXT_WINDOW)


def _config(model: str, revision: str | None) -> dict[str, Any]:
    """Read ``config.json`` in a folder or the hub's cache; empty where there is none to read."""
    path = Path(model).expanduser() / "config.json"
    try:
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            path = Path(cast("str", try_to_load_from_cache(model, "config.json", revision=revision)))
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # a TypeError: not in the cache
        return {}
