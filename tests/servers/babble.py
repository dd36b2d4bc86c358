"""A made-up language model that costs next to nothing: what a scripted server serves.

Its vocabulary is three special tokens, the 256 bytes, and some words with the blank before them. How
likely each of them is hangs on everything that stands before, by a checksum.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from array import array
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # their ids are their places
EOS = 0
_LABELS = """
friendly hostile polite rude respectful insulting safe unsafe nice mean kind cruel positive negative
appropriate offensive happy angry calm good bad harmless harmful sad great terrible wonderful awful pleasant
unpleasant praise insult true false correct incorrect right wrong accurate inaccurate supported unsupported
yes no
"""
_OTHERS = """
the a this that is are was of and or but in one word tone text answer film day people it I you we they very
not with for to like have see go night house music
"""
WORDS = (*_LABELS.split(), *_OTHERS.split())
"""The labels of the built-in criteria, the words of their questions, and others to speak with."""

_MARKS = ".,!?;"
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

PIECES = (
    *(b"" for _ in SPECIAL),
    *(bytes([byte]) for byte in range(256)),
    *(f" {word}".encode() for word in WORDS),
)
"""The bytes of each token, by id; special tokens have none."""
SIZE = len(PIECES)

_STATES = 256  # different distributions
_FIRST_BYTE, _FIRST_WORD = len(SPECIAL), len(SPECIAL) + 256
_WORD_IDS = {piece: token for token, piece in enumerate(PIECES) if token >= _FIRST_WORD}
_LIKELY = frozenset(_WORD_IDS.values()) | {_FIRST_BYTE + byte for byte in _MARKS.encode()}
_SPLIT = r" ?[A-Za-z]+|[\s\S]"
_FIND = re.compile(_SPLIT)
_FIND_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL)) + ")")


# --- tokens ---------------------------------------------------------------------------------------------


def encode(text: str, special: bool = False) -> list[int]:
    """Turn text into tokens: known words, else bytes; with ``special``, special tokens' names too."""
    if special:
        parts = _FIND_SPECIAL.split(text)
        return [t for part in parts for t in ([SPECIAL.index(part)] if part in SPECIAL else encode(part))]
    tokens: list[int] = []
    for word in _FIND.findall(text):
        piece = word.encode(errors="replace")
        if piece in _WORD_IDS:
            tokens.append(_WORD_IDS[piece])
        else:
            tokens += [_FIRST_BYTE + byte for byte in piece]
    return tokens


def decode(tokens: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def render(messages: Sequence[dict[str, str]]) -> str:
    """Write a chat as ``CHAT`` does, up to where the assistant begins to speak."""
    turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
    return "".join(turns) + "<|im_start|>assistant\n"


def write_tokenizer(folder: Path) -> Path:
    """Save a tokenizer of transformers that does the same as ``encode``, ``decode`` and ``render``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    signs = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    names = [*SPECIAL, *("".join(signs[byte] for byte in piece) for piece in PIECES[_FIRST_BYTE:])]
    vocabulary = {name: token for token, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=SPECIAL[EOS], additional_special_tokens=list(SPECIAL[1:])
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


# --- what comes next --------------------------------------------------------------------------------------


def read(prefix: Sequence[int], state: int = 0) -> int:
    """Return the state behind a prefix that is read from ``state`` on."""
    return zlib.crc32(array("I", prefix).tobytes(), state)


def logprobs(state: int) -> Sequence[float]:
    """Return the log-probability of each token, nats, by id."""
    return _logprobs(state % _STATES)


def likeliest(state: int, n: int) -> Sequence[int]:
    """Return the ``n`` likeliest tokens, in order."""
    return _order(state % _STATES)[:n]


@lru_cache(_STATES)
def _logprobs(state: int) -> array[float]:
    weights = [1e-2 + token * 1e-3 for token in range(_FIRST_BYTE)]
    for token in range(_FIRST_BYTE, SIZE):
        if token in _LIKELY:
            weights.append(0.05 + zlib.crc32(PIECES[token], state) % 1_000_000 / 10_000)
        else:  # a byte of any word; never twice the same, so that orders are certain
            weights.append(1e-3 + token * 1e-6)
    weights[EOS] = 0.05 + zlib.crc32(b"the end", state) % 1_000_000 / 7_000  # every 50th token or so
    total = math.fsum(weights)
    return array("d", [math.log(weight / total) for weight in weights])


@lru_cache(_STATES)
def _order(state: int) -> Sequence[int]:
    found = _logprobs(state)
    return sorted(range(SIZE), key=lambda token: -found[token])


# --- drawing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How to draw.

    Attributes:
        steps: what is done to the distribution, in order: temperature, top_k, top_p, min_p.
        bias: added to the logits of these tokens before.
    """

    steps: tuple[str, ...] = ("temperature", "top_k", "top_p", "min_p")
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """Attributes: states: before each token. finish: "stop" or "length". stop: the string met, if any."""

    tokens: list[int]
    states: list[int]
    finish: str
    stop: str | None = None


def chances(state: int, way: Way) -> tuple[Sequence[int], Sequence[float]]:
    """Return the tokens that may be drawn, likeliest first, and the sum of probabilities up to each."""
    return _chances(state % _STATES, way)


def probabilities(state: int, way: Way) -> dict[int, float]:
    """Return the probability of each token that may be drawn, likeliest first; however small, it is exact."""
    tokens, _ = chances(state, way)
    own = _logprobs(state % _STATES)
    bias = dict(way.bias)
    logits = [(own[token] + bias.get(token, 0.0)) / (way.temperature or 1.0) for token in tokens]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    total = math.fsum(weights)
    return {token: weight / total for token, weight in zip(tokens, weights, strict=True)}


@lru_cache(2048)
def _chances(state: int, way: Way) -> tuple[array[int], array[float]]:
    logits = list(_logprobs(state))
    for token, bias in way.bias:
        logits[token] += bias
    left = sorted(range(SIZE), key=lambda token: -logits[token])
    if way.temperature == 0:
        left = left[:1]
    for step in way.steps:
        if step == "temperature" and way.temperature > 0:
            logits = [logit / way.temperature for logit in logits]
        elif step == "top_k" and way.top_k > 0:
            left = left[: way.top_k]
        elif step == "top_p" and way.top_p < 1:
            before = (0.0, *_sums(left, logits))
            left = [token for token, mass in zip(left, before, strict=False) if mass < way.top_p]
        elif step == "min_p" and way.min_p > 0:
            least = logits[left[0]] + math.log(way.min_p)
            left = [token for token in left if logits[token] >= least]
    return array("i", left), array("d", _sums(left, logits))


def _sums(tokens: Sequence[int], logits: Sequence[float]) -> list[float]:
    """Return the sums of the tokens' probabilities among each other."""
    highest = max(logits[token] for token in tokens)
    weights = [math.exp(logits[token] - highest) for token in tokens]
    total, so_far, sums = math.fsum(weights), 0.0, []
    for weight in weights:
        so_far += weight / total
        sums.append(so_far)
    return sums


def recite(state: int, text: str, max_tokens: int) -> Completion:
    """Say a text and end, or as much of it as there is room for."""
    said = [*encode(text), EOS]
    tokens = said[:max_tokens]
    states = [read(tokens[:i], state) for i in range(len(tokens))]
    return Completion(tokens, states, "stop" if tokens == said else "length")


def draw(
    state: int, way: Way, max_tokens: int, seed: int, ends: frozenset[int], stop: Sequence[str] = ()
) -> Completion:
    """Draw token by token until one of ``ends`` or a string of ``stop``, which is drawn too."""
    generator = random.Random(seed)
    tokens: list[int] = []
    states: list[int] = []
    text = b""
    while len(tokens) < max_tokens:
        candidates, sums = chances(state, way)
        place = bisect(sums, generator.random() * sums[-1]) if len(candidates) > 1 else 0
        token = candidates[min(place, len(candidates) - 1)]
        tokens.append(token)
        states.append(state)
        if token in ends:
            return Completion(tokens, states, "stop")
        text += PIECES[token]
        for string in stop:
            if string.encode() in text:
                return Completion(tokens, states, "stop", string)
        state = read((token,), state)
    return Completion(tokens, states, "length")
