"""Fixtures that several test files share: tiny models with random weights, the real one, real servers."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import examples
from tests.servers.process import Server

if TYPE_CHECKING:
    from rain_llm.models.local.llama_cpp import LlamaCppModel
    from rain_llm.models.local.transformers import TransformersModel
    from tests.servers.hostile import Connect

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread: on a machine with other work, torch's threads wait for each other more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported to collect the tests stays until the end: not to look through it again and again while it
# is imported, nor at each collection of garbage afterwards, saves seconds of each process.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


WAITING = ("test_faults.py", "test_replicas.py", "test_clock.py", "test_llama_index_standard.py")
"""Files whose tests wait more than they compute: begun first, they overlap with all others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in WAITING)


# The same examples at every run: a failure is found again, and no example database is needed.
settings.register_profile(
    "suite",
    max_examples=examples(100),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.fixture
def main_loop() -> Iterator[None]:
    """Give LlamaIndex an event loop for its own coroutines: one that it makes itself it never closes."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 320
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # far from uniform, so that a wrong token shows
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

SaveModel = Callable[..., Path]
TinyModel = Callable[..., "TransformersModel"]


def build_tokenizer(**changes: Any) -> Any:
    """A small byte-level BPE, trained on the spot: every text can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["the film is good, the film is bad. kind and cruel people answer; harmless words: yes, no!"] * 4,
        trainer,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        additional_special_tokens=list(SPECIAL[1:]),
    )
    tokenizer.chat_template = CHAT
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> SaveModel:
    """Write a model with random weights to a folder: ``save_model(LlamaConfig(**SIZES))``."""

    def save(config: Any, tokenizer: Any = None, safe: bool = True) -> Path:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(config.model_type)
        network = AutoModelForCausalLM.from_config(config)
        network.save_pretrained(folder)
        if not safe:
            (folder / "model.safetensors").unlink()
            torch.save(network.state_dict(), folder / "pytorch_model.bin")
        (tokenizer or build_tokenizer()).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def sizes() -> dict[str, Any]:
    """The measures of a tiny network."""
    return dict(SIZES)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """The tiny models' tokenizer, with changes."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(save_model: SaveModel) -> Path:
    """A folder with a tiny random Llama (grouped-query attention), its tokenizer and chat template."""
    from transformers import LlamaConfig

    return save_model(LlamaConfig(**SIZES))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TransformersModel:
    """The tiny random Llama, loaded once."""
    from rain_llm.models.local.transformers import TransformersModel
    from rain_llm.settings import ModelSettings

    return TransformersModel(ModelSettings(name=str(tiny_folder), device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def real_model() -> LlamaCppModel:
    """The embedded SmolLM2-135M-Instruct, loaded once."""
    from rain_llm.models.local.llama_cpp import LlamaCppModel

    return LlamaCppModel()


@pytest.fixture(scope="session")
def unpacked() -> TransformersModel:
    """The same weights in float32, run by transformers; converted first where that was not done yet."""
    from rain_llm.models.local.transformers import TransformersModel
    from rain_llm.settings import ModelSettings
    from tests.servers.unpacked import unpacked_model

    return TransformersModel(ModelSettings(name=str(unpacked_model()), device="cpu", dtype="float32"))


@pytest.fixture(scope="session")
def llama() -> Iterator[Server]:
    """llama-server with the embedded model, started once; who restarts it leaves it running.

    Its tests carry ``@pytest.mark.allow_hosts(["127.0.0.1"])``, as do those of vLLM.
    """
    from tests.servers.llama_server import llama_server

    with llama_server(parallel=8, context=1024) as server:
        yield server


@pytest.fixture(scope="session")
def vllm() -> Iterator[Server]:
    """vLLM with the embedded model, started once (``make test-vllm``)."""
    from tests.servers.unpacked import unpacked_model
    from tests.servers.vllm import PYTHON_VARIABLE, vllm_python, vllm_server

    python = vllm_python()
    if python is None:
        pytest.skip(f"{PYTHON_VARIABLE} names no interpreter that has vLLM: run make test-vllm")
    with vllm_server(python, unpacked_model()) as server:
        yield server


@pytest.fixture(scope="module")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connect]:
    """Connect to a scripted server in this process, whose replies a test may change from the start."""
    from rain_llm.models.tokenizer import Tokenizer
    from tests.servers import babble
    from tests.servers.hostile import connecting

    folder = babble.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    yield from connecting(Tokenizer.load(str(folder)))


@pytest.fixture(scope="module")
def both(connect: Connect) -> dict[str, Any]:
    """A model on such a server of each dialect, and the server."""
    return {dialect: connect(dialect) for dialect in ("vllm", "llama")}
