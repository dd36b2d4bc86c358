"""The two strategies of the loop in ``algorithm.py``, and the rule by which ``read_and_rewind.py`` is used.

:class:`Paper` is the published algorithm: children are token sets sampled in advance, and a step commits the
child with the largest weight. :class:`KeepDrafts` is the tuned one: children are the judged rollouts
themselves, and a step commits a rollout as soon as its verdict is good enough, so that no token is wasted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.requests import Sample
from rain_llm.search.outcome import Rounds
from rain_llm.search.output import OutputSpec
from rain_llm.search.prefetch import Prefetch
from rain_llm.search.requests import (
    candidates_request,
    first_token_request,
    rollout_length,
    rollout_request,
    with_priors,
)
from rain_llm.search.shortest import shortest
from rain_llm.search.state import Iteration, SearchState, tokens_of
from rain_llm.search.tree import Node
from rain_llm.settings import KeepDraftsSettings, PaperSettings, RainSettings, ReadAndRewindSettings
from rain_llm.types import Verdict


class Strategy(Protocol):
    """The decisions of a search that differ between the paper and the tuned search."""

    def settled(self) -> bool:
        """Return whether the inner loop is done: a text is good enough, or the budget is spent."""
        ...

    def left(self) -> int:
        """Return how many iterations this step has left."""
        ...

    def expand_in_advance(self, path: Sequence[Node]) -> Rounds:
        """Expand the last node of ``path`` (root first) during selection, if it needs candidates."""
        ...

    def keep_rollouts(self, iterations: Sequence[Iteration]) -> None:
        """Expand the leaves with their rollouts."""
        ...

    def choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the path to commit (without the root), whether it passed, and its verdict."""
        ...

    def prefetch_with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what to prefetch along with the rollouts of ``iterations``."""
        ...

    def prefetch_with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return what to prefetch along with the questions about ``iterations``."""
        ...


@dataclass(frozen=True, slots=True)
class KeepDrafts:
    """Keep the judged rollouts as children; commit the best as soon as it reaches every target."""

    state: SearchState
    prefetch: Prefetch
    settings: KeepDraftsSettings

    def settled(self) -> bool:
        """Return whether a text reaches every criterion's target, or the budget is spent."""
        verdict = self.state.best.verdict if self.state.best else None
        on_target = verdict is not None and verdict.on_target
        return on_target or self._cannot_end() or self.left() <= 0

    def left(self) -> int:
        """Return the iterations left: the largest budget of the criteria that are not on target yet."""
        state = self.state
        most = self.settings.iterations
        evaluation = state.settings.evaluation
        own = {c.name: c.iterations for c in (*evaluation.criteria, *evaluation.actions) if c.iterations}
        verdict = state.best.verdict if state.best else None
        missed = [score.name for score in verdict.criteria if not score.on_target] if verdict else []
        return max((own.get(name, most) for name in missed), default=most) - state.step_iterations

    def expand_in_advance(self, path: Sequence[Node]) -> Rounds:
        """Do nothing: children are rollouts."""
        yield from ()

    def keep_rollouts(self, iterations: Sequence[Iteration]) -> None:
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

    def prefetch_with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return nothing: the next requests depend on the verdicts."""
        return []

    def prefetch_with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return requests for the first token after each rollout, needed if the rollout is committed."""
        if not self.settings.prefetch:
            return []
        going = [each for each in iterations if not self.state.ends(each.path)]
        firsts = dict.fromkeys(first_token_request(self.state, each.tokens) for each in going)
        return [first for first in firsts if first not in self.prefetch.replies]

    def _cannot_end(self) -> bool:
        """Return whether ``max_new_tokens`` cut off so many documents or calls that more would be a waste.

        After one, another is sampled, unless no document within the limit can match the schema.
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
    settings: PaperSettings

    def settled(self) -> bool:
        """Return whether a child is good enough, or more iterations are not left or cannot matter."""
        budget, tree = self.settings, self.state.tree
        if tree.root.children:
            child = tree.favourite()
            if child.visits > budget.min_visits and child.value > budget.value_threshold:
                return True
        left = self.left()
        if budget.stop_when_decided and tree.lead() > left:
            return True  # an iteration moves no child's weight by more than 1
        return left <= 0 and any(child.visits for child in tree.root.children)

    def left(self) -> int:
        """Return the iterations left; a step that inherits visits gets extra ones."""
        state, budget = self.state, self.settings
        return max(budget.iterations, state.inherited + budget.extra_iterations) - state.tree.root.visits

    def expand_in_advance(self, path: Sequence[Node]) -> Rounds:
        """Sample candidates on a leaf's second visit, or one more where all are similar and bad."""
        request = self._candidates_request(path)
        if request is None:
            return
        (reply,) = yield from self.prefetch.ask([request])
        for candidate in reply.continuations:
            self.state.check(candidate.tokens, candidate.ended)
        priors = with_priors(reply.continuations, self.settings.candidate_temperature, request.greedy_first)
        self.state.tree.expand(path[-1], priors)

    def keep_rollouts(self, iterations: Sequence[Iteration]) -> None:
        """Do nothing: rollouts are discarded, and candidates are sampled on a leaf's second visit."""

    def choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the child with the largest weight; it passed if most texts below it did."""
        child = self.state.tree.favourite()
        passed = 2 * child.passes > child.visits
        worst, best = self.state.range_below[child]
        return [child], passed, best if passed else worst

    def prefetch_with_rollouts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return the next iterations' requests, assuming that each verdict equals the latest one."""
        state = self.state
        if not iterations:
            return []
        expected = state.latest_verdict.score if state.latest_verdict else 1.0
        marks = [state.tree.pretend(each.path, expected) for each in iterations]
        asked: dict[Sample, None] = {}
        for _ in range(self.settings.prefetch):
            path, request = self._next_request()
            if request is not None and request not in self.prefetch.replies:
                asked[request] = None
            if path is None or self.settled():
                break
            marks.append(state.tree.pretend(path, expected))
        for mark in reversed(marks):
            state.tree.undo(mark)
        return list(asked)

    def prefetch_with_verdicts(self, iterations: Sequence[Iteration]) -> list[Sample]:
        """Return the same as with the rollouts."""
        return self.prefetch_with_rollouts(iterations)

    def _candidates_request(self, path: Sequence[Node], peek: bool = False) -> Sample | None:
        """Return the request for candidates of the last node; None if it needs none."""
        state, node = self.state, path[-1]
        second_visit = node.visits > 0 and not node.children and not state.ends(path)
        if not (second_visit or state.tree.wants_addition(node)):
            return None
        return candidates_request(state, self.settings, path, peek)

    def _next_request(self) -> tuple[list[Node] | None, Sample | None]:
        """Select a leaf as the next iteration would, without changing the tree.

        Returns:
            The path to the leaf, or None if it depends on candidates that are not known yet; and the request
            that the iteration would send, or None.
        """
        state = self.state
        path = [state.tree.root]
        while True:
            request = self._candidates_request(path, peek=True)
            if request is not None:
                return None, request
            if state.tree.is_leaf(path[-1]):
                break
            path.append(state.tree.best_child(path[-1]))
        if state.ends(path):
            return path, None
        tokens = tokens_of(path[1:])
        return path, rollout_request(state, tokens, rollout_length(state, tokens), peek=True)


def reads_and_rewinds(
    settings: RainSettings, subject: JudgeInput, form: OutputSpec, evaluator: SelfEvaluator
) -> bool:
    """Return whether an answer is searched for by ``read_and_rewind.py``, without a tree."""
    search = settings.search
    return (
        isinstance(search, ReadAndRewindSettings)
        and search.similarity is None
        and form == OutputSpec()
        and bool(subject.prompt)  # the judge is the writer
        and evaluator.reads(subject)
    )


def strategy_of(state: SearchState, prefetch: Prefetch) -> Strategy:
    """Return the strategy selected by the settings."""
    settings = state.settings.search
    if isinstance(settings, PaperSettings):
        return Paper(state, prefetch, settings)
    return KeepDrafts(state, prefetch, settings)
