"""How llama-server of llama.cpp is spoken to.

Tried with llama.cpp of October 2026.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rain_llm.bounds import CONTEXT, VOCABULARY
from rain_llm.models.servers.dialect import (
    FORCE,
    Ask,
    Body,
    Completion,
    Contexts,
    Cost,
    SampleRequest,
    Weighed,
    choices_of,
    distinct,
    drawn_from,
    nats,
)
from rain_llm.models.servers.reading import Malformed, Node, Unreadable, shown
from rain_llm.types import TokenIds

_BELOW = 40.0  # nats between the biases of the wanted tokens and that of the drawn one
_LEAST = 1e-38  # a smaller probability is reported as 0 by a server that computes in float32
_ROUNDING = 1e-2  # by which probabilities may add up to more than 1


@dataclass(frozen=True)
class LlamaServer:
    """llama-server of llama.cpp.

    Attributes:
        model: the name it is served by; it takes any. slots: requests that it works on at once.
        common: a token that is whole words: of one that only begins a character, replies tell nothing.
        size: of the vocabulary: token ids are below.
    """

    model: str
    slots: int
    common: int
    size: int = VOCABULARY

    async def draw(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        """Draw as many continuations by a request as there are slots; with ``ends``, one.

        A whole reply leaves out the tokens of a stop string; a stream has them. Both leave out those that
        only begin a character (an emoji has several): where some are missing, the request is made again
        in a way that gives all ids, though not all log-probabilities.
        """
        most = 1 if sampling.ends else self.slots
        found: list[Completion] = []
        for done in range(0, sampling.n, most):  # one after another: the next finds the prefix in the cache
            size = min(most, sampling.n - done)
            seed = distinct(sampling.seed, done) if done else sampling.seed
            body = self._body(sampling) | {
                "n": size,
                "seed": seed,
                "stop": list(least(sampling.ends)),
                "stream": bool(sampling.ends),
                "stream_options": {"include_usage": True},
            }
            for child, drawn in enumerate(await ask(body, self._reader(sampling, size, cost))):
                found.append(
                    drawn or await self._by_ids(ask, replace(sampling, n=1, seed=seed + child), cost)
                )
        cost.charge_drawn(found)
        return found

    def _reader(
        self, sampling: SampleRequest, size: int, cost: Cost
    ) -> Callable[[Any], list[Completion | None]]:
        def read(reply: Any) -> list[Completion | None]:
            if isinstance(reply, list):
                reply = _joined(reply)
            choices = choices_of(reply, size, self.model)
            cost.charge_prompt(reply, len(sampling.prefix))
            drawn = Node(reply)["usage"]["completion_tokens"]
            reported = drawn.whole(0, CONTEXT) if drawn.there else None
            return [self._complete(choice, sampling, reported if size == 1 else None) for choice in choices]

        return read

    def _complete(self, choice: Node, sampling: SampleRequest, reported: int | None) -> Completion | None:
        """Read a continuation; None if tokens are missing. ``reported`` is how many were drawn, if known."""
        places = _content(choice)
        finish = choice["finish_reason"].value
        if reported is None:
            begun = any(byte > 127 for place in places for byte in token_bytes(place))
            reported = sampling.max_tokens if finish == "length" else len(places) + begun
        if len(places) < reported <= sampling.max_tokens:
            return None
        tokens, logprobs = ([place[key].value for place in places] for key in ("id", "logprob"))
        return drawn_from(tokens, logprobs, sampling, finish, self.size)

    async def _by_ids(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> Completion:
        """Draw one continuation by llama-server's own way, and ask what each token's log-probability is."""
        body = self._body(sampling) | {
            "n_predict": sampling.max_tokens,
            "stop": list(least(sampling.ends)),
            "return_tokens": True,
        }

        def read(reply: Any) -> TokenIds:
            reported = Node(reply)
            tokens = reported["tokens"].value
            usage = {"cached_tokens": reported["timings"]["cache_n"].value}
            read = {"prompt_tokens": reported["tokens_evaluated"].value, "prompt_tokens_details": usage}
            cost.charge_prompt({"usage": read}, len(sampling.prefix))
            finish = "length" if reported["stop_type"].value == "limit" else "stop"
            logprobs = [0.0] * len(tokens) if isinstance(tokens, list) else None
            return drawn_from(tokens, logprobs, sampling, finish, self.size).tokens

        tokens: TokenIds = await ask(body, read, "/completion")
        places = [(sampling.prefix + tokens[:i], token) for i, token in enumerate(tokens)]
        weighed = await self.weigh(ask, {prefix: frozenset({token}) for prefix, token in places}, cost)
        return Completion(tokens, tuple(weighed[prefix][token] for prefix, token in places))

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, cost: Cost) -> list[tuple[int, float]]:
        """Ask for the likeliest tokens at one place; as many as the vocabulary has."""
        body = self._forced(prefix, {self.common: FORCE}) | {"logprobs": n}

        def read(reply: Any) -> list[tuple[int, float]]:
            top = self._place(reply, prefix, cost)["top_logprobs"].items()
            found = [(self._id(place), nats(place["logprob"].value)) for place in top]
            if len(found) < n or len({token for token, _ in found}) < len(found):
                raise Malformed(f"gave {len(found)} log-probabilities where {n} were asked for")
            return sorted(found, key=lambda pair: -pair[1])[:n]

        ranked: list[tuple[int, float]] = await ask(body, read)
        cost.forwards += 1
        return ranked

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """All by one call, which asks about one after another."""
        return [list(prefixes)]

    async def weigh(self, ask: Ask, contexts: Contexts, cost: Cost) -> Weighed:
        """Ask about one prefix after another: the next finds the common part in the cache.

        By logit biases the ``common`` token is drawn for certain. One request tells how likely the wanted
        tokens are beside it, lifted above all others; another one, what its own log-probability is.
        """
        found: Weighed = {}
        for prefix, wanted in contexts.items():
            others = wanted - {self.common}
            biases = dict.fromkeys(sorted(others), FORCE - _BELOW) | {self.common: FORCE}
            chances: dict[int, float] = {}
            if others:
                body = self._forced(prefix, biases) | {"temperature": 1.0, "post_sampling_probs": True}
                chances = await ask(body, self._chances(prefix, set(biases), cost))
                cost.forwards += 1
            common: float = await ask(self._forced(prefix, {self.common: FORCE}), self._logprob(prefix, cost))
            cost.forwards += 1
            found[prefix] = {self.common: common} if self.common in wanted else {}
            for token in others:
                ratio = max(_LEAST, chances[token]) / chances[self.common]
                found[prefix][token] = common + math.log(ratio) + _BELOW
        return found

    def _forced(self, prefix: TokenIds, biases: Mapping[int, float]) -> Body:
        """Draw one token, with these logit biases."""
        return self._body(SampleRequest(prefix, 1, 1, 1, temperature=0)) | {
            "logit_bias": [[token, bias] for token, bias in biases.items()],
            "logprobs": len(biases),
        }

    def _id(self, place: Node) -> int:
        return place["id"].whole(0, self.size - 1)

    def _place(self, reply: Any, prefix: TokenIds, cost: Cost) -> Node:
        """Read what is said of the one token that was drawn, which must be the ``common`` one.

        Raises:
            Unreadable: it is another.
        """
        places = _content(choices_of(reply, 1, self.model)[0])
        cost.charge_prompt(reply, len(prefix))
        if not places or places[0]["id"].value != self.common:
            raise Unreadable(f"ignored a logit bias: token {self.common} was not drawn")
        return places[0]

    def _chances(self, prefix: TokenIds, wanted: set[int], cost: Cost) -> Callable[[Any], dict[int, float]]:
        def read(reply: Any) -> dict[int, float]:
            top = self._place(reply, prefix, cost)["top_probs"].items()
            chances = {self._id(place): place["prob"].number(0, 1 + _ROUNDING) for place in top}
            if set(chances) != wanted:
                raise Unreadable("gave the probabilities of other tokens than were asked for")
            if chances[self.common] == 0 or sum(chances.values()) > 1 + _ROUNDING:
                raise Malformed(f"gave {list(chances.values())} for probabilities")
            return chances

        return read

    def _logprob(self, prefix: TokenIds, cost: Cost) -> Callable[[Any], float]:
        return lambda reply: nats(self._place(reply, prefix, cost)["logprob"].value)

    def _body(self, sampling: SampleRequest) -> Body:
        return {
            "model": self.model,
            "prompt": list(sampling.prefix),
            "n": 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "samplers": ["temperature", "top_k", "top_p"],  # in this order, and no others
            "seed": sampling.seed,
            "logprobs": 1,
            "cache_prompt": True,
            "stream": False,
        } | ({"json_schema": json.loads(sampling.schema)} if sampling.schema else {})


def least(ends: Iterable[str]) -> tuple[str, ...]:
    """Leave out every string that holds another: where it is met, the other one is too."""
    kept: list[str] = []
    for end in sorted(set(ends), key=len):
        if not any(short in end for short in kept):
            kept.append(end)
    return tuple(kept)


def _joined(events: Sequence[Any]) -> Body:
    """Make one reply of the events of a stream with one continuation."""
    content: list[Any] = []
    finish: Any = None
    usage: Any = None
    named: Body = {}
    for event in map(Node, events):
        if event["error"].there:
            error = event["error"].value
            said = error.get("message") if isinstance(error, dict) else error
            raise Unreadable(f"broke off a stream: {said if isinstance(said, str) else shown(said)}")
        usage = event["usage"].value or usage
        named |= {"model": event.value["model"]} if event.there and "model" in event.value else {}
        for choice in event["choices"].items():
            content += [place.value for place in _content(choice)]
            finish = choice["finish_reason"].value or finish
    if finish is None:
        raise Unreadable("broke off a stream before its end")
    joined = {"index": 0, "logprobs": {"content": content}, "finish_reason": finish}
    return {"choices": [joined], "usage": usage} | named


def _content(choice: Node) -> list[Node]:
    """Return what llama-server says of each drawn token."""
    return choice["logprobs"]["content"].items()


def token_bytes(place: Node) -> bytes:
    """Return the bytes of a token."""
    values = place["bytes"].value or []
    if not isinstance(values, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in values):
        raise place["bytes"].wrong("a list of bytes")
    return bytes(values)
