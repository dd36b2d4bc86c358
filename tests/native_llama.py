"""llama.cpp's C interface as far as tests need it: text to tokens, and log-probabilities without any cache.

It is written apart from the engine, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import ctypes as c
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rain_llm.types import TokenIds

F32, F16, Q8_0 = 0, 1, 8  # ggml_type


def _fields(**kinds: tuple[Any, str]) -> list[tuple[str, Any]]:
    return [(name, kind) for kind, names in kinds.values() for name in names.split()]


class ModelParams(c.Structure):
    _fields_ = _fields(
        a=(c.c_void_p, "devices overrides"),
        b=(c.c_int32, "gpu_layers split_mode load_mode lazy_mode main_gpu"),
        d=(c.c_void_p, "tensor_split progress progress_data kv_overrides"),
        e=(c.c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
    )


class ContextParams(c.Structure):
    _fields_ = _fields(
        a=(c.c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
        b=(c.c_int32, "n_threads n_threads_batch ctx_type rope_scaling pooling attention flash_attention"),
        d=(c.c_float, "rope_base rope_scale yarn_ext yarn_attn yarn_fast yarn_slow"),
        e=(c.c_uint32, "yarn_orig"),
        f=(c.c_float, "defrag"),
        g=(c.c_void_p, "cb_eval cb_eval_data"),
        h=(c.c_int32, "type_k type_v"),
        i=(c.c_size_t, "moe_cache_size"),
        j=(c.c_void_p, "abort abort_data"),
        k=(c.c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
        m=(c.c_void_p, "samplers"),
        n=(c.c_size_t, "n_samplers"),
        o=(c.c_void_p, "ctx_other"),
    )


class Batch(c.Structure):
    _fields_ = _fields(
        a=(c.c_int32, "n_tokens"),
        b=(c.c_void_p, "token embd pos n_seq_id seq_id logits"),
    )


@functools.cache
def library() -> Any:
    """Load the wheel's library and declare the functions used here."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    (path,) = Path(spec.origin).parent.glob("xllamacpp*.so")
    lib: Any = c.CDLL(str(path))
    pointers = (
        "llama_model_load_from_file llama_model_get_vocab llama_init_from_model llama_model_chat_template"
    )
    for name in pointers.split():
        getattr(lib, name).restype = c.c_void_p
    lib.llama_model_default_params.restype = ModelParams
    lib.llama_context_default_params.restype = ContextParams
    lib.llama_get_logits_ith.restype = c.POINTER(c.c_float)
    lib._quiet = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda level, text, data: None)
    lib.llama_log_set(lib._quiet, None)
    lib.llama_backend_init()
    return lib


class NativeModel:
    """A GGUF file, loaded by llama.cpp.

    Args:
        path: the file.
        cache: numbers of the key-value cache, F32, F16 or Q8_0.

    Raises:
        ValueError: llama.cpp does not load it.
    """

    def __init__(self, path: Path, cache: int = F32) -> None:
        self._lib = lib = library()
        params = lib.llama_model_default_params()
        params.gpu_layers = 0
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path.name}")
        self._cache = cache
        self._vocab = c.c_void_p(lib.llama_model_get_vocab(c.c_void_p(self._model)))
        self.size = int(lib.llama_vocab_n_tokens(self._vocab))

    def close(self) -> None:
        """Free its memory."""
        self._lib.llama_model_free(c.c_void_p(self._model))

    def encode(self, text: str, special: bool = False, start: bool = False) -> TokenIds:
        """Encode a text; ``special`` reads names of special tokens as such."""
        data = text.encode()
        found = (c.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), found, len(found), start, special)
        assert count >= 0
        return tuple(found[:count])

    def piece(self, token: int, special: bool = False) -> bytes:
        """Return the bytes of one token."""
        room = c.create_string_buffer(256)
        count = self._lib.llama_token_to_piece(self._vocab, token, room, len(room), 0, special)
        assert count >= 0
        return room.raw[:count]

    def is_control(self, token: int) -> bool:
        """Return whether a token is not text."""
        return bool(self._lib.llama_vocab_is_control(self._vocab, token))

    def ends(self, token: int) -> bool:
        """Return whether a token ends an answer."""
        return bool(self._lib.llama_vocab_is_eog(self._vocab, token))

    def logprobs(self, text: TokenIds, first: int = 0) -> NDArray[np.float64]:
        """Return the log-probabilities after each token of a text from ``first`` on, from one new pass.

        With numbers of 16 or 8 bits, it uses flash attention, as the engine does.
        """
        lib, count = self._lib, len(text)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(count, 8)
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = self._cache
        params.flash_attention = int(self._cache != F32)
        context = c.c_void_p(lib.llama_init_from_model(c.c_void_p(self._model), params))
        assert context.value
        kept: list[Any] = [
            (c.c_int32 * count)(*text),
            (c.c_int32 * count)(*range(count)),
            (c.c_int32 * count)(*[1] * count),
            (c.POINTER(c.c_int32) * count)(*[c.pointer(c.c_int32(0))] * count),
            (c.c_int8 * count)(*[int(i >= first) for i in range(count)]),
        ]
        token, pos, lengths, sequences, wanted = (c.cast(array, c.c_void_p) for array in kept)
        try:
            assert lib.llama_decode(context, Batch(count, token, None, pos, lengths, sequences, wanted)) == 0
            rows = [
                np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (self.size,)).astype(np.float64)
                for i in range(first, count)
            ]
        finally:
            lib.llama_free(context)
        logits: NDArray[np.float64] = np.stack(rows)
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        return logits
