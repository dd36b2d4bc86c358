"""Rewind at the token: an answer is read while it is written, and taken back as soon as it turns bad.

Where the model's own hidden states tell what it writes (a probe), a verdict costs no token and no pass. Then
no tree is needed; the search is what RAIN's name says::

    until the answer ends
        1 write     draw the next token; in the same pass, read the draft up to it
        2 accept    what lies ``window`` tokens back leaves, while the draft reads well
        3 rewind    it reads badly: go back to the last token after which it read well; the next time, to
                    the last token that has left
        4 write on  from elsewhere: first after a hidden guide, then behind a turn
        5 refuse    after ``rewinds`` rewinds

Words: the *draft* is what was written and has not left. A *guide* is an instruction that the writer sees, for
``window`` tokens, and the answer never shows. A *turn* is a sentence that becomes part of the answer, and is
read with it: "However, I can't help with that, because". Nothing leaves that was not read with the
``window - 1`` tokens after it, or with all that there are.

The first draft draws exactly as generation without a guard. So an answer that always reads well is the
unguarded one, token for token, and costs the same tokens and passes.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from rain_llm.errors import ModelError
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Request, Sample, Samples
from rain_llm.search.ending import give_up, outcome
from rain_llm.search.outcome import Interrupted, Replies, Search
from rain_llm.search.seeds import PIECE, plain_seed, seed_of
from rain_llm.search.state import SearchState
from rain_llm.settings import RainSettings, ReadAndRewindSettings
from rain_llm.types import Candidate, Step, StopReason, TokenIds, Verdict

_SENTENCE_ENDS = (*".!?:\n…\u3002\uff01\uff1f",)


@dataclass(slots=True)
class Draft:
    """What was written and has not left.

    Attributes:
        tokens: of it.
        end: why the answer ends with it; None: it does not.
        safe: how many of its tokens there were when it last read well.
        readable: number of the answer's tokens from which on a reading counts. Fewer tell too little.
    """

    tokens: TokenIds = ()
    end: StopReason | None = None
    safe: int = 0
    readable: int = 0


class ReadAndRewind:
    """The search for one answer; :meth:`run` is the coroutine.

    Args:
        prompt: token ids, at least one.
        subject: the part of the prompt that the judge sees.
        writer: the model that answers, and reads itself.
        evaluator: builds the requests that read.
        settings: settings of this answer; its search settings are ``ReadAndRewindSettings``.
        seed: seed of everything that is sampled for it.
        guided: the prompt with the criteria's guides; (): there are none.
        begun: the answer goes on with a text that is there already.
    """

    __slots__ = ("_begun", "_best", "_dropped", "_marked", "_rewinds", "_settings", "state")

    def __init__(
        self,
        prompt: TokenIds,
        subject: JudgeInput,
        writer: LanguageModel,
        evaluator: SelfEvaluator,
        settings: RainSettings,
        seed: int,
        guided: TokenIds = (),
        begun: bool = False,
    ) -> None:
        assert isinstance(settings.search, ReadAndRewindSettings)
        self._settings = settings.search
        self.state = SearchState(prompt, subject, writer, evaluator, settings, seed, guided)
        self.state.iterations = 1
        self._begun = begun
        self._rewinds = 0
        self._dropped: list[Candidate] = []  # drafts that were rewound since the last accepted token
        self._best: tuple[float, Draft] | None = None  # of those since then
        self._marked = False  # nothing passed, and the rest leaves marked (``on_unsafe: best``)

    def run(self) -> Search:
        """Generate the answer: yield rounds of requests and accepted steps, return the outcome."""
        state, window = self.state, self._settings.window
        draft = Draft(readable=window)
        try:
            while True:
                read, verdict = yield from self._write(draft)
                if verdict is None or not (draft.end or len(state.answer.tokens) + read >= draft.readable):
                    continue
                if not (verdict.passed or self._marked):
                    self._drop(draft, verdict)
                    if self._rewinds < self._settings.rewinds:
                        draft = yield from self._rewind(draft, verdict)
                        continue
                    if state.settings.on_unsafe != "best":
                        return (yield from give_up(state, draft.tokens, verdict, self._dropped))
                    draft, self._marked, state.accepted = self._best_dropped(), True, False
                    continue
                draft.safe = read
                leaves = len(draft.tokens) if draft.end else read - window + 1
                if leaves > 0 or draft.end:
                    yield self._accept(draft, leaves, verdict)
                if draft.end:
                    return outcome(state, draft.end, verdict)
        except Interrupted as interruption:
            return outcome(state, interruption.reason, state.committed_verdict)
        except ModelError as error:  # raised by the tokenizer of a remote server
            return replace(outcome(state, StopReason.ERROR, state.committed_verdict), cause=error)

    # -- 1 write -----------------------------------------------------------------------------------

    def _write(self, draft: Draft) -> Generator[Sequence[Request], Replies, tuple[int, Verdict | None]]:
        """Draw the next token; in the same pass, read the draft up to it.

        The state of the last token of all is never computed, unless the model itself ends the answer. So an
        answer that ends by its length or a stop string is read without that token.

        Returns:
            How many tokens of the draft were read, and the verdict on the answer up to there; None: there
            is nothing to read yet.
        """
        state, read = self.state, len(draft.tokens)
        written, verdict = state.answer.tokens + draft.tokens, None
        asking = state.evaluator.judge(state.subject, [state.text(draft.tokens)], (), [written])
        reads = list(next(asking)) if written or draft.end else []
        draws = [] if draft.end else [self._draw(draft)]
        replies = (yield [*reads, *draws]) if reads or draws else ()
        if written or draft.end:
            try:
                asking.send(replies[: len(reads)])
            except StopIteration as judged:
                (verdict,) = judged.value
            state.evaluations += 1
        for reply in cast("Sequence[Samples]", replies[len(reads) :]):
            (drawn,) = reply.continuations
            state.check(drawn.tokens, drawn.ended)
            state.cached = reply.cached_tokens if state.cached is None else state.cached
            draft.tokens += drawn.tokens
            draft.end = self._end_after(draft.tokens, drawn.ended)
        return read, verdict

    def _draw(self, draft: Draft) -> Sample:
        """Return the request for the next token; the first draft's is that of unguarded generation."""
        state, drawing = self.state, self.state.settings.generation
        prefix = state.prefix(draft.tokens)
        place = len(prefix) - len(state.prompt)
        if self._rewinds:
            seed, start = seed_of(state.origin, self._rewinds, *prefix[-place:]), 0
        else:
            seed, start = plain_seed(state.origin, place // PIECE), place % PIECE
        return Sample(prefix, 1, 1, seed, drawing.temperature, drawing.top_k, drawing.top_p, start=start)

    def _end_after(self, tokens: TokenIds, ended: bool) -> StopReason | None:
        """Return why the answer ends with the draft's ``tokens``; None if it goes on."""
        if self.state.answer.read(tokens)[1]:
            return StopReason.STOP
        if ended:
            return StopReason.EOS
        return StopReason.LENGTH if self.state.room(tokens) == 0 else None

    # -- 2 accept ----------------------------------------------------------------------------------

    def _accept(self, draft: Draft, leaves: int, verdict: Verdict) -> Step:
        """Let the draft's first tokens leave."""
        state, tokens = self.state, draft.tokens[:leaves]
        draft.tokens, draft.safe = draft.tokens[leaves:], max(0, draft.safe - leaves)
        text = state.answer.extend(tokens) + (state.answer.finish() if draft.end else "")
        candidates, drafts = tuple(self._dropped), len(self._dropped) + 1
        self._dropped, self._best = [], None
        state.committed_verdict = verdict
        return Step(text, tokens, state.accepted, False, verdict, drafts, candidates)

    # -- 3 rewind, 4 write on from elsewhere -----------------------------------------------------------

    def _rewind(self, draft: Draft, verdict: Verdict) -> Generator[Sequence[Request], Replies, Draft]:
        """Cut the draft back, and begin the next one: after a hidden guide, or behind a turn."""
        state, tried = self.state, self._rewinds
        self._rewinds += 1
        state.iterations += 1
        turn = self._turn(verdict, draft, deep=tried > 1)
        anew = not (draft.safe or state.answer.tokens or self._begun)
        if turn is None or (anew and state.guided and tried == 0):
            kept = draft.tokens[: draft.safe if tried < 2 else 0]
            more, ended = yield from self._guided(kept)
        else:
            kept, words = turn
            more, ended = state.writer.encode(words)[: state.room(kept)], False
        begun = kept + more
        known = len(state.answer.tokens) + len(begun)
        readable = known if ended or turn is None else known + self._settings.window
        return Draft(begun, self._end_after(begun, ended), len(kept), readable)

    def _guided(self, kept: TokenIds) -> Generator[Sequence[Request], Replies, tuple[TokenIds, bool]]:
        """Draw ``window`` tokens after the kept ones; the writer sees the guide, and the reading does not.

        Returns:
            The tokens, and whether the model has ended the answer after them.
        """
        state, drawing = self.state, self.state.settings.generation
        prefix = state.prefix(kept)
        length = min(self._settings.window, state.room(kept))
        (reply,) = cast(
            "Sequence[Samples]",
            (
                yield [
                    Sample(
                        (state.guided or state.prompt) + prefix[len(state.prompt) :],
                        1,
                        length,
                        seed_of(state.origin, self._rewinds),
                        drawing.temperature,
                        drawing.top_k,
                        drawing.top_p,
                        ends=drawing.stop,
                    )
                ]
            ),
        )
        (drawn,) = reply.continuations
        state.check(drawn.tokens, drawn.ended)
        return drawn.tokens, drawn.ended

    def _turn(self, verdict: Verdict, draft: Draft, deep: bool) -> tuple[TokenIds, str] | None:
        """Return where to cut the draft, and the turn that follows; None: no failing criterion has one.

        The cut is between words: at the last token after which the draft read well, or ``deep``, at the
        draft's beginning.
        """
        state = self.state
        failed = {score.name for score in verdict.criteria if not score.passed}
        turns = [c.turn for c in state.settings.evaluation.criteria if c.turn and c.name in failed]
        if not turns:
            return None
        cut = 0 if deep else draft.safe
        while cut and not state.writer.decode(draft.tokens[cut : cut + 1])[:1].isspace():
            cut -= 1
        text = state.text(draft.tokens[:cut])
        if not (text.strip() or self._begun):
            return (), turns[0].first
        if text.endswith(_SENTENCE_ENDS):
            return draft.tokens[:cut], f" {turns[0].later}"
        return draft.tokens[:cut], f"{'' if text[-1:].isspace() else '... '}{turns[0].later}"

    # -- 5 refuse ----------------------------------------------------------------------------------

    def _drop(self, draft: Draft, verdict: Verdict) -> None:
        """Keep a draft that is rewound for the trace, and, if it is the best, for ``on_unsafe: best``."""
        state = self.state
        text = state.text(draft.tokens)[len(state.text()) :]
        score = verdict.score
        self._dropped.append(Candidate(text, 1.0, 1, 1.0, score, score, False))
        state.step_iterations = len(self._dropped)
        if self._best is None or score > self._best[0]:
            self._best = score, replace(draft)

    def _best_dropped(self) -> Draft:
        assert self._best is not None  # a draft was dropped just now
        return self._best[1]
