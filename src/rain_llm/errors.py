"""Every error that rain-llm raises on purpose, in one tree.

::

    RainError
    ├── SettingsError      (ValueError)  a setting, or a settings file, that cannot be used
    │   └── LabelError                   labels that the judge's tokenizer cannot tell apart
    ├── PromptError        (ValueError)  a prompt that cannot be answered
    │   └── PromptTooLongError           it does not fit into the model's context
    ├── ModelError                       a model that cannot be used
    │   ├── ModelNotFoundError           no such folder, package or name
    │   ├── ModelNotSupportedError       found, but it cannot be rewound or judged by
    │   └── ServerError                  a server that is not there, or does not answer as it should
    │       └── ServerNotSupportedError  (ModelNotSupportedError)  one that cannot do what a search needs
    ├── UnsafeAnswerError                nothing passed, and ``on_unsafe="raise"``
    ├── IncompleteError                  a document or a call was not finished within a limit
    └── SearchError                      a model failed in the middle of an answer

    UserWarning
    └── BlindJudgeWarning              the judge cannot tell texts apart

Each message says what happened, which value was met, which bound it broke and what to do about it.
Settings that are built in Python raise pydantic's own ``ValidationError`` (a ``ValueError`` too).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rain_llm.types import RainResult


class RainError(Exception):
    """The root of the tree: catch this to catch everything that rain-llm raises on purpose."""


class SettingsError(RainError, ValueError):
    """A setting or a settings file that cannot be used; raised before any model runs."""


class LabelError(SettingsError):
    """Two labels that become the same tokens, or a label that becomes none."""


class PromptError(RainError, ValueError):
    """A prompt that cannot be answered: it is empty, say, or a tool's schema cannot be used."""


class PromptTooLongError(PromptError):
    """A prompt that does not fit, with its answer, into the context of the writer or of the judge."""


class ModelError(RainError):
    """A model that cannot be used."""


class ModelNotFoundError(ModelError):
    """No model of this name: no such folder, package or hub name."""


class ModelNotSupportedError(ModelError):
    """The model exists, but rain-llm cannot rewind it or cannot trust what it computes."""


class ServerError(ModelError):
    """A server that is not there, does not answer in time, or answers what cannot be used.

    Attributes:
        server: its address. cause: what happened, in words. remedy: what to do about it.
    """

    def __init__(self, server: str, cause: str, remedy: str) -> None:
        super().__init__(f"{server}: {cause}: {remedy}")
        self.server = server
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[type[ServerError], tuple[str, str, str]]:
        return type(self), (self.server, self.cause, self.remedy)


class ServerNotSupportedError(ServerError, ModelNotSupportedError):
    """A server that answers, but cannot do what a search needs."""


class _WithResult(RainError):
    """An error that carries what there was of the answer."""

    def __init__(self, message: str, result: RainResult) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[type[_WithResult], tuple[str, RainResult]]:
        return type(self), (str(self), self.result)  # its ``repr`` must not tell what was rewound


class UnsafeAnswerError(_WithResult):
    """Nothing passed the criteria, and the settings say ``on_unsafe="raise"``.

    Attributes:
        result: what had been accepted before; its ``verdict`` is that of the best rejected text.
    """


class IncompleteError(_WithResult):
    """A JSON document or a tool call was not finished within a limit; no half of it leaves.

    Attributes:
        result: what had been accepted before it.
    """


class SearchError(_WithResult):
    """A model failed in the middle of an answer; the cause is chained.

    Attributes:
        result: what had been accepted until then, with its usage and trace.
    """


class BlindJudgeWarning(UserWarning):
    """The judge says the same of all texts, so that RAIN steers blind; ``rain doctor`` tells more."""
