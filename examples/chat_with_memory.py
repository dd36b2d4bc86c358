"""LangGraph: a chat that remembers, one thread for each person, streamed as it is accepted.

Run it with `python examples/chat_with_memory.py`.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessageChunk, AnyMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from langchain_rain import ChatRain
from rain_llm import RainSettings

SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 24, "seed": 1, "temperature": 0.3}, search={"iterations": 4}
)
TURNS = [("ann", "My name is Ann and I keep bees."), ("ben", "Hello!"), ("ann", "What do I keep?")]


def main() -> dict[str, list[AnyMessage]]:
    """Talk with two people in turns; return what each thread remembers."""
    chat = ChatRain(settings=SETTINGS)

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [chat.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("chat", answer)
    graph.add_edge(START, "chat")
    app = graph.compile(checkpointer=InMemorySaver())
    for name, says in TURNS:
        print(f"\n{name}: {says}\nchat: ", end="")
        asked: Any = {"messages": [{"role": "user", "content": says}]}
        for chunk, _ in app.stream(asked, _thread(name), stream_mode="messages"):
            if isinstance(chunk, AIMessageChunk):
                print(chunk.text, end="", flush=True)
    print()
    return {name: app.get_state(_thread(name)).values["messages"] for name in ("ann", "ben")}


def _thread(name: str) -> Any:
    return {"configurable": {"thread_id": name}}


if __name__ == "__main__":
    main()
