"""Small changes to networks and tokenizers that benchmarks need."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

from rain_llm.criteria import BUILT_IN

END = "<|endoftext|>"


def never_say(network: Any, tokens: Iterable[int]) -> Any:
    """Let a network of transformers never sample these tokens; returns the hook, which can be removed."""
    import torch

    embedding = network.get_input_embeddings().weight
    bias = torch.zeros(network.config.vocab_size, dtype=embedding.dtype, device=embedding.device)
    bias[list(tokens)] = -1e4
    head = network.get_output_embeddings()
    return head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)


def build_tokenizer(texts: Iterable[str], size: int = 1024) -> Any:
    """Train a small byte-level BPE on texts and on the questions that are asked; token 0 is the end.

    It knows the characters of English only, so that whatever is sampled from it is text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    asked = [text for criterion in BUILT_IN.values() for text in criterion.frames]
    labels = [f" {word}" for criterion in BUILT_IN.values() for pair in criterion.labels for word in pair]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=["Ċ", "Ġ", *string.ascii_letters, *string.digits, *string.punctuation],
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *asked, *labels] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END)
