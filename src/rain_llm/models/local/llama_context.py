"""A context of llama.cpp: the memory of its prefix cache, and the computation of a pass."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rain_llm.errors import ModelError
from rain_llm.models.local import llama_library as llama
from rain_llm.models.local.gguf_file import reason
from rain_llm.models.local.llama_pass import Memory, Pass
from rain_llm.models.local.llama_states import Tap
from rain_llm.models.local.numpy_rows import Floats

CACHE_TYPES = {"f16": (llama.F16, 2.0), "q8_0": (llama.Q8_0, 34 / 32)}
"""Types of the cache's numbers: ggml's number of the type, and bytes of a number."""

_BATCH = 2048  # rows of one call of llama.cpp
_AT_ONCE = 512  # of these, computed together


class Context:
    """A context with an empty cache.

    Args:
        library: llama.cpp.
        model: llama.cpp's model.
        owner: the object that owns the model's memory; kept until the context is closed.
        cells: size of the cache, in tokens.
        cache_type: a key of ``CACHE_TYPES``.
        threads: threads that compute.
        twin: see :class:`~rain_llm.models.local.llama_pass.Memory`.
        layers: blocks whose output is read in each pass.

    Raises:
        ModelError: there is not enough memory for it.
        ModelNotSupportedError: the outputs of these blocks cannot be read.
    """

    def __init__(
        self,
        library: Any,
        model: int,
        owner: object,
        cells: int,
        cache_type: str,
        threads: int,
        twin: int = 0,
        layers: Sequence[int] = (),
    ) -> None:
        settings = library.llama_context_default_params()
        settings.n_ctx = cells
        settings.n_batch, settings.n_ubatch = _BATCH, _AT_ONCE
        settings.n_seq_max = llama.MOST_SEQUENCES
        settings.n_threads = settings.n_threads_batch = threads
        settings.pooling_type = llama.POOLING_NONE
        settings.flash_attn_type = llama.FLASH_ATTENTION
        settings.type_k = settings.type_v = CACHE_TYPES[cache_type][0]
        settings.kv_unified = True
        self._tap = Tap(library, model, layers) if layers else None
        if self._tap:
            self._tap.configure(settings)
        llama.log.clear()
        pointer = library.llama_init_from_model(model, settings)
        if not pointer:
            raise ModelError(
                f"there is no memory for {cells} tokens ({reason()}): "
                "lower model.kv_cache_bytes, or close other programs"
            )
        if self._tap:
            self._tap.attach(pointer)
        self._llama = library
        self._pointer: int = pointer
        self._vocabulary: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._close = weakref.finalize(self, _free, library, pointer, owner, self._tap)
        self._close.atexit = False
        self.memory = Memory(library, library.llama_get_memory(pointer), twin)

    def close(self) -> None:
        """Free its memory."""
        self._close()

    def abandon(self) -> None:
        """Never touch its memory again: in a forked process, half of a pass may be in it."""
        self._close.detach()

    def use_threads(self, threads: int) -> None:
        """Compute with this many threads from now on."""
        self._llama.llama_set_n_threads(self._pointer, threads, threads)

    def run(self, forward: Pass) -> None:
        """Compute the rows of a pass, and give it the logits that it wants and the states that are read.

        Raises:
            ModelError: llama.cpp could not compute it.
        """
        parts: list[Floats] = []
        states: list[Floats] = []
        rows = len(forward.tokens)
        token = np.array(forward.tokens, np.int32)
        position = np.array(forward.positions, np.int32)
        wanted = np.zeros(rows, np.int8)
        wanted[list(forward.outputs)] = 1
        owned = [self.memory.owners(row) for row in forward.owners]
        counts = np.array([len(row) for row in owned], np.int32)
        owners = np.array([number for row in owned for number in row], np.int32)
        first = np.concatenate([[0], counts.cumsum()[:-1]])
        pointers = (owners.ctypes.data + 4 * first).astype(np.uint64)
        for start in range(0, rows, _BATCH):
            size = min(_BATCH, rows - start)
            batch = llama.Batch(
                size,
                token.ctypes.data + 4 * start,
                None,
                position.ctypes.data + 4 * start,
                counts.ctypes.data + 4 * start,
                pointers.ctypes.data + 8 * start,
                wanted.ctypes.data + start,
            )
            llama.log.clear()
            status = self._llama.llama_decode(self._pointer, batch)
            if status:
                raise ModelError(f"llama.cpp could not compute a pass (status {status}): {reason()}")
            if count := int(wanted[start : start + size].sum()):
                found = np.ctypeslib.as_array(
                    self._llama.llama_get_logits(self._pointer), (count, self._vocabulary)
                )
                parts.append(found if rows <= _BATCH else found.copy())
            if self._tap:
                states.append(self._tap.take(size))
        forward.take(parts)
        if states:
            forward.states = np.concatenate(states) if len(states) > 1 else states[0]


def _free(library: Any, context: int, owner: object, tap: Tap | None) -> None:
    """Free a context; until then, what owns the model's memory and the callback are kept."""
    library.llama_free(context)
