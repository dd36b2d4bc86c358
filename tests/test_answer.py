"""The answer as it grows: what is shown, what is held back, where it stops."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rain_llm import BlindJudgeWarning, Rain, RainSettings
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.search.answer import Answer
from rain_llm.types import TokenIds
from tests.test_search import GOOD


def decode(tokens: TokenIds) -> str:
    """A tokenizer whose tokens are bytes: any character may be split between two commitments."""
    return bytes(tokens).decode("utf-8", errors="replace")


def tokens(text: str) -> TokenIds:
    return tuple(text.encode())


def answer(*stop: str, prompt: str = "Well,") -> Answer:
    return Answer(decode, tokens(prompt), stop, encode=tokens)


def test_text_is_shown_as_it_is_accepted():
    a = answer()
    assert [a.extend(tokens(" a")), a.extend(tokens("b c")), a.finish()] == [" a", "b c", ""]
    assert a.shown == " ab c"
    assert a.tokens == tokens(" ab c")


def test_what_may_begin_a_stop_string_is_held_back():
    a = answer("\nHuman:")
    shown = [a.extend(tokens(piece)) for piece in ("Hi.", "\n", "Hum", "ility", "\nHuman", ": no")]
    assert shown == ["Hi.", "", "", "\nHumility", "", ""]
    assert a.read() == ("Hi.\nHumility", True)
    assert a.finish() == ""
    assert a.shown == "Hi.\nHumility"


def test_what_began_a_stop_string_is_shown_when_the_answer_ends_otherwise():
    a = answer("END", "!!")
    assert a.extend(tokens("The EN")) == "The "
    assert a.finish() == "EN"


def test_the_longest_beginning_is_held_back():
    a = answer("aab", "b", "ac")
    assert a.extend(tokens("xaa")) == "x"  # 'aa' may become 'aab', 'a' 'ac'
    assert a.extend(tokens("a")) == "a"  # 'aaa': 'aa' is still a beginning
    assert a.extend(tokens("b")) == ""
    assert a.read() == ("xa", True)


def test_the_answer_ends_before_the_first_of_several_stop_strings():
    a = answer("two", "one")
    assert a.read(tokens("zero one two")) == ("zero ", True)
    assert a.read(tokens("zero two one")) == ("zero ", True)
    assert a.read(tokens("zero")) == ("zero", False)


def test_a_stop_string_at_the_very_beginning_leaves_nothing():
    a = answer("\n")
    assert a.extend(tokens("\nmore")) == ""
    assert a.finish() == a.shown == ""


def test_reading_ahead_changes_nothing():
    a = answer("stop")
    a.extend(tokens("one"))
    assert a.read(tokens(" stop")) == ("one ", True)
    assert a.read() == ("one", False)
    assert a.tokens == tokens("one")


def test_the_prompts_end_cannot_complete_a_stop_string():
    a = answer("Well, yes", "l, y", prompt="Well,")
    assert a.extend(tokens(" yes")) == " yes"
    assert a.read()[1] is False


def test_a_character_is_shown_when_all_its_bytes_are_there():
    a = answer()
    wave = tokens("👋")
    assert [a.extend((byte,)) for byte in wave] == ["", "", "", "👋"]
    assert a.extend(tokens("é")[:1]) == ""
    assert a.extend(tokens("é")[1:] + tokens("!")) == "é!"


@pytest.mark.parametrize("sign", ["é", "終", "👋"])
def test_a_character_that_is_never_finished_is_left_out(sign: str):
    for length in range(1, len(tokens(sign))):
        a = answer()
        assert a.extend(tokens("ab") + tokens(sign)[:length]) == "ab"
        assert a.read() == ("ab", False)
        assert a.finish() == ""
        assert a.shown == "ab"


def test_a_replacement_character_that_was_written_stays():
    a = answer()
    assert a.extend(tokens("ab\ufffd")) == "ab"
    assert a.read() == ("ab\ufffd", False)
    assert a.read(tokens("\ufffd")) == ("ab\ufffd\ufffd", False)
    assert a.read(tokens("👋")[:2]) == ("ab\ufffd", False)
    assert a.finish() == "\ufffd"
    assert a.extend(tokens("c")) == "c"
    assert a.shown == "ab\ufffdc"


PIECES = {0: b"a", 1: "👋".encode()[:2], 2: "👋".encode()[2:] + "終".encode()[:1], 3: "終".encode()[1:]}


def test_a_token_that_ends_one_character_and_begins_another_shows_the_first():
    def pieces(ids: TokenIds) -> str:
        return b"".join(PIECES[i] for i in ids).decode("utf-8", errors="replace")

    a = Answer(pieces, (0,), encode=lambda text: (0,) * len(text))
    assert [a.read((0, 1, 2, 3)[:n])[0] for n in range(5)] == ["", "a", "a", "a👋", "a👋終"]


def test_a_stop_string_of_many_bytes_is_found_across_pieces():
    a = answer("…終")
    shown = [a.extend((byte,)) for byte in tokens("x…終 never")[:7]]
    assert "".join(shown) == "x"
    assert a.read() == ("x", True)


def test_a_tokenizer_that_drops_a_texts_first_space_does_not_change_the_answer():
    words = {1: " Hello", 2: " there", 3: " you"}

    def drops_first_space(ids: TokenIds) -> str:
        return "".join(words[i] for i in ids).removeprefix(" ")

    a = Answer(drops_first_space, (1,), ())
    assert a.extend((2,)) == " there"
    assert a.extend((3,)) == " you"


@given(
    text=st.text(alphabet="ab c.é終👋\n", max_size=24),
    stop=st.lists(st.text(alphabet="abc é終\n", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 6), min_size=60, max_size=60),
)
def test_whatever_the_pieces_the_shown_text_is_the_answer(text: str, stop: list[str], cuts: list[int]):
    a = answer(*stop, prompt="終")
    rest = tokens(text)
    seen: TokenIds = ()
    shown = ""
    stopped = False
    for size in cuts:
        if not rest or stopped:
            break
        piece, rest = rest[:size], rest[size:]
        seen += piece
        shown += a.extend(piece)
        places = [decode(seen).find(s) for s in stop if s in decode(seen)]
        stopped = bool(places)
        expected = decode(seen)[: min(places)] if places else decode(seen)
        assert a.read() == (expected.rstrip("\ufffd"), stopped)
        assert expected.startswith(shown)
        assert "\ufffd" not in shown
    shown += a.finish()
    assert shown == a.shown == a.read()[0]
    if not stopped:
        assert shown == text


@pytest.mark.parametrize("stop", ["aaab", "abab", "aa"])
def test_a_stop_string_that_repeats_itself_is_found_token_by_token(stop: str):
    for text in ("aaaab", "ababab", "abaaab", "aabab"):
        a = answer(stop)
        shown = ""
        for token in tokens(text):
            shown += a.extend((token,))
            if a.read()[1]:
                break
        shown += a.finish()
        assert shown == (text[: text.index(stop)] if stop in text else text)


@pytest.mark.parametrize("way", ["plain", "generate", "stream", "budget"])
def test_no_answer_ends_within_a_character(way: str, tiny: TransformersModel):
    """A model of random bytes, cut off at every length: what is judged, streamed and returned is whole."""
    settings = RainSettings(
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        search={"iterations": 1, "max_model_tokens": 200 if way == "budget" else None},
        on_unsafe="best",
    )
    halves = 0
    for seed in range(12):
        drawing = {"max_new_tokens": 1 + seed % 6, "seed": seed, "temperature": 2.0}
        rain = Rain(settings.updated(generation=drawing), model=tiny)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BlindJudgeWarning)
            steps = list(rain.plain_stream("é") if way == "plain" else rain.stream("é"))
        result = steps[-1].result
        assert result is not None
        assert "".join(step.text for step in steps) == result.text
        tokens = tuple(token for step in steps for token in step.tokens)
        text = tiny.decode(tiny.encode("é") + tokens)[1:]
        halves += text != result.text
        assert text.startswith(result.text)
        assert not result.text.endswith("\ufffd") or tiny.encode("\ufffd") == tokens[-3:]
    assert halves
