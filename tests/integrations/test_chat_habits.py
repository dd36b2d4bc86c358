"""What users of other chat models expect: names of parameters, pickles, seeds, chats of several agents."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField
from langgraph.graph import START, MessagesState, StateGraph
from pydantic import ValidationError

from langchain_rain import ChatRain, RainLLM, RainMiddleware
from langchain_rain.chat_models import PromptTooLongError
from rain_llm import PromptError, Rain, RainSettings, SettingsError
from rain_llm import PromptTooLongError as TooLong
from rain_llm.models.scripted import END, ScriptedModel
from tests.integrations.test_chat import SETTINGS, Ear, Toy, opinion

SEEDLESS = RainSettings(evaluation=SETTINGS.evaluation, search={"iterations": 1})
"""The settings of ``SETTINGS``, but no seed was given in them."""

SERVED = {"model": "some/model", "base_url": "http://localhost:1", "api_key": "sk-secret"}


@pytest.fixture
def chat() -> ChatRain:
    return ChatRain(rain=Rain(SETTINGS, model=Toy()))


# --- names of parameters ---

HARMLESS: dict[str, Any] = {
    "n": 1,
    "user": "somebody",
    "logprobs": False,
    "top_logprobs": None,
    "stream_usage": True,
    "stream_options": {"include_usage": True},
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "store": False,
    "service_tier": "auto",
    "strict": True,
    "extra_body": {},
}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_completion_tokens": 7}, {"max_tokens": 7}),
    ({"max_new_tokens": 7}, {"max_tokens": 7}),
    ({"request_timeout": 9}, {"timeout": 9}),
    ({"stop_sequences": ["!"]}, {"stop": ["!"]}),
    ({"model_kwargs": {"top_p": 0.5, "user": "me"}}, {"top_p": 0.5}),
    ({"top_k": 3, "seed": 5, "temperature": 0.5}, {"settings": {"top_k": 3, "seed": 5, "temperature": 0.5}}),
]


@pytest.mark.parametrize("kind", [ChatRain, RainLLM])
def test_what_asks_for_nothing_is_taken(kind: Any):
    assert kind(**HARMLESS, metadata={"a": 1}, streaming=True).settings == kind().settings
    assert kind(**dict.fromkeys([*HARMLESS, "max_completion_tokens"])).settings == kind().settings
    made = kind(rain=Rain(SETTINGS, model=Toy()))
    assert made._overridden({**HARMLESS, "metadata": {}, "stream": True}).settings == SETTINGS


@pytest.mark.parametrize("kind", [ChatRain, RainLLM])
@pytest.mark.parametrize(("theirs", "ours"), SAME, ids=lambda given: " ".join(given))
def test_parameters_may_have_openais_names(kind: Any, theirs: dict[str, Any], ours: dict[str, Any]):
    if "settings" in ours:
        expected = kind(settings=RainSettings(generation=ours["settings"])).settings
    else:
        expected = kind(**ours).settings
    assert kind(**theirs).settings == expected
    assert kind()._overridden(theirs).settings == expected


def test_a_model_and_its_server_may_have_openais_names():
    theirs = {
        "model_name": "some/model",
        "openai_api_base": "http://localhost:1",
        "openai_api_key": "sk-secret",
    }
    made = ChatRain(**theirs, max_retries=0)
    assert made.settings == ChatRain(**SERVED).settings.updated(model={"limits": {"attempts": 1}})
    assert made.model == "some/model" and "sk-secret" not in repr(made)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n asks for what .* does not do: a call has one answer"),
    ({"logprobs": True}, "logprobs .* leave it out"),
    ({"frequency_penalty": 0.5}, "frequency_penalty .* no such penalty"),
    ({"logit_bias": {"1": 2}}, "logit_bias .* criteria"),
    ({"max_completion_tokens": 7, "max_tokens": 8}, "the same parameter"),
    ({"model_kwargs": {"max_tokens": 7}, "max_tokens": 8}, "max_tokens is given twice"),
    ({"model_kwargs": {"reasoning": 7}}, "unknown argument 'reasoning'"),
    (
        {"max_completion_tokens": 0},
        r"max_tokens \(generation\.max_new_tokens\): .*greater than or equal to 1",
    ),
    ({"request_timeout": -1}, r"timeout \(search\.deadline_s\): "),
]


@pytest.mark.parametrize("kind", [ChatRain, RainLLM])
@pytest.mark.parametrize(("given", "said"), REFUSED, ids=lambda given: str(given))
def test_what_there_is_not_is_refused_with_what_to_do(kind: Any, given: dict[str, Any], said: str):
    with pytest.raises((ValidationError, SettingsError), match=said):
        kind(**given)
    with pytest.raises(SettingsError, match=said):
        kind()._overridden(given)


@pytest.mark.parametrize("wrong", [-1, 100, 2.5, "x"])
def test_an_error_of_max_retries_names_it(wrong: Any):
    with pytest.raises(
        (ValidationError, SettingsError), match="max_retries must be a whole number from 0 to 99"
    ):
        ChatRain(max_retries=wrong)
    with pytest.raises(SettingsError, match=r"max_retries is the model's.*ChatRain\(\.\.\.\)"):
        ChatRain()._overridden({"max_retries": 1})


@pytest.mark.parametrize("kind", [ChatRain, RainLLM])
def test_none_is_not_given(kind: Any):
    given = {"max_retries": None, "api_key": None, "base_url": None, "model_name": None, "n": None}
    assert kind()._overridden(given).settings == kind().settings


def test_model_kwargs_are_a_dict():
    given: dict[str, Any] = {"model_kwargs": "sk-secret"}
    with pytest.raises(ValidationError, match="model_kwargs is a str: give a dict"):
        ChatRain(**given)


def test_calls_take_them_by_every_way(chat):
    wanted = chat.invoke("Like my cat?", max_tokens=3).text
    given: dict[str, Any] = {"max_completion_tokens": 3, **HARMLESS}
    assert chat.invoke("Like my cat?", **given).text == wanted
    assert chat.bind(**given).invoke("Like my cat?").text == wanted
    assert "".join(chunk.text for chunk in chat.stream("Like my cat?", **given)) == wanted
    made = chat.configurable_fields(
        max_tokens=ConfigurableField(id="longest"), top_p=ConfigurableField(id="mass")
    )
    answer = made.with_config(configurable={"longest": 3, "mass": 0.9}).invoke("Like my cat?")
    assert answer.text == wanted
    assert chat._get_llm_string(max_completion_tokens=3) == chat._get_llm_string(max_tokens=3, user="me")


# --- pickles ---


def described(model: Any) -> str:
    """Run in another process."""
    model = getattr(model, "_chat", getattr(model, "bound", model))
    return f"{type(model).__name__} {model.settings.hash}"


MADE: dict[str, Callable[[], Any]] = {
    "ChatRain": lambda: ChatRain(max_tokens=7),
    "RainLLM": lambda: RainLLM(temperature=0.5, stop=["!"]),
    "bound": lambda: ChatRain(**SERVED).bind(temperature=0.5),
    "with tools": lambda: ChatRain().bind_tools([{"name": "pay", "parameters": {}}]),
    "middleware": lambda: RainMiddleware(ChatRain(max_tokens=7)),
    "with another's answers": lambda: ChatRain(callbacks=[], cache=InMemoryCache()),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_loads_its_model_itself_can_be_pickled_and_copied(make: Callable[[], Any]):
    made = make()
    for copied in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made)):
        assert type(copied) is type(made) and described(copied) == described(made)
        inner = getattr(copied, "_chat", getattr(copied, "bound", copied))
        assert inner._rain.settings.model == inner.settings.model
        assert "sk-secret" not in repr(copied)


def test_a_pickle_holds_the_key_of_the_servers_and_no_callbacks():
    copied = pickle.loads(pickle.dumps(ChatRain(**SERVED, callbacks=[Ear()])))
    key = copied.settings.model.api_key
    assert key and key.get_secret_value() == "sk-secret"
    assert copied.callbacks is None


def test_what_has_a_ready_engine_says_that_it_cannot_be_pickled(chat):
    with pytest.raises(TypeError, match=r"ready engine cannot be pickled: name its model.*ChatRain\(model="):
        pickle.dumps(chat.bind(stop=["!"]))
    assert copy.deepcopy(chat).invoke("Like my cat?").text == chat.invoke("Like my cat?").text


@pytest.mark.slow
def test_processes_that_are_spawned_take_models():
    models = [make() for make in MADE.values()]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(described, models)) == [described(model) for model in models]


# --- seeds ---


def drawing(settings: RainSettings, kind: Any = ChatRain, **given: Any) -> Any:
    """Return a model that draws one of many words."""
    words = {f" w{i}": 1.0 for i in range(1000)}
    model = ScriptedModel(lambda text: {END: 1.0} if " w" in text else words, opinion)
    return kind(rain=Rain(settings, model=model), **given)


def texts(model: Any, **given: Any) -> set[str]:
    return {str(model.invoke("Say one", **given)) if isinstance(model, RainLLM) else
            model.invoke("Say one", **given).text for _ in range(5)}  # fmt: skip


@pytest.mark.parametrize("kind", [ChatRain, RainLLM])
def test_answers_vary_unless_a_seed_was_given(kind: Any):
    assert len(texts(drawing(SEEDLESS, kind))) > 1
    assert len(texts(drawing(SEEDLESS.updated(on_unsafe="best"), kind))) > 1  # changed, but not in its seed
    assert len(texts(drawing(SEEDLESS, kind), settings=SEEDLESS.updated(generation={"top_k": 0}))) > 1
    seeded = SEEDLESS.updated(generation={"seed": 0})
    once = texts(drawing(seeded, kind))
    assert len(once) == 1
    assert texts(drawing(SEEDLESS, kind, seed=0)) == texts(drawing(SEEDLESS, kind), seed=0) == once
    assert texts(drawing(SEEDLESS, kind), settings=seeded) == once
    assert len(texts(drawing(seeded, kind), seed=None)) > 1


def test_a_settings_file_is_reproducible_by_its_seed_alone(tmp_path):
    file = tmp_path / "policy.yaml"
    for written, seed in (("{max_new_tokens: 7}", None), ("{seed: 0}", 0), ("{seed: 3}", 3)):
        for preset in ("default", "paper"):
            file.write_text(f"preset: {preset}\ngeneration: {written}\n")
            assert ChatRain(settings=RainSettings.from_file(file)).settings.generation.seed == seed


def test_a_cached_answer_comes_back_though_seeds_are_fresh():
    cached = drawing(SEEDLESS, cache=InMemoryCache())
    assert len(texts(cached)) == 1
    assert len(texts(cached, seed=3)) == 1
    assert cached.settings.generation.seed is None


# --- chats that are too long ---


def test_a_chat_that_does_not_fit_into_the_judges_context_is_langchains_error_too():
    judge = Toy(context_length=60)
    chat = ChatRain(rain=Rain(SETTINGS.updated(generation={"max_new_tokens": 9}), model=Toy(), judge=judge))
    with pytest.raises(PromptTooLongError, match="judge"):
        chat.invoke("my " * 60 + "cat?")


async def test_nor_does_a_text_that_is_continued():
    llm = RainLLM(rain=Rain(SETTINGS, model=Toy(context_length=80)))
    long = "my " * 40 + "cat?"
    for call in (lambda: llm.invoke(long), lambda: list(llm.stream(long))):
        with pytest.raises(PromptTooLongError, match="exceeds the context"):
            call()
    with pytest.raises(PromptTooLongError):
        await llm.ainvoke(long)
    with pytest.raises(PromptTooLongError):
        [chunk async for chunk in llm.astream(long)]


def test_and_so_is_one_that_a_model_finds_too_long_when_it_is_asked():
    class Strict(Toy):
        """It counts otherwise than it says."""

        def sample(self, batch):
            raise TooLong("9 tokens and 9 more exceed the context")

    for call in (lambda chat: chat.invoke("Like my cat?"), lambda chat: list(chat.stream("Like my cat?"))):
        with pytest.raises(PromptTooLongError, match="exceed the context"):
            call(ChatRain(rain=Rain(SETTINGS, model=Strict())))
    assert issubclass(PromptTooLongError, TooLong) and issubclass(TooLong, PromptError)


# --- chats that the assistant ends ---


@pytest.fixture
def willing() -> ChatRain:
    """A chat that says yes to everything."""
    model = ScriptedModel(lambda text: {END: 1.0} if text.endswith(" Yes") else {" Yes": 1.0}, opinion)
    return ChatRain(rain=Rain(SETTINGS, model=model))


def test_two_agents_on_one_state_answer_after_each_other(willing):
    def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [willing.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("writer", answer)
    graph.add_node("critic", answer)
    graph.add_edge(START, "writer")
    graph.add_edge("writer", "critic")
    asked: Any = {"messages": [HumanMessage("Like my cat?")]}
    done = graph.compile().invoke(asked)
    assert [message.text for message in done["messages"]] == ["Like my cat?", " Yes", " Yes"]


def test_an_agent_answers_after_another_has_refused(chat, willing):
    refusing = chat.bind(on_unsafe="refuse").invoke("And the villain?")
    assert refusing.response_metadata["stop_reason"] == "refused"
    tools: list[Any] = [{"name": "look", "parameters": {}}]
    answer = willing.bind_tools(tools).invoke([HumanMessage("Like my cat?"), refusing])
    assert answer.text == " Yes"


@pytest.mark.parametrize(
    "messages",
    [
        [AIMessage("Hello")],
        [HumanMessage("Like my cat?"), AIMessage("It is.")],
        [HumanMessage("Like my cat?"), AIMessage("")],
        [HumanMessage("Like my cat?"), AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}])],
        [HumanMessage("Like my cat?"), AIMessage("It is."), SystemMessage("Be brief.")],
        [SystemMessage("Like my cat?")],
    ],
    ids=["alone", "last", "empty", "calls", "system last", "system alone"],
)
async def test_whoever_spoke_last_a_chat_is_answered(willing, messages):
    assert willing.invoke(messages).text == " Yes"
    assert (await willing.ainvoke(messages)).text == " Yes"
