"""Build the requests that a search sends to the writer: a rollout, or the candidates below a node."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rain_llm.requests import Continuation, Sample
from rain_llm.search.state import SearchState, tokens_of
from rain_llm.search.tree import Node, greedy_prior
from rain_llm.settings import PUNCTUATION, SENTENCE, PaperSettings
from rain_llm.tools import OPENING
from rain_llm.types import TokenIds

_ENDS = {"punctuation": PUNCTUATION, "sentence": SENTENCE, "answer": ()}
_ROLLOUT = 1  # the kind of request in a seed; candidates are minus their number


def rollout_ends(state: SearchState) -> tuple[str, ...]:
    """Return the strings that end a rollout."""
    opening = (OPENING,) if state.form.call else ()
    return _ENDS[state.settings.search.simulation_ends] + state.settings.generation.stop + opening


def rollout_length(state: SearchState, tokens: TokenIds) -> int:
    """Return the maximum number of tokens of a rollout after ``tokens``."""
    budget, room = state.settings.search, state.room(tokens)
    return room if budget.simulation_ends == "answer" else min(room, budget.simulation_tokens)


def rollout_request(
    state: SearchState,
    tokens: TokenIds,
    length: int,
    peek: bool = False,
    guided: bool = False,
    schema: str = "",
) -> Sample:
    """Request one continuation after ``tokens``; ``guided`` puts the guide prefix before the answer."""
    drawing, prefix = state.settings.generation, state.prefix(tokens)
    return Sample(
        state.guided + prefix[len(state.prompt) :] if guided else prefix,
        1,
        length,
        state.seed_at(prefix, _ROLLOUT, peek),
        drawing.temperature,
        drawing.top_k,
        drawing.top_p,
        ends=() if schema else rollout_ends(state),
        schema=schema,
    )


def first_token_request(state: SearchState, tokens: TokenIds) -> Sample:
    """Request the first token of the next rollout after ``tokens``."""
    return rollout_request(state, tokens, 1, peek=True)


def took_first_token(state: SearchState, tokens: TokenIds) -> None:
    """Count a rollout that starts with a prefetched token, so that the next one gets another seed."""
    state.seed_at(state.prefix(tokens), _ROLLOUT)


def candidates_request(
    state: SearchState, budget: PaperSettings, path: Sequence[Node], peek: bool = False
) -> Sample:
    """Request children of the last node: the likeliest tokens, or one greedy and some sampled token sets.

    If the node has children, request one more: the next-ranked token, or a sampled set. (The paper's code
    samples the greedy set again, which always exists already.)
    """
    node, tokens = path[-1], tokens_of(path[1:])
    prefix = state.prefix(tokens)
    length = min(state.tree.length_below(node), state.room(tokens))
    more = bool(node.children)
    if length == 1:
        width = len(node.children) + 1 if more else budget.width
        return Sample(prefix, width, 1, state.seed_at(prefix, -width, peek), ranked=True)
    width = 1 if more else budget.width
    return Sample(
        prefix,
        width,
        length,
        state.seed_at(prefix, -width, peek),
        budget.candidate_temperature,
        budget.candidate_top_k,
        greedy_first=not more,
    )


def with_priors(
    candidates: Sequence[Continuation], temperature: float, greedy: bool
) -> list[tuple[TokenIds, bool, float]]:
    """Convert log-probabilities into priors; the greedy set's prior is raised (paper's code)."""
    probabilities = [math.exp(c.logprob / temperature) for c in candidates]
    if greedy:
        sampled = {c.tokens: p for c, p in zip(candidates[1:], probabilities[1:], strict=True)}
        sampled.pop(candidates[0].tokens, None)
        probabilities[0] = greedy_prior(probabilities[0], list(sampled.values()))
    return [(c.tokens, c.ended, p) for c, p in zip(candidates, probabilities, strict=True)]
