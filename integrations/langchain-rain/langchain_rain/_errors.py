"""The engine's errors as LangChain knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import langchain_core.exceptions

from rain_llm import PromptTooLongError as TooLong
from rain_llm import SearchError

if TYPE_CHECKING or hasattr(langchain_core.exceptions, "ContextOverflowError"):
    from langchain_core.exceptions import ContextOverflowError
else:
    from langchain_core.exceptions import LangChainException as ContextOverflowError


class PromptTooLongError(TooLong, ContextOverflowError):
    """A prompt that does not fit into a context: ``rain_llm.PromptTooLongError`` for LangChain."""


@contextmanager
def standard_errors() -> Iterator[None]:
    """Raise LangChain's own error where it has one."""
    try:
        yield
    except (TooLong, SearchError) as error:
        if isinstance(error, TooLong) or isinstance(error.__cause__, TooLong):
            raise PromptTooLongError(str(error)) from error
        raise
