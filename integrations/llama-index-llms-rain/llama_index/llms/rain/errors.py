"""Input errors in a form that LlamaIndex does not swallow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rain_llm import PromptError, RainError, SettingsError


class PredictionError(RainError):
    """A filled template that cannot be answered; its cause is the ``PromptError`` or ``SettingsError``.

    Those are ``ValueError``, and a query engine that refines its answer takes a ``ValueError`` for an answer
    that it cannot read: it would go on without the passages, down to an "Empty Response".
    """


@contextmanager
def unswallowed() -> Iterator[None]:
    """Raise a :class:`PredictionError` where the input is refused."""
    try:
        yield
    except (PromptError, SettingsError) as error:
        raise PredictionError(str(error)) from error
