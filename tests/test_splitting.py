"""Sentences as people read them, and every word of a text in exactly one of them."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm.judging.splitting import split
from tests.examples import examples


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split(text)]


@pytest.mark.parametrize(
    "whole",
    [
        ["The ferry leaves at nine.", "It takes an hour!", "Does it?", "Yes…", "It does"],
        ["Dr. Smith pays $3.50, e.g. in the U.S. Army.", "See example.com for v1.2.3."],
        ["No.", "It is not.", "See No. 5, p. 7.", "That was on Dec. 24."],
        ['"Yes!" he said.', "(See below.) and so on.", 'She said "no."', "Well... maybe."],
        ["J. R. Smith wrote it.", "All of it?", "all lowercase.", "no capitals."],
        ["Call `a. B` now.", "It works."],
        ["フェリーは九時に出ます。", "「はい。」と言った。", "一時間かかります。"],
        ["渡轮九点出发。", "需要一个小时\uff01", "是吗\uff1f"],
        ["वह नौ बजे जाती है।", "एक घंटा।"],
    ],
)
def test_prose(whole: list[str]) -> None:
    gap = "" if whole[0][-1] == "。" else " "
    assert sentences(gap.join(whole)) == whole


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("Bring:\n\n- a coat. It rains.\n- tea", ["Bring:", "- a coat.", "It rains.", "- tea"]),
        ("1. First\n2. Second. Third\n(c) Last", ["1. First", "2. Second.", "Third", "(c) Last"]),
        ("• one\n• two", ["• one", "• two"]),
        ("The ferry leaves\nat nine. It is\nlate.", ["The ferry leaves\nat nine.", "It is\nlate."]),
        ("Roses are red\nViolets are blue", ["Roses are red", "Violets are blue"]),
        ("# Ferry\nIt leaves.", ["# Ferry", "It leaves."]),
        ("| a. b | c |\n|---|---|\n| d | e |", ["| a. b | c |\n|---|---|", "| d | e |"]),
        ("Run:\n```py\na = 1. \n\nB\n```\nDone.", ["Run:", "```py\na = 1. \n\nB\n```", "Done."]),
        ("~~~\nnever. Closed", ["~~~\nnever. Closed"]),
        ("---\nHello. 🎉\n***", ["---\nHello. 🎉\n***"]),
        ("a\r\nB\u2028C", ["a", "B", "C"]),
        ("...", ["..."]),
        (" \n\t ", []),
        ("", []),
    ],
)
def test_layout(text: str, whole: list[str]) -> None:
    assert sentences(text) == whole


PARTS = st.sampled_from([*"aB1.!?…。\uff01`~|#>-*(\"'」\n\r\u2028 \t", "```", "e.g.", "Dr.", "No."])


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.lists(PARTS, max_size=40).map("".join) | st.text(max_size=40))
def test_every_character_that_is_no_space_is_in_one_sentence(text: str) -> None:
    spans = list(split(text))
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(text[a:b] == text[a:b].strip() for a, b in spans)
    if len(spans) > 1:
        assert all(any(c.isalnum() or c == "_" for c in text[a:b]) for a, b in spans)


@pytest.mark.parametrize(
    "part", ["!", "`", ".)", "a. ", "`a`. ", "`a. ", "*", "(a", "-  ", "\n", "```\n", "A.A"]
)
def test_no_text_takes_long(part: str) -> None:
    begun = time.process_time()
    for _ in split(part * 20_000):
        pass
    assert time.process_time() - begun < 2
