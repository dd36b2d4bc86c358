"""One pass of llama.cpp: the rows of a batch, and the cells that they attend to."""

from __future__ import annotations

from typing import Any

import numpy as np

from rain_llm.models.local.llama_cache import Place, SequenceCache
from rain_llm.models.local.numpy_rows import Floats
from rain_llm.models.local.watched import Watched
from rain_llm.requests import Read
from rain_llm.types import TokenIds


class Memory:
    """llama.cpp's memory of cells.

    Args:
        library: llama.cpp.
        memory: of its context.
        twin: difference between a sequence's number and that of its twin, which owns the same cells; 0: none.
            A model with a sliding window needs twins: llama.cpp overwrites cells before the window if only
            one sequence owns them, although a branch or a rewind makes them visible again.
    """

    def __init__(self, library: Any, memory: int, twin: int = 0) -> None:
        self._llama = library
        self._memory = memory
        self._twins = (0, twin) if twin else (0,)

    def owners(self, numbers: list[int]) -> list[int]:
        """Return all numbers of the sequences that own a row, with twins."""
        if len(self._twins) == 1:
            return numbers
        return [number + twin for number in numbers for twin in self._twins]

    def copy(self, source: int, target: int, end: int) -> None:
        """Give the first ``end`` cells of ``source`` to the empty sequence ``target`` as well."""
        if end:
            for twin in self._twins:
                self._llama.llama_memory_seq_cp(self._memory, source + twin, target + twin, 0, end)

    def remove(self, sequence: int) -> None:
        """Take all cells from a sequence; those of no other sequence become free."""
        for twin in self._twins:
            self._llama.llama_memory_seq_rm(self._memory, sequence + twin, -1, -1)

    def clear(self) -> None:
        """Free all cells."""
        self._llama.llama_memory_clear(self._memory, False)


class Pass:
    """One forward pass: the rows to compute, and the sequences that own their cells.

    Attributes:
        tokens: token of each row.
        positions: position of each row.
        owners: numbers of the sequences that own each row.
        outputs: rows whose logits are wanted, in order.
        states: hidden states of each row, [rows, layers, width]; None: they are not read.
    """

    def __init__(self, cache: SequenceCache, watched: Watched | None = None) -> None:
        self.cache = cache
        self._watched = watched or Watched()
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.owners: list[list[int]] = []
        self.outputs: dict[int, None] = {}
        self.states: Floats | None = None
        self._logits = _NONE
        self._places: dict[int, int] = {}

    def open_request(self) -> None:
        """Start a request; rows of all requests are alike here."""

    def place(self) -> Place:
        """Return a new place, at the beginning of the tree."""
        return Place()

    def find(self, tokens: TokenIds, place: Place) -> int:
        """Return how many tokens at the beginning of a text are cached."""
        return self.cache.find(tokens, place)

    def add(self, tokens: TokenIds, logits: int = 1, place: Place | None = None) -> list[int]:
        """Add a text to the pass; return the rows of its last ``logits`` tokens."""
        place = place or self.place()
        known = self.cache.find(tokens, place)
        start = min(known, len(tokens) - logits)
        if start == len(tokens):
            return []
        if known == len(tokens) and (rows := self.cache.rows(place, start, known)):
            self.outputs |= dict.fromkeys(rows)
            return rows
        sequence = self.cache.open(tokens, start, place, len(self.tokens))
        for row in sequence.rows:  # of another branch, with which it shares them
            if sequence.number not in self.owners[row]:
                self.owners[row].append(sequence.number)
        rows = list(range(len(self.tokens), len(self.tokens) + len(tokens) - start))
        self.tokens.extend(tokens[start:])
        self.positions.extend(range(start, len(tokens)))
        self.owners.extend([sequence.number] for _ in rows)
        sequence.rows.extend(rows)
        wanted = rows[len(rows) - logits :]
        self.outputs |= dict.fromkeys(wanted)
        return wanted

    def read(self, request: Read, place: Place) -> tuple[tuple[float, ...], ...]:
        """Return what was read from the tokens of a request, once the pass is computed."""
        return self._watched.chosen(request, self.cache.read(place, len(request.prefix)))

    def take(self, logits: list[Floats]) -> None:
        """Take the logits of ``outputs``, in the order of the rows: [some rows, vocabulary] in each part."""
        self._logits = logits[0] if len(logits) == 1 else np.concatenate(logits) if logits else _NONE
        self._places = {row: place for place, row in enumerate(sorted(self.outputs))}

    def of(self, rows: list[int]) -> Floats:
        """Return the logits of some rows, [rows, vocabulary]; those that lie side by side are not copied."""
        places = [self._places[row] for row in rows]
        if not places:
            return _NONE
        if places == list(range(places[0], places[0] + len(places))):
            return self._logits[places[0] : places[0] + len(places)]
        return self._logits[places]


_NONE: Floats = np.empty((0, 0), np.float32)
