"""Which sentence of an answer failed reaches LangChain's users; what it says does not, unless asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from langchain_core.documents import Document

from langchain_rain import ChatRain, RainLLM
from langchain_rain.rag import grounded_chain
from rain_llm import GROUNDEDNESS, Rain, RainSettings, UnsafeAnswerError
from rain_llm.models.scripted import END, ScriptedModel, script

DOCUMENTS = [Document("The ferry leaves at nine."), Document("The cafe serves tea.")]
ASKED = {"question": "What is there?", "context": DOCUMENTS}
BY_WORDS = GROUNDEDNESS.model_copy(
    update={"style": "labels", "target": None, "calibration": None, "guide": ""}
)
SETTINGS = RainSettings().updated(
    evaluation={"criteria": [BY_WORDS]},
    generation={"max_new_tokens": 30},
    search={"iterations": 2},
    on_unsafe="refuse",
    refusal="The passages do not say.",
)
WORDS = script(
    {
        "?": {"The": 1.0},
        "The": {" ferry": 1.0},
        " ferry": {" leaves": 1.0},
        " leaves": {".": 1.0},
        " leaves.": {" The": 1.0},
        ". The": {" cafe": 1.0},
        " cafe": {" serves": 1.0},
        " serves": {" wine": 1.0},
        " wine": {".": 1.0},
        "wine.": {END: 1.0},
    }
)


def opinion(question: str, label: str) -> float:
    answer = re.search(r"\nAnswer: (.*)\n", question)
    good = label.strip() in {good for good, _ in GROUNDEDNESS.labels}
    return -4.0 + (1.0 if good is (answer is None or "wine" not in answer[1]) else -1.0)


def rain(**changes: Any) -> Rain:
    return Rain(SETTINGS.updated(**changes), model=ScriptedModel(WORDS, opinion))


def check(sentences: list[dict[str, Any]], words: str) -> None:
    first, second = sentences
    assert first["verdict"]["passed"] and first["text"] == "The ferry leaves."  # it has left already
    assert not second["verdict"]["passed"] and second["text"] == words
    assert second["verdict"]["criteria"][0]["probability"] < 0.5
    assert (second["passage"], second["passage_text"]) == (1, "The cafe serves tea.")


async def test_a_refused_answer_by_passages() -> None:
    chain = grounded_chain(ChatRain(rain=rain()))
    answer = chain.invoke(ASKED)
    assert answer.text.endswith("The passages do not say.") and answer.response_metadata["sources"]
    check(answer.response_metadata["sentences"], "")
    assert "wine" not in repr(answer)
    json.dumps(answer.response_metadata)
    for chunks in (list(chain.stream(ASKED)), [chunk async for chunk in chain.astream(ASKED)]):
        assert "wine" not in repr(chunks)
        check(chunks[-1].response_metadata["sentences"], "")
        assert not any("sentences" in chunk.response_metadata for chunk in chunks[:-1])


def test_the_words_are_asked_for_by_name() -> None:
    chain = grounded_chain(ChatRain(rain=rain(evaluation={"sentences": "texts"})))
    answer = chain.invoke(ASKED)
    check(answer.response_metadata["sentences"], "The cafe serves wine.")
    assert "wine" not in answer.text


def test_a_marked_answer() -> None:
    answer = grounded_chain(ChatRain(rain=rain(on_unsafe="best"))).invoke(ASKED)
    assert answer.text == "The ferry leaves. The cafe serves wine."
    check(answer.response_metadata["sentences"], "The cafe serves wine.")


def test_an_error_carries_them() -> None:
    with pytest.raises(UnsafeAnswerError) as caught:
        grounded_chain(ChatRain(rain=rain(on_unsafe="raise"))).invoke(ASKED)
    check([sentence.to_dict() for sentence in caught.value.result.sentences], "")


def test_an_answer_that_passes_says_nothing_of_sentences() -> None:
    chain = grounded_chain(ChatRain(rain=rain(generation={"stop": ["."]})))
    assert "sentences" not in chain.invoke(ASKED).response_metadata


def test_a_text_model() -> None:
    passages = tuple(document.page_content for document in DOCUMENTS)
    generation = RainLLM(rain=rain(), context=passages).generate(["What is there?"]).generations[0][0]
    assert generation.generation_info is not None
    check(generation.generation_info["sentences"], "")
