"""The prefix cache of llama.cpp: a tree of texts over its sequences.

llama.cpp stores each token's keys and values in a *cell*. A cell belongs to one or more numbered *sequences*,
and a row of a pass attends to the cells of its own sequence. To branch, the cells of a prefix are given to
another sequence as well, without copying anything; to free a sequence's own cells, they are taken from it.

Here, each leaf of a tree of texts owns one sequence, which covers its text from the beginning. Texts share
the nodes, and so the cells, of their common prefix. When cells or sequences run out, the leaves that were not
used for longest go first.

Rules:

* :meth:`SequenceCache.begin` opens a pass; leaves used from then on stay until the next ``begin``.
* :meth:`SequenceCache.open` prepares a sequence for new rows. If it raises :class:`FullError`, nothing has
  changed for that text.
* :meth:`SequenceCache.commit` ends the pass once its rows are computed; :meth:`SequenceCache.clear` if they
  are not.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from rain_llm.types import TokenIds

Numbers: TypeAlias = Items[float]
"""What was read from one token's hidden state: a number for each reading."""


class Memory(Protocol):
    """Which cells belong to which sequence. Positions are counted from 0."""

    def copy(self, source: int, target: int, end: int) -> None:
        """Give the first ``end`` cells of ``source`` to the empty sequence ``target`` as well."""
        ...

    def remove(self, sequence: int) -> None:
        """Take all cells from a sequence; those of no other sequence become free."""
        ...

    def clear(self) -> None:
        """Free all cells."""
        ...


class FullError(Exception):
    """Everything in the cache is needed by the pass that is being put together.

    Args:
        lacking: what ran out, ``cells`` or ``sequences``.
    """

    def __init__(self, lacking: str) -> None:
        super().__init__(f"no {lacking} left")
        self.lacking = lacking


class Sequence:
    """One of llama.cpp's sequences.

    Attributes:
        number: its number in llama.cpp.
        stored: how many of its first cells are computed.
        rows: rows of the current pass that compute the cells after these, in order.
        used: pass of its last use.
        leaf: the node at which it ends; None: its cells are needed for one pass only.
    """

    __slots__ = ("leaf", "number", "rows", "stored", "used")

    def __init__(self, number: int, used: int) -> None:
        self.number = number
        self.stored = 0
        self.rows: list[int] = []
        self.used = used
        self.leaf: Node | None = None


class Node:
    """A run of tokens after those of its parent; a leaf has a sequence, the other nodes have children."""

    __slots__ = ("alive", "children", "parent", "read", "sequence", "start", "tokens")

    def __init__(self, parent: Node | None, start: int, tokens: list[int], read: list[Numbers | int]) -> None:
        self.parent = parent
        self.start = start  # tokens before it
        self.tokens = tokens
        self.read = read  # what was read from each token's hidden state; until it is computed, its row
        self.children: dict[int, Node] = {}  # by first token
        self.sequence: Sequence | None = None
        self.alive = True

    @property
    def end(self) -> int:
        """Return how many tokens the text up to this node has."""
        return self.start + len(self.tokens)


@dataclass(slots=True)
class Place:
    """How far a text was found in the tree; it stays usable, whatever happens to the tree."""

    node: Node | None = None
    length: int = 0


@dataclass
class SequenceCache:
    """A tree of cached texts.

    Args:
        memory: llama.cpp's.
        sequences: how many sequences there are, numbered from 0.
        cells: how many cells there are.

    Attributes:
        evictions: tokens evicted so far.
        youngest: age in passes of the youngest sequence that the last pass evicted for its cells: small if
            the cache is too small for the work at hand.
    """

    memory: Memory
    sequences: int
    cells: int
    evictions: int = 0
    youngest: int = 1 << 30
    _root: Node = field(default_factory=lambda: Node(None, 0, [], []))
    _leaves: dict[int, Sequence] = field(default_factory=dict)
    _passing: list[Sequence] = field(default_factory=list)  # those with rows in the current pass
    _grown: list[Node] = field(default_factory=list)  # nodes with rows in the current pass
    _free: list[int] = field(default_factory=list)
    _stored: int = 0  # tokens in the tree
    _borrowed: int = 0  # cells of sequences without a leaf
    _clock: int = 0

    def __post_init__(self) -> None:
        self._free = list(reversed(range(self.sequences)))

    def __len__(self) -> int:
        return self._stored

    def begin(self) -> None:
        """Open a pass."""
        self._clock += 1
        self.youngest = 1 << 30

    def find(self, tokens: TokenIds, place: Place) -> int:
        """Return how many first tokens of a text are cached or computed in this pass, which keeps them.

        Args:
            tokens: the text.
            place: an earlier result for the same text or a prefix of it, which is updated.
        """
        node, length = place.node, place.length
        if node is None or not node.alive:
            node, length = self._root, 0
        while length < node.start or (length == node.start and node.parent is not None):
            assert node.parent is not None
            node = node.parent  # the node was split
        while length < len(tokens):
            if length == node.end:
                child = node.children.get(tokens[length])
                if child is None:
                    break
                node = child
            run = node.tokens[length - node.start : length - node.start + len(tokens) - length]
            same = _common(run, tokens[length : length + len(run)])
            length += same
            if same < len(run):
                break
        place.node, place.length = node, length
        if length:
            _cover(node).used = self._clock
        return length

    def open(self, tokens: TokenIds, start: int, place: Place, row: int = 0) -> Sequence:
        """Return a sequence that covers ``tokens[:start]``, for new rows that compute the rest.

        If more than ``start`` tokens are cached already, the rows compute them once more, for this pass only.

        Args:
            tokens: the text.
            start: at most as many tokens as ``find`` returned.
            place: where ``find`` found the text.
            row: the first of the new rows; the others follow it.

        Raises:
            FullError: there is no room for the rows or for another sequence.
        """
        node = place.node
        assert node is not None
        known, new = place.length, len(tokens) - start
        while self._stored + self._borrowed + new > self.cells:
            self._evict("cells")
        own = node.sequence
        if start == known and known and own is not None and known == node.end:
            node.tokens.extend(tokens[start:])  # a leaf grows
            node.read.extend(range(row, row + new))
            self._grown.append(node)
        else:
            own = self._branch(node, start)
            if start < known:
                self._borrowed += new
            else:
                self._grow(node, known, tokens[start:], own, row)
        if start == known:
            self._stored += new
            place.node, place.length = own.leaf, len(tokens)
        own.used = self._clock
        if own not in self._passing:
            self._passing.append(own)
        return own

    def rows(self, place: Place, start: int, end: int) -> list[int]:
        """Return the rows of this pass that compute positions ``start`` to ``end`` of a text, if any."""
        assert place.node is not None
        cover = _cover(place.node)
        return cover.rows[start - cover.stored : end - cover.stored] if start >= cover.stored else []

    def read(self, place: Place, start: int) -> list[Numbers]:
        """Return what was read from the tokens of a text after the first ``start`` ones, between two passes.

        Args:
            place: where ``find`` found the complete text.
            start: tokens to leave out.
        """
        node, end = place.node, place.length
        found: list[Any] = []
        while end > start:
            assert node is not None  # the root starts at 0
            first = max(0, start - node.start)
            found[:0] = node.read[first : end - node.start]
            end, node = node.start, node.parent
        return found

    def commit(self, numbers: Items[Numbers] = ()) -> None:
        """End the pass: all rows are computed.

        Args:
            numbers: what was read from the hidden state of each row; (): nothing is read.
        """
        for node in self._grown:
            last = len(node.read)
            while last and isinstance(row := node.read[last - 1], int):
                last -= 1
                node.read[last] = numbers[row] if numbers else ()
        self._grown.clear()
        for sequence in self._passing:
            sequence.stored += len(sequence.rows)
            sequence.rows.clear()
            if sequence.leaf is None:
                self.memory.remove(sequence.number)
                self._free.append(sequence.number)
        self._passing.clear()
        self._borrowed = 0

    def clear(self) -> None:
        """Forget all texts, and what the current pass was going to compute."""
        self.memory.clear()
        for sequence in self._leaves.values():
            _dead(sequence.leaf)
        self._root.alive = False  # without leaves, too: a place may point to it
        self._root = Node(None, 0, [], [])
        self._leaves.clear()
        self._passing.clear()
        self._grown.clear()
        self._free = list(reversed(range(self.sequences)))
        self._stored = self._borrowed = 0

    def _branch(self, node: Node, start: int) -> Sequence:
        """Return a new sequence that covers the first ``start`` tokens of a node's text."""
        while not self._free:
            self._evict("sequences")
        sequence = Sequence(self._free.pop(), self._clock)
        if start:
            cover = _cover(node)
            sequence.stored = min(start, cover.stored)
            self.memory.copy(cover.number, sequence.number, sequence.stored)
            # Rows that compute the rest of the prefix in this pass belong to both.
            sequence.rows = cover.rows[: start - sequence.stored]
        return sequence

    def _grow(self, node: Node, known: int, tokens: Items[int], sequence: Sequence, row: int) -> None:
        """Add a leaf for ``sequence``, after the first ``known`` tokens of a node's text."""
        if known < node.end:
            size = known - node.start
            upper = Node(node.parent, node.start, node.tokens[:size], node.read[:size])
            self._grown.append(upper)  # it may have rows of this pass
            assert node.parent is not None
            node.parent.children[upper.tokens[0]] = upper
            node.tokens, node.read = node.tokens[size:], node.read[size:]
            node.parent, node.start = upper, known
            upper.children[node.tokens[0]] = node
            node = upper
        leaf = Node(node, known, list(tokens), list(range(row, row + len(tokens))))
        self._grown.append(leaf)
        node.children[tokens[0]] = leaf
        leaf.sequence, sequence.leaf = sequence, leaf
        self._leaves[sequence.number] = sequence

    def _evict(self, lacking: str) -> None:
        """Free the sequence that was not used for longest, because there are no cells or sequences left.

        Raises:
            FullError: the current pass needs all of them.
        """
        oldest = min(self._leaves.values(), key=lambda sequence: sequence.used, default=None)
        if oldest is None or oldest.used == self._clock:
            raise FullError(lacking)
        if lacking == "cells":  # more cells are no use where sequences ran out
            self.youngest = min(self.youngest, self._clock - oldest.used)
        before = self._stored
        del self._leaves[oldest.number]
        self.memory.remove(oldest.number)
        self._free.append(oldest.number)
        node = oldest.leaf
        while node is not None and node.parent is not None and not node.children:
            node.alive = False
            del node.parent.children[node.tokens[0]]
            self._stored -= len(node.tokens)
            node = node.parent
        self.evictions += before - self._stored

    def check_integrity(self) -> None:
        """Raise RuntimeError unless tree, leaves and free sequences are consistent, between two passes."""
        found: dict[int, Sequence] = {}
        tokens, nodes = 0, [self._root]
        while nodes:
            node = nodes.pop()
            tokens += len(node.tokens)
            if len(node.read) != len(node.tokens) or any(isinstance(read, int) for read in node.read):
                raise RuntimeError(f"the node at {node.start} does not match what was read from it")
            nodes.extend(node.children.values())
            for first, child in node.children.items():
                if child.parent is not node or child.start != node.end or child.tokens[0] != first:
                    raise RuntimeError(f"the node at {child.start} does not match its place")
            if node.sequence is not None:
                found[node.sequence.number] = node.sequence
                if node.children or node.sequence.leaf is not node or node.sequence.stored != node.end:
                    raise RuntimeError(f"sequence {node.sequence.number} does not match its leaf")
            elif not node.children and node is not self._root:
                raise RuntimeError(f"the leaf at {node.start} has no sequence")
        if found != self._leaves or tokens != self._stored or self._borrowed or self._passing:
            raise RuntimeError("the tree and its counts do not match")
        if sorted([*found, *self._free]) != list(range(self.sequences)):
            raise RuntimeError("a sequence is lost, or used twice")


def _cover(node: Node) -> Sequence:
    """Return a sequence that covers a node's text."""
    while node.sequence is None:
        node = next(iter(node.children.values()))
    return node.sequence


def _dead(node: Node | None) -> None:
    while node is not None:
        node.alive = False
        node = node.parent


def _common(run: list[int], tokens: TokenIds) -> int:
    """Return how many first tokens of two runs of one length are the same."""
    if run == list(tokens):
        return len(run)
    return next(i for i, (one, other) in enumerate(zip(run, tokens, strict=True)) if one != other)
