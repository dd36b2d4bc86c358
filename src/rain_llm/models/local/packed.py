"""Weights laid out once for the way a CPU multiplies them.

``torch.nn.functional.linear`` rearranges a weight at every call for more than one row, which costs as
much as the product itself: reading eight branches at once would cost two passes over one. oneDNN can
take the weight in its own layout instead. Where it cannot, the network stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

_ROWS = 16  # what the layout is made for; layouts for 1 or 64 rows were no faster
# How far a product may be from the ordinary one, as a part of its largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}

_ops: Any = torch.ops


class PackedLinear(torch.nn.Module):
    """A linear layer, its weight in oneDNN's layout.

    Args:
        weight: [outputs, inputs]; not kept.
        bias: [outputs], or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self._packed = _ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """The weight in its ordinary layout, made anew each time."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T + bias``."""
        product: torch.Tensor = _ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


def pack(network: torch.nn.Module) -> int:
    """Pack the weights of the network's linear layers where this machine can; return how many.

    A layer's own weight is freed before the next one is packed. One that is shared stays with its
    other owner, as an output layer's often stays with the embedding.
    """
    count = 0
    parents = [module for module in network.modules() if next(module.children(), None) is not None]
    for parent in parents:  # no list holds the layers themselves: each is freed when it is replaced
        for name in [name for name, _ in parent.named_children()]:
            if packed := _packed(getattr(parent, name)):
                setattr(parent, name, packed)
                count += 1
    if count:
        # A file of weights is mapped as a whole: the few that are left would keep all of it.
        for kept in (*network.parameters(), *network.buffers()):
            kept.data = kept.data.clone()
    return count


def _packed(layer: torch.nn.Module) -> PackedLinear | None:
    """Return the layer's packed stand-in, if there is one and its numbers are right."""
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
        except (AttributeError, RuntimeError):  # no oneDNN, or not for this
            return None
        right = torch.nn.functional.linear(probe, weight, bias)
        close = (found - right).abs().max() <= _TOLERANCE[weight.dtype] * right.abs().max()
        return packed if bool(close) else None
