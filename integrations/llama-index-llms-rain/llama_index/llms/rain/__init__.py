"""RAIN for LlamaIndex: ``RainLLM``, and the verdicts that query engines would drop."""

from llama_index.llms.rain.base import RainLLM
from llama_index.llms.rain.errors import PredictionError
from llama_index.llms.rain.events import RainVerdictEvent, VerdictCollector

__all__ = ["PredictionError", "RainLLM", "RainVerdictEvent", "VerdictCollector"]
