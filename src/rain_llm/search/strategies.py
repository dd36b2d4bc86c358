"""The two strategies of a search: what the loop of ``algorithm.py`` leaves open.

:class:`Paper` is the published algorithm: children are token sets sampled in advance, and a step commits the
child with the largest weight. :class:`KeepDrafts` is the default: children are the rollouts that were judged
anyway, and a step commits a text as soon as its own verdict is good enough, so that no token is wasted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rain_llm.search.prefetch import Prefetch
from rain_llm.search.requests import (
    candidates_request,
    first_token_request,
    rollout_length,
    rollout_request,
)
from rain_llm.search.shortest import shortest
from rain_llm.search.state import Iteration, SearchState, tokens_of
from rain_llm.search.tree import Node
from rain_llm.types import Sample, Verdict


class Strategy(Protocol):
    """What a search does in its own way."""

    def settled(self) -> bool:
        """Tell whether the inner loop is done: a text is good enough, or the budget is spent."""
        ...

    def left(self) -> int:
        """Return the iterations that the budget leaves to this step."""
        ...

    def lacks_children(self, path: Sequence[Node]) -> bool:
        """Whether the last node of ``path`` gets candidates before selection goes on."""
        ...

    def expand(self, iterations: Sequence[Iteration]) -> None:
        """Give the leaves children, once their rollouts are there."""
        ...

    def choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the path to commit, whether it passed, and the verdict that speaks for it."""
        ...

    def with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what to prefetch along with the rollouts of ``iterations``."""
        ...

    def with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what to prefetch along with the questions about ``iterations``."""
        ...


@dataclass(frozen=True, slots=True)
class KeepDrafts:
    """Keep the rollouts that were judged; commit the best as soon as it is on every target."""

    state: SearchState
    prefetch: Prefetch

    def settled(self) -> bool:
        """Tell whether a text is on every criterion's target, or the budget is spent."""
        verdict = self.state.best.verdict if self.state.best else None
        on_target = verdict is not None and verdict.on_target
        return on_target or self._cannot_end() or self.left() <= 0

    def left(self) -> int:
        """Return the iterations left: as many as the criteria allow that are not on target yet."""
        state = self.state
        most = state.settings.search.iterations
        evaluation = state.settings.evaluation
        own = {c.name: c.iterations for c in (*evaluation.criteria, *evaluation.actions) if c.iterations}
        verdict = state.best.verdict if state.best else None
        missed = [score.name for score in verdict.criteria if not score.on_target] if verdict else []
        return max((own.get(name, most) for name in missed), default=most) - state.step_iterations

    def lacks_children(self, path: Sequence[Node]) -> bool:
        """No: children are rollouts."""
        return False

    def expand(self, iterations: Sequence[Iteration]) -> None:
        """Keep each rollout below its leaf, as a chain of token sets."""
        for each in iterations:
            if not each.ends:
                chain = self.state.tree.graft(each.path[-1], each.rollout, each.terminal, each.atomic)
                each.path = each.path + chain
                each.tokens, each.rollout = each.judged, ()

    def choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the path of the best verdict."""
        best = self.state.best
        assert best is not None and best.verdict is not None  # a step has at least one iteration
        return best.path[1:], best.verdict.passed, best.verdict

    def with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return nothing: what follows depends on the verdicts."""
        return []

    def with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return the first token after each rollout: what comes next if it is committed."""
        if not self.state.settings.search.foresight:
            return []
        going = [each for each in iterations if not self.state.ends(each.path)]
        firsts = dict.fromkeys(first_token_request(self.state, each.tokens) for each in going)
        return [first for first in firsts if first not in self.prefetch.replies]

    def _cannot_end(self) -> bool:
        """Whether ``max_new_tokens`` has cut off so many documents or calls that more are a waste.

        After one, another is sampled, unless no document within the limit could match the schema.
        """
        state = self.state
        if not (state.cuts and state.unfinished()):
            return False
        owed = state.form.document or (state.form.call if state.form.forced else "")
        fits = not owed or len(state.writer.encode(shortest(owed))) <= state.room()
        return state.cuts > 1 or not fits


@dataclass(frozen=True, slots=True)
class Paper:
    """Sample candidates in advance; commit the child with the largest weight (paper, section 3)."""

    state: SearchState
    prefetch: Prefetch

    def settled(self) -> bool:
        """Tell whether a child has enough visits and value, or the budget is spent or cannot matter."""
        budget, tree = self.state.settings.search, self.state.tree
        if tree.root.children:
            child = tree.favourite()
            if child.visits > budget.min_visits and child.value > budget.value_threshold:
                return True
        left = self.left()
        if budget.stop_when_decided and tree.lead() > left:
            return True  # an iteration moves no child's weight by more than 1
        return left <= 0 and any(child.visits for child in tree.root.children)

    def left(self) -> int:
        """Return the iterations left; a step that inherits visits has some more."""
        state, budget = self.state, self.state.settings.search
        return max(budget.iterations, state.inherited + budget.extra_iterations) - state.tree.root.visits

    def lacks_children(self, path: Sequence[Node]) -> bool:
        """Whether a leaf is visited for the second time: it gets its candidates now."""
        leaf = path[-1]
        return leaf.visits > 0 and not leaf.children and not self.state.ends(path)

    def expand(self, iterations: Sequence[Iteration]) -> None:
        """Do nothing: rollouts are thrown away, and candidates come at a leaf's second visit."""

    def choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the child with the largest weight; it passed if most texts below it did."""
        child = self.state.tree.favourite()
        passed = 2 * child.passes > child.visits
        worst, best = self.state.range_below[child]
        return [child], passed, best if passed else worst

    def with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what the next iterations will ask if the verdicts on ``iterations`` are no surprise."""
        state = self.state
        if not iterations:
            return []
        expected = state.latest.score if state.latest else 1.0
        marks = [state.tree.pretend(each.path, expected) for each in iterations]
        asked: dict[Sample, None] = {}
        for _ in range(state.settings.search.foresight):
            path, request = self._next_request()
            if request is not None and request not in self.prefetch.replies:
                asked[request] = None
            if path is None or self.settled():
                break
            marks.append(state.tree.pretend(path, expected))
        for mark in reversed(marks):
            state.tree.undo(mark)
        return list(asked)

    def with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return the same as with the rollouts."""
        return self.with_rollouts(iterations)

    def _next_request(self) -> tuple[list[Node] | None, Sample | None]:
        """Select as the next iteration would.

        Returns the path to its leaf (None: it depends on candidates that are not known yet), and what it
        would ask there (None: nothing).
        """
        state = self.state
        path = [state.tree.root]
        while True:
            if self.lacks_children(path):
                return None, candidates_request(state, path, peek=True)
            if state.tree.is_leaf(path[-1]):
                break
            if state.tree.wants_addition(path[-1]):
                return None, candidates_request(state, path, peek=True)
            path.append(state.tree.best_child(path[-1]))
        if state.ends(path):
            return path, None
        tokens = tokens_of(path[1:])
        return path, rollout_request(state, tokens, rollout_length(state, tokens), peek=True)


def strategy_of(state: SearchState, prefetch: Prefetch) -> Strategy:
    """Return the strategy that the settings name."""
    kind = KeepDrafts if state.settings.search.commit == "verdict" else Paper
    return kind(state, prefetch)
