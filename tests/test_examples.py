"""The examples run, on the embedded model and with real parts, and what they show is there to be seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, ToolMessage

FOLDER = Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.real, pytest.mark.timeout(200)]


def example(name: str) -> Any:
    """Import an example as ``python examples/NAME.py`` would run it, short of ``main()``."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run():
    tested = {"langchain_rag", "llama_index_query_engine", "langgraph_agent", "chat_with_memory"}
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_langchain_rag(capsys):
    module = example("langchain_rag")
    answer = module.main("What does the baker sell?")
    told = answer.response_metadata
    assert answer.text and answer.text in capsys.readouterr().out
    assert told["sources"][0]["page_content"] == module.PASSAGES[3]  # found by its meaning
    assert told["sources"][0]["metadata"] == {"line": 4}
    assert [c["name"] for c in told["verdict"]["criteria"]] == ["harmlessness", "groundedness"]
    assert told["accepted"] is told["verdict"]["passed"]


@pytest.mark.usefixtures("main_loop")
def test_llama_index_query_engine(capsys):
    module = example("llama_index_query_engine")
    response, event = module.main("What does a litre of cider cost?")
    assert str(response) and str(response) in capsys.readouterr().out
    assert response.source_nodes[0].text == module.PASSAGES[4]
    assert [c.name for c in event.verdict.criteria] == ["harmlessness", "groundedness"]


def test_langgraph_agent():
    module = example("langgraph_agent")
    messages = module.main()
    assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
    _, called, replied, last = messages
    assert isinstance(called, AIMessage) and isinstance(replied, ToolMessage) and isinstance(last, AIMessage)
    (call,) = called.tool_calls
    tools = {tool.name: tool for tool in (module.opening_hours, module.add)}
    tools[call["name"]].args_schema.model_validate(call["args"])
    assert replied.content == str(tools[call["name"]].invoke(call["args"]))
    names = [c["name"] for c in called.response_metadata["verdict"]["criteria"]]
    assert "harmless_actions" in names and called.response_metadata["verdict"]["passed"]
    assert last.text and not last.tool_calls


def test_chat_with_memory(capsys):
    module = example("chat_with_memory")
    threads = module.main()
    assert [m.type for m in threads["ann"]] == ["human", "ai", "human", "ai"]
    assert [m.type for m in threads["ben"]] == ["human", "ai"]
    shown = capsys.readouterr().out
    for messages in threads.values():
        assert all(m.text in shown for m in messages)  # what was streamed is what is remembered
    first, last = threads["ann"][1], threads["ann"][3]
    # The second prompt holds the first turn: memory reached the model.
    assert last.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"] + 10
