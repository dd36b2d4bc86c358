"""When the inner loop stops: a text is good enough, or the budget of this step is spent."""

from __future__ import annotations

from rain_llm.search.shortest import shortest
from rain_llm.search.state import SearchState


def settled(state: SearchState) -> bool:
    """Tell whether the inner loop is done (paper: enough visits and value, or the budget)."""
    budget, tree = state.settings.search, state.tree
    if budget.commit == "verdict":
        verdict = state.best.verdict if state.best else None
        if verdict is not None and verdict.on_target:
            return True
        if _cannot_end(state):
            return True
        idle = state.step_iterations - state.best_at
        return left(state) <= 0 or (budget.patience is not None and idle >= budget.patience)
    if tree.root.children:
        child = tree.favourite()
        if child.visits > budget.min_visits and child.value > budget.value_threshold:
            return True
    remaining = left(state)
    if budget.stop_when_decided and tree.lead() > remaining:
        return True  # an iteration moves no child's weight by more than 1
    return remaining <= 0 and any(child.visits for child in tree.root.children)


def left(state: SearchState) -> int:
    """Return the iterations that the budget leaves to this step."""
    budget = state.settings.search
    if budget.commit == "verdict":
        return _most(state) - state.step_iterations
    return max(budget.iterations, state.inherited + budget.extra_iterations) - state.tree.root.visits


def _most(state: SearchState) -> int:
    """Return the most iterations of this step: what the criteria allow that are not on target yet."""
    most = state.settings.search.iterations
    evaluation = state.settings.evaluation
    own = {c.name: c.iterations for c in (*evaluation.criteria, *evaluation.actions) if c.iterations}
    verdict = state.best.verdict if state.best else None
    missed = [score.name for score in verdict.criteria if not score.on_target] if verdict else []
    return max((own.get(name, most) for name in missed), default=most)


def _cannot_end(state: SearchState) -> bool:
    """Whether no rollout came to its end and ``max_new_tokens`` has cut off so many that more are a waste.

    After one, another is sampled, unless no document within the limit could match the schema.
    """
    if not (state.cuts and state.unfinished()):
        return False
    owed = state.form.document or (state.form.call if state.form.forced else "")
    fits = not owed or len(state.writer.encode(shortest(owed))) <= state.room()
    return state.cuts > 1 or not fits
