"""Rain: one answer by every way of asking, clear refusals, cancellation, cost, shared models."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rain_llm import (
    GROUNDEDNESS,
    Calibration,
    Criterion,
    LabelError,
    Message,
    ModelNotFoundError,
    PromptError,
    Rain,
    RainError,
    RainResult,
    RainSettings,
    SearchError,
    SettingsError,
    Step,
    StopReason,
    UnsafeAnswerError,
    Usage,
)
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import Sample, Samples, Score, Scores, Vector
from rain_llm.task import subject_of, task_of
from rain_llm.types import ToolCall
from tests.examples import examples

GOOD = Criterion(name="good", labels=(("good", "bad"),), frames=("Text: {answer}\nIt is",), calibration=None)


def chosen(**parts: Any) -> RainSettings:
    """A search whose every setting that matters here is set here."""
    return (
        RainSettings()
        .updated(
            generation={"max_new_tokens": 24, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 3},
            search={
                "token_set_lengths": (2, 4),
                "strategy": "keep_drafts",
                "simulation_ends": "sentence",
                "simulation_tokens": 8,
                "leaves": 3,
                "iterations": 7,
                "similarity": None,
            },
            evaluation={"criteria": [GOOD], "style": "labels", "mode": "soft", "examples": False},
            on_unsafe="best",
        )
        .updated(**parts)
    )


def paper(**parts: Any) -> RainSettings:
    """The paper's search, made short."""
    return (
        RainSettings.preset("paper")
        .updated(
            generation={"max_new_tokens": 12, "seed": 3},
            search={"iterations": 12, "extra_iterations": 4, "width": 4, "simulation_tokens": 6},
            evaluation={"criteria": [GOOD], "style": "labels", "mode": "soft", "examples": False},
        )
        .updated(**parts)
    )


def babble(text: str) -> Mapping[str, float]:
    """Words whose chances depend on all that was said before."""
    if text.endswith("."):
        return {END: 1.0, " Oh": 1.0}
    chances = zlib.crc32(text.encode())
    return {" la": 1.0 + chances % 7, " li": 1.0 + chances % 5, " lu": 1.0 + chances % 3, ".": 1.0, ",": 0.3}


def taste(question: str, label: str) -> float:
    """An opinion of every text, neither good nor bad on the whole."""
    return (zlib.crc32(question.encode()) % 300) / 100 - 1.5 if label == " good" else 0.0


class LengthEmbedder:
    """Texts of about one length are alike."""

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        angles = [len(text) / 10 for text in texts]
        return [np.array([np.cos(angle), np.sin(angle)], np.float32) for angle in angles]


def babbler() -> ScriptedModel:
    return ScriptedModel(babble, taste)


def scripted(
    world: Mapping[str, Mapping[str, float]], good: Callable[[str], float] = lambda question: 5.0
) -> ScriptedModel:
    return ScriptedModel(script(world), lambda q, label: good(q) if label == " good" else 0.0)


TWO_SENTENCES = {
    "": {" la": 1.0},
    " la": {".": 1.0},
    ".": {" Then": 1.0},
    " Then": {" bad": 1.0},
    " bad": {".": 1.0},
    " bad.": {END: 1.0},
}


def no_worker_is_left(seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(thread.name == "rain-scheduler" for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


# --- the same answer by every way of asking -----------------------------------------------------------

PROMPTS = [f"{word} and so" for word in ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")]


@pytest.fixture(params=[chosen, paper], ids=["chosen", "paper"])
def rain(request: pytest.FixtureRequest) -> Rain:
    return Rain(request.param(), model=babbler(), embedder=LengthEmbedder())


@pytest.fixture
def alone(rain: Rain) -> list[RainResult]:
    """What each prompt gives when it is asked alone."""
    results = [rain.generate(prompt) for prompt in PROMPTS]
    assert len({result.text for result in results}) > 4
    return results


def test_the_same_seed_gives_the_same_answer_again_and_in_a_new_object(rain: Rain, alone: list[RainResult]):
    assert [rain.generate(prompt) for prompt in PROMPTS] == alone
    other = Rain(rain.settings, model=babbler(), embedder=LengthEmbedder())
    assert [other.generate(prompt).text for prompt in PROMPTS] == [result.text for result in alone]


def test_a_batch_of_eight_gives_what_each_gives_alone(rain: Rain, alone: list[RainResult]):
    assert rain.generate_batch(PROMPTS) == alone
    assert rain.generate_batch(PROMPTS[::-1]) == alone[::-1]
    assert rain.generate_batch([PROMPTS[0]] * 3) == [alone[0]] * 3


def test_a_stream_gives_what_the_whole_gives(rain: Rain, alone: list[RainResult]):
    for prompt, result in zip(PROMPTS, alone, strict=True):
        steps = list(rain.stream(prompt))
        assert "".join(step.text for step in steps) == result.text
        assert steps[-1].result == result
        assert all(step.result is None for step in steps[:-1])


async def test_async_gives_what_sync_gives(rain: Rain, alone: list[RainResult]):
    assert await rain.agenerate(PROMPTS[0]) == alone[0]
    assert list(await asyncio.gather(*(rain.agenerate(prompt) for prompt in PROMPTS))) == alone
    steps = [step async for step in rain.astream(PROMPTS[1])]
    assert "".join(step.text for step in steps) == alone[1].text
    assert steps[-1].result == alone[1]


def test_eight_threads_get_what_each_gets_alone(rain: Rain, alone: list[RainResult]):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(rain.generate, PROMPTS)) == alone
    assert no_worker_is_left()


def test_event_loops_of_several_threads_share_the_model(rain: Rain, alone: list[RainResult]):
    def in_its_own_loop(prompt: str) -> RainResult:
        return asyncio.run(rain.agenerate(prompt))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(in_its_own_loop, PROMPTS[:4])) == alone[:4]


def test_another_seed_gives_another_answer(rain: Rain, alone: list[RainResult]):
    other = [rain.generate(p, settings=rain.settings.updated(generation={"seed": 4})) for p in PROMPTS]
    assert [result.text for result in other] != [result.text for result in alone]


def test_a_fresh_seed_is_told_and_replays_the_answer(rain: Rain):
    drawn = rain.settings.updated(generation={"seed": None})
    first, second = (rain.generate(PROMPTS[0], settings=drawn) for _ in range(2))
    assert first.trace.seed != second.trace.seed
    again = rain.generate(PROMPTS[0], settings=drawn.updated(generation={"seed": first.trace.seed}))
    assert again.text == first.text
    assert again.trace.steps == first.trace.steps


@pytest.mark.parametrize("settings", [chosen(), paper(search={"similarity": None})], ids=["chosen", "paper"])
def test_a_neural_model_gives_the_same_answer_by_every_way_of_asking(tiny: Any, settings: RainSettings):
    settings = settings.updated(generation={"max_new_tokens": 10}, search={"iterations": 5})
    rain = Rain(settings, model=tiny)
    alone = [rain.generate(prompt).text for prompt in PROMPTS]
    assert len(set(alone)) > 4
    assert [result.text for result in rain.generate_batch(PROMPTS)] == alone
    with ThreadPoolExecutor(8) as pool:
        assert [result.text for result in pool.map(rain.generate, PROMPTS)] == alone
    assert ["".join(s.text for s in rain.stream(p)) for p in PROMPTS[:2]] == alone[:2]

    async def both() -> list[RainResult]:
        return list(await asyncio.gather(*(rain.agenerate(prompt) for prompt in PROMPTS[:2])))

    assert [result.text for result in asyncio.run(both())] == alone[:2]


def told(result: RainResult) -> Any:
    """All of a result but its numbers, which a neural model gives up to a tolerance."""
    steps = [(step.text, step.tokens, step.accepted, step.iterations) for step in result.trace.steps]
    return result.text, result.stop_reason, result.accepted, steps


STRATEGIES = st.one_of(
    st.fixed_dictionaries({"strategy": st.just("keep_drafts"), "prefetch": st.booleans()}),
    st.fixed_dictionaries(
        {
            "strategy": st.just("paper"),
            "extra_iterations": st.integers(0, 4),
            "width": st.integers(1, 4),
            "addition": st.sampled_from([None, {"variance": 5.0, "value": 1.0}]),
            "prefetch": st.sampled_from([0, 1, 4, 16]),
        }
    ),
)


@pytest.mark.slow
@given(
    drawing=st.fixed_dictionaries(
        {
            "max_new_tokens": st.integers(1, 8),
            "seed": st.integers(0, 999),
            "stop": st.sampled_from([(), ("e",), ("the ", "a")]),
        }
    ),
    search=st.fixed_dictionaries(
        {
            "token_set_lengths": st.sampled_from([(1,), (1, 2, 4), (3, 1)]),
            "simulation_ends": st.sampled_from(["punctuation", "sentence", "answer"]),
            "simulation_tokens": st.integers(1, 6),
            "iterations": st.integers(1, 6),
            "leaves": st.integers(1, 4),
            "similarity": st.sampled_from([None, {"threshold": 0.5}]),
        }
    ),
    strategy=STRATEGIES,
    budget=st.sampled_from([1, 100_000, 1 << 30]),
    chunk=st.sampled_from([5, 512]),
    apart=st.booleans(),
)
@hypothesis_settings(max_examples=examples(25))
def test_whatever_the_settings_answers_are_the_same_and_every_token_is_counted(
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    drawing: dict[str, Any],
    search: dict[str, Any],
    strategy: dict[str, Any],
    budget: int,
    chunk: int,
    apart: bool,
):
    """Alone, in a batch, or joining one by one; with much memory or next to none."""
    search = search | strategy
    judge = babbler() if apart else None
    rain = Rain(chosen(generation=drawing, search=search), model=tiny, judge=judge, embedder=LengthEmbedder())
    models = [tiny, judge] if judge else [tiny]

    def spent() -> tuple[int, int]:
        return sum(model.model_tokens for model in models), sum(model.forwards for model in models)

    with monkeypatch.context() as scarce:
        scarce.setattr(tiny.cache, "max_bytes", budget)
        scarce.setattr("rain_llm.models.local.jobs.CHUNK", chunk)
        alone = []
        for prompt in PROMPTS[:3]:
            tokens, forwards = spent()
            alone.append(rain.generate(prompt))
            usage = alone[-1].usage
            assert (tokens + usage.model_tokens, forwards + usage.forwards) == spent()
        tokens, forwards = spent()
        batch = rain.generate_batch(PROMPTS[:3])
        assert tokens + sum(result.usage.model_tokens for result in batch) == spent()[0]
        assert forwards + max(result.usage.forwards for result in batch) <= spent()[1]
        streams = [rain.stream(prompt) for prompt in PROMPTS[:3]]
        begun = [[next(stream)] for stream in streams]
        ended = [[*steps, *stream][-1].result for steps, stream in zip(begun, streams, strict=True)]
        tiny.cache.check_integrity()
    assert [told(result) for result in batch] == [told(result) for result in alone]
    assert [told(result) for result in ended if result] == [told(result) for result in alone]


@pytest.mark.slow
@given(
    strategy=st.sampled_from(["keep_drafts", "paper"]),
    prefetch=st.sampled_from([0, 1]),
    limit=st.integers(1, 700),
)
@hypothesis_settings(max_examples=examples(20))
def test_wherever_the_budget_strikes_the_answer_is_a_beginning_and_is_paid(
    tiny: Any, strategy: str, prefetch: int, limit: int
):
    search = {"strategy": strategy, "prefetch": prefetch, "iterations": 5}
    settings = chosen(generation={"max_new_tokens": 8}, search=search)
    whole = Rain(settings, model=tiny).generate(PROMPTS[0])
    tiny.cache.clear()
    before = tiny.model_tokens, tiny.forwards
    result = Rain(settings.updated(search={"max_model_tokens": limit}), model=tiny).generate(PROMPTS[0])
    usage = result.usage
    assert (before[0] + usage.model_tokens, before[1] + usage.forwards) == (tiny.model_tokens, tiny.forwards)
    if result.stop_reason is not StopReason.BUDGET:
        assert told(result) == told(whole)
        return
    assert usage.model_tokens >= limit
    assert whole.text.startswith(result.text)
    committed = [step.tokens for step in result.trace.steps if step.tokens]
    assert committed == [step.tokens for step in whole.trace.steps][: len(committed)]


@pytest.mark.real
def test_the_real_model_gives_the_same_answer_by_every_way_of_asking(unpacked: Any):
    settings = chosen(
        generation={"max_new_tokens": 16},
        search={"iterations": 4, "simulation_tokens": 12},
        evaluation={"criteria": ["positive_sentiment"]},
    )
    rain = Rain(settings, model=unpacked)
    prompts = [f"I think this {thing} is" for thing in ("film", "book", "meal", "song")]
    alone = [rain.generate(prompt).text for prompt in prompts]
    assert len(set(alone)) > 2
    assert [result.text for result in rain.generate_batch(prompts)] == alone
    assert "".join(step.text for step in rain.stream(prompts[0])) == alone[0]
    assert asyncio.run(rain.agenerate(prompts[1])).text == alone[1]


# --- what a result says ---------------------------------------------------------------------------------


def test_usage_is_exact():
    # Tokens: the prompt 'It is' 2. Drafting ' good.' reads 'It is good' 3, in 2 passes. The question
    # 'Text: good.\nIt is' has 6. Then the model ends behind the 4 tokens 'It is good.': 4, in 1 pass.
    # That text was judged already.
    model = scripted({"It is": {" good": 1.0}, " good": {".": 1.0}})
    result = Rain(chosen(search={"leaves": 1}), model=model).generate("It is")
    assert result.text == " good."
    assert result.usage == Usage(
        prompt_tokens=2,
        output_tokens=2,
        model_tokens=3 + 6 + 4,
        evaluation_tokens=6,
        forwards=2 + 1 + 1,
        evaluations=1,
        iterations=2,
        embeddings=0,
        first_forwards=4,
    )
    assert (model.model_tokens, model.forwards) == (13, 4)


def test_usage_of_one_answer_does_not_contain_its_neighbours(alone: list[RainResult], rain: Rain):
    model = rain.runtime.writer
    assert isinstance(model, ScriptedModel)
    before = model.model_tokens
    results = rain.generate_batch(PROMPTS)
    assert sum(result.usage.model_tokens for result in results) == model.model_tokens - before
    assert [result.usage for result in results] == [result.usage for result in alone]


def test_the_trace_tells_how_the_answer_came_about(rain: Rain):
    result = rain.generate(PROMPTS[0])
    assert "".join(step.text for step in result.trace.steps) == result.text
    assert sum(step.iterations for step in result.trace.steps) == result.usage.iterations
    assert sum(len(step.tokens) for step in result.trace.steps) == result.usage.output_tokens
    assert result.trace.seed == rain.settings.generation.seed
    assert result.trace.model == "scripted"
    assert result.settings_hash == result.trace.settings_hash == rain.settings.hash
    for step in result.trace.steps:
        assert [c.chosen for c in step.candidates].count(True) == 1


def test_the_hash_is_of_the_settings_that_were_used(rain: Rain):
    other = rain.settings.updated(generation={"seed": 9})
    assert rain.generate(PROMPTS[0], settings=other).settings_hash == other.hash != rain.settings.hash


def test_a_chat_is_judged_by_its_last_question():
    model = scripted({"": {" good": 1.0}, " good": {".": 1.0}})
    frame = "Asked: {query}\nSaid: {answer}\nIt is"
    asked = Criterion(name="good", labels=(("good", "bad"),), frames=(frame,), calibration=None)
    chat = [
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Hi"),
        Message("user", "How are you?"),
    ]
    rain = Rain(chosen(evaluation={"criteria": [asked]}), model=model)
    result = rain.generate(chat)
    assert result.usage.prompt_tokens == len(model.render_chat(chat)) == len(rain.encode(chat))
    questions = [model.decode(r.prefix) for r in model.requests if isinstance(r, Score)]
    assert questions[0] == "Asked: How are you?\nSaid: good.\nIt is"


def test_a_text_prompt_can_be_put_into_the_chat_template():
    rain = Rain(chosen(), model=babbler())
    templated = chosen(generation={"chat_template": True})
    assert rain.encode("Hello", templated) == rain.encode([Message("user", "Hello")])
    assert rain.generate("Hello", settings=templated).text == rain.generate([Message("user", "Hello")]).text


def test_an_empty_batch_is_no_work():
    model = babbler()
    assert Rain(chosen(), model=model).generate_batch([]) == []
    assert model.requests == []


# --- when nothing passes ------------------------------------------------------------------------------


def first_sentence_only(question: str) -> float:
    return -3.0 if "bad" in question else 3.0


def test_best_is_marked():
    result = Rain(chosen(), model=scripted(TWO_SENTENCES, first_sentence_only)).generate("Oh")
    assert result.text == " la. Then bad."
    assert not result.accepted
    assert result.verdict is not None
    assert not result.verdict.passed
    assert [step.accepted for step in result.trace.steps] == [True, False, False]


def test_refuse_says_so_behind_what_was_accepted():
    settings = chosen(on_unsafe="refuse", refusal="No more.")
    rain = Rain(settings, model=scripted(TWO_SENTENCES, first_sentence_only))
    steps = list(rain.stream("Oh"))
    result = steps[-1].result
    assert result is not None
    assert result.text == "".join(step.text for step in steps) == " la.\nNo more."
    assert result.stop_reason is StopReason.REFUSED
    assert not result.accepted
    assert [step.refusal for step in steps] == [False, True, False]
    assert result.usage.output_tokens == 2  # the model's own


def test_raise_carries_what_was_accepted_and_names_what_failed():
    rain = Rain(chosen(on_unsafe="raise"), model=scripted(TWO_SENTENCES, first_sentence_only))
    seen = []
    with pytest.raises(UnsafeAnswerError, match=r"good \(probability 0\.05, threshold 0\.5\)") as caught:
        for step in rain.stream("Oh"):
            seen.append(step.text)
    assert seen == [" la."]
    assert caught.value.result.text == " la."
    assert caught.value.result.stop_reason is StopReason.UNSAFE
    assert caught.value.result.usage.model_tokens > 0
    with pytest.raises(UnsafeAnswerError):
        asyncio.run(rain.agenerate("Oh"))


# --- bad input is refused before any model runs ---------------------------------------------------------


LONG_FRAME = GOOD.model_copy(update={"frames": ("word " * 40 + "{answer} it is",)})
UNCLEAR = Criterion(name="warm", labels=(("warm", "warm glow"),))

REFUSED: dict[str, tuple[type[Exception], Any, dict[str, Any], list[str]]] = {
    "empty": (PromptError, "", {}, ["the prompt is empty", "at least one word"]),
    "blank": (PromptError, " \n\t", {}, ["the prompt is empty"]),
    "no messages": (PromptError, [], {}, ["the prompt is empty"]),
    "blank messages": (PromptError, [Message("user", " ")], {}, ["the prompt is empty"]),
    "no prompt": (PromptError, None, {}, ["a prompt is None", "a list of rain_llm.Message"]),
    "a dict": (
        PromptError,
        [{"role": "tutor", "content": "Hi"}],
        {},
        ["the role 'tutor'", "{'role': 'user'"],
    ),
    "a role": (PromptError, [Message("tutor", "Hi")], {}, ["'tutor'", "one of system, user"]),  # type: ignore[arg-type]
    "no text": (PromptError, [Message("user", None)], {}, ["content=None", "Message(role"]),  # type: ignore[arg-type]
    "too long": (
        PromptError,
        "word" + " word" * 89,
        {},
        ["the prompt has 90 tokens", "max_new_tokens = 24", "scripted, 100 tokens", "shorten it"],
    ),
    "no room": (
        PromptError,
        "Hello",
        {"generation": {"max_new_tokens": 100}},
        ["the prompt has 1 tokens", "max_new_tokens = 100", "100 tokens", "ask for fewer"],
    ),
    "question too long": (
        PromptError,
        "Hello",
        {"evaluation": {"criteria": [LONG_FRAME]}, "generation": {"max_new_tokens": 64}},
        ["criterion 'good'", "max_new_tokens = 64", "the judge scripted, 100 tokens", "shorten"],
    ),
    "no context": (
        PromptError,
        "Hello",
        {"evaluation": {"criteria": [GROUNDEDNESS]}},
        ["criterion 'groundedness'", "context="],
    ),
    "labels alike": (
        LabelError,
        "Hello",
        {"evaluation": {"criteria": [UNCLEAR]}},
        ["criterion 'warm'", "tokenizer of scripted", "' warm'", "' warm glow'", "choose other words"],
    ),
}


@pytest.mark.parametrize(("error", "prompt", "parts", "said"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("way", ["generate", "stream", "batch", "agenerate", "astream"])
def test_bad_input_is_refused_before_the_model_runs(
    error: type[Exception], prompt: Any, parts: dict[str, Any], said: list[str], way: str
):
    model = babbler()
    model.context_length = 100
    rain = Rain(chosen(**parts), model=model)

    async def consume() -> None:
        async for _ in rain.astream(prompt):
            pass

    ways: dict[str, Callable[[], Any]] = {
        "generate": lambda: rain.generate(prompt),
        "stream": lambda: rain.stream(prompt),  # at the call, not at the first step
        "batch": lambda: rain.generate_batch(["Hello", prompt]),
        "agenerate": lambda: asyncio.run(rain.agenerate(prompt)),
        "astream": lambda: asyncio.run(consume()),
    }
    with pytest.raises(error) as caught:
        ways[way]()
    assert isinstance(caught.value, RainError)
    for part in said:
        assert part in str(caught.value)
    assert model.requests == []
    assert no_worker_is_left()


def test_what_one_role_says_in_turns_that_follow_each_other_is_one_turn():
    model = babbler()
    rain = Rain(chosen(), model=model)
    call = ToolCall("look", {}, "1")
    reply = Message("tool", "Rain.", name="look", tool_call_id="1")
    chat = [
        Message("system", "Be fair."),
        Message("system", "Be brief."),
        Message("user", "Hi."),
        Message("assistant", "", (call,)),
        Message("assistant", "I look.", (call,)),
        reply,
        reply,
        Message("user", "How is it?"),
        Message("user", ""),
        Message("user", "Tell me."),
    ]
    joined = [
        Message("system", "Be fair.\n\nBe brief."),
        Message("user", "Hi."),
        Message("assistant", "I look.", (call, call)),
        reply,
        reply,
        Message("user", "How is it?\n\nTell me."),
    ]
    assert rain.encode(chat) == model.render_chat(joined)
    assert rain.generate(chat) == rain.generate(joined)
    assert subject_of(task_of(chat), rain.settings).query == "How is it?\n\nTell me."


def test_a_prompt_that_just_fits_is_answered():
    model = babbler()
    model.context_length = 1000
    rain = Rain(chosen(generation={"max_new_tokens": 900}), model=model)
    assert rain.generate("word" + " word" * 99).usage.prompt_tokens == 100
    with pytest.raises(PromptError):
        rain.generate("word" + " word" * 100)


def test_a_missing_model_folder_is_named(tmp_path: Path):
    missing = tmp_path / "absent"
    rain = Rain(chosen(model=str(missing)))
    with pytest.raises(
        ModelNotFoundError, match=r"there is no model folder .*absent: give an existing folder"
    ):
        rain.generate("Hello")
    with pytest.raises(ModelNotFoundError):
        asyncio.run(rain.agenerate("Hello"))
    with pytest.raises(ModelNotFoundError):
        Rain(chosen(model="./absent")).generate("Hello")
    judged = chosen(evaluation={"judge": {"name": str(missing)}})
    with pytest.raises(ModelNotFoundError):
        Rain(judged, model=babbler()).generate("Hello")


def test_an_empty_prompt_is_refused_before_a_model_is_loaded(tmp_path: Path):
    with pytest.raises(PromptError):
        Rain(chosen(model=str(tmp_path / "absent"))).generate("")


def test_settings_of_one_answer_may_not_name_another_model():
    rain = Rain(chosen(), model=babbler())
    for change in (
        {"model": {"name": "another"}},
        {"evaluation": {"judge": {"name": "another"}}},
    ):
        with pytest.raises(SettingsError, match=r"make another Rain\(settings\)"):
            rain.generate("Hello", settings=chosen(**change))


def test_settings_of_one_answer_do_not_get_another_embedder_than_they_name(monkeypatch: pytest.MonkeyPatch):
    made = []

    class Named(LengthEmbedder):
        def __init__(self, name: str) -> None:
            made.append(name)

    monkeypatch.setattr("rain_llm.models.local.similarity.SentenceEmbedder", Named)
    theirs = chosen(search={"similarity": {"embedder": "theirs"}})
    ours = chosen(search={"similarity": {"embedder": "ours"}})
    with pytest.raises(SettingsError, match="make another Rain"):
        Rain(ours, model=babbler()).generate("Hello", settings=theirs)
    made.clear()
    try:  # a Rain that names none
        Rain(chosen(), model=babbler()).generate("Hello", settings=theirs)
    except SettingsError:
        assert made == []
    else:
        assert made == ["theirs"]


def test_a_missing_embedder_is_told_before_the_model_runs(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ModelNotFoundError(f"cannot load the embedder {name}")

    monkeypatch.setattr("rain_llm.models.local.similarity.SentenceEmbedder", absent)
    similar = chosen(search={"similarity": {"embedder": "minilm"}})
    model = babbler()
    with pytest.raises(ModelNotFoundError, match="minilm"):
        Rain(similar, model=model).generate("Hello")
    assert model.requests == []
    first = Rain(chosen(), model=model)  # needs none, and shares the model
    first.generate("Hello")
    model.requests.clear()
    with pytest.raises(ModelNotFoundError, match="minilm"):
        Rain(similar, model=model).generate("Hello")
    assert model.requests == []


# --- a model that fails ---------------------------------------------------------------------------------


class Failing(ScriptedModel):
    """Breaks at every prefix that contains a given word."""

    word = " Then"
    error: BaseException = RuntimeError("out of memory")

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        if any(self.word in self.decode(request.prefix) for request in batch):
            raise self.error
        return super().sample(batch)

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        if any(self.word in self.decode(request.prefix) for request in batch):
            raise self.error
        return super().score(batch)


def failing() -> Failing:
    return Failing(script(TWO_SENTENCES), lambda question, label: 5.0 if label == " good" else 0.0)


def test_a_failing_model_is_a_search_error_with_what_was_accepted():
    rain = Rain(chosen(), model=failing())
    with pytest.raises(SearchError, match="after 4 accepted characters: out of memory") as caught:
        rain.generate("Oh")
    result = caught.value.result
    assert result.text == " la."
    assert result.stop_reason is StopReason.ERROR
    assert [step.text for step in result.trace.steps] == [" la."]
    assert result.usage.output_tokens == 2
    assert result.usage.model_tokens > 0
    assert caught.value.__cause__ is Failing.error
    assert isinstance(caught.value, RainError)


def test_a_failing_prompt_does_not_reach_its_neighbours():
    words = {" la": 2.0, " li": 1.0, ".": 1.0}
    model = Failing(script({"": words, ".": {END: 1.0}}), taste)
    model.word = "poison"
    rain = Rain(chosen(), model=model)
    alone = [rain.generate(prompt) for prompt in PROMPTS]
    results: dict[int, Any] = {}

    def ask(i: int, prompt: str) -> None:
        try:
            results[i] = rain.generate(prompt)
        except RainError as error:
            results[i] = error

    prompts = [*PROMPTS[:4], "poison", *PROMPTS[4:]]
    threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(prompts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(results.pop(4), SearchError)
    assert [results[i] for i in sorted(results)] == alone
    # In one batch the first error is raised, after all have ended.
    with pytest.raises(SearchError) as caught:
        rain.generate_batch(prompts)
    assert caught.value.result.text == ""
    assert no_worker_is_left()


def test_a_stream_gives_what_was_accepted_and_then_the_error():
    seen = []
    with pytest.raises(SearchError):
        for step in Rain(chosen(), model=failing()).stream("Oh"):
            seen.append(step.text)
    assert seen == [" la."]


async def test_async_callers_get_the_error_too():
    with pytest.raises(SearchError) as caught:
        await Rain(chosen(), model=failing()).agenerate("Oh")
    assert caught.value.result.text == " la."


# --- cancellation and limits ------------------------------------------------------------------------------


class Slow(ScriptedModel):
    """Takes its time for every batch of samples."""

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        time.sleep(0.01)
        return super().sample(batch)


def endless() -> Slow:
    world = {"": {" la": 1.0}, " la": {".": 1.0}, ".": {" la": 1.0}}
    return Slow(script(world), lambda question, label: 5.0 if label == " good" else 0.0)


LONG = {"max_new_tokens": 600}


def requests_end(model: ScriptedModel) -> bool:
    if not no_worker_is_left():
        return False
    before = len(model.requests)
    time.sleep(0.05)
    return len(model.requests) == before


def test_closing_a_stream_ends_the_search():
    model = endless()
    stream = Rain(chosen(generation=LONG), model=model).stream("Oh")
    assert next(stream).text == " la."
    stream.close()
    assert requests_end(model)
    assert len(model.requests) < 200


def test_closing_a_stream_that_was_never_read_ends_the_search():
    model = endless()
    stream = Rain(chosen(generation=LONG), model=model).stream("Oh")
    stream.close()
    assert requests_end(model)
    assert len(model.requests) < 100


def test_forgetting_a_stream_ends_the_search():
    model = endless()
    for step in Rain(chosen(generation=LONG), model=model).stream("Oh"):
        assert step.text
        break
    del step
    gc.collect()
    assert requests_end(model)


async def test_cancelling_a_task_ends_the_search():
    model = endless()
    task = asyncio.create_task(Rain(chosen(generation=LONG), model=model).agenerate("Oh"))
    while len(model.requests) < 5:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert requests_end(model)


async def test_a_timeout_ends_the_search():
    model = endless()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Rain(chosen(generation=LONG), model=model).agenerate("Oh"), 0.1)
    assert requests_end(model)


async def test_closing_an_async_stream_ends_the_search():
    model = endless()
    stream = Rain(chosen(generation=LONG), model=model).astream("Oh")
    assert (await anext(stream)).text == " la."
    await stream.aclose()
    assert requests_end(model)


async def test_async_callers_do_not_block_the_loop():
    model = endless()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await Rain(chosen(generation={"max_new_tokens": 40}), model=model).agenerate("Oh")
    ticking.cancel()
    assert ticks > 5


def test_the_deadline_returns_what_was_accepted():
    settings = chosen(generation=LONG, search={"deadline_s": 0.15})
    began = time.monotonic()
    result = Rain(settings, model=endless()).generate("Oh")
    assert time.monotonic() - began < 5
    assert result.stop_reason is StopReason.DEADLINE
    assert result.text.startswith(" la.")
    assert result.text == "".join(step.text for step in result.trace.steps)
    assert result.accepted
    assert result.verdict is not None


def test_the_token_budget_returns_what_was_accepted():
    settings = chosen(generation=LONG, search={"max_model_tokens": 300})
    result = Rain(settings, model=endless()).generate("Oh")
    assert result.stop_reason is StopReason.BUDGET
    assert result.text.startswith(" la.")
    assert result.usage.model_tokens >= 300
    less = Rain(chosen(generation=LONG, search={"max_model_tokens": 1}), model=endless()).generate("Oh")
    assert (less.text, less.stop_reason, less.verdict) == ("", StopReason.BUDGET, None)


def test_plain_answers_keep_the_limits_too():
    settings = chosen(generation=LONG, search={"max_model_tokens": 100})
    result = Rain(settings, model=endless()).plain("Oh")
    assert result.stop_reason is StopReason.BUDGET
    assert result.text.startswith(" la. la.")


# --- shared models --------------------------------------------------------------------------------------


def test_objects_that_name_the_same_models_share_them(tiny_folder: Path):
    def made() -> Rain:
        return Rain(chosen(model={"name": str(tiny_folder), "device": "cpu"}))

    one, other = made(), made()
    with ThreadPoolExecutor(8) as pool:
        runtimes = list(pool.map(lambda rain: rain.runtime, [one, other] * 4))
    assert all(runtime is runtimes[0] for runtime in runtimes)
    searching = Rain(one.settings.updated(search={"iterations": 2}))
    assert searching.runtime.writer is one.runtime.writer
    assert Rain(
        chosen(model={"name": str(tiny_folder), "device": "cpu", "dtype": "bfloat16"})
    ).runtime is not (one.runtime)
    judged = one.settings.updated(evaluation={"judge": {"name": str(tiny_folder), "device": "cpu"}})
    assert Rain(judged).runtime.judge is one.runtime.writer


def test_short_lived_objects_do_not_load_their_model_again(tiny_folder: Path):
    settings = chosen(model={"name": str(tiny_folder), "device": "cpu"})
    rain = Rain(settings)
    token = id(rain.runtime.writer)
    marker = rain.runtime.writer.__dict__.setdefault("marker", object())
    del rain
    gc.collect()
    again = Rain(settings)
    assert id(again.runtime.writer) == token
    assert again.runtime.writer.__dict__["marker"] is marker


def test_models_given_ready_are_not_mixed_up():
    one, other = scripted({"": {" one": 1.0}}), scripted({"": {" two": 1.0}})
    settings = chosen(generation={"max_new_tokens": 1})
    assert Rain(settings, model=one).generate("Oh").text == " one"
    assert Rain(settings, model=other).generate("Oh").text == " two"
    assert Rain(settings, model=one).runtime is Rain(settings, model=one).runtime


def test_the_judge_may_be_another_model_than_the_writer():
    writer, judge = babbler(), babbler()
    writer.encode("so that the judge's token ids are others")
    result = Rain(chosen(), model=writer, judge=judge).generate("Oh")
    assert {type(request) for request in writer.requests} == {Sample}
    assert {type(request) for request in judge.requests} == {Score}
    assert result.text == Rain(chosen(), model=babbler()).generate("Oh").text


def test_calibration_by_content_free_texts_is_asked_once():
    calibrated = GOOD.model_copy(update={"calibration": Calibration(center="content_free")})
    model = scripted({"": {" la": 1.0}, " la": {".": 1.0}}, lambda question: len(question) / 100)
    rain = Rain(chosen(evaluation={"criteria": [calibrated]}), model=model)
    rain.generate("Oh")
    first = len([request for request in model.requests if isinstance(request, Score)])
    rain.generate("Ah")
    second = len([request for request in model.requests if isinstance(request, Score)]) - first
    assert first == second + 3


def test_many_threads_with_many_criteria_find_their_evaluators(monkeypatch: pytest.MonkeyPatch):
    """Whoever makes room for another evaluator does not take one out of somebody's hands."""
    monkeypatch.setattr("rain_llm.engine.runtime.KEPT_EVALUATORS", 1)
    runtime = Rain(chosen(), model=babbler()).runtime
    named = [GOOD.model_copy(update={"name": f"good{i}"}) for i in range(8)]
    asked = [chosen(evaluation={"criteria": [criterion]}).evaluation for criterion in named] * 4
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(20):
                assert [found.settings for found in pool.map(runtime.evaluator, asked)] == asked
    finally:
        sys.setswitchinterval(interval)


EXIT = """
from rain_llm import Criterion, Rain, RainSettings
from rain_llm.models.scripted import ScriptedModel, script
model = ScriptedModel(script({"": {" la": 1.0}}))
good = Criterion(name="good", labels=(("good", "bad"),), calibration=None)
settings = RainSettings().updated(
    generation={"max_new_tokens": 3000},
    evaluation={"criteria": [good]},
    search={"iterations": 50},
    on_unsafe="best",
)
stream = Rain(settings, model=model).stream("Oh")
print(repr(next(stream).text))
"""


def test_a_program_may_end_in_the_middle_of_an_answer():
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXIT], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert ran.stdout.startswith("' la")


def test_a_step_tells_its_result_only_at_the_end():
    steps: list[Step] = list(Rain(chosen(), model=babbler()).stream("Oh"))
    assert [step.result is not None for step in steps] == [False] * (len(steps) - 1) + [True]
    assert "result" not in repr(steps[-1])


# --- guides ---------------------------------------------------------------------------------------

KIND = GOOD.model_copy(update={"guide": "Be kind."})


@pytest.mark.parametrize(
    ("prompt", "behind"),
    [
        ("It is", "Be kind. It is"),
        ("Long ago.\nIt is", "Long ago.\nBe kind. It is"),
        ("It is\n", "It is\nBe kind.\n"),
        ("Question: Who?\nAnswer:", "Question: Who?\nAnswer: Be kind."),
        ("Assistant: Sure, here is", "Assistant: Be kind. Sure, here is"),
        ('He shouted: "You', 'Be kind. He shouted: "You'),
        ("12:30 was", "Be kind. 12:30 was"),
    ],
)
def test_a_guide_stands_in_front_of_the_last_line_and_behind_a_speakers_name(prompt: str, behind: str):
    rain = Rain(chosen(evaluation={"criteria": [KIND]}), model=babbler())
    assert rain.runtime.writer.decode(rain.guided(prompt)) == behind


def test_in_a_chat_the_answer_begins_with_the_guides():
    both = (KIND, KIND.model_copy(update={"name": "calm", "guide": "Be calm."}))
    rain = Rain(chosen(evaluation={"criteria": both}), model=babbler())
    chat = [Message("user", "Who are you?")]
    asked = rain.encode(chat)
    assert rain.guided(chat)[: len(asked)] == asked
    assert rain.runtime.writer.decode(rain.guided(chat)[len(asked) :]) == "Be kind. Be calm.\n\n"


def test_without_a_guide_nothing_is_guided():
    assert Rain(chosen(), model=babbler()).guided("It is") == ()


def test_a_guide_that_does_not_fit_is_left_out_and_the_judge_never_sees_one():
    room = chosen().generation.max_new_tokens + 6  # the judge's question has 5
    for length, seen in ((4096, True), (room, False)):
        model = babbler()
        model.context_length = length
        wide = KIND.model_copy(update={"threshold": 0.99, "guide": "Be kind. Be calm. Be good."})
        Rain(chosen(evaluation={"criteria": [wide]}), model=model).generate("It is")
        written = [model.decode(r.prefix) for r in model.requests if isinstance(r, Sample)]
        judged = [model.decode(r.prefix) for r in model.requests if isinstance(r, Score)]
        assert any("Be kind." in text for text in written) == seen
        assert not any("Be kind." in text for text in judged)
