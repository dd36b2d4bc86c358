"""Tree attention: one forward pass over many branches, in which each token attends to its own path.

A pass contains the new tokens of all branches of all requests as one flat row, without padding. Each token
has its position and attends only to the slots on its own path (a *tree mask*). Keys and values are stored in
the shared :class:`~rain_llm.models.local.kv_cache.KVCache`. transformers runs the network; only the attention
is replaced, through its attention interface.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rain_llm.errors import ModelNotSupportedError
from rain_llm.models.local.kv_cache import KVCache, Path, Slots
from rain_llm.models.local.watched import Watched
from rain_llm.requests import Read
from rain_llm.types import TokenIds

TREE_ATTENTION = "rain_tree"
"""Name of this attention in transformers."""

_HIDDEN = -1
# Cost of an attention call, in units of one gathered slot: groups share a call if the padding costs less
# than separate calls. Measured on a CPU; results do not depend on it.
_CALL_COST = 200.0
_ROW_COST = 0.15  # of one row's attention to one slot


@dataclass
class _Branch:
    """A path of slots, and its positions that are computed in this pass."""

    path: Slots
    computed: list[int]


@dataclass
class _Group:
    """Adjacent new tokens of the row that attend to one common set of slots."""

    start: int
    slots: Slots
    back: NDArray[np.int32]  # [new tokens, slots]: distance to the slot in positions; hidden: -1

    @property
    def rows(self) -> int:
        return len(self.back)


@dataclass
class _Batch:
    """Groups of similar shape, padded to one block for a single attention call."""

    groups: int
    height: int  # rows of a group
    rows: torch.Tensor | None  # [groups * height] indices into the flat row; None: the complete row
    slots: torch.Tensor | slice  # groups * width slots
    back: torch.Tensor  # [groups, height, width]
    deepest: int  # the largest distance in ``back``
    whole: bool  # nothing is hidden
    masks: dict[tuple[int | None, int], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, window: int | None, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """Return the additive attention mask, [groups, 1, repeats * height, width]; None: no mask.

        It is computed once per pass: all layers with the same window share it.
        """
        key = (window, repeats)
        if key not in self.masks:
            reach = self.deepest + 1 if window is None else window
            if self.whole and self.deepest < reach:
                self.masks[key] = None
            else:
                hidden = (self.back == _HIDDEN) | (self.back >= reach)
                mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
                mask.masked_fill_(hidden, -torch.inf)
                self.masks[key] = mask.repeat(1, repeats, 1)[:, None]
        return self.masks[key]


class Pass:
    """One forward pass: the tokens to compute, and the slots that they attend to.

    Attributes:
        tokens: token of each row.
        positions: position of each row.
        slots: cache slot of each row.
        windows: sliding windows that the layers used, known once the network has run.
        slot_index: ``slots`` as a tensor.
        batches: the attention calls.
        order: index of each row in the batches' concatenated output; None: they are in order.
    """

    def __init__(self, cache: KVCache, watched: Watched | None = None) -> None:
        self.cache = cache
        self._watched = watched or Watched()
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.windows: set[int | None] = set()
        self.slot_index = torch.empty(0)
        self.batches: list[_Batch] = []
        self.order: torch.Tensor | None = None
        self._row_of: dict[int, int] = {}  # slot -> row
        self._requests: list[list[_Branch]] = []

    def open_request(self) -> None:
        """Start a request: the branches added from now on may share one group."""
        self._requests.append([])

    def place(self) -> Path:
        """Return the place of an empty text."""
        return Path()

    def find(self, tokens: TokenIds, place: Path) -> int:
        """Return how many tokens at the beginning of a text are cached; ``place`` is updated."""
        return len(self.cache.find(tokens, place))

    def add(self, tokens: TokenIds, logits: int = 1, place: Path | None = None) -> list[int]:
        """Add a text to the pass; return the rows of its last ``logits`` tokens.

        Tokens that are cached are not computed again, except the last ``logits``, because logits are not
        cached. ``place`` is an earlier result for a prefix of ``tokens``, and is updated.
        """
        path = place or Path()
        slots = self.cache.find(tokens, path)
        known = len(slots)
        if known < len(tokens):
            new = []
            parent = int(slots[-1]) if known else -1
            for token in tokens[known:]:
                parent = self.cache.insert(parent, token)
                new.append(parent)
            slots = np.concatenate([slots, np.array(new, np.int64)])
            path.slots, path.epoch = slots, self.cache.epoch
        first = min(known, len(tokens) - logits)
        computed = []
        for position, slot in enumerate(slots[first:].tolist(), first):
            if slot not in self._row_of:
                self._row_of[slot] = len(self.tokens)
                self.tokens.append(tokens[position])
                self.positions.append(position)
                self.slots.append(slot)
                computed.append(position)
        if computed:
            self._requests[-1].append(_Branch(slots, computed))
        return [self._row_of[slot] for slot in slots[len(tokens) - logits :].tolist()]

    def read(self, request: Read, place: Path) -> tuple[tuple[float, ...], ...]:
        """Return what was read from the tokens of a request, once the pass is computed."""
        slots = place.slots[len(request.prefix) : len(request.prefix) + len(request.tokens)].tolist()
        return self._watched.chosen(request, [self.cache.read[slot] for slot in slots])

    def close(self, device: torch.device) -> None:
        """Compute which slots each group of tokens attends to, and which groups share a call."""
        groups: list[_Group] = []
        start = 0
        for branches in self._requests:
            if branches:
                groups.append(_group(start, branches))
                start += groups[-1].rows
        blocks = _blocks(groups)
        self.slot_index = torch.tensor(self.slots, device=device)
        self.batches = [_batch(block, start, device) for block in blocks]
        place = np.empty(start, np.int64)
        begin = 0
        for block in blocks:
            height = max(group.rows for group in block)
            for group in block:
                place[group.start : group.start + group.rows] = np.arange(begin, begin + group.rows)
                begin += height
        if not np.array_equal(place, np.arange(begin)):
            self.order = torch.from_numpy(place).to(device)


def _group(start: int, branches: list[_Branch]) -> _Group:
    """Build the group of one request: its branches share the slots of their common prefix."""
    if len(branches) == 1:
        slots = branches[0].path
    else:
        slots = np.unique(np.concatenate([branch.path for branch in branches]))
    rows = sum(len(branch.computed) for branch in branches)
    back = np.full((rows, len(slots)), _HIDDEN, np.int32)
    row = 0
    for branch in branches:
        columns = slice(None) if len(branches) == 1 else np.searchsorted(slots, branch.path)
        until = np.array(branch.computed, np.int32)[:, None]
        distance = until - np.arange(len(branch.path), dtype=np.int32)
        back[row : row + len(until), columns] = np.maximum(distance, _HIDDEN)
        row += len(until)
    return _Group(start, slots, back)


def _blocks(groups: list[_Group]) -> list[list[_Group]]:
    """Combine groups of similar shape, as long as the padding costs less than another call."""

    def cost(count: int, rows: int, slots: int) -> float:
        return _CALL_COST + count * slots * (1 + _ROW_COST * rows)

    blocks: list[list[_Group]] = []
    rows = slots = 0  # of the last block
    for group in sorted(groups, key=lambda group: (group.rows, len(group.slots))):
        tall, wide = max(rows, group.rows), max(slots, len(group.slots))
        apart = cost(len(blocks[-1]), rows, slots) if blocks else 0.0
        apart += cost(1, group.rows, len(group.slots))
        if blocks and cost(len(blocks[-1]) + 1, tall, wide) <= apart:
            blocks[-1].append(group)
            rows, slots = tall, wide
        else:
            blocks.append([group])
            rows, slots = group.rows, len(group.slots)
    for block in blocks:
        block.sort(key=lambda group: group.start)
    return blocks


def _batch(block: list[_Group], total: int, device: torch.device) -> _Batch:
    height = max(group.rows for group in block)
    width = max(len(group.slots) for group in block)
    # Padded slots are hidden copies of a group's own. Padded rows attend to everything, so that no row of
    # the softmax is empty; their output is not used.
    back = np.zeros((len(block), height, width), np.int32)
    slots = np.empty((len(block), width), np.int64)
    rows = np.empty((len(block), height), np.int64)
    for i, group in enumerate(block):
        count = len(group.slots)
        back[i, : group.rows, :count] = group.back
        back[i, : group.rows, count:] = _HIDDEN
        slots[i, :count], slots[i, count:] = group.slots, group.slots[0]
        rows[i] = group.start
        rows[i, : group.rows] += np.arange(group.rows)
    flat, first = slots.reshape(-1), int(slots[0, 0])
    one_run = bool((flat == np.arange(first, first + len(flat))).all())
    every_row = np.array_equal(rows.reshape(-1), np.arange(total))
    return _Batch(
        len(block),
        height,
        None if every_row else torch.from_numpy(rows.reshape(-1)).to(device),
        slice(first, first + len(flat)) if one_run else torch.from_numpy(flat).to(device),
        torch.from_numpy(back).to(device),
        int(back.max()),
        bool(back.min() >= 0),
    )


def _tree_attention(
    module: Any,  # the attention layer; torch types its attributes as tensors only
    query: torch.Tensor,  # [1, heads, tokens, size]
    key: torch.Tensor,  # [1, key heads, tokens, size]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    rain_pass: Pass | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of a flat row of tokens, each over its own path in the cache."""
    unknown = [
        name for name in ("softcap", "s_aux", "position_bias", "head_mask") if others.get(name) is not None
    ]
    if rain_pass is None or unknown:
        raise ModelNotSupportedError(
            f"{type(module).__name__} uses {unknown or 'attention that bypasses the cache'}, "
            "which cannot be rewound: use a Llama-, Qwen-, Mistral- or GPT-2-like model"
        )
    rain_pass.windows.add(sliding_window)
    cache, layer = rain_pass.cache, int(module.layer_idx)
    cache.write(layer, rain_pass.slot_index, key[0].transpose(0, 1), value[0].transpose(0, 1))
    heads, key_heads = query.shape[1], key.shape[1]
    repeats = heads // key_heads
    rows = query[0].transpose(0, 1)
    outputs = []
    for batch in rain_pass.batches:
        count, height = batch.groups, batch.height
        keys, values = (
            kept.view(count, -1, *kept.shape[1:]).transpose(1, 2) for kept in cache.gather(layer, batch.slots)
        )
        q = rows if batch.rows is None else rows.index_select(0, batch.rows)
        # Heads that share keys become more rows of one head, so that keys are not copied for each head.
        q = q.reshape(count, height, key_heads, repeats, -1).permute(0, 2, 3, 1, 4)
        out = torch.nn.functional.scaled_dot_product_attention(
            q.reshape(count, key_heads, repeats * height, -1),
            keys,
            values,
            batch.mask(sliding_window, repeats, query.dtype),
            scale=scaling,
        )
        out = out.reshape(count, key_heads, repeats, height, -1).permute(0, 3, 1, 2, 4)
        outputs.append(out.reshape(count * height, heads, -1))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if rain_pass.order is not None:
        output = output.index_select(0, rain_pass.order)
    return output[None], None


ALL_ATTENTION_FUNCTIONS.register(TREE_ATTENTION, _tree_attention)
