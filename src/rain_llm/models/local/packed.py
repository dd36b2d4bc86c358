"""Store linear weights in oneDNN's memory layout, for faster inference on a CPU.

``torch.nn.functional.linear`` reorders a weight in every call with more than one row, which costs as much as
the multiplication itself. oneDNN can keep the weight in its own layout instead. If it does not support that,
the network is not changed.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

_ROWS = 16  # the layout is optimised for this; layouts for 1 or 64 rows were not faster
# Maximum difference from the ordinary product, relative to its largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}

_ops: Any = torch.ops


class PackedLinear(torch.nn.Module):
    """A linear layer whose weight is in oneDNN's layout.

    Args:
        weight: shape [outputs, inputs]; not kept.
        bias: shape [outputs], or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._packed = _ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight in its ordinary layout, converted in each call."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        product: torch.Tensor = _ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


def pack(network: torch.nn.Module) -> int:
    """Pack the weights of the network's linear layers if this machine supports it; return their number.

    A layer's own weight is freed before the next one is packed. A shared weight (as of an output layer that
    is tied to the embedding) stays with its other owner.
    """
    count = 0
    parents = [module for module in network.modules() if next(module.children(), None) is not None]
    for parent in parents:  # do not list the layers themselves: each is freed when it is replaced
        for name in [name for name, _ in parent.named_children()]:
            if packed := _packed(getattr(parent, name)):
                setattr(parent, name, packed)
                count += 1
    if count:
        # The weights' file is memory-mapped: the few remaining weights would keep all of it in memory.
        for kept in (*network.parameters(), *network.buffers()):
            kept.data = kept.data.clone()
    return count


def _packed(layer: torch.nn.Module) -> PackedLinear | None:
    """Return the packed replacement of a layer; None if it is not supported or its results differ."""
    weight: Any = layer.weight if type(layer) in (torch.nn.Linear, Conv1D) else None
    if weight is None or weight.device.type != "cpu" or weight.dtype not in _TOLERANCE:
        return None
    bias: Any = layer.bias
    if isinstance(layer, Conv1D):  # GPT-2's: x @ weight + bias
        weight = weight.t()
    numbers = torch.Generator().manual_seed(0)
    probe = torch.randn(2, weight.shape[1], generator=numbers).to(weight.dtype)
    with torch.inference_mode():
        try:
            if weight.dtype == torch.bfloat16 and not _ops.mkldnn._is_mkldnn_bf16_supported():
                return None
            packed = PackedLinear(weight, bias)
            found = packed(probe)
        except (AttributeError, RuntimeError):  # no oneDNN, or no support for this layer
            return None
        right = torch.nn.functional.linear(probe, weight, bias)
        close = (found - right).abs().max() <= _TOLERANCE[weight.dtype] * right.abs().max()
        return packed if bool(close) else None
