"""How llama-server of llama.cpp is spoken to.

Tried with llama.cpp of October 2026.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rain_llm.models.dialect import (
    FORCE,
    Ask,
    Bill,
    Body,
    Contexts,
    Drawn,
    Weighed,
    Wish,
    as_dict,
    choices_of,
    distinct,
    drawn_from,
    nats,
)
from rain_llm.models.replicas import Unreadable
from rain_llm.types import TokenIds

_LEAST = 1e-38  # a smaller probability is told as 0 by a server that computes in float32
_ROUNDING = 1e-2  # by which probabilities may add up to more than 1


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
        bill.chargedrawn_from(found)
        return found

    def _reader(self, wish: Wish, size: int, bill: Bill) -> Callable[[Any], list[Drawn]]:
        def read(reply: Any) -> list[Drawn]:
            if isinstance(reply, list):
                reply = _joined(reply)
            choices = choices_of(reply, size, self.model)
            bill.charge_prompt(reply, len(wish.prefix))
            return [
                drawn_from(
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
            places = _content(choices_of(reply, 1, self.model)[0])
            bill.charge_prompt(reply, len(prefix))
            top = places[0].get("top_logprobs") if places else None
            if not top:
                raise Unreadable("gave no log-probabilities")
            return [(int(place["id"]), nats(place["logprob"])) for place in top[:n]]

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
            "logit_bias": [[token, FORCE] for token in tokens],
            "logprobs": len(tokens),
            "post_sampling_probs": several,
        }

    def _chances(
        self, prefix: TokenIds, wanted: frozenset[int], bill: Bill
    ) -> Callable[[Any], dict[int, float]]:
        def read(reply: Any) -> dict[int, float]:
            places = _content(choices_of(reply, 1, self.model)[0])
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
            places = _content(choices_of(reply, 1, self.model)[0])
            bill.charge_prompt(reply, len(prefix))
            if not places or places[0].get("id") != token:
                raise Unreadable(f"ignored a logit bias: token {token} was not drawn")
            return nats(places[0].get("logprob"))

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
    for event in map(as_dict, events):
        if error := event.get("error"):
            raise Unreadable(f"broke off a stream: {as_dict(error).get('message', error)}")
        usage = event.get("usage") or usage
        named |= {"model": event["model"]} if "model" in event else {}
        for choice in map(as_dict, event.get("choices") or ()):
            content += _content(choice)
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise Unreadable("broke off a stream before its end")
    choice = {"index": 0, "logprobs": {"content": content}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage} | named


def _content(choice: Body) -> list[Body]:
    """Return what llama-server says of each drawn token."""
    return [as_dict(place) for place in as_dict(choice.get("logprobs")).get("content") or ()]
