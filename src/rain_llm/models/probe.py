"""What a server says of itself, and what it really does: asked once, before anything is written.

Status 200 means little: servers take fields that they do not know and answer as if nothing had been said.
So each ability is tried, and the answer looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rain_llm.errors import ModelNotFoundError, ModelNotSupportedError, ServerError
from rain_llm.models.dialect import PATH, Bill, Body, Dialect, Wish, distinct
from rain_llm.models.llama_server import LlamaServer
from rain_llm.models.replicas import Failed, Refused, Replica, Replicas, Unreadable
from rain_llm.models.sglang import Sglang
from rain_llm.models.vllm import Vllm
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds

SENTENCE = "The capital of France is"
_CERTAIN = 1.01  # two tokens cannot have more chances than this
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
        Failed: it is not there. ServerError: it is no completions server.
        ModelNotFoundError: the model is not among what it serves.
        ModelNotSupportedError: it does not say how long a context it takes.
    """
    models = await replicas.once(replica, "/v1/models")
    served = models.get("data") if isinstance(models, dict) else None
    if not isinstance(served, list) or not all(isinstance(m, dict) and "id" in m for m in served):
        raise ServerError(
            replica.url, "has no list of models (/v1/models)", "give the address of vLLM or llama-server"
        )
    names = [str(model["id"]) for model in served]
    if settings.name is None and len(names) != 1:
        raise ModelNotFoundError(f"{replica.url} serves {_listed(names)}: give one of them as model.name")
    name = settings.name or names[0]
    if name not in names:
        raise ModelNotFoundError(
            f"{replica.url} serves no model {name!r} but {_listed(names)}: give that as model.name, "
            "or another base_url"
        )
    model = served[names.index(name)]
    props = await replicas.once(replica, "/props")
    slots = int(props.get("total_slots") or 0) if isinstance(props, dict) else 0
    told = model.get("max_model_len")
    if slots:
        told = (props.get("default_generation_settings") or {}).get("n_ctx")
        if settings.limits.max_concurrency is None and replica.last is None:
            replica.allow(slots)
    context = settings.context_length or told
    if not context:
        raise ModelNotSupportedError(
            f"{replica.url} does not say how long a context it takes: give model.context_length"
        )
    return Facts(name, int(context), slots, str(model.get("root") or ""))


async def server_vocabulary(replicas: Replicas, replica: Replica) -> dict[int, bytes]:
    """Return the bytes of every token of llama-server's model; special ones have none.

    Raises:
        ServerError: it does not tell.
    """
    remedy = "give model.tokenizer, a folder or hub name"
    try:
        models = await replicas.once(replica, "/v1/models")
        size = int(models["data"][0]["meta"]["n_vocab"])
        found = await replicas.once(replica, "/tokenize", {"content": "a"})
        body = {
            "prompt": [found["tokens"][0]],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": size,
        }
        reply = await replicas.once(replica, PATH, body)
        top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        vocabulary = {int(place["id"]): bytes(place["bytes"]) for place in top}
    except Failed as error:
        raise replicas.error(replica, error) from error
    except (LookupError, TypeError, ValueError) as error:
        raise ServerError(replica.url, "does not tell its tokens", remedy) from error
    if set(vocabulary) != set(range(size)):
        raise ServerError(replica.url, f"tells {len(vocabulary)} of its {size} tokens", remedy)
    return vocabulary


async def probed(
    replicas: Replicas, replica: Replica, facts: Facts, start: TokenIds, words: TokenIds
) -> Dialect:
    """Try what a search needs, and return how the server is to be spoken to.

    ``words`` are the tokens of :data:`SENTENCE`, which follow ``start``.

    That is: token ids in and out, ``n`` continuations, a log-probability for each drawn token, and that
    of any other token, by its label or by a logit bias; and that the tokenizer is the server's.

    Raises:
        ServerError: it is not there, or refuses. ModelNotSupportedError: it cannot do one of these.
    """
    prefix = start + words
    candidates: list[Dialect] = [
        Vllm(facts.name),
        Sglang(facts.name),
        Vllm(facts.name, knows_labels=False),
    ]
    if facts.slots:
        candidates = [LlamaServer(facts.name, facts.slots, words[-1])]

    async def ask(body: Body, read: Callable[[Any], Any], path: str = PATH) -> Any:
        return read(await replicas.once(replica, path, body))

    reason: Exception = ValueError("nothing was tried")
    try:
        await _same_tokens(replicas, replica, facts, words)
        for dialect in candidates:
            try:
                await _tried(dialect, ask, prefix, min(2, facts.slots or 2))
                return dialect
            except (Unreadable, Refused) as error:
                reason = error
    except Failed as error:
        raise replicas.error(replica, error) from error
    raise ModelNotSupportedError(
        f"{replica.url} cannot carry a search: it {replicas.clean(_cause(reason))}: use vLLM or llama-server"
    ) from reason


async def _tried(dialect: Dialect, ask: Any, prefix: TokenIds, n: int) -> None:
    """Draw, and ask for the log-probability of what was drawn; both must agree."""
    bill = Bill()
    drawn = await dialect.draw(ask, Wish(prefix, n, 2, distinct(1)), bill)
    first, logprob = drawn[0].tokens[0], drawn[0].logprobs[0]
    other = prefix[-1] if prefix[-1] != first else prefix[0]
    weighed = await dialect.weigh(ask, {prefix: frozenset({first, other})}, bill)
    told = weighed[prefix]
    if abs(told[first] - logprob) > _AGREE or math.exp(told[first]) + math.exp(told[other]) > _CERTAIN:
        raise Unreadable(
            f"says {told[first]:.2f} and {logprob:.2f} nats of one token and {told[other]:.2f} of another: "
            "its log-probabilities are not the model's own"
        )


async def _same_tokens(replicas: Replicas, replica: Replica, facts: Facts, words: TokenIds) -> None:
    """Compare the tokenizer with the server's, where that can be asked.

    Raises:
        ModelNotSupportedError: they cut the same text into other tokens.
    """
    body: Body = {"model": facts.name, "prompt": SENTENCE, "add_special_tokens": False}
    if facts.slots:
        body = {"content": SENTENCE, "add_special": False}
    found = await replicas.once(replica, "/tokenize", body)
    tokens = found.get("tokens") if isinstance(found, dict) else None
    if isinstance(tokens, list) and tuple(tokens) != words:
        raise ModelNotSupportedError(
            f"{replica.url} has another tokenizer than the one given: "
            f"{tokens} and {list(words)} for {SENTENCE!r}: give its own as model.tokenizer"
        )


def _cause(error: Exception) -> str:
    return error.cause if isinstance(error, Refused) else str(error)


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
