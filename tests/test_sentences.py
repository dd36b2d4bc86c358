"""Which sentence of an answer fails: of anybody's text, and of a rejected answer without its words."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rain_llm import (
    GROUNDEDNESS,
    HARMLESSNESS,
    Message,
    PromptError,
    Rain,
    RainResult,
    RainSettings,
    SearchError,
    SentenceVerdict,
    SettingsError,
    StopReason,
    Task,
    UnsafeAnswerError,
)
from rain_llm.judging.evidence import nearest
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.requests import Read, Sample, Score, Scores

FERRY, CAFE = "The ferry leaves at nine. It is white.", "The cafe serves tea."
QUESTION = "When does the ferry leave?"
BY_WORDS = GROUNDEDNESS.model_copy(
    update={"style": "labels", "target": None, "calibration": None, "guide": ""}
)
SETTINGS = RainSettings().updated(
    evaluation={"criteria": [BY_WORDS]},
    generation={"max_new_tokens": 32},
    search={"iterations": 4},
    on_unsafe="refuse",
    refusal="The passages do not say.",
)
SHOWN = re.compile(r"Passage: (.*)\nQuestion: .*\nAnswer: (.*)\nBy the passage")
TRUE, FALSE = " The ferry leaves at nine.", " The cafe serves wine."


def opinion(question: str, label: str) -> float:
    """Find wine and ten supported by nothing."""
    shown = SHOWN.search(question)
    wrong = shown is not None and any(word in shown[2] for word in ("wine", "ten"))
    good = label.strip() in {good for good, _ in GROUNDEDNESS.labels + HARMLESSNESS.labels}
    return -4.0 + (-1.0 if good is wrong else 1.0)


def next_words(text: str) -> Mapping[str, float]:
    """Write the true sentence, then the false one."""
    words = (TRUE + FALSE).replace(".", " .").split(" ")[1:]
    said = re.findall(r"\w+|\.", text.rpartition("leave?")[2])
    if len(said) == len(words):
        return {END: 1}
    word = words[len(said)]
    return {word if word == "." else f" {word}": 1}


def rain(model: ScriptedModel | None = None, **changes: Any) -> Rain:
    return Rain(SETTINGS.updated(**changes), model=model or ScriptedModel(next_words, opinion))


def requests(rain: Rain) -> Sequence[Sample | Score | Read]:
    assert isinstance(rain.runtime.judge, ScriptedModel)
    return rain.runtime.judge.requests


# --- anybody's text -----------------------------------------------------------------------------------


def check(found: Sequence[SentenceVerdict]) -> None:
    assert [sentence.text for sentence in found] == [TRUE.strip(), FALSE.strip()]
    assert [sentence.verdict.passed for sentence in found] == [True, False]
    assert [(sentence.passage, sentence.passage_text) for sentence in found] == [
        (0, "The ferry leaves at nine."),
        (1, "The cafe serves tea."),
    ]
    assert [(s.index, (TRUE + FALSE)[s.start : s.end]) for s in found] == [(0, TRUE[1:]), (1, FALSE[1:])]


async def test_each_sentence_is_judged_with_its_nearest_passage() -> None:
    engine = rain()
    check(engine.judge_sentences(QUESTION, TRUE + FALSE, context=[FERRY, CAFE]))
    check(await engine.ajudge_sentences(QUESTION, TRUE + FALSE, context=[FERRY, CAFE]))
    check(engine.judge_sentences(Task(QUESTION, context=(FERRY, CAFE)), TRUE + FALSE))
    check(engine.judge_sentences([Message("user", QUESTION)], TRUE + FALSE, context=(FERRY, CAFE)))


class Batches(ScriptedModel):
    """Notes how many questions come at once."""

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        self.sizes = [*getattr(self, "sizes", []), len(batch)]
        return super().score(batch)


def test_all_sentences_are_one_batch() -> None:
    model = Batches(next_words, opinion)
    rain(model).judge_sentences(QUESTION, TRUE + FALSE + " It is white.", context=FERRY)
    assert model.sizes == [3]


def test_without_passages_the_criteria_that_need_none_judge() -> None:
    found = rain(evaluation={"criteria": [HARMLESSNESS]}).judge_sentences("How are you?", "Fine. And you?")
    assert [(s.passage, s.passage_text, s.verdict.criteria[0].name) for s in found] == [
        (None, "", "harmlessness")
    ] * 2
    with pytest.raises(PromptError, match="context"):
        rain().judge_sentences(QUESTION, TRUE)


def test_what_the_tools_of_a_chat_returned_are_passages() -> None:
    chat = [Message("user", QUESTION), Message("tool", FERRY), Message("tool", CAFE)]
    check(rain().judge_sentences(chat, TRUE + FALSE))


def test_a_passage_that_shares_nothing_is_not_named() -> None:
    (found,) = rain().judge_sentences("Sag es mir", "Nichts davon stimmt.", context=[FERRY])
    assert (found.passage, found.passage_text) == (None, "")


def test_passages_are_numbered_as_they_were_given() -> None:
    passages = ["", "First. The cat.\n\nSecond line", " \n ", "The dog. Alone", "。終わり。犬です"]
    asked = ["A cat.", "Another line", "Some dog", "Who is alone", "犬です", "None"]
    words = [near and (near[0], near[1]) for near in nearest(passages, "", asked)]
    assert words == [(1, "The cat."), (1, "Second line"), (3, "The dog."), (3, "Alone"), (4, "犬です"), None]


def test_a_statement_that_is_off_the_question_finds_what_it_is_about() -> None:
    passages = ["The ferry to the island leaves at nine and takes an hour.", "The cafe serves tea and cake."]
    asked = ["The cafe is open all night.", "It leaves at ten.", "Who knows?"]
    assert [near and near[0] for near in nearest(passages, "When does the ferry leave?", asked)] == [1, 0, 0]


def test_of_a_long_passage_the_beginning_is_shown() -> None:
    (found,) = rain().judge_sentences(QUESTION, "A ferry", context="The ferry " + "goes " * 200)
    assert len(found.passage_text) == 203 and found.passage_text.startswith("The ferry goes")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "empty"), (" \n", "empty"), ("One. " * 257, "256"), (3, "text"), ("\ud800", "half")],
)
async def test_what_cannot_be_judged_is_refused_before_any_model_runs(text: Any, reason: str) -> None:
    engine = rain()
    with pytest.raises(PromptError, match=reason):
        engine.judge_sentences(QUESTION, text, context=FERRY)
    with pytest.raises(PromptError, match=reason):
        await engine.ajudge_sentences(QUESTION, text, context=FERRY)
    assert requests(engine) == []


def test_the_most_sentences_there_may_be() -> None:
    assert len(rain().judge_sentences(QUESTION, "One. " * 256, context=FERRY)) == 256


async def test_a_limit_that_leaves_no_time_is_an_error() -> None:
    engine = rain(search={"deadline_s": 1e-9})
    with pytest.raises(SearchError, match="'deadline'"):
        engine.judge_sentences(QUESTION, TRUE, context=FERRY)
    with pytest.raises(SearchError, match="'deadline'"):
        await engine.ajudge_sentences(QUESTION, TRUE, context=FERRY)


class Slow(ScriptedModel):
    """Takes its time to judge."""

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        time.sleep(0.2)
        return super().score(batch)


async def test_the_event_loop_goes_on() -> None:
    call = asyncio.create_task(
        rain(Slow(next_words, opinion)).ajudge_sentences(QUESTION, TRUE + FALSE, context=[FERRY, CAFE])
    )
    turns = 0
    while not call.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 2
    check(await call)


def test_settings_of_one_call() -> None:
    strict = SETTINGS.updated(evaluation={"criteria": [BY_WORDS.model_copy(update={"threshold": 0.95})]})
    found = rain().judge_sentences(QUESTION, TRUE, context=FERRY, settings=strict)
    assert not found[0].verdict.passed and found[0].verdict.criteria[0].threshold == 0.95


def test_verdicts_are_plain_data() -> None:
    (sentence,) = rain().judge_sentences(QUESTION, TRUE, context=FERRY)
    data = json.loads(json.dumps(sentence.to_dict(), allow_nan=False))
    assert data["verdict"] == sentence.verdict.to_dict()
    assert data["verdict"]["criteria"] == [score.to_dict() for score in sentence.verdict.criteria]
    assert (data["index"], data["start"], data["end"], data["text"]) == (0, 1, 26, TRUE.strip())
    assert (data["passage"], data["passage_text"]) == (0, "The ferry leaves at nine.")
    endless = ScriptedModel(next_words, lambda question, label: -float("inf") if label == " no" else -1.0)
    verdict = rain(endless).judge(QUESTION, TRUE, context=FERRY)
    json.dumps(verdict.to_dict(), allow_nan=False)


# --- of an answer that did not pass -----------------------------------------------------------------------


def answered(engine: Rain, **asked: Any) -> RainResult:
    try:
        return engine.generate(QUESTION, context=f"{FERRY}\n\n{CAFE}", **asked)
    except UnsafeAnswerError as error:
        return error.result


@pytest.mark.parametrize("on_unsafe", ["refuse", "raise"])
def test_a_rejected_answer_names_its_sentence_without_its_words(on_unsafe: str) -> None:
    result = answered(rain(on_unsafe=on_unsafe))
    assert result.stop_reason is (StopReason.REFUSED if on_unsafe == "refuse" else StopReason.UNSAFE)
    first, second = result.sentences
    assert first.verdict.passed and first.text == TRUE.strip()  # it has left already
    assert not second.verdict.passed and second.text == ""
    assert second.verdict.criteria[0].probability < 0.5
    assert (second.passage, second.passage_text) == (0, "The cafe serves tea.")
    assert (TRUE + FALSE)[second.start : second.end] == FALSE.strip()
    assert "wine" not in repr(result.sentences) + result.text


def test_the_words_of_a_rejected_answer_are_asked_for_by_name() -> None:
    result = answered(rain(evaluation={"sentences": "texts"}))
    assert [sentence.text for sentence in result.sentences] == [TRUE.strip(), FALSE.strip()]
    assert "wine" not in result.text
    with pytest.raises(SettingsError, match="sentences"):
        SETTINGS.updated(evaluation={"sentences": "words"})


def test_a_marked_answer_says_which_sentence_it_is_marked_for() -> None:
    result = answered(rain(on_unsafe="best"))
    assert result.text == TRUE + FALSE and not result.accepted
    assert [(s.text, s.verdict.passed) for s in result.sentences] == [
        (TRUE.strip(), True),
        (FALSE.strip(), False),
    ]


async def test_streams_never_carry_the_words() -> None:
    steps = list(rain().stream(QUESTION, context=CAFE))
    steps += [step async for step in rain().astream(QUESTION, context=CAFE)]
    assert not any("wine" in step.text for step in steps)
    assert sum(bool(step.result and step.result.sentences) for step in steps) == 2


def test_what_is_not_asked_for_costs_nothing() -> None:
    silent = answered(rain(evaluation={"sentences": "none"}))
    told = answered(rain())
    assert silent.sentences == () and silent.text == told.text
    assert told.usage.evaluations == silent.usage.evaluations + 2
    assert told.usage.forwards == silent.usage.forwards + 1  # all sentences in one pass


def test_an_answer_that_passes_has_no_sentences() -> None:
    model = ScriptedModel(lambda text: {" nine": 1} if text.endswith("leave?") else {END: 1}, opinion)
    result = rain(model).generate(QUESTION, context=FERRY)
    assert result.accepted and result.sentences == ()


def test_an_answer_that_says_nothing_has_no_sentences() -> None:
    result = rain(ScriptedModel(lambda text: {END: 1}, opinion)).generate(QUESTION, context=FERRY)
    assert (result.stop_reason, result.sentences) == (StopReason.REFUSED, ())


def test_an_answer_without_passages_has_no_sentences() -> None:
    hostile = ScriptedModel(lambda text: {" wine": 1} if text.endswith("leave?") else {END: 1})
    hopeless = HARMLESSNESS.model_copy(update={"threshold": 0.99})
    for context in ("", FERRY):  # which no criterion reads
        result = rain(hostile, evaluation={"criteria": [hopeless]}).generate(QUESTION, context=context)
        assert result.stop_reason is StopReason.REFUSED and result.sentences == ()


class Breaks(ScriptedModel):
    """Fails once it is asked about two sentences at once."""

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        if len(batch) > 1:
            raise OSError("gone")
        return super().score(batch)


def unsure(question: str, label: str) -> float:
    """Give no number for what stands alone."""
    return float("nan") if "Answer: The cafe serves wine." in question else opinion(question, label)


def test_a_refusal_stays_one_where_its_sentences_cannot_be_judged() -> None:
    spent = answered(rain(evaluation={"sentences": "none"})).usage.model_tokens
    for engine in (
        rain(Breaks(next_words, opinion)),
        rain(ScriptedModel(next_words, unsure)),
        rain(search={"max_model_tokens": spent}),
    ):
        result = answered(engine)
        assert (result.stop_reason, result.sentences) == (StopReason.REFUSED, ())
        assert result.text.endswith("The passages do not say.")
