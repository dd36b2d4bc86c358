"""What is asked of a completions server, and how its replies are read: vLLM's way and llama-server's.

Both take ``POST /v1/completions`` with token ids and give token ids back; they differ in how they say
what was drawn, in how the log-probability of a given token is asked for, and in what they leave out. A
reply is believed only as far as it can be checked: as many continuations as were asked for, the
prompt read whole, nothing clipped. (vLLM 0.32, llama.cpp of October 2026; what was tried stands in
``docs/scale-out.md``.)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Protocol

from rain_llm.models.replicas import Unreadable
from rain_llm.types import TokenIds

Body = dict[str, Any]
Ask = Callable[[Body, Callable[[Any], Any]], Awaitable[Any]]
"""Sends a body, and returns what a function makes of the reply."""

Contexts = Mapping[TokenIds, frozenset[int]]
"""For each prefix, the tokens whose log-probabilities behind it are wanted."""

Weighed = dict[TokenIds, dict[int, float]]
"""For each prefix, log-probabilities of tokens behind it, nats."""

_SINGLY, _BATCH = 4, 64  # contexts that are asked one by one; prompts of one request
_MOST_LABELS = 128  # of one request to vLLM
_NONSENSE = -9000.0  # nats: no log-probability
_ROUNDING = 1e-2
_LEAST = 1e-38  # a smaller probability is told as 0 by a server that computes in float32
_FORCE = 100.0  # a logit bias that makes a token certain; more would cost precision


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be drawn: as :class:`~rain_llm.types.Sample`, but ``temperature`` 0 is the likeliest token.

    Attributes:
        ends: strings behind which the server may end a continuation.
        end_tokens: the tokens whose text ends with one of these, and all that are no text.
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


@dataclass(frozen=True, slots=True)
class Drawn:
    """One continuation as the server gives it.

    Attributes:
        tokens: all that were drawn, one that ends the text included. logprobs: nats, one for each.
        closed: the last one ends the text, though the tokenizer does not know it as such.
    """

    tokens: TokenIds
    logprobs: tuple[float, ...]
    closed: bool = False


@dataclass
class Bill:
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

    def add(self, other: Bill) -> None:
        """Add up what was made one after another."""
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.drawn_tokens += other.drawn_tokens
        self.forwards += other.forwards

    def add_beside(self, other: Bill) -> None:
        """Add up what was made at the same time."""
        forwards = max(self.forwards, other.forwards)
        self.add(other)
        self.forwards = forwards

    def charge_prompt(self, reply: Any, length: int) -> None:
        """Count a prompt of ``length`` tokens; without word of the cache, all of it.

        Raises:
            Unreadable: the server has read another number of tokens.
        """
        usage = _dict(reply.get("usage"))
        read = usage.get("prompt_tokens")
        if read is not None and read != length:
            raise Unreadable(f"read {read} prompt tokens where {length} were sent: it clips prompts")
        self.prompt_tokens += length
        self.cached_tokens += int(_dict(usage.get("prompt_tokens_details")).get("cached_tokens") or 0)

    def charge_drawn(self, drawn: Sequence[Drawn]) -> None:
        """Count what was drawn side by side."""
        self.drawn_tokens += sum(max(0, len(one.tokens) - 1) for one in drawn)
        self.forwards += max(len(one.tokens) for one in drawn)


class Dialect(Protocol):
    """How one kind of server is spoken to."""

    async def draw(self, ask: Ask, wish: Wish, bill: Bill) -> list[Drawn]:
        """Draw ``wish.n`` continuations."""
        ...

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """Divide the contexts of a round into those that are weighed by one call."""
        ...

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, bill: Bill) -> list[tuple[int, float]]:
        """Return the ``n`` likeliest tokens behind ``prefix``, in order, with their log-probabilities."""
        ...

    async def weigh(self, ask: Ask, contexts: Contexts, bill: Bill) -> Weighed:
        """Return the log-probability of each wanted token behind each prefix."""
        ...


@dataclass(frozen=True)
class Vllm:
    """vLLM, and what speaks like it: Ray Serve LLM, SGLang (by its documentation).

    Attributes:
        model: the name it is served by.
        knows_labels: it takes ``logprob_token_ids``; else one request a token forces it by a logit bias.
    """

    model: str
    knows_labels: bool = True

    async def draw(self, ask: Ask, wish: Wish, bill: Bill) -> list[Drawn]:
        """Draw all continuations by one request."""

        def read(reply: Any) -> list[Drawn]:
            choices = _choices(reply, wish.n, self.model)
            bill.charge_prompt(reply, len(wish.prefix))
            return [self._drawn(choice, wish) for choice in choices]

        drawn: list[Drawn] = await ask(self._body(wish), read)
        bill.charge_drawn(drawn)
        return drawn

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, bill: Bill) -> list[tuple[int, float]]:
        """Ask for the likeliest tokens at one place.

        vLLM 0.32 gives nonsense for these while another request asks for labels (its sampler fills a row
        with -9999). Then they are read from the prompt's own log-probabilities, before a token more:
        right, but not cached.
        """
        likeliest = self._body(Wish(prefix, 1, 1, 1, temperature=0)) | {"logprobs": n}
        before = self._body(Wish((*prefix, prefix[-1]), 1, 1, 1, temperature=0)) | {"prompt_logprobs": n}

        def read(reply: Any) -> dict[int, float]:
            (choice,) = _choices(reply, 1, self.model)
            bill.charge_prompt(reply, len(prefix))
            return self._top(choice)

        def read_before(reply: Any) -> dict[int, float]:
            (choice,) = _choices(reply, 1, self.model)
            bill.charge_prompt(reply, len(prefix) + 1)
            places = choice.get("prompt_logprobs") or [{}]
            return {int(token): _dict(place)["logprob"] for token, place in _dict(places[-1]).items()}

        top: dict[int, float] = await ask(likeliest, read)
        bill.forwards += 1
        if len(top) < n or min(top.values()) <= _NONSENSE:
            top = await ask(before, read_before)
            bill.forwards += 1
        if len(top) < n:
            raise Unreadable(f"gave {len(top)} log-probabilities where {n} were asked for")
        return sorted(top.items(), key=lambda item: -item[1])[:n]

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """One by one, side by side: of several prompts vLLM tells the cached tokens of the last only.

        Where there are many, that is worth the requests that it saves.
        """
        size = 1 if len(prefixes) <= _SINGLY else _BATCH
        return [list(prefixes[i : i + size]) for i in range(0, len(prefixes), size)]

    async def weigh(self, ask: Ask, contexts: Contexts, bill: Bill) -> Weighed:
        """Ask about all prefixes by one request."""
        if not self.knows_labels:
            pairs = [(prefix, token) for prefix, tokens in contexts.items() for token in sorted(tokens)]
            logprobs = await asyncio.gather(*(self._force(ask, *pair, bill) for pair in pairs))
            bill.forwards += 1
            found: Weighed = {prefix: {} for prefix in contexts}
            for (prefix, token), logprob in zip(pairs, logprobs, strict=True):
                found[prefix][token] = logprob
            return found
        wanted = sorted(set().union(*contexts.values()))
        weighed: Weighed = {prefix: {} for prefix in contexts}
        for i in range(0, len(wanted), _MOST_LABELS):
            some = frozenset(wanted[i : i + _MOST_LABELS])
            part = await self._weigh(ask, {p: tokens & some for p, tokens in contexts.items()}, bill)
            for prefix, told in part.items():
                weighed[prefix] |= told
        return weighed

    async def _weigh(self, ask: Ask, contexts: Contexts, bill: Bill) -> Weighed:
        prefixes = list(contexts)
        body = self._body(Wish(prefixes[0], 1, 1, 1, temperature=0)) | {
            "prompt": [list(prefix) for prefix in prefixes],
            "logprob_token_ids": sorted(set().union(*contexts.values())),
        }

        def read(reply: Any) -> Weighed:
            choices = _choices(reply, len(prefixes), self.model)
            bill.charge_prompt(reply, sum(map(len, prefixes)))
            found: Weighed = {}
            for choice, prefix in zip(choices, prefixes, strict=True):
                top = self._top(choice)
                if missing := contexts[prefix] - set(top):
                    raise Unreadable(f"gave no log-probability of token {min(missing)}")
                found[prefix] = {token: _nats(top[token]) for token in contexts[prefix]}
            return found

        weighed: Weighed = await ask(body, read)
        bill.forwards += 1
        return weighed

    async def _force(self, ask: Ask, prefix: TokenIds, token: int, bill: Bill) -> float:
        """Make a token certain; its log-probability is told as if it were not."""
        wish = Wish(prefix, 1, 1, 1, temperature=0)

        def read(reply: Any) -> float:
            (choice,) = _choices(reply, 1, self.model)
            bill.charge_prompt(reply, len(prefix))
            drawn = self._drawn(choice, wish)
            if drawn.tokens != (token,):
                raise Unreadable(f"ignored a logit bias: token {token} was not drawn")
            return drawn.logprobs[0]

        logprob: float = await ask(self._body(wish) | {"logit_bias": {str(token): _FORCE}}, read)
        return logprob

    def _body(self, wish: Wish) -> Body:
        return {
            "model": self.model,
            "prompt": list(wish.prefix),
            "n": wish.n,
            "max_tokens": wish.max_tokens,
            "temperature": wish.temperature,
            "top_k": wish.top_k or -1,
            "top_p": wish.top_p,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": wish.seed,
            "stop_token_ids": list(wish.end_tokens),
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": False,
        }

    @staticmethod
    def _drawn(choice: Body, wish: Wish) -> Drawn:
        logprobs = _dict(choice.get("logprobs")).get("token_logprobs")
        finish = choice.get("finish_reason")
        drawn = _drawn(choice.get("token_ids"), logprobs, wish, finish)
        return replace(drawn, closed=finish == "stop" and drawn.tokens[-1] not in wish.end_tokens)

    @staticmethod
    def _top(choice: Body) -> dict[int, float]:
        """Read the log-probabilities at the first place, by token."""
        places = _dict(choice.get("logprobs")).get("top_logprobs") or [{}]
        return {
            int(name.removeprefix("token_id:")): logprob
            for name, logprob in _dict(places[0]).items()
            if name.startswith("token_id:")
        }


@dataclass(frozen=True)
class LlamaServer:
    """llama-server of llama.cpp.

    Attributes:
        model: the name it is served by; it takes any. slots: requests that it works on at once.
    """

    model: str
    slots: int

    async def draw(self, ask: Ask, wish: Wish, bill: Bill) -> list[Drawn]:
        """Draw as many continuations by a request as there are slots; with ``ends``, one.

        A whole reply leaves out the tokens of a stop string; a stream has them.
        """
        most = 1 if wish.ends else self.slots
        sizes = [min(most, wish.n - done) for done in range(0, wish.n, most)]
        found: list[Drawn] = []
        for i, size in enumerate(sizes):  # one after another: the next finds the prefix in the cache
            body = self._body(wish) | {
                "n": size,
                "seed": distinct(wish.seed, i) if i else wish.seed,
                "stop": list(least(wish.ends)),
                "stream": bool(wish.ends),
                "stream_options": {"include_usage": True},
            }
            found += await ask(body, self._reader(wish, size, bill))
        bill.charge_drawn(found)
        return found

    def _reader(self, wish: Wish, size: int, bill: Bill) -> Callable[[Any], list[Drawn]]:
        def read(reply: Any) -> list[Drawn]:
            if isinstance(reply, list):
                reply = _joined(reply)
            choices = _choices(reply, size, self.model)
            bill.charge_prompt(reply, len(wish.prefix))
            return [
                _drawn(
                    [place.get("id") for place in _content(choice)],
                    [place.get("logprob") for place in _content(choice)],
                    wish,
                    choice.get("finish_reason"),
                )
                for choice in choices
            ]

        return read

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, bill: Bill) -> list[tuple[int, float]]:
        """Ask for the likeliest tokens at one place; as many as the vocabulary has."""
        body = self._body(Wish(prefix, 1, 1, 1, temperature=0)) | {"logprobs": n}

        def read(reply: Any) -> list[tuple[int, float]]:
            places = _content(_choices(reply, 1, self.model)[0])
            bill.charge_prompt(reply, len(prefix))
            top = places[0].get("top_logprobs") if places else None
            if not top:
                raise Unreadable("gave no log-probabilities")
            return [(int(place["id"]), _nats(place["logprob"])) for place in top[:n]]

        ranked: list[tuple[int, float]] = await ask(body, read)
        bill.forwards += 1
        return ranked

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """All by one call, which asks about one after another."""
        return [list(prefixes)]

    async def weigh(self, ask: Ask, contexts: Contexts, bill: Bill) -> Weighed:
        """Ask about one prefix after another: the next finds the common part in the cache.

        The tokens' probabilities among each other come by one request, in which all of them and nothing
        else can be drawn; the raw log-probability of the likeliest, by another one, makes them absolute.
        """
        found: Weighed = {}
        for prefix, wanted in contexts.items():
            chances = dict.fromkeys(wanted, 1.0)
            if len(wanted) > 1:
                chances = await ask(self._forced(prefix, wanted), self._chances(prefix, wanted, bill))
                bill.forwards += 1
            best = max(chances, key=lambda token: (chances[token], -token))
            anchor: float = await ask(self._forced(prefix, {best}), self._anchor(prefix, best, bill))
            bill.forwards += 1
            ratios = {token: chances[token] / chances[best] for token in wanted}
            found[prefix] = {token: anchor + math.log(max(_LEAST, ratio)) for token, ratio in ratios.items()}
        return found

    def _forced(self, prefix: TokenIds, tokens: Iterable[int]) -> Body:
        """Make these tokens the only ones that can be drawn."""
        tokens = sorted(tokens)
        several = len(tokens) > 1
        return self._body(Wish(prefix, 1, 1, 1, temperature=1.0 if several else 0.0)) | {
            "logit_bias": [[token, _FORCE] for token in tokens],
            "logprobs": len(tokens),
            "post_sampling_probs": several,
        }

    def _chances(
        self, prefix: TokenIds, wanted: frozenset[int], bill: Bill
    ) -> Callable[[Any], dict[int, float]]:
        def read(reply: Any) -> dict[int, float]:
            places = _content(_choices(reply, 1, self.model)[0])
            bill.charge_prompt(reply, len(prefix))
            top = (places[0].get("top_probs") if places else None) or []
            chances = {int(place["id"]): float(place["prob"]) for place in top}
            if set(chances) != wanted:
                raise Unreadable("gave the probabilities of other tokens than were asked for")
            if not 0 < sum(chances.values()) < 1 + _ROUNDING or min(chances.values()) < 0:
                raise Unreadable(f"gave {list(chances.values())} for probabilities")
            return chances

        return read

    def _anchor(self, prefix: TokenIds, token: int, bill: Bill) -> Callable[[Any], float]:
        def read(reply: Any) -> float:
            places = _content(_choices(reply, 1, self.model)[0])
            bill.charge_prompt(reply, len(prefix))
            if not places or places[0].get("id") != token:
                raise Unreadable(f"ignored a logit bias: token {token} was not drawn")
            return _nats(places[0].get("logprob"))

        return read

    def _body(self, wish: Wish) -> Body:
        return {
            "model": self.model,
            "prompt": list(wish.prefix),
            "n": 1,
            "max_tokens": wish.max_tokens,
            "temperature": wish.temperature,
            "top_k": wish.top_k,
            "top_p": wish.top_p,
            "min_p": 0.0,
            "samplers": ["temperature", "top_k", "top_p"],  # in this order, and no others
            "seed": wish.seed,
            "logprobs": 1,
            "cache_prompt": True,
            "stream": False,
        }


def distinct(*numbers: int) -> int:
    """Return a seed of 31 bits that hangs on all numbers.

    Both servers draw the i-th continuation by seed + i: the seeds of two requests must not be neighbours.
    llama-server takes 32 bits, of which the largest number means "draw one".
    """
    told = b"".join(number.to_bytes(9, "little", signed=True) for number in numbers)
    return int.from_bytes(blake2b(told, digest_size=4).digest(), "little") >> 1


def least(ends: Iterable[str]) -> tuple[str, ...]:
    """Leave out every string that holds another: where it is met, the other one is too."""
    kept: list[str] = []
    for end in sorted(set(ends), key=len):
        if not any(short in end for short in kept):
            kept.append(end)
    return tuple(kept)


def _choices(reply: Any, count: int, model: str) -> list[Body]:
    """Return the continuations of a reply, in order.

    Raises:
        Unreadable: there are more or fewer than ``count``, or they are another model's.
    """
    found = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise Unreadable("answered with JSON that is no completion")
    if reply.get("model", model) != model:  # llama-server takes any name
        raise Unreadable(f"answered as {reply['model']!r} where {model!r} was asked")
    if len(found) != count:
        raise Unreadable(f"gave {len(found)} continuations where {count} were asked for: it ignores n")
    return sorted(found, key=lambda choice: int(choice.get("index") or 0))


def _drawn(tokens: Any, logprobs: Any, wish: Wish, finish: Any) -> Drawn:
    """Check one continuation.

    Raises:
        Unreadable: ids or log-probabilities are missing, or it was cut short.
    """
    if not isinstance(tokens, list) or not all(isinstance(token, int) and token >= 0 for token in tokens):
        raise Unreadable("gave no token ids of what it drew")
    if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
        raise Unreadable(f"gave no log-probability for each of {len(tokens)} tokens")
    if not tokens:
        raise Unreadable("drew no token")
    if finish == "length" and len(tokens) < wish.max_tokens:
        raise Unreadable(
            f"wrote {len(tokens)} of {wish.max_tokens} tokens: its window is smaller than it says"
        )
    if finish not in ("length", "stop"):
        raise Unreadable(f"ended a text for the reason {finish!r}")
    return Drawn(tuple(tokens), tuple(map(_nats, logprobs)))


def _nats(found: Any) -> float:
    """Read a log-probability.

    Raises:
        Unreadable: it is none: not a number, or one that stands for infinity, or above 0.
    """
    if not isinstance(found, float | int) or not _NONSENSE < found < _ROUNDING:
        raise Unreadable(f"gave {found!r} for a log-probability")
    return float(found)


def _joined(events: Sequence[Any]) -> Body:
    """Make one reply of the events of a stream with one continuation."""
    content: list[Any] = []
    finish: Any = None
    usage: Any = None
    named: Body = {}
    for event in map(_dict, events):
        if error := event.get("error"):
            raise Unreadable(f"broke off a stream: {_dict(error).get('message', error)}")
        usage = event.get("usage") or usage
        named |= {"model": event["model"]} if "model" in event else {}
        for choice in map(_dict, event.get("choices") or ()):
            content += _content(choice)
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise Unreadable("broke off a stream before its end")
    choice = {"index": 0, "logprobs": {"content": content}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage} | named


def _content(choice: Body) -> list[Body]:
    """Return what llama-server says of each drawn token."""
    return [_dict(place) for place in _dict(choice.get("logprobs")).get("content") or ()]


def _dict(found: Any) -> Body:
    return found if isinstance(found, dict) else {}
