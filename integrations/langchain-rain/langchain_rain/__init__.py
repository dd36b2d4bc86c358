"""RAIN for LangChain: a language model that judges its own words while it writes, and rewinds."""

from typing import TYPE_CHECKING, Any

from langchain_rain.chat_models import ChatRain
from langchain_rain.llms import RainLLM

if TYPE_CHECKING:
    from langchain_rain.middleware import RainMiddleware as RainMiddleware

__all__ = ["ChatRain", "RainLLM"]


def __getattr__(name: str) -> Any:
    if name == "RainMiddleware":  # imported on first use: it needs the extra "agents"
        from langchain_rain.middleware import RainMiddleware

        return RainMiddleware
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
