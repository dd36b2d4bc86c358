"""rain-llm: a language model that judges its own partial answers, and rewinds what it judges bad."""

from rain_llm.criteria import (
    BUILT_IN,
    CIVILITY,
    GROUNDEDNESS,
    HARMLESSNESS,
    POSITIVE_SENTIMENT,
    TRUTHFULNESS,
    Calibration,
    Channel,
    Choice,
    Criterion,
    Example,
)
from rain_llm.engine import Rain
from rain_llm.errors import (
    BlindJudgeWarning,
    LabelError,
    ModelError,
    ModelNotFoundError,
    ModelNotSupportedError,
    PromptError,
    RainError,
    SearchError,
    ServerError,
    SettingsError,
    UnsafeAnswerError,
)
from rain_llm.settings import RainSettings
from rain_llm.types import Message, RainResult, Step, StopReason, Usage, Verdict

__all__ = [
    "BUILT_IN",
    "CIVILITY",
    "GROUNDEDNESS",
    "HARMLESSNESS",
    "POSITIVE_SENTIMENT",
    "TRUTHFULNESS",
    "BlindJudgeWarning",
    "Calibration",
    "Channel",
    "Choice",
    "Criterion",
    "Example",
    "LabelError",
    "Message",
    "ModelError",
    "ModelNotFoundError",
    "ModelNotSupportedError",
    "PromptError",
    "Rain",
    "RainError",
    "RainResult",
    "RainSettings",
    "SearchError",
    "ServerError",
    "SettingsError",
    "Step",
    "StopReason",
    "UnsafeAnswerError",
    "Usage",
    "Verdict",
]
