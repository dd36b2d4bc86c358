"""How the standard tests call a model in every way, and record what LangChain makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import get_llm_cache, set_llm_cache
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, LLMResult
from langchain_core.runnables import RunnableConfig

WAYS = ("invoke", "ainvoke", "batch", "abatch", "stream", "astream")


async def ask(llm: BaseLLM, way: str, prompt: str, config: RunnableConfig | None = None) -> str:
    """Ask a model in one of the six :data:`WAYS`, and return its whole answer."""
    match way:
        case "invoke":
            return llm.invoke(prompt, config)
        case "ainvoke":
            return await llm.ainvoke(prompt, config)
        case "batch":
            return llm.batch([prompt], config)[0]
        case "abatch":
            return (await llm.abatch([prompt], config))[0]
        case "stream":
            return "".join(llm.stream(prompt, config))
    return "".join([chunk async for chunk in llm.astream(prompt, config)])


class Recorder(BaseCallbackHandler):
    """Records what LangChain reports of each run to its callbacks.

    Attributes:
        starts: keyword arguments of each start.
        tokens: streamed tokens.
        ends: results.
        errors: errors.
    """

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.tokens: list[str] = []
        self.ends: list[LLMResult] = []
        self.errors: list[BaseException] = []

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], **kwargs: Any) -> None:
        """Record the start of a run."""
        self.starts.append({"prompts": prompts, **kwargs})

    def on_llm_new_token(self, token: str | list[str | dict[str, Any]], **kwargs: Any) -> None:
        """Record a token."""
        self.tokens.append(str(token))

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Record a result."""
        self.ends.append(response)

    def on_llm_error(self, error: BaseException, **kwargs: Any) -> None:
        """Record an error."""
        self.errors.append(error)


class _FullCache(InMemoryCache):
    """A cache that has an answer to everything and records the key that is looked up."""

    key: str

    def lookup(self, prompt: str, llm_string: str) -> Sequence[Generation]:
        """Record the model's part of the key."""
        self.key = llm_string
        return [Generation(text="from the cache")]


def cache_key(llm: BaseLLM) -> str:
    """Return what LangChain keeps the model's answers under, beside the prompt."""
    full = _FullCache()
    llm.model_copy(update={"cache": full}).generate(["any"])
    return full.key


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Give LangChain a fresh global cache for a while."""
    before = get_llm_cache()
    set_llm_cache(InMemoryCache())
    try:
        yield
    finally:
        set_llm_cache(before)
