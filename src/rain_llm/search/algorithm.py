"""The RAIN search: one coroutine that yields requests and receives replies (paper, section 3).

A search never calls a model. It yields rounds of ``Sample``, ``Score`` and ``Embed`` requests, and a ``Step``
for each accepted piece of text; its driver (the scheduler, or a test) sends back the replies. So a search can
be replayed, and many searches can share a batch.

The loop, in the paper's words::

    until the answer ends                                            outer loop
        until something is good enough, or the budget is spent       inner loop
            1 select      walk down the tree by value and prior
            2 simulate    sample a rollout from the leaf
            3 expand      give the leaf children
            4 evaluate    ask the judge about answer + rollout
            5 back up     update the values on the path, and of similar siblings
        6 commit          the best becomes the root; the rest is rewound: dropped, for every request
                          carries its whole prefix. If it did not pass, give up (``on_unsafe``)

What differs between the paper and the tuned search is in two strategies (``strategies.py``), which the loop
does not distinguish::

                      Paper                                          KeepDrafts (tuned)
    expand            a leaf's second visit samples candidates,      the rollout becomes a chain of
                      during select; later one more, where all       nodes (``keep_rollouts``)
                      are similar and bad (``expand_in_advance``)
    good enough       a child has enough visits and value            a verdict is on target
    commit            the child with the largest weight              the text with the best verdict

Words: a *step* is one turn of the outer loop, an *iteration* one of the inner loop; a *round* is what is
requested at once, perhaps for several iterations. A *token set* is the tokens of a node; a *leaf* is where
selection ends. A document or a call is *atomic*: one token set; until it is finished it is *incomplete*.

With KeepDrafts, a step's first rollout continues the prompt itself; its later ones are resampled with the
criteria's guide prefixes (``guided``). So a text that is on target at once is not changed. The judge never
sees a guide prefix.

Other modules: ``tree.py`` (values and selection), ``rollouts.py`` and ``output.py`` (sampling text, documents
and tool calls), ``prefetch.py`` (requests sent early), ``verdicts.py`` (each text is judged once), and
``ending.py`` (how an answer ends).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

from rain_llm.errors import ModelError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Embed, Embeddings, Request, Vector
from rain_llm.search.ending import end_after, give_up, may_leave_marked, outcome
from rain_llm.search.outcome import Interrupted, Replies, Rounds, Search
from rain_llm.search.output import OutputSpec
from rain_llm.search.prefetch import Prefetch
from rain_llm.search.record import record
from rain_llm.search.rollouts import roll_out
from rain_llm.search.state import Iteration, SearchState, tokens_of
from rain_llm.search.strategies import strategy_of
from rain_llm.search.tree import Node
from rain_llm.search.verdicts import INCOMPLETE, Verdicts
from rain_llm.settings import RainSettings
from rain_llm.types import Step, StopReason, TokenIds, Verdict


class RainSearch:
    """Search for one answer; :meth:`run` is the coroutine, the other methods are its phases.

    Args:
        prompt: token ids, at least one.
        subject: the part of the prompt that the judge sees.
        writer: the model that answers; used here only to encode and decode.
        evaluator: builds the judge's questions.
        settings: settings of this answer.
        seed: seed of everything that is sampled for it.
        guided: the prompt with the criteria's guide prefixes; (): rollouts always continue the prompt.
        form: what the answer may contain besides free text.
    """

    __slots__ = ("prefetch", "state", "strategy", "verdicts")

    def __init__(
        self,
        prompt: TokenIds,
        subject: JudgeInput,
        writer: LanguageModel,
        evaluator: SelfEvaluator,
        settings: RainSettings,
        seed: int,
        guided: TokenIds = (),
        form: OutputSpec | None = None,
    ) -> None:
        output = form or OutputSpec()
        self.state = SearchState(prompt, subject, writer, evaluator, settings, seed, guided, output)
        self.prefetch = Prefetch(self.state)
        self.strategy = strategy_of(self.state, self.prefetch)
        self.verdicts = Verdicts(self.state, self.prefetch)

    def run(self) -> Search:
        """Generate the answer: yield rounds of requests and accepted steps, return the outcome."""
        state = self.state
        try:
            while True:  # the outer loop
                state.begin_step()
                while not self.strategy.settled():  # the inner loop
                    iterations = yield from self._select()
                    prefetch_with = partial(self.strategy.prefetch_with_rollouts, iterations)
                    yield from roll_out(state, self.prefetch, iterations, prefetch_with)
                    self.strategy.keep_rollouts(iterations)
                    yield from self._evaluate(iterations)
                    yield from self._back_up(iterations)
                path, passed, verdict = self.strategy.choose()
                if state.unfinished():
                    return outcome(state, StopReason.INCOMPLETE, state.committed_verdict)
                reason = end_after(state, path)
                if reason:
                    verdict = yield from self._judge_answer(path)
                    passed = passed and verdict.passed
                if not (passed or may_leave_marked(state, path)):
                    return (yield from give_up(state, tokens_of(path), verdict))
                yield self._commit(path, passed, verdict, last=reason is not None)
                if reason:
                    return outcome(state, reason, verdict)
        except Interrupted as interruption:
            return outcome(state, interruption.reason, self.verdicts.last())
        except ModelError as error:  # raised by the tokenizer of a remote server
            return replace(outcome(state, StopReason.ERROR, self.verdicts.last()), cause=error)

    # -- 1 select --------------------------------------------------------------------------------

    def _select(self) -> Generator[Sequence[Request], Replies, list[Iteration]]:
        """Walk from the root to a leaf, for each iteration of the round.

        The first round of a step has one iteration, since its rollout is often good enough. Later rounds may
        have several: virtual visits keep them from all taking the same path.
        """
        state, tree = self.state, self.state.tree
        wanted = state.settings.search.leaves if state.step_iterations else 1
        iterations = []
        for _ in range(min(wanted, max(1, self.strategy.left()))):
            path = [tree.root]
            while True:
                yield from self.strategy.expand_in_advance(path)
                if tree.is_leaf(path[-1]):
                    break
                path.append(tree.best_child(path[-1]))
            tree.hold(path)
            ends = state.ends(path)
            iterations.append(Iteration(path, tokens_of(path[1:]), ends, terminal=path[-1].terminal))
        for iteration in iterations:
            tree.release(iteration.path)
        return iterations

    # -- 2 simulate: rollouts.py; 3 expand: strategies.py ---------------------------------------------

    # -- 4 evaluate ------------------------------------------------------------------------------

    def _evaluate(self, iterations: Sequence[Iteration]) -> Rounds:
        """Judge the answer with the path and rollout of each iteration; each text is judged once."""
        for each in iterations:
            each.text = self.state.text(each.judged)
        complete = [each for each in iterations if not each.incomplete]
        texts = {each.text: each.judged for each in complete}
        yield from self.verdicts.judge(texts, partial(self.strategy.prefetch_with_verdicts, complete))
        for each in iterations:
            each.verdict = INCOMPLETE if each.incomplete else self.verdicts.of[each.text]

    def _judge_answer(self, path: Sequence[Node]) -> Generator[Sequence[Request], Replies, Verdict]:
        """Judge the text that ends with ``path`` as the whole answer."""
        tokens = tokens_of(path)
        text = self.state.text(tokens)
        yield from self.verdicts.judge({text: tokens})
        return self.verdicts.of[text]

    # -- 5 back up -------------------------------------------------------------------------------

    def _back_up(self, iterations: Sequence[Iteration]) -> Rounds:
        """Update the values on each path, and partially those of similar siblings."""
        state = self.state
        embeddings: list[Sequence[Vector]] = [()] * len(iterations)
        if state.settings.search.similarity is not None:
            embeddings = yield from self._embed(iterations)
        for each, vectors in zip(iterations, embeddings, strict=True):
            verdict = each.verdict
            assert verdict is not None  # _evaluate has judged every iteration
            state.tree.back_up(each.path, verdict.score, verdict.passed, vectors)
            state.note(each, verdict)

    def _embed(
        self, iterations: Sequence[Iteration]
    ) -> Generator[Sequence[Request], Replies, list[Sequence[Vector]]]:
        """Embed, for each node of each path, the text from its own tokens to the rollout's end."""
        texts = []
        for each in iterations:
            rest = each.judged
            for node in each.path[1:]:
                texts.append(self.state.writer.decode(rest))
                rest = rest[len(node.tokens) :]
        if not texts:
            return [()] * len(iterations)
        (reply,) = cast("Sequence[Embeddings]", (yield [Embed(tuple(texts))]))
        vectors = iter(reply.vectors)
        return [[next(vectors) for _ in each.path[1:]] for each in iterations]

    # -- 6 commit ----------------------------------------------------------------------------------

    def _commit(self, path: Sequence[Node], passed: bool, verdict: Verdict, last: bool) -> Step:
        """Accept ``path``: its last node becomes the root, and every other branch is dropped."""
        state = self.state
        candidates, calls = record(state.tree.root, state.text, set(path)), state.calls(path)
        tokens = tokens_of(path)
        text = state.answer.extend(tokens) + (state.answer.finish() if last else "")
        root = state.tree.commit(path)
        kept = (node for node in root.walk() if node in state.range_below)
        state.range_below = {node: state.range_below[node] for node in kept}
        state.accepted = state.accepted and passed
        state.committed_verdict = verdict
        self.prefetch.keep_below()
        self.verdicts.keep_below()
        here = state.prefix()
        state.turns = Counter({k: turn for k, turn in state.turns.items() if k[0][: len(here)] == here})
        return Step(text, tokens, passed, False, verdict, state.step_iterations, candidates, calls)
