"""RainMiddleware in agents: what an outside model must not say or do is in no stream of any mode.

The outside model streams word by word and says what the test tells it to. RAIN's scripted model finds
poison and deletions harmful, and itself says "Let us talk kindly.".
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelCallLimitMiddleware
from langchain.agents.structured_output import ProviderStrategy, StructuredOutputError, ToolStrategy
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel, PrivateAttr

from langchain_rain import ChatRain
from langchain_rain.middleware import RainMiddleware
from rain_llm import PromptError, Rain, RainSettings, UnsafeAnswerError
from rain_llm.criteria import GROUNDEDNESS, HARMLESS_ACTIONS, HARMLESSNESS
from rain_llm.models.scripted import END, ScriptedModel

KIND = "Let us talk kindly."
HARMFUL = "Stir the arsenic into his evening tea."
HARMLESS = "Put honey into his evening tea."
PLANTED = ("arsenic", "erase_all", "backups")
MODES = ("values", "updates", "messages", "custom", "debug", "tasks", "checkpoints")
SETTINGS = RainSettings().updated(generation={"max_new_tokens": 20, "seed": 0}, search={"iterations": 8})
GOOD = {good for criterion in (HARMLESSNESS, HARMLESS_ACTIONS) for good, _ in criterion.labels}
REPLIES = {"": " Let", "Let": " us", "us": " talk", "talk": " kindly", "kindly": ".", ".": END}


def next_words(text: str) -> Mapping[str, float]:
    said = text.split()[-1] if text.split() else ""
    word = said.strip(".") if said != "kindly." else "."
    return {REPLIES.get(word, " Let"): 1.0}


def opinion(question: str, label: str) -> float:
    """Find what is planted harmful; of anything else, think this and that."""
    if any(planted in question for planted in PLANTED):
        return -6.0 if label.strip() in GOOD else -1.0
    return -3.0 - (len(question) % 7 * 0.02 if label.strip() in GOOD else 0.0)


class Outside(BaseChatModel):
    """Says its messages in order, word by word."""

    messages: list[AIMessage]
    _asked: int = PrivateAttr(0)

    @property
    def _llm_type(self):
        return "outside"

    def bind_tools(self, tools, **kwargs):
        return self.bind(tools=[getattr(t, "name", t) for t in tools], **kwargs)

    def _next(self) -> AIMessage:
        self._asked += 1
        return self.messages[self._asked - 1]

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        return ChatResult(generations=[ChatGeneration(message=self._next())])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        message = self._next()
        content: list[Any] = (
            message.text.split(" ") if isinstance(message.content, str) else [message.content]
        )
        for piece in content:
            part = f"{piece} " if isinstance(piece, str) else piece
            yield ChatGenerationChunk(message=AIMessageChunk(content=part))
        calls = [{**c, "args": json.dumps(c["args"])} for c in message.tool_calls]
        calls += [{**c} for c in message.invalid_tool_calls]
        chunks: Any = [
            {"name": c["name"], "args": c["args"], "id": c["id"], "index": i} for i, c in enumerate(calls)
        ]
        last = AIMessageChunk(content="", tool_call_chunks=chunks, chunk_position="last")
        yield ChatGenerationChunk(message=last)


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def tools(done):
    @tool
    def erase_all(target: str) -> str:
        """Erase everything at a target."""
        done.append(f"erase {target}")
        return "erased"

    @tool
    def look_up(word: str) -> str:
        """Look up a word."""
        done.append(f"look up {word}")
        return f"{word}: a plant"

    return [erase_all, look_up]


def rain(**changes: Any) -> ChatRain:
    return ChatRain(rain=Rain(SETTINGS.updated(**changes), model=ScriptedModel(next_words, opinion)))


def call(name: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{name}"}])


ASKED: Any = {"messages": [HumanMessage("How do I treat my uncle?")]}
FAILING = [
    AIMessage(HARMFUL),
    call("erase_all", target="the backups"),
    AIMessage(
        "",
        invalid_tool_calls=[
            {
                "type": "invalid_tool_call",
                "name": "erase_all",
                "args": "{the backups",
                "id": "1",
                "error": None,
            }
        ],
    ),
]
FAILING += [AIMessage([{"type": "reasoning", "reasoning": HARMFUL}, {"type": "text", "text": HARMLESS}])]
FAILING += [
    AIMessage([{"type": "thinking", "thinking": HARMFUL}, {"type": "text", "text": HARMLESS}]),
    AIMessage([{"type": "output_text", "text": HARMFUL}]),
]
IDS = ["words", "call", "broken call", "reasoning", "thinking", "another provider's text"]


def agent_of(*messages: AIMessage, tools=(), **options: Any) -> Any:
    options = {"middleware": [RainMiddleware(rain())], **options}
    return create_agent(Outside(messages=list(messages)), tools, **options)


def clean(events: Any) -> bool:
    return not any(planted in repr(events) for planted in PLANTED)


# --- nothing that was planted is in any stream -----------------------------------------------------


@pytest.mark.parametrize("message", FAILING, ids=IDS)
@pytest.mark.parametrize("mode", [*MODES, list(MODES)], ids=str)
def test_no_stream_holds_what_did_not_pass(message, mode, tools, done):
    options: dict[str, Any] = {"tools": tools, "checkpointer": InMemorySaver()}
    config: Any = {"configurable": {"thread_id": "1"}}
    events = list(agent_of(message, **options).stream(ASKED, config, stream_mode=mode, subgraphs=True))
    assert events or mode == "custom"
    assert clean(events) and done == []
    unguarded: Any = create_agent(Outside(messages=[message, AIMessage("Bye.")]), **options)
    if mode != "custom":  # it is there to be seen
        assert not clean(list(unguarded.stream(ASKED, config, stream_mode=mode, subgraphs=True)))


@pytest.mark.parametrize("message", FAILING, ids=IDS)
@pytest.mark.parametrize("mode", [*MODES, list(MODES)], ids=str)
async def test_no_async_stream_holds_what_did_not_pass(message, mode, tools, done):
    agent = agent_of(message, tools=tools)
    events = [event async for event in agent.astream(ASKED, stream_mode=mode)]
    assert clean(events) and done == []


@pytest.mark.parametrize("message", FAILING, ids=IDS)
async def test_no_event_holds_what_did_not_pass(message, tools, done):
    events = [event async for event in agent_of(message, tools=tools).astream_events(ASKED, version="v2")]
    assert any(event["event"] == "on_chat_model_stream" for event in events)  # RAIN's own words
    assert clean(events) and done == []


@pytest.mark.filterwarnings("ignore:The v3 streaming protocol")
@pytest.mark.parametrize("message", FAILING, ids=IDS)
async def test_no_event_of_the_third_protocol_holds_what_did_not_pass(message, tools, done):
    events = list(agent_of(message, tools=tools).stream_events(ASKED, version="v3"))
    later = await agent_of(message, tools=tools).astream_events(ASKED, version="v3")
    assert clean(events) and clean([event async for event in later]) and done == []
    assert any(event["method"] == "messages" for event in events)
    unguarded: Any = create_agent(Outside(messages=[message, AIMessage("Bye.")]), tools)
    assert not clean(list(unguarded.stream_events(ASKED, version="v3")))


@pytest.mark.parametrize("message", FAILING, ids=IDS)
def test_rain_answers_instead_and_its_words_are_streamed(message, tools):
    pieces = [chunk.text for chunk, _ in agent_of(message, tools=tools).stream(ASKED, stream_mode="messages")]
    assert len(pieces) > 1 and "".join(pieces).strip() == KIND
    last = agent_of(message, tools=tools).invoke(ASKED)["messages"][-1]
    assert last.text.strip() == KIND and not last.tool_calls
    assert last.response_metadata["rain"]["written_by"] == "rain"
    assert last.response_metadata["rain"]["verdict"]["passed"] is False
    assert last.response_metadata["verdict"]["passed"] is True  # RAIN's own


# --- what passes is unchanged ----------------------------------------------------------------------


async def test_what_passes_arrives_unchanged_by_every_way():
    message = AIMessage(HARMLESS, id="mine", additional_kwargs={"provider": "theirs"})
    ways = [
        agent_of(message).invoke(ASKED)["messages"][-1],
        (await agent_of(message).ainvoke(ASKED))["messages"][-1],
        *[m for m, _ in agent_of(message).stream(ASKED, stream_mode="messages")],
        *[m async for m, _ in agent_of(message).astream(ASKED, stream_mode="messages")],
    ]
    assert len(ways) == 4  # each stream holds it once
    for arrived in ways:
        told = arrived.response_metadata.pop("rain")
        assert told["written_by"] == "outside" and told["verdict"]["passed"] is True
        assert arrived == message


def test_a_call_that_passes_reaches_its_tool(tools, done):
    agent = agent_of(call("look_up", word="basil"), AIMessage(HARMLESS), tools=tools)
    messages = agent.invoke(ASKED)["messages"]
    assert done == ["look up basil"]
    assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
    (criterion,) = messages[1].response_metadata["rain"]["verdict"]["criteria"][-1:]
    assert criterion["name"] == "harmless_actions"


def test_a_message_of_nothing_passes_unjudged():
    last = agent_of(AIMessage("")).invoke(ASKED)["messages"][-1]
    assert last.response_metadata["rain"] == {"written_by": "outside", "verdict": None}


LOOK: Any = [{"name": "look_up", "args": {"word": "tea"}, "id": "1", "type": "tool_call"}]
HIDDEN = [
    AIMessage([{"type": "text", "text": "Stir the ars"}, {"type": "text", "text": "enic into his tea."}]),
    AIMessage(HARMLESS, additional_kwargs={"reasoning": {"summary": [{"type": "summary", "text": HARMFUL}]}}),
    AIMessage(HARMLESS, additional_kwargs={"function_call": {"name": "erase_all", "arguments": "{}"}}),
    AIMessage([{"type": "tool_use", "id": "7", "name": "erase_all", "input": {}}]),
    AIMessage([{"type": "file", "url": "http://example.org", "extras": {"text": HARMFUL}}]),
    call("erase_all", target=float("nan")),
    AIMessage([{"type": "reasoning", "reasoning": HARMFUL, "id": "1"}], tool_calls=LOOK),
    AIMessage([{"type": "reasoning", "reasoning": HARMFUL}], tool_calls=[{**LOOK[0], "id": None}]),
    AIMessage(
        [{"type": "tool_use", "id": "1", "name": "look_up", "input": {"word": HARMFUL}}], tool_calls=LOOK
    ),
    AIMessage([{"type": "text", "text": HARMLESS, "annotations": [{"cited_text": HARMFUL}]}]),
    AIMessage([{"type": "file", "text": HARMFUL}]),
    AIMessage("", tool_calls=LOOK, additional_kwargs={"tool_calls": [{"function": {"name": "erase_all"}}]}),
]
"""Harm where a reader, or a program, finds it, and where no field of LangChain's own holds it."""


@pytest.mark.parametrize("message", HIDDEN)
def test_every_part_of_a_message_that_can_be_read_is_judged(message, tools, done):
    last = agent_of(message, tools=tools).invoke(ASKED)["messages"][-1]
    assert last.response_metadata["rain"]["written_by"] == "rain"
    assert last.text.strip() == KIND and done == []


def test_parts_of_a_message_that_nobody_reads_are_not_judged(tools, done):
    """A harmless answer is not failed for a signature."""
    beside = {"signature": "arsenic", "id": "arsenic"}
    raw = {"id": "arsenic", "function": {"name": "look_up", "arguments": '{"word": "tea"}'}}
    said = AIMessage(
        [
            {"type": "thinking", "thinking": "Honey, then.", **beside},
            {"type": "text", "text": HARMLESS},
            {"type": "image", "base64": "YXJzZW5pYw==", "mime_type": "arsenic/png"},
        ],
        tool_calls=LOOK,
        additional_kwargs={"__signatures__": {"1": "arsenic"}, "tool_calls": [raw]},
    )
    messages = agent_of(said, AIMessage("Bye."), tools=tools).invoke(ASKED)["messages"]
    assert messages[1].response_metadata["rain"]["written_by"] == "outside"
    assert done == ["look up tea"]


def test_one_bad_call_of_two_stops_both(tools, done):
    both = AIMessage("", tool_calls=[*call("look_up", word="x").tool_calls, *FAILING[1].tool_calls])
    agent_of(both, tools=tools).invoke(ASKED)
    assert done == []


# --- settings ----------------------------------------------------------------------------------------


def grim(**changes: Any) -> ChatRain:
    """A RAIN that has nothing good to say itself."""
    model = ScriptedModel(lambda text: {" arsenic": 1.0, END: 0.5}, opinion)
    return ChatRain(rain=Rain(SETTINGS.updated(**changes), model=model))


def test_unaccepted_text_of_rains_own_does_not_leave_either():
    agent = agent_of(AIMessage(HARMFUL), middleware=[RainMiddleware(grim(refusal="No."))])
    assert [m.text for m, _ in agent.stream(ASKED, stream_mode="messages") if m.text] == ["No."]
    raising = agent_of(AIMessage(HARMFUL), middleware=[RainMiddleware(grim(on_unsafe="raise"))])
    with pytest.raises(UnsafeAnswerError):
        raising.invoke(ASKED)


def test_what_is_too_long_to_be_judged_does_not_leave():
    small = ScriptedModel(next_words, opinion, context_length=120)
    agent = agent_of(
        AIMessage(f"{HARMLESS} " * 40),
        middleware=[RainMiddleware(ChatRain(rain=Rain(SETTINGS, model=small)))],
    )
    events: list[Any] = []
    with pytest.raises(PromptError, match="120 tokens"):
        for event in agent.stream(ASKED, stream_mode=["messages", "tasks", "values"]):
            events.append(event)
    assert events and "honey" not in repr(events)


def test_rain_is_told_the_system_message_and_the_chat():
    chat = rain()
    agent = agent_of(
        AIMessage(HARMFUL), middleware=[RainMiddleware(chat)], system_prompt=SystemMessage("Be brief.")
    )
    agent.invoke(ASKED)
    model: Any = chat._rain.runtime.writer
    written = [model.decode(r.prefix) for r in model.requests if not hasattr(r, "options")]
    assert any("Be brief." in text and "treat my uncle" in text for text in written)
    judged = [model.decode(r.prefix) for r in model.requests if hasattr(r, "options")]
    assert any("treat my uncle" in text and "arsenic" in text for text in judged)


def test_one_middleware_serves_threads_and_loops():
    middleware = RainMiddleware(rain())

    async def many() -> list[Any]:
        agents = [agent_of(AIMessage(text), middleware=[middleware]) for text in [HARMFUL, HARMLESS] * 4]
        return await asyncio.gather(*(agent.ainvoke(ASKED) for agent in agents))

    answers = [answer["messages"][-1].text.strip() for answer in asyncio.run(many())]
    assert answers == [KIND, HARMLESS] * 4


# --- among others ------------------------------------------------------------------------------------


class Card(BaseModel):
    advice: str


@pytest.mark.parametrize("strategy", [ToolStrategy(Card), Card])
@pytest.mark.parametrize("advice", [HARMFUL, HARMLESS])
def test_structured_answers_are_judged_as_words(strategy, advice, tools):
    agent = agent_of(call("Card", advice=advice), tools=tools, response_format=strategy)
    modes: Any = ["values", "messages", "updates"]
    events = list(agent.stream(ASKED, stream_mode=modes))
    assert clean(events)
    state = [event for mode, event in events if mode == "values"][-1]
    if advice == HARMLESS:
        assert state["structured_response"] == Card(advice=HARMLESS)
        names = [c["name"] for c in state["messages"][1].response_metadata["rain"]["verdict"]["criteria"]]
        assert names == ["harmlessness"]
    else:
        assert state.get("structured_response") is None
        assert state["messages"][-1].text.strip() == KIND


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("strategy", [ToolStrategy(Card), Card, ProviderStrategy(Card)])
def test_an_agent_without_tools_ends_where_its_structured_answer_is_refused(strategy, way):
    if isinstance(strategy, ProviderStrategy):
        answer = AIMessage(f'{{"advice": "{HARMFUL}"}}')
    else:
        answer = call("Card", advice=HARMFUL)
    agent = agent_of(answer, response_format=strategy)  # which has one answer only to give
    state = agent.invoke(ASKED) if way == "invoke" else asyncio.run(agent.ainvoke(ASKED))
    assert state["messages"][-1].text.strip() == KIND
    assert state.get("structured_response") is None


class Hiding(AgentMiddleware):
    """Shows the model only some of the tools, as a selector does."""

    def wrap_model_call(self, request, handler):
        return handler(request.override(tools=[t for t in request.tools if t.name != "erase_all"]))


@pytest.mark.parametrize("strategy", [None, ToolStrategy(Card), Card])
def test_a_call_of_a_tool_that_was_not_shown_is_judged_as_an_action(strategy, tools, done):
    deletion = call("erase_all", target="the disk")  # harmful by its name alone
    agent = agent_of(
        deletion, tools=tools, response_format=strategy, middleware=[Hiding(), RainMiddleware(rain())]
    )
    agent.invoke(ASKED)
    assert done == []


def test_rain_answers_chats_that_hold_more_than_text():
    asked: list[Any] = [
        {"type": "text", "text": "And this?"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
        {"image": {"source": {"bytes": b"x"}}},
        {"type": "resource", "resource": {"uri": "u"}},
    ]
    searched = AIMessage([{"type": "web_search_call", "id": "1"}, {"type": "text", "text": "Tea."}])
    state = agent_of(AIMessage(HARMFUL)).invoke(
        {"messages": [*ASKED["messages"], searched, HumanMessage(asked)]}
    )
    assert state["messages"][-1].text.strip() == KIND


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_a_document_that_cannot_be_parsed_is_judged_all_the_same(way):
    def asked(text: str) -> Any:
        agent = agent_of(AIMessage(text), response_format=ProviderStrategy(Card))
        return agent.invoke(ASKED) if way == "invoke" else asyncio.run(agent.ainvoke(ASKED))

    assert asked(f'{{"advise": "{HARMFUL}"}}')["messages"][-1].text.strip() == KIND
    with pytest.raises(StructuredOutputError):
        asked(HARMLESS)


class Exclaiming(AgentMiddleware):
    """Changes what the model said, unheard."""

    def wrap_model_call(self, request, handler):
        (message,) = handler(request).result
        return AIMessage(message.text.replace("honey", "arsenic"))


def test_other_middleware_keeps_working_and_what_it_changes_is_judged():
    agent = agent_of(
        AIMessage(HARMLESS),
        middleware=[ModelCallLimitMiddleware(run_limit=3), RainMiddleware(rain()), Exclaiming()],
    )
    events = list(agent.stream(ASKED, stream_mode=["values", "messages"]))
    assert clean(events)
    assert events[-1][1]["messages"][-1].text.strip() == KIND


def test_ones_own_callbacks_see_what_was_said():
    heard = []

    class Ear(BaseCallbackHandler):
        def on_llm_end(self, response, **kwargs):
            heard.append(response.generations[0][0].text)

    agent_of(AIMessage(HARMFUL)).invoke(ASKED, {"callbacks": [Ear()]})
    assert HARMFUL in heard  # for one's own records


@pytest.mark.parametrize("chat", [rain().bind(max_tokens=5), rain().with_config(tags=["x"]), "rain"])
def test_a_chat_with_bound_parameters_is_refused(chat):
    with pytest.raises(TypeError, match="give parameters to ChatRain"):
        RainMiddleware(chat)


@pytest.mark.parametrize("said", [HARMFUL, HARMLESS])
def test_groundedness_waits_for_what_tools_tell(said, tools, done):
    by_words = GROUNDEDNESS.model_copy(update={"style": "labels"})
    chat = rain(evaluation={"criteria": [by_words]})
    model = Outside(messages=[AIMessage(said)])
    agent: Any = create_agent(model, tools=tools, middleware=[RainMiddleware(chat)])
    answer = agent.invoke(ASKED)["messages"][-1]
    assert clean([answer])
    names = [c["name"] for c in answer.response_metadata["rain"]["verdict"]["criteria"]]
    assert names == ["harmlessness"]  # no tool has replied yet
    told = [
        *ASKED["messages"],
        call("look_up", word="arsenic"),
        ToolMessage("a plant", tool_call_id="call-look_up"),
    ]
    model = Outside(messages=[AIMessage(said)])
    agent = create_agent(model, tools=tools, middleware=[RainMiddleware(chat)])
    answer = agent.invoke({"messages": told})["messages"][-1]
    names = [c["name"] for c in answer.response_metadata["rain"]["verdict"]["criteria"]]
    assert names == ["groundedness"] and clean([answer])


@pytest.mark.slow
def test_langchain_itself_is_needed_by_the_middleware_alone():
    code = """
import sys
sys.modules["langchain"] = None  # as if it were not installed
from langchain_rain import ChatRain
try:
    from langchain_rain import RainMiddleware
except ImportError as error:
    assert "pip install 'langchain-rain[agents]'" in str(error), error
else:
    raise AssertionError("it was imported")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
    from langchain_rain import RainMiddleware as Lazy

    assert Lazy is RainMiddleware
