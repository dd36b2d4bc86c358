"""LangGraph: an agent with two tools, whose words and calls are judged before anybody sees them.

Run it with `python examples/langgraph_agent.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import ModelRequest, ModelResponse, wrap_model_call
from langchain_core.messages import AnyMessage, ToolMessage
from langchain_core.tools import tool

from langchain_rain import ChatRain
from rain_llm import RainSettings

HOURS = {"library": "ten to six", "museum": "eleven to five", "market": "seven to noon"}
SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 48, "seed": 1, "temperature": 0.3}, search={"iterations": 4}
)


@tool
def opening_hours(place: str) -> str:
    """Look up when a place in town is open: the library, the museum or the market."""
    return HOURS.get(place.lower().removeprefix("the "), f"I know no place called {place}.")


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@wrap_model_call
def one_call_then_words(
    request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
) -> ModelResponse[Any]:
    """Tell the model when to call: one as small as the embedded one does not know by itself."""
    if isinstance(request.messages[-1], ToolMessage):
        return handler(request.override(tools=[]))
    return handler(request.override(tool_choice="any"))


def main(question: str = "Add 17 and 25.") -> list[AnyMessage]:
    """Ask the agent; show each message as it comes."""
    agent = create_agent(ChatRain(settings=SETTINGS), [opening_hours, add], middleware=[one_call_then_words])
    messages: list[AnyMessage] = []
    asked: Any = {"messages": [{"role": "user", "content": question}]}
    for state in agent.stream(asked, {"recursion_limit": 12}, stream_mode="values"):
        messages = state["messages"]
        messages[-1].pretty_print()
    return messages


if __name__ == "__main__":
    main()
