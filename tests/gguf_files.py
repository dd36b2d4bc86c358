"""Tiny GGUF files with random weights, written on the spot: good ones, odd ones and broken ones.

``tiny_gguf`` writes the same network and vocabulary as ``save_hugging_face``, to compare llama.cpp
with transformers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.conftest import CHAT, SIZES, SPECIAL, VOCABULARY, build_tokenizer

WINDOW = 8  # of the model with a sliding window
SPM_CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
PIECES = ("the", "film", "is", "good", ",", "bad", "and", "kind", "people", "answer", "yes", "no", ".")

Vocabulary = dict[str, Any]
"""What a file says of its vocabulary: the metadata below ``tokenizer.``."""


# --- networks ---------------------------------------------------------------------------------------


def network(kind: str = "qwen2") -> Any:
    """Build a tiny transformers model with random weights; the same ones each time.

    Args:
        kind: "qwen2", "gemma3" (a sliding window in one of two layers) or "mamba" (recurrent).
    """
    import torch
    import transformers

    if kind == "qwen2":
        config: Any = transformers.Qwen2Config(**SIZES)
    elif kind == "gemma3":
        config = transformers.Gemma3TextConfig(
            **SIZES,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=SIZES["head_dim"],
        )
    else:
        config = transformers.MambaConfig(
            **{name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}, state_size=4
        )
    torch.manual_seed(0)
    made: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # transformers begins with biases of 0 and norms of 1, which would hide a mistake
        for name, weights in made.named_parameters():
            if "norm" in name or name.endswith("bias"):
                weights += 0.3 * torch.randn(weights.shape)
    return made.eval()


def save_hugging_face(folder: Path, kind: str = "qwen2") -> Path:
    """Write the network to a folder as transformers does, with its tokenizer."""
    network(kind).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def tensors(kind: str = "qwen2") -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the network's weights under llama.cpp's names."""
    import gguf

    architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(architecture, SIZES["num_hidden_layers"])
    for name, weights in network(kind).state_dict().items():
        array = weights.float().numpy()
        if kind == "gemma3" and name.endswith("norm.weight"):
            array = array + 1  # transformers adds it at run time
        if name.endswith("A_log"):
            array = -np.exp(array)
        if name.endswith("conv1d.weight"):
            array = array.squeeze()
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None
        if name != "lm_head.weight" or kind == "qwen2":  # the others' is that of the embeddings
            yield found, np.ascontiguousarray(array)


def sizes(kind: str = "qwen2") -> dict[str, Any]:
    """Return what a file says of its network's sizes."""
    common = {
        "context_length": SIZES["max_position_embeddings"],
        "embedding_length": SIZES["hidden_size"],
        "block_count": SIZES["num_hidden_layers"],
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    if kind == "mamba":
        state = {"conv_kernel": 4, "inner_size": 64, "state_size": 4, "time_step_rank": 2}
        found = common | {"feed_forward_length": 0, "attention.head_count": 0}
        found |= {f"ssm.{name}": size for name, size in state.items()}
        found["attention.layer_norm_rms_epsilon"] = 1e-5
    else:
        found = common | {
            "feed_forward_length": SIZES["intermediate_size"],
            "attention.head_count": SIZES["num_attention_heads"],
            "attention.head_count_kv": SIZES["num_key_value_heads"],
            "attention.key_length": SIZES["head_dim"],
            "attention.value_length": SIZES["head_dim"],
            "rope.freq_base": 10000.0,
        }
    if kind == "gemma3":
        found |= {
            "attention.sliding_window": WINDOW,
            "attention.sliding_window_pattern": [True, False],
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 10000.0,
        }
    return {f"{kind}.{name}": value for name, value in found.items()}


# --- vocabularies -----------------------------------------------------------------------------------


def byte_pairs(pre: str = "gpt-2") -> Vocabulary:
    """The vocabulary of ``build_tokenizer``, filled up to the network's with unused tokens."""
    import gguf

    loaded = build_tokenizer()
    rules = json.loads(loaded.backend_tokenizer.to_str())["model"]
    tokens = {place: token for token, place in loaded.get_vocab().items()}
    names = [tokens.get(place, f"[PAD{place}]") for place in range(VOCABULARY)]
    kinds = [
        gguf.TokenType.CONTROL
        if name in SPECIAL
        else gguf.TokenType.NORMAL
        if place in tokens
        else gguf.TokenType.UNUSED
        for place, name in enumerate(names)
    ]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": names,
        "ggml.token_type": [int(kind) for kind in kinds],
        "ggml.merges": [" ".join(pair) for pair in rules["merges"]],
        "ggml.bos_token_id": 0,
        "ggml.eos_token_id": 0,
        "ggml.padding_token_id": 0,
        "ggml.add_bos_token": False,
        "chat_template": CHAT,
    }


def sentence_pieces() -> Vocabulary:
    """A vocabulary as Llama 2 has it: spaces are letters, a text begins with one, and with ``<s>``."""
    import gguf

    names = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [gguf.TokenType.UNKNOWN] + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.BYTE] * 256
    # Each piece is its beginning and one more letter: llama.cpp joins two pieces where it knows the whole.
    words = ["\u2581" + word for word in PIECES]
    pieces = dict.fromkeys(letter for word in words for letter in word)
    pieces |= dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    names += list(pieces)[: VOCABULARY - len(names)]
    kinds += [gguf.TokenType.NORMAL] * (len(names) - len(kinds))
    names += [f"[PAD{place}]" for place in range(len(names), VOCABULARY)]
    kinds += [gguf.TokenType.UNUSED] * (VOCABULARY - len(kinds))
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": names,
        "ggml.scores": [-float(place) for place in range(VOCABULARY)],
        "ggml.token_type": [int(kind) for kind in kinds],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        "ggml.add_bos_token": True,
        "ggml.add_space_prefix": True,
        "chat_template": SPM_CHAT,
    }


# --- files ------------------------------------------------------------------------------------------


def tiny_gguf(
    folder: Path,
    kind: str = "qwen2",
    vocabulary: Vocabulary | None = None,
    changes: Mapping[str, Any] | None = None,
    without: str | None = None,
) -> Path:
    """Write a tiny model to a file in a folder.

    Args:
        folder: where the file is written.
        kind: of its network, see ``network``.
        vocabulary: None takes ``byte_pairs()``.
        changes: metadata with other values, "tokenizer.chat_template" for example; None leaves one out.
        without: name of a tensor that is left out.
    """
    import gguf

    metadata = {
        f"tokenizer.{name}": value
        for name, value in (byte_pairs() if vocabulary is None else vocabulary).items()
    }
    metadata |= {"general.name": f"tiny {kind}"} | sizes(kind) | dict(changes or {})
    path = folder / f"tiny-{kind}.gguf"
    writer = gguf.GGUFWriter(path, kind)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, weights in tensors(kind):
        if name != without:
            writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    from gguf import GGUFValueType as Kind

    if value is None:
        return
    if isinstance(value, list):
        kinds = {str: Kind.STRING, bool: Kind.BOOL, int: Kind.INT32, float: Kind.FLOAT32}
        writer.add_key_value(key, value, Kind.ARRAY, kinds[type(value[0])] if value else Kind.STRING)
    else:
        kinds = {str: Kind.STRING, bool: Kind.BOOL, int: Kind.UINT32, float: Kind.FLOAT32}
        writer.add_key_value(key, value, kinds[type(value)])


VALID: dict[str, Callable[[Path], Path]] = {
    "qwen2": tiny_gguf,
    "sentence pieces": lambda folder: tiny_gguf(folder, vocabulary=sentence_pieces()),
    "no chat template": lambda folder: tiny_gguf(folder, changes={"tokenizer.chat_template": None}),
    "start token": lambda folder: tiny_gguf(folder, changes={"tokenizer.ggml.add_bos_token": True}),
    "gemma3": lambda folder: tiny_gguf(folder, "gemma3"),
}
"""Files that the engine can run, by what is particular about them."""


def recurrent(folder: Path) -> Path:
    """Write a model that cannot be rewound."""
    return tiny_gguf(folder, "mamba")


# --- broken files -----------------------------------------------------------------------------------


def cut(folder: Path, share: float = 0.5) -> Path:
    """Write the beginning of a file, as an interrupted download leaves it."""
    path = tiny_gguf(folder)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    return path


def overwritten(folder: Path, place: int, data: bytes) -> Path:
    """Write a file, and other bytes over some of it."""
    path = tiny_gguf(folder)
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(bytes(content))
    return path


def changed(folder: Path, **sizes: Any) -> Path:
    """Write a file whose metadata about the network is not true; "__" stands for a dot."""
    return tiny_gguf(
        folder, changes={f"qwen2.{name.replace('__', '.')}": size for name, size in sizes.items()}
    )


def revised(folder: Path, **changes: Any) -> Path:
    """Write a file whose metadata about the vocabulary is not true."""
    return tiny_gguf(folder, changes={f"tokenizer.ggml.{name}": value for name, value in changes.items()})


def _tokens() -> list[str]:
    names: list[str] = byte_pairs()["ggml.tokens"]
    return names


BROKEN: dict[str, Callable[[Path], Path]] = {
    "empty": lambda folder: cut(folder, 0),
    "cut in the header": lambda folder: cut(folder, 0.001),
    "cut in half": cut,
    "cut at the end": lambda folder: cut(folder, 0.99),
    "wrong magic": lambda folder: overwritten(folder, 0, b"GGML"),
    "a version of the future": lambda folder: overwritten(folder, 4, struct.pack("<I", 99)),
    "2^60 tensors": lambda folder: overwritten(folder, 8, struct.pack("<Q", 1 << 60)),
    "2^60 keys": lambda folder: overwritten(folder, 16, struct.pack("<Q", 1 << 60)),
    "a key of 2^60 letters": lambda folder: overwritten(folder, 24, struct.pack("<Q", 1 << 60)),
    "no such architecture": lambda folder: overwritten(folder, 64, b"none2"),
    "a tensor is missing": lambda folder: tiny_gguf(folder, without="blk.1.ffn_up.weight"),
    "no embeddings": lambda folder: tiny_gguf(folder, without="token_embd.weight"),
    "wider than its tensors": lambda folder: changed(folder, embedding_length=64),
    "more layers than tensors": lambda folder: changed(folder, block_count=3),
    "2^31 layers": lambda folder: changed(folder, block_count=(1 << 31) - 1),
    "no layers": lambda folder: changed(folder, block_count=0),
    "no heads": lambda folder: changed(folder, attention__head_count=0),
    "3 heads": lambda folder: changed(folder, attention__head_count=3),
    "0 key heads": lambda folder: changed(folder, attention__head_count_kv=0),
    "3 key heads": lambda folder: changed(folder, attention__head_count_kv=3),
    "no width": lambda folder: changed(folder, embedding_length=0),
    "wide heads": lambda folder: changed(folder, attention__key_length=16),
    "heads of 7": lambda folder: changed(folder, attention__key_length=7, attention__value_length=7),
    "no context": lambda folder: changed(folder, context_length=0),
    "no sizes": lambda folder: changed(folder, embedding_length=None),
    "sizes are text": lambda folder: changed(folder, embedding_length="32"),
    "fewer tokens than rows": lambda folder: revised(folder, tokens=_tokens()[:300]),
    "more tokens than rows": lambda folder: revised(folder, tokens=[*_tokens(), "x", "y"]),
    "no tokens": lambda folder: revised(folder, tokens=None),
    "tokens are numbers": lambda folder: revised(folder, tokens=list(range(VOCABULARY))),
    "kinds of 3 tokens": lambda folder: revised(folder, token_type=[1, 1, 1]),
    "no merges": lambda folder: revised(folder, merges=None),
    "merges are not pairs": lambda folder: revised(folder, merges=["ab", "", " "]),
    "no such tokenizer": lambda folder: revised(folder, model="none"),
    "no such splitting": lambda folder: revised(folder, pre="none"),
    "its end is token 10^6": lambda folder: revised(folder, eos_token_id=10**6),
    "its start is token 10^6": lambda folder: revised(folder, bos_token_id=10**6, add_bos_token=True),
}
"""Files that are not what they say. None may end the process that opens it."""
RUNNABLE = {"no context", "merges are not pairs", "its end is token 10^6", "its start is token 10^6"}
"""Those that llama.cpp loads and can run."""
ABORTING = {"2^31 layers", "no layers", "3 heads", "wide heads"}
"""Those at which llama.cpp ends the process: the first two while loading, the others at the first pass."""
