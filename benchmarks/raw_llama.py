"""llama.cpp without rain-llm: a loop of decoding and its own sampler in C, on a loaded model's weights."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rain_llm.models.local import llama_library as llama
from rain_llm.types import TokenIds

_CELLS = 2048


class _ChainParams(ctypes.Structure):
    _fields_ = [("no_perf", ctypes.c_bool)]


_SAMPLERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_sampler_chain_default_params": (_ChainParams, ()),
    "llama_sampler_chain_init": (ctypes.c_void_p, (_ChainParams,)),
    "llama_sampler_chain_add": (None, (ctypes.c_void_p, ctypes.c_void_p)),
    "llama_sampler_init_dist": (ctypes.c_void_p, (ctypes.c_uint32,)),
    "llama_sampler_sample": (ctypes.c_int32, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)),
    "llama_sampler_free": (None, (ctypes.c_void_p,)),
}


class RawLlama:
    """A context of its own, with llama.cpp's defaults and one cache for all sequences.

    Args:
        model: a ``LlamaCppModel``, whose weights and number of threads are used.
        sequences: how many texts at once, at most.

    Attributes:
        passes, rows: calls of ``llama_decode`` and their rows so far.
    """

    def __init__(self, model: Any, sequences: int = 32) -> None:
        self._llama = library = model._llama
        for name, (result, arguments) in _SAMPLERS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = _CELLS, sequences, True
        settings.n_threads = settings.n_threads_batch = model._threads
        self._context = library.llama_init_from_model(model._model, settings)
        self._model = model  # its weights must not be freed first
        weakref.finalize(self, library.llama_free, self._context).atexit = False
        self._memory = library.llama_get_memory(self._context)
        self._token, self._place = np.zeros(_CELLS, np.int32), np.zeros(_CELLS, np.int32)
        self._sequence, self._wanted = np.zeros(_CELLS, np.int32), np.zeros(_CELLS, np.int8)
        self._one = np.ones(_CELLS, np.int32)
        self._pointers = (self._sequence.ctypes.data + 4 * np.arange(_CELLS)).astype(np.uint64)
        arrays = (self._place, self._one, self._pointers, self._wanted)
        self._batch = llama.Batch(0, self._token.ctypes.data, None, *(x.ctypes.data for x in arrays))
        self.passes = self.rows = 0

    def write(self, prompts: Sequence[TokenIds], tokens: int, branches: int = 1) -> int:
        """Sample exactly ``tokens`` tokens after each prompt, or in each branch of the only one.

        An end token is read like any other. Returns how many tokens were sampled.
        """
        sample = self._llama.llama_sampler_sample
        self._llama.llama_memory_clear(self._memory, False)
        count = 0
        ends = []
        for sequence, prompt in enumerate(prompts):
            part = slice(count, count + len(prompt))
            self._token[part], self._place[part] = prompt, range(len(prompt))
            self._sequence[part], self._wanted[part] = sequence, 0
            count += len(prompt)
            self._wanted[count - 1] = 1
            ends.append(count - 1)
        self._decode(count)
        for sequence in range(1, branches):
            self._llama.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        rows = ends * branches
        lengths = [len(prompt) for prompt in prompts] * branches
        samplers = [self._sampler(seed) for seed in range(len(rows))]
        width = len(rows)
        drawn = [sample(sampler, self._context, row) for sampler, row in zip(samplers, rows, strict=True)]
        self._sequence[:width], self._place[:width], self._wanted[:width] = range(width), lengths, 1
        for _ in range(tokens - 1):
            self._token[:width] = drawn
            self._decode(width)
            self._place[:width] += 1
            drawn = [sample(sampler, self._context, row) for row, sampler in enumerate(samplers)]
        for sampler in samplers:
            self._llama.llama_sampler_free(sampler)
        return width * tokens

    def _decode(self, rows: int) -> None:
        self._batch.n_tokens = rows
        if status := self._llama.llama_decode(self._context, self._batch):
            raise RuntimeError(f"llama_decode returned {status}")
        self.passes += 1
        self.rows += rows

    def _sampler(self, seed: int) -> Any:
        """Return a sampler at temperature 1 from the whole vocabulary, as the default settings sample."""
        chain = self._llama.llama_sampler_chain_init(self._llama.llama_sampler_chain_default_params())
        self._llama.llama_sampler_chain_add(chain, self._llama.llama_sampler_init_dist(seed))
        return chain
