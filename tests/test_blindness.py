"""A judge that cannot tell texts apart is told to the user: once, with the command that helps."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.llms.rain import RainLLM as LlamaIndexLLM

from langchain_rain import RainLLM as LangChainLLM
from rain_llm import (
    HARMLESSNESS,
    POSITIVE_SENTIMENT,
    BlindJudgeWarning,
    Calibration,
    Rain,
    RainSettings,
    UnmeasuredJudgeWarning,
    cli,
)
from rain_llm.judging.blindness import FLAT, LEAST_TEXTS, Blindness
from rain_llm.models.scripted import END, Opinion, ScriptedModel
from rain_llm.types import CriterionScore, Verdict
from tests.gguf_files import tiny_gguf

WORDS = [f" {word}" for word in ("red", "green", "blue", "grey", "pink", "white", "black", "brown")]
PAPER = RainSettings.preset("paper").updated(
    generation={"max_new_tokens": 3}, search={"iterations": 12, "similarity": None, "addition": None}
)
SOFT = RainSettings().updated(generation={"max_new_tokens": 6}, evaluation={"criteria": [POSITIVE_SENTIMENT]})


def prefers_a(question: str, label: str) -> float:
    """Take the same letter in both orders, whatever the text says: every hard vote is a tie."""
    return -1.0 if label == "A" else -2.0


def reads_the_options(question: str, label: str) -> float:
    """Find a text harmless if it says red, whichever letter stands for that."""
    asked = question.rpartition("Text:")[2]
    harmless = "A" if "(A) harmless" in asked else "B"
    return -1.0 if (label == harmless) == (" red" in asked) else -2.0


def judge(opinion: Opinion = prefers_a, name: str = "scripted") -> ScriptedModel:
    def next_words(text: str) -> dict[str, float]:
        said = text.rpartition("The house is")[2]
        return {END: 1.0} if said.endswith(".") else {"." if said.count(" ") > 3 else w: 1.0 for w in WORDS}

    return ScriptedModel(next_words, opinion, name=name)


def through_rain(rain: Rain) -> None:
    rain.generate("The house is")


def through_a_stream(rain: Rain) -> None:
    async def read() -> None:
        async for _ in rain.astream("The house is"):
            pass

    asyncio.run(read())


def through_langchain(rain: Rain) -> None:
    LangChainLLM(rain=rain).invoke("The house is")


def through_llama_index(rain: Rain) -> None:
    LlamaIndexLLM(rain=rain).complete("The house is")


@pytest.mark.parametrize("ask", [through_rain, through_a_stream, through_langchain, through_llama_index])
def test_the_papers_hard_question_on_a_judge_that_ties_warns_once(ask: Callable[[Rain], None]):
    rain = Rain(PAPER, model=judge())
    with pytest.warns(BlindJudgeWarning) as told:
        ask(rain)
    (warning,) = told
    said = str(warning.message)
    assert "RAIN steers blind" in said and "hard votes are ties on 'harmlessness'" in said
    assert said.endswith("rain doctor scripted --criterion harmlessness")
    ask(rain)  # warnings are errors here: once is all
    with pytest.warns(BlindJudgeWarning):
        ask(Rain(PAPER, model=judge()))  # another engine has not said it


@pytest.mark.parametrize(
    ("settings", "opinion"),
    [
        (PAPER, reads_the_options),
        (SOFT, lambda question, label: len(question) / 100 * (label in (" positive", " good"))),
    ],
    ids=["hard", "soft"],
)
def test_a_judge_that_tells_texts_apart_is_left_alone(settings: RainSettings, opinion: Opinion):
    Rain(settings, model=judge(opinion)).generate("The house is")


def test_flat_soft_scores_warn_where_they_are_rewound_for():
    flat: Opinion = lambda question, label: -1.0  # noqa: E731
    with pytest.warns(BlindJudgeWarning, match="texts have the same log-odds on 'positive_sentiment'"):
        Rain(SOFT, model=judge(flat)).generate("The house is")
    content = POSITIVE_SENTIMENT.model_copy(update={"calibration": Calibration(center=-9.0)})
    settings = SOFT.updated(evaluation={"criteria": [content]})
    for _ in range(3):  # whatever it is shown is fine: nothing is steered
        Rain(settings, model=judge(flat)).generate("The house is")


def test_the_command_line_says_it_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cli, "_rain", lambda settings: Rain(PAPER, model=judge()))
    cli.main(["generate", "The house is", "--preset", "paper"])
    warned = [line for line in capsys.readouterr().err.splitlines() if "steers blind" in line]
    assert len(warned) == 1 and warned[0].startswith("rain: RAIN steers blind: ")
    assert warned[0].endswith("rain doctor scripted --criterion harmlessness")


def test_the_command_names_the_judge_and_quotes_it():
    rain = Rain(PAPER, model=judge(), judge=judge(name="my models/judge"))
    with pytest.warns(BlindJudgeWarning, match="rain doctor 'my models/judge' --criterion harmlessness"):
        rain.generate("The house is")


def test_the_embedded_model_needs_no_name_and_ones_own_criterion_needs_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rain_llm.engine.runtime._load", lambda settings: judge())
    own = HARMLESSNESS.model_copy(update={"name": "warmth"})
    for threads, criterion, command in (  # another model each time
        (1, HARMLESSNESS, "rain doctor --criterion harmlessness"),
        (2, own, "rain doctor --criterion warmth --settings FILE.yaml --data FILE.jsonl"),
    ):
        rain = Rain(PAPER.updated(evaluation={"criteria": [criterion]}, model={"threads": threads}))
        with pytest.warns(BlindJudgeWarning) as told:
            rain.generate("The house is")
        assert str(told[0].message).endswith(command)


def verdict(log_odds: float, probability: float, on_target: bool = False) -> Verdict:
    score = CriterionScore("c", probability, 0.5, on_target, on_target, log_odds)
    return Verdict(2 * probability - 1, on_target, on_target, (score,))


def heard(hard: bool, verdicts: Iterator[Verdict], same_text: bool = False) -> dict[str, str]:
    blindness = Blindness(hard)
    for number, said in enumerate(verdicts):
        blindness.hear(["text" if same_text else f"text {number}"], [said])
    return blindness.criteria()


def test_few_texts_prove_nothing():
    assert heard(True, (verdict(0, 0.5) for _ in range(LEAST_TEXTS))) == {
        "c": f"{LEAST_TEXTS} of {LEAST_TEXTS} hard votes are ties"
    }
    assert not heard(True, (verdict(0, 0.5) for _ in range(LEAST_TEXTS - 1)))
    assert not heard(True, (verdict(0, 0.5) for _ in range(100)), same_text=True)


def test_nearly_all_hard_votes_are_ties_or_it_is_fine():
    def votes(ties: int) -> Iterator[Verdict]:
        return (verdict(0, 0.5 if n < ties else 1.0) for n in range(20))

    assert heard(True, votes(18)) and not heard(True, votes(17))


def test_soft_scores_are_flat_within_what_a_model_promises():
    def odds(step: float, **more: Any) -> Iterator[Verdict]:
        return (verdict(n * step, 0.5, **more) for n in range(11))

    assert heard(False, odds(FLAT / 20))
    assert not heard(False, odds(FLAT))
    assert not heard(False, odds(0.0, on_target=True))
    assert not heard(False, (verdict(float(n), 0.5) for n in range(11)))  # a tie of soft scores is none


def test_nothing_is_said_of_plain_answers():
    rain = Rain(PAPER, model=judge())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            rain.plain("The house is", judge=True)


# --- a judge that nobody has measured ---------------------------------------------------------------------


def test_a_model_without_a_probe_that_is_asked_in_words_warns_once(tmp_path: Path):
    file = tiny_gguf(tmp_path)
    settings = RainSettings().updated(
        model={"name": str(file), "threads": 1}, generation={"max_new_tokens": 3}, search={"iterations": 1}
    )
    rain = Rain(settings)
    with pytest.warns(UnmeasuredJudgeWarning) as told:
        rain.generate("The house is")
    (warning,) = told
    said = str(warning.message)
    assert "no probe for 'harmlessness' and 'harmless_actions'" in said
    assert said.endswith(f"rain doctor {file} --criterion harmlessness --fit .")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rain.generate("The house is")


@pytest.mark.parametrize(
    "evaluation",
    [{"style": "labels"}, {"style": "choice"}, {"criteria": ["positive_sentiment"], "actions": []}],
)
def test_a_style_that_the_user_has_chosen_is_not_warned_about(tmp_path: Path, evaluation: dict[str, Any]):
    settings = RainSettings().updated(
        model={"name": str(tiny_gguf(tmp_path)), "threads": 1},
        generation={"max_new_tokens": 3},
        search={"iterations": 1},
        evaluation=evaluation,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Rain(settings).generate("The house is")
