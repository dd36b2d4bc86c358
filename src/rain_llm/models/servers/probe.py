"""Find out what a server is and what it can do, before anything is generated.

Status 200 proves little: servers accept fields that they do not know, and ignore them. So each ability is
tried, and the reply is checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rain_llm.bounds import CONTEXT, DESCRIPTION_BYTES, MODELS, VOCABULARY
from rain_llm.clock import current
from rain_llm.errors import ModelNotFoundError, ServerError, ServerNotSupportedError
from rain_llm.models.servers.dialect import PATH, Body, Cost, Dialect, Facts, SampleRequest, distinct
from rain_llm.models.servers.failures import STRANGE, Failed, Refused
from rain_llm.models.servers.llama_server import LlamaServer
from rain_llm.models.servers.loop import in_loop
from rain_llm.models.servers.reading import Node, Unreadable, token_ids
from rain_llm.models.servers.replica import Replica
from rain_llm.models.servers.replicas import Replicas
from rain_llm.models.servers.sglang import Sglang
from rain_llm.models.servers.vllm import Vllm, VllmByBias
from rain_llm.models.tokenizer import Text
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds

DIALECTS: tuple[type[Dialect], ...] = (LlamaServer, Vllm, Sglang, VllmByBias)
"""All supported kinds of server, in the order in which they are tried."""

SENTENCE = "The capital of France is"
_CERTAIN = 1.01  # the probabilities of two tokens add up to no more
_SHOWN = 20  # names, or tokens, that an error repeats
_AGREE = 0.5  # nats between a drawn token's log-probability and the same when it is asked for


async def identified(replicas: Replicas, replica: Replica, settings: ModelSettings) -> Facts:
    """Ask a server which model it serves, and return what it reports.

    Raises:
        Failed: no reply. Unreadable: a reply holds unusable values.
        ServerError: it is not a completions server, or does not report its context length.
        ModelNotFoundError: it does not serve the model.
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
    dialects = _fitting(props)
    slots = dialects[0].reported_slots(props)
    reported = dialects[0].reported_context(model, props)
    if slots and settings.limits.max_concurrency is None and replica.last_failure is None:
        replica.limit_concurrency(slots)
    context = settings.context_length
    if context is None and reported.there:
        context = reported.whole(1, CONTEXT)
    if context is None:
        raise ServerNotSupportedError(
            replica.url, "does not report its context length", "give model.context_length"
        )
    vocabulary = dialects[0].reported_vocabulary(model)
    return Facts(
        name, context, dialects, slots, vocabulary, model["root"].text() if model["root"].there else ""
    )


def _fitting(props: Node) -> tuple[type[Dialect], ...]:
    """Return the dialects that recognise the server; if none does, those for which only a try can tell."""
    answers = {dialect: dialect.recognises(props) for dialect in DIALECTS}
    sure = tuple(dialect for dialect, answer in answers.items() if answer)
    return sure or tuple(dialect for dialect, answer in answers.items() if answer is None)


def own_tokenizer(replicas: Replicas, replica: Replica, facts: Facts, name: str) -> Text | None:
    """Return the server's own tokenizer; None if a user's text could pose as special tokens there.

    Raises:
        ServerError: the server does not give its tokens.
    """

    def fetch(path: str, body: Body | None = None, most: int = DESCRIPTION_BYTES) -> Any:
        return in_loop(replicas.once(replica, path, body, most))

    def post(path: str, body: Body, read: Callable[[Any], Any]) -> Any:
        return in_loop(replicas.post(path, body, read, deadline=current().deadline))

    try:
        return facts.dialects[0].tokenizer(fetch, post, name)
    except Failed as error:
        reason: ServerError = replicas.error(replica, error)
    except Unreadable as error:
        remedy = "give model.tokenizer, a folder or hub name"
        reason = ServerError(
            replica.url, f"does not return its tokens: it {replicas.clean(str(error))}", remedy
        )
    raise reason  # here, where the text of the server is no longer its context


async def probed(
    replicas: Replicas, replica: Replica, facts: Facts, start: TokenIds, words: TokenIds, size: int
) -> Dialect:
    """Try what a search needs, and return the dialect with which the server can do it.

    A search needs token ids in and out, ``n`` continuations, a log-probability for each drawn token and for
    any given token, and the same tokenizer here and there.

    Args:
        replicas: all servers of the model.
        replica: the server.
        facts: what it reports.
        start: the tokens that every raw text begins with.
        words: the tokens of :data:`SENTENCE`, which follow ``start``.
        size: of the vocabulary.

    Raises:
        Failed: no reply. ServerError: it refuses. ServerNotSupportedError: it cannot do one of these.
    """
    prefix = start + words
    common = words[-1] if words else 0
    dialects = [dialect.for_model(facts, common, size) for dialect in facts.dialects]

    async def ask(body: Body, read: Callable[[Any], Any], path: str = PATH) -> Any:
        return read(await replicas.once(replica, path, body))

    cause = "was not tried"
    try:
        if not words:
            raise Unreadable(f"has no token for {SENTENCE!r}")
        await _compare_tokens(replicas, replica, dialects[0], words)
        for dialect in dialects:
            try:
                await _tried(dialect, ask, prefix, min(2, facts.slots or 2))
                return dialect
            except (Unreadable, Refused) as error:
                cause = error.cause if isinstance(error, Refused) else str(error)
        failure: ServerError = ServerNotSupportedError(
            replica.url, f"cannot run a search: it {replicas.clean(cause)}", "use vLLM or llama-server"
        )
    except Unreadable as error:  # of its tokens
        failure = ServerError(replica.url, replicas.clean(str(error)), STRANGE)
    raise failure  # here, where the text of the server is no longer its context


async def _tried(dialect: Dialect, ask: Any, prefix: TokenIds, n: int) -> None:
    """Draw tokens, then ask for the log-probability of the first: both must agree."""
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
            f"returned {reported[first]:.2f} and {logprob:.2f} nats for one token, {reported[other]:.2f} for "
            "another: its log-probabilities are not the model's own"
        )


async def _compare_tokens(replicas: Replicas, replica: Replica, dialect: Dialect, words: TokenIds) -> None:
    """Compare the tokenizer with the server's, if the server has ``/tokenize``.

    Raises:
        ServerNotSupportedError: they split the same text into different tokens.
    """
    found = await replicas.once(replica, "/tokenize", dialect.tokenize_body(SENTENCE))
    if not isinstance(found, dict) or not isinstance(found.get("tokens"), list):
        return
    tokens = token_ids(found["tokens"], VOCABULARY, "the tokens of a text")
    if tokens != words:
        raise ServerNotSupportedError(
            replica.url,
            f"has a different tokenizer than the one given: {list(tokens[:_SHOWN])} and {list(words)} "
            f"for {SENTENCE!r}",
            "give the server's own as model.tokenizer",
        )


def _listed(names: list[str], replicas: Replicas) -> str:
    some = ", ".join(repr(replicas.clean(name)) for name in names[:_SHOWN]) or "nothing"
    return some + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
