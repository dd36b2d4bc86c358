"""Errors about the input in a form that LlamaIndex does not swallow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rain_llm import PromptError, RainError, SettingsError


class PredictionError(RainError):
    """A filled template cannot be answered; the cause is a ``PromptError`` or a ``SettingsError``.

    Those are ``ValueError``, which a query engine takes for an answer that it cannot read: it would go on
    without the passages, and end in an "Empty Response".
    """


@contextmanager
def unswallowed() -> Iterator[None]:
    """Raise a :class:`PredictionError` in place of an error about the input."""
    try:
        yield
    except (PromptError, SettingsError) as error:
        raise PredictionError(str(error)) from error
