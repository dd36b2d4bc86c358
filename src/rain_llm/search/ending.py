"""End an answer: by itself, at a limit, or with the refusal text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace

from rain_llm.search.outcome import Outcome
from rain_llm.search.state import SearchState, tokens_of
from rain_llm.search.tree import Node
from rain_llm.types import Candidate, Step, StopReason, TokenIds, Verdict


def end_after(state: SearchState, path: Sequence[Node]) -> StopReason | None:
    """Return why the answer ends once ``path`` is committed; None if it continues."""
    tokens = tokens_of(path)
    if state.answer.read(tokens)[1]:
        return StopReason.STOP
    if path[-1].terminal:
        return StopReason.TOOL_CALLS if state.calls(path) else StopReason.EOS
    return StopReason.LENGTH if state.room(tokens) == 0 else None


def may_leave_marked(state: SearchState, path: Sequence[Node]) -> bool:
    """Whether text that did not pass may leave, marked as such: only if ``on_unsafe`` is "best".

    A call or a document never may: whoever runs or parses it would not see the mark.
    """
    atomic = state.form.document or state.calls(path)
    return state.settings.on_unsafe == "best" and not atomic


def outcome(state: SearchState, reason: StopReason, verdict: Verdict | None) -> Outcome:
    """Return the answer so far as an outcome that ended for ``reason``."""
    tail = state.answer.finish()
    return Outcome(
        state.answer.shown,
        tail,
        state.answer.tokens,
        verdict,
        state.accepted,
        reason,
        state.iterations,
        state.evaluations,
        state.cached or 0,
        tool_calls=state.calls(),
    )


def give_up(
    state: SearchState, tokens: TokenIds, verdict: Verdict, dropped: Sequence[Candidate] = ()
) -> Generator[Step, object, Outcome]:
    """End the answer without ``tokens``, which did not pass; the refusal's step keeps what was ``dropped``.

    Depending on ``on_unsafe``, yields the refusal text or returns ``UNSAFE`` for the engine to raise.
    """
    state.rejected = state.text(tokens)
    before, state.accepted = state.accepted, False
    if state.settings.on_unsafe == "raise":
        return outcome(state, StopReason.UNSAFE, verdict)
    rest = state.answer.finish()
    refusal = state.settings.refusal if not state.answer.shown else f"\n{state.settings.refusal}"
    if rest:
        yield Step(rest, accepted=before)
    yield Step(
        refusal,
        refusal=True,
        verdict=verdict,
        iterations=state.step_iterations,
        candidates=tuple(dropped),
    )
    ended = outcome(state, StopReason.REFUSED, verdict)
    return replace(ended, text=ended.text + refusal, tool_calls=())
