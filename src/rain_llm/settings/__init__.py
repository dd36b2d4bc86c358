"""All settings, with their bounds, units and sources.

Settings are immutable, and an unknown field is an error. Equal settings have the same
:attr:`RainSettings.hash`, which is part of every result and every cache key.
"""

from rain_llm.settings.evaluation import EvaluationSettings
from rain_llm.settings.file import PolicyError
from rain_llm.settings.generation import GenerationSettings
from rain_llm.settings.model import ModelSettings, ServerLimits
from rain_llm.settings.root import RainSettings, explain, place_of, read_policy
from rain_llm.settings.search import (
    PUNCTUATION,
    SENTENCE,
    AdditionSettings,
    KeepDraftsSettings,
    PaperSettings,
    ReadAndRewindSettings,
    SearchSettings,
    SimilaritySettings,
)

__all__ = [
    "PUNCTUATION",
    "SENTENCE",
    "AdditionSettings",
    "EvaluationSettings",
    "GenerationSettings",
    "KeepDraftsSettings",
    "ModelSettings",
    "PaperSettings",
    "PolicyError",
    "RainSettings",
    "ReadAndRewindSettings",
    "SearchSettings",
    "ServerLimits",
    "SimilaritySettings",
    "explain",
    "place_of",
    "read_policy",
]
