"""A scripted toy model for tests, documentation, and users' own tests.

Tokens are words and punctuation marks with the white space before them, so a search over them can be followed
by hand. ``next_words`` defines which words may follow a text; ``opinion`` defines the log-probability of a
label after a question; ``state`` defines what a probe finds in the hidden state of a text's last word. All
receive text, never token ids.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rain_llm.errors import ModelError, PromptError, PromptTooLongError
from rain_llm.forks import renew_after_fork
from rain_llm.models.grammar import Matcher, check_sample, spelled_out
from rain_llm.requests import Continuation, Read, Reading, Sample, Samples, Score, Scores, Values
from rain_llm.tools import spoken
from rain_llm.types import Message, TokenIds, Tool

NextWords: TypeAlias = Callable[[str], Mapping[str, float]]
Opinion: TypeAlias = Callable[[str, str], float]
State: TypeAlias = Callable[[str], float]
_Drawn: TypeAlias = tuple[list[tuple[str, float]], bool]  # words with log-probabilities; whether it ended

END = "<|end|>"
"""The word that ends an answer."""

_SPECIAL = (END, "<|user|>", "<|assistant|>", "<|system|>")  # token ids are the indices
_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")


def script(continuations: Mapping[str, Mapping[str, float]]) -> NextWords:
    """Create ``next_words`` from a table: the longest key that a text ends with selects the next words.

    A text that ends with no key is finished.
    """

    def next_words(text: str) -> Mapping[str, float]:
        fitting = [key for key in continuations if text.endswith(key)]
        return continuations[max(fitting, key=len)] if fitting else {END: 1.0}

    return next_words


@dataclass
class ScriptedModel:
    """A scripted ``LanguageModel`` that needs no weights.

    Attributes:
        next_words: text -> {next word: weight}, weights > 0; ``END`` ends the answer. A word must be one
            token: a word or a punctuation mark, with the white space before it. With a schema, only words
            that it allows are sampled.
        opinion: (question, label) -> log-probability of the label in nats. By default all labels are equal.
        name: the model's name.
        context_length: context length in tokens.
        start: tokens that every raw text begins with.
        state: text up to a word -> the hidden state of that word, which is a single number.
        fingerprint: what a probe's file must name.
        folder: where probes may lie.
        requests: all requests received, in order.
        model_tokens: tokens processed so far.
        forwards: forward passes so far.
    """

    next_words: NextWords
    opinion: Opinion = lambda question, label: -1.0
    name: str = "scripted"
    context_length: int = 4096
    start: TokenIds = ()
    state: State = lambda text: 0.0
    fingerprint: str = "scripted"
    folder: Path | None = None
    requests: list[Sample | Score | Read] = field(default_factory=list)
    model_tokens: int = 0
    forwards: int = 0

    def __post_init__(self) -> None:
        self._words: dict[int, str] = {}
        self._watched: dict[str, Reading] = {}
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Replace the lock, so that the model works in a forked process."""
        self._lock = threading.RLock()

    def encode(self, text: str) -> TokenIds:
        """Encode text word by word; the name of a special token is encoded as ordinary words."""
        with self._lock:
            return tuple(self._id(word) for word in _WORDS.findall(text))

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text; special tokens are left out."""
        return "".join(self._words[token] for token in tokens if token >= len(_SPECIAL))

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render each message after a special token of its role; tools are described in words."""
        tokens: list[int] = []
        for message in spoken(messages, tools):
            tokens += [_SPECIAL.index(f"<|{message.role}|>"), *self.encode(message.content)]
        return (*tokens, _SPECIAL.index("<|assistant|>"))

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Sample continuations word by word."""
        with self._lock:
            for request in batch:
                self._check(request.prefix, request.max_tokens)
                check_sample(request)
            self.requests += batch
            replies = [self._sample(request) for request in batch]
            self.forwards += max((reply.forwards for reply in replies), default=0)
            self.model_tokens += sum(reply.model_tokens for reply in replies)
            return replies

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Call ``opinion`` for every option."""
        with self._lock:
            for request in batch:
                self._check(request.prefix, max(map(len, request.options)))
            self.requests += batch
            self.forwards += 1
            self.model_tokens += sum(len(request.prefix) for request in batch)
            return [
                Scores(
                    tuple(self.opinion(self.decode(r.prefix), self.decode(option)) for option in r.options),
                    model_tokens=len(r.prefix),
                    forwards=1,
                )
                for r in batch
            ]

    @property
    def depth(self) -> int:
        """Return the number of blocks: one."""
        return 1

    @property
    def width(self) -> int:
        """Return the size of a hidden state: one number."""
        return 1

    def watch(self, readings: Sequence[Reading]) -> None:
        """Remember the readings."""
        with self._lock:
            self._watched |= {reading.name: reading for reading in readings}

    def states(self, prefix: TokenIds, tokens: TokenIds, layers: Sequence[int]) -> NDArray[np.float32]:
        """Call ``state`` for every word, shape [tokens, layers, 1]."""
        self._check(prefix, len(tokens))
        self._check(tokens, 0)
        texts = [self.decode(prefix + tokens[: i + 1]) for i in range(len(tokens))]
        found = np.array([self.state(text) for text in texts], np.float32)
        return np.repeat(found[:, None, None], len(layers), axis=1)

    def read(self, batch: Sequence[Read]) -> list[Values]:
        """Multiply each word's ``state`` by the weight of each reading."""
        with self._lock:
            self.requests += batch
            replies = []
            for request in batch:
                states = self.states(request.prefix, request.tokens, (0,))[:, 0, 0]
                weights = [float(self._watched[name].weights.sum()) for name in request.readings]
                values = tuple(tuple(float(state) * weight for state in states) for weight in weights)
                replies.append(Values(values, len(request.tokens), 1))
            self.forwards += 1
            self.model_tokens += sum(reply.model_tokens for reply in replies)
            return replies

    def _id(self, word: str) -> int:
        # Derived from the word alone: sampling depends on token ids, which must not depend on earlier texts.
        digest = blake2b(word.encode(), digest_size=6).digest()
        token = len(_SPECIAL) + int.from_bytes(digest, "little")
        self._words[token] = word
        return token

    def _check(self, prefix: TokenIds, more: int) -> None:
        if not prefix:
            raise PromptError("a prefix of 0 tokens cannot be continued: give at least 1 token")
        if len(prefix) + more > self.context_length:
            raise PromptTooLongError(
                f"{len(prefix)} tokens and {more} more exceed the context of {self.name}, "
                f"{self.context_length} tokens: shorten the prompt or ask for fewer tokens"
            )

    def _sample(self, request: Sample) -> Samples:
        rng = np.random.default_rng(request.seed)
        for i in range(len(request.prefix) - request.start, len(request.prefix)):
            rng.exponential(size=len(self.next_words(self.decode(request.prefix[:i]))))  # drawn before
        drawn: list[_Drawn] = []
        for i in range(request.n):
            if request.ranked:
                words, logprobs = self._distribution(self.decode(request.prefix))
                order = np.argsort(-logprobs, kind="stable")
                if i < len(order):
                    word = words[order[i]]
                    drawn.append(([(word, float(logprobs[order[i]]))], word == END))
            else:
                drawn.append(self._branch(request, rng, greedy=request.greedy_first and i == 0))
        longest = max((len(words) for words, _ in drawn), default=0)
        cost = len(request.prefix) + sum(max(0, len(words) - 1) for words, _ in drawn)
        return Samples(tuple(self._continuation(*branch) for branch in drawn), cost, longest)

    def _branch(self, request: Sample, rng: np.random.Generator, greedy: bool) -> _Drawn:
        drawn: list[tuple[str, float]] = []
        text = self.decode(request.prefix)
        matcher = spelled_out().matcher(request.schema) if request.schema else None
        while len(drawn) < request.max_tokens and not (matcher and matcher.whole):
            words, logprobs = self._distribution(text)
            fitting = self._fitting(words, matcher) if matcher else np.ones(len(words), np.bool_)
            chosen = self._draw(request, np.where(fitting, logprobs, -np.inf), rng, greedy)
            drawn.append((words[chosen], float(logprobs[chosen])))
            if words[chosen] == END or (request.ends and words[chosen].endswith(request.ends)):
                break
            text += words[chosen]
            if matcher:
                matcher.advance(words[chosen].encode())
        ended = (matcher is not None and matcher.whole) or (bool(drawn) and drawn[-1][0] == END)
        return drawn, ended and (matcher is None or matcher.fits)

    @staticmethod
    def _fitting(words: Sequence[str], matcher: Matcher) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        fitting = [matcher.may_end if word == END else matcher.allows(word.encode()) for word in words]
        if not any(fitting):
            raise ModelError(
                f"the script offers {', '.join(map(repr, words))}, and the schema allows none of it"
            )
        return np.array(fitting)

    @staticmethod
    def _draw(
        request: Sample,
        logprobs: np.ndarray[tuple[int], np.dtype[np.float64]],
        rng: np.random.Generator,
        greedy: bool,
    ) -> int:
        order = np.argsort(-logprobs, kind="stable")
        noise = rng.exponential(size=len(logprobs))
        if greedy:
            return int(order[0])
        scores = logprobs / request.temperature
        if request.top_k:
            scores[order[request.top_k :]] = -np.inf
        if request.top_p < 1:
            ranked = np.exp(scores[order] - scores.max())
            before = np.cumsum(ranked) / ranked.sum() - ranked / ranked.sum()
            scores[order[before >= request.top_p]] = -np.inf
        return int(np.argmax(scores - np.log(noise)))

    def _distribution(self, text: str) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.float64]]]:
        weights = self.next_words(text)
        total = math.fsum(weights.values())
        return list(weights), np.array([math.log(weight / total) for weight in weights.values()])

    def _continuation(self, drawn: Sequence[tuple[str, float]], ended: bool) -> Continuation:
        kept = drawn[:-1] if drawn and drawn[-1][0] == END else drawn
        return Continuation(
            tuple(self._id(word) for word, _ in kept),
            tuple(logprob for _, logprob in kept),
            ended,
            math.fsum(logprob for _, logprob in drawn),
        )
