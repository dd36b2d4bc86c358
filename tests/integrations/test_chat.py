"""ChatRain in LangChain: what it tells the engine, what leaves it, tools, schemas, caches, threads.

The toy model has something vile or dishonest to say to everything, and likes to say it; asked for its
opinion, it knows better.
"""

import asyncio
import gc
import json
import re
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import langchain_core.messages
import pytest
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.documents import Document
from langchain_core.exceptions import OutputParserException
from langchain_core.load import dumpd
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField, RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import BaseModel, Field, ValidationError

from langchain_rain import ChatRain
from langchain_rain.chat_models import PromptTooLongError
from rain_llm import (
    Criterion,
    IncompleteError,
    PromptError,
    Rain,
    RainSettings,
    SettingsError,
    UnsafeAnswerError,
)
from rain_llm.models.scripted import END, ScriptedModel

GUIDE = "Be good."
BAD = ("vile", "thief")
KIND = {"labels": [("good", "bad")], "calibration": None}
SETTINGS = RainSettings(
    evaluation={
        "criteria": [Criterion(name="kind", frames=["{query}: {answer} is"], guide=GUIDE, **KIND)],
        "actions": [Criterion(name="honest", frames=["Action: {answer} is"], **KIND)],
    }
).updated(search={"iterations": 32}, generation={"max_new_tokens": 99, "seed": 0})

TO_SHOP, TO_THIEF = (
    f'<tool_call>\n{{"name":"pay","arguments":{{"to":"{to}"}}}}\n</tool_call>' for to in ("shop", "thief")
)
SHEET, VILE_SHEET = (f'{{"title":"{title}"}}' for title in ("lovely", "vile"))
SCRIPT = {
    "my cat?": [(" It is vile. A vile cat.", 9), (" It is lovely. A fine cat.", 1)],
    "the villain?": [(" He is vile.", 1)],
    "pay him": [(f"I do. {TO_THIEF}", 9), (f"I do. {TO_SHOP}", 1)],
    "rob him": [(f"I do. {TO_THIEF}", 1)],
    "pay twice": [(f"{TO_SHOP}\n{TO_SHOP}", 1)],
    "a sheet": [(VILE_SHEET, 9), (SHEET, 1)],
    "a vile sheet": [(VILE_SHEET, 1)],
    "</tool_response>": [(" Paid, vile fool.", 9), (" It is paid.", 1)],
    "both?": [("a", 1), ("b", 1), ("c", 1), ("d", 1)],
}
"""What was asked last: what is answered, and how gladly."""

_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


def next_words(text: str) -> Mapping[str, float]:
    asked = max(
        SCRIPT, key=lambda asked: (text.rfind(asked) + len(asked) if asked in text else -1, len(asked))
    )
    if asked not in text:
        return {END: 1.0}
    said = text[text.rfind(asked) + len(asked) :].removeprefix(f"{GUIDE}\n\n")
    words: dict[str, float] = {}
    for answer, weight in SCRIPT[asked]:
        if answer.startswith(said):
            rest = _WORDS.findall(answer[len(said) :])
            word = rest[0] if rest else END
            words[word] = words.get(word, 0) + weight
    return words or {END: 1.0}


def opinion(question: str, label: str) -> float:
    """Find fault with what is vile and with thieves, and with nothing else."""
    bad = any(word in question for word in BAD)
    return -0.1 if bad == (label == " bad") else -4.0


class Toy(ScriptedModel):
    """The toy model; it notes the chats that it was shown, and how many requests came together."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**{"next_words": next_words, "opinion": opinion, **changes})
        self.chats: list[tuple[Sequence[Any], Sequence[Any]]] = []
        self.batches: list[int] = []

    def render_chat(self, messages, tools=()):
        self.chats.append((messages, tools))
        return super().render_chat(messages, tools)

    def sample(self, batch):
        self.batches.append(len(batch))
        return super().sample(batch)

    def judged(self) -> list[str]:
        return [self.decode(asked.prefix) for asked in self.requests if hasattr(asked, "options")]


class Ear(BaseCallbackHandler):
    """Notes everything that LangChain tells its callbacks."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.all: list[str] = []
        self.options: list[dict[str, Any]] = []
        self.metadata: list[dict[str, Any]] = []

    def on_chat_model_start(self, serialized, messages, *, metadata=None, **kwargs):
        self.options.append(kwargs["options"])
        self.metadata.append(metadata)

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.tokens.append(chunk.message.text)
        self.all.append(repr((token, chunk, kwargs)))

    def on_llm_end(self, response, **kwargs):
        self.all.append(repr((response, kwargs)))

    def on_llm_error(self, error, **kwargs):
        self.all.append(repr((error, kwargs)))


def pay(to: str) -> str:
    """Pay somebody."""
    return f"{to} is paid"


def look(word: str) -> str:
    """Look something up."""
    return f"{word} means {word}"


class Sheet(BaseModel):
    """A sheet of paper."""

    title: str = Field(description="what stands above")


class SheetDict(TypedDict):
    """A sheet of paper."""

    title: str


@pytest.fixture
def model() -> Toy:
    return Toy()


@pytest.fixture
def chat(model: Toy) -> ChatRain:
    return ChatRain(rain=Rain(SETTINGS, model=model))


async def collected(stream) -> list[Any]:
    return [piece async for piece in stream]


def clean(heard: Any) -> bool:
    return not any(word in repr(heard) for word in BAD)


# --- constructing ------------------------------------------------------------------------------


@pytest.mark.slow
def test_importing_and_constructing_load_nothing():
    code = """
import sys, time
from langchain_rain import ChatRain
start = time.perf_counter()
for _ in range(1000):
    ChatRain(model="no/such-model", temperature=0.5, max_tokens=10)
assert time.perf_counter() - start < 5
repr(ChatRain()), ChatRain().profile, ChatRain()._get_ls_params(), ChatRain().asdict()
assert not {"torch", "transformers", "llguidance"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_standard_parameters_are_names_for_places_in_the_settings():
    chat = ChatRain(
        model="some/model",
        base_url="http://localhost:1/v1",
        api_key="secret",
        temperature=0.5,
        max_tokens=7,
        stop=["!"],
        seed=3,
        timeout=2.5,
        max_retries=2,
        settings=SETTINGS,
    )
    assert chat.settings == SETTINGS.updated(
        model={
            "name": "some/model",
            "base_url": ["http://localhost:1"],
            "api_key": "secret",
            "limits": {"attempts": 3},
        },
        generation={"temperature": 0.5, "max_new_tokens": 7, "stop": ["!"], "seed": 3},
        search={"deadline_s": 2.5},
    )
    assert "secret" not in repr(chat) + str(chat.asdict()) + str(dumpd(chat))
    assert ChatRain().settings == RainSettings().unseeded()
    assert ChatRain(temperature=0).settings.generation.temperature == 0.01
    told = {"generation": {"seed": 5}}
    assert ChatRain(settings=told, max_tokens=7).settings == RainSettings().updated(
        generation={"seed": 5, "max_new_tokens": 7}
    )


def test_a_parameter_cannot_be_changed_behind_the_settings():
    chat = ChatRain(temperature=0.5)
    for name, value in {"temperature": 0.1, "settings": SETTINGS}.items():
        with pytest.raises(ValidationError, match="frozen"):
            setattr(chat, name, value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"max_retries": -2}, "max_retries must be a whole number from 0 to 99"),
        ({"timeout": 0}, "deadline_s"),
        ({"api_key": "x"}, "base_url"),
        ({"max_token": 3}, "did you mean 'max_tokens'"),
        ({"model": "x", "rain": Rain(model=Toy())}, "model or rain, not both"),
        ({"max_retries": 1, "rain": Rain(model=Toy())}, "max_retries or rain, not both"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else given,
)
def test_bad_arguments_are_refused_at_once(given, said):
    with pytest.raises(ValidationError, match=said):
        ChatRain(**given)


def test_parameters_hold_for_a_ready_engine(model):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), max_tokens=2)
    assert chat.settings == SETTINGS.updated(generation={"max_new_tokens": 2})
    usage = chat.invoke("Like my cat?").usage_metadata
    assert usage is not None and usage["output_tokens"] == 2


def test_fields_can_be_made_configurable(chat):
    brief = chat.configurable_fields(max_tokens=ConfigurableField(id="longest"))
    answer = brief.with_config(configurable={"longest": 3}).invoke("Like my cat?")
    assert answer.text == " It is lovely"
    assert brief.invoke("Like my cat?").text == " It is lovely. A fine cat."


def test_a_configured_model_streams_in_a_graph_too(chat):
    made = chat.configurable_fields(max_tokens=ConfigurableField(id="longest"))

    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [made.with_config(configurable={"longest": 50}).invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    asked: Any = {"messages": [HumanMessage("Like my cat?")]}
    stream: Any = graph.compile().stream(asked, stream_mode="messages")
    pieces = [message.text for message, _ in stream if message.text]
    assert pieces == [" It is lovely.", " A fine cat."]


def test_the_profile_tells_what_it_can(chat):
    profile = chat.profile
    assert profile and profile["tool_calling"] and profile["tool_choice"]
    assert profile["image_inputs"] is False
    assert profile["max_input_tokens"] == Toy().context_length
    assert (ChatRain().profile or {})["max_input_tokens"] == 8192
    served = {"base_url": "http://localhost:1"}
    told = RainSettings().updated(model={**served, "context_length": 2048})
    assert (ChatRain(settings=told).profile or {})["max_input_tokens"] == 2048
    for unknown in (ChatRain(model="some/model"), ChatRain(model="some/model", **served)):
        assert unknown.profile and "max_input_tokens" not in unknown.profile  # only loading it would tell


def test_an_agent_can_sum_up_what_fills_half_of_the_context(chat):
    SummarizationMiddleware(model=chat, trigger=("fraction", 0.5))


def test_it_is_not_serializable_by_langchain(chat):
    assert not ChatRain.is_lc_serializable()
    assert dumpd(chat)["type"] == "not_implemented"


# --- messages ----------------------------------------------------------------------------------


def test_runs_of_equal_roles_are_merged_and_tools_are_carried_over(chat, model):
    call = {"name": "pay", "args": {"to": "shop"}, "id": "c1", "type": "tool_call"}
    chat.invoke(
        [
            SystemMessage("Be fair."),
            SystemMessage([{"type": "text", "text": "Be "}, "brief."]),
            HumanMessage("Pay."),
            AIMessage("I do."),
            AIMessage(
                [{"type": "text", "text": "Now."}, {"type": "tool_use", "id": "c1"}], tool_calls=[call]
            ),
            ToolMessage("done", tool_call_id="c1"),
            ToolMessage([{"type": "text", "text": "indeed"}], tool_call_id="c1", name="pay"),
            ChatMessage(content="And?", role="user"),
            HumanMessage("What of my cat?"),
        ]
    )
    messages, _ = model.chats[0]
    assert [(m.role, m.content) for m in messages] == [
        ("system", "Be fair.\n\nBe brief."),
        ("user", "Pay."),
        ("assistant", "I do.\n\nNow."),
        ("tool", "done"),
        ("tool", "indeed"),
        ("user", "And?\n\nWhat of my cat?"),
    ]
    (asked,) = messages[2].tool_calls
    assert (asked.name, asked.arguments, asked.id) == ("pay", {"to": "shop"}, "c1")
    assert [(m.name, m.tool_call_id) for m in messages[3:5]] == [("pay", "c1")] * 2


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "url": "https://example.org/cat.png"},
        {"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"},
        {"type": "file", "base64": "AAAA", "mime_type": "application/pdf"},
        {"image": {"format": "png", "source": {"bytes": b"AAAA"}}},
        {"inline_data": {"mime_type": "image/png", "data": "AAAA"}},
        {"type": "refusal"},
    ],
    ids=str,
)
def test_what_is_no_text_is_refused_before_any_model_runs(chat, model, block):
    with pytest.raises(PromptError, match="only text can be judged"):
        chat.invoke([HumanMessage([{"type": "text", "text": "What of my cat?"}, block])])
    assert model.requests == []


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (
            [{"type": "text", "text": "A cat: "}, {"type": "image", "url": "x"}],
            "A cat: [image left out]",
        ),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "[image left out]"),
        ([{"type": "audio", "url": "x"}, {"type": "file", "id": "f"}], "[audio left out][file left out]"),
        (
            [{"type": "resource", "resource": {"uri": "u", "blob": "A" * 99}}],
            '{"type": "resource", "resource": {"uri": "u", "blob": "[data left out]"}}',
        ),
        (
            [
                {
                    "type": "tool_result",
                    "content": [{"type": "text", "text": "a"}, {"type": "image", "data": "A"}],
                }
            ],
            '{"type": "tool_result", "content": [{"type": "text", "text": "a"}, "[image left out]"]}',
        ),
        ([{"type": "image", "base64": "AAAA"}, "A cat."], "[image left out]A cat."),
        ([{"type": "image", "source_type": "base64", "data": "AAAA"}], "[image left out]"),
        ([{"image": {"source": {"bytes": b"A"}}}], '{"image": {"source": {"bytes": "[data left out]"}}}'),
        ([{"inline_data": {"data": "A" * 99}}], '{"inline_data": {"data": "[data left out]"}}'),
        ([{"type": "shot", "at": "data:image/png;base64,AA"}], '{"type": "shot", "at": "[data left out]"}'),
        ([{"cat": "black"}], '{"cat": "black"}'),
        ([{"type": "refusal"}, {"cachePoint": {}}], '{"type": "refusal"}'),
    ],
)
def test_of_a_tools_reply_what_is_no_text_is_left_out(chat, model, content, shown):
    chat.invoke([HumanMessage("What of my cat?"), ToolMessage(content, tool_call_id="1")])
    assert model.chats[0][0][-1].content == shown


def test_what_other_models_and_tools_put_beside_text_stops_nobody(chat, model):
    chat.invoke(
        [
            HumanMessage([{"text": "Pay.", "cache_control": {}}, {"cachePoint": {"type": "default"}}]),
            AIMessage(
                [{"type": "web_search_call", "id": "1", "query": "q"}, {"type": "text", "text": "I do."}]
            ),
            ToolMessage([{"type": "json", "json": {"paid": "ja ✓"}}], tool_call_id="1"),
            HumanMessage("What of my cat?"),
        ]
    )
    assert [(m.role, m.content) for m in model.chats[0][0]] == [
        ("user", "Pay."),
        ("assistant", "I do."),
        ("tool", '{"type": "json", "json": {"paid": "ja ✓"}}'),
        ("user", "What of my cat?"),
    ]


def test_blocks_of_a_streamed_answer_add_up(model):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), output_version="v1").bind_tools([pay])
    chunks: list[Any] = list(chat.stream("Please pay him"))
    summed: Any = add_ai_message_chunks(*chunks)
    whole = chat.invoke("Please pay him")
    kinds = [block["type"] for block in summed.content_blocks]
    assert kinds == ["text", "tool_call"] == [block["type"] for block in whole.content_blocks]
    assert summed.text == whole.text == "I do." and summed.tool_calls == whole.tool_calls


def test_standard_content_blocks_go_out_and_come_in(model):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), output_version="v1")
    question = HumanMessage("Please pay him")
    answer = chat.bind_tools([pay]).invoke([question])
    assert [block["type"] for block in answer.content_blocks] == ["text", "tool_call"]
    (call,) = answer.tool_calls
    chat.invoke([question, answer, ToolMessage("done", tool_call_id=call["id"])])
    _, told, reply = model.chats[-1][0]
    assert (told.content, told.tool_calls[0].arguments) == ("I do.", {"to": "shop"})
    assert (reply.name, reply.tool_call_id) == ("pay", call["id"])


def test_other_kinds_of_messages_and_blocks_are_told_too(chat, model):
    chat.invoke(
        [
            ChatMessage(content="Be fair.", role="developer"),
            HumanMessage([{"type": "text-plain", "text": "Pay.", "mime_type": "text/plain"}]),
            ChatMessage(content="I do.", role="ai"),
            FunctionMessage(content="done", name="pay"),
            AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "refusal", "refusal": "No."}]),
            HumanMessage("What of my cat?"),
        ]
    )
    assert [(m.role, m.content, m.name) for m in model.chats[0][0]] == [
        ("system", "Be fair.", ""),
        ("user", "Pay.", ""),
        ("assistant", "I do.", ""),
        ("tool", "done", "pay"),
        ("assistant", "No.", ""),
        ("user", "What of my cat?", ""),
    ]


def test_unknown_roles_are_refused(chat):
    with pytest.raises(PromptError, match="'oracle'"):
        chat.invoke([ChatMessage(content="What of my cat?", role="oracle")])


def test_too_long_a_chat_is_langchains_own_error():
    chat = ChatRain(rain=Rain(SETTINGS, model=Toy(context_length=80)))
    with pytest.raises(PromptTooLongError, match="exceeds the context") as caught:
        chat.invoke("my " * 40 + "cat?")
    assert isinstance(caught.value, PromptError)
    standard = getattr(langchain_core.exceptions, "ContextOverflowError", Exception)
    assert isinstance(caught.value, standard)
    with pytest.raises(PromptTooLongError):
        asyncio.run(chat.ainvoke("my " * 40 + "cat?"))


# --- answers -----------------------------------------------------------------------------------


def test_an_answer_carries_its_verdict_and_cost(chat):
    message = chat.invoke("Like my cat?")
    assert message.text == " It is lovely. A fine cat."
    told = message.response_metadata
    assert {"verdict", "accepted", "stop_reason", "usage", "settings_hash"} <= told.keys()
    assert (told["stop_reason"], told["finish_reason"]) == ("eos", "stop")
    assert told["model_name"] == "scripted" and told["settings_hash"] == SETTINGS.hash
    assert told["verdict"]["passed"] and told["verdict"]["criteria"][0]["name"] == "kind"
    assert 0 < told["usage"]["evaluation_tokens"] < told["usage"]["model_tokens"]
    assert message.usage_metadata == {
        "input_tokens": told["usage"]["prompt_tokens"],
        "output_tokens": told["usage"]["output_tokens"],
        "total_tokens": told["usage"]["prompt_tokens"] + told["usage"]["output_tokens"],
        "input_token_details": {"cache_read": told["usage"]["cached_tokens"]},
    }
    json.dumps(told)  # caches, tracers and checkpoints write it down


async def test_usage_adds_up_over_chunks_and_answers(chat):
    whole = chat.invoke("Like my cat?")
    for chunks in (list(chat.stream("Like my cat?")), await collected(chat.astream("Like my cat?"))):
        assert len([chunk for chunk in chunks if chunk.text]) > 1  # it does stream
        assert [chunk.usage_metadata for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert [chunk.chunk_position for chunk in chunks if chunk.chunk_position] == ["last"]
        summed = chunks[0]
        for chunk in chunks[1:]:
            summed += chunk
        assert summed.text == whole.text
        assert summed.usage_metadata == whole.usage_metadata
        assert summed.response_metadata["verdict"] == whole.response_metadata["verdict"]
    with get_usage_metadata_callback() as count:
        chat.invoke("Like my cat?")
        list(chat.stream("Like my cat?"))
    assert count.usage_metadata["scripted"]["total_tokens"] == 2 * whole.usage_metadata["total_tokens"]


async def test_every_way_to_call_gives_the_same_answer(model):
    settings = SETTINGS.updated(search={"iterations": 1}, generation={"seed": 7})
    chat = ChatRain(rain=Rain(settings, model=model))
    texts = set()
    for seed in range(6):
        text = chat.invoke("Which of both?", seed=seed).text
        assert (await chat.ainvoke("Which of both?", seed=seed)).text == text
        assert "".join(c.text for c in chat.stream("Which of both?", seed=seed)) == text
        assert "".join([c.text async for c in chat.astream("Which of both?", seed=seed)]) == text
        assert [m.text for m in chat.batch(["Which of both?"] * 2, seed=seed)] == [text] * 2
        texts.add(text)
    assert len(texts) > 1


async def test_nothing_that_was_not_accepted_ever_leaves(chat, model):
    ear = Ear()
    config: RunnableConfig = {"callbacks": [ear]}
    heard = [
        chat.invoke("Like my cat?", config),
        list(chat.stream("Like my cat?", config)),
        await chat.ainvoke("Like my cat?", config),
        await collected(chat.astream("Like my cat?", config)),
        await collected(chat.astream_events("Like my cat?", version="v2")),
        list(chat.stream_events("Like my cat?", version="v3")),
        ChatRain(rain=chat.rain, streaming=True).invoke("Like my cat?", config),
    ]
    assert any("vile" in text for text in model.judged())  # it was written, judged, and rewound
    assert clean(heard) and clean(ear.all)
    assert "".join(ear.tokens) == " It is lovely. A fine cat." * 3  # two streams, and streaming=True


def test_the_first_sentence_arrives_before_the_second_is_begun():
    gate, opened = threading.Event(), []

    def gated(text: str) -> Mapping[str, float]:
        if text.endswith(" A"):
            opened.append(gate.wait(10))
        return next_words(text)

    stream = ChatRain(rain=Rain(SETTINGS, model=Toy(next_words=gated))).stream("Like my cat?")
    assert next(stream).text == " It is lovely."
    gate.set()
    assert "".join(chunk.text for chunk in stream) == " A fine cat."
    assert opened and all(opened)


def test_best_is_marked(chat):
    marking = chat.bind(on_unsafe="best")
    chunks = list(marking.stream("And the villain?"))
    assert "".join(chunk.text for chunk in chunks) == " He is vile."
    assert {chunk.response_metadata["accepted"] for chunk in chunks if chunk.text} == {False}
    assert marking.invoke("And the villain?").response_metadata["accepted"] is False


def test_the_default_refuses(chat):
    chunks = list(chat.stream("And the villain?"))
    for text in ("".join(chunk.text for chunk in chunks), chat.invoke("And the villain?").text):
        assert text == SETTINGS.refusal
    assert chunks[-1].response_metadata["stop_reason"] == "refused"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_refusal_is_said_in_the_standard_way(chat, streamed):
    refusing = chat.bind(on_unsafe="refuse", refusal="No.")
    if streamed:
        message: Any = None
        for chunk in refusing.stream("And the villain?"):
            message = chunk if message is None else message + chunk
    else:
        message = refusing.invoke("And the villain?")
    assert message.text == "No." and clean(message.content)
    told = message.response_metadata
    assert (told["stop_reason"], told["finish_reason"], told["accepted"]) == (
        "refused",
        "content_filter",
        False,
    )
    if hasattr(langchain_core.messages, "RefusalContentBlock"):
        assert {"type": "refusal", "refusal": "No."} in message.content_blocks
    else:
        assert message.additional_kwargs["refusal"] == "No."
    again = [HumanMessage("And the villain?"), message, HumanMessage("Like my cat?")]
    assert refusing.invoke(again).text == " It is lovely. A fine cat."


async def test_unsafe_is_raised_by_every_way_to_call(chat):
    raising = chat.bind(on_unsafe="raise")
    ear = Ear()
    with pytest.raises(UnsafeAnswerError):
        raising.invoke("And the villain?", {"callbacks": [ear]})
    with pytest.raises(UnsafeAnswerError):
        await raising.ainvoke("And the villain?", {"callbacks": [ear]})
    with pytest.raises(UnsafeAnswerError):
        list(raising.stream("And the villain?", {"callbacks": [ear]}))
    with pytest.raises(UnsafeAnswerError):
        await collected(raising.astream("And the villain?", {"callbacks": [ear]}))
    assert ear.tokens == []
    answers = raising.batch(["Like my cat?", "And the villain?"], return_exceptions=True)
    assert answers[0].text.startswith(" It is lovely") and isinstance(answers[1], UnsafeAnswerError)


# --- overrides of one call ---------------------------------------------------------------------


def test_a_call_may_override_settings(chat):
    def hash_of(**overrides: Any) -> str:
        told: str = chat.invoke("Like my cat?", **overrides).response_metadata["settings_hash"]
        return told

    changed = SETTINGS.updated(generation={"max_new_tokens": 5, "temperature": 0.5, "stop": ["!"]})
    assert hash_of(max_tokens=5, temperature=0.5, stop=["!"]) == changed.hash
    assert hash_of(settings=changed) == changed.hash
    assert hash_of(timeout=60) == SETTINGS.updated(search={"deadline_s": 60}).hash
    assert hash_of(temperature=0) == SETTINGS.updated(generation={"temperature": 0.01}).hash
    assert hash_of(max_tokens=None, timeout=None) == SETTINGS.hash
    assert hash_of(on_unsafe="best") == SETTINGS.updated(on_unsafe="best").hash
    assert chat.settings == SETTINGS  # a call leaves no trace
    assert chat.invoke("Like my cat?", max_tokens=2).response_metadata["finish_reason"] == "length"
    assert chat.invoke("Like my cat?", stop=[" A"]).text == " It is lovely."


@pytest.mark.parametrize(
    "call",
    [
        lambda chat, **kw: chat.invoke("Like my cat?", **kw),
        lambda chat, **kw: chat.batch(["Like my cat?"], **kw),
        lambda chat, **kw: list(chat.stream("Like my cat?", **kw)),
        lambda chat, **kw: chat.bind(**kw).invoke("Like my cat?"),
        lambda chat, **kw: asyncio.run(chat.ainvoke("Like my cat?", **kw)),
        lambda chat, **kw: asyncio.run(collected(chat.astream("Like my cat?", **kw))),
    ],
    ids=["invoke", "batch", "stream", "bind", "ainvoke", "astream"],
)
def test_bad_overrides_are_clear_errors_before_any_model_runs(chat, model, call):
    with pytest.raises(SettingsError, match=r"'max_token'.*'max_tokens'"):
        call(chat, max_token=3)
    with pytest.raises(SettingsError, match="max_new_tokens"):
        call(chat, max_tokens=-1)
    with pytest.raises(SettingsError, match="a ready engine has its model"):
        call(chat, model="other")
    with pytest.raises(PromptError, match="response_format"):
        call(chat, response_format={"type": "grammar"})
    assert model.requests == []


def test_tracers_are_told_what_holds_for_the_call(chat):
    ear = Ear()
    chat.invoke("Like my cat?", {"callbacks": [ear]}, temperature=0.5, stop=["!"])
    told = ear.metadata[0]
    assert (told["ls_provider"], told["ls_model_type"]) == ("rain", "chat")
    assert (told["ls_temperature"], told["ls_max_tokens"], told["ls_stop"]) == (0.5, 99, ["!"])
    assert ChatRain(model="some/model")._get_ls_params()["ls_model_name"] == "some/model"
    assert ChatRain(model="some/model")._get_ls_params(model="other")["ls_model_name"] == "other"


def test_a_call_that_names_another_model_takes_nothing_over_that_is_of_the_first_alone():
    own = {"name": "one", "base_url": "http://localhost:1", "tokenizer": "one/folder", "revision": "v1"}
    chat = ChatRain(settings=SETTINGS.updated(model={**own, "context_length": 2048, "api_key": "secret"}))
    other, _ = chat._asked(None, {"model": "two", "max_tokens": 7})
    expected = SETTINGS.updated(
        model={"name": "two", "base_url": "http://localhost:1", "api_key": "secret"},
        generation={"max_new_tokens": 7},
    )
    assert other.settings == expected


def test_context_and_question_reach_the_judge_alone(chat, model):
    frames = ["Of {context}, asked {query}: {answer} is"]
    grounded = SETTINGS.updated(evaluation={"criteria": [Criterion(name="grounded", frames=frames, **KIND)]})
    documents = [Document("the street"), "the house"]
    about = chat.bind(settings=grounded, context=documents, question="which cat")
    assert about.invoke("What of my cat?").text == " It is lovely. A fine cat."
    asked = [text for text in model.judged() if "It is" in text]
    assert asked and all(re.search("Of the street\\s+the house, asked which cat:", text) for text in asked)
    assert "street" not in repr(model.chats)
    with pytest.raises(PromptError, match="context"):
        chat.invoke("What of my cat?", settings=grounded)
    fixed = ChatRain(rain=chat.rain, settings=grounded, context=documents[0])
    assert fixed.context == "the street" and fixed.invoke("What of my cat?").text


def test_rate_limiters_are_asked(model):
    class Limiter(BaseRateLimiter):
        asked = 0

        def acquire(self, *, blocking: bool = True) -> bool:
            self.asked += 1
            return True

        async def aacquire(self, *, blocking: bool = True) -> bool:
            return self.acquire()

    limiter = Limiter()
    chat = ChatRain(rain=Rain(SETTINGS, model=model), rate_limiter=limiter)
    chat.invoke("Like my cat?")
    list(chat.stream("Like my cat?"))
    asyncio.run(chat.ainvoke("Like my cat?"))
    assert limiter.asked == 3


# --- tools -------------------------------------------------------------------------------------


def test_a_harmful_call_is_rewound_into_a_harmless_one(chat, model):
    ear = Ear()
    paying = chat.bind_tools([pay, look])
    message = paying.invoke("Please pay him", {"callbacks": [ear]})
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [("pay", {"to": "shop"})]
    assert message.text == "I do."
    told = message.response_metadata
    assert (told["finish_reason"], told["accepted"]) == ("tool_calls", True)
    chunks = list(paying.stream("Please pay him", {"callbacks": [ear]}))
    (calling,) = [chunk for chunk in chunks if chunk.tool_call_chunks]
    assert calling.tool_calls == message.tool_calls  # the whole call came at once
    assert any("thief" in text for text in model.judged())
    assert clean([message, chunks]) and clean(ear.all)
    assert [tool.name for tool in model.chats[0][1]] == ["pay", "look"]


@pytest.mark.parametrize("on_unsafe", ["best", "refuse"])
def test_a_harmful_call_that_nothing_replaces_is_refused(chat, on_unsafe):
    refusing = chat.bind_tools([pay], on_unsafe=on_unsafe)
    for message in (refusing.invoke("Please rob him"), *refusing.stream("Please rob him")):
        assert not message.tool_calls and not message.invalid_tool_calls and clean(message)
    assert refusing.invoke("Please rob him").response_metadata["stop_reason"] == "refused"
    with pytest.raises(UnsafeAnswerError, match="honest"):
        refusing.invoke("Please rob him", on_unsafe="raise")


def test_calls_side_by_side_are_one_answer(chat):
    message = chat.bind_tools([pay]).invoke("Please pay twice")
    assert [call["args"] for call in message.tool_calls] == [{"to": "shop"}] * 2
    assert len({call["id"] for call in message.tool_calls}) == 2
    summed: Any = AIMessageChunk(content="")
    for chunk in chat.bind_tools([pay]).stream("Please pay twice"):
        summed += chunk
    assert summed.tool_calls == message.tool_calls
    for allowed, calls in ((False, 1), (None, 2), (True, 2)):
        told = chat.bind_tools([pay], parallel_tool_calls=allowed).invoke("Please pay twice")
        assert len(told.tool_calls) == calls


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        (None, 0),
        ("auto", 0),
        (False, 0),
        ("none", 0),
        ({"type": "auto"}, 0),
        ("any", 1),
        ("required", 1),
        (True, 1),
        ({"type": "any"}, 1),
        ("look", 1),
        ({"type": "function", "function": {"name": "look"}}, 1),
        ({"type": "tool", "name": "look"}, 1),
    ],
    ids=str,
)
def test_tool_choices_of_all_dialects(choice, calls):
    def willing(text: str) -> Mapping[str, float]:
        """Say "The end", or, under a schema, spell out a call."""
        if text.endswith("<tool_call>\n"):
            return {'{"name":"look","arguments":{"word":"x"}}': 1.0}
        return {" end": 1.0} if text.endswith("The") else {END: 1.0} if text.endswith("end") else {"The": 1.0}

    chat = ChatRain(rain=Rain(SETTINGS, model=Toy(next_words=willing)))
    message = chat.bind_tools([look], tool_choice=choice).invoke("Like my cat?")
    assert len(message.tool_calls) == calls
    assert message.text == ("" if calls else "The end")


def test_tokens_are_counted_as_the_model_is_shown_them(chat):
    messages = [SystemMessage("Be fair."), HumanMessage("Like my cat?")]
    for tools in ([], [pay, look]):
        usage = chat.bind_tools(tools).invoke(messages).usage_metadata
        assert usage and chat.get_num_tokens_from_messages(messages, tools) == usage["input_tokens"]
    kept = trim_messages(messages, max_tokens=8, token_counter=chat, strategy="last")
    assert [message.text for message in kept] == ["Like my cat?"]


def test_tools_that_cannot_be_called_are_refused(chat, model):
    with pytest.raises(ValueError, match="'steal' names no tool: there are pay, look"):
        chat.bind_tools([pay, look], tool_choice="steal")
    with pytest.raises(ValueError, match="'web_search'"):
        chat.bind_tools([{"type": "web_search"}])
    with pytest.raises(PromptError, match="2 tools are named 'pay'"):
        chat.bind_tools([pay, pay]).invoke("Please pay him")
    assert model.requests == []


# --- structured output -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (Sheet, Sheet(title="lovely")),
        (SheetDict, {"title": "lovely"}),
        (Sheet.model_json_schema(), {"title": "lovely"}),
        ({"type": "object", "properties": {"title": {"enum": ["lovely", "vile"]}}}, {"title": "lovely"}),
    ],
    ids=["pydantic", "TypedDict", "JSON schema", "without a title"],
)
def test_documents_fit_their_schema_and_are_judged(chat, model, schema, wanted):
    structured = chat.with_structured_output(schema)
    ear = Ear()
    assert structured.invoke("Write a sheet", {"callbacks": [ear]}) == wanted
    assert list(structured.stream("Write a sheet", {"callbacks": [ear]}))[-1] == wanted
    assert asyncio.run(structured.ainvoke("Write a sheet")) == wanted
    assert any("vile" in text for text in model.judged()) and clean(ear.all)
    raw = chat.with_structured_output(schema, include_raw=True).invoke("Write a sheet")
    assert raw["raw"].text == SHEET
    assert (raw["parsed"], raw["parsing_error"]) == (wanted, None)


@pytest.mark.parametrize("schema", [Sheet, Sheet.model_json_schema()], ids=["pydantic", "JSON schema"])
def test_json_mode_and_function_calling(chat, schema):
    wanted = Sheet(title="lovely") if schema is Sheet else {"title": "lovely"}
    assert chat.with_structured_output(schema, method="json_mode").invoke("Write a sheet") == wanted

    weights = {"vile": 9.0, "lovely": 1.0}

    def caller(text: str) -> Mapping[str, float]:
        said = text.rpartition("<tool_call>\n")[2]
        if said.endswith(("vile", "lovely")):
            return {'"}}': 1.0}
        return weights if said.endswith(':"') else {'{"name":"Sheet","arguments":{"title":"': 1.0}

    calling = ChatRain(rain=Rain(SETTINGS, model=Toy(next_words=caller)))
    structured = calling.with_structured_output(schema, method="function_calling")
    assert structured.invoke("Write it") == wanted
    assert list(structured.stream("Write it"))[-1] == wanted
    del weights["lovely"]
    with pytest.raises(Exception, match="refused"):
        structured.invoke("Write it")
    with pytest.raises(ValueError, match="'yaml'"):
        chat.with_structured_output(schema, method="yaml")


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_a_refused_document_is_never_parsed(chat, method):
    standard = getattr(langchain_core.exceptions, "ModelRefusalError", OutputParserException)
    with pytest.raises(standard, match="refused"):
        chat.with_structured_output(Sheet, method=method).invoke("Write a vile sheet")
    with pytest.raises(standard, match="refused"):
        list(chat.with_structured_output(Sheet, method=method).stream("Write a vile sheet"))
    raw = chat.with_structured_output(Sheet, method=method, include_raw=True).invoke("Write a vile sheet")
    assert raw["parsed"] is None and isinstance(raw["parsing_error"], standard)
    assert raw["raw"].response_metadata["stop_reason"] == "refused"
    (streamed,) = chat.with_structured_output(Sheet, method=method, include_raw=True).stream(
        "Write a vile sheet"
    )
    assert isinstance(streamed["parsing_error"], standard)
    with pytest.raises(UnsafeAnswerError):
        chat.with_structured_output(Sheet, on_unsafe="raise").invoke("Write a vile sheet")


def test_half_a_document_or_call_never_leaves(chat):
    brief = chat.with_structured_output(Sheet, max_tokens=3)
    with pytest.raises(IncompleteError, match="max_new_tokens"):
        brief.invoke("Write a sheet")
    told = chat.with_structured_output(Sheet, include_raw=True, max_tokens=3).invoke("Write a sheet")
    assert isinstance(told["parsing_error"], IncompleteError) and told["parsed"] is None
    assert told["raw"].text == "" and told["raw"].response_metadata["finish_reason"] == "length"
    with pytest.raises(IncompleteError):
        chat.bind_tools([pay], tool_choice="any").invoke("Please pay him", max_tokens=6)


# --- LangChain's cache -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"max_tokens": 4},
        {"timeout": 60},
        {"on_unsafe": "raise"},
        {"context": [Document("the street")]},
        {"question": "which cat"},
        {"stop": ["!"]},
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "pay"}}]},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
async def test_each_override_has_its_own_cache_entry(model, overrides):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), cache=InMemoryCache())
    prompt = "Write a sheet" if "response_format" in overrides else "Like my cat?"
    other = chat.bind(**overrides)
    answers = []
    for asked in (chat, other):
        before = len(model.requests)
        answers.append(asked.invoke(prompt))
        assert len(model.requests) > before
    before = len(model.requests)
    assert [asked.invoke(prompt).text for asked in (chat, other)] == [a.text for a in answers]
    assert (await other.ainvoke(prompt)).response_metadata == answers[1].response_metadata
    assert len(model.requests) == before


def test_choices_and_schemas_have_their_own_entries_and_equal_calls_share_one(model):
    chat = ChatRain(rain=Rain(SETTINGS, model=model), cache=InMemoryCache())

    def key(**kwargs: Any) -> str:
        return chat._get_llm_string(**kwargs)

    def bound(*tools: Any) -> dict[str, Any]:
        asked: Any = chat.bind_tools(tools)
        return dict(asked.kwargs)

    tools = bound(pay)
    schemas = [{"type": "json_schema", "json_schema": {"schema": {"const": i}}} for i in range(2)]
    keys = [
        key(),
        key(**tools),
        key(**tools | {"tool_choice": "any"}),
        key(**tools | {"parallel_tool_calls": False}),
        key(**bound(pay, look)),
        *(key(response_format=schema) for schema in schemas),
    ]
    assert len(set(keys)) == len(keys)
    same: list[dict[str, Any]] = [
        {"max_tokens": 5},
        {"max_new_tokens": 5},
        {"generation": {"max_new_tokens": 5}},
    ]
    assert len({key(**kwargs) for kwargs in same}) == 1
    assert key(stop=["!"]) == ChatRain(rain=chat.rain, stop="!")._get_llm_string()


# --- many at once ------------------------------------------------------------------------------


@pytest.mark.parametrize(("most", "together"), [(None, 16), (4, 4)])
def test_a_batch_shares_the_models_batches(most, together):
    def patient(text: str) -> Mapping[str, float]:
        """Write nothing before all have asked."""
        while len(toy.chats) < together:
            time.sleep(0.001)
        if not asked.is_set():
            asked.wait(0.3)  # a chat that was rendered is soon a request
            asked.set()
        return next_words(text)

    asked = threading.Event()
    toy = Toy(next_words=patient)
    chat = ChatRain(rain=Rain(SETTINGS, model=toy))
    assert len(chat.batch(["Like my cat?"] * 16, {"max_concurrency": most} if most else None)) == 16
    assert max(toy.batches) == together


@pytest.mark.parametrize("streaming", [False, True])
async def test_async_calls_do_not_block_the_loop(streaming):
    gate, opened = threading.Event(), []

    def slow_opinion(question: str, label: str) -> float:
        opened.append(gate.wait(10))
        return opinion(question, label)

    chat = ChatRain(rain=Rain(SETTINGS, model=Toy(opinion=slow_opinion)))
    asked = collected(chat.astream("Like my cat?")) if streaming else chat.abatch(["Like my cat?"] * 3)
    task = asyncio.create_task(asked)
    await asyncio.sleep(0.05)
    gate.set()  # only a running loop gets here
    await task
    assert all(opened)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_closing_a_stream_cancels_the_search(asynchronous):
    endless = Toy(next_words=lambda text: {".": 1.0} if text.endswith("so") else {" so": 1.0})
    chat = ChatRain(rain=Rain(SETTINGS, model=endless), max_tokens=4000)
    if asynchronous:
        astream: Any = chat.astream("Like my cat?")
        await anext(astream)
        await astream.aclose()
    else:
        stream: Any = chat.stream("Like my cat?")
        next(stream)
        stream.close()
    await asyncio.sleep(0.2)
    asked = len(endless.requests)
    await asyncio.sleep(0.2)
    assert len(endless.requests) == asked


class Forgetting(Toy):
    """It keeps no list of what it was asked, so that whatever grows is somebody else's."""

    def sample(self, batch):
        replies = super().sample(batch)
        self.requests.clear()
        self.batches.clear()
        return replies

    def render_chat(self, messages, tools=()):
        tokens = super().render_chat(messages, tools)
        self.chats.clear()
        return tokens


@pytest.mark.slow
def test_32_threads_share_one_model_without_deadlock_mix_up_or_leak():
    def echo(text: str) -> Mapping[str, float]:
        """Repeat the number that was asked for, in three sentences."""
        number, said = re.findall(r"say (\d+)!(.*)", text, re.DOTALL)[-1]
        said = said.removeprefix(f"{GUIDE}\n\n")
        words = _WORDS.findall(f" {number}." * 3)
        done = len(_WORDS.findall(said))
        return {words[done]: 1.0} if done < len(words) else {END: 1.0}

    chat = ChatRain(rain=Rain(SETTINGS, model=Forgetting(next_words=echo)))

    def ask(number: int) -> None:
        prompt, wanted = f"Please say {number}!", f" {number}." * 3
        match number % 4:
            case 0:
                assert chat.invoke(prompt).text == wanted
            case 1:
                assert "".join(chunk.text for chunk in chat.stream(prompt)) == wanted
            case 2:  # gone after the first piece
                stream: Any = chat.stream(prompt)
                assert next(stream).text == f" {number}."
                stream.close()
            case 3:
                assert asyncio.run(chat.ainvoke(prompt)).text == wanted

    def round_of(start: int) -> None:
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, range(start, start + 32), timeout=60))

    for _ in range(2):  # threads, calibrations, the words that are known
        round_of(1000)
    tracemalloc.start()
    try:
        held = []
        for _ in range(6):
            round_of(1000)
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[-1] - held[0] < 100_000  # 160 answers went through, of more than that together


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_limit_that_comes_before_a_document_is_told(chat, method, raw):
    late = chat.with_structured_output(Sheet, method=method, include_raw=raw, timeout=1e-9)
    if raw:
        assert "'deadline'" in str(late.invoke("Who?")["parsing_error"])
        return
    with pytest.raises(IncompleteError, match="'deadline'"):
        late.invoke("Who?")


def test_no_context_is_an_empty_one(chat):
    assert chat.invoke("Like my cat?", context=None).text == chat.invoke("Like my cat?").text
