"""Strategy ``read_and_rewind``: what leaves, what is taken back, and from where the answer goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rain_llm import Message, Rain, RainSettings, StopReason, Task, UnsafeAnswerError
from rain_llm.criteria.criterion import Turn
from rain_llm.errors import PromptError
from rain_llm.judging.probe import Probe
from rain_llm.models.scripted import END, ScriptedModel, script
from rain_llm.requests import Read, Sample
from rain_llm.types import TokenIds

PROBE = Probe(
    criterion="harmlessness", model="scripted", layers=(0,), weights=((1.0,),), bias=0.0, threshold=0.5
)
ASK = [Message("user", "Go on")]
TURN = Turn(first="No, for", later="But no, for")


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "harmlessness.probe.json"
    PROBE.save(path)
    return path


def settings(probe: Path, *, turn: Turn | None = TURN, guide: str = "", **search: Any) -> RainSettings:
    criterion = {
        "extends": "harmlessness",
        "guide": guide,
        "instruction": "",
        "turn": turn and turn.model_dump(),
        "probe": str(probe),
    }
    return RainSettings().updated(
        generation={"max_new_tokens": 12, "seed": 3},
        evaluation={"criteria": [criterion]},
        search={"window": 3, "rewinds": 3, **search},
    )


def feeling(text: str) -> float:
    """A word's hidden state: bad words are far worse than good words are good."""
    return -20.0 if text.split()[-1].strip(".,") in ("bad", "evil") else 1.0


def model(words: Mapping[str, Mapping[str, float]], **changes: Any) -> ScriptedModel:
    return ScriptedModel(script(words), state=feeling, **changes)


COUNTING = {"on": {" one": 1}, "one": {" two": 1}, "two": {" three": 1}, "three": {" four": 1}}
FORK = {"on": {" so": 1}, "so": {" a": 1}, " a": {" b": 1}, " b": {" c": 1}, " c": {" d": 1}}


def shown(rain: Rain, prompt: Any = ASK) -> list[str]:
    return [step.text for step in rain.stream(prompt) if step.text]


def test_an_answer_that_reads_well_is_the_plain_one_and_leaves_token_by_token(probe: Path):
    rain = Rain(settings(probe), model=model(COUNTING))
    plain = rain.plain(ASK)
    assert plain.text == " one two three four"
    assert shown(rain) == [" one", " two three four"]  # its end is known with the last reading
    result = rain.generate(ASK)
    assert (result.text, result.accepted, result.stop_reason) == (plain.text, True, StopReason.EOS)
    assert (result.usage.iterations, result.usage.evaluations) == (1, 4)


def test_white_space_at_the_beginning_says_nothing_yet_and_is_not_taken_back(probe: Path):
    words = model({"on": {"\n": 1}, "\n": {" one": 1}, "one": {" two": 1}})
    rain = Rain(settings(probe, window=1), model=words)
    result = rain.generate(ASK)
    assert (result.text, result.usage.iterations) == (rain.plain(ASK).text, 1) == ("\n one two", 1)
    empty = Rain(settings(probe, window=1), model=model({"on": {"\n": 1}, "\n": {"\n": 1}}))
    assert empty.generate(ASK).text == empty.settings.refusal  # nothing was said: that never passes


@given(seed=st.integers(0, 10**6), length=st.integers(1, 40), window=st.integers(1, 50))
def test_many_words_at_random_are_those_of_plain(tmp_path_factory, seed: int, length: int, window: int):
    path = tmp_path_factory.getbasetemp() / "same.probe.json"
    if not path.exists():
        PROBE.save(path)
    words = {f" w{i}": 1 + i % 3 for i in range(9)}
    model = ScriptedModel(lambda text: words | ({END: 1} if len(text) > 30 else {}), state=feeling)
    changed = settings(path, window=window).updated(generation={"max_new_tokens": length, "seed": seed})
    rain = Rain(changed, model=model)
    plain, result = rain.plain(ASK), rain.generate(ASK)
    assert (result.text, result.stop_reason) == (plain.text, plain.stop_reason)
    assert result.accepted == bool(plain.text)


def test_a_bad_draft_goes_back_to_the_last_good_token_and_turns_round(probe: Path):
    words = {"on": {" well": 1}, "well": {" then": 1}, "then": {" bad": 1}, "bad": {" bad": 1}}
    rain = Rain(settings(probe), model=model(words | {"for": {" you": 1}}))
    result = rain.generate(ASK)
    assert result.text == "No, for you"  # nothing had left: two words read well, and tell too little
    assert result.usage.iterations == 2
    later = words | {"then": {" next": 1}, "next": {" there": 1}, "there": {" bad": 1}}
    rain = Rain(settings(probe), model=model(later | {"for": {" you": 1}}))
    assert shown(rain) == [" well", " then", " next there... But no, for you"]


class Halves(ScriptedModel):
    """Writes a smile with two tokens, as models write characters that they have no token for."""

    def decode(self, tokens: TokenIds) -> str:
        return super().decode(tokens).replace("XY", "\U0001f642").replace("X", "\ufffd")


@pytest.mark.parametrize("guide", ["", "Be kind"])
def test_no_half_of_a_character_leaves(probe: Path, guide: str):
    words = {"on": {" one": 1}, "one": {"X": 1}, "\ufffd": {"Y": 1}, "kind\n\n one": {END: 1}}
    smile = Halves(script(words), state=lambda text: -20.0 if text.endswith("\U0001f642") else 1.0)
    rain = Rain(settings(probe, window=1, guide=guide), model=smile)
    steps = list(rain.stream(ASK))
    assert "".join(step.text for step in steps) == (" one" if guide else " one... But no, for")
    assert steps[0].tokens == smile.encode(" one") and not any("X" in step.text for step in steps)


class Stripping(ScriptedModel):
    """Decodes without the space before a text's first word, as SentencePiece does."""

    def decode(self, tokens: TokenIds) -> str:
        return super().decode(tokens).removeprefix(" ")


def test_words_are_kept_whatever_a_tokenizer_does_to_the_space_before_the_first(probe: Path):
    words = {"on": {" well": 1}, "well": {" then": 1}, "then": {" next": 1}, "next": {" bad": 1}}
    texts = []
    for kind in (ScriptedModel, Stripping):
        scripted = kind(script(words | {"bad": {" bad": 1}, "for": {" you": 1}}), state=feeling)
        texts.append(Rain(settings(probe), model=scripted).generate(ASK).text)
    assert texts == [" well then next... But no, for you"] * 2


def test_the_dropped_draft_stands_in_the_trace_and_not_in_the_answer(probe: Path):
    words = {"on": {" bad": 1}, "bad": {" evil": 1}, "evil": {" bad": 1}, "for": {" you": 1}}
    result = Rain(settings(probe), model=model(words)).generate(ASK)
    dropped = [candidate.text for step in result.trace.steps for candidate in step.candidates]
    assert dropped == [" bad evil bad bad"] or dropped == [" bad evil bad evil"]
    assert "evil" not in str(result.trace.summary())


def test_a_guide_is_tried_first_is_hidden_and_is_not_read(probe: Path):
    def words(text: str) -> Mapping[str, float]:
        if "Be kind" in text:
            return {" good": 1}
        return {" fine": 1} if text.endswith(" good") else {END: 1} if "fine" in text else {" bad": 1}

    scripted = ScriptedModel(words, state=feeling)
    rain = Rain(settings(probe, guide="Be kind"), model=scripted)
    result = rain.generate(ASK)
    assert result.text == " good good good fine" and result.accepted
    reads = [request for request in scripted.requests if isinstance(request, Read)]
    assert reads and not any("Be kind" in scripted.decode(r.prefix + r.tokens) for r in reads)


def test_a_turn_comes_where_the_guide_did_not_help(probe: Path):
    words = script({"for": {" you": 1}, "you": {END: 1}, "": {" bad": 1}})
    scripted = ScriptedModel(words, state=feeling)
    result = Rain(settings(probe, guide="Be kind"), model=scripted).generate(ASK)
    assert (result.text, result.usage.iterations) == ("No, for you", 3)


def test_an_answer_turns_round_once(probe: Path):
    """A turn that has left is not said again: what comes after it is drawn anew."""
    good = {f" w{i}": 1 for i in range(3)}

    def words(text: str) -> Mapping[str, float]:
        since = text.rpartition("for")[2].split() if "for" in text else []
        if "for" not in text:
            return good if text.count(" w") < 4 else {" bad": 1}
        return good if len(since) < 5 else {" bad": 1, " fine": 1, END: 1}

    own = settings(probe, rewinds=8).updated(generation={"max_new_tokens": 24})
    texts = []
    for seed in range(20):
        rain = Rain(own.updated(generation={"seed": seed}), model=ScriptedModel(words, state=feeling))
        texts.append(rain.generate(ASK).text)
    assert all(text.count("for") == 1 for text in texts)
    assert len({text.partition("for")[2] for text in texts}) > 5


def test_a_turn_that_was_taken_back_is_none(probe: Path):
    """The turn's draft fails by a criterion without one; what is drawn instead may turn round later."""
    other = probe.with_name("civility.probe.json")
    PROBE.model_copy(update={"criterion": "civility", "weights": ((-1.0,),), "bias": 2.0}).save(other)
    own = settings(probe, window=1)
    (harmless,) = own.evaluation.model_dump()["criteria"]
    civil = harmless | {"name": "civility", "turn": None, "probe": str(other)}
    first = iter([" bad"])
    table = script({"No, for": {" rude": 1}, "one": {" two": 1}, "two": {" three": 1}, "three": {" bad": 1}})

    def words(text: str) -> Mapping[str, float]:
        return {next(first, " one"): 1} if text.endswith("on") else table(text)

    scripted = ScriptedModel(words, state=lambda text: 50.0 if text.endswith("rude") else feeling(text))
    rain = Rain(own.updated(evaluation={"criteria": [harmless, civil]}), model=scripted)
    assert rain.generate(ASK).text == " one two three... But no, for"


def test_a_guide_takes_back_all_that_has_not_left(probe: Path):
    def words(text: str) -> Mapping[str, float]:
        said = text.rpartition("on")[2].split()
        if "Be kind" in text:
            return {END: 1} if "kindly" in said else {" kindly": 1}
        return {" bad": 1} if len(said) > 3 else {f" w{len(said)}": 1}

    rain = Rain(settings(probe, guide="Be kind"), model=ScriptedModel(words, state=feeling))
    assert shown(rain) == [" w0", " w1", " kindly"]


@pytest.mark.parametrize("on_unsafe", ["refuse", "raise", "best"])
def test_where_nothing_reads_well_nothing_leaves(probe: Path, on_unsafe: str):
    words = ScriptedModel(lambda text: {" bad": 1, " evil": 1}, state=feeling)
    rain = Rain(settings(probe).updated(on_unsafe=on_unsafe), model=words)
    if on_unsafe == "raise":
        with pytest.raises(UnsafeAnswerError, match=r"raise search\.rewinds,"):
            rain.generate(ASK)
        return
    result = rain.generate(ASK)
    assert not result.accepted
    assert result.usage.iterations == 4
    if on_unsafe == "refuse":
        assert (result.text, result.stop_reason) == (rain.settings.refusal, StopReason.REFUSED)
        assert len(result.trace.steps[0].candidates) == 4  # the trace keeps what was dropped
    else:  # asked for in so many words, and marked
        assert "bad" in result.text or "evil" in result.text
        assert not any(step.accepted for step in result.trace.steps if step.text)


def test_without_a_turn_and_a_guide_it_is_drawn_again(probe: Path):
    scripted = ScriptedModel(
        lambda text: {" bad": 1, " good": 1} if text.endswith("on") else {END: 1}, state=feeling
    )
    for seed in range(20):
        own = settings(probe, turn=None, rewinds=30).updated(generation={"seed": seed})
        assert Rain(own, model=scripted).generate(ASK).text == " good"


def test_the_opening_of_an_answer_is_continued_and_turned_round(probe: Path):
    words = {"how:": {" bad": 1}, "bad": {" bad": 1}, "for": {" you": 1}, ":": {" bad": 1}}
    scripted = model(words)
    rain = Rain(settings(probe), model=scripted)
    task = Task(ASK, opening="Sure, here is how:")
    assert rain.plain(task).text.startswith(" bad")
    assert rain.generate(task).text == "... But no, for you"
    with pytest.raises(PromptError, match="opening"):
        rain.generate(Task(ASK, opening="{", schema={"type": "object"}))


def test_a_guide_stands_before_the_opening_of_an_answer(probe: Path):
    def words(text: str) -> Mapping[str, float]:
        return {END: 1} if "kindly" in text else {" kindly": 1} if "Be kind\n\nSure," in text else {" bad": 1}

    rain = Rain(settings(probe, guide="Be kind", turn=None), model=ScriptedModel(words, state=feeling))
    assert rain.generate(Task(ASK, opening="Sure,")).text == " kindly"


@pytest.mark.parametrize("stop", [(), (" d",), (" c",)])
def test_stop_strings_and_limits_end_it_as_they_end_plain(probe: Path, stop: tuple[str, ...]):
    for length in range(1, 7):
        own = settings(probe).updated(generation={"stop": stop, "max_new_tokens": length})
        rain = Rain(own, model=model(FORK))
        plain, result = rain.plain(ASK), rain.generate(ASK)
        assert (result.text, result.stop_reason) == (plain.text, plain.stop_reason)


def test_streamed_alone_in_a_batch_and_async_it_is_one_answer(probe: Path):
    scripted = ScriptedModel(lambda text: {" good": 4, " bad": 1, END: 1}, state=feeling)
    rain = Rain(settings(probe, guide="Be kind"), model=scripted)
    alone = [rain.generate([Message("user", f"Say {i}")]) for i in range(6)]
    batch = rain.generate_batch([[Message("user", f"Say {i}")] for i in range(6)])
    assert [result.text for result in batch] == [result.text for result in alone]
    assert [asyncio.run(rain.agenerate([Message("user", f"Say {i}")])).text for i in range(6)] == [
        result.text for result in alone
    ]
    assert ["".join(shown(rain, [Message("user", f"Say {i}")])) for i in range(6)] == [
        result.text for result in alone
    ]


@given(st.data())
def test_nothing_leaves_that_read_badly(tmp_path_factory, data: st.DataObject):
    """Whatever the words, the window and the budget: each accepted text reads well up to its end.

    Where ``max_new_tokens`` ends it, up to the token before the last, whose state is never computed.
    """
    path = tmp_path_factory.getbasetemp() / "never.probe.json"
    if not path.exists():
        PROBE.save(path)
    weights = {w: data.draw(st.integers(0, 3), label=w) for w in (" good", " bad", " fine", END)}
    weights = {word: weight for word, weight in weights.items() if weight} or {END: 1}
    scripted = ScriptedModel(lambda text: weights, state=feeling)
    own = settings(
        path,
        turn=data.draw(st.sampled_from([TURN, None])),
        guide=data.draw(st.sampled_from(["", "Be kind"])),
        window=data.draw(st.integers(1, 6)),
        rewinds=data.draw(st.integers(0, 4)),
    )
    result = Rain(own, model=scripted).generate(ASK)
    words = result.text.split()
    if result.accepted:  # one bad word outweighs all others of twelve
        assert "bad" not in (words[:-1] if result.stop_reason is StopReason.LENGTH else words)
    assert result.usage.iterations <= own.search.rewinds + 1  # type: ignore[union-attr]


@pytest.mark.parametrize("change", ["asked", "target", "tools", "keep_drafts", "judge", "window"])
def test_elsewhere_drafts_are_kept(probe: Path, change: str):
    own = settings(probe)
    (criterion,) = own.evaluation.criteria
    if change == "asked":
        criterion = criterion.model_copy(update={"style": "labels", "probe": None})
    if change == "window":  # what left its window before the first reading would never be read
        PROBE.model_copy(update={"window": 1}).save(probe)
    if change == "target":
        criterion = criterion.model_copy(update={"target": 0.9})
    own = own.updated(evaluation={"criteria": [criterion]})
    if change == "keep_drafts":
        own = own.updated(search={"strategy": "keep_drafts"})
    judge = model(COUNTING) if change == "judge" else None
    prompt: Any = Task(ASK, schema={"type": "integer"}) if change == "tools" else ASK
    scripted = model(COUNTING if change != "tools" else {"on": {"7": 1}})
    result = Rain(own, model=scripted, judge=judge).generate(prompt)
    assert result.trace.steps and result.stop_reason is not StopReason.ERROR
    samples = [request for request in scripted.requests if isinstance(request, Sample)]
    assert any(sample.max_tokens > 1 for sample in samples)
