"""Read hidden states in llama.cpp: the outputs of some blocks, for every row of a pass.

llama.cpp has two ways. For some architectures it copies the inputs of blocks itself, which costs nothing. For
the others it calls back for each tensor of the network; that is half a millisecond a pass in Python.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from rain_llm.errors import ModelError
from rain_llm.models.local.numpy_rows import Floats

_COPIED = {"llama", "qwen3", "qwen3moe"}
"""Architectures whose inputs of blocks llama.cpp copies itself; asked for others, it ends the process."""

_SET = "_Z30llama_set_embeddings_layer_inpP13llama_contextjb"  # of llama-ext.h, which is C++
_GET = "_Z30llama_get_embeddings_layer_inpP13llama_contextj"

_Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class Tap:
    """Copies the outputs of some blocks during the passes of one context.

    Args:
        library: llama.cpp.
        model: llama.cpp's model.
        layers: the blocks, counted from 0, in order. The last block computes only the rows that need logits,
            so it cannot be read.
    """

    def __init__(self, library: Any, model: int, layers: Sequence[int]) -> None:
        self._llama = library
        self._layers = tuple(layers)
        self._width: int = library.llama_model_n_embd(model)
        copied = architecture(library, model) in _COPIED and hasattr(library, _SET) and hasattr(library, _GET)
        self._context = 0
        self._found: dict[bytes, list[Floats]] = {b"l_out-%d" % layer: [] for layer in self._layers}
        self._name_at = 0  # offset of a tensor's name
        self._callback = None if copied else _Callback(self._look)

    def configure(self, settings: Any) -> None:
        """Add what is needed to the settings of a context."""
        if self._callback:
            settings.cb_eval = ctypes.cast(self._callback, ctypes.c_void_p)

    def attach(self, context: int) -> None:
        """Begin to read the passes of a context that was created with these settings."""
        self._context = context
        if not self._callback:
            begin = getattr(self._llama, _SET)
            begin.restype, begin.argtypes = None, (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool)
            self._get = getattr(self._llama, _GET)
            self._get.restype = ctypes.POINTER(ctypes.c_float)
            self._get.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
            for layer in self._layers:
                begin(context, layer + 1, True)  # the output of a block is the input of the next one

    def take(self, rows: int) -> Floats:
        """Return the states of the latest pass, shape [rows, layers, width].

        Raises:
            ModelError: the network has no tensor of this name, or computed other rows.
        """
        if not self._callback:
            parts = [
                np.ctypeslib.as_array(self._get(self._context, layer + 1), (rows, self._width))
                for layer in self._layers
            ]
            return np.stack(parts, 1)
        found = [np.concatenate(parts) if parts else np.empty((0, 0)) for parts in self._found.values()]
        for parts in self._found.values():
            parts.clear()
        if any(part.shape != (rows, self._width) for part in found):
            raise ModelError(
                f"the hidden states of layers {', '.join(map(str, self._layers))} cannot be read from this "
                "model: use a question (evaluation.style: labels), or a Llama- or Qwen-like model"
            )
        return np.stack(found, 1)

    def _look(self, tensor: int, asks: bool, _: int | None) -> bool:
        """Tell llama.cpp which tensors to compute first, and copy them.

        Args:
            tensor: a ggml_tensor: its type at byte 0, four sizes from byte 16, each of 8 bytes.
            asks: whether llama.cpp asks if the tensor is wanted; otherwise it was computed.
        """
        if not self._name_at:
            self._name_at = _name_of(self._llama)(tensor) - tensor
        parts = self._found.get(ctypes.string_at(tensor + self._name_at))
        if parts is None:
            return False
        if not asks:
            width, rows = (ctypes.c_int64 * 2).from_address(tensor + 16)
            states = np.empty((rows, width), np.float32)
            _copy_from(self._llama)(tensor, states.ctypes.data, 0, states.nbytes)
            parts.append(states)
        return True


def architecture(library: Any, model: int) -> str:
    """Return the architecture that a file names, such as ``llama``."""
    value = ctypes.create_string_buffer(128)
    library.llama_model_meta_val_str(model, b"general.architecture", value, len(value))
    return value.value.decode(errors="replace")


def _name_of(library: Any) -> Any:
    function = library.ggml_get_name
    function.restype, function.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    return function


def _copy_from(library: Any) -> Any:
    function = library.ggml_backend_tensor_get
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return function
