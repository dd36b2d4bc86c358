"""What every kind of completions server is asked for, what its replies must hold, and what they cost.

vLLM and llama-server both take ``POST /v1/completions`` with token ids and give token ids back; they
differ in how they say what was drawn, in how the log-probability of a given token is asked for, and in
what they leave out: see ``vllm`` and ``llama_server``. A reply is believed only as far as it can be
checked: as many continuations as were asked for, by the model that was asked, the prompt read whole,
nothing clipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from rain_llm.bounds import CONTEXT
from rain_llm.models.servers.reading import Malformed, Node, Unreadable, is_number, shown, token_ids
from rain_llm.types import TokenIds

Found = TypeVar("Found")
Body = dict[str, Any]
PATH = "/v1/completions"


class Ask(Protocol):
    """Sends a body to a path, and returns what a function makes of the reply."""

    def __call__(self, body: Body, read: Callable[[Any], Any], path: str = PATH) -> Awaitable[Any]:
        """Ask until there is a reply that ``read`` accepts."""
        ...


Contexts = Mapping[TokenIds, frozenset[int]]
"""For each prefix, the tokens whose log-probabilities behind it are wanted."""

Weighed = dict[TokenIds, dict[int, float]]
"""For each prefix, log-probabilities of tokens behind it, nats."""

FORCE = 100.0
"""A logit bias that makes a token certain; more would cost precision."""

BAR = -100.0
"""A logit bias that rules a token out."""

NONSENSE = -9000.0
"""Nats: what is below is no log-probability."""

_ROUNDING = 1e-2  # nats by which one may be above 0
_DIGITS = 9  # of a token id


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What is to be drawn: as :class:`~rain_llm.requests.Sample`; ``temperature`` 0: the likeliest token.

    Attributes:
        ends: strings behind which the server may end a continuation.
        end_tokens: the tokens whose text ends with one of these, and all that are no text.
        schema: JSON text of the schema that a document is to fit; see ``grammar.narrowed``.
        barred: with a schema, the tokens that no document needs: those with control characters.
    """

    prefix: TokenIds
    n: int
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    ends: tuple[str, ...] = ()
    end_tokens: frozenset[int] = frozenset()
    schema: str = ""
    barred: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation as the server gives it.

    Attributes:
        tokens: all that were drawn, one that ends the text included. logprobs: nats, one for each.
        closed: the last one ends the text, though the tokenizer does not know it as such.
    """

    tokens: TokenIds
    logprobs: tuple[float, ...]
    closed: bool = False


@dataclass
class Cost:
    """What a request has cost so far, by what the server reports.

    Attributes:
        prompt_tokens: in all prompts. cached_tokens: of these, found in the server's cache.
        drawn_tokens: that went through the model again after they were drawn.
        forwards: passes one after another.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    drawn_tokens: int = 0
    forwards: int = 0

    @property
    def model_tokens(self) -> int:
        """Tokens that went through the model."""
        return self.prompt_tokens - self.cached_tokens + self.drawn_tokens

    def add(self, other: Cost) -> None:
        """Add up what was made one after another."""
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.drawn_tokens += other.drawn_tokens
        self.forwards += other.forwards

    def add_beside(self, other: Cost) -> None:
        """Add up what was made at the same time."""
        forwards = max(self.forwards, other.forwards)
        self.add(other)
        self.forwards = forwards

    def charge_prompt(self, reply: Any, length: int) -> None:
        """Count a prompt of ``length`` tokens; without word of the cache, all of it.

        Raises:
            Unreadable: the server has read another number of tokens.
        """
        usage = Node(reply)["usage"]
        read, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        if read.there and read.whole(0, CONTEXT) != length:
            raise Unreadable(f"read {read.value} prompt tokens where {length} were sent: it clips prompts")
        found = cached.whole(0, length) if cached.there else 0
        self.prompt_tokens += length
        self.cached_tokens += found

    def charge_drawn(self, drawn: Sequence[Completion]) -> None:
        """Count what was drawn side by side."""
        self.drawn_tokens += sum(max(0, len(one.tokens) - 1) for one in drawn)
        self.forwards += max(len(one.tokens) for one in drawn)


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    async def draw(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        """Draw ``sampling.n`` continuations."""
        ...

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """Divide the contexts of a round into those that are weighed by one call."""
        ...

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, cost: Cost) -> list[tuple[int, float]]:
        """Return the ``n`` likeliest tokens behind ``prefix``, in order, with their log-probabilities."""
        ...

    async def weigh(self, ask: Ask, contexts: Contexts, cost: Cost) -> Weighed:
        """Return the log-probability of each wanted token behind each prefix."""
        ...


async def together(works: Iterable[Coroutine[Any, Any, Found]]) -> list[Found]:
    """Do these side by side; if one fails, the others are given up."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def distinct(*numbers: int) -> int:
    """Return a seed of 31 bits that hangs on all numbers.

    Both servers draw the i-th continuation by seed + i: the seeds of two requests must not be neighbours.
    llama-server takes 32 bits, of which the largest number means "draw one".
    """
    reported = b"".join(number.to_bytes(9, "little", signed=True) for number in numbers)
    return int.from_bytes(blake2b(reported, digest_size=4).digest(), "little") >> 1


def choices_of(reply: Any, count: int, model: str) -> list[Node]:
    """Return the continuations of a reply, in order.

    Raises:
        Unreadable: there are more or fewer than ``count``, or they are another model's.
    """
    found = Node(reply)
    if not found["choices"].there:
        raise Malformed("answered with JSON that is no completion")
    choices = found["choices"].items()
    if found.value.get("model", model) != model:  # llama-server takes any name
        raise Unreadable(f"answered as {shown(found['model'].value)} where {model!r} was asked")
    if len(choices) != count:
        raise Unreadable(f"gave {len(choices)} continuations where {count} were asked for: it ignores n")
    places = [
        choice["index"].whole(0, count - 1) if choice["index"].there else i
        for i, choice in enumerate(choices)
    ]
    if len(set(places)) != count:
        raise Malformed("gave two continuations of one index")
    return [choice for _, choice in sorted(zip(places, choices, strict=True), key=lambda pair: pair[0])]


def drawn_from(tokens: Any, logprobs: Any, sampling: SampleRequest, finish: Any, size: int) -> Completion:
    """Check one continuation, whose tokens are of a vocabulary of ``size``.

    Raises:
        Unreadable: ids or log-probabilities are missing, or it was cut short.
    """
    if not isinstance(tokens, list) or None in tokens:
        raise Unreadable("gave no token ids of what it drew")
    if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
        raise Unreadable(f"gave no log-probability for each of {len(tokens)} tokens")
    if not tokens:
        raise Unreadable("drew no token")
    if len(tokens) > sampling.max_tokens:
        raise Malformed(f"drew {len(tokens)} tokens where at most {sampling.max_tokens} were asked for")
    drawn = token_ids(tokens, size, "what it drew")
    if finish == "length" and len(tokens) < sampling.max_tokens:
        raise Unreadable(
            f"wrote {len(tokens)} of {sampling.max_tokens} tokens: its window is smaller than it says"
        )
    if finish not in ("length", "stop"):
        raise Unreadable(f"ended a text for the reason {shown(finish)}")
    return Completion(drawn, tuple(map(nats, logprobs)))


def nats(found: Any) -> float:
    """Read a log-probability.

    Raises:
        Unreadable: it is none: not a number, or one that stands for infinity, or above 0.
    """
    if not is_number(found) or not NONSENSE < found < _ROUNDING:
        raise Malformed(f"gave {shown(found)} for a log-probability")
    return float(found)


def numbered(names: Mapping[str, Any], size: int, prefix: str = "") -> dict[int, Any]:
    """Return what an object says of token ids, which are its fields' names behind ``prefix``.

    Raises:
        Malformed: a name is no token id of a vocabulary of ``size``.
    """
    found: dict[int, Any] = {}
    for name, value in names.items():
        digits = name.removeprefix(prefix)
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS and int(digits) < size):
            raise Malformed(f"gave {shown(name)} for a token id below {size:,}")
        found[int(digits)] = value
    return found
