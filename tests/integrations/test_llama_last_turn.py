"""A chat that the assistant ends is answered: agents hand over, and models reflect on what they said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step
from llama_index.core.workflow import Event as WorkflowEvent
from llama_index.llms.rain import RainLLM, VerdictCollector
from llama_index.llms.rain.testing import _aread
from pydantic import BaseModel

from rain_llm import Message
from rain_llm.requests import Sample
from tests.integrations.llama_scripts import judged, memory, model_of, scripted

QUESTION, DRAFT = "How is Bonn?", "I know it well."
ANSWERS = {"It is rubbish.": 9.0, "It is splendid.": 1.0}
CHAT = [ChatMessage(QUESTION), ChatMessage(role="assistant", content=DRAFT)]
agents_warn = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def llm() -> RainLLM:
    return scripted({DRAFT: ANSWERS})


@pytest.mark.parametrize("role", ["assistant", "chatbot", "model"])
@pytest.mark.parametrize("method", ["chat", "achat", "stream_chat", "astream_chat"])
async def test_the_assistant_may_speak_last(llm: RainLLM, method: str, role: str) -> None:
    chat = [CHAT[0], ChatMessage(role=role, content=DRAFT)]
    with VerdictCollector() as collector:
        answer = (await _aread(getattr(llm, method)(chat)))[-1]
    assert answer.message.content == "It is splendid." and collector.accepted
    assert answer.message.role is MessageRole.ASSISTANT
    model = model_of(llm)
    written = next(request.prefix for request in model.requests if isinstance(request, Sample))
    assert written == model.render_chat([Message("user", QUESTION), Message("assistant", DRAFT)])
    assert "It is rubbish." in judged(model)  # it was written, judged and rewound


def test_nothing_but_the_assistant_s_words(llm: RainLLM) -> None:
    assert llm.chat([ChatMessage(role="assistant", content=DRAFT)]).message.content == "It is splendid."


def test_a_turn_that_has_not_been_spoken_yet() -> None:
    llm = scripted({QUESTION: ANSWERS})
    answer = llm.chat([ChatMessage(QUESTION), ChatMessage(role="assistant", content="")])
    assert answer.message.content == "It is splendid."


def call(name: str, **arguments: Any) -> str:
    document = json.dumps({"name": name, "arguments": arguments}, separators=(",", ":"))
    return f"<tool_call>\n{document}\n</tool_call>"


def wipe(disk: str) -> str:
    """Wipe a disk."""
    raise AssertionError(f"{disk} was wiped")


def weather(city: str) -> str:
    """Look up the weather of a city."""
    return f"In {city} it is warm"


TOOLS = [FunctionTool.from_defaults(weather), FunctionTool.from_defaults(wipe)]


def test_tools_are_called_after_the_assistant_spoke() -> None:
    llm = scripted({DRAFT: {call("wipe", disk="all"): 9, call("weather", city="Bonn"): 1}})
    response = llm.chat_with_tools(TOOLS, chat_history=CHAT, tool_required=True)
    (selected,) = llm.get_tool_calls_from_response(response)
    assert (selected.tool_name, selected.tool_kwargs) == ("weather", {"city": "Bonn"})


class Place(BaseModel):
    """A place."""

    about: str


def test_instances_are_predicted_after_the_assistant_spoke() -> None:
    script = {"schema.\n": {'{"about":"rubbish"}': 9.0, '{"about":"splendid"}': 1.0}}
    llm = scripted(script, generation={"chat_template": True})
    made = llm.structured_predict(Place, ChatPromptTemplate(CHAT))
    assert made == Place(about="splendid")
    assert llm.as_structured_llm(Place).chat(CHAT).raw == made


@agents_warn
async def test_an_agent_goes_on_from_a_chat_that_the_assistant_ended() -> None:
    llm = scripted({DRAFT: ANSWERS, "And now?": ANSWERS})
    agent = FunctionAgent(tools=TOOLS, llm=llm)
    assert str(await agent.run(chat_history=CHAT, memory=memory())) == "It is splendid."
    assert str(await agent.run("And now?", chat_history=CHAT, memory=memory())) == "It is splendid."


@agents_warn
async def test_agents_on_one_memory_hand_over() -> None:
    handed = call("handoff", to_agent="teller", reason="weather")
    llm = scripted({QUESTION: {handed: 1}, "</tool_response>": ANSWERS})
    first = FunctionAgent(name="asker", description="asks", llm=llm, can_handoff_to=["teller"])
    second = FunctionAgent(name="teller", description="tells", llm=llm, tools=TOOLS)
    workflow = AgentWorkflow(agents=[first, second], root_agent="asker")
    response: Any = await workflow.run(QUESTION, memory=memory())
    assert (str(response), response.current_agent_name) == ("It is splendid.", "teller")


class Drafted(WorkflowEvent):
    """A chat with a draft at its end."""

    chat: list[ChatMessage]


class Reflection(Workflow):
    """Two nodes on one chat: one writes, the other improves what it wrote."""

    def __init__(self, writer: RainLLM, critic: RainLLM) -> None:
        super().__init__(timeout=20)
        self.writer, self.critic = writer, critic

    @step
    async def write(self, ctx: Context, ev: StartEvent) -> Drafted:
        """Write a draft."""
        chat = [ChatMessage(ev.question)]
        return Drafted(chat=[*chat, (await self.writer.achat(chat)).message])

    @step
    async def improve(self, ctx: Context, ev: Drafted) -> StopEvent:
        """Improve it."""
        return StopEvent(result=(await self.critic.achat(ev.chat)).message.content)


@agents_warn
async def test_reflection_on_one_state() -> None:
    writer, critic = scripted({QUESTION: {DRAFT: 1.0}}), scripted({DRAFT: ANSWERS})
    with VerdictCollector() as collector:
        assert await Reflection(writer, critic).run(question=QUESTION) == "It is splendid."
    assert [event.text for event in collector.events] == [DRAFT, "It is splendid."]


# --- tools by the names that MCP has ------------------------------------------------------------------------


@agents_warn
@pytest.mark.parametrize("name", ["weather.look", "maps/weather", "a.b/c-d_e", "x" * 100])
async def test_tools_with_names_of_mcp(name: str) -> None:
    tool = FunctionTool.from_defaults(weather, name=name)
    llm = scripted({QUESTION: {call(name, city="Bonn"): 1}, "</tool_response>": ANSWERS})
    for choice in ("any", name):
        response = llm.chat_with_tools([tool], QUESTION, tool_choice=choice)
        (selected,) = llm.get_tool_calls_from_response(response)
        assert selected.tool_name == name
    assert llm.predict_and_call([tool], QUESTION).response == "In Bonn it is warm"
    agent = FunctionAgent(tools=[tool], llm=llm)
    assert str(await agent.run(QUESTION, memory=memory())) == "It is splendid."
