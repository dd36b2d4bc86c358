"""Load a GGUF file into llama.cpp."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rain_llm.errors import ModelError, ModelNotFoundError, ModelNotSupportedError
from rain_llm.models import which
from rain_llm.models.local import llama_library as llama


def load(library: Any, file: Path, gpu_layers: int | None) -> int:
    """Load a file; its weights are mapped into memory, not read.

    Raises:
        ModelNotFoundError: there is no such file, or llama.cpp cannot load it.
        ModelError: GPU layers are asked for, and this build of llama.cpp has no GPU.
    """
    if not file.is_file():
        raise ModelNotFoundError(f"there is no model file {str(file)[:200]}: {which.summary()}")
    settings = library.llama_model_default_params()
    settings.n_gpu_layers = 0
    if gpu_layers is not None:
        if gpu_layers and not library.llama_supports_gpu_offload():
            raise ModelError(
                f"model.gpu_layers is {gpu_layers}, but this build of llama.cpp computes on the CPU only: "
                "install a GPU build of xllamacpp, or leave gpu_layers out"
            )
        settings.n_gpu_layers = gpu_layers
    llama.log.clear()
    model = library.llama_model_load_from_file(os.fsencode(file), settings)
    if not model:
        raise ModelNotFoundError(f"llama.cpp cannot load {file.name[:200]}: {reason()}; {which.summary()}")
    return int(model)


def check_kind(library: Any, model: int, name: str) -> None:
    """Check that a model writes text from left to right, and keeps one cell for each token.

    Raises:
        ModelNotSupportedError: it does not.
    """
    for kind, found in (
        ("an encoder", library.llama_model_has_encoder(model)),
        ("recurrent", library.llama_model_is_recurrent(model)),
        ("partly recurrent", library.llama_model_is_hybrid(model)),
        ("a diffusion model", library.llama_model_is_diffusion(model)),
    ):
        if found:
            raise ModelNotSupportedError(
                f"{name} is {kind}, and cannot be rewound: use a Llama-, Qwen- or Mistral-like model"
            )


def reason() -> str:
    """Return llama.cpp's latest errors, in one line."""
    return " ".join(llama.log)[:300] or "it gives no reason"


def usable_cores() -> int:
    """Return how many threads compute at once: all cores of a small machine, half of a large one's."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores <= 4 else cores // 2
