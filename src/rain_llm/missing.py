"""A library that is not installed: one line that says which, and how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rain_llm.errors import ModelError

_EXTRAS = {
    "accelerate": "embedded",
    "gguf": "embedded",
    "torch": "embedded",
    "transformers": "embedded",
    "sentence_transformers": "similarity",
    "profanity_check": "eval",
    "sklearn": "eval",
    "vaderSentiment": "eval",
}
"""The extra of rain-llm that brings a module."""


def remedy(error: ImportError) -> str:
    """Say what is missing and how to install it."""
    module = (error.name or "").partition(".")[0]
    if not module or not isinstance(error, ModuleNotFoundError):  # installed, and broken
        reason = next(iter(str(error).strip().splitlines()), "an import failed")
        again = f"pip install --force-reinstall {module}" if module else "install it again"
        return f"{module or 'a library'} cannot be imported ({reason:.200}): {again}"
    extra = f"[{_EXTRAS[module]}]" if module in _EXTRAS else ""
    return f"{module} is not installed: pip install 'rain-llm{extra}'"


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Turn a failed import in this block into an error that says how to install what is missing.

    Args:
        what: that needs it.

    Raises:
        ModelError: a library is missing or broken.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "rain_llm":
            raise  # a mistake of ours
        raise ModelError(f"{what} cannot be used: {remedy(error)}") from error
