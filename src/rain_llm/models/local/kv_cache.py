"""The prefix cache: keys and values of each token, shared by all texts with the same prefix.

The cache is a prefix tree of tokens. A token after a given prefix has one *slot*: a row in the keys and
values of every layer. A branch adds another token after a slot; a rewind needs no operation. When the memory
budget is reached, the least recently used slots are evicted first.

Rules:

* :meth:`KVCache.begin` opens a forward pass; slots used from then on are not evicted until the next
  ``begin``.
* :meth:`KVCache.find` and :meth:`KVCache.insert` mark slots as used. ``insert`` may evict others. It exceeds
  the budget only if the current forward pass alone needs more.
* :meth:`KVCache.abandon` removes what the current pass inserted: call it if the pass failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rain_llm.types import TokenIds

Slots = NDArray[np.int64]

_ROOT = -1
_AT_ONCE = 16384  # minimum slots to reserve; growing in small steps fragments the process's memory


@dataclass
class Path:
    """The slots of a text or its beginning, which stay valid within one epoch."""

    slots: Slots = field(default_factory=lambda: np.empty(0, np.int64))
    epoch: int = -1


class KVCache:
    """A prefix tree of token slots, with one tensor of keys and one of values (an *arena*) per layer.

    Args:
        max_bytes: budget for the keys and values of all layers together, in bytes.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.evictions = 0  # tokens evicted so far
        self.read: dict[int, Sequence[float]] = {}  # by slot: what was read from the token's hidden state
        self.epoch = 0  # increases when slots are removed or moved: earlier paths are then invalid
        self._keys: list[torch.Tensor] = []  # per layer: [slots, key heads, head size]
        self._values: list[torch.Tensor] = []
        self._children: dict[tuple[int, int], int] = {}  # (parent slot, token) -> slot
        self._token: NDArray[np.int64] = np.empty(0, np.int64)
        self._parent: NDArray[np.int64] = np.empty(0, np.int64)
        self._used: NDArray[np.int64] = np.empty(0, np.int64)  # pass of the last use; 0: free
        self._free: list[int] = []
        self._inserted: list[int] = []  # by the current forward pass
        self._clock = 0

    # -- the tree ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open a forward pass; free the memory that only the last pass needed beyond the budget."""
        if self.bytes > self.max_bytes:
            self._shrink()
        self._clock += 1
        self._inserted.clear()

    def find(self, tokens: TokenIds, path: Path | None = None) -> Slots:
        """Return the slots of the longest cached prefix of ``tokens``, and mark them as used.

        Args:
            tokens: the text.
            path: an earlier result for this text or a prefix of it, which is updated.
        """
        path = path or Path()
        known = path.slots if path.epoch == self.epoch else path.slots[:0]
        more = []
        slot = int(known[-1]) if len(known) else _ROOT
        for token in tokens[len(known) :]:
            child = self._children.get((slot, token))
            if child is None:
                break
            more.append(child)
            slot = child
        path.slots = np.concatenate([known, np.array(more, np.int64)]) if more else known
        path.epoch = self.epoch
        self._used[path.slots] = self._clock
        return path.slots

    def insert(self, parent: int, token: int) -> int:
        """Assign a slot to ``token`` after the slot ``parent`` (-1: at the start)."""
        if not self._free:
            self._make_room()
        slot = self._free.pop()
        self._children[parent, token] = slot
        self._token[slot], self._parent[slot], self._used[slot] = token, parent, self._clock
        self._inserted.append(slot)
        return slot

    def abandon(self) -> None:
        """Remove what the current forward pass inserted: its keys and values were not all written."""
        self._forget(np.array(self._inserted, np.int64))
        self._inserted.clear()

    def clear(self) -> None:
        """Remove all tokens; the arenas are kept and their slots reused from the first."""
        self._forget(np.array(list(self._children.values()), np.int64))
        self._free = list(reversed(range(len(self._used))))

    # -- keys and values -----------------------------------------------------------------------

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values of one layer, both of shape [tokens, heads, size], in the given slots."""
        if layer == len(self._keys):  # the first forward pass determines each layer's shape
            capacity = len(self._used)
            self._keys.append(_reserve(keys, capacity))
            self._values.append(_reserve(values, capacity))
        for arenas, rows in ((self._keys, keys), (self._values, values)):
            arena = arenas[layer]
            if len(arena) < len(self._used):
                grown = _reserve(arena, len(self._used))
                grown[: len(arena)] = arena
                arenas[layer] = arena = grown
            arena.index_copy_(0, slots, rows)

    def gather(self, layer: int, slots: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of one layer, both [slots, heads, size]; for a slice, without a copy."""
        if isinstance(slots, slice):
            return self._keys[layer][slots], self._values[layer][slots]
        return self._keys[layer].index_select(0, slots), self._values[layer].index_select(0, slots)

    # -- memory --------------------------------------------------------------------------------

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of one slot over all layers; 0 before the first forward pass."""
        arenas = self._keys + self._values
        return sum(arena.shape[1:].numel() * arena.element_size() for arena in arenas)

    @property
    def bytes(self) -> int:
        """Return the bytes of all arenas; on a CPU, slots that were never used take no memory yet."""
        return sum(arena.numel() * arena.element_size() for arena in self._keys + self._values)

    def __len__(self) -> int:
        return len(self._children)

    @property
    def _allowed(self) -> int:
        """Return the number of slots within the budget; unlimited before the first pass shows their size."""
        cost = self.bytes_per_token
        return self.max_bytes // cost if cost else 1 << 62

    def _make_room(self) -> None:
        """Grow within the budget; otherwise evict the older half; if nothing can be evicted, grow anyway."""
        capacity, allowed = len(self._used), self._allowed
        if capacity < allowed:
            least = _AT_ONCE if self.bytes_per_token else 16
            self._grow(min(max(least, 2 * capacity), allowed))
            return
        old = np.unique(self._used[(self._used > 0) & (self._used < self._clock)])
        if len(old):
            # A prefix is used whenever anything after it is. So the slots last used up to some pass
            # include all slots after them, and the tree stays consistent.
            stale = np.flatnonzero((self._used > 0) & (self._used <= old[len(old) // 2]))
            self.evictions += len(stale)
            self._forget(stale)
        else:
            self._grow(capacity + max(16, capacity // 4))

    def _shrink(self) -> None:
        """Reduce the arenas to the slots that the last pass used, if these are within the budget."""
        kept = np.flatnonzero(self._used == self._clock)
        if len(kept) > self._allowed:  # the next pass may need the same slots
            return
        self.evictions += len(self._children) - len(kept)
        place = {_ROOT: _ROOT} | {int(slot): i for i, slot in enumerate(kept)}
        index = torch.from_numpy(kept)
        for arenas in (self._keys, self._values):
            arenas[:] = [arena.index_select(0, index.to(arena.device)) for arena in arenas]
        self._token, self._used = self._token[kept], self._used[kept]
        self._parent = np.array([place[int(parent)] for parent in self._parent[kept]], np.int64)
        links = zip(self._parent.tolist(), self._token.tolist(), strict=True)
        self._children = {link: slot for slot, link in enumerate(links)}
        self.read = {place[slot]: numbers for slot, numbers in self.read.items() if slot in place}
        self._free.clear()
        self.epoch += 1

    def _grow(self, capacity: int) -> None:
        before = len(self._used)
        more = np.zeros(capacity - before, np.int64)
        self._token = np.concatenate([self._token, more])
        self._parent = np.concatenate([self._parent, more])
        self._used = np.concatenate([self._used, more])
        self._free.extend(range(capacity - 1, before - 1, -1))

    def _forget(self, slots: Slots) -> None:
        if len(slots):
            self.epoch += 1
        for slot in slots.tolist():
            del self._children[int(self._parent[slot]), int(self._token[slot])]
        self._used[slots] = 0
        self._free.extend(reversed(slots.tolist()))

    def check_integrity(self) -> None:
        """Raise RuntimeError unless tree, slots and free list are consistent (for tests and debugging)."""
        slots = list(self._children.values())
        if len(set(slots)) != len(slots):
            raise RuntimeError("two tokens share a slot")
        if set(slots) & set(self._free) or len(slots) + len(self._free) != len(self._used):
            raise RuntimeError("slots in use and free slots do not add up")
        for (parent, token), slot in self._children.items():
            if self._parent[slot] != parent or self._token[slot] != token or self._used[slot] == 0:
                raise RuntimeError(f"slot {slot} does not match its place in the tree")
            if parent != _ROOT and not self._used[parent] >= self._used[slot]:
                raise RuntimeError(f"slot {slot} follows slot {parent}, which is older or free")


def _reserve(like: torch.Tensor, capacity: int) -> torch.Tensor:
    """Allocate zeros for ``capacity`` slots like those of ``like``, which has shape [slots, heads, size]."""
    shape = (capacity, *like.shape[1:])
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    # torch writes its zeros; the memory of numpy's zeros is allocated page by page, on first use.
    size = capacity * like.shape[1:].numel() * like.element_size()
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)
