"""State of one search: prompt and settings, the answer so far, the tree, and the counts of this step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rain_llm.errors import ModelError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.search.answer import Answer
from rain_llm.search.output import OutputSpec, calls_in
from rain_llm.search.seeds import seed_of
from rain_llm.search.tree import Node, SearchTree
from rain_llm.settings import RainSettings
from rain_llm.types import TokenIds, ToolCall, Verdict


@dataclass(slots=True)
class Iteration:
    """One iteration of the inner loop: a path to a leaf, the rollout from it, and its verdict.

    Attributes:
        path: nodes from the root to the leaf; once the rollout is kept as nodes, to its end.
        tokens: tokens of the path below the root.
        ends: whether the answer ends with the path, so that there is nothing to simulate.
        rollout: tokens after the path, until they are kept as nodes of it.
        atomic: number of tokens at the rollout's end that must stay in one token set (a JSON document or
            tool calls).
        incomplete: whether the document or the calls were not finished.
        cut: whether they were not finished because ``max_new_tokens`` was reached.
        terminal: whether the answer ends after the path and the rollout.
        text: the complete answer, with path and rollout.
        verdict: the judge's verdict on ``text``; None before the evaluation.
    """

    path: list[Node]
    tokens: TokenIds
    ends: bool
    rollout: TokenIds = ()
    atomic: int = 0
    incomplete: bool = False
    cut: bool = False
    terminal: bool = False
    text: str = ""
    verdict: Verdict | None = None

    @property
    def judged(self) -> TokenIds:
        """Return all tokens below the root that this iteration judges: the path's and the rollout's."""
        return self.tokens + self.rollout


@dataclass(slots=True)
class SearchState:
    """Hold everything that one search knows.

    Attributes:
        prompt: token ids, at least one.
        subject: the part of the prompt that the judge sees.
        writer: the model that answers; used here only to encode and decode.
        evaluator: builds the judge's questions.
        settings: settings of this answer.
        seed: seed of everything that is sampled for it.
        guided: the prompt with the criteria's guide prefixes; (): rollouts always continue the prompt.
        form: what the answer may contain besides free text.
        origin: seed derived from ``seed`` and the prompt, so that different prompts sample differently.
        turns: number of requests made so far, by prefix and kind; part of each request's seed.
        best: the best iteration of this step.
        cuts: number of this step's rollouts that ``max_new_tokens`` cut off.
        inherited: the root's visits at the beginning of this step.
        range_below: the worst and the best verdict at or below a node.
        latest_verdict: the verdict of the latest iteration.
        committed_verdict: the verdict of the last committed step.
        accepted: whether everything committed so far has passed.
        rejected: the complete text of an answer that was given up; None if there is none.
        cached: number of prompt tokens that the first rollout found in the prefix cache.
    """

    prompt: TokenIds
    subject: JudgeInput
    writer: LanguageModel
    evaluator: SelfEvaluator
    settings: RainSettings
    seed: int
    guided: TokenIds = ()
    form: OutputSpec = field(default_factory=OutputSpec)
    origin: int = field(init=False)
    tree: SearchTree = field(init=False)
    answer: Answer = field(init=False)
    turns: Counter[tuple[TokenIds, int]] = field(default_factory=Counter)
    best: Iteration | None = None
    cuts: int = 0
    inherited: int = 0
    step_iterations: int = 0
    range_below: dict[Node, tuple[Verdict, Verdict]] = field(default_factory=dict)
    latest_verdict: Verdict | None = None
    committed_verdict: Verdict | None = None
    accepted: bool = True
    rejected: str | None = None
    iterations: int = 0
    evaluations: int = 0
    cached: int | None = None

    def __post_init__(self) -> None:
        self.origin = seed_of(self.seed, *self.prompt)
        self.tree = SearchTree(self.settings.search)
        stop = () if self.form.document else self.settings.generation.stop
        self.answer = Answer(self.writer.decode, self.prompt, stop, self.form.opening, self.writer.encode)

    def begin_step(self) -> None:
        """Reset the counts that belong to one step."""
        self.inherited, self.step_iterations = self.tree.root.visits, 0
        self.best, self.cuts = None, 0

    def note(self, iteration: Iteration, verdict: Verdict) -> None:
        """Count an iteration; keep its verdict at the nodes of its path, and it itself if it is the best."""
        self.latest_verdict = verdict
        for node in iteration.path[1:]:
            known = (*self.range_below.get(node, ()), verdict)
            self.range_below[node] = min(known, key=rank), max(known, key=rank)
        best = self.best.verdict if self.best else None
        if best is None or rank(verdict) > rank(best):
            self.best = iteration
        self.cuts += iteration.cut
        self.step_iterations += 1
        self.iterations += 1

    def prefix(self, tokens: TokenIds = ()) -> TokenIds:
        """Return the prompt and the accepted answer, followed by ``tokens``."""
        return self.prompt + self.answer.tokens + tokens

    def text(self, tokens: TokenIds = ()) -> str:
        """Return the text of the answer followed by ``tokens``."""
        return self.answer.read(tokens)[0]

    def room(self, tokens: TokenIds = ()) -> int:
        """Return how many tokens may still follow ``tokens``."""
        limit = self.settings.generation.max_new_tokens
        return max(0, limit - len(self.answer.tokens) - len(tokens))

    def ends(self, path: Sequence[Node]) -> bool:
        """Return whether the answer would end after ``path`` (root first)."""
        tokens = tokens_of(path[1:])
        return path[-1].terminal or self.answer.read(tokens)[1] or self.room(tokens) == 0

    def unfinished(self) -> bool:
        """Return whether no rollout of this step completed its document or its tool calls."""
        return self.best is not None and self.best.incomplete

    def calls(self, path: Sequence[Node] = ()) -> tuple[ToolCall, ...]:
        """Return the tool calls in the answer followed by ``path``."""
        return calls_in(self.answer, self.origin, self.form, tokens_of(path))

    def seed_at(self, prefix: TokenIds, kind: int, peek: bool = False) -> int:
        """Return a request's seed, which depends on its prefix and kind, not on when it is sent.

        Args:
            prefix: the tokens that the request continues.
            kind: 1 for a rollout, minus their number for candidates.
            peek: do not count the request: an identical one will follow.
        """
        turn = self.turns[prefix, kind]
        if not peek:
            self.turns[prefix, kind] += 1
        return seed_of(self.origin, kind, turn, *prefix[len(self.prompt) :])

    def check(self, tokens: TokenIds, ended: bool) -> None:
        """Check that a continuation has tokens or ends; otherwise the search would never end.

        Raises:
            ModelError: it has no tokens and does not end.
        """
        if not (tokens or ended):
            raise ModelError(f"{self.writer.name} returned a continuation without a token and without an end")


def tokens_of(path: Sequence[Node]) -> TokenIds:
    """Concatenate the tokens of a path's nodes."""
    return tuple(token for node in path for token in node.tokens)


def rank(verdict: Verdict) -> tuple[bool, bool, float]:
    """Return a key that orders verdicts; the better verdict has the larger key."""
    return verdict.on_target, verdict.passed, verdict.score
