"""What a search knows: what it was asked, the answer so far, the tree, and the counts of this step."""

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
        path: from the root to the leaf. tokens: of the path below the root.
        ends: the answer ends with the path, so there is nothing to simulate.
        rollout: tokens after the path.
        atomic: how many last tokens of the rollout are one token set: calls or a document.
        incomplete: the document or calls were not finished. cut: because there was no room.
        terminal: the answer ends after path or rollout.
        text: the whole answer with path and rollout. verdict: on that text.
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
        """All tokens that are judged in this iteration, from the root on."""
        return self.tokens + self.rollout


@dataclass(slots=True)
class SearchState:
    """Everything that one search keeps.

    Attributes:
        prompt: token ids, at least one. subject: what the judge is shown of the prompt.
        writer: asked for decoding only. evaluator: makes the judge's questions.
        settings: of this answer. seed: of everything that is sampled for it.
        guided: the prompt with the criteria's guide prefixes; (): rollouts always continue the prompt.
        form: what the answer may hold beside free text.
        origin: seed of this prompt's answer, so that other prompts sample differently.
        turns: requests made so far, by prefix and kind; part of each request's seed.
        best: the best iteration of this step.
        cuts: rollouts of this step that ``max_new_tokens`` has cut off.
        inherited: the root's visits at the beginning of this step.
        range_below: the worst and the best verdict at or below a node.
        latest_verdict: the newest one. committed_verdict: the one on the last commitment.
        accepted: everything committed so far has passed. rejected: the whole text that was given up.
        cached: tokens of the prompt in the prefix cache at the first rollout.
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
        """Forget the counts of the step before."""
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
        """Return prompt and accepted answer, with ``tokens`` after them."""
        return self.prompt + self.answer.tokens + tokens

    def text(self, tokens: TokenIds = ()) -> str:
        """Return the answer's text with ``tokens`` after it."""
        return self.answer.read(tokens)[0]

    def room(self, tokens: TokenIds = ()) -> int:
        """Return how many tokens may still follow ``tokens``."""
        limit = self.settings.generation.max_new_tokens
        return max(0, limit - len(self.answer.tokens) - len(tokens))

    def ends(self, path: Sequence[Node]) -> bool:
        """Whether the answer would end after ``path`` (root first)."""
        tokens = tokens_of(path[1:])
        return path[-1].terminal or self.answer.read(tokens)[1] or self.room(tokens) == 0

    def unfinished(self) -> bool:
        """Whether no rollout of a document or a call came to its end."""
        return self.best is not None and self.best.incomplete

    def calls(self, path: Sequence[Node] = ()) -> tuple[ToolCall, ...]:
        """Return the calls in the answer with ``path`` after it."""
        return calls_in(self.answer, self.origin, self.form, tokens_of(path))

    def seed_at(self, prefix: TokenIds, kind: int, peek: bool = False) -> int:
        """Return a request's seed, from what it asks and where: when it is asked does not matter.

        ``peek``: another request will be the same.
        """
        turn = self.turns[prefix, kind]
        if not peek:
            self.turns[prefix, kind] += 1
        return seed_of(self.origin, kind, turn, *prefix[len(self.prompt) :])

    def check(self, tokens: TokenIds, ended: bool) -> None:
        """Check that a model goes on, or ends: else the search would have no end.

        Raises:
            ModelError: it did neither.
        """
        if not (tokens or ended):
            raise ModelError(f"{self.writer.name} goes on without a token, and without an end")


def tokens_of(path: Sequence[Node]) -> TokenIds:
    """Return the tokens of the nodes of a path."""
    return tuple(token for node in path for token in node.tokens)


def rank(verdict: Verdict) -> tuple[bool, bool, float]:
    """Return what makes one verdict better than another; larger is better."""
    return verdict.on_target, verdict.passed, verdict.score
