"""Choose labelled answers by whole pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rain_llm.doctor.items import Item
from rain_llm.errors import SettingsError

MOST_READ = 240
"""Included answers that are read where no probe is written; then all are."""


def subset(items: Sequence[Item], most: int | None, seed: int) -> list[Item]:
    """Return at most about ``most`` items: whole pairs, drawn evenly from all sources; None: all."""
    if most is None or len(items) <= most:
        return list(items)
    rng = np.random.default_rng(seed)
    pairs: dict[tuple[str, str], list[int]] = {}
    for place, item in enumerate(items):
        pairs.setdefault((item.source, item.pair), []).append(place)
    kept: list[int] = []
    for number in rng.permutation(len(pairs)):
        if len(kept) < most:
            kept += list(pairs.values())[number]
    return [items[place] for place in sorted(kept)]


def split(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item]]:
    """Split the items into two halves by pairs, alternating among pairs with the same labels.

    Raises:
        SettingsError: a half would have no good or no bad complete answers.
    """
    pairs: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        pairs.setdefault((item.source, item.pair), []).append(item)
    alike: dict[tuple[bool, ...], list[list[Item]]] = {}
    for pair in pairs.values():
        alike.setdefault(tuple(sorted(item.good for item in pair if not item.cut)), []).append(pair)
    rng = np.random.default_rng(seed)
    halves: tuple[list[Item], list[Item]] = ([], [])
    turn = 0  # continues over all kinds, so that the halves of odd kinds balance
    for kind in sorted(alike):
        for place in rng.permutation(len(alike[kind])):
            halves[turn % 2].extend(alike[kind][place])
            turn += 1
    for half in halves:
        if {item.good for item in half if not item.cut} != {True, False}:
            raise SettingsError(
                f"the labelled answers are {len(pairs)} pairs that cannot be halved into two sets with good "
                "and bad answers: use the same 'pair' only for answers to the same query"
            )
    return halves
