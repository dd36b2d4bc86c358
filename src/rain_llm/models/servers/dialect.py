"""The base of all kinds of completions servers: what they are asked for, what comes back, what it costs.

vLLM, SGLang and llama-server all take ``POST /v1/completions`` with token ids and return token ids. They
differ in how they report what was drawn, in how they are asked for the log-probability of a given token, and
in what they leave out; each has a subclass of :class:`Dialect` in a file of its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Protocol, Self, TypeVar

from rain_llm.bounds import CONTEXT, DESCRIPTION_BYTES
from rain_llm.models.servers.reading import Node, Unreadable
from rain_llm.models.tokenizer import Text
from rain_llm.types import TokenIds

Found = TypeVar("Found")
Body = dict[str, Any]
PATH = "/v1/completions"


class Ask(Protocol):
    """Posts a body to a path; returns what ``read`` makes of the reply."""

    def __call__(self, body: Body, read: Callable[[Any], Any], path: str = PATH) -> Awaitable[Any]:
        """Ask until there is a reply that ``read`` accepts."""
        ...


class Fetch(Protocol):
    """Asks one server once, and waits for the reply: POST with a body, else GET."""

    def __call__(self, path: str, body: Body | None = None, most: int = DESCRIPTION_BYTES) -> Any:
        """Return the JSON of a reply of at most ``most`` bytes; None if the server knows no such path."""
        ...


Post = Callable[[str, Body, Callable[[Any], Any]], Any]
"""Posts a body to a path, waits for the reply, and returns what a function makes of it."""


Contexts = Mapping[TokenIds, frozenset[int]]
"""For each prefix, the tokens whose log-probabilities after it are wanted."""

Weighed = dict[TokenIds, dict[int, float]]
"""For each prefix, log-probabilities of tokens after it, nats."""

FORCE = 100.0
"""A logit bias that makes a token certain; more would cost precision."""

BAR = -100.0
"""A logit bias that rules a token out."""


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What to draw: as :class:`~rain_llm.requests.Sample`, but ``temperature`` 0 takes the likeliest token.

    Attributes:
        ends: strings after which the server may end a continuation.
        end_tokens: the tokens whose text ends with one of these, and all special tokens.
        schema: JSON text of the schema that a document must match; see ``grammar.narrowed``.
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
    """One continuation as the server returns it.

    Attributes:
        tokens: all that were drawn, one that ends the text included. logprobs: nats, one for each.
        closed: the last token ends the text, though the tokenizer does not know it as special.
    """

    tokens: TokenIds
    logprobs: tuple[float, ...]
    closed: bool = False


@dataclass
class Cost:
    """What a request has cost so far, as the server reports it.

    Attributes:
        prompt_tokens: in all prompts. cached_tokens: of these, found in the server's cache.
        drawn_tokens: that went through the model again after they were drawn.
        forwards: forward passes, one after another.
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
        """Add the cost of a request that was made after this one."""
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.drawn_tokens += other.drawn_tokens
        self.forwards += other.forwards

    def add_beside(self, other: Cost) -> None:
        """Add the cost of a request that was made at the same time."""
        forwards = max(self.forwards, other.forwards)
        self.add(other)
        self.forwards = forwards

    def charge_prompt(self, reply: Any, length: int) -> None:
        """Count a prompt of ``length`` tokens: all of it, if the server reports no cached tokens.

        Raises:
            Unreadable: the server reports another number of prompt tokens.
        """
        usage = Node(reply)["usage"]
        read, cached = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]
        if read.there and read.whole(0, CONTEXT) != length:
            raise Unreadable(f"read {read.value} of {length} prompt tokens: it truncates prompts")
        found = cached.whole(0, length) if cached.there else 0
        self.prompt_tokens += length
        self.cached_tokens += found

    def charge_drawn(self, drawn: Sequence[Completion]) -> None:
        """Count continuations that were drawn at the same time."""
        self.drawn_tokens += sum(max(0, len(one.tokens) - 1) for one in drawn)
        self.forwards += max(len(one.tokens) for one in drawn)


@dataclass(frozen=True)
class Facts:
    """What a server reports about itself; all servers of a model report the same.

    Attributes:
        name: of the model. context_length: in tokens.
        dialects: the kinds of server that it may be, in the order in which they are tried.
        slots: requests that it works on at once; 0: it reports no limit.
        vocabulary: tokens in its vocabulary; 0: it does not report them.
        root: the folder or hub name that it has loaded the model from; "" if it reports none.
    """

    name: str
    context_length: int
    dialects: tuple[type[Dialect], ...]
    slots: int = 0
    vocabulary: int = 0
    root: str = field(default="", compare=False)

    def __str__(self) -> str:
        more = f", {self.slots} slots" if self.slots else ""
        more += f", a vocabulary of {self.vocabulary} tokens" if self.vocabulary else ""
        return f"{self.name} with a context of {self.context_length} tokens{more}"


class Dialect(ABC):
    """How one kind of server is asked.

    To support another kind, write a subclass in a file of its own, and add it to ``probe.DIALECTS``.

    The class methods read what a server reports before anything is known of it; :meth:`for_model` then makes
    the instance that sends requests. An instance holds no state: many requests share it.

    Attributes:
        in_turn: the requests of a search go one after another: two at the same time would not share a cache.
    """

    in_turn: ClassVar[bool] = False

    @classmethod
    def recognises(cls, props: Node) -> bool | None:
        """Return whether a server is of this kind, by its ``/props``; None: only a try can tell."""
        return None

    @classmethod
    def reported_slots(cls, props: Node) -> int:
        """Return how many requests the server works on at once; 0: it reports no limit."""
        return 0

    @classmethod
    def reported_vocabulary(cls, model: Node) -> int:
        """Return the tokens in the vocabulary, by its entry in ``/v1/models``; 0: it does not report them."""
        return 0

    @classmethod
    @abstractmethod
    def reported_context(cls, model: Node, props: Node) -> Node:
        """Return where the server reports its context length.

        Args:
            model: its entry in ``/v1/models``.
            props: the reply of ``/props``; missing where there is none.
        """

    @classmethod
    def tokenizer(cls, fetch: Fetch, post: Post, name: str) -> Text | None:
        """Return the server's own tokenizer; None if a user's text could pose as special tokens there.

        Args:
            fetch: asks the server once.
            post: asks any server of the model.
            name: of the model, for errors.

        Raises:
            Failed: no reply. Unreadable: the server does not give its tokens.
        """
        return None

    @classmethod
    @abstractmethod
    def for_model(cls, facts: Facts, common: int, size: int) -> Self:
        """Return how to ask a server for its model.

        Args:
            facts: what the server reports.
            common: a token that is whole words.
            size: of the vocabulary.
        """

    @abstractmethod
    def tokenize_body(self, text: str) -> Body:
        """Return the body that asks ``/tokenize`` for the tokens of ``text``, without a start token."""

    @abstractmethod
    async def draw(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        """Draw ``sampling.n`` continuations."""

    @abstractmethod
    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """Divide the contexts of a round into groups, each of which is weighed by one call."""

    @abstractmethod
    async def rank(self, ask: Ask, prefix: TokenIds, n: int, cost: Cost) -> list[tuple[int, float]]:
        """Return the ``n`` likeliest tokens after ``prefix``, in order, with their log-probabilities."""

    @abstractmethod
    async def weigh(
        self, ask: Ask, contexts: Contexts, cost: Cost, relative: Set[TokenIds] = frozenset()
    ) -> Weighed:
        """Return the log-probability of each wanted token after each prefix.

        After a prefix in ``relative``, all of them may be off by one constant.
        """


async def together(works: Iterable[Coroutine[Any, Any, Found]]) -> list[Found]:
    """Run coroutines at the same time; if one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def distinct(*numbers: int) -> int:
    """Return a seed of 31 bits that depends on all numbers.

    Servers draw the i-th continuation with seed + i, so the seeds of two requests must not be close.
    llama-server takes 32 bits; its largest number means a random seed.
    """
    joined = b"".join(number.to_bytes(9, "little", signed=True) for number in numbers)
    return int.from_bytes(blake2b(joined, digest_size=4).digest(), "little") >> 1
