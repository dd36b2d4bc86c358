"""Answers from retrieved passages; the judge reads passages, question and answer separately."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda

from langchain_rain.chat_models import ChatRain, check_chat
from rain_llm import GROUNDEDNESS, HARMLESSNESS, PromptError, RainSettings, SettingsError

PROMPT = ChatPromptTemplate.from_messages(
    [
        ("system", "Answer the question by the quoted passages. If they do not tell, say so."),
        ("user", "{passages}\n\nQuestion: {question}"),
    ]
)
"""The default prompt. A passage cannot leave its quotation, whatever is written in it."""

_SETTINGS = RainSettings().updated(evaluation={"criteria": [HARMLESSNESS, GROUNDEDNESS]})
_NOTHING = "Nothing was found."


def grounded_chain(
    chat: ChatRain | None = None, prompt: ChatPromptTemplate = PROMPT
) -> Runnable[Mapping[str, Any], AIMessage]:
    """Return a chain that answers a question from passages, guarded.

    Its input has a ``question``, and as ``context`` a text or a list of texts or documents. It streams
    accepted text. The answer's ``response_metadata`` has, beside ``ChatRain``'s, its ``sources``: the
    ``page_content`` and ``metadata`` of each passage.

    Example:
        ```python
        from langchain_core.runnables import RunnablePassthrough
        from langchain_rain.rag import grounded_chain

        chain = {"context": retriever, "question": RunnablePassthrough()} | grounded_chain()
        answer = chain.invoke("When does the ferry leave?")
        ```

    Args:
        chat: answers; by default the embedded model, judged for harmlessness and groundedness.
        prompt: has places for ``passages``, which come quoted and numbered, and ``question``; the input holds
            what belongs in others (``chat_history``, say).

    Raises:
        TypeError: ``chat`` is no ``ChatRain``.
        SettingsError: no criterion of the chat's settings reads the passages.
        PromptError: when called; the input is no dict of ``context`` and ``question``. Further errors are
            those of ``ChatRain``.
    """
    chat = ChatRain(settings=_SETTINGS) if chat is None else chat
    check_chat(chat)
    criteria = chat.settings.evaluation.criteria
    if not any(criterion.needs_context for criterion in criteria):
        raise SettingsError(
            f"none of the criteria {', '.join(c.name for c in criteria)} reads the passages: "
            "add GROUNDEDNESS to settings.evaluation.criteria"
        )

    return RunnableLambda(_Answerer(chat, prompt).answer, name="grounded_chain")


@dataclass(frozen=True)
class _Answerer:
    """Answers with passages. Can be pickled."""

    chat: ChatRain
    prompt: ChatPromptTemplate

    def answer(self, asked: Any) -> Runnable[Any, AIMessage]:
        """Return a chain that answers one question."""
        if not isinstance(asked, Mapping) or not {"context", "question"} <= asked.keys():
            given = (
                f"a dict of {sorted(map(str, asked))}" if isinstance(asked, Mapping) else type(asked).__name__
            )
            raise PromptError(
                f"grounded_chain takes a dict of 'context' and 'question', not {given}: put "
                "{'context': retriever, 'question': RunnablePassthrough()} before it"
            )
        documents = _documents(asked["context"])
        texts = [document.page_content for document in documents]
        passages = texts if any(text.strip() for text in texts) else [_NOTHING]
        messages = self.prompt.invoke({**asked, "passages": _quoted(passages)})
        bound = self.chat.bind(context=passages, question=asked["question"])
        return RunnableLambda(lambda _: messages) | bound | _citing(documents)


def _documents(context: str | Document | Sequence[str | Document] | None) -> list[Document]:
    several = [context] if isinstance(context, (str, Document)) else context or ()
    return [Document(one) if isinstance(one, str) else one for one in several]


def _quoted(passages: Sequence[str]) -> str:
    """Return passages as numbered quotations; no line of them stands without its mark."""
    return "\n\n".join(
        "\n".join([f"Passage {i}:", *(f"> {line}" for line in passage.splitlines())])
        for i, passage in enumerate(passages, 1)
    )


def _citing(documents: Sequence[Document]) -> Runnable[AIMessage, AIMessage]:
    """Return a step that adds the sources to the answer's last piece."""
    sources = [{"page_content": d.page_content, "metadata": d.metadata} for d in documents]

    def cited(message: AIMessage) -> AIMessage:
        metadata = message.response_metadata
        if "verdict" not in metadata:
            return message
        return message.model_copy(update={"response_metadata": {**metadata, "sources": sources}})

    def transform(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
        for message in messages:
            yield cited(message)

    async def atransform(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        async for message in messages:
            yield cited(message)

    return RunnableGenerator(transform, atransform)
