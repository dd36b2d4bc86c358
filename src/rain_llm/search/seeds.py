"""Seeds: every request's seed follows from where it is made, so its reply does not depend on when."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def seed_of(*numbers: int) -> int:
    """Return a seed of 62 bits that depends on all ``numbers`` (of 63 bits at most) and their order."""
    written = np.array(numbers, np.int64).tobytes()
    return int.from_bytes(blake2b(written, digest_size=8).digest(), "little") >> 2


PIECE = 16
"""Tokens of a request of unguarded generation."""


def plain_seed(origin: int, piece: int) -> int:
    """Return the seed of the request for a piece of unguarded generation, counted from 0."""
    rng = np.random.default_rng(origin)
    return [int(rng.integers(1 << 62)) for _ in range(piece + 1)][-1]
