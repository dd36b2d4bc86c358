"""Packed weights: the same numbers as the ordinary ones, or the ordinary ones."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

from rain_llm.models.local import packed
from rain_llm.models.local.packed import PackedLinear, pack
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.requests import Score
from rain_llm.settings import ModelSettings

TOLERANCE = 1e-3
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "tied embeddings": ("LlamaConfig", {"tie_word_embeddings": True}),
    "biases": ("Qwen2Config", {}),
    "gemma3": ("Gemma3TextConfig", {}),
    "transposed weights": ("GPT2Config", GPT2),
    "gpt-neox": ("GPTNeoXConfig", {}),
}


def layers(network: torch.nn.Module) -> list[torch.nn.Module]:
    return [layer for layer in network.modules() if type(layer) in (torch.nn.Linear, Conv1D, PackedLinear)]


def logits(network: Any, text: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network(input_ids=torch.tensor([text]), use_cache=False).logits[0]
        return found


def can_pack() -> bool:
    return pack(torch.nn.Sequential(torch.nn.Linear(4, 4))) == 1


needs_packing = pytest.mark.skipif(not can_pack(), reason="this torch has no oneDNN")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@needs_packing
def test_a_packed_network_computes_the_same(save_model: Any, sizes: dict[str, Any], kind: Any):
    import transformers

    name, changes = kind
    folder = save_model(getattr(transformers, name)(**sizes | changes))
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = np.random.default_rng(1).integers(3, 313, 40).tolist()
    expected = {length: logits(network, text[:length]) for length in (1, 2, 40)}
    dtype, device = network.dtype, network.device
    plain = len(layers(network))
    assert pack(network) == plain > 8
    assert all(isinstance(layer, PackedLinear) for layer in layers(network))
    for length, right in expected.items():
        assert torch.allclose(logits(network, text[:length]), right, atol=TOLERANCE)
    assert (network.dtype, network.device) == (dtype, device)
    assert pack(network) == 0  # there is nothing left to do


@needs_packing
def test_a_weight_is_freed_unless_it_is_shared():
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(12, 8)
            self.inner = torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, 12, bias=False)
            self.head.weight = self.embedding.weight

    network = Tied()
    inner, shared = network.inner.weight.clone(), network.embedding.weight.clone()
    assert pack(network) == 2
    assert {name for name, _ in network.named_parameters()} == {"embedding.weight", "inner.bias"}
    assert torch.equal(network.embedding.weight, shared)
    assert torch.equal(network.inner.weight, inner)  # made anew for whoever asks
    assert torch.equal(network.head.weight, shared)


@needs_packing
def test_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch):
    network = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4)))
    originals = [weakref.ref(layer.weight) for layer in layers(network)]
    pack_one, alive = packed._packed, []

    def watched(layer: torch.nn.Module) -> PackedLinear | None:
        alive.append(sum(original() is not None for original in originals))
        return pack_one(layer)

    monkeypatch.setattr(packed, "_packed", watched)
    assert pack(network) == 4
    assert alive == [4, 3, 2, 1]


def broken(*args: Any) -> Any:
    raise RuntimeError("could not create a primitive")


def wrong(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
    return x.new_zeros(*x.shape[:-1], weight.shape[0])


class Without:
    """A torch without these operations, or with others."""

    def __init__(self, **operations: Any) -> None:
        self.mkldnn = type("mkldnn", (), {name: staticmethod(f) for name, f in operations.items()})


@pytest.mark.parametrize(
    "ops",
    [
        Without(),
        Without(_reorder_linear_weight=broken, _linear_pointwise=broken),
        Without(_reorder_linear_weight=lambda weight, rows: weight, _linear_pointwise=wrong),
    ],
    ids=["missing", "failing", "wrong"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_packing_the_network_stays_as_it_is(
    ops: Without, dtype: str, tiny_folder: Path, tiny: TransformersModel, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("rain_llm.models.local.packed._ops", ops)
        model = TransformersModel(ModelSettings(name=str(tiny_folder), device="cpu", dtype=dtype))
    assert all(type(layer) is torch.nn.Linear for layer in layers(model._network))
    question = Score(model.encode("The film is"), ((5,), (6, 7)))
    (plain,), (other,) = model.score([question]), tiny.score([question])
    assert plain.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE if dtype == "float32" else 0.5)


@needs_packing
def test_a_loaded_model_is_packed(tiny: TransformersModel):
    assert all(isinstance(layer, PackedLinear) for layer in layers(tiny._network))


@needs_packing
def test_number_formats_that_cannot_be_packed_are_left_alone():
    assert pack(torch.nn.Sequential(torch.nn.Linear(4, 4, dtype=torch.float64))) == 0
    assert pack(torch.nn.Sequential(torch.nn.Linear(4, 4, device="meta"))) == 0
