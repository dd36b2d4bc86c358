"""Rewind at the token: an answer is read while it is written, and taken back as soon as it turns bad.

Where the model's own hidden states tell what it writes (a probe), a verdict costs no token and no pass. Then
no tree is needed; the search is what RAIN's name says::

    until the answer ends
        1 write     draw the next token; in the same pass, read the draft up to it
        2 accept    what lies ``window`` tokens back leaves, while the draft reads well
        3 rewind    it reads badly: go back to the last token that has left, or, where a turn comes first,
                    to the last word after which it read well
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

from rain_llm.criteria.criterion import Turn
from rain_llm.errors import ModelError
from rain_llm.judging.evaluator import SelfEvaluator, says_something
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Request, Sample, Samples
from rain_llm.search.answer import LONGEST, UNFINISHED
from rain_llm.search.ending import give_up, outcome
from rain_llm.search.outcome import Interrupted, Replies, Search
from rain_llm.search.seeds import PIECE, plain_seed, seed_of
from rain_llm.search.state import SearchState
from rain_llm.settings import RainSettings, ReadAndRewindSettings
from rain_llm.types import Candidate, Step, StopReason, TokenIds, Verdict

_SENTENCE_ENDS = (*".!?:…\u3002\uff01\uff1f",)


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

    __slots__ = ("_begun", "_best", "_dropped", "_marked", "_rewinds", "_settings", "_turned", "state")

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
        self._turned = 0  # tokens of the answer up to the end of its turn; 0: it has none
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
                leaves = len(draft.tokens) if draft.end else self._whole(draft, read - window + 1)
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
            How many tokens of the draft were read, and the verdict on the answer up to there; None: it says
            nothing yet.
        """
        state, read = self.state, len(draft.tokens)
        written, verdict = state.answer.tokens + draft.tokens, None
        text = state.text(draft.tokens)
        asking = state.evaluator.judge(state.subject, [text], (), [written])
        tells = bool(draft.end) or says_something(text)
        reads = list(next(asking)) if tells else []
        draws = [] if draft.end else [self._draw(draft)]
        replies = (yield [*reads, *draws]) if reads or draws else ()
        if tells:
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
            seed, start = seed_of(state.origin, self._rewinds, *prefix[len(state.prompt) :]), 0
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

    def _whole(self, draft: Draft, most: int) -> int:
        """Return how many of a draft's first ``most`` tokens are whole characters: no half of one leaves."""
        before = self.state.answer.tokens[-LONGEST:]
        while most > 0 and self.state.writer.decode(before + draft.tokens[:most]).endswith(UNFINISHED):
            most -= 1
        return most

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
        """Cut the draft back, and begin the next one: first after a hidden guide, then behind a turn.

        What goes on with somebody else's words is turned round at once: a guide hardly moves what has begun
        to comply. There is one turn in an answer.
        """
        state = self.state
        before = len(state.answer.tokens)
        if self._turned > before:
            self._turned = 0  # it is taken back
        turns_tried = self._rewinds - (bool(state.guided) and not self._begun)
        self._rewinds += 1
        state.iterations += 1
        turn = self._turn(verdict)
        if turn is None or turns_tried < 0 or self._turned:
            drawn, ended = yield from self._again()
            return Draft(drawn, self._end_after(drawn, ended), 0, before + len(drawn))
        kept = draft.tokens[: self._last_word(draft) if turns_tried == 0 else 0]
        begun = kept + state.writer.encode(self._words(turn, kept))[: state.room(kept)]
        self._turned = before + len(begun)
        return Draft(begun, self._end_after(begun, False), len(kept), self._turned + self._settings.window)

    def _again(self) -> Generator[Sequence[Request], Replies, tuple[TokenIds, bool]]:
        """Draw ``window`` tokens after what has left; the writer sees the guide, and the reading does not.

        Returns:
            The tokens, and whether the model has ended the answer after them.
        """
        state, drawing = self.state, self.state.settings.generation
        request = Sample(
            (state.guided or state.prompt) + state.answer.tokens,
            1,
            min(self._settings.window, state.room()),
            seed_of(state.origin, self._rewinds),
            drawing.temperature,
            drawing.top_k,
            drawing.top_p,
            ends=drawing.stop,
        )
        (reply,) = cast("Sequence[Samples]", (yield [request]))
        (drawn,) = reply.continuations
        state.check(drawn.tokens, drawn.ended)
        return drawn.tokens, drawn.ended

    def _turn(self, verdict: Verdict) -> Turn | None:
        """Return the turn of the first criterion that failed and has one."""
        failed = {score.name for score in verdict.criteria if not score.passed}
        criteria = self.state.settings.evaluation.criteria
        return next((c.turn for c in criteria if c.turn and c.name in failed), None)

    def _last_word(self, draft: Draft) -> int:
        """Return how many tokens of a draft end with the last whole word after which it read well."""
        cut, tokens, decode = draft.safe, draft.tokens, self.state.writer.decode
        while cut:  # with the token before it: some tokenizers drop the space before a text's first word
            before, both = decode(tokens[cut - 1 : cut]), decode(tokens[cut - 1 : cut + 1])
            if both[len(before) :][:1].isspace():
                break
            cut -= 1
        return cut

    def _words(self, turn: Turn, kept: TokenIds) -> str:
        """Return the words of a turn after the answer and the kept tokens of its draft."""
        text = self.state.text(kept)
        if not (text.strip() or self._begun):
            return turn.first
        if text[-1:].isspace():
            return turn.later
        return f"{' ' if text.endswith(_SENTENCE_ENDS) else '... '}{turn.later}"

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
