"""Ask vLLM, and servers with the same API: Ray Serve LLM. Tested with vLLM 0.32.

With a schema, the log-probabilities that vLLM reports are not the model's own but those among the tokens that
the schema allows: the only allowed token has 0 nats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Self

from rain_llm.bounds import VOCABULARY
from rain_llm.models.servers.dialect import (
    BAR,
    FORCE,
    Ask,
    Body,
    Completion,
    Contexts,
    Cost,
    Dialect,
    Facts,
    SampleRequest,
    Weighed,
    together,
)
from rain_llm.models.servers.reading import Node, Unreadable, is_number
from rain_llm.models.servers.replies import NONSENSE, choices_of, drawn_from, nats, numbered
from rain_llm.types import TokenIds

_SINGLY, _BATCH = 8, 64  # contexts that have a request each; prompts of one request, where there are more
_MOST_LABELS = 128  # of one request
_BY_ID = "token_id:"


@dataclass(frozen=True)
class Vllm(Dialect):
    """vLLM that accepts ``logprob_token_ids``.

    Attributes:
        model: the name it is served by.
        size: of the vocabulary: token ids are below.
    """

    model: str
    size: int = VOCABULARY

    @classmethod
    def reported_context(cls, model: Node, props: Node) -> Node:
        """Return the context length from the list of models."""
        return model["max_model_len"]

    @classmethod
    def for_model(cls, facts: Facts, common: int, size: int) -> Self:
        """Return how to ask a server for its model."""
        return cls(facts.name, size)

    def tokenize_body(self, text: str) -> Body:
        """Return the body that asks ``/tokenize`` for the tokens of ``text``."""
        return {"model": self.model, "prompt": text, "add_special_tokens": False}

    async def draw(self, ask: Ask, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        """Draw all continuations with one request."""

        def read(reply: Any) -> list[Completion]:
            choices = choices_of(reply, sampling.n, self.model)
            cost.charge_prompt(reply, len(sampling.prefix))
            return [self._drawn(choice, sampling) for choice in choices]

        drawn: list[Completion] = await ask(self._body(sampling), read)
        cost.charge_drawn(drawn)
        return drawn

    async def rank(self, ask: Ask, prefix: TokenIds, n: int, cost: Cost) -> list[tuple[int, float]]:
        """Ask for the likeliest tokens at one place.

        vLLM 0.32 returns -9999 for these while another request asks for ``logprob_token_ids``. Then they
        are read from the prompt's own log-probabilities, with one more token: correct, but not cached.
        """
        likeliest = self._body(SampleRequest(prefix, 1, 1, 1, temperature=0)) | {"logprobs": n}
        before = self._body(SampleRequest((*prefix, prefix[-1]), 1, 1, 1, temperature=0)) | {
            "prompt_logprobs": n
        }

        def read(reply: Any) -> dict[int, float]:
            (choice,) = choices_of(reply, 1, self.model)
            cost.charge_prompt(reply, len(prefix))
            top = self._top(choice)
            invalid = any(is_number(logprob) and logprob <= NONSENSE for logprob in top.values())
            usable = len(top) >= n and not invalid
            return {token: nats(logprob) for token, logprob in top.items()} if usable else {}

        def read_before(reply: Any) -> dict[int, float]:
            (choice,) = choices_of(reply, 1, self.model)
            cost.charge_prompt(reply, len(prefix) + 1)
            places = choice["prompt_logprobs"].items()
            reported = dict(places[-1].pairs()) if places else {}
            if len(reported) < n:
                raise Unreadable(f"returned {len(reported)} log-probabilities, not {n}")
            return {
                token: nats(place["logprob"].value) for token, place in numbered(reported, self.size).items()
            }

        top: dict[int, float] = await ask(likeliest, read)
        cost.forwards += 1
        if not top:
            top = await ask(before, read_before)
            cost.forwards += 1
        return sorted(top.items(), key=lambda item: -item[1])[:n]

    def grouped(self, prefixes: Sequence[TokenIds]) -> list[list[TokenIds]]:
        """One context a group, or 64 where there are many.

        vLLM reports the cached tokens of the last prompt of a request only, so a few contexts have a request
        each. With many, fewer requests are worth more than exact costs.
        """
        size = 1 if len(prefixes) <= _SINGLY else _BATCH
        return [list(prefixes[i : i + size]) for i in range(0, len(prefixes), size)]

    async def weigh(
        self, ask: Ask, contexts: Contexts, cost: Cost, relative: Set[TokenIds] = frozenset()
    ) -> Weighed:
        """Ask for all prefixes with one request, or with several where too many tokens are wanted."""
        wanted = sorted(set().union(*contexts.values()))
        weighed: Weighed = {prefix: {} for prefix in contexts}
        for i in range(0, len(wanted), _MOST_LABELS):
            some = frozenset(wanted[i : i + _MOST_LABELS])
            part = await self._weigh(ask, {p: tokens & some for p, tokens in contexts.items()}, cost)
            for prefix, reported in part.items():
                weighed[prefix] |= reported
        return weighed

    async def _weigh(self, ask: Ask, contexts: Contexts, cost: Cost) -> Weighed:
        prefixes = list(contexts)
        body = self._body(SampleRequest(prefixes[0], 1, 1, 1, temperature=0)) | {
            "prompt": [list(prefix) for prefix in prefixes],
            "logprob_token_ids": sorted(set().union(*contexts.values())),
        }

        def read(reply: Any) -> Weighed:
            choices = choices_of(reply, len(prefixes), self.model)
            cost.charge_prompt(reply, sum(map(len, prefixes)))
            found: Weighed = {}
            for choice, prefix in zip(choices, prefixes, strict=True):
                top = self._top(choice)
                if missing := contexts[prefix] - set(top):
                    raise Unreadable(f"returned no log-probability of token {min(missing)}")
                found[prefix] = {token: nats(top[token]) for token in contexts[prefix]}
            return found

        weighed: Weighed = await ask(body, read)
        cost.forwards += 1
        return weighed

    def _body(self, sampling: SampleRequest) -> Body:
        return {
            "model": self.model,
            "prompt": list(sampling.prefix),
            "n": sampling.n,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": sampling.seed,
            "stop_token_ids": list(sampling.end_tokens),
            "logprobs": 1,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "stream": False,
        } | (self._held_to(sampling) if sampling.schema else {})

    def _held_to(self, sampling: SampleRequest) -> Body:
        """Ask for a structural tag: only this bounds white space per request, to one character between parts.

        Control characters are barred, because xgrammar 0.2 allows them in strings of a bounded length, and
        JSON does not.
        """
        held = {"type": "json_schema", "json_schema": json.loads(sampling.schema), "max_whitespace_cnt": 1}
        tag = {"type": "structural_tag", "format": held}
        biases = {str(token): BAR for token in sorted(sampling.barred)}
        return {"structured_outputs": {"structural_tag": json.dumps(tag)}, "logit_bias": biases}

    def _drawn(self, choice: Node, sampling: SampleRequest) -> Completion:
        logprobs = choice["logprobs"]["token_logprobs"].value
        finish = choice["finish_reason"].value
        drawn = drawn_from(choice["token_ids"].value, logprobs, sampling, finish, self.size)
        return replace(drawn, closed=finish == "stop" and drawn.tokens[-1] not in sampling.end_tokens)

    def _top(self, choice: Node) -> dict[int, Any]:
        """Read the log-probabilities at the first place, by token."""
        places = choice["logprobs"]["top_logprobs"].items()
        reported = {name: node.value for name, node in places[0].pairs()} if places else {}
        by_id = {name: value for name, value in reported.items() if name.startswith(_BY_ID)}
        return numbered(by_id, self.size, _BY_ID)


@dataclass(frozen=True)
class VllmByBias(Vllm):
    """vLLM that ignores ``logprob_token_ids``: each token has a request, in which a logit bias forces it."""

    async def weigh(
        self, ask: Ask, contexts: Contexts, cost: Cost, relative: Set[TokenIds] = frozenset()
    ) -> Weighed:
        """Ask for each token with a request of its own, all at the same time."""
        pairs = [(prefix, token) for prefix, tokens in contexts.items() for token in sorted(tokens)]
        logprobs = await together(self._force(ask, *pair, cost) for pair in pairs)
        cost.forwards += 1
        found: Weighed = {prefix: {} for prefix in contexts}
        for (prefix, token), logprob in zip(pairs, logprobs, strict=True):
            found[prefix][token] = logprob
        return found

    async def _force(self, ask: Ask, prefix: TokenIds, token: int, cost: Cost) -> float:
        """Force one token; vLLM reports its log-probability without the bias."""
        sampling = SampleRequest(prefix, 1, 1, 1, temperature=0)

        def read(reply: Any) -> float:
            (choice,) = choices_of(reply, 1, self.model)
            cost.charge_prompt(reply, len(prefix))
            drawn = self._drawn(choice, sampling)
            if drawn.tokens != (token,):
                raise Unreadable(f"ignored a logit bias: token {token} was not drawn")
            return drawn.logprobs[0]

        logprob: float = await ask(self._body(sampling) | {"logit_bias": {str(token): FORCE}}, read)
        return logprob
