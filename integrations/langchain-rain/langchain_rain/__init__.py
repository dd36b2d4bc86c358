"""RAIN for LangChain: a language model that judges its own words while it writes, and rewinds."""

from langchain_rain.chat_models import ChatRain
from langchain_rain.llms import RainLLM

__all__ = ["ChatRain", "RainLLM"]
