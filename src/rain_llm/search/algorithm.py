"""RAIN, top to bottom: one coroutine that yields requests and receives replies (paper, section 3).

A search never touches a model. It yields rounds of ``Sample``, ``Score`` and ``Embed`` requests, and
a ``Step`` for each accepted piece of text; whoever drives it (the scheduler, or a test) sends back
the replies. So any search can be replayed, and many searches can share a batch.

The loop, in the paper's words::

    until the answer ends                                            outer loop
        until something is good enough, or the budget is spent       inner loop
            1 select      walk down the tree by value and prior
            2 simulate    look a little ahead from the leaf
            3 expand      give the leaf children
            4 evaluate    ask the judge about answer + look-ahead
            5 back up     tell the path, and what is like it
        commit            the best becomes the root; the rest is rewound

Two settings stand between the paper and the tuned default:

* ``expansion``, where children come from: "candidates" samples token sets ahead (paper);
  "simulations" keeps what was simulated and judged anyway, so that no token is wasted.
* ``commit``, when a step is done: "visits" asks for a child with many visits and a high value
  (paper); "verdict" takes a text as soon as its own verdict is good enough.

What a step rewinds it writes anew behind the criteria's guides (``guided``): the first draft of every step
is the prompt's own, so where the model writes well its words are left alone; where it does not, other
words are drawn from where good answers come from. The judge never sees a guide.

What makes it cheap (``docs/performance.md``): a request's seed follows from its prefix, so its reply
is the same whenever it is asked. So children are drawn only when they are first needed, at a leaf's
second visit, and what the next iterations will probably ask goes along with this one's requests
(``foresight``): with the verdict on a draft comes the first token behind it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TypeAlias, cast

import numpy as np

from rain_llm.errors import ModelError
from rain_llm.judging.evaluator import JudgeInput, SelfEvaluator
from rain_llm.models.base import LanguageModel
from rain_llm.search.answer import Answer
from rain_llm.search.output import OutputSpec, opening_of, opening_tokens, write_calls, write_document
from rain_llm.search.record import record
from rain_llm.search.shortest import shortest
from rain_llm.search.tree import Node, SearchTree, greedy_prior
from rain_llm.settings import PUNCTUATION, SENTENCE, RainSettings
from rain_llm.tools import OPENING, described, read
from rain_llm.types import (
    Continuation,
    Embed,
    Embeddings,
    Reply,
    Request,
    Sample,
    Samples,
    Score,
    Scores,
    SentenceVerdict,
    Step,
    StopReason,
    TokenIds,
    ToolCall,
    Vector,
    Verdict,
)

Replies: TypeAlias = Sequence[Reply]
Rounds: TypeAlias = Generator[Sequence[Request], Replies, None]

_ENDS = {"punctuation": PUNCTUATION, "sentence": SENTENCE, "answer": ()}
_UNFINISHED = Verdict(-1.0, False, False, ())  # half a document or call: there is nothing to judge


class Interrupted(Exception):
    """Thrown into a search to end it: it returns what it has, with this reason."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search comes to; the engine makes a ``RainResult`` of it.

    ``tail`` is the end of ``text`` that no step has carried; ``cause`` is why a model could not go on;
    ``cached_tokens`` are those of the prompt that had been read before.
    """

    text: str
    tail: str
    tokens: TokenIds
    verdict: Verdict | None
    accepted: bool
    stop_reason: StopReason
    iterations: int = 0
    evaluations: int = 0
    cached_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    cause: ModelError | None = None
    sentences: tuple[SentenceVerdict, ...] = ()


Search: TypeAlias = Generator[Sequence[Request] | Step, Replies, Outcome]


@dataclass(slots=True)
class _Look:
    """One iteration: a path to a leaf, what was simulated behind it, and the judge's word."""

    path: list[Node]  # root first
    tokens: TokenIds  # of the path below the root
    ends: bool  # the answer ends with the path
    simulation: TokenIds = ()
    whole: int = 0  # last tokens of the simulation that are one: calls or a document
    broken: bool = False  # which are not finished
    cut: bool = False  # as there was no room
    terminal: bool = False  # the answer ends behind path or simulation
    text: str = ""
    verdict: Verdict | None = None

    @property
    def seen(self) -> TokenIds:
        """All tokens that were judged in this iteration, from the root on."""
        return self.tokens + self.simulation


@dataclass(slots=True)
class RainSearch:
    """The search for one answer: :meth:`run` is the coroutine, the methods are its paragraphs.

    Attributes:
        prompt: token ids, at least one. subject: what the judge is shown of the prompt.
        writer: asked for decoding only. evaluator: makes the judge's questions.
        settings: of this answer. seed: of everything that is drawn for it.
        guided: the prompt with the criteria's guides; (): drafts are always the prompt's own.
        form: what the answer may hold beside free text.
    """

    prompt: TokenIds
    subject: JudgeInput
    writer: LanguageModel
    evaluator: SelfEvaluator
    settings: RainSettings
    seed: int
    guided: TokenIds = ()
    form: OutputSpec = field(default_factory=OutputSpec)
    origin: int = field(init=False)  # seed of this prompt's answer: other prompts draw otherwise
    tree: SearchTree = field(init=False)
    answer: Answer = field(init=False)
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by text of the whole answer
    weighed: dict[bytes, Scores] = field(default_factory=dict)  # by question: texts may share theirs
    heard: dict[Node, tuple[Verdict, Verdict]] = field(default_factory=dict)  # worst and best below
    ahead: dict[Sample, Samples] = field(default_factory=dict)  # replies to what was asked ahead
    turns: Counter[tuple[TokenIds, int]] = field(default_factory=Counter)  # draws from a place
    best: _Look | None = None  # the best judged text of this step
    best_at: int = 0  # iterations of this step when it was found
    cuts: int = 0  # drafts of this step that the limit has cut off
    heard_last: Verdict | None = None
    last: Verdict | None = None  # the verdict that came with the last commitment
    inherited: int = 0  # the root's visits at the beginning of this step
    step_iterations: int = 0
    iterations: int = 0
    evaluations: int = 0
    accepted: bool = True
    rejected: str | None = None  # the whole text that was given up
    cached: int | None = None  # of the prompt's tokens, at the first draft

    def __post_init__(self) -> None:
        self.origin = seed_of(self.seed, *self.prompt)
        self.tree = SearchTree(self.settings.search)
        stop = () if self.form.document else self.settings.generation.stop
        self.answer = Answer(self.writer.decode, self.prompt, stop, self.form.opening, self.writer.encode)

    def run(self) -> Search:
        """Write the answer: yields rounds of requests and accepted steps, returns the outcome."""
        try:
            while True:  # the outer loop
                self.inherited, self.step_iterations = self.tree.root.visits, 0
                self.best, self.best_at, self.cuts = None, 0, 0
                while not self._settled():  # the inner loop
                    looks = yield from self._select()
                    yield from self._simulate(looks)
                    self._expand(looks)
                    yield from self._evaluate(looks)
                    yield from self._back_up(looks)
                path, passed, verdict = self._choose()
                if self._unfinished():
                    return self._outcome(StopReason.INCOMPLETE, self.last)
                reason = self._end_behind(path)
                if reason:  # what is about to be the whole answer is judged as such
                    text = self._text(_tokens(path))
                    yield from self._judge([text])
                    verdict = self.verdicts[text]
                    passed = passed and verdict.passed
                marked = self.settings.on_unsafe == "best" and not (self.form.document or self._calls(path))
                if not (passed or marked):  # a call or a document bears no mark that its reader must see
                    self.rejected = self._text(_tokens(path))
                    return (yield from self._give_up(verdict))
                yield self._commit(path, passed, verdict, last=reason is not None)
                if reason:
                    return self._outcome(reason, verdict)
        except Interrupted as interruption:
            return self._outcome(interruption.reason, self.verdicts.get(self._text(), self.last))
        except ModelError as error:  # of a tokenizer that is a server's
            last = self.verdicts.get(self._text(), self.last)
            return replace(self._outcome(StopReason.ERROR, last), cause=error)

    def _settled(self) -> bool:
        """Tell whether the inner loop is done (paper: enough visits and value, or the budget)."""
        budget, tree = self.settings.search, self.tree
        if budget.commit == "verdict":
            verdict = self.best.verdict if self.best else None
            if verdict is not None and verdict.on_target:
                return True
            if self._cannot_end():
                return True
            idle = self.step_iterations - self.best_at
            return self._left() <= 0 or (budget.patience is not None and idle >= budget.patience)
        if tree.root.children:
            child = tree.favourite()
            if child.visits > budget.min_visits and child.value > budget.value_threshold:
                return True
        left = self._left()
        if budget.stop_when_decided and tree.lead() > left:
            return True  # an iteration moves no child's weight by more than 1
        return left <= 0 and any(child.visits for child in tree.root.children)

    def _cannot_end(self) -> bool:
        """Whether no draft came to its end and the limit has cut off so many that another is a waste.

        After one, another is written, unless no document within the limit could fit.
        """
        if not (self.cuts and self._unfinished()):
            return False
        owed = self.form.document or (self.form.call if self.form.forced else "")
        fits = not owed or len(self.writer.encode(shortest(owed))) <= self._room(())
        return self.cuts > 1 or not fits

    def _left(self) -> int:
        """Return the iterations that the budget leaves to this step."""
        budget = self.settings.search
        if budget.commit == "verdict":
            return self._worth() - self.step_iterations
        return max(budget.iterations, self.inherited + budget.extra_iterations) - self.tree.root.visits

    def _worth(self) -> int:
        """Return the most iterations of this step: what the criteria allow that are not on target yet."""
        most = self.settings.search.iterations
        evaluation = self.settings.evaluation
        own = {c.name: c.iterations for c in (*evaluation.criteria, *evaluation.actions) if c.iterations}
        verdict = self.best.verdict if self.best else None
        missed = [score.name for score in verdict.criteria if not score.on_target] if verdict else []
        return max((own.get(name, most) for name in missed), default=most)

    # -- 1 select --------------------------------------------------------------------------------

    def _select(self) -> Generator[Sequence[Request], Replies, list[_Look]]:
        """Walk from the root to a leaf, adding candidates where all are alike and bad.

        A round may look at several leaves; the first of a step looks at one, since it is often enough.
        """
        budget = self.settings.search
        wanted = budget.leaves if self.step_iterations else 1
        looks = []
        for _ in range(min(wanted, max(1, self._left()))):
            path = [self.tree.root]
            while True:
                if self._lacks_children(path):
                    yield from self._draw_children(path)
                if self.tree.is_leaf(path[-1]):
                    break
                if self.tree.wants_addition(path[-1]):
                    yield from self._draw_children(path)
                path.append(self.tree.best_child(path[-1]))
            self.tree.hold(path)
            tokens = _tokens(path[1:])
            looks.append(_Look(path, tokens, self._ends(path), terminal=path[-1].terminal))
        for look in looks:
            self.tree.release(look.path)
        return looks

    def _lacks_children(self, path: Sequence[Node]) -> bool:
        """Whether a leaf that was visited before gets the children now that it was not given then."""
        leaf = path[-1]
        candidates = self.settings.search.expansion == "candidates"
        return candidates and leaf.visits > 0 and not leaf.children and not self._ends(path)

    def _ends(self, path: Sequence[Node]) -> bool:
        """Whether the answer would end behind ``path`` (root first)."""
        tokens = _tokens(path[1:])
        return path[-1].terminal or self.answer.read(tokens)[1] or self._room(tokens) == 0

    # -- 2 simulate ------------------------------------------------------------------------------

    def _simulate(self, looks: Sequence[_Look]) -> Rounds:
        """Sample on from every leaf, behind the first token where that is known.

        The first draft of a step is the prompt's own; once it was rewound, drafts are guided.
        """
        drafts = [(look, self._draft(look)) for look in looks if not look.ends]
        asked = [(look, draft, request) for look, draft in drafts if (request := next(draft, None))]
        ahead = looks
        while asked:
            replies = yield from self._ask([request for _, _, request in asked], ahead)
            going = []
            for (look, draft, _), reply in zip(asked, replies, strict=True):
                try:
                    going.append((look, draft, draft.send(reply.continuations[0])))
                except StopIteration:
                    continue
            asked, ahead = going, ()
        for look, _ in drafts:
            self._check(look.simulation, look.terminal)

    def _draft(self, look: _Look) -> Generator[Sample, Continuation, None]:
        """Write one draft behind a leaf: to a sentence's end; a document, or calls, to their own."""
        form, guided = self.form, bool(self.guided and self.step_iterations)

        def draw(
            tokens: TokenIds, length: int, schema: str = "", ends: tuple[str, ...] | None = None
        ) -> Sample:
            made = self._simulation(look.seen + tokens, length, guided=guided, schema=schema)
            return made if ends is None else replace(made, ends=ends)

        opening: TokenIds = ()
        if form.document:
            look.simulation, finished, look.cut = yield from write_document(
                form, draw, self._room(look.tokens)
            )
            look.whole, look.terminal, look.broken = len(look.simulation), True, not finished
        elif form.forced:
            opening = opening_tokens(self.writer)
        else:
            length = self._ahead(look.tokens) if guided else self._take_head(look)
            if length:
                found = yield draw((), length)
                look.simulation += found.tokens
                look.terminal = found.ended
            if form.call:
                look.simulation, opening = opening_of(
                    self.writer, lambda more: self.answer.read(look.tokens + more), look.simulation
                )
        if opening:
            room = self._room(look.seen)
            calls, finished, look.cut = yield from write_calls(form, self.writer, draw, room, opening)
            look.simulation += calls
            look.whole, look.terminal, look.broken = len(calls), True, not finished

    def _take_head(self, look: _Look) -> int:
        """Begin a simulation with the token that came with the verdict on what stands before it.

        Returns how many tokens may follow; without such a token, as many as a simulation has.
        """
        length = self._ahead(look.tokens)
        head = self.ahead.pop(self._simulation(look.tokens, 1, peek=True), None)
        if head is None:
            return length
        self._seed(self._prefix(look.tokens), 1)  # its turn is over
        (first,) = head.continuations
        look.simulation, look.terminal = first.tokens, first.ended
        over = first.ended or self.writer.decode(first.tokens).endswith(self._ends_of_simulation)
        return 0 if over else length - len(first.tokens)

    @property
    def _ends_of_simulation(self) -> tuple[str, ...]:
        opening = (OPENING,) if self.form.call else ()
        return _ENDS[self.settings.search.simulation_ends] + self.settings.generation.stop + opening

    def _simulation(
        self, tokens: TokenIds, length: int, peek: bool = False, guided: bool = False, schema: str = ""
    ) -> Sample:
        """Ask for one continuation behind ``tokens``."""
        drawing, prefix = self.settings.generation, self._prefix(tokens)
        return Sample(
            self.guided + prefix[len(self.prompt) :] if guided else prefix,
            1,
            length,
            self._seed(prefix, 1, peek),
            drawing.temperature,
            drawing.top_k,
            drawing.top_p,
            ends=() if schema else self._ends_of_simulation,
            schema=schema,
        )

    def _ahead(self, tokens: TokenIds) -> int:
        """Return the most tokens of a simulation behind ``tokens``."""
        budget, room = self.settings.search, self._room(tokens)
        return room if budget.simulation_ends == "answer" else min(room, budget.simulation_tokens)

    # -- 3 expand --------------------------------------------------------------------------------

    def _expand(self, looks: Sequence[_Look]) -> None:
        """Keep what was simulated as the leaves' children ('candidates': see ``_select``)."""
        if self.settings.search.expansion == "simulations":
            for look in looks:
                if not look.ends:
                    chain = self.tree.graft(look.path[-1], look.simulation, look.terminal, look.whole)
                    look.path = look.path + chain
                    look.tokens, look.simulation = look.seen, ()

    def _draw_children(self, path: Sequence[Node]) -> Rounds:
        """Give the last node of ``path`` (root first) its candidates, or one more (dynamic addition)."""
        request = self._candidates(path)
        (reply,) = yield from self._ask([request])
        for candidate in reply.continuations:
            self._check(candidate.tokens, candidate.ended)
        self.tree.expand(path[-1], self._with_priors(reply.continuations, request.greedy_first))

    def _candidates(self, path: Sequence[Node], peek: bool = False) -> Sample:
        """Ask for children of the last node: the likeliest tokens, or one greedy and some sampled sets.

        If it has children, ask for one more: the next-ranked token, or a sampled set. (The paper's code
        tries the greedy set again, which is always there already.)
        """
        budget, node, tokens = self.settings.search, path[-1], _tokens(path[1:])
        prefix = self._prefix(tokens)
        length = min(self.tree.length_below(node), self._room(tokens))
        more = bool(node.children)
        if length == 1:
            width = len(node.children) + 1 if more else budget.width
            return Sample(prefix, width, 1, self._seed(prefix, -width, peek), ranked=True)
        width = 1 if more else budget.width
        return Sample(
            prefix,
            width,
            length,
            self._seed(prefix, -width, peek),
            budget.candidate_temperature,
            budget.candidate_top_k,
            greedy_first=not more,
        )

    def _with_priors(
        self, candidates: Sequence[Continuation], greedy: bool
    ) -> list[tuple[TokenIds, bool, float]]:
        """Turn log-probabilities into priors; the greedy set's is lifted (paper's code)."""
        temperature = self.settings.search.candidate_temperature
        probabilities = [math.exp(c.logprob / temperature) for c in candidates]
        if greedy:
            sampled = {c.tokens: p for c, p in zip(candidates[1:], probabilities[1:], strict=True)}
            sampled.pop(candidates[0].tokens, None)
            probabilities[0] = greedy_prior(probabilities[0], list(sampled.values()))
        return [(c.tokens, c.ended, p) for c, p in zip(candidates, probabilities, strict=True)]

    # -- 4 evaluate ------------------------------------------------------------------------------

    def _evaluate(self, looks: Sequence[_Look]) -> Rounds:
        """Judge answer, path and simulation of each look; a text is judged once."""
        for look in looks:
            look.text = self._text(look.seen)
        whole = [look for look in looks if not look.broken]
        yield from self._judge([look.text for look in whole], whole)
        for look in looks:
            look.verdict = _UNFINISHED if look.broken else self.verdicts[look.text]

    def _judge(self, texts: Sequence[str], looks: Sequence[_Look] = ()) -> Rounds:
        new = [text for text in dict.fromkeys(texts) if text not in self.verdicts]
        if not new:
            return
        asking = self.evaluator.judge(self.subject, *self._told(new))
        questions = next(asking)
        verdict = self.settings.search.commit == "verdict"
        foreseen = self._heads(looks) if verdict else self._foresee(looks)
        # A question asked again would be answered a rounding error apart, which no choice may hang on.
        names = [_name(question) for question in cast("Sequence[Score]", questions)]
        unknown = [name not in self.weighed for name in names]
        asked = [question for question, asks in zip(questions, unknown, strict=True) if asks]
        replies: Replies = ()
        if asked or foreseen:
            replies = yield [*asked, *foreseen]
        self._remember(foreseen, replies[len(asked) :])
        answers = iter(cast("Sequence[Scores]", replies[: len(asked)]))
        self.weighed.update((name, next(answers)) for name, asks in zip(names, unknown, strict=True) if asks)
        try:
            asking.send([self.weighed[name] for name in names])
        except StopIteration as done:
            self.verdicts.update(zip(new, done.value, strict=True))
        self.evaluations += len(new)

    def _told(self, texts: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        """Return what the judge is shown of each text: what is said, and the calls in words."""
        if not self.form.call:
            return texts, ()
        read_apart = [read(text) for text in texts]
        return [said for said, _ in read_apart], [described(calls) for _, calls in read_apart]

    # -- asked ahead -------------------------------------------------------------------------------

    def _ask(
        self, requests: Sequence[Sample], looks: Sequence[_Look] = ()
    ) -> Generator[Sequence[Request], Replies, list[Samples]]:
        """Return the replies to ``requests``: those asked ahead, and the rest in a round.

        What is to be expected behind ``looks`` goes along with the round.
        """
        missing = [request for request in requests if request not in self.ahead]
        if missing:
            asked = missing + self._foresee(looks)
            self._remember(asked, (yield asked))
        replies = [self.ahead.pop(request) for request in requests]
        if self.cached is None:
            self.cached = replies[0].cached_tokens
        return replies

    def _remember(self, requests: Sequence[Sample], replies: Replies) -> None:
        self.ahead.update(zip(requests, cast("Sequence[Samples]", replies), strict=True))

    def _heads(self, looks: Sequence[_Look]) -> list[Sample]:
        """Ask for the first token behind each look: what comes next if the look is committed."""
        if not self.settings.search.foresight:
            return []
        going = [look for look in looks if not self._ends(look.path)]
        heads = dict.fromkeys(self._simulation(look.tokens, 1, peek=True) for look in going)
        return [head for head in heads if head not in self.ahead]

    def _foresee(self, looks: Sequence[_Look]) -> list[Sample]:
        """Return what the next iterations will ask if nothing surprising is heard of ``looks``.

        A wrong guess costs its tokens; it changes no choice.
        """
        budget = self.settings.search
        if not looks or budget.commit == "verdict":
            return []
        expected = self.heard_last.score if self.heard_last else 1.0
        marks = [self.tree.pretend(look.path, expected) for look in looks]
        asked: dict[Sample, None] = {}
        for _ in range(budget.foresight):
            path, request = self._next_request()
            if request is not None and request not in self.ahead:
                asked[request] = None
            if path is None or self._settled():
                break
            marks.append(self.tree.pretend(path, expected))
        for mark in reversed(marks):
            self.tree.undo(mark)
        return list(asked)

    def _next_request(self) -> tuple[list[Node] | None, Sample | None]:
        """Select as the next iteration would.

        Returns the path to its leaf (None: hidden behind candidates that are not known), and what it
        would ask there (None: nothing).
        """
        path = [self.tree.root]
        while True:
            if self._lacks_children(path):
                return None, self._candidates(path, peek=True)
            if self.tree.is_leaf(path[-1]):
                break
            if self.tree.wants_addition(path[-1]):
                return None, self._candidates(path, peek=True)
            path.append(self.tree.best_child(path[-1]))
        if self._ends(path):
            return path, None
        tokens = _tokens(path[1:])
        return path, self._simulation(tokens, self._ahead(tokens), peek=True, guided=bool(self.guided))

    # -- 5 back up -------------------------------------------------------------------------------

    def _back_up(self, looks: Sequence[_Look]) -> Rounds:
        """Tell the path its value, and siblings that are alike a share of it."""
        embeddings: list[Sequence[Vector]] = [()] * len(looks)
        if self.settings.search.similarity is not None:
            embeddings = yield from self._embed(looks)
        best_before = self.best
        self.cuts += sum(look.cut for look in looks)
        for look, vectors in zip(looks, embeddings, strict=True):
            verdict = look.verdict
            assert verdict is not None  # _evaluate has judged every look
            self.heard_last = verdict
            self.tree.back_up(look.path, verdict.score, verdict.passed, vectors)
            for node in look.path[1:]:
                known = (*self.heard.get(node, ()), verdict)
                self.heard[node] = min(known, key=_rank), max(known, key=_rank)
            best = self.best.verdict if self.best else None
            if best is None or _rank(verdict) > _rank(best):
                self.best = look
        self.step_iterations += len(looks)
        if self.best is not best_before:
            self.best_at = self.step_iterations
        self.iterations += len(looks)

    def _embed(self, looks: Sequence[_Look]) -> Generator[Sequence[Request], Replies, list[Sequence[Vector]]]:
        """Embed, for each node of each path, the text from its own tokens to the look's end."""
        texts = []
        for look in looks:
            rest = look.seen
            for node in look.path[1:]:
                texts.append(self.writer.decode(rest))
                rest = rest[len(node.tokens) :]
        if not texts:
            return [()] * len(looks)
        (reply,) = cast("Sequence[Embeddings]", (yield [Embed(tuple(texts))]))
        vectors = iter(reply.vectors)
        return [[next(vectors) for _ in look.path[1:]] for look in looks]

    # -- commit ------------------------------------------------------------------------------------

    def _choose(self) -> tuple[list[Node], bool, Verdict]:
        """Return the path to commit, whether it passed, and the verdict that speaks for it."""
        if self.settings.search.commit == "verdict":
            assert self.best is not None and self.best.verdict is not None  # at least one iteration
            return self.best.path[1:], self.best.verdict.passed, self.best.verdict
        child = self.tree.favourite()
        passed = 2 * child.passes > child.visits
        worst, best = self.heard[child]
        return [child], passed, best if passed else worst

    def _unfinished(self) -> bool:
        """Whether no draft of a document or a call came to its end."""
        return self.best is not None and self.best.broken

    def _end_behind(self, path: Sequence[Node]) -> StopReason | None:
        """Tell why the answer ends once ``path`` is committed; None if it goes on."""
        tokens = _tokens(path)
        if self.answer.read(tokens)[1]:
            return StopReason.STOP
        if path[-1].terminal:
            return StopReason.TOOL_CALLS if self._calls(path) else StopReason.EOS
        return StopReason.LENGTH if self._room(tokens) == 0 else None

    def _commit(self, path: Sequence[Node], passed: bool, verdict: Verdict, last: bool) -> Step:
        """Make the end of ``path`` the root; what is not below it is rewound."""
        candidates, calls = record(self.tree.root, self._text, set(path)), self._calls(path)
        tokens = _tokens(path)
        text = self.answer.extend(tokens) + (self.answer.finish() if last else "")
        root = self.tree.commit(path)
        self.heard = {node: self.heard[node] for node in root.walk() if node in self.heard}
        self.accepted = self.accepted and passed
        self.last = verdict
        here = self._prefix(())
        self.ahead = {r: reply for r, reply in self.ahead.items() if r.prefix[: len(here)] == here}
        said = self._text()
        self.verdicts = {t: found for t, found in self.verdicts.items() if t.startswith(said)}
        self.turns = Counter({k: turn for k, turn in self.turns.items() if k[0][: len(here)] == here})
        return Step(text, tokens, passed, False, verdict, self.step_iterations, candidates, calls)

    def _give_up(self, verdict: Verdict) -> Generator[Step, Replies, Outcome]:
        """End without what did not pass: with the refusal, or for the engine to raise."""
        before, self.accepted = self.accepted, False
        if self.settings.on_unsafe == "raise":
            return self._outcome(StopReason.UNSAFE, verdict)
        said = self.answer.finish()
        refusal = self.settings.refusal if not self.answer.shown else f"\n{self.settings.refusal}"
        if said:
            yield Step(said, accepted=before)
        yield Step(refusal, refusal=True, verdict=verdict, iterations=self.step_iterations)
        outcome = self._outcome(StopReason.REFUSED, verdict)
        return Outcome(
            outcome.text + refusal,
            "",
            outcome.tokens,
            verdict,
            False,
            outcome.stop_reason,
            *_counts(self),
        )

    def _outcome(self, reason: StopReason, verdict: Verdict | None) -> Outcome:
        tail = self.answer.finish()
        return Outcome(
            self.answer.shown,
            tail,
            self.answer.tokens,
            verdict,
            self.accepted,
            reason,
            *_counts(self),
            tool_calls=self._calls(),
        )

    def _calls(self, path: Sequence[Node] = ()) -> tuple[ToolCall, ...]:
        """Return the calls in the answer with ``path`` behind it."""
        return calls_in(self.answer, self.origin, self.form, _tokens(path))

    # -- small words -------------------------------------------------------------------------------

    def _check(self, tokens: TokenIds, ended: bool) -> None:
        """See that a model goes on, or ends: else the search would have no end."""
        if not (tokens or ended):
            raise ModelError(f"{self.writer.name} goes on without a token, and without an end")

    def _prefix(self, tokens: TokenIds) -> TokenIds:
        return self.prompt + self.answer.tokens + tokens

    def _text(self, tokens: TokenIds = ()) -> str:
        return self.answer.read(tokens)[0]

    def _room(self, tokens: TokenIds) -> int:
        limit = self.settings.generation.max_new_tokens
        return max(0, limit - len(self.answer.tokens) - len(tokens))

    def _seed(self, prefix: TokenIds, kind: int, peek: bool = False) -> int:
        """Make a request's seed of what it asks and where: it does not matter when.

        ``peek``: another request will be the same.
        """
        turn = self.turns[prefix, kind]
        if not peek:
            self.turns[prefix, kind] += 1
        return seed_of(self.origin, kind, turn, *prefix[len(self.prompt) :])


def calls_in(answer: Answer, origin: int, form: OutputSpec, more: TokenIds = ()) -> tuple[ToolCall, ...]:
    """Return the calls in an answer with ``more`` tokens behind it, under names that hang on its words."""
    if not form.call:
        return ()
    _, calls = read(answer.read(more)[0])
    written = (*answer.tokens, *more)
    return tuple(
        replace(call, id=f"call_{seed_of(origin, place, *written):016x}") for place, call in enumerate(calls)
    )


def seed_of(*numbers: int) -> int:
    """Return a seed of 62 bits that hangs on all ``numbers`` (of 63 bits at most) and their order."""
    told = np.array(numbers, np.int64).tobytes()
    return int.from_bytes(blake2b(told, digest_size=8).digest(), "little") >> 2


def _rank(verdict: Verdict) -> tuple[bool, bool, float]:
    return verdict.on_target, verdict.passed, verdict.score


def _name(question: Score) -> bytes:
    """Return a short name that no other question has."""
    parts = (question.prefix, *question.options)
    numbers = np.array([number for part in parts for number in (len(part), *part)], np.int64)
    return blake2b(numbers.tobytes(), digest_size=16).digest()


def _tokens(path: Sequence[Node]) -> TokenIds:
    return tuple(token for node in path for token in node.tokens)


def _counts(search: RainSearch) -> tuple[int, int, int]:
    return search.iterations, search.evaluations, search.cached or 0
