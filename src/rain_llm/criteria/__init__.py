"""The built-in criteria that answers are judged by.

To add one, add a file with its name to this folder and a line here.
"""
# ruff: noqa: I001 (the order is that of the lists shown to users)

from rain_llm.criteria.criterion import Criterion
from rain_llm.criteria.harmlessness import HARMLESSNESS as HARMLESSNESS
from rain_llm.criteria.truthfulness import TRUTHFULNESS as TRUTHFULNESS
from rain_llm.criteria.groundedness import GROUNDEDNESS as GROUNDEDNESS
from rain_llm.criteria.civility import CIVILITY as CIVILITY
from rain_llm.criteria.positive_sentiment import POSITIVE_SENTIMENT as POSITIVE_SENTIMENT
from rain_llm.criteria.harmless_actions import HARMLESS_ACTIONS as HARMLESS_ACTIONS

BUILT_IN = {value.name: value for value in tuple(vars().values()) if isinstance(value, Criterion)}
"""The built-in criteria by name."""
