"""Ask llama-server of llama.cpp. Tested with llama.cpp of October 2026."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from rain_llm.bounds import CONTEXT, SLOTS, VOCABULARY
from rain_llm.models.servers.dialect import (
    FORCE,
    Ask,
    Body,
    Completion,
    Contexts,
    Cost,
    Dialect,
    Facts,
    Fetch,
    Post,
    SampleRequest,
    Weighed,
    distinct,
)
from rain_llm.models.servers.llama_tokenizer import LlamaTokenizer, token_bytes, vocabulary
from rain_llm.models.servers.reading import Malformed, Node, Unreadable, shown
from rain_llm.models.servers.replies import choices_of, drawn_from, nats
from rain_llm.models.tokenizer import Text
from rain_llm.types import TokenIds

_BELOW = 40.0  # nats between the biases of the wanted tokens and that of the drawn one
_LEAST = 1e-38  # float32 reports a smaller probability as 0
_ROUNDING = 1e-2  # by which probabilities may add up to more than 1


@dataclass(frozen=True)
class LlamaServer(Dialect):
    """llama-server of llama.cpp.

    Attributes:
        model: the name it is served by; the server accepts any. slots: requests that it works on at once.
        common: a token that is whole words: replies leave out a token that is part of a character.
        size: of the vocabulary: token ids are below.
    """

    in_turn: ClassVar[bool] = True  # each slot has a cache of its own, and a busy one lends nothing

    model: str
    slots: int
    common: int
    size: int = VOCABULARY

    @classmethod
    def recognises(cls, props: Node) -> bool:
        """By its slots: no other server reports these."""
        return cls.reported_slots(props) > 0

    @classmethod
    def reported_slots(cls, props: Node) -> int:
        """Read the number of slots: requests beyond it wait in the server's queue."""
        return props["total_slots"].whole(0, SLOTS) if props["total_slots"].there else 0

    @classmethod
    def reported_vocabulary(cls, model: Node) -> int:
        """Read the size of the vocabulary."""
        size = model["meta"]["n_vocab"]
        return size.whole(1, VOCABULARY) if size.there else 0

    @classmethod
    def reported_context(cls, model: Node, props: Node) -> Node:
        """Return the context of a slot, which is less than the model's."""
        return props["default_generation_settings"]["n_ctx"]

    @classmethod
    def tokenizer(cls, fetch: Fetch, post: Post, name: str) -> Text:
        """Return the server's own tokenizer, which can treat special tokens in a text as plain text."""
        return LlamaTokenizer(post, name, vocabulary(fetch))

    @classmethod
    def for_model(cls, facts: Facts, common: int, size: int) -> Self:
        """Return how to ask a server for its model."""
        return cls(facts.name, facts.slots, common, size)

    def tokenize_body(self, text: str) -> Body:
        """Return the body that asks ``/tokenize`` for the tokens of ``text``."""
        return {"content": text, "add_special": False}

    async def draw(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        """Draw as many continuations per request as there are slots; with ``ends``, one.

        A reply that is not streamed leaves out the tokens of a stop string; a stream has them. Both leave
        out tokens that are part of a character (an emoji has several): if some are missing, the request is
        made again by :meth:`_by_ids`.
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
        """Read a continuation; None if tokens are missing. ``reported``: how many were drawn, if known."""
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
        """Draw one continuation by ``/completion``, which returns all ids; then ask for log-probabilities."""
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
        """Ask for the ``n`` likeliest tokens at one place; ``n`` may be the whole vocabulary."""
        body = self._forced(prefix, {self.common: FORCE}) | {"logprobs": n}

        def read(reply: Any) -> list[tuple[int, float]]:
            top = self._place(reply, prefix, self.common, cost)["top_logprobs"].items()
            found = [(self._id(place), nats(place["logprob"].value)) for place in top]
            if len(found) < n or len({token for token, _ in found}) < len(found):
                raise Malformed(f"returned {len(found)} log-probabilities, not {n} of different tokens")
            return sorted(found, key=lambda pair: -pair[1])[:n]

        ranked: list[tuple[int, float]] = await ask(body, read)
        cost.forwards += 1
        return ranked

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """All in one group: :meth:`weigh` asks for one context after another."""
        return [list(prefixes)]

    async def weigh(
        self, ask: Ask, contexts: Contexts, cost: Cost, relative: Set[TokenIds] = frozenset()
    ) -> Weighed:
        """Ask for one prefix after another: each finds the part it shares with the last in the cache."""
        return {
            prefix: await self._weigh(ask, prefix, wanted, prefix in relative, cost)
            for prefix, wanted in contexts.items()
        }

    async def _weigh(
        self, ask: Ask, prefix: TokenIds, wanted: frozenset[int], relative: bool, cost: Cost
    ) -> dict[int, float]:
        """Ask for the tokens after one prefix, with one request where that is possible.

        A logit bias makes one token certain to be drawn. The server reports its log-probability without the
        bias: that is all for a single token. The probabilities with biases of several tokens are relative to
        the ``common`` one; its log-probability takes another request, unless only differences are needed.
        """
        if len(wanted) == 1 and not relative:
            (token,) = wanted
            single: float | None = await ask(
                self._forced(prefix, {token: FORCE}), self._logprob(prefix, token, cost)
            )
            cost.forwards += 1
            if single is not None:
                return {token: single}
        found = dict.fromkeys(wanted & {self.common}, 0.0)
        if others := wanted - {self.common}:
            biases = dict.fromkeys(sorted(others), FORCE - _BELOW) | {self.common: FORCE}
            body = self._forced(prefix, biases) | {"temperature": 1.0, "post_sampling_probs": True}
            chances: dict[int, float] = await ask(body, self._chances(prefix, set(biases), cost))
            cost.forwards += 1
            for token in others:
                found[token] = math.log(max(_LEAST, chances[token]) / chances[self.common]) + _BELOW
        if relative:
            return found
        common: float = await ask(
            self._forced(prefix, {self.common: FORCE}), self._logprob(prefix, self.common, cost)
        )
        cost.forwards += 1
        return {token: common + logprob for token, logprob in found.items()}

    def _forced(self, prefix: TokenIds, biases: Mapping[int, float]) -> Body:
        """Return the body that draws one token with these logit biases."""
        return self._body(SampleRequest(prefix, 1, 1, 1, temperature=0)) | {
            "logit_bias": [[token, bias] for token, bias in biases.items()],
            "logprobs": len(biases),
        }

    def _id(self, place: Node) -> int:
        return place["id"].whole(0, self.size - 1)

    def _place(self, reply: Any, prefix: TokenIds, token: int, cost: Cost) -> Node:
        """Return the entry of the one token that was drawn.

        Raises:
            Unreadable: it is not the ``token`` that was forced.
        """
        places = _content(choices_of(reply, 1, self.model)[0])
        cost.charge_prompt(reply, len(prefix))
        if not places or places[0]["id"].value != token:
            raise Unreadable(f"ignored a logit bias: token {token} was not drawn")
        return places[0]

    def _chances(self, prefix: TokenIds, wanted: set[int], cost: Cost) -> Callable[[Any], dict[int, float]]:
        def read(reply: Any) -> dict[int, float]:
            top = self._place(reply, prefix, self.common, cost)["top_probs"].items()
            chances = {self._id(place): place["prob"].number(0, 1 + _ROUNDING) for place in top}
            if set(chances) != wanted:
                raise Unreadable("returned the probabilities of other tokens than were asked for")
            if chances[self.common] == 0 or sum(chances.values()) > 1 + _ROUNDING:
                raise Malformed(f"returned {list(chances.values())} as probabilities")
            return chances

        return read

    def _logprob(self, prefix: TokenIds, token: int, cost: Cost) -> Callable[[Any], float | None]:
        def read(reply: Any) -> float | None:
            if token != self.common and not _content(choices_of(reply, 1, self.model)[0]):
                cost.charge_prompt(reply, len(prefix))
                return None  # it is part of a character: the reply leaves it out
            return nats(self._place(reply, prefix, token, cost)["logprob"].value)

        return read

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
    """Leave out every string that contains another: where it occurs, the other one does too."""
    kept: list[str] = []
    for end in sorted(set(ends), key=len):
        if not any(short in end for short in kept):
            kept.append(end)
    return tuple(kept)


def _joined(events: Sequence[Any]) -> Body:
    """Join the events of a stream with one continuation to one reply."""
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
    """Return the entries of the drawn tokens."""
    return choice["logprobs"]["content"].items()
