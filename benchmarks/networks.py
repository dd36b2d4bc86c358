"""Small changes to networks and tokenizers that benchmarks need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def never_say(network: Any, tokens: Iterable[int]) -> None:
    """Let a network never sample these tokens."""
    import torch

    head = network.get_output_embeddings()
    bias = torch.zeros(head.weight.shape[0], dtype=head.weight.dtype, device=head.weight.device)
    bias[list(tokens)] = -1e4
    head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
