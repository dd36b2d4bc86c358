"""What an answer is judged by: the criteria that are built in.

A built-in criterion is one file in this folder, of its name, and one line here.
"""
# ruff: noqa: I001 (they are listed in this order)

from rain_llm.criteria.criterion import Criterion
from rain_llm.criteria.harmlessness import HARMLESSNESS as HARMLESSNESS
from rain_llm.criteria.truthfulness import TRUTHFULNESS as TRUTHFULNESS
from rain_llm.criteria.groundedness import GROUNDEDNESS as GROUNDEDNESS
from rain_llm.criteria.civility import CIVILITY as CIVILITY
from rain_llm.criteria.positive_sentiment import POSITIVE_SENTIMENT as POSITIVE_SENTIMENT
from rain_llm.criteria.harmless_actions import HARMLESS_ACTIONS as HARMLESS_ACTIONS

BUILT_IN = {value.name: value for value in tuple(vars().values()) if isinstance(value, Criterion)}
"""The built-in criteria by name."""
