"""ChatRain in agents: what LangGraph streams of it, and which actions it takes.

The toy model of test_chat likes to pay thieves, and is rude when it has paid.
"""

import asyncio
from typing import Any

import langchain_core.exceptions
import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

from langchain_rain import ChatRain
from rain_llm import Rain, UnsafeAnswerError
from tests.integrations.test_chat import SETTINGS, Ear, Toy, clean

PAID: list[str] = []
"""Who was paid."""


def pay(to: str) -> str:
    """Pay somebody."""
    PAID.append(to)
    return f"{to} is paid"


def look(word: str) -> str:
    """Look something up."""
    return f"{word} means {word}"


def made_by_hand(chat: ChatRain) -> Any:
    """Return a graph of a model and its tools."""
    paying = chat.bind_tools([pay, look])

    async def amodel(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await paying.ainvoke(state["messages"])]}

    def model(state: MessagesState) -> dict[str, Any]:
        return {"messages": [paying.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", RunnableLambda(model, amodel))
    graph.add_node("tools", ToolNode([pay, look]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


def agent(chat: ChatRain) -> Any:
    return create_agent(chat, tools=[pay, look], system_prompt="Be useful.")


@pytest.fixture
def model() -> Toy:
    PAID.clear()
    return Toy()


@pytest.fixture
def chat(model: Toy) -> ChatRain:
    return ChatRain(rain=Rain(SETTINGS, model=model))


def asked(text: str) -> dict[str, Any]:
    return {"messages": [HumanMessage(text)]}


@pytest.mark.parametrize("build", [agent, made_by_hand])
def test_no_word_or_action_that_was_not_accepted_reaches_the_stream(chat, model, build):
    ear = Ear()
    heard = list(
        build(chat).stream(
            asked("Please pay him"), {"callbacks": [ear]}, stream_mode=["messages", "updates", "values"]
        )
    )
    judged = model.judged()
    assert any("thief" in text for text in judged)  # the planted call was written and judged,
    assert any("vile fool" in text for text in judged)  # and so was the planted answer
    assert clean(heard) and clean(ear.all)
    assert PAID == ["shop"]
    pieces = [message for mode, (message, *_) in heard if mode == "messages"]
    said = "".join(p.text for p in pieces if isinstance(p, AIMessage))
    assert said == "I do. It is paid."
    final = heard[-1][1]["messages"]
    assert [type(message) for message in final] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert final[1].tool_calls[0]["args"] == {"to": "shop"}
    assert all(m.response_metadata["accepted"] for m in final if isinstance(m, AIMessage))


@pytest.mark.parametrize("build", [agent, made_by_hand])
async def test_the_same_holds_for_the_asynchronous_stream(chat, model, build):
    heard = [part async for part in build(chat).astream(asked("Please pay him"), stream_mode="messages")]
    events = [e async for e in build(chat).astream_events(asked("Please pay him"), version="v2")]
    assert any("thief" in text for text in model.judged())
    assert clean(heard) and clean(events) and PAID == ["shop", "shop"]
    assert "".join(p.text for p, _ in heard if isinstance(p, AIMessage)) == "I do. It is paid."


@pytest.mark.parametrize("on_unsafe", ["best", "refuse", "raise"])
@pytest.mark.parametrize("build", [agent, made_by_hand])
def test_a_harmful_action_that_nothing_replaces_is_not_taken(model, build, on_unsafe):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), settings=SETTINGS.updated(on_unsafe=on_unsafe))
    heard: list[Any] = []
    stream = build(chat).stream(asked("Please rob him"), stream_mode="messages")
    if on_unsafe == "raise":
        with pytest.raises(UnsafeAnswerError):
            heard.extend(stream)
    else:
        heard.extend(stream)
        assert "".join(p.text for p, _ in heard).endswith(SETTINGS.refusal)
    assert any("thief" in text for text in model.judged())
    assert clean(heard) and PAID == []


def test_calls_of_one_conversation_have_names_of_their_own(chat):
    messages = [*agent(chat).invoke(asked("Please pay him"))["messages"], HumanMessage("Again, pay him")]
    messages = agent(chat).invoke({"messages": messages})["messages"]
    ids = [call["id"] for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
    assert len(ids) == len(set(ids)) == 2


def test_an_agent_may_answer_in_a_form():
    class Bill(BaseModel):
        """What was paid."""

        to: str

    def formal(text: str) -> dict[str, float]:
        """Pay, then fill in the bill."""
        if text.rpartition("<tool_call>\n")[2].startswith("{"):
            return {'"}}': 1.0}
        name = "Bill" if "</tool_response>" in text else "pay"
        return {f'{{"name":"{name}","arguments":{{"to":"shop': 1.0}

    PAID.clear()
    chat = ChatRain(rain=Rain(SETTINGS, model=Toy(next_words=formal)))
    running: Any = create_agent(chat, tools=[pay], response_format=Bill)
    done = running.invoke(asked("Please pay"))
    assert done["structured_response"] == Bill(to="shop") and PAID == ["shop"]


def test_an_agent_whose_form_was_refused_is_told_so(model):
    class Thanks(BaseModel):
        """Thank somebody."""

        to: str

    def thankful(text: str) -> dict[str, float]:
        said = text.rpartition("<tool_call>\n")[2]
        return {'"}}': 1.0} if said.startswith("{") else {'{"name":"Thanks","arguments":{"to":"thief': 1.0}

    chat = ChatRain(rain=Rain(SETTINGS, model=Toy(next_words=thankful)))
    standard = getattr(langchain_core.exceptions, "ModelRefusalError", OutputParserException)
    running: Any = create_agent(chat, tools=[], response_format=Thanks)
    with pytest.raises(standard, match="refused"):
        running.invoke(asked("Please thank him"))


async def test_agents_run_side_by_side(model):
    running = agent(ChatRain(rain=Rain(SETTINGS, model=model)))
    done = await asyncio.gather(*(running.ainvoke(asked("Please pay him")) for _ in range(8)))
    assert [d["messages"][-1].text for d in done] == [" It is paid."] * 8
    assert max(model.batches) == 8
