"""Answer the ``Score`` requests of a round on a server: the log-probability of each option."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set

from rain_llm.errors import ServerError
from rain_llm.models.servers.dialect import Ask, Contexts, Cost, Dialect, Weighed, together
from rain_llm.models.servers.failures import Refused
from rain_llm.requests import Score
from rain_llm.types import TokenIds


async def score(
    dialect: Dialect, ask: Ask, requests: Sequence[Score], charge: Callable[[int, Cost], None]
) -> list[tuple[float, ...] | Exception]:
    """Return the log-probabilities of each request's options, nats; or the error of that request.

    A context is a prefix before a token whose log-probability is wanted. A context that several options
    share is sent once, and the first request that needs it is charged. The log-probabilities at a context
    may all be off by one constant if every request that needs it is relative, and begins there.

    Args:
        dialect: how the server is asked.
        ask: sends a request to the server.
        requests: those of one round.
        charge: called with the index of a request and a cost.
    """
    contexts: dict[TokenIds, set[int]] = {}
    owner: dict[TokenIds, int] = {}
    exact: set[TokenIds] = set()
    for i, request in enumerate(requests):
        for prefix, tokens in _contexts(request).items():
            contexts.setdefault(prefix, set()).update(tokens)
            owner.setdefault(prefix, i)
            if prefix != request.prefix or not request.relative:
                exact.add(prefix)
    relative = frozenset(contexts.keys() - exact)
    groups = dialect.grouped(list(contexts))
    calls = [{prefix: frozenset(contexts[prefix]) for prefix in group} for group in groups]
    weighed: Weighed = {}
    errors: dict[TokenIds, Exception] = {}
    outcomes = await together(_weigh(dialect, ask, call, relative) for call in calls)
    for group, (found, failed, cost) in zip(groups, outcomes, strict=True):
        weighed |= found
        errors |= failed
        charge(owner[group[0]], cost)
    return [_result(request, weighed, errors) for request in requests]


async def _weigh(
    dialect: Dialect, ask: Ask, contexts: Contexts, relative: Set[TokenIds]
) -> tuple[Weighed, dict[TokenIds, Exception], Cost]:
    """Ask for some contexts together; if the server refuses, for each alone, so that one spoils no other."""
    cost = Cost()
    try:
        return await dialect.weigh(ask, contexts, cost, relative), {}, cost
    except ServerError as error:
        if len(contexts) == 1 or not isinstance(error, Refused):
            return {}, dict.fromkeys(contexts, error), cost
    weighed: Weighed = {}
    errors: dict[TokenIds, Exception] = {}
    for prefix, tokens in contexts.items():
        found, failed, more = await _weigh(dialect, ask, {prefix: tokens}, relative)
        weighed |= found
        errors |= failed
        cost.add(more)
    return weighed, errors, cost


def _contexts(request: Score) -> dict[TokenIds, set[int]]:
    """Return the prefixes before the tokens of the options, and the tokens that are wanted after each."""
    found = {request.prefix: {option[0] for option in request.options}}
    for option in request.options:
        for i in range(1, len(option)):
            found.setdefault(request.prefix + option[:i], set()).add(option[i])
    return found


def _result(
    request: Score, weighed: Weighed, errors: dict[TokenIds, Exception]
) -> tuple[float, ...] | Exception:
    """Return the log-probability of each option, the sum over its tokens; or the first error."""
    for prefix in _contexts(request):
        if prefix in errors:
            return errors[prefix]
    first = weighed[request.prefix]
    return tuple(
        math.fsum(
            [first[option[0]]]
            + [weighed[request.prefix + option[:i]][option[i]] for i in range(1, len(option))]
        )
        for option in request.options
    )
