"""The exceptions and warnings of rain-llm.

::

    RainError
    ├── SettingsError      (ValueError)  a setting or a settings file is invalid
    │   └── LabelError                   the judge's tokenizer does not distinguish two labels
    ├── PromptError        (ValueError)  a prompt cannot be answered
    │   └── PromptTooLongError           it exceeds the model's context
    ├── ModelError                       a model cannot be used
    │   ├── ModelNotFoundError           no such folder, package or name
    │   ├── ModelNotSupportedError       the model cannot be rewound, or cannot judge
    │   └── ServerError                  a server is unreachable or returns invalid replies
    │       └── ServerNotSupportedError  (ModelNotSupportedError)  it lacks a feature that a search needs
    ├── UnsafeAnswerError                no text passed, and ``on_unsafe="raise"``
    ├── IncompleteError                  a document or a call was not finished within a limit
    └── SearchError                      a model failed during an answer

    UserWarning
    ├── BlindJudgeWarning              the judge does not distinguish texts
    └── UnmeasuredJudgeWarning         nobody has measured whether this model can judge when asked

Each message contains what happened, the value, the bound, and the remedy. Invalid settings that are created
in Python raise pydantic's ``ValidationError`` (also a ``ValueError``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rain_llm.types import RainResult


class RainError(Exception):
    """Base of all exceptions of rain-llm."""


class SettingsError(RainError, ValueError):
    """Raised for an invalid setting or settings file, before any model runs."""


class LabelError(SettingsError):
    """Raised if two labels have the same tokens, or a label has none."""


class PromptError(RainError, ValueError):
    """Raised for a prompt that cannot be answered: it is empty, or a tool's schema is not supported."""


class PromptTooLongError(PromptError):
    """Raised if a prompt with its answer exceeds the context of the writer or of the judge."""


class ModelError(RainError):
    """Raised for a model that cannot be used."""


class ModelNotFoundError(ModelError):
    """Raised if there is no model of this name: no such folder, package or hub name."""


class ModelNotSupportedError(ModelError):
    """Raised if a model exists but cannot be rewound, or its results are wrong after a rewind."""


class ServerError(ModelError):
    """Raised if a server is unreachable, does not reply in time, or returns an invalid reply.

    Attributes:
        server: address of the server.
        cause: what happened.
        remedy: what to do about it.
    """

    def __init__(self, server: str, cause: str, remedy: str) -> None:
        super().__init__(f"{server}: {cause}: {remedy}")
        self.server = server
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str, str]]:
        return type(self), (self.server, self.cause, self.remedy)


class ServerNotSupportedError(ServerError, ModelNotSupportedError):
    """Raised if a server replies but lacks a feature that a search needs."""


class _WithResult(RainError):
    """An error with the part of the answer that was accepted before it."""

    def __init__(self, message: str, result: RainResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type[_WithResult], tuple[str, RainResult]]:
        return type(self), (str(self), self.result)  # not in ``args``: ``repr`` must not show rewound text


class UnsafeAnswerError(_WithResult):
    """Raised if no text passed the criteria and ``on_unsafe="raise"`` is set.

    Attributes:
        result: the answer accepted before; its ``verdict`` is that of the best rejected text.
    """


class IncompleteError(_WithResult):
    """Raised if a JSON document or a tool call was not finished within a limit.

    An incomplete document or call is never returned.

    Attributes:
        result: the answer accepted before it.
    """


class SearchError(_WithResult):
    """Raised if a model failed during an answer; the cause is chained.

    Attributes:
        result: the answer accepted until then, with its usage and trace.
    """


class OldNameWarning(DeprecationWarning):
    """A setting was given under a name of an older version; the warning names the new one."""


class BlindJudgeWarning(UserWarning):
    """Warns that the judge gives all texts the same verdict; ``rain doctor`` finds a better question."""


class UnmeasuredJudgeWarning(UserWarning):
    """Warns that a model without a probe is asked by a built-in question, which it may answer wrongly.

    Small chat models call a refusal worse than a harmful answer (``docs/doctor.md``).
    """
