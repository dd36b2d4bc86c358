"""``RainLLM.as_structured_llm``: LlamaIndex's wrapper, which passes on what a query is judged by."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate


class RainStructuredLLM(StructuredLLM):
    """A :class:`~llama_index.llms.rain.RainLLM` whose every answer is an instance of ``output_cls``.

    LlamaIndex's own wrapper fills a prompt's template before the model sees it, so that passages and question
    are not told apart any more. This one hands the template on; its answers are JSON texts, as there.
    """

    def predict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it."""
        answer: BaseModel = self.llm.structured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """Fill a template and answer it without blocking the event loop."""
        answer: BaseModel = await self.llm.astructured_predict(self.output_cls, prompt, **prompt_args)
        return answer.model_dump_json()
