"""The measure itself tells a linear time from a quadratic one."""

from __future__ import annotations

from tests.growth import grows_like_its_input


def test_what_reads_each_item_once_grows_like_its_input():
    assert grows_like_its_input(lambda size: sum(i % 7 for i in range(size)), 50_000)


def test_what_reads_each_pair_does_not():
    assert not grows_like_its_input(
        lambda size: sum((i * k) % 7 for i in range(size) for k in range(size)), 150
    )
