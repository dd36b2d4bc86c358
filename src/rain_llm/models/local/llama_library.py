"""llama.cpp's C interface, called with ctypes: find the shared library, check its layouts, declare functions.

The library comes with the package ``xllamacpp`` (or, where that is missing, with ``llama-cpp-python``). Its
structures change between releases, and a wrong layout would crash the process. So all defaults that the
library reports are compared with those of the known layout when it is opened.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from rain_llm.errors import ModelError

F16, Q8_0 = 1, 8  # types of the prefix cache's numbers, as ggml numbers them
FLASH_ATTENTION = 1
POOLING_NONE = 0
MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
CONTROL, UNKNOWN = 1 << 3, 1 << 0  # attributes of a token

_SPARE = 256  # bytes behind a structure, for fields that a later release may append
_ERROR = 4  # level of a log message
_PACKAGES = (("xllamacpp", "*"), ("llama_cpp", "lib/*llama*"))  # and where in them the library lies
_ENDINGS = (".so", ".dylib", ".pyd", ".dll")

_Field = tuple[str, Any, Any]  # name, type, default; None: any

_MODEL: tuple[_Field, ...] = (
    ("devices", c_void_p, 0),
    ("tensor_buft_overrides", c_void_p, 0),
    ("n_gpu_layers", c_int32, None),
    ("split_mode", c_int, 1),
    ("load_mode", c_int, -1),
    ("lazy_mode", c_int, None),
    ("main_gpu", c_int32, 0),
    ("tensor_split", c_void_p, 0),
    ("progress_callback", c_void_p, 0),
    ("progress_callback_user_data", c_void_p, 0),
    ("kv_overrides", c_void_p, 0),
    ("vocab_only", c_bool, False),
    ("check_tensors", c_bool, False),
    ("use_extra_bufts", c_bool, True),
    ("no_host", c_bool, False),
    ("no_alloc", c_bool, False),
    ("load_mtp", c_bool, None),
)
_CONTEXT: tuple[_Field, ...] = (
    ("n_ctx", c_uint32, 512),
    ("n_batch", c_uint32, 2048),
    ("n_ubatch", c_uint32, 512),
    ("n_seq_max", c_uint32, 1),
    ("n_rs_seq", c_uint32, 0),
    ("n_outputs_max", c_uint32, 0),
    ("n_outputs_max_per_seq", c_uint32, None),
    ("n_threads", c_int32, None),
    ("n_threads_batch", c_int32, None),
    ("ctx_type", c_int, 0),
    ("rope_scaling_type", c_int, -1),
    ("pooling_type", c_int, -1),
    ("attention_type", c_int, -1),
    ("flash_attn_type", c_int, -1),
    ("rope_freq_base", c_float, 0.0),
    ("rope_freq_scale", c_float, 0.0),
    ("yarn_ext_factor", c_float, -1.0),
    ("yarn_attn_factor", c_float, -1.0),
    ("yarn_beta_fast", c_float, -1.0),
    ("yarn_beta_slow", c_float, -1.0),
    ("yarn_orig_ctx", c_uint32, 0),
    ("defrag_thold", c_float, -1.0),
    ("cb_eval", c_void_p, 0),
    ("cb_eval_user_data", c_void_p, 0),
    ("type_k", c_int, F16),
    ("type_v", c_int, F16),
    ("moe_cache_size", c_size_t, 0),
    ("abort_callback", c_void_p, 0),
    ("abort_callback_data", c_void_p, 0),
    ("embeddings", c_bool, False),
    ("offload_kqv", c_bool, True),
    ("no_perf", c_bool, True),
    ("op_offload", c_bool, True),
    ("swa_full", c_bool, True),
    ("kv_unified", c_bool, False),
    ("samplers", c_void_p, 0),
    ("n_samplers", c_size_t, 0),
    ("ctx_other", c_void_p, 0),
)


def _structure(name: str, fields: tuple[_Field, ...]) -> type[ctypes.Structure]:
    declared = [(field, kind) for field, kind, _ in fields]
    return type(name, (ctypes.Structure,), {"_fields_": [*declared, ("spare", c_int8 * _SPARE)]})


ModelParams: Any = _structure("ModelParams", _MODEL)
ContextParams: Any = _structure("ContextParams", _CONTEXT)


class Batch(ctypes.Structure):
    """The rows of one call of ``llama_decode``; all are pointers to arrays of ``n_tokens``."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogCallback, c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
    "llama_model_free": (None, (c_void_p,)),
    "llama_init_from_model": (c_void_p, (c_void_p, ContextParams)),
    "llama_free": (None, (c_void_p,)),
    "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
    "llama_n_ctx": (c_uint32, (c_void_p,)),
    "llama_get_memory": (c_void_p, (c_void_p,)),
    "llama_model_get_vocab": (c_void_p, (c_void_p,)),
    "llama_model_n_ctx_train": (c_int32, (c_void_p,)),
    "llama_model_n_swa": (c_int32, (c_void_p,)),
    "llama_model_n_layer": (c_int32, (c_void_p,)),
    "llama_model_n_embd": (c_int32, (c_void_p,)),
    "llama_model_n_head": (c_int32, (c_void_p,)),
    "llama_model_n_head_kv": (c_int32, (c_void_p,)),
    "llama_model_meta_val_str": (c_int32, (c_void_p, c_char_p, c_void_p, c_size_t)),
    "llama_model_chat_template": (c_char_p, (c_void_p, c_char_p)),
    "llama_model_has_encoder": (c_bool, (c_void_p,)),
    "llama_model_has_decoder": (c_bool, (c_void_p,)),
    "llama_model_is_recurrent": (c_bool, (c_void_p,)),
    "llama_model_is_hybrid": (c_bool, (c_void_p,)),
    "llama_model_is_diffusion": (c_bool, (c_void_p,)),
    "llama_supports_gpu_offload": (c_bool, ()),
    "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    "llama_vocab_type": (c_int, (c_void_p,)),
    "llama_vocab_bos": (c_int32, (c_void_p,)),
    "llama_vocab_eos": (c_int32, (c_void_p,)),
    "llama_vocab_is_eog": (c_bool, (c_void_p, c_int32)),
    "llama_vocab_get_attr": (c_int, (c_void_p, c_int32)),
    "llama_vocab_get_text": (c_char_p, (c_void_p, c_int32)),
    "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
    "llama_token_to_piece": (c_int32, (c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    "llama_memory_clear": (None, (c_void_p, c_bool)),
    "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
    "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
    "llama_memory_seq_pos_max": (c_int32, (c_void_p, c_int32)),
    "llama_decode": (c_int32, (c_void_p, Batch)),
    "llama_get_logits": (POINTER(c_float), (c_void_p,)),
}

_opened_in: list[int] = []  # the process that opened the library

log: deque[str] = deque(maxlen=8)
"""The library's latest errors, as text: they say why a file could not be loaded."""


def _listen(level: int, text: bytes | None, _: int | None) -> None:
    if level == _ERROR and text:
        log.append(text.decode(errors="replace").strip())


_listening = _LogCallback(_listen)  # kept, because the library calls it until the process ends


@cache
def open_library() -> Any:
    """Return llama.cpp's library, opened and checked once per process.

    Raises:
        ModelError: it is not installed, cannot be opened, or is a release of another layout.
    """
    package, path = _found()
    try:
        opened = _open(path)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(opened, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        gomp = "libgomp" in str(error)  # not in the package, and not in small images of containers
        remedy = (
            "install libgomp (Debian: apt-get install libgomp1)"
            if gomp
            else "pip install --upgrade xllamacpp"
        )
        raise ModelError(f"llama.cpp of the package {package} cannot be used ({error}): {remedy}") from error
    for name, fields in (("model", _MODEL), ("context", _CONTEXT)):
        found = getattr(opened, f"llama_{name}_default_params")()
        if wrong := differences(found, fields):
            raise ModelError(
                f"llama.cpp of the package {package} has other {name} parameters than this version of "
                f"rain-llm knows ({', '.join(wrong[:3])}): install another release of {package}"
            )
    opened.llama_log_set(_listening, None)
    opened.llama_backend_init()
    _opened_in.append(os.getpid())
    return opened


def _open(path: Path) -> ctypes.CDLL:
    """Open the library, with threads that soon sleep while they wait for each other.

    They would spin for some milliseconds first, which on a busy machine is most of a pass: the core that they
    hold is the one that the other thread needs. With 1,000 turns, a pass on a quiet machine takes no longer
    than with libgomp's 300,000; with none, up to three times as long. libgomp reads the variable once, when
    it is opened; the user's own settings are left alone.
    """
    given = os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    if not given:
        os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        return ctypes.CDLL(str(path))
    finally:
        if not given:
            del os.environ["GOMP_SPINCOUNT"]


def differences(found: Any, fields: tuple[_Field, ...]) -> list[str]:
    """Return the fields of a structure of defaults that are not what its known layout says."""
    return [
        f"{name} is {getattr(found, name)!r}, not {default!r}"
        for name, _, default in fields
        if default is not None and (getattr(found, name) or 0) != default
    ]


def threads(wanted: int) -> int:
    """Return how many threads may compute: one in a forked process, where OpenMP waits for its parent's."""
    open_library()
    return wanted if os.getpid() == _opened_in[0] else 1


def _found() -> tuple[str, Path]:
    for package, pattern in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob(pattern)):
                if path.suffix in _ENDINGS:
                    return package, path
    raise ModelError("a GGUF file needs llama.cpp, which is not installed: pip install xllamacpp")
