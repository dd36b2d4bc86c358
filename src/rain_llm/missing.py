"""Report missing libraries in one line, with the command that installs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rain_llm.errors import ModelError

_EXTRAS = {
    "torch": "transformers",
    "transformers": "transformers",
    "sentence_transformers": "similarity",
    "profanity_check": "eval",
    "sklearn": "eval",
    "vaderSentiment": "eval",
}
"""The extra of rain-llm that installs each module."""


def remedy(error: ImportError) -> str:
    """Return what is missing and how to install it."""
    module = (error.name or "").partition(".")[0]
    if not module or not isinstance(error, ModuleNotFoundError):  # installed but not importable
        reason = next(iter(str(error).strip().splitlines()), "an import failed")
        again = f"pip install --force-reinstall {module}" if module else "install it again"
        return f"{module or 'a library'} cannot be imported ({reason:.200}): {again}"
    extra = f"[{_EXTRAS[module]}]" if module in _EXTRAS else ""
    return f"{module} is not installed: pip install 'rain-llm{extra}'"


@contextmanager
def needed(what: str) -> Iterator[None]:
    """Convert a failed import in this block to an error with the command that installs the library.

    Args:
        what: the feature that needs the library.

    Raises:
        ModelError: a library is missing or cannot be imported.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "rain_llm":
            raise  # a bug in rain-llm
        raise ModelError(f"{what} cannot be used: {remedy(error)}") from error
