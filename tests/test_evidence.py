"""The sentences that an answer is judged against: the right ones, whole, and no others."""

from __future__ import annotations

import json
import time
import tracemalloc
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rain_llm.evals.wording import names
from rain_llm.judging.evidence import pertinent

TOWN = (
    "Velmark lies on the river Hesk. Its market is held on Thursdays in front of the salt house.\n"
    "Cars leave at the mill.\n\nOstrey is a harbour town. Its ferry sails at nine."
)
ROWS = [
    json.loads(line)
    for line in (resources.files("rain_llm.evals") / "data" / "rag.jsonl").read_text("utf-8").splitlines()
]


@pytest.mark.parametrize(
    ("question", "answer", "shown"),
    [
        ("When is the market?", "On Thursdays.", [1]),
        ("When is the market?", "On Saturdays.", [1]),
        ("When is the market?", "", [1]),
        ("", "Its ferry sails at ten, and", [4]),
        ("Tell me all.", "The ferry sails at nine. The river is the Hesk!", [0, 4]),
        ("Tell me all.", "The ferry sails.\nA ferry sailed.", [4]),
        ("", "THE SALT HOUSE", [1]),
        ("Wer?", "Niemand weiß etwas davon.", []),
        ("", "", []),
    ],
)
def test_each_sentence_of_the_answer_finds_its_own(question, answer, shown):
    sentences = [
        "Velmark lies on the river Hesk.",
        "Its market is held on Thursdays in front of the salt house.",
        "Cars leave at the mill.",
        "Ostrey is a harbour town.",
        "Its ferry sails at nine.",
    ]
    assert pertinent(TOWN, question, answer) == " ".join(sentences[place] for place in shown)


@pytest.mark.parametrize("context", ["", " \n ", "..."])
def test_nothing_is_shown_of_nothing(context):
    assert pertinent(context, "Who?", "Somebody.") == ""


def test_a_long_sentence_does_not_win_by_its_length():
    stuffed = "When the cat and market and ferry and mill met in the night they sang of all things ever told."
    assert (
        pertinent(f"{stuffed} The market is at noon.", "When is the market?", "") == "The market is at noon."
    )


def test_the_evidence_of_most_answers_holds_what_decides():
    """For supported answers and for unsupported ones: what speaks for them, or against."""
    told = [row for row in ROWS if "facts" in row]
    for kind, least in (("supported", 0.9), ("unsupported", 0.75)):
        shown = [pertinent("\n\n".join(row["passages"]), row["question"], row[kind]) for row in told]
        held = [names(text, row["facts"]) for text, row in zip(shown, told, strict=True)]
        assert sum(held) >= least * len(told)
        assert sum(map(len, shown)) < 0.2 * sum(len("".join(row["passages"])) for row in told)


@given(st.text(), st.text(), st.text())
def test_any_text_is_read_and_none_is_made_up(context, question, answer):
    shown = pertinent(context, question, answer)
    left = " ".join(context.split())
    for part in shown.split():  # in order
        assert part in left
        left = left[left.index(part) :]
    assert pertinent(context, question, answer) == shown


def test_scripts_without_spaces_are_read_too():
    passages = "渡轮九点出发。咖啡馆卖茶。"
    assert pertinent(passages, "渡轮几点出发?", "渡轮九点出发。") == "渡轮九点出发。"


def long_context(number):
    return "".join(f"Ferry {number} of the day {day} leaves at nine. " for day in range(1500))


def test_many_long_contexts_are_not_all_kept():
    """One takes some ten times its own length; here are twelve of 60,000 characters."""
    tracemalloc.start()
    try:
        for number in range(12):
            assert pertinent(long_context(number), "Which day?", "Day 17.").startswith(f"Ferry {number} ")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4e6


def test_one_long_context_is_read_once_for_many_answers():
    context = long_context("Hesk")

    def seconds(answer):
        started = time.process_time()
        pertinent(context, "Hesk?", answer)
        return time.process_time() - started

    first = seconds("Day 17.")
    assert min(seconds(f"Day {day}.") for day in range(20)) < first / 4
