"""The trace of a long answer is plain data: it can be pickled, copied, compared, hashed and printed."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter

from rain_llm import Rain, RainResult, RainSettings
from rain_llm.models.scripted import ScriptedModel
from rain_llm.search.record import DEPTH, record
from rain_llm.search.tree import Node
from rain_llm.types import Candidate
from tests.test_search import GOOD

LONG = 3000


def endless(text: str) -> Mapping[str, float]:
    """Words without an end, of which two are as likely, so that drafts fork early and late."""
    return {" a": 1.0, " b": 1.0} if len(text) % 64 < 4 else {" a": 1.0}


def answer(**search: Any) -> RainResult:
    settings = RainSettings().updated(
        generation={"max_new_tokens": LONG, "seed": 0, "stop": ()},
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        search={"iterations": 6, "guided": False} | search,
        on_unsafe="best",
    )
    return Rain(
        settings, model=ScriptedModel(endless, lambda question, label: len(question) % 7 * (label == " good"))
    ).generate("Say")


def levels(candidates: Sequence[Candidate]) -> Iterator[int]:
    for candidate in candidates:
        yield 1 + max(levels(candidate.children), default=0)


@pytest.mark.parametrize(
    "search",
    [
        {"simulation_ends": "answer"},
        {"simulation_ends": "answer", "token_set_lengths": (1,)},
        {
            "simulation_ends": "punctuation",
            "simulation_tokens": 100,
            "token_set_lengths": (1,),
            "iterations": 2,
        },
    ],
    ids=["whole drafts", "of single tokens", "in steps"],
)
def test_a_long_answer_has_a_result_like_any_other(search: dict[str, Any]):
    result = answer(**search)
    assert len(result.text.split()) == result.usage.output_tokens == LONG
    for way in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert way == result
    assert pickle.loads(pickle.dumps(list(result.trace.steps))) == list(result.trace.steps)
    assert hash(result.trace.steps[0].candidates) == hash(copy.deepcopy(result.trace.steps[0].candidates))
    assert len(repr(result)) > LONG
    assert dataclasses.asdict(result)["text"] == result.text
    assert (
        TypeAdapter(RainResult).validate_json(TypeAdapter(RainResult).dump_json(result)).text == result.text
    )
    for step in result.trace.steps:
        assert step.candidates
        assert max(levels(step.candidates)) <= DEPTH


def chain(*lengths: int) -> Node:
    """A root with a chain of visited nodes for each length, all of which share their beginning."""
    root = Node()
    for number, length in enumerate(lengths):
        node = root
        for place in range(length):
            token = place if place < length - 1 else 1000 + number
            child = next((c for c in node.children if c.tokens == (token,)), None)
            if child is None:
                child = Node((token,), node.depth + 1)
                node.children.append(child)
            child.visits += 1
            child.value = float(number)
            node = child
    return root


def text(tokens: tuple[int, ...]) -> str:
    return "".join(f" {token}" for token in tokens)


def test_a_small_tree_is_recorded_as_it_is():
    (first,) = record(chain(2, 3), text, set())
    assert (first.text, first.visits, [c.text for c in first.children]) == (" 0", 2, [" 1000", " 1"])
    assert [c.text for c in first.children[1].children] == [" 1001"]


def test_below_the_last_level_each_draft_is_one_candidate():
    root = chain(LONG, LONG - 7)
    path = [node for node in root.walk() if node is not root][:LONG]  # the first draft
    found = record(root, text, set(path))
    whole = ""
    while len(found) == 1:
        whole += found[0].text
        assert found[0].chosen
        found = found[0].children
    assert [whole + draft.text for draft in found] == [
        text((*range(LONG - 1), 1000)),
        text((*range(LONG - 8), 1001)),
    ]
    assert [(draft.visits, draft.value, draft.chosen) for draft in found] == [(1, 0, True), (1, 1, False)]
    assert max(levels(record(root, text, set()))) == DEPTH


def test_a_tree_of_any_depth_can_be_walked_and_let_go():
    root = chain(20_000)
    assert [node.depth for node in root.walk()] == list(range(20_001))
    assert "children=[" not in repr(root)
