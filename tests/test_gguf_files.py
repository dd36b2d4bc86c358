"""The tiny GGUF files: llama.cpp reads in them the tokens and the network that transformers reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import gguf_files
from tests.conftest import SPECIAL, build_tokenizer
from tests.examples import examples
from tests.native_llama import F16, F32, NativeModel

# In nats. llama.cpp rounds gemma's activation function to 16 bits.
TOLERANCE = {"qwen2": 1e-4, "gemma3": 5e-3, "mamba": 1e-4}
HALF_TOLERANCE = 0.1  # with keys and values in 16 bits: .04 in the worst of 60 rows

Load = Callable[..., NativeModel]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Write a file and load it with llama.cpp."""
    loaded = []

    def load(write: Callable[[Path], Path], cache: int = F32) -> NativeModel:
        loaded.append(NativeModel(write(tmp_path), cache))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeModel]:
    """The file of the tests' own vocabulary."""
    model = NativeModel(gguf_files.tiny_gguf(tmp_path_factory.mktemp("native")))
    yield model
    model.close()


def uncached(kind: str, text: tuple[int, ...]) -> Any:
    import torch

    with torch.inference_mode():
        logits = gguf_files.network(kind)(torch.tensor([text])).logits[0].double()
        return torch.log_softmax(logits, -1).numpy()


def some_text(count: int = 60, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 313, count).tolist())


@pytest.mark.parametrize("kind", TOLERANCE)
def test_llama_cpp_computes_what_transformers_computes(load: Load, kind: str):
    model, text = load(lambda folder: gguf_files.tiny_gguf(folder, kind)), some_text()
    assert np.abs(model.logprobs(text) - uncached(kind, text)).max() < TOLERANCE[kind]


def test_half_precision_keys_and_values_cost_little(load: Load):
    model, text = load(gguf_files.tiny_gguf, F16), some_text()
    assert np.abs(model.logprobs(text) - uncached("qwen2", text)).max() < HALF_TOLERANCE


def test_a_window_matters_to_the_model_that_has_one():
    import torch

    narrow, wide = gguf_files.network("gemma3"), gguf_files.network("gemma3")
    for layer in wide.model.layers:
        layer.self_attn.sliding_window = None
    wide.config.sliding_window = 256
    text = torch.tensor([some_text()])
    with torch.inference_mode():
        difference = (narrow(text).logits - wide(text).logits).abs().amax(-1)[0]
    assert difference[: gguf_files.WINDOW - 1].max() < 1e-4
    assert difference[gguf_files.WINDOW + 1 :].min() > 1e-2


@given(text=st.text(max_size=60) | st.text("the film isgod, 12\n\t'sé終👋<|>_", max_size=60))
@hypothesis_settings(max_examples=examples(400))
def test_llama_cpp_encodes_as_the_tokenizers_library(native: NativeModel, text: str):
    tokens = native.encode(text)
    assert tokens == tuple(build_plain().encode(text, add_special_tokens=False).ids)
    assert b"".join(map(native.piece, tokens)).decode() == text


def build_plain(kept: list[Any] = []) -> Any:  # noqa: B006  it is built once
    if not kept:
        kept.append(build_tokenizer().backend_tokenizer)
        kept[0].encode_special_tokens = True
    return kept[0]


@pytest.mark.parametrize("kind", gguf_files.VALID)
def test_llama_cpp_loads_what_is_valid(load: Load, kind: str):
    model = load(gguf_files.VALID[kind])
    text = "The film is good,  and 12 people\n ü終"
    tokens = model.encode(text)
    written = b"".join(model.piece(token) for token in tokens).decode()
    assert written == (" " * (kind == "sentence pieces") + text)
    assert model.logprobs(tokens).shape == (len(tokens), 320)


def test_special_tokens_are_special(native: NativeModel):
    for place, name in enumerate(SPECIAL):
        assert native.encode(name, special=True) == (place,)
        assert native.is_control(place)
        assert native.piece(place) == b""
        assert len(native.encode(name)) > 1
    assert [native.ends(token) for token in range(4)] == [True, False, True, False]


def test_sentence_pieces_begin_with_a_space_and_the_start_token(load: Load):
    model = load(gguf_files.VALID["sentence pieces"])
    tokens = model.encode("the film", start=True)
    assert tokens[0] == 1
    assert [model.piece(token) for token in tokens[1:]] == [b" the", b" film"]


@pytest.mark.parametrize("kind", sorted({*gguf_files.BROKEN} - {*gguf_files.RUNNABLE, *gguf_files.ABORTING}))
def test_llama_cpp_itself_refuses_most_broken_files(tmp_path: Path, kind: str):
    with pytest.raises(ValueError, match="does not load"):
        NativeModel(gguf_files.BROKEN[kind](tmp_path))


@pytest.mark.parametrize("kind", sorted(gguf_files.RUNNABLE))
def test_some_broken_files_can_be_run(load: Load, kind: str):
    model = load(gguf_files.BROKEN[kind])
    assert model.logprobs(model.encode("The film")).shape[1] == 320
