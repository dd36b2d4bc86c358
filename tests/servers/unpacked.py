"""The embedded model as a folder of transformers: for that engine's tests, and for vLLM."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from rain_llm.models.local.embedded import embedded_file
from rain_llm.models.local.loading import quiet_loading

_VERSION = 1  # of the conversion; raise it to convert again


def unpacked_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct in float32, written on first use (30 s, 540 MB).

    It is kept in the user's cache folder, or in ``RAIN_LLM_CACHE``.
    """
    gguf = embedded_file()
    cache = Path(os.environ.get("RAIN_LLM_CACHE") or platformdirs.user_cache_path("rain-llm"))
    target = cache / f"{gguf.stem}-{gguf.stat().st_size}-v{_VERSION}"
    if not target.is_dir():
        _convert(gguf, target)
    return target


def _convert(gguf: Path, target: Path) -> None:
    """Convert in a temporary folder, then rename it: an interrupted process leaves no partial copy."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
        quiet_loading(),
        contextlib.redirect_stderr(io.StringIO()),  # the GGUF reader's progress bar cannot be disabled
    ):
        made = Path(folder) / "model"
        network: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
        network.hf_quantizer = None  # the loaded weights are no longer quantised and can be saved
        if hasattr(network.config, "quantization_config"):
            del network.config.quantization_config
        network.save_pretrained(made)
        AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(made)
        try:
            made.rename(target)
        except OSError:  # another process has converted it meanwhile
            if not target.is_dir():
                raise
