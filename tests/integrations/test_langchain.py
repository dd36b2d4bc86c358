"""RainLLM in LangChain: what leaves it, what it tells, and the traps around it.

The toy model likes to say that somebody is vile and seldom says that somebody is lovely; asked for
its opinion, it knows which of the two is civil.
"""

import asyncio
import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.load import dumpd
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda
from pydantic import BaseModel, ValidationError

import langchain_rain
from langchain_rain import RainLLM
from rain_llm import CIVILITY, PromptError, Rain, RainSettings, SettingsError, UnsafeAnswerError
from rain_llm.models.scripted import END, ScriptedModel

HOSTILE = "vile"
INFO = {"usage", "verdict", "accepted", "stop_reason", "settings_hash", "trace"}
SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 40, "seed": 0},
    search={"iterations": 64, "leaves": 1},
    evaluation={"criteria": [CIVILITY]},
)


def next_words(text: str) -> Mapping[str, float]:
    """Write " is <adjective>. She is <adjective>."; of a villain nothing good is ever said."""
    text = text.replace(CIVILITY.guide, "")
    if text.endswith(" is"):
        return {" vile": 9.0} if "villain" in text else {" vile": 9.0, " lovely": 1.0}
    if text.endswith((" vile", " lovely")):
        return {".": 1.0}
    if text.endswith("."):
        return {END: 1.0} if text.count(".") == 2 else {" She": 1.0}
    return {" is": 1.0}


def opinion(question: str, label: str) -> float:
    """Find the label of the right sort likely; without either adjective, all labels alike."""
    if HOSTILE not in question and "lovely" not in question:
        return -3.0
    civil = label.strip() in {good for good, _ in CIVILITY.labels}
    return -1.0 if civil != (HOSTILE in question) else -6.0


class Toy(ScriptedModel):
    """The toy model; it also notes how many requests came together."""

    batches: list[int]

    def __init__(self, **changes: Any) -> None:
        super().__init__(**{"next_words": next_words, "opinion": opinion, **changes})
        self.batches = []

    def sample(self, batch):
        self.batches.append(len(batch))
        return super().sample(batch)

    def judged(self) -> list[str]:
        return [self.decode(asked.prefix) for asked in self.requests if hasattr(asked, "options")]


class Ear(BaseCallbackHandler):
    """Notes everything that LangChain tells its callbacks."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.chunks: list[Any] = []
        self.errors: list[BaseException] = []
        self.ends: list[Any] = []
        self.all: list[str] = []
        self.metadata: list[dict[str, Any]] = []

    def on_llm_start(self, serialized, prompts, *, metadata=None, **kwargs):
        self.metadata.append(metadata)
        self.all.append(repr((serialized, prompts, metadata, kwargs)))

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        self.tokens.append(token)
        self.chunks.append(chunk)
        self.all.append(repr((token, chunk, kwargs)))

    def on_llm_end(self, response, **kwargs):
        self.ends.append(response)
        self.all.append(repr((response, kwargs)))

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)
        self.all.append(repr((error, kwargs)))


@pytest.fixture
def model() -> Toy:
    return Toy()


@pytest.fixture
def llm(model: Toy) -> RainLLM:
    return RainLLM(rain=Rain(SETTINGS, model=model))


@pytest.fixture
def global_cache() -> Iterator[InMemoryCache]:
    cache = InMemoryCache()
    set_llm_cache(cache)
    yield cache
    set_llm_cache(None)


async def collected(stream) -> list[str]:
    return [piece async for piece in stream]


# --- the package -------------------------------------------------------------------------------


def test_exported_names():
    assert langchain_rain.__all__ == ["ChatRain", "RainLLM"]
    assert Path(langchain_rain.__file__).with_name("py.typed").exists()


def test_core_is_bounded_but_never_pinned():
    folder = Path(__file__).parents[2] / "integrations" / "langchain-rain"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "langchain-core>=1.2,<2" in project["dependencies"]


@pytest.mark.slow
def test_importing_and_constructing_load_nothing():
    code = """
import sys, time
from langchain_rain import RainLLM
from rain_llm import RainSettings
start = time.perf_counter()
for _ in range(1000):
    RainLLM()
    RainLLM(model="no/such-model", settings=RainSettings())
assert time.perf_counter() - start < 5
str(RainLLM())
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_it_is_not_serializable_by_langchain(llm):
    assert not RainLLM.is_lc_serializable()
    assert dumpd(llm)["type"] == "not_implemented"
    assert HOSTILE not in repr(llm)


# --- constructing ------------------------------------------------------------------------------


def test_model_and_settings_may_be_left_out():
    assert RainLLM().settings == RainSettings().unseeded()
    assert RainLLM(model="some/model").settings.model.name == "some/model"
    both = RainLLM(model="some/model", settings=SETTINGS)
    assert both.settings == SETTINGS.updated(model={"name": "some/model"})


def test_model_overrides_the_settings_model():
    settings = RainSettings().updated(model={"name": "theirs", "dtype": "float16"})
    chosen = RainLLM(model="ours", settings=settings).settings.model
    assert (chosen.name, chosen.dtype) == ("ours", "float16")


def test_a_ready_engine_brings_its_settings(model):
    assert RainLLM(rain=Rain(SETTINGS, model=model)).settings == SETTINGS
    other = SETTINGS.updated(on_unsafe="refuse")
    assert RainLLM(rain=Rain(SETTINGS, model=model), settings=other).settings == other


def test_bad_arguments_are_refused_at_once(model):
    with pytest.raises(ValidationError, match=r"'temperatur'.*settings=RainSettings"):
        RainLLM(temperatur=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="model or rain, not both"):
        RainLLM(model="x", rain=Rain(model=model))
    with pytest.raises(ValidationError):
        RainLLM(model="")


def test_it_may_be_a_field_of_another_model():
    class Holder(BaseModel):
        llm: RainLLM

    llm = RainLLM()
    engine = llm._rain
    assert Holder(llm=llm).llm is llm
    assert llm._rain is engine  # with its loaded model


def test_fields_can_be_made_configurable(llm):
    configurable = llm.configurable_fields(settings=ConfigurableField(id="settings"))
    refusing = SETTINGS.updated(on_unsafe="refuse", refusal="No.")
    config = {"configurable": {"settings": refusing}}
    assert configurable.with_config(config).invoke("The villain") == "No."


# --- answers -----------------------------------------------------------------------------------


def test_a_chain_gives_the_guarded_answer(llm, model):
    chain = PromptTemplate.from_template("My {who}") | llm | StrOutputParser()
    assert chain.invoke({"who": "neighbour"}) == " is lovely. She is lovely."
    assert any(HOSTILE in text for text in model.judged())  # it was written, judged, and rewound


@pytest.mark.real
def test_a_chain_runs_on_the_embedded_model():
    settings = RainSettings().updated(
        generation={"max_new_tokens": 8}, search={"iterations": 2}, evaluation={"criteria": [CIVILITY]}
    )
    ear = Ear()
    prompt = PromptTemplate.from_template("Dear {who}, thank you for")
    chain = prompt | RainLLM(settings=settings) | StrOutputParser()
    answer = chain.invoke({"who": "neighbour"}, {"callbacks": [ear]})
    assert answer.strip()
    info = ear.ends[0].generations[0][0].generation_info
    assert info["usage"]["output_tokens"] <= 8 < info["usage"]["model_tokens"]
    assert -1 <= info["verdict"]["score"] <= 1


def test_every_generation_carries_usage_and_verdict(llm):
    ear = Ear()
    result = llm.generate(["My neighbour", "Our teacher", "A friend"], callbacks=[ear])
    for (generation,) in result.generations:
        info = generation.generation_info
        assert set(info) == INFO
        assert info["accepted"] is True
        assert info["stop_reason"] == "eos" and type(info["stop_reason"]) is str
        assert info["settings_hash"] == SETTINGS.hash
        assert info["usage"]["prompt_tokens"] == 2 and info["usage"]["output_tokens"] == 7
        assert info["verdict"]["passed"] and info["verdict"]["criteria"][0]["name"] == "civility"
        json.dumps(info)  # caches and tracers write it down
    usages = [generation.generation_info["usage"] for (generation,) in result.generations]
    total = result.llm_output["token_usage"]
    for name in usages[0]:
        assert total[name] == sum(usage[name] for usage in usages)
    assert (total["completion_tokens"], total["total_tokens"]) == (21, 27)
    # LangChain keeps the total with the first prompt only; each generation still has its own.
    assert [end.generations[0][0].generation_info["usage"] for end in ear.ends] == usages


def test_stop_ends_the_answer_and_replaces_the_settings_stop(llm):
    ear = Ear()
    assert llm.invoke("My neighbour", {"callbacks": [ear]}, stop=[" She"]) == " is lovely."
    assert ear.ends[0].generations[0][0].generation_info["stop_reason"] == "stop"
    assert "".join(llm.stream("My neighbour", stop=[" She"])) == " is lovely."
    assert llm.bind(stop=[" She"]).batch(["My neighbour"] * 2) == [" is lovely."] * 2
    stopping = RainLLM(rain=llm.rain, settings=SETTINGS.updated(generation={"stop": "lovely"}))
    assert stopping.invoke("My neighbour") == " is "
    assert stopping.invoke("My neighbour", stop=[]) == " is lovely. She is lovely."


def test_messages_come_flattened(llm, model):
    llm.invoke([SystemMessage("Be fair."), HumanMessage("My neighbour")], max_new_tokens=1)
    assert model.decode(model.requests[0].prefix) == "System: Be fair.\nHuman: My neighbour"


def test_tokens_are_the_models_own(llm, model):
    assert llm.get_num_tokens("My dear neighbour") == 3
    counting = RainLLM(rain=llm.rain, custom_get_token_ids=lambda text: [0] * len(text))
    assert counting.get_num_tokens("My") == 2


# --- overrides of one call ---------------------------------------------------------------------


def info_of(llm, prompt: str, **overrides) -> dict[str, Any]:
    info: dict[str, Any] = llm.generate([prompt], **overrides).generations[0][0].generation_info
    return info


def test_a_call_may_override_settings(llm):
    changed = SETTINGS.updated(generation={"seed": 5, "temperature": 2.0}, on_unsafe="refuse")
    info = info_of(llm, "My neighbour", seed=5, temperature=2.0, on_unsafe="refuse")
    assert info["settings_hash"] == changed.hash
    assert info_of(llm, "My neighbour", settings=changed)["settings_hash"] == changed.hash
    again = changed.updated(generation={"seed": 6})
    assert info_of(llm, "My neighbour", settings=changed, seed=6)["settings_hash"] == again.hash
    assert info_of(llm, "My neighbour", max_new_tokens=4)["stop_reason"] == "length"
    shallow = info_of(llm, "My neighbour", search={"iterations": 1})
    assert shallow["settings_hash"] == SETTINGS.updated(search={"iterations": 1}).hash
    assert llm.settings == SETTINGS  # a call leaves no trace


def test_tracers_are_told_what_holds_for_the_call(llm):
    ear = Ear()
    llm.invoke("My neighbour", {"callbacks": [ear]}, temperature=0.5, stop=["!"])
    list(llm.stream("My neighbour", {"callbacks": [ear]}, temperature=0.5, stop=["!"]))
    one, other = ear.metadata
    for told in (one, other):
        assert (told["ls_provider"], told["ls_model_type"]) == ("rain", "llm")
        assert (told["ls_temperature"], told["ls_stop"]) == (0.5, ["!"])
        assert told["ls_max_tokens"] == SETTINGS.generation.max_new_tokens
    assert RainLLM(model="some/model")._get_ls_params()["ls_model_name"] == "some/model"


def test_settings_of_a_call_keep_the_model(model):
    settings = SETTINGS.updated(model={"name": "ours"})
    llm = RainLLM(rain=Rain(settings, model=model))
    assert info_of(llm, "My neighbour", settings=SETTINGS)["settings_hash"] == settings.hash
    with pytest.raises(SettingsError, match="other models"):
        llm.invoke("My neighbour", settings=SETTINGS.updated(model={"name": "theirs"}))


def test_a_call_may_bring_a_context(llm):
    grounded = CIVILITY.model_copy(update={"name": "grounded", "frames": ("Of {context}: {text}\nTone:",)})
    asking = RainLLM(rain=llm.rain, settings=SETTINGS.updated(evaluation={"criteria": [grounded]}))
    with pytest.raises(PromptError, match="context"):
        asking.invoke("My neighbour")
    asking.invoke("My neighbour", context="the street")
    assert any("Of the street: My neighbour" in text for text in llm.rain.runtime.writer.judged())
    with_context = RainLLM(rain=llm.rain, settings=asking.settings, context="the street")
    assert "".join(with_context.stream("My neighbour")) == " is lovely. She is lovely."


@pytest.mark.parametrize(
    "call",
    [
        lambda llm, **kw: llm.invoke("My neighbour", **kw),
        lambda llm, **kw: llm.batch(["My neighbour"], **kw),
        lambda llm, **kw: list(llm.stream("My neighbour", **kw)),
        lambda llm, **kw: llm.bind(**kw).invoke("My neighbour"),
        lambda llm, **kw: asyncio.run(llm.ainvoke("My neighbour", **kw)),
        lambda llm, **kw: asyncio.run(collected(llm.astream("My neighbour", **kw))),
    ],
    ids=["invoke", "batch", "stream", "bind", "ainvoke", "astream"],
)
def test_bad_overrides_are_clear_errors_before_any_model_runs(llm, model, call):
    with pytest.raises(SettingsError, match=r"'max_new_token'.*'max_new_tokens'.*on_unsafe"):
        call(llm, max_new_token=3)
    with pytest.raises(SettingsError, match=r"model is the model's, not a call's: give it to RainLLM"):
        call(llm, model="other")
    with pytest.raises(SettingsError, match="max_new_tokens"):
        call(llm, max_new_tokens=-1)
    with pytest.raises(SettingsError, match="must be RainSettings, not dict"):
        call(llm, settings={"on_unsafe": "raise"})
    assert model.requests == []


def test_a_call_may_bring_passages_and_the_question_that_was_asked(llm):
    frame = "Of {context}, asked {query}: {answer}\nTone:"
    grounded = CIVILITY.model_copy(update={"name": "grounded", "frames": (frame,)})
    asking = RainLLM(rain=llm.rain, settings=SETTINGS.updated(evaluation={"criteria": [grounded]}))
    passages = [Document("the street"), "the house"]
    asking.invoke("My neighbour", context=passages, question="Who?")
    asked = [text for text in llm.rain.runtime.writer.judged() if "She is" in text]
    assert asked and all("the street" in text and "the house, asked Who?:" in text for text in asked)


# --- streaming ---------------------------------------------------------------------------------


def test_streaming_never_shows_what_was_not_accepted(llm, model):
    ear = Ear()
    pieces = list(llm.stream("My neighbour", {"callbacks": [ear]}))
    assert any(HOSTILE in text for text in model.judged())
    assert not any(HOSTILE in heard for heard in [*pieces, *ear.all])
    assert "".join(pieces) == llm.invoke("My neighbour") == " is lovely. She is lovely."
    assert len([piece for piece in pieces if piece]) > 1  # it does stream
    assert ear.tokens == pieces  # the callbacks hear each piece, once
    *middle, last = ear.chunks
    assert set(last.generation_info) == INFO and last.generation_info["accepted"]
    assert not any(chunk.generation_info for chunk in middle)  # so no count is added twice
    assert ear.ends[0].generations[0][0].generation_info == last.generation_info


async def test_astream_and_its_events_never_leak_either(llm, model):
    ear = Ear()
    pieces = await collected(llm.astream("My neighbour", {"callbacks": [ear]}))
    assert pieces == ear.tokens == list(llm.stream("My neighbour"))
    chain = PromptTemplate.from_template("My {who}") | llm | StrOutputParser()
    events = [repr(event) async for event in chain.astream_events({"who": "neighbour"}, version="v2")]
    assert any("on_llm_stream" in event for event in events)
    assert any(HOSTILE in text for text in model.judged())
    assert not any(HOSTILE in heard for heard in [*events, *ear.all])


def test_the_first_sentence_arrives_before_the_second_is_begun():
    gate, opened = threading.Event(), []

    def gated(text: str) -> Mapping[str, float]:
        if text.endswith(" She"):
            opened.append(gate.wait(10))
        return next_words(text)

    stream = RainLLM(rain=Rain(SETTINGS, model=Toy(next_words=gated))).stream("My neighbour")
    assert next(stream) == " is lovely."
    gate.set()
    assert "".join(stream) == " She is lovely."
    assert opened and all(opened)


def test_best_is_marked_while_streaming(llm):
    ear = Ear()
    overrides = {"on_unsafe": "best", "search": {"iterations": 2}}
    text = "".join(llm.stream("The villain", {"callbacks": [ear]}, **overrides))
    assert text == " is vile. She is vile."
    assert {chunk.generation_info["accepted"] for chunk in ear.chunks if chunk.text} == {False}
    assert ear.chunks[-1].generation_info["verdict"]["passed"] is False
    assert ear.ends[0].generations[0][0].generation_info["accepted"] is False


def test_refusal_is_streamed_alone(llm):
    ear = Ear()
    overrides = {"refusal": "No.", "search": {"iterations": 2}}  # to refuse is the default
    assert "".join(llm.stream("The villain", {"callbacks": [ear]}, **overrides)) == "No."
    info = ear.chunks[-1].generation_info
    assert (info["stop_reason"], info["accepted"]) == ("refused", False)
    assert not any(HOSTILE in heard for heard in ear.all)


async def test_unsafe_is_raised_by_every_way_to_call(llm):
    raising = {"on_unsafe": "raise", "search": {"iterations": 2}}
    ear = Ear()
    with pytest.raises(UnsafeAnswerError):
        llm.invoke("The villain", **raising)
    with pytest.raises(UnsafeAnswerError):
        await llm.ainvoke("The villain", **raising)
    with pytest.raises(UnsafeAnswerError):
        await collected(llm.astream("The villain", **raising))
    pieces = []
    with pytest.raises(UnsafeAnswerError):
        for piece in llm.stream("The villain", {"callbacks": [ear]}, **raising):
            pieces.append(piece)
    assert not any(HOSTILE in text for text in [*pieces, *ear.tokens, str(ear.errors[0])])
    assert isinstance(ear.errors[0], UnsafeAnswerError)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_closing_a_stream_cancels_the_search(asynchronous):
    endless = Toy(next_words=lambda text: {".": 1.0} if text.endswith("lovely") else {" lovely": 1.0})
    llm = RainLLM(rain=Rain(SETTINGS, model=endless))
    if asynchronous:
        astream = llm.astream("My neighbour", max_new_tokens=4000)
        await anext(astream)
        await astream.aclose()  # type: ignore[attr-defined]
    else:
        stream = llm.stream("My neighbour", max_new_tokens=4000)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
    await asyncio.sleep(0.2)
    asked = len(endless.requests)
    await asyncio.sleep(0.2)
    assert len(endless.requests) == asked
    assert max(len(request.prefix) for request in endless.requests) < 4000


# --- many at once ------------------------------------------------------------------------------

PROMPTS = ["My neighbour", "Our teacher", "A friend", "The queen"]


async def test_every_way_to_call_gives_the_same_answer(model):
    # Both adjectives pass, so that the seed decides.
    settings = SETTINGS.updated(search={"iterations": 1}, generation={"temperature": 5.0})
    llm = RainLLM(rain=Rain(settings, model=model))
    for seed in range(3):
        alone = [llm.invoke(prompt, seed=seed) for prompt in PROMPTS]
        assert llm.batch([*PROMPTS], seed=seed) == alone
        assert await llm.abatch([*PROMPTS], seed=seed) == alone
        assert llm.batch([*PROMPTS], seed=seed, return_exceptions=True) == alone
        assert [await llm.ainvoke(prompt, seed=seed) for prompt in PROMPTS] == alone
        assert ["".join(llm.stream(prompt, seed=seed)) for prompt in PROMPTS] == alone
        assert ["".join(await collected(llm.astream(p, seed=seed))) for p in PROMPTS] == alone
    assert len({llm.invoke("My neighbour", seed=seed) for seed in range(8)}) > 1


def test_a_batch_shares_the_models_batches(llm, model):
    ear = Ear()
    assert len(llm.batch([*PROMPTS], {"callbacks": [ear]})) == 4
    assert max(model.batches) >= 4
    assert len(ear.ends) == 4
    model.batches.clear()
    llm.batch([*PROMPTS], {"max_concurrency": 2})
    assert max(model.batches) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_prompt_of_a_batch_has_its_own_exception(llm, asynchronous):
    overrides = {"on_unsafe": "raise", "search": {"iterations": 64}, "return_exceptions": True}
    inputs = ["My neighbour", "  ", "The villain", "Our teacher"]
    batch = llm.abatch(inputs, **overrides) if asynchronous else None
    answers = asyncio.run(batch) if batch else llm.batch(inputs, **overrides)
    assert answers[0] == answers[3] == " is lovely. She is lovely."
    assert isinstance(answers[1], PromptError)
    assert isinstance(answers[2], UnsafeAnswerError)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_without_return_exceptions_a_batch_raises(llm, asynchronous):
    with pytest.raises(UnsafeAnswerError):
        if asynchronous:
            asyncio.run(llm.abatch(["My neighbour", "The villain"], on_unsafe="raise"))
        else:
            llm.batch(["My neighbour", "The villain"], on_unsafe="raise")
    with pytest.raises(PromptError, match="empty"):
        llm.invoke("")


async def test_a_failed_batch_leaves_nothing_running(llm):
    with pytest.raises(PromptError, match="empty"):
        await llm.abatch(["  ", *PROMPTS])
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_fallbacks_take_over_where_nothing_passed(llm):
    guarded = llm.bind(on_unsafe="raise", search={"iterations": 64})
    chain = guarded.with_fallbacks(
        [RunnableLambda(lambda prompt: " is somebody else.")],
        exceptions_to_handle=(UnsafeAnswerError,),
    )
    assert chain.invoke("The villain") == " is somebody else."
    assert chain.invoke("My neighbour") == " is lovely. She is lovely."
    answers = chain.batch(["The villain", "My neighbour"])
    assert answers == [" is somebody else.", " is lovely. She is lovely."]


def test_threads_may_share_one_object(llm):
    prompts = PROMPTS * 4
    alone = [llm.invoke(prompt, seed=i) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: llm.invoke(prompts[i], seed=i), range(len(prompts)), timeout=60))
    assert together == alone


@pytest.mark.parametrize("streaming", [False, True])
async def test_async_calls_do_not_block_the_loop(streaming):
    gate, opened = threading.Event(), []

    def slow_opinion(question: str, label: str) -> float:
        opened.append(gate.wait(10))
        return opinion(question, label)

    llm = RainLLM(rain=Rain(SETTINGS, model=Toy(opinion=slow_opinion)))
    if streaming:
        task = asyncio.create_task(collected(llm.astream("My neighbour")))
    else:
        task = asyncio.create_task(llm.abatch([*PROMPTS]))
    await asyncio.sleep(0.05)
    gate.set()  # only a running loop gets here
    await task
    assert all(opened)


# --- LangChain's cache -------------------------------------------------------------------------

# It takes the first thing written, and marks it.
LAX = SETTINGS.updated(search={"iterations": 1}, on_unsafe="best")


def test_a_lax_and_a_strict_model_share_no_answer(model):
    engine, cache = Rain(SETTINGS, model=model), InMemoryCache()
    lax = RainLLM(rain=engine, settings=LAX, cache=cache)
    strict = RainLLM(rain=engine, settings=SETTINGS, cache=cache)
    assert HOSTILE in lax.invoke("My neighbour")
    assert HOSTILE not in strict.invoke("My neighbour")
    asked = len(model.requests)
    assert HOSTILE in lax.invoke("My neighbour")
    assert HOSTILE not in strict.invoke("My neighbour")
    assert len(model.requests) == asked  # both came from the cache


def test_bound_overrides_share_no_answer(llm, model, global_cache):
    def both() -> tuple[str, str]:
        lax = llm.bind(search={"iterations": 1}, on_unsafe="best").invoke("My neighbour")
        return lax, llm.bind(search={"iterations": 64}).invoke("My neighbour")

    lax, strict = both()
    assert HOSTILE in lax and HOSTILE not in strict
    assert HOSTILE not in llm.invoke("My neighbour")
    asked = len(model.requests)
    assert both() == (lax, strict)
    assert len(model.requests) == asked


async def test_bound_overrides_share_no_answer_when_awaited(llm, model, global_cache):
    for _ in range(2):
        assert HOSTILE in await llm.ainvoke("My neighbour", settings=LAX)
        assert HOSTILE not in await llm.ainvoke("My neighbour", settings=SETTINGS)
        (lax,) = await llm.bind(settings=LAX).abatch(["My neighbour"])
        assert HOSTILE in lax


@pytest.mark.parametrize(
    "overrides",
    [
        {"seed": 1},
        {"temperature": 0.5},
        {"max_new_tokens": 4},
        {"on_unsafe": "raise"},
        {"refusal": "No."},
        {"context": "the street"},
        {"question": "who"},
        {"stop": [" She"]},
        {"settings": LAX},
        {"evaluation": {"criteria": [CIVILITY.model_copy(update={"threshold": 0.4})]}},
    ],
    ids=lambda overrides: next(iter(overrides)),
)
def test_each_override_has_its_own_cache_entry(llm, model, global_cache, overrides):
    llm.invoke("My neighbour")
    asked = len(model.requests)
    llm.invoke("My neighbour", **overrides)
    assert len(model.requests) > asked
    asked = len(model.requests)
    llm.invoke("My neighbour", **overrides)
    llm.invoke("My neighbour")
    assert len(model.requests) == asked


def test_ready_engines_share_no_answer_with_others(global_cache):
    kind = Toy(next_words=lambda text: {END: 1.0} if text.endswith("lovely") else {" lovely": 1.0})
    nice = RainLLM(rain=Rain(SETTINGS, model=kind))
    other = RainLLM(rain=Rain(SETTINGS, model=Toy()))
    assert nice.invoke("My neighbour") != other.invoke("My neighbour")
    assert nice.asdict() == RainLLM(rain=nice.rain).asdict()
    assert "engine" not in RainLLM().asdict()


def test_cached_answers_keep_their_verdict(llm, global_cache):
    first = llm.generate(["My neighbour"]).generations
    assert llm.generate(["My neighbour"]).generations == first
    assert set(first[0][0].generation_info) == INFO
