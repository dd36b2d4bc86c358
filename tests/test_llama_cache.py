"""The tree of texts over llama.cpp's sequences, with a memory that only keeps tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rain_llm.models.local.llama_cache import FullError, Place, SequenceCache
from rain_llm.models.local.llama_pass import Pass


class Cells:
    """Keeps the tokens of each sequence, as llama.cpp keeps their keys and values."""

    def __init__(self) -> None:
        self.texts: dict[int, list[int]] = {}
        self.calls: list[tuple[str, int]] = []

    def copy(self, source: int, target: int, end: int) -> None:
        assert not self.texts.get(target), "copied over another text"
        assert end <= len(self.texts.get(source, []))
        self.texts[target] = self.texts.get(source, [])[:end]

    def remove(self, sequence: int) -> None:
        self.texts.pop(sequence, None)

    def clear(self) -> None:
        self.texts.clear()

    def compute(self, forward: Pass) -> list[tuple[int, ...]]:
        """Compute a pass as llama_decode does; return the whole text up to each row."""
        found = []
        for token, position, owners in zip(forward.tokens, forward.positions, forward.owners, strict=True):
            texts = [self.texts.setdefault(owner, []) for owner in owners]
            assert all(len(text) == position for text in texts), "a gap, or an old cell"
            for text in texts:
                text.append(token)
            assert len({tuple(text) for text in texts}) == 1, "coupled sequences that have diverged"
            found.append(tuple(texts[0]))
        return found


def compute(cache: SequenceCache, cells: Cells, *texts: tuple[int, ...], logits: int = 1) -> int:
    """Compute texts in one pass; check what the wanted rows saw; return how many rows it took."""
    cache.begin()
    forward = Pass(cache)
    rows = [(text, forward.add(text, logits)) for text in texts]
    seen = cells.compute(forward)
    for text, wanted in rows:
        ends = range(len(text) - logits + 1, len(text) + 1)
        assert [seen[row] for row in wanted] == [text[:end] for end in ends]
    cache.commit(seen)  # what is read from a token's state depends on the whole text up to it
    cache.check_integrity()
    for text in texts:
        place = Place()
        assert cache.find(text, place) == len(text)
        start = len(text) // 2
        assert cache.read(place, start) == [text[: end + 1] for end in range(start, len(text))]
    alive = {sequence.number for sequence in cache._leaves.values()}
    assert {number for number, text in cells.texts.items() if text} == alive
    return len(forward.tokens)


def made(sequences: int = 8, cells: int = 64) -> tuple[SequenceCache, Cells]:
    memory = Cells()
    return SequenceCache(memory, sequences, cells), memory


def test_a_text_is_read_once_and_grows_in_place():
    cache, cells = made()
    assert compute(cache, cells, (1, 2, 3)) == 3
    assert compute(cache, cells, (1, 2, 3, 4)) == 1
    assert len(cells.texts) == 1
    assert len(cache) == 4


def test_a_branch_shares_its_prefix():
    cache, cells = made()
    compute(cache, cells, (1, 2, 3, 4))
    assert compute(cache, cells, (1, 2, 9)) == 1
    assert compute(cache, cells, (1, 2, 9, 8), (1, 2, 7), (1, 5)) == 3
    assert len(cache) == 8


def test_a_rewind_computes_the_last_token_once_more_and_keeps_what_follows():
    cache, cells = made()
    compute(cache, cells, (1, 2, 3, 4))
    assert compute(cache, cells, (1, 2)) == 1
    assert compute(cache, cells, (1, 2, 3, 4, 5)) == 1
    assert len(cells.texts) == 1


def test_texts_of_one_pass_share_rows_that_are_not_computed_yet():
    cache, cells = made()
    assert compute(cache, cells, (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4, 6), (1, 2, 3)) == 6
    assert len(cache) == 6


def test_the_same_text_twice_in_a_pass_is_computed_once():
    cache, cells = made()
    assert compute(cache, cells, (1, 2, 3), (1, 2, 3), logits=2) == 3


def test_what_was_not_used_for_longest_goes_first():
    cache, cells = made(cells=6)
    compute(cache, cells, (1, 2, 3))
    compute(cache, cells, (5, 6, 7))
    compute(cache, cells, (1, 2, 3, 4))  # makes room by the other text
    assert len(cache) == 4
    assert cache.evictions == 3
    assert cache.youngest == 1
    assert compute(cache, cells, (1, 2, 3, 4, 5)) == 1


def test_sequences_run_out_before_cells():
    cache, cells = made(sequences=2)
    for token in range(5):
        compute(cache, cells, (1, 2, token + 10))
    assert len(cache._leaves) == 2
    assert cache.youngest > 1000  # more cells would not have kept it
    assert compute(cache, cells, (1, 2, 14, 3)) == 1  # the latest is still there


@pytest.mark.parametrize(("sequences", "room", "lacking"), [(2, 64, "sequences"), (8, 5, "cells")])
def test_what_a_pass_needs_is_not_evicted(sequences: int, room: int, lacking: str):
    cache, cells = made(sequences, room)
    compute(cache, cells, (1, 2))
    cache.begin()
    forward = Pass(cache)
    forward.add((1, 2, 3))
    forward.add((1, 2, 4))
    with pytest.raises(FullError) as full:
        forward.add((1, 2, 5, 6))
    assert full.value.lacking == lacking
    cells.compute(forward)
    cache.commit()
    cache.check_integrity()


def test_a_place_outlives_whatever_happens_to_the_tree():
    cache, cells = made()
    cache.begin()
    place = Place()
    forward = Pass(cache)
    forward.add((1, 2, 3, 4), 1, place)
    cache.commit(cells.compute(forward))
    compute(cache, cells, (1, 2, 9))  # splits the node
    cache.begin()
    assert cache.find((1, 2, 3, 4, 5), place) == 4
    cache.clear()
    cache.begin()
    assert cache.find((1, 2, 3, 4, 5), place) == 0


TEXT = st.lists(st.integers(1, 3), min_size=1, max_size=9).map(tuple)


def test_a_place_in_an_empty_tree_is_of_no_use_once_that_is_cleared():
    cache, cells = made()
    cache.begin()
    place = Place()
    assert cache.find((1, 2), place) == 0
    cache.clear()
    cache.begin()
    forward = Pass(cache)
    forward.add((1, 2), place=place)
    cells.compute(forward)
    cache.commit()
    cache.check_integrity()
    assert cache.find((1, 2), Place()) == 2


@given(passes=st.lists(st.one_of(st.lists(TEXT, min_size=1, max_size=3), st.none()), max_size=12))
def test_every_row_sees_its_own_text_whatever_was_computed_before(
    passes: list[list[tuple[int, ...]] | None],
):
    cache, cells = made(sequences=7, cells=32)
    for texts in passes:
        if texts is None:
            cache.clear()
            cache.check_integrity()
        else:
            compute(cache, cells, *texts)
