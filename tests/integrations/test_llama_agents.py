"""RainLLM calls tools: the four ways to ask, what is refused, and LlamaIndex's agents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.tools import FunctionTool
from llama_index.llms.rain import RainLLM, VerdictCollector
from pydantic import BaseModel

from rain_llm import CIVILITY, Message, PromptError, StopReason
from rain_llm.requests import Sample
from rain_llm.types import ToolCall
from tests.integrations.llama_scripts import BY_WORDS, judged, memory, model_of, recording, scripted

QUESTION = "How is Bonn?"


def call(name: str, /, **arguments: Any) -> str:
    """What a model writes to call a tool."""
    document = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
    return f"<tool_call>\n{document}\n</tool_call>"


def weather(city: str) -> str:
    """Look up the weather of a city."""
    return f"In {city} it is warm"


def wipe(disk: str) -> str:
    """Wipe a disk."""
    raise AssertionError(f"{disk} was wiped")


WEATHER, WIPE = FunctionTool.from_defaults(weather), FunctionTool.from_defaults(wipe)
LOOK = f"A splendid idea.\n{call('weather', city='Bonn')}"
HARM = call("wipe", disk="all")
REPLY = "</tool_response>"
AGENT = {
    QUESTION: {HARM: 9, LOOK: 1},
    REPLY: {"The weather is rubbish.": 9, "The weather is splendid.": 1},
}

# LlamaIndex's agents use what LlamaIndex's workflows and pydantic have deprecated.
agents_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def llm() -> RainLLM:
    return scripted(AGENT)


# --- the four ways to ask -------------------------------------------------------------------------


async def answers(llm: RainLLM, **options: Any) -> list[ChatResponse]:
    """Ask in all four ways; return the last of what each says."""
    asked: dict[str, Any] = {"tools": [WEATHER, WIPE], "user_msg": QUESTION, **options}
    streamed = await llm.astream_chat_with_tools(**asked)
    return [
        llm.chat_with_tools(**asked),
        list(llm.stream_chat_with_tools(**asked))[-1],
        await llm.achat_with_tools(**asked),
        [chunk async for chunk in streamed][-1],
    ]


async def test_a_harmful_call_is_rewound_in_all_four_ways(llm: RainLLM) -> None:
    for response in await answers(llm):
        assert response.message.content == "A splendid idea."
        (selected,) = llm.get_tool_calls_from_response(response)
        assert (selected.tool_name, selected.tool_kwargs) == ("weather", {"city": "Bonn"})
        assert selected.tool_id
        assert response.raw is not None and response.raw["accepted"]
        assert response.raw["stop_reason"] == "tool_calls"
        assert response.raw["tool_calls"][0]["arguments"] == {"city": "Bonn"}
        json.dumps(response.raw)
    assert 'wipe(disk="all")' in judged(model_of(llm))


@pytest.mark.parametrize("on_unsafe", ["best", "refuse"])
async def test_a_call_that_does_not_pass_never_leaves(on_unsafe: str) -> None:
    hopeless = scripted({QUESTION: {HARM: 1}}, on_unsafe=on_unsafe, refusal="No.")
    for response in await answers(hopeless, tool_required=True):
        assert response.message.content == "No."
        assert hopeless.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match=r"no tool call: 'No\.'"):
        hopeless.get_tool_calls_from_response(response)


def test_streaming_shows_accepted_text_only(llm: RainLLM) -> None:
    chunks = list(llm.stream_chat_with_tools([WEATHER, WIPE], QUESTION))
    assert "".join(chunk.delta or "" for chunk in chunks) == "A splendid idea."
    assert not any("wipe" in repr(chunk.message) or "tool_call>" in repr(chunk.delta) for chunk in chunks)


@pytest.mark.parametrize(
    ("options", "called"),
    [
        ({"tool_required": True}, ["weather"]),
        ({"tool_choice": "required"}, ["weather"]),
        ({"tool_choice": "any"}, ["weather"]),
        ({"tool_choice": "weather"}, ["weather"]),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, ["weather"]),
        ({"tool_choice": "none", "tool_required": True}, []),
        ({"allow_parallel_tool_calls": True, "tool_required": True}, ["weather", "weather"]),
    ],
)
async def test_the_choice_among_tools(options: dict[str, Any], called: list[str]) -> None:
    two = "\n".join((call("weather", city="Bonn"), call("weather", city="Trier")))
    llm = scripted({QUESTION: {two: 1, "Splendid.": 1}})
    for response in await answers(llm, **options):
        selected = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
        assert [each.tool_name for each in selected] == called
        assert len({each.tool_id for each in selected}) == len(called)


async def test_what_cannot_be_asked(llm: RainLLM) -> None:
    with pytest.raises(PromptError, match="there are no tools"):
        llm.chat_with_tools([], QUESTION, tool_required=True)
    with pytest.raises(PromptError, match="'look' names no tool"):
        await llm.achat_with_tools([WEATHER], QUESTION, tool_choice="look")
    with pytest.raises(PromptError, match=r"a tool is a str: .*OpenAI's form"):
        llm.chat([ChatMessage(QUESTION)], tools=["weather"])
    with pytest.raises(PromptError, match="tools are for chats"):
        llm.complete(QUESTION, tools=[WEATHER.metadata.to_openai_tool()])
    with pytest.raises(PromptError, match="tool_choice is 3"):
        llm.chat_with_tools([WEATHER], QUESTION, tool_choice=3)


def test_the_twin_calls_what_it_likes(llm: RainLLM) -> None:
    with VerdictCollector() as collector:
        response = llm.unguarded().chat_with_tools([WEATHER, WIPE], QUESTION)
    assert [each.tool_name for each in llm.get_tool_calls_from_response(response)] == ["wipe"]
    assert collector.events == []


# --- calls in a chat's past ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="7", tool_name="weather", tool_kwargs={"city": "Bonn"})],
        ),
        ChatMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="7", tool_name="weather", tool_kwargs='{"city": "Bonn"}')],
        ),
        ChatMessage(
            role="assistant",
            additional_kwargs={
                "tool_calls": [{"id": "7", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}]
            },
        ),
        ChatMessage(
            role="assistant",
            additional_kwargs={
                "tool_calls": [ToolSelection(tool_id="7", tool_name="weather", tool_kwargs={"city": "Bonn"})]
            },
        ),
    ],
    ids=["block", "text", "beside", "selection"],
)
def test_calls_and_replies_reach_the_engine(llm: RainLLM, asked: ChatMessage) -> None:
    reply = ChatMessage(role="tool", content="warm", additional_kwargs={"tool_call_id": "7"})
    llm.chat_with_tools([WEATHER], chat_history=[ChatMessage(QUESTION), asked, reply])
    model = model_of(llm)
    chat = [
        Message("user", QUESTION),
        Message("assistant", "", (ToolCall("weather", {"city": "Bonn"}, "7"),)),
        Message("tool", "warm", name="weather", tool_call_id="7"),
    ]
    assert llm.rain is not None
    prompt = model.decode(llm.rain.encode(chat))
    sample = next(request for request in model.requests if isinstance(request, Sample))
    assert model.decode(sample.prefix).endswith(prompt)
    assert "warm" in prompt and "Bonn" in prompt


@pytest.mark.parametrize(
    "calls", [[{"name": "weather"}], [{"function": {"name": "weather", "arguments": "{"}}]]
)
def test_calls_that_cannot_be_read(llm: RainLLM, calls: list[Any]) -> None:
    past = ChatMessage(role="assistant", content="I", additional_kwargs={"tool_calls": calls})
    with pytest.raises(PromptError, match=r"a message holds a (tool )?call .*cannot be read"):
        llm.chat([ChatMessage(QUESTION), past, ChatMessage(QUESTION)])


def test_another_model_reads_our_calls(llm: RainLLM) -> None:
    response = llm.chat_with_tools([WEATHER, WIPE], QUESTION)
    response.message.additional_kwargs.clear()
    (selected,) = MockFunctionCallingLLM().get_tool_calls_from_response(response)
    assert selected.tool_kwargs == {"city": "Bonn"}


# --- what LlamaIndex builds on it -----------------------------------------------------------------------


async def test_a_tool_is_called_at_once(llm: RainLLM) -> None:
    assert llm.predict_and_call([WEATHER, WIPE], QUESTION).response == "In Bonn it is warm"
    assert (await llm.apredict_and_call([WEATHER, WIPE], QUESTION)).response == "In Bonn it is warm"


class Place(BaseModel):
    """A place."""

    name: str
    warm: bool


def test_a_program_of_llama_index_s_own() -> None:
    llm = scripted({QUESTION: {call("Place", name="Bonn", warm=True): 1}})
    program = FunctionCallingProgram.from_defaults(Place, QUESTION, llm=llm)
    assert program() == Place(name="Bonn", warm=True)
    assert list(program.stream_call())[-1] == Place(name="Bonn", warm=True)


@agents_warn
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent(llm: RainLLM, streaming: bool) -> None:
    agent = FunctionAgent(tools=[WEATHER, WIPE], llm=llm, streaming=streaming)
    with VerdictCollector() as collector:
        handler = agent.run(QUESTION, memory=memory())
        shown = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
        response = await handler
    assert str(response) == "The weather is splendid."
    assert [event.stop_reason for event in collector.events] == [StopReason.TOOL_CALLS, StopReason.EOS]
    assert [each.name for each in collector.events[0].tool_calls] == ["weather"]
    assert bool(shown) is streaming
    assert not any("rubbish" in event.response or "wipe" in str(event.tool_calls) for event in shown)
    hidden = judged(model_of(llm))
    assert "rubbish" in hidden and "wipe" in hidden  # both were written, judged and rewound


@agents_warn
async def test_an_agent_s_second_question_carries_the_first(llm: RainLLM) -> None:
    kept = memory()
    agent = FunctionAgent(tools=[WEATHER, WIPE], llm=llm)
    for _ in range(2):
        assert str(await agent.run(QUESTION, memory=kept)) == "The weather is splendid."
    roles = [message.role.value for message in kept.get_all()]
    assert roles == ["user", "assistant", "tool", "assistant"] * 2


@agents_warn
async def test_an_agent_workflow_hands_over() -> None:
    llm = scripted(
        {
            QUESTION: {call("handoff", to_agent="teller", reason="weather"): 1},
            "finish the rest of the task": {"Splendid.": 1},
            REPLY: {"Splendid.": 1},
        }
    )
    first = FunctionAgent(name="asker", description="asks", llm=llm, can_handoff_to=["teller"])
    second = FunctionAgent(name="teller", description="tells", llm=llm, tools=[WEATHER])
    workflow = AgentWorkflow(agents=[first, second], root_agent="asker")
    response: Any = await workflow.run(QUESTION, memory=memory())
    assert (str(response), response.current_agent_name) == ("Splendid.", "teller")


@agents_warn
async def test_an_agent_workflow_of_tools_takes_function_calling(llm: RainLLM) -> None:
    workflow = AgentWorkflow.from_tools_or_functions([WEATHER, WIPE], llm=llm)
    assert [type(agent) for agent in workflow.agents.values()] == [FunctionAgent]
    assert str(await workflow.run(QUESTION, memory=memory())) == "The weather is splendid."


@agents_warn
async def test_a_react_agent_with_a_tool() -> None:
    act = 'Thought: A splendid idea.\nAction: weather\nAction Input: {"city": "Bonn"}'
    bad = 'Thought: This is rubbish.\nAction: wipe\nAction Input: {"disk": "all"}'
    end = "Thought: I can answer without using any more tools.\nAnswer: Splendid."
    llm = scripted({QUESTION: {bad: 9, act: 1}, "Observation: In Bonn it is warm": {end: 1}})
    with VerdictCollector() as collector:
        handler = ReActAgent(tools=[WEATHER, WIPE], llm=llm).run(QUESTION, memory=memory())
        shown = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    assert str(await handler) == "Splendid."
    assert not any("rubbish" in event.response for event in shown)
    assert len(collector.events) == 2


@agents_warn
async def test_a_react_agent_s_observations_are_a_context_where_they_are_a_tool_s() -> None:
    act = 'Thought: A splendid idea.\nAction: weather\nAction Input: {"city": "Bonn"}'
    end = "Thought: I can answer without using any more tools.\nAnswer: Very splendid."
    criteria = {"criteria": [CIVILITY, BY_WORDS]}
    llm = scripted({QUESTION: {act: 1}, REPLY: {end: 1}}, evaluation=criteria, on_unsafe="best")
    formatter = ReActChatFormatter.from_defaults(observation_role=MessageRole.TOOL)
    agent = ReActAgent(tools=[WEATHER], llm=llm, formatter=formatter)
    with VerdictCollector() as collector:
        assert str(await agent.run(QUESTION, memory=memory())) == "Very splendid."
    names = [[c.name for c in event.verdict.criteria] for event in collector.events if event.verdict]
    assert names == [["civility"], ["civility", "groundedness"]]
    assert f"In Bonn it is warm\nQuestion: {QUESTION}\nAnswer: Thought: I can" in judged(model_of(llm))


# --- counts -------------------------------------------------------------------------------------------


async def test_each_chat_with_tools_is_counted_once(llm: RainLLM) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: pytest.fail("the tokens were guessed"))
    llm.callback_manager = CallbackManager([counter])
    with recording() as recorder:
        responses = await answers(llm)
    assert recorder.counts["LLMChatStartEvent"] == recorder.counts["LLMChatEndEvent"] == 4
    assert recorder.counts["RainVerdictEvent"] == 4
    assert not [name for name in recorder.counts if name.startswith("LLMCompletion")]
    counted = [(count.prompt_token_count, count.completion_token_count) for count in counter.llm_token_counts]
    usages = [response.raw["usage"] for response in responses if response.raw]
    assert counted == [(usage["prompt_tokens"], usage["output_tokens"]) for usage in usages]


@agents_warn
async def test_an_agent_s_calls_are_counted_once(llm: RainLLM) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: pytest.fail("the tokens were guessed"))
    llm.callback_manager = CallbackManager([counter])
    with recording() as recorder, VerdictCollector() as collector:
        await FunctionAgent(tools=[WEATHER, WIPE], llm=llm).run(QUESTION, memory=memory())
    assert recorder.counts["LLMChatStartEvent"] == recorder.counts["LLMChatEndEvent"] == 2
    assert counter.total_llm_token_count == sum(
        event.usage.prompt_tokens + event.usage.output_tokens for event in collector.events
    )
