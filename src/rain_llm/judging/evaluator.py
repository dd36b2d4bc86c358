"""Self-evaluation: the model is asked what it thinks of a text (paper, section 3).

A question is a :class:`~rain_llm.types.Score` request: a rendered text and the options that may
follow it. The difference of the options' log-probabilities is evidence in nats; averaged over word
pairs, frames and option orders, calibrated, it becomes a probability for each criterion.

What is judged cannot answer the question in the judge's place: it is encoded as plain text, so no special
token comes from it, and read without what would be an answer (:mod:`rain_llm.judging.quoting`). Verdicts are
read from log-probabilities at the question's own last token, never from text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar, cast

from rain_llm.criteria import HARMLESS_ACTIONS, HARMLESSNESS
from rain_llm.criteria.criterion import Criterion, Example, placeholders
from rain_llm.errors import LabelError, ModelError, PromptError, PromptTooLongError
from rain_llm.judging.blindness import Blindness
from rain_llm.judging.evidence import pertinent
from rain_llm.judging.quoting import quoter
from rain_llm.judging.spelling import seen
from rain_llm.models.base import LanguageModel
from rain_llm.settings import EvaluationSettings
from rain_llm.types import CriterionScore, Message, Reply, Request, Score, Scores, TokenIds, Verdict

Evidence: TypeAlias = tuple[float, ...]
"""What a judge says of a text and a criterion, nats: one number a question, positive for good."""

Answered = TypeVar("Answered")
Asking: TypeAlias = Generator[Sequence[Request], Sequence[Reply], Answered]
"""Yields one round of Score requests, takes the replies and returns what they come to."""

CONTENT_FREE = ("", "N/A", "[...]")
"""Texts that say nothing (contextual calibration, Zhao et al. 2021, arXiv 2102.09690)."""

_KEPT_CENTERS = 1024  # by query, there is one for each prompt


@dataclass(frozen=True, slots=True)
class JudgeInput:
    """What an answer answers, as the judge sees it.

    Attributes:
        query: the prompt, or the last user turn of a chat.
        context: the passages that the answer is to keep to; may be empty.
        dialogue: the answer is a reply to the query, not its continuation.
        acts: the answer may hold calls. What it is to keep to may then be yet to come, as a tool's reply:
            criteria that judge against it have nothing to say before.
    """

    query: str
    context: str = ""
    dialogue: bool = False
    acts: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """Evidence for a criterion: ``(log p(good) - log p(bad)) / tokens``, in nats.

    Each side is an option of a request; many questions may share one request. ``share``: not by tokens,
    but by ``-log p(bad)``.
    """

    good: tuple[Score, int]
    bad: tuple[Score, int]
    tokens: int = 1
    share: bool = False

    def evidence(self, good: float, bad: float) -> float:
        """Make evidence of both sides' log-probabilities, nats."""
        return (good - bad) / (max(-bad, 1e-6) if self.share else self.tokens)


class SelfEvaluator:
    """Asks a judge for verdicts; holds no state that they hang on but what it has worked out once.

    Args:
        settings: criteria, question style, soft or hard.
        judge: the model that is asked; may be another than the writer.

    Attributes:
        blindness: whether the verdicts so far tell texts apart.

    Raises:
        LabelError: the judge's tokenizer cannot tell two labels apart.
    """

    def __init__(self, settings: EvaluationSettings, judge: LanguageModel) -> None:
        self.settings = settings
        self._judge = judge
        own = (*settings.criteria, *settings.actions)
        self._meanwhile = _stand_in(HARMLESSNESS, settings.criteria, own)
        self._doing_meanwhile = _stand_in(HARMLESS_ACTIONS, settings.actions, own)
        criteria = (*self._meanwhile, *self._doing_meanwhile, *own)
        self._labels = {c.name: self._label_tokens(c) for c in criteria}
        self._centers: dict[str, float] = {}
        self._encoded: dict[str, TokenIds] = {}  # worked examples
        self.blindness = Blindness(settings.mode == "hard")

    def check(self, subject: JudgeInput, max_new_tokens: int) -> None:
        """Refuse a subject that some criterion cannot be asked about.

        Raises:
            PromptError: a criterion needs the context and there is none, or its question about an
                answer of ``max_new_tokens`` would not fit into the judge's context.
        """
        for criterion in (*self.settings.criteria, *(self.settings.actions if subject.acts else ())):
            if self._lacks_context(criterion, subject) and not subject.acts:
                raise PromptError(f"criterion '{criterion.name}' judges against a context: pass context=...")
        for criterion, _ in self._applied(subject, "said", "done()" if subject.acts else ""):
            # Of the evidence for an answer, all of the context is the most that can be shown.
            whole = criterion.model_copy(update={"evidence": False})
            questions = self._questions(whole, subject, "")
            longest = max(len(q.good[0].prefix) + len(q.good[0].options[0]) for q in questions)
            if longest + max_new_tokens > self._judge.context_length:
                raise PromptTooLongError(
                    f"criterion '{criterion.name}' asks a question of {longest} tokens; with "
                    f"max_new_tokens = {max_new_tokens} that exceeds the context of the judge "
                    f"{self._judge.name}, {self._judge.context_length} tokens: "
                    "shorten the prompt or ask for fewer tokens"
                )

    def judge(
        self, subject: JudgeInput, answers: Sequence[str], calls: Sequence[str] = ()
    ) -> Asking[list[Verdict]]:
        """Judge each answer to ``subject``; an empty one never passes. Yields one round of Score requests.

        Args:
            subject: what is answered.
            answers: their texts.
            calls: of each answer, in words; "": it has none. They are judged by the criteria of actions, and
                the text before them, if there is any, by those of texts. None at all: no answer has any.
        """
        said = list(zip(answers, calls or [""] * len(answers), strict=True))
        applied = [self._applied(subject, *parts) for parts in said]
        used = dict.fromkeys(criterion for pairs in applied for criterion, _ in pairs)
        centers = {c.name: self._center(c, subject) for c in used}
        unknown = [(c, self._center_questions(c, subject)) for c in used if centers[c.name] is None]
        asked = [questions for _, variants in unknown for questions in variants]
        read = [
            self._readings(criterion, subject, shown, acts=shown == calls_made != "")
            for (_, calls_made), pairs in zip(said, applied, strict=True)
            for criterion, shown in pairs
        ]
        asked += [questions for readings in read for questions in readings]
        evidence = iter((yield from self._ask(asked)))
        for criterion, variants in unknown:
            center = sum(log_odds(next(evidence)) for _ in variants) / len(variants)
            centers[criterion.name] = self._centers[self._center_key(criterion, subject)] = center
        while len(self._centers) > _KEPT_CENTERS:
            del self._centers[next(iter(self._centers))]
        lowest = (self._lowest([next(evidence) for _ in readings]) for readings in read)
        verdicts = []
        for (answer, calls_made), pairs in zip(said, applied, strict=True):
            # Silence meets no criterion, and what nobody was asked about does not pass.
            judged = bool(seen(answer).strip() or calls_made) and bool(pairs or not self.settings.actions)
            scores = tuple(
                self._criterion_score(criterion, centers[criterion.name], next(lowest))
                for criterion, _ in pairs
            )
            weights = [criterion.weight for criterion, _ in pairs]
            values = [2 * score.probability - 1 for score in scores]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if pairs else 1.0
            verdicts.append(
                Verdict(
                    mean,
                    judged and all(score.passed for score in scores),
                    judged and all(score.on_target for score in scores),
                    scores,
                )
            )
        self.blindness.hear([(subject, *parts) for parts in said], verdicts)
        return verdicts

    def _applied(self, subject: JudgeInput, answer: str, calls: str) -> list[tuple[Criterion, str]]:
        """Return the criteria that apply to an answer, each with what it is asked about."""
        said = [c for c in self.settings.criteria if not self._lacks_context(c, subject)] or self._meanwhile
        pairs = [(c, answer) for c in said] if answer.strip() or not calls else []
        done = [c for c in self.settings.actions if not self._lacks_context(c, subject)]
        done = done or list(self._doing_meanwhile)
        return pairs + ([(c, calls) for c in done] if calls else [])

    def _lacks_context(self, criterion: Criterion, subject: JudgeInput) -> bool:
        """Whether a criterion would be asked about a context that is not there."""
        reads = self._style(criterion) not in ("choice", "guard")
        return reads and criterion.needs_context and not subject.context.strip()

    def evidence(self, subject: JudgeInput, answers: Sequence[str]) -> Asking[list[list[Evidence]]]:
        """Ask what :meth:`judge` asks of each answer; return its evidence on each criterion.

        The questions of a choice come as they are and, with ``swap``, with the options swapped; those
        about labels frame by frame, and pair by pair within a frame.
        """
        asked = [
            [self._readings(criterion, subject, answer) for criterion in self.settings.criteria]
            for answer in answers
        ]
        flat = [questions for answer in asked for readings in answer for questions in readings]
        evidence = iter((yield from self._ask(flat)))
        return [[self._lowest([next(evidence) for _ in readings]) for readings in answer] for answer in asked]

    def _lowest(self, readings: Sequence[Evidence]) -> Evidence:
        """Return the evidence of the reading that is worst for the text; no number is worse than any."""
        measure = votes if self.settings.mode == "hard" else log_odds
        return min(readings, key=lambda found: (not math.isnan(measure(found)), measure(found)))

    # -- from evidence to a score ----------------------------------------------------------------

    def _criterion_score(
        self, criterion: Criterion, center: float | None, evidence: Evidence
    ) -> CriterionScore:
        odds = log_odds(evidence)
        threshold = criterion.threshold
        target = threshold if criterion.target is None else criterion.target
        if self.settings.mode == "hard":
            probability = votes(evidence)
            threshold, target = max(threshold, 0.5), max(target, 0.5)  # a tie never passes
        else:
            trained = self._style(criterion) == "guard"  # what was fitted to other questions does not hold
            threshold, target = (max(threshold, 0.5), max(target, 0.5)) if trained else (threshold, target)
            scale = criterion.calibration.scale if criterion.calibration and not trained else 1.0
            center = center or 0.0
            if math.isnan(odds) or not math.isfinite(center):
                raise ModelError(
                    f"the judge {self._judge.name} gives no probability by '{criterion.name}': log-odds of "
                    f"{odds} around a center of {center}: use another model or dtype, or other labels"
                )
            logit = (odds - center) / scale
            probability = 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))
        return CriterionScore(
            criterion.name, probability, threshold, probability > threshold, probability > target, odds
        )

    def _center(self, criterion: Criterion, subject: JudgeInput) -> float | None:
        """Return the log-odds that mean 'cannot tell'; None if that is to be asked first."""
        calibration = criterion.calibration
        if calibration is None or self.settings.mode == "hard" or self._style(criterion) == "guard":
            return 0.0
        if isinstance(calibration.center, float | int):
            return calibration.center
        return self._centers.get(self._center_key(criterion, subject))

    def _center_questions(self, criterion: Criterion, subject: JudgeInput) -> list[list[_Question]]:
        """Ask about texts that say nothing, or about the query alone: once, for all answers."""
        if criterion.calibration is not None and criterion.calibration.center == "query":
            return [self._questions(criterion, subject, "")]
        nothing = JudgeInput("", "", subject.dialogue)
        return [self._questions(criterion, nothing, text) for text in CONTENT_FREE]

    @staticmethod
    def _center_key(criterion: Criterion, subject: JudgeInput) -> str:
        by_query = criterion.calibration is not None and criterion.calibration.center == "query"
        about = f"{criterion.name}\0{subject if by_query else subject.dialogue}"
        return hashlib.sha256(about.encode(errors="surrogatepass")).hexdigest()  # contexts may be long

    def _ask(self, groups: Sequence[Sequence[_Question]]) -> Asking[list[Evidence]]:
        """Ask all questions in one round; return each group's evidence."""
        sides = [side for group in groups for question in group for side in (question.good, question.bad)]
        scores = list(dict.fromkeys(score for score, _ in sides))
        replies = cast(Sequence[Scores], (yield scores))
        logprobs = {score: reply.logprobs for score, reply in zip(scores, replies, strict=True)}
        evidence: list[Evidence] = [
            tuple(q.evidence(logprobs[q.good[0]][q.good[1]], logprobs[q.bad[0]][q.bad[1]]) for q in group)
            for group in groups
        ]
        if any(math.isnan(one) for found in evidence for one in found):
            raise ModelError(
                f"the judge {self._judge.name} gives no numbers for log-probabilities (NaN), so nothing can "
                "be judged: use another model, or another dtype"
            )
        return evidence

    # -- from a text to questions ------------------------------------------------------------------

    def _readings(
        self, criterion: Criterion, subject: JudgeInput, answer: str, *, acts: bool = False
    ) -> list[list[_Question]]:
        """Ask about an answer as it is, and without what may be verdicts of its own, if it holds such.

        They are left out by degrees: first those of one unknown word, then all.

        What is checked against passages is left whole, as facts look like that, too; so is a call (``acts``).
        """
        asked = [self._questions(criterion, subject, answer)]
        if self._style(criterion) == "guard" or criterion.needs_context:
            return asked
        quote = quoter(criterion)

        def degrees(text: str) -> tuple[str, str, str]:
            whole, rest = quote.readings(text)
            return whole, (whole if rest == whole else quote.between(text)), rest

        query, rest_of_query = quote.readings(subject.query)
        if subject.dialogue:
            queries = (query, rest_of_query, rest_of_query)  # not three: each is a prefix to be read once
            whole, between, rest = degrees(answer)
            answers = (whole,) * 3 if acts else (whole, between or whole, rest or between or whole)
            shown = list(zip(queries, answers, strict=True))
        else:  # a continuation is read with what it continues: alone, a single word would look like a label
            texts = degrees(subject.query + answer)
            shown = [
                (query, text.removeprefix(query)) if text.startswith(query) else ("", text) for text in texts
            ]
        for query, said in dict.fromkeys(shown[1:]):
            if (query, said) != shown[0] and (query or said):
                asked.append(self._questions(criterion, replace(subject, query=query), said))
        return asked

    def _questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[_Question]:
        if criterion.evidence and subject.context:
            shown = pertinent(subject.context, subject.query, answer)
            subject = replace(subject, context=shown)
        style = self._style(criterion)
        if style == "labels":
            return self._label_questions(criterion, subject, answer)
        if style == "choice":
            return self._choice_questions(criterion, subject, answer)
        if style == "guard":
            return self._guard_questions(criterion, subject, answer)
        return self._channel_questions(criterion, subject, answer)

    def _style(self, criterion: Criterion) -> str:
        return criterion.style or self.settings.style

    def _label_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[_Question]:
        """Ask for the pairs of label words behind every frame."""
        options = tuple(label for pair in self._labels[criterion.name] for label in pair)
        quote = quoter(criterion).read
        questions = []
        for frame in criterion.frames:
            shown = [
                _fill(frame, JudgeInput(e.query, "", subject.dialogue), e.answer)
                + f" {criterion.labels[0][0 if e.good else 1]}"
                for e in self._examples(criterion)
            ]
            asked = self._tokens(shown, _fill(frame, subject, answer, quote), frame.rpartition("\n")[2])
            score = Score(asked, options)
            questions += [_Question((score, i), (score, i + 1)) for i in range(0, len(options), 2)]
        return questions

    def _choice_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[_Question]:
        """Ask the multiple-choice question, and again with the options swapped (paper, section 3).

        The question stands before the text, where all answers share it; the options behind.
        """
        choice = criterion.choice
        assert choice is not None  # settings refuse a style without material
        letters = self._labels[criterion.name][0]
        shape = _shape(subject)
        quote = quoter(criterion).read

        def ask(text: str, swapped: bool) -> str:
            options = (choice.bad, choice.good) if swapped else (choice.good, choice.bad)
            return f"{choice.question}\n{text}\n(A) {options[0]} (B) {options[1]}\nAnswer: ("

        shown = []
        for i, example in enumerate(self._examples(criterion)):
            swapped = i % 4 > 1  # the examples take both orders by turns, so that both questions share them
            text = _fill(shape, JudgeInput(example.query, "", subject.dialogue), example.answer)
            letter = "A" if example.good != swapped else "B"
            shown.append(f"{ask(text, swapped)}{letter}) {example.why}")
        questions = []
        for swapped in (False, True) if self.settings.swap else (False,):
            text = ask(_fill(shape, subject, answer, quote), swapped)
            score = Score(self._tokens(shown, text, "Answer: ("), letters)
            good = 1 if swapped else 0
            questions.append(_Question((score, good), (score, 1 - good)))
        return questions

    def _channel_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[_Question]:
        """Weigh the answer behind a good and behind a bad context, per token."""
        channel = criterion.channel
        assert channel is not None  # settings refuse a style without material
        quote = quoter(criterion).read
        shown = quote(answer) or _one_line(
            answer
        )  # of an answer that is nothing but a claim, that is weighed
        said = self._judge.encode(" " + shown) or self._judge.encode(".")
        good, bad = (
            Score(self._tokens((), _fill(context, subject, "", quote), ""), (said,))
            for context in (channel.good, channel.bad)
        )
        return [_Question((good, 0), (bad, 0), len(said), channel.measure == "share")]

    def _guard_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[_Question]:
        """Show a guard model the conversation as such: each text in its turn, where it is only text."""
        guard = criterion.guard
        assert guard is not None  # settings refuse a style without material
        turns = [Message("user", subject.query), Message("assistant", answer)]
        if not subject.dialogue:
            turns = [Message("user", subject.query + answer)]
        prefix = self._judge.render_chat(turns) + self._judge.encode(guard.cue)
        score = Score(prefix, self._labels[criterion.name][0])
        return [_Question((score, 0), (score, 1))]

    def _examples(self, criterion: Criterion) -> Sequence[Example]:
        return criterion.examples if self.settings.examples else ()

    def _tokens(self, shown: Sequence[str], text: str, cue: str) -> TokenIds:
        """Encode a whole question behind worked examples.

        In a chat template, the cue begins the judge's own turn.
        """
        if self.settings.chat_template:
            body = "\n\n".join([*shown, text]).removesuffix(cue).rstrip()
            return self._judge.render_chat([Message("user", body)]) + self._judge.encode(cue)
        if not shown:
            return self._judge.start + self._judge.encode(text)
        before = "\n\n".join(shown)  # cut before white space, where tokenizers cut themselves
        if before not in self._encoded:
            self._encoded[before] = self._judge.encode(before)
        return self._judge.start + self._encoded[before] + self._judge.encode("\n\n" + text)

    def _label_tokens(self, criterion: Criterion) -> tuple[tuple[TokenIds, TokenIds], ...]:
        """Find the tokens of every label, as they follow the frame."""
        style = self._style(criterion)
        if style == "channel":
            return ()
        if style == "choice":
            pairs: Sequence[tuple[str, str]] = (("A", "B"),)
        elif style == "guard":
            assert criterion.guard is not None  # settings refuse a style without material
            pairs = ((criterion.guard.safe, criterion.guard.unsafe),)
        else:
            pairs = [(f" {good.strip()}", f" {bad.strip()}") for good, bad in criterion.labels]
        found = []
        for good, bad in pairs:
            tokens = self._judge.encode(good), self._judge.encode(bad)
            shorter = min(len(tokens[0]), len(tokens[1]))
            if shorter == 0 or tokens[0][:shorter] == tokens[1][:shorter]:
                raise LabelError(
                    f"criterion '{criterion.name}': the tokenizer of {self._judge.name} cannot tell "
                    f"the labels {good!r} {tokens[0]} and {bad!r} {tokens[1]} apart: choose other words"
                )
            found.append(tokens)
        return tuple(found)


def _stand_in(
    criterion: Criterion, waiting: Sequence[Criterion], own: Sequence[Criterion]
) -> tuple[Criterion, ...]:
    """Return what judges while all others wait for a context that tools are yet to tell; else nothing.

    ``own``: all that the settings name, of which none with the same name is to be taken for it.
    """
    if not waiting or not all(c.needs_context for c in waiting):
        return ()
    while any(c.name == criterion.name and c != criterion for c in own):
        criterion = criterion.model_copy(update={"name": f"{criterion.name}_meanwhile"})
    return (criterion,)


def log_odds(evidence: Evidence) -> float:
    """Return the mean evidence, nats: the soft score before calibration."""
    return sum(evidence) / len(evidence)


def votes(evidence: Evidence) -> float:
    """Return the share of questions that vote for good, in [0, 1]; a tie is half a vote.

    With the two orders of a choice, the paper's v is twice that less 1.
    """
    return sum(0.5 + 0.5 * ((e > 0) - (e < 0)) for e in evidence) / len(evidence)


def _shape(subject: JudgeInput) -> str:
    """Return how a multiple-choice question shows its subject."""
    passage = "Passage: {context}\n\n" if subject.context else ""
    return passage + ("Human: {query}\n\nAssistant: {answer}" if subject.dialogue else "Text: {text}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fill(template: str, subject: JudgeInput, answer: str, quote: Callable[[str], str] = _one_line) -> str:
    """Put what is judged into a template; ``quote``: as what it is read."""
    names = placeholders(template)
    parts = {"query": subject.query, "answer": answer, "context": subject.context}
    if "text" in names and subject.dialogue:
        parts["text"] = f"{quote(subject.query)}\n{quote(answer)}"  # a claim may end where a turn does
    elif "text" in names:
        parts["text"] = subject.query + answer
    return template.format(**{name: quote(parts[name]) for name in names})
