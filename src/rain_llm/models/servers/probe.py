"""What a server says of itself, and what it really does: asked once, before anything is written.

Status 200 means little: servers take fields that they do not know and answer as if nothing had been said.
So each ability is tried, and the answer looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rain_llm.bounds import CONTEXT, MODELS, REPLY_BYTES, SLOTS, VOCABULARY
from rain_llm.errors import ModelNotFoundError, ServerError, ServerNotSupportedError
from rain_llm.models.servers.dialect import PATH, Body, Cost, Dialect, SampleRequest, distinct
from rain_llm.models.servers.failures import STRANGE, Failed, Refused
from rain_llm.models.servers.llama_server import LlamaServer, token_bytes
from rain_llm.models.servers.reading import Node, Unreadable, token_ids
from rain_llm.models.servers.replica import Replica
from rain_llm.models.servers.replicas import Replicas
from rain_llm.models.servers.sglang import Sglang
from rain_llm.models.servers.vllm import Vllm
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds

SENTENCE = "The capital of France is"
_CERTAIN = 1.01  # two tokens cannot have more chances than this
_SHOWN = 20  # names, or tokens, that an error repeats
_AGREE = 0.5  # nats between a log-probability of what was drawn, and of the same when it is asked for


@dataclass(frozen=True)
class Facts:
    """What a server says of itself; servers of the same model say the same.

    Attributes:
        name: of the model. context_length: in tokens.
        slots: requests that llama-server works on at once; 0: it is no llama-server.
        root: the folder or hub name that the server has the model from, if it says.
    """

    name: str
    context_length: int
    slots: int = 0
    root: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name} with a context of {self.context_length} tokens"


async def identified(replicas: Replicas, replica: Replica, settings: ModelSettings) -> Facts:
    """Ask a server what it serves.

    Raises:
        Failed: it is not there. Unreadable: what it says makes no sense.
        ServerError: it is no completions server, or does not say how long a context it takes.
        ModelNotFoundError: the model is not among what it serves.
    """
    listed = await replicas.once(replica, "/v1/models")
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        raise ServerError(
            replica.url, "has no list of models (/v1/models)", "give the address of vLLM or llama-server"
        )
    served = Node(listed)["data"].items(MODELS)
    names = [model["id"].text() for model in served]
    if settings.name is None and len(names) != 1:
        raise ModelNotFoundError(
            f"{replica.url} serves {_listed(names, replicas)}: give one of them as model.name"
        )
    name = settings.name or names[0]
    if name not in names:
        raise ModelNotFoundError(
            f"{replica.url} serves no model {name!r} but {_listed(names, replicas)}: "
            "give that as model.name, or another base_url"
        )
    model = served[names.index(name)]
    found = await replicas.once(replica, "/props")
    props = Node(found if isinstance(found, dict) else None)
    slots = props["total_slots"].whole(0, SLOTS) if props["total_slots"].there else 0
    reported = props["default_generation_settings"]["n_ctx"] if slots else model["max_model_len"]
    if slots and settings.limits.max_concurrency is None and replica.last_failure is None:
        replica.limit_concurrency(slots)
    context = settings.context_length
    if context is None and reported.there:
        context = reported.whole(1, CONTEXT)
    if context is None:
        raise ServerNotSupportedError(
            replica.url, "does not say how long a context it takes", "give model.context_length"
        )
    return Facts(name, context, slots, model["root"].text() if model["root"].there else "")


async def server_vocabulary(replicas: Replicas, replica: Replica) -> dict[int, bytes]:
    """Return the bytes of every token of llama-server's model; special ones have none.

    Raises:
        ServerError: it does not tell.
    """
    try:
        return await _vocabulary(replicas, replica)
    except Failed as error:
        reason: ServerError = replicas.error(replica, error)
    except Unreadable as error:
        remedy = "give model.tokenizer, a folder or hub name"
        reason = ServerError(
            replica.url, f"does not tell its tokens: it {replicas.clean(str(error))}", remedy
        )
    raise reason


async def _vocabulary(replicas: Replicas, replica: Replica) -> dict[int, bytes]:
    models = Node(await replicas.once(replica, "/v1/models"))["data"].items(MODELS)
    if not models:
        raise Unreadable("lists no model")
    size = models[0]["meta"]["n_vocab"].whole(1, VOCABULARY)
    words = Node(await replicas.once(replica, "/tokenize", {"content": "a"}))["tokens"].tokens(size)
    if not words:
        raise Unreadable("makes no token of a text")
    body = {"prompt": list(words[:1]), "max_tokens": 1, "temperature": 0, "logprobs": size}
    choice = _only(Node(await replicas.once(replica, PATH, body, REPLY_BYTES))["choices"])
    top = _only(choice["logprobs"]["content"])["top_logprobs"].items(size)
    vocabulary = {place["id"].whole(0, size - 1): token_bytes(place) for place in top}
    if len(vocabulary) != size:
        raise Unreadable(f"tells {len(vocabulary)} of its {size} tokens")
    return vocabulary


def _only(listed: Node) -> Node:
    """Return the only item of a list."""
    items = listed.items(1)
    if not items:
        raise Unreadable(f"gave no {listed.place}")
    return items[0]


async def probed(
    replicas: Replicas, replica: Replica, facts: Facts, start: TokenIds, words: TokenIds, size: int
) -> Dialect:
    """Try what a search needs, and return how the server is to be spoken to.

    ``words`` are the tokens of :data:`SENTENCE`, which follow ``start``; ``size`` is the vocabulary's.

    That is: token ids in and out, ``n`` continuations, a log-probability for each drawn token, and that
    of any other token, by its label or by a logit bias; and that the tokenizer is the server's.

    Raises:
        ServerError: it is not there, or refuses. ServerNotSupportedError: it cannot do one of these.
    """
    prefix = start + words
    common = words[-1] if words else 0
    candidates: list[Dialect] = [
        Vllm(facts.name, size=size),
        Sglang(facts.name, size=size),
        Vllm(facts.name, knows_labels=False, size=size),
    ]
    if facts.slots:
        candidates = [LlamaServer(facts.name, facts.slots, common, size)]

    async def ask(body: Body, read: Callable[[Any], Any], path: str = PATH) -> Any:
        return read(await replicas.once(replica, path, body))

    cause = "was not tried"
    try:
        if not words:
            raise Unreadable(f"makes no token of {SENTENCE!r}")
        await _same_tokens(replicas, replica, facts, words, size)
        for dialect in candidates:
            try:
                await _tried(dialect, ask, prefix, min(2, facts.slots or 2))
                return dialect
            except (Unreadable, Refused) as error:
                cause = error.cause if isinstance(error, Refused) else str(error)
        failure: ServerError = ServerNotSupportedError(
            replica.url, f"cannot carry a search: it {replicas.clean(cause)}", "use vLLM or llama-server"
        )
    except Failed as error:
        failure = replicas.error(replica, error)
    except Unreadable as error:  # of its tokens
        failure = ServerError(replica.url, replicas.clean(str(error)), STRANGE)
    raise failure  # here, where the text of the server is no longer its context


async def _tried(dialect: Dialect, ask: Any, prefix: TokenIds, n: int) -> None:
    """Draw, and ask for the log-probability of what was drawn; both must agree."""
    cost = Cost()
    drawn = await dialect.draw(ask, SampleRequest(prefix, n, 2, distinct(1)), cost)
    first, logprob = drawn[0].tokens[0], drawn[0].logprobs[0]
    other = prefix[-1] if prefix[-1] != first else prefix[0]
    weighed = await dialect.weigh(ask, {prefix: frozenset({first, other})}, cost)
    reported = weighed[prefix]
    if (
        abs(reported[first] - logprob) > _AGREE
        or math.exp(reported[first]) + math.exp(reported[other]) > _CERTAIN
    ):
        raise Unreadable(
            f"says {reported[first]:.2f} and {logprob:.2f} nats of one token and {reported[other]:.2f} of "
            "another: its log-probabilities are not the model's own"
        )


async def _same_tokens(
    replicas: Replicas, replica: Replica, facts: Facts, words: TokenIds, size: int
) -> None:
    """Compare the tokenizer with the server's, where that can be asked.

    Raises:
        ServerNotSupportedError: they cut the same text into other tokens.
    """
    body: Body = {"model": facts.name, "prompt": SENTENCE, "add_special_tokens": False}
    if facts.slots:
        body = {"content": SENTENCE, "add_special": False}
    found = await replicas.once(replica, "/tokenize", body)
    if not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
        return
    tokens = token_ids(found["tokens"], VOCABULARY, "the tokens of a text")
    if tokens != words:
        raise ServerNotSupportedError(
            replica.url,
            f"has another tokenizer than the one given: {list(tokens[:_SHOWN])} and {list(words)} "
            f"for {SENTENCE!r}",
            "give its own as model.tokenizer",
        )


def _listed(names: list[str], replicas: Replicas) -> str:
    some = ", ".join(repr(replicas.clean(name)) for name in names[:_SHOWN]) or "nothing"
    return some + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
