"""RainLLM predicts instances of pydantic classes: guaranteed by a grammar, judged like any answer."""

from __future__ import annotations

from datetime import date
from typing import Any, Literal

import pytest
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.prompts.utils import is_chat_model
from llama_index.core.types import PydanticProgramMode
from llama_index.llms.rain import RainLLM, VerdictCollector
from pydantic import BaseModel, RootModel, field_validator

from rain_llm import IncompleteError, RainSettings, UnsafeAnswerError
from tests.integrations.llama_scripts import BY_WORDS, judged, model_of, recording, scripted


class Room(BaseModel):
    """A room."""

    name: str
    kind: Literal["wide", "narrow"]


class House(BaseModel):
    """A house."""

    about: str
    rooms: list[Room]


SPLENDID = House(about="splendid", rooms=[Room(name="hall", kind="wide"), Room(name="bath", kind="narrow")])
RUBBISH = House(about="rubbish", rooms=[])
WRITTEN = {RUBBISH.model_dump_json(): 9, SPLENDID.model_dump_json(): 1}
PROMPT = PromptTemplate("Tell about the house in {town}.")
SCRIPT = {"do not repeat the schema.\n": WRITTEN, "assistant: ": WRITTEN}


@pytest.fixture(params=[False, True], ids=["text", "chat"])
def llm(request: pytest.FixtureRequest) -> RainLLM:
    return scripted(SCRIPT, 128, generation={"chat_template": request.param})


async def predicted(llm: RainLLM, template: Any = PROMPT, **options: Any) -> list[Any]:
    """Predict in all four ways."""
    asked: dict[str, Any] = {"output_cls": House, "prompt": template, "town": "Bonn", **options}
    streamed = await llm.astream_structured_predict(**asked)
    return [
        llm.structured_predict(**asked),
        list(llm.stream_structured_predict(**asked))[-1],
        await llm.astructured_predict(**asked),
        [each async for each in streamed][-1],
    ]


async def test_all_four_ways_give_the_accepted_instance(llm: RainLLM) -> None:
    assert await predicted(llm) == [SPLENDID] * 4
    model = model_of(llm)
    assert "rubbish" in judged(model)  # it was written, judged and rewound
    assert "in Bonn" in model.decode(model.requests[0].prefix)
    assert "schema" not in judged(model)  # the question is judged as it was asked


async def test_a_stream_shows_no_rewound_instance(llm: RainLLM) -> None:
    for each in llm.stream_structured_predict(House, PROMPT, town="Bonn"):
        assert each == SPLENDID


async def test_any_template(llm: RainLLM) -> None:
    chat = ChatPromptTemplate([ChatMessage("Tell about {town}.")])
    choosing = SelectorPromptTemplate(PROMPT, conditionals=[(is_chat_model, chat)])
    for template in (chat, choosing):
        assert await predicted(llm, template) == [SPLENDID] * 4
    assert PROMPT.output_parser is None and chat.output_parser is None  # the caller's are as they were


async def test_nothing_that_passes_is_an_error(llm: RainLLM) -> None:
    hopeless = scripted({"schema.\n": {RUBBISH.model_dump_json(): 1}}, 128)
    asked: dict[str, Any] = {"output_cls": House, "prompt": PROMPT, "town": "Bonn"}
    for on_unsafe in ("best", "refuse", "raise"):
        asked["llm_kwargs"] = {"settings": hopeless.settings.updated(on_unsafe=on_unsafe)}
        with pytest.raises(UnsafeAnswerError):
            hopeless.structured_predict(**asked)
        with pytest.raises(UnsafeAnswerError):
            list(hopeless.stream_structured_predict(**asked))
        with pytest.raises(UnsafeAnswerError):
            await hopeless.astructured_predict(**asked)


async def test_half_an_instance_never_leaves(llm: RainLLM) -> None:
    with pytest.raises(IncompleteError, match="max_new_tokens"):
        await predicted(llm, llm_kwargs={"max_tokens": 9})


async def test_each_prediction_is_counted_once(llm: RainLLM) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: pytest.fail("the tokens were guessed"))
    llm.callback_manager = CallbackManager([counter])
    with recording() as recorder, VerdictCollector() as collector:
        await predicted(llm)
    assert recorder.counts["LLMChatEndEvent"] + recorder.counts["LLMCompletionEndEvent"] == 4
    assert recorder.counts["LLMStructuredPredictEndEvent"] == 4
    counted = [(count.prompt_token_count, count.completion_token_count) for count in counter.llm_token_counts]
    usages = [event.usage for event in collector.events]
    assert counted == [(usage.prompt_tokens, usage.output_tokens) for usage in usages]


async def test_an_instance_by_a_call() -> None:
    document = f'{{"name":"House","arguments":{SPLENDID.model_dump_json()}}}'
    llm = scripted({"in Bonn.": {f"<tool_call>\n{document}\n</tool_call>": 1}}, 160)
    llm.pydantic_program_mode = PydanticProgramMode.FUNCTION
    with VerdictCollector() as collector:
        assert llm.structured_predict(House, PROMPT, town="Bonn") == SPLENDID
    assert [each.name for each in collector.events[0].tool_calls] == ["House"]


class Quiet(House):
    """A house that nobody praises."""

    @field_validator("about")
    @classmethod
    def check(cls, about: str) -> str:
        """Refuse praise."""
        if about == "splendid":
            raise ValueError("too loud")
        return about


@pytest.mark.parametrize("mode", [PydanticProgramMode.LLM, PydanticProgramMode.FUNCTION])
async def test_what_the_class_itself_rejects_is_an_error(mode: PydanticProgramMode) -> None:
    document = SPLENDID.model_dump_json()
    called = f'<tool_call>\n{{"name":"Quiet","arguments":{document}}}\n</tool_call>'
    llm = scripted({"schema.\n": {document: 1}, "in Bonn.": {called: 1}}, 160)
    llm.pydantic_program_mode = mode
    asked: dict[str, Any] = {"output_cls": Quiet, "prompt": PROMPT, "town": "Bonn"}
    shown = []
    with pytest.raises(ValueError, match="too loud"):
        llm.structured_predict(**asked)
    with pytest.raises(ValueError, match="too loud"):
        shown += list(llm.stream_structured_predict(**asked))
    with pytest.raises(ValueError, match="too loud"):
        shown += [each async for each in await llm.astream_structured_predict(**asked)]
    assert shown == []


class Strict(BaseModel, strict=True):
    """What JSON can tell in words only."""

    day: date


async def test_a_strict_class_is_read_as_json() -> None:
    llm = scripted({"schema.\n": {'{"day":"2026-11-26"}': 1}})
    assert await predicted(llm, output_cls=Strict) == [Strict(day=date(2026, 11, 26))] * 4


Numbers = RootModel[list[int]]


@pytest.mark.parametrize(
    ("output_cls", "document"),
    [
        (Numbers, "[1,2]"),
        (RootModel[Literal["wide", "narrow"]], '"wide"'),
        (RootModel[list[Room]], SPLENDID.model_dump_json(include={"rooms"}).removeprefix('{"rooms":')[:-1]),
        (RootModel[dict[str, int]], '{"Bonn":3}'),
    ],
)
@pytest.mark.parametrize("mode", [PydanticProgramMode.LLM, PydanticProgramMode.FUNCTION])
async def test_root_models(output_cls: Any, document: str, mode: PydanticProgramMode) -> None:
    whole = f'{{"root":{document}}}'
    called = f'<tool_call>\n{{"name":"Answer","arguments":{whole}}}\n</tool_call>'
    written = {"schema.\n": whole, "assistant: ": whole, "in Bonn.": called, "the house.": called}
    llm = scripted({asked: {answer: 1} for asked, answer in written.items()}, 160)
    llm.pydantic_program_mode = mode
    for each in await predicted(llm, output_cls=output_cls):
        assert each == output_cls.model_validate_json(document)
    house = llm.as_structured_llm(output_cls)
    assert house.complete("Tell about the house.").text == document


# --- as a model of its own, and in query engines ------------------------------------------------------------


async def test_a_structured_model_is_counted_once(llm: RainLLM) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: pytest.fail("the tokens were guessed"))
    llm.callback_manager = CallbackManager([counter])
    house, chat = llm.as_structured_llm(House), [ChatMessage("Tell about the house.")]
    with recording() as recorder:
        assert house.chat(chat).raw == SPLENDID
        assert (await house.achat(chat)).raw == SPLENDID
        assert list(house.stream_chat(chat))[-1].raw == SPLENDID
        assert [each async for each in await house.astream_chat(chat)][-1].raw == SPLENDID
        assert House.model_validate_json(house.complete("Tell about the house.").text) == SPLENDID
        assert House.model_validate_json((await house.acomplete("Tell about it.")).text) == SPLENDID
        assert House.model_validate_json(house.predict(PROMPT, town="Bonn")) == SPLENDID
        assert House.model_validate_json(await house.apredict(PROMPT, town="Bonn")) == SPLENDID
    assert recorder.counts["LLMChatEndEvent"] + recorder.counts["LLMCompletionEndEvent"] == 8
    assert len(counter.llm_token_counts) == 8


@pytest.mark.parametrize("wrapped", [True, False])
async def test_a_structured_query_is_judged_by_its_passages(wrapped: bool) -> None:
    text = "The house has two rooms."
    llm = scripted(SCRIPT, 128, evaluation={"criteria": [BY_WORDS]})
    index = SummaryIndex.from_documents([Document(text=text)])
    if wrapped:
        engine = index.as_query_engine(llm=llm.as_structured_llm(House))
    else:
        engine = index.as_query_engine(llm=llm, output_cls=House)
    with recording() as recorder, VerdictCollector() as collector:
        for response in (engine.query("How is it?"), await engine.aquery("How is it?")):
            assert isinstance(response, PydanticResponse)
            assert isinstance(response.response, House)
    assert [(event.context, event.question) for event in collector.events] == [((text,), "How is it?")] * 2
    assert recorder.counts["LLMCompletionEndEvent"] == 2


# --- the real model -------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.usefixtures("main_loop")
def test_the_real_model_predicts_an_instance() -> None:
    generation = {"max_new_tokens": 96, "chat_template": True, "seed": 0}
    llm = RainLLM(settings=RainSettings().updated(generation=generation))
    room = llm.structured_predict(Room, PromptTemplate("Tell about the {what}."), what="hall")
    assert room.kind in ("wide", "narrow")


def test_a_limit_that_comes_before_a_document_is_told() -> None:
    late = scripted(SCRIPT, 128, search={"deadline_s": 1e-9})
    with pytest.raises(IncompleteError, match="'deadline'"):
        late.structured_predict(House, PROMPT, town="Bonn")
    with pytest.raises(IncompleteError, match="'deadline'"):
        list(late.stream_structured_predict(House, PROMPT, town="Bonn"))
