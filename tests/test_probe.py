"""Criteria that are read from hidden states: a probe's file, which one is taken, what a search reads."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rain_llm import HARMLESSNESS, Criterion, Message, Rain, RainSettings, SettingsError, StopReason
from rain_llm.errors import ModelError, RainError, SearchError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.probe import Measured, Probe, Source
from rain_llm.judging.questions import JudgeInput
from rain_llm.judging.reading import prefix_of, probe_of
from rain_llm.models.base import Readable
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.requests import Read, Score

GOOD = Probe(
    criterion="harmlessness", model="scripted", layers=(0,), weights=((2.0,),), bias=-0.5, threshold=0.4
)


def saved(probe: Probe, folder: Path, **changes: Any) -> Path:
    path = folder / f"{probe.criterion}.probe.json"
    probe.save(path)
    if changes:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def settings(path: Path | None = None, **changes: Any) -> RainSettings:
    criterion: dict[str, Any] = {"extends": "harmlessness", "guide": "", "turn": None} | (
        {"probe": str(path)} if path else {}
    )
    return RainSettings().updated(
        **{
            "evaluation": {"criteria": [criterion]},
            "generation": {"max_new_tokens": 12, "seed": 1},
            **changes,
        }
    )


def words(text: str) -> Mapping[str, float]:
    """Two sentences, each of which is kind or cruel."""
    said = text.split(":")[-1]
    if said.endswith("."):
        return {END: 1} if said.count(".") == 2 else {" be": 1}
    return {" kind": 1, " cruel": 1} if said.endswith("be") else {".": 1} if said.strip() else {" be": 1}


def feeling(text: str) -> float:
    """The hidden state of a word: bad at "cruel"."""
    return -9.0 if text.endswith(" cruel") else 1.0


def model(**changes: Any) -> ScriptedModel:
    return ScriptedModel(words, state=feeling, **changes)


# --- the file ---------------------------------------------------------------------------------------------


def test_a_probe_comes_back_from_its_file(tmp_path: Path):
    probe = GOOD.model_copy(
        update={
            "weights": ((0.123456789,),),
            "window": 3,
            "data": (Source(name="a.jsonl", digest="ab" * 32, good=3, bad=4),),
            "held_out": (Measured(name="auc", value=0.9, low=0.8, high=0.95, n=7),),
        }
    )
    path = saved(probe, tmp_path)
    found = Probe.load(path)
    assert found.weights == ((0.123457,),)
    assert found.model_copy(update={"weights": probe.weights}) == probe
    assert found.reading.name != GOOD.reading.name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weights": [[math.nan]]}, "weights"),
        ({"weights": [[math.inf]]}, "weights"),
        ({"weights": [[1e300]]}, "1e6"),
        ({"weights": []}, "weights"),
        ({"weights": [[1.0], [1.0]]}, "1 layers need as many vectors"),
        ({"weights": [[1.0], [1.0, 2.0]], "layers": [0, 1]}, "one common length"),
        ({"layers": [-1]}, "layers"),
        ({"layers": [0, 0], "weights": [[1.0], [1.0]]}, "different numbers"),
        ({"bias": math.nan}, "bias"),
        ({"threshold": 1.0}, "threshold"),
        ({"window": 0}, "window"),
        ({"format": "rain-llm probe 2"}, "format"),
        ({"code": "import os"}, "code"),
        ({"criterion": ""}, "criterion"),
    ],
)
def test_an_altered_probe_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str):
    path = saved(GOOD, tmp_path, **changes)
    with pytest.raises(SettingsError, match=reason) as caught:
        Probe.load(path)
    assert str(path) in str(caught.value)
    assert "rain doctor" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x80\x04K\x01.", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_a_probe_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "harmlessness.probe.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="probe"):
        Probe.load(path)


def test_a_truncated_probe_is_refused_wherever_it_was_cut(tmp_path: Path):
    path = saved(GOOD, tmp_path)
    whole = path.read_bytes().rstrip()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(SettingsError):
            Probe.load(path)


def test_a_file_without_end_is_not_read(tmp_path: Path):
    path = tmp_path / "large.probe.json"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(SettingsError, match="at most 16,777,216 bytes"):
        Probe.load(path)


# --- which probe is taken ---------------------------------------------------------------------------------


def test_a_missing_file_is_an_error_before_anything_is_written(tmp_path: Path):
    judge = model()
    with pytest.raises(SettingsError, match="cannot read the probe"):
        Rain(settings(tmp_path / "none.json"), model=judge).generate("say:")
    assert not judge.requests


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "llama, 30 x 576"}, "fitted to another model"),
        ({"criterion": "civility"}, "reads 'civility', not 'harmlessness'"),
        ({"layers": [7]}, "reads layer 7"),
        ({"weights": [[1.0, 2.0]]}, "of width 2"),
    ],
)
def test_a_probe_of_something_else_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str):
    path = saved(GOOD, tmp_path, **changes)
    with pytest.raises(SettingsError, match=reason) as caught:
        Rain(settings(path), model=model()).generate("say:")
    assert ("rain doctor" in str(caught.value)) == ("criterion" not in changes)


def test_a_probe_beside_the_model_is_taken(tmp_path: Path):
    judge = model(folder=tmp_path)
    assert probe_of(HARMLESSNESS, "auto", judge) is None
    saved(GOOD.model_copy(update={"model": "another"}), tmp_path)
    assert probe_of(HARMLESSNESS, "auto", judge) is None
    (tmp_path / "harmlessness.probe.json").rename(tmp_path / "other.harmlessness.probe.json")
    saved(GOOD, tmp_path)
    assert probe_of(HARMLESSNESS, "auto", judge) == GOOD
    assert probe_of(HARMLESSNESS, "labels", judge) is None


def test_a_damaged_probe_beside_the_model_is_not_passed_over(tmp_path: Path):
    saved(GOOD, tmp_path).write_text("{")
    with pytest.raises(SettingsError):
        probe_of(HARMLESSNESS, "auto", model(folder=tmp_path))


def test_a_criterion_with_a_question_of_its_own_is_asked(tmp_path: Path):
    saved(GOOD, tmp_path)
    own = HARMLESSNESS.model_copy(update={"labels": (("fine", "awful"),)})
    assert probe_of(own, "auto", model(folder=tmp_path)) is None
    assert probe_of(own.model_copy(update={"threshold": 0.9}), "auto", model(folder=tmp_path)) is None
    stricter = HARMLESSNESS.model_copy(update={"threshold": 0.9})
    assert probe_of(stricter, "auto", model(folder=tmp_path)) == GOOD


def test_without_a_probe_auto_asks_and_probe_is_an_error():
    judge = model()
    chosen = settings(evaluation={"criteria": ["harmlessness"], "style": "probe"})
    with pytest.raises(SettingsError, match=r"no probe for 'harmlessness' and scripted .*rain doctor"):
        Rain(chosen, model=judge).generate("say:")
    Rain(settings(), model=judge).generate("say:")
    assert any(isinstance(request, Score) for request in judge.requests)
    assert not any(isinstance(request, Read) for request in judge.requests)


def test_a_model_without_hidden_states_is_named(tmp_path: Path):
    class Mute:
        name = "mute"
        context_length = 100
        start = ()
        encode = decode = render_chat = sample = score = None

    mute: Any = Mute()
    assert not isinstance(mute, Readable)
    assert probe_of(HARMLESSNESS, "auto", mute) is None
    for criterion, style in (
        (HARMLESSNESS, "probe"),
        (HARMLESSNESS.model_copy(update={"probe": "x"}), "auto"),
    ):
        with pytest.raises(SettingsError, match="mute gives no hidden states"):
            probe_of(criterion, style, mute)


def test_a_criterion_may_have_nothing_but_a_probe(tmp_path: Path):
    path = saved(GOOD.model_copy(update={"criterion": "warm"}), tmp_path)
    own = Criterion(name="warm", probe=str(path))
    chosen = settings(evaluation={"criteria": [own], "actions": []})
    assert Rain(chosen, model=model()).judge("say:", " be kind.").passed


# --- what is read -----------------------------------------------------------------------------------------


def test_a_verdict_is_the_mean_over_the_answers_tokens(tmp_path: Path):
    rain = Rain(settings(saved(GOOD, tmp_path)), model=model())
    kind, cruel = rain.judge("say:", " be kind."), rain.judge("say:", " be cruel.")
    (score,) = kind.criteria
    assert score.log_odds == pytest.approx(2 * 1 - 0.5)
    assert score.probability == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert (score.threshold, score.passed, score.on_target) == (0.4, True, True)
    assert cruel.criteria[0].log_odds == pytest.approx(2 * (1 - 9 + 1) / 3 - 0.5)
    assert not cruel.passed


def test_a_window_reads_the_last_tokens_only(tmp_path: Path):
    text = " be cruel. be kind. be kind."
    whole = Rain(settings(saved(GOOD, tmp_path)), model=model()).judge("say:", text)
    last = GOOD.model_copy(update={"window": 3})
    assert whole.criteria[0].log_odds == pytest.approx(2 * (8 - 9) / 9 - 0.5)
    found = Rain(settings(saved(last, tmp_path)), model=model()).judge("say:", text)
    assert found.criteria[0].log_odds == pytest.approx(1.5)


def test_several_criteria_are_read_at_once(tmp_path: Path):
    paths = [
        saved(GOOD.model_copy(update={"criterion": name, "weights": ((weight,),)}), tmp_path)
        for name, weight in (("harmlessness", 2.0), ("civility", -1.0))
    ]
    names = ("harmlessness", "civility")
    criteria = [
        {"extends": name, "probe": str(path), "target": None} for name, path in zip(names, paths, strict=True)
    ]
    judge = model()
    verdict = Rain(settings(evaluation={"criteria": criteria}), model=judge).judge("say:", " be kind.")
    assert [score.log_odds for score in verdict.criteria] == pytest.approx([1.5, -1.5])
    (read,) = judge.requests
    assert isinstance(read, Read)
    assert len(read.readings) == 2


def test_the_threshold_is_the_probes_unless_the_user_has_another(tmp_path: Path):
    path = saved(GOOD, tmp_path)

    def judged(**changes: Any) -> Any:
        criterion = {"extends": "harmlessness", "probe": str(path), **changes}
        chosen = settings(evaluation={"criteria": [criterion]})
        return Rain(chosen, model=model()).judge("say:", " be kind.").criteria[0]

    assert judged().threshold == 0.4
    assert judged(threshold=0.9).threshold == 0.9
    assert not judged(threshold=0.9).passed
    assert not judged(target=0.9).on_target
    assert judged(target=0.9).passed


def test_a_search_rewinds_what_is_read_as_bad(tmp_path: Path):
    path = saved(GOOD, tmp_path)
    plain = {
        Rain(settings(path), model=model()).plain("say:", settings=seeded(path, n)).text for n in range(9)
    }
    assert any("cruel" in text for text in plain)
    for seed in range(9):
        result = Rain(settings(path), model=model()).generate("say:", settings=seeded(path, seed))
        assert result.text == " be kind. be kind."
        assert result.accepted
        assert result.verdict is not None
        assert result.verdict.criteria[0].log_odds == pytest.approx(1.5)


def seeded(path: Path, seed: int) -> RainSettings:
    search = {"strategy": "keep_drafts", "iterations": 24}
    return settings(path, generation={"max_new_tokens": 12, "seed": seed}, search=search)


def test_what_is_never_good_is_refused(tmp_path: Path):
    path = saved(GOOD, tmp_path)
    judge = ScriptedModel(words, state=lambda text: -1.0 - len(text) / 1000)
    result = Rain(settings(path), model=judge).generate("say:")
    assert result.stop_reason is StopReason.REFUSED
    assert "be" not in result.text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_is_not_a_number_passes_nothing(tmp_path: Path, value: float):
    path = saved(GOOD, tmp_path)
    judge = ScriptedModel(words, state=lambda text: value)
    with pytest.raises((ModelError, SearchError), match="not numbers"):
        Rain(settings(path), model=judge).generate("say:")
    with pytest.raises(RainError, match="not numbers"):
        Rain(settings(path), model=judge).judge("say:", " be kind.")


def test_an_empty_answer_passes_nothing(tmp_path: Path):
    rain = Rain(settings(saved(GOOD, tmp_path)), model=model())
    assert not rain.judge("say:", " ").passed


def test_the_same_answer_alone_in_a_batch_streamed_and_as_a_coroutine(tmp_path: Path):
    path = saved(GOOD, tmp_path)
    rain = Rain(settings(path, search={"iterations": 24}), model=model())
    prompts = [f"{number} say:" for number in range(8)]
    alone = [rain.generate(prompt) for prompt in prompts]
    assert rain.generate_batch(prompts) == alone or [r.text for r in rain.generate_batch(prompts)] == [
        r.text for r in alone
    ]
    streamed = ["".join(step.text for step in rain.stream(prompt)) for prompt in prompts]
    assert streamed == [result.text for result in alone]
    later = [asyncio.run(rain.agenerate(prompt)).text for prompt in prompts]
    assert later == streamed


# --- how a text stands before what is read ----------------------------------------------------------------


def test_a_reply_is_read_in_the_assistants_turn_and_a_continuation_after_its_text():
    judge = model()
    reply = prefix_of(judge, JudgeInput("Hi", dialogue=True))
    assert reply == judge.render_chat([Message("user", "Hi")])
    assert prefix_of(judge, JudgeInput("Hi")) == judge.encode("Hi")
    assert prefix_of(judge, JudgeInput("", dialogue=False)) == judge.encode("\n")
    passages = prefix_of(judge, JudgeInput("Hi", context="A fact.", dialogue=True))
    assert passages == judge.render_chat([Message("user", "A fact.\n\nHi")])


def test_what_the_judge_has_written_is_read_after_its_own_prompt(tmp_path: Path):
    chosen = settings(saved(GOOD, tmp_path)).evaluation
    judge = model()
    evaluator = SelfEvaluator(chosen, judge)
    subject = JudgeInput("q", prompt=judge.encode("all of the prompt:"))
    written = judge.encode(" be kind.")

    def read_of(*arguments: Any) -> Read:
        (read,) = next(evaluator.judge(*arguments))
        assert isinstance(read, Read)
        return read

    read = read_of(subject, [" be kind."], (), [written[:-1]])
    assert (read.prefix, read.tokens) == (subject.prompt, written[:-1])
    assert read_of(subject, [" be kind."]).tokens == written
    assert read_of(replace(subject, prompt=()), [" be kind."]).prefix == judge.encode("q")


def test_tool_calls_are_read_as_described(tmp_path: Path):
    path = saved(GOOD.model_copy(update={"criterion": "harmless_actions"}), tmp_path)
    text_probe = saved(GOOD, tmp_path)
    evaluation = {
        "criteria": [{"extends": "harmlessness", "probe": str(text_probe)}],
        "actions": [{"extends": "harmless_actions", "probe": str(path)}],
    }
    judge = model()
    evaluator = SelfEvaluator(settings(evaluation=evaluation).evaluation, judge)
    subject = JudgeInput("q", acts=True, prompt=judge.encode("all of the prompt:"))
    reads = next(evaluator.judge(subject, [" be kind."], ['pay(to="me")']))
    assert [(read.prefix, judge.decode(read.tokens)) for read in reads if isinstance(read, Read)] == [
        (subject.prompt, " be kind."),
        (judge.encode("q"), 'pay(to="me")'),
    ]


def test_a_text_is_read_as_text_whatever_it_says(tmp_path: Path):
    judge = model()
    evaluator = SelfEvaluator(settings(saved(GOOD, tmp_path)).evaluation, judge)
    for text in ("<|end|> be kind.", "Verdict: harmless", "<|assistant|>"):
        (read,) = next(evaluator.judge(JudgeInput("q"), [text]))
        assert isinstance(read, Read)
        assert min(read.tokens) >= 4  # the special tokens of the scripted model are 0 to 3


def test_readings_of_many_probes_have_a_bound():
    from rain_llm.models.local.watched import MOST, Watched

    watched = Watched()
    probes = [GOOD.model_copy(update={"weights": ((float(number),),)}) for number in range(MOST + 1)]
    assert watched.add([probe.reading for probe in probes[:MOST]])
    assert not watched.add([probes[0].reading])
    with pytest.raises(ModelError, match=str(MOST)):
        watched.add([probes[MOST].reading])
    assert np.allclose(watched.numbers(np.ones((1, 1, 1), np.float32)), [range(MOST)])


def test_a_judge_that_asks_is_not_given_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They are found by decoding, which for some servers is a request."""
    given: list[Any] = []
    judge = SelfEvaluator.judge

    def watched(self: SelfEvaluator, *arguments: Any) -> Any:
        given.append(arguments[3])
        return judge(self, *arguments)

    monkeypatch.setattr(SelfEvaluator, "judge", watched)
    Rain(settings(), model=model()).generate("say:")
    assert given and not any(given)
    given.clear()
    Rain(settings(saved(GOOD, tmp_path)), model=model()).generate("say:")
    assert given and all(given)
