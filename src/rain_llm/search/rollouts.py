"""Sample rollouts: continuations of the answer after a leaf, to the end of a sentence, document or call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from rain_llm.requests import Continuation, Sample
from rain_llm.search.outcome import Rounds
from rain_llm.search.output import opening_of, opening_tokens, write_calls, write_document
from rain_llm.search.prefetch import Prefetch
from rain_llm.search.requests import (
    first_token_request,
    rollout_ends,
    rollout_length,
    rollout_request,
    took_first_token,
)
from rain_llm.search.state import Iteration, SearchState
from rain_llm.types import TokenIds


def roll_out(
    state: SearchState,
    prefetch: Prefetch,
    iterations: Sequence[Iteration],
    prefetch_with: Callable[[], Sequence[Sample]] = tuple,
) -> Rounds:
    """Sample a rollout from the leaf of each iteration, all in parallel.

    The first round also contains the requests that ``prefetch_with`` returns.
    """
    rollouts = [(each, _rollout(state, prefetch, each)) for each in iterations if not each.ends]
    asked = [(each, rollout, first) for each, rollout in rollouts if (first := next(rollout, None))]
    while asked:
        replies = yield from prefetch.ask([request for _, _, request in asked], prefetch_with)
        going = []
        for (each, rollout, _), reply in zip(asked, replies, strict=True):
            try:
                going.append((each, rollout, rollout.send(reply.continuations[0])))
            except StopIteration:
                continue
        asked, prefetch_with = going, tuple
    for each, _ in rollouts:
        state.check(each.rollout, each.terminal)


def _rollout(
    state: SearchState, prefetch: Prefetch, iteration: Iteration
) -> Generator[Sample, Continuation, None]:
    """Sample one rollout.

    The first rollout of a step continues the prompt itself; later ones are resampled with a guide prefix.
    """
    form, guided = state.form, bool(state.guided and state.step_iterations)

    def draw(tokens: TokenIds, length: int, schema: str = "", ends: tuple[str, ...] | None = None) -> Sample:
        made = rollout_request(state, iteration.judged + tokens, length, guided=guided, schema=schema)
        return made if ends is None else replace(made, ends=ends)

    opening: TokenIds = ()
    if form.document:
        room = state.room(iteration.tokens)
        iteration.rollout, finished, iteration.cut = yield from write_document(form, draw, room)
        iteration.atomic, iteration.terminal = len(iteration.rollout), True
        iteration.incomplete = not finished
    elif form.forced:
        opening = opening_tokens(state.writer)
    else:
        length = rollout_length(state, iteration.tokens)
        if not guided:
            length = _begin(state, prefetch, iteration, length)
        if length:
            found = yield draw((), length)
            iteration.rollout += found.tokens
            iteration.terminal = found.ended
        if form.call:
            iteration.rollout, opening = opening_of(
                state.writer, lambda more: state.answer.read(iteration.tokens + more), iteration.rollout
            )
    if opening:
        room = state.room(iteration.judged)
        calls, finished, iteration.cut = yield from write_calls(form, state.writer, draw, room, opening)
        iteration.rollout += calls
        iteration.atomic, iteration.terminal = len(calls), True
        iteration.incomplete = not finished


def _begin(state: SearchState, prefetch: Prefetch, iteration: Iteration, length: int) -> int:
    """Start a rollout with its prefetched first token, if there is one.

    Returns the maximum number of tokens that may follow.
    """
    reply = prefetch.replies.pop(first_token_request(state, iteration.tokens), None)
    if reply is None:
        return length
    took_first_token(state, iteration.tokens)
    (first,) = reply.continuations
    iteration.rollout, iteration.terminal = first.tokens, first.ended
    over = first.ended or state.writer.decode(first.tokens).endswith(rollout_ends(state))
    return 0 if over else length - len(first.tokens)
