"""Self-evaluation: ask or read a model about a text, and convert its scores into a verdict.

Each question (:mod:`rain_llm.judging.questions`) offers options. The difference of their log-probabilities
after the question is evidence in nats. Averaged over word pairs, frames and option orders, and calibrated, it
becomes a probability for each criterion (paper, section 3). A criterion with a probe is not asked but read
(:mod:`rain_llm.judging.reading`), which needs no token more. Verdicts never come from sampled text.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar, cast

from rain_llm.criteria import HARMLESS_ACTIONS, HARMLESSNESS
from rain_llm.criteria.criterion import Criterion
from rain_llm.errors import ModelError, PromptError, PromptTooLongError
from rain_llm.judging.blindness import Blindness
from rain_llm.judging.probe import Probe
from rain_llm.judging.questions import JudgeInput, Question, Questions
from rain_llm.judging.reading import Reader, asks_as_built_in, prefix_of
from rain_llm.judging.spelling import seen
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Read, Reply, Request, Scores, Values
from rain_llm.settings import EvaluationSettings
from rain_llm.types import CriterionScore, TokenIds, Verdict

Evidence: TypeAlias = tuple[float, ...]
"""A judge's evidence on a text and a criterion (nats): one number per question, positive for good."""

Answered = TypeVar("Answered")
Asking: TypeAlias = Generator[Sequence[Request], Sequence[Reply], Answered]
"""Yields one round of Score requests, receives the replies and returns a result."""

MEASURED = {"civility", "positive_sentiment"}
"""Built-in criteria about tone, which small models can be asked about (``docs/results.md``)."""

CONTENT_FREE = ("", "N/A", "[...]")
"""Texts without content (contextual calibration, Zhao et al. 2021, arXiv 2102.09690)."""


_GLANCE = 64  # characters that mostly show whether an answer says anything


class SelfEvaluator:
    """Ask a judge for verdicts.

    A verdict depends only on the text and the settings; measured calibration centers are cached.

    Args:
        settings: criteria, question style, soft or hard scores.
        judge: the model that judges; it may differ from the writer.

    Attributes:
        blindness: detects a judge that does not distinguish texts.

    Raises:
        LabelError: the judge's tokenizer does not distinguish two labels.
        SettingsError: a criterion's probe cannot be used.
    """

    def __init__(self, settings: EvaluationSettings, judge: LanguageModel) -> None:
        self.settings = settings
        self._judge = judge
        own = (*settings.criteria, *settings.actions)
        self._meanwhile = _stand_in(HARMLESSNESS, settings.criteria, own)
        self._doing_meanwhile = _stand_in(HARMLESS_ACTIONS, settings.actions, own)
        criteria = (*self._meanwhile, *self._doing_meanwhile, *own)
        self._reader = Reader(settings, judge, criteria)
        self._questions = Questions(settings, judge, [c for c in criteria if c.name not in self.probes])
        self._centers: dict[tuple[str, bool], float] = {}  # by criterion, in a dialogue or not
        self.blindness = Blindness(settings.mode == "hard")

    @property
    def probes(self) -> Mapping[str, Probe]:
        """Return the probes of the criteria that are read, by the criterion's name."""
        return self._reader.probes

    @property
    def unmeasured(self) -> list[str]:
        """Return the criteria that are asked by a built-in question because the judge has no probe."""
        style = self.settings.style
        own = dict.fromkeys((*self.settings.criteria, *self.settings.actions))
        asked = (c for c in own if (c.style or style) == "auto" and c.name not in self.probes)
        return [c.name for c in asked if asks_as_built_in(c) and c.name not in MEASURED]

    def reads(self, subject: JudgeInput) -> bool:
        """Return whether answers to this subject are read only, as far as they are written, and never asked.

        False also where a criterion has a target, needs a context, or has a probe of the last tokens only.
        """
        applied = [criterion for criterion, _ in self._applied(subject, "said", "")]
        return not subject.acts and all(
            c.name in self.probes
            and self.probes[c.name].window is None
            and c.target is None
            and not c.needs_context
            for c in applied
        )

    def check(self, subject: JudgeInput, max_new_tokens: int) -> None:
        """Check that every criterion can judge answers to this subject.

        Raises:
            PromptError: a criterion needs a context and there is none.
            PromptTooLongError: a question about an answer of ``max_new_tokens`` exceeds the judge's context.
        """
        for criterion in (*self.settings.criteria, *(self.settings.actions if subject.acts else ())):
            if self._questions.lacks_context(criterion, subject) and not subject.acts:
                raise PromptError(f"criterion '{criterion.name}' judges against a context: pass context=...")
        for criterion, _ in self._applied(subject, "said", "done()" if subject.acts else ""):
            # The evidence for an answer is at most the complete context.
            if criterion.name in self.probes:
                longest = len(subject.prompt or prefix_of(self._judge, subject))
            else:
                longest_form = criterion.model_copy(update={"evidence": False})
                questions = self._questions.ask(longest_form, subject, "")
                longest = max(len(q.good[0].prefix) + len(q.good[0].options[0]) for q in questions)
            if longest + max_new_tokens > self._judge.context_length:
                raise PromptTooLongError(
                    f"criterion '{criterion.name}' asks a question of {longest} tokens; with "
                    f"max_new_tokens = {max_new_tokens} that exceeds the context of the judge "
                    f"{self._judge.name}, {self._judge.context_length} tokens: "
                    "shorten the prompt or lower max_new_tokens"
                )

    def judge(
        self,
        subject: JudgeInput,
        answers: Sequence[str],
        calls: Sequence[str] = (),
        written: Sequence[TokenIds] = (),
    ) -> Asking[list[Verdict]]:
        """Judge each answer to ``subject``, in one round of requests; an empty answer never passes.

        Args:
            subject: the prompt and context that the answers belong to.
            answers: the texts of the answers.
            calls: the description of each answer's tool calls; "": it has none; (): no answer has any. Calls
                are judged by the criteria for actions, and the text before them by the other criteria.
            written: the tokens of each answer, if the judge itself has written it after ``subject.prompt``:
                what it has computed is read without computing it again. (): it has not.
        """
        parts = list(zip(answers, calls or [""] * len(answers), written or [()] * len(answers), strict=True))
        applied = [self._applied(subject, answer, calls_made) for answer, calls_made, _ in parts]
        asked = [[pair for pair in pairs if pair[0].name not in self.probes] for pairs in applied]
        used = dict.fromkeys(criterion for pairs in asked for criterion, _ in pairs)
        centers = {c.name: self._center(c, subject) for c in used}
        unknown = [(c, self._center_questions(c, subject)) for c in used if centers[c.name] is None]
        groups = [questions for _, variants in unknown for questions in variants]
        readings = [
            self._questions.readings(criterion, subject, shown, acts=shown == calls_made != "")
            for (_, calls_made, _), pairs in zip(parts, asked, strict=True)
            for criterion, shown in pairs
        ]
        groups += [questions for variants in readings for questions in variants]
        reads = [
            self._reads(subject, pairs, answer, tokens)
            for (answer, _, tokens), pairs in zip(parts, applied, strict=True)
        ]
        found, odds = yield from self._ask(groups, [read for some in reads for read in some])
        evidence = iter(found)
        for criterion, variants in unknown:
            center = sum(log_odds(next(evidence)) for _ in variants) / len(variants)
            centers[criterion.name] = self._centers[criterion.name, subject.dialogue] = center
        lowest = (self._lowest([next(evidence) for _ in variants]) for variants in readings)
        verdicts = []
        for (answer, calls_made, _), pairs, some in zip(parts, applied, reads, strict=True):
            # An empty answer passes no criterion, and an answer that no criterion applies to does not pass.
            judged = bool(says_something(answer) or calls_made) and bool(pairs or not self.settings.actions)
            read = {c.name: odds[c.name, request] for request, own in some for c in own}
            scores = tuple(
                self._read_score(criterion, read.get(criterion.name, -math.inf))  # nothing was said
                if criterion.name in self.probes
                else self._criterion_score(criterion, centers[criterion.name], next(lowest))
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
        self.blindness.hear([(subject, answer, made) for answer, made, _ in parts], verdicts)
        return verdicts

    def _reads(
        self, subject: JudgeInput, pairs: Sequence[tuple[Criterion, str]], answer: str, written: TokenIds
    ) -> list[tuple[Read, list[Criterion]]]:
        """Return the requests that read an answer, each with the criteria that it serves."""
        groups: dict[tuple[str, bool], list[Criterion]] = {}
        for criterion, shown in pairs:
            if criterion.name in self.probes and shown:
                groups.setdefault((shown, criterion.needs_context), []).append(criterion)
        described = replace(subject, prompt=())  # calls are read in words, as probes are fitted to them
        return [
            (self._reader.request(own, subject, shown, written), own)
            if shown == answer
            else (self._reader.request(own, described, shown, ()), own)
            for (shown, _), own in groups.items()
        ]

    def _applied(self, subject: JudgeInput, answer: str, calls: str) -> list[tuple[Criterion, str]]:
        """Return the criteria that apply to an answer, each with the part of the answer that it judges."""
        lacks = self._questions.lacks_context
        for_text = [c for c in self.settings.criteria if not lacks(c, subject)] or self._meanwhile
        pairs = [(c, answer) for c in for_text] if answer.strip() or not calls else []
        for_calls = [c for c in self.settings.actions if not lacks(c, subject)]
        for_calls = for_calls or list(self._doing_meanwhile)
        return pairs + ([(c, calls) for c in for_calls] if calls else [])

    def evidence(self, subject: JudgeInput, answers: Sequence[str]) -> Asking[list[list[Evidence]]]:
        """Ask the questions of :meth:`judge`; return the evidence on each answer and criterion.

        Evidence of a choice is in the order: as written, then with swapped options (``swap``). Evidence of
        labels is ordered by frame, then by label pair.
        """
        asked = [
            [self._questions.readings(criterion, subject, answer) for criterion in self.settings.criteria]
            for answer in answers
        ]
        flat = [questions for answer in asked for readings in answer for questions in readings]
        found, _ = yield from self._ask(flat)
        evidence = iter(found)
        return [[self._lowest([next(evidence) for _ in readings]) for readings in answer] for answer in asked]

    def _lowest(self, readings: Sequence[Evidence]) -> Evidence:
        """Return the evidence of the reading with the lowest score; NaN counts as the lowest."""
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
            # Threshold and scale were fitted to other questions: they do not apply to a guard model.
            trained = self._questions.style(criterion) == "guard"
            threshold, target = (max(threshold, 0.5), max(target, 0.5)) if trained else (threshold, target)
            scale = criterion.calibration.scale if criterion.calibration and not trained else 1.0
            center = center or 0.0
            if math.isnan(odds) or not math.isfinite(center):
                raise ModelError(
                    f"the judge {self._judge.name} returned no probability for '{criterion.name}': log-odds "
                    f"of {odds} around a center of {center}: use another model or dtype, or other labels"
                )
            probability = sigmoid((odds - center) / scale)
        return CriterionScore(
            criterion.name, probability, threshold, probability > threshold, probability > target, odds
        )

    def _read_score(self, criterion: Criterion, odds: float) -> CriterionScore:
        threshold, target = self._reader.limits(criterion)
        probability = sigmoid(odds)
        return CriterionScore(
            criterion.name, probability, threshold, probability > threshold, probability > target, odds
        )

    def _center(self, criterion: Criterion, subject: JudgeInput) -> float | None:
        """Return the log-odds of an undecided judge; None if they must be measured first."""
        calibration = criterion.calibration
        if calibration is None or self.settings.mode == "hard" or self._questions.style(criterion) == "guard":
            return 0.0
        if isinstance(calibration.center, float | int):
            return calibration.center
        return self._centers.get((criterion.name, subject.dialogue))

    def _center_questions(self, criterion: Criterion, subject: JudgeInput) -> list[list[Question]]:
        """Return the questions about texts without content, which are asked once for all answers."""
        nothing = JudgeInput("", "", subject.dialogue)
        return [self._questions.ask(criterion, nothing, text) for text in CONTENT_FREE]

    def _ask(
        self, groups: Sequence[Sequence[Question]], reads: Sequence[tuple[Read, list[Criterion]]] = ()
    ) -> Asking[tuple[list[Evidence], dict[tuple[str, Read], float]]]:
        """Send all questions and reads in one round; return each group's evidence, and what was read."""
        sides = [side for group in groups for question in group for side in (question.good, question.bad)]
        scores = list(dict.fromkeys(score for score, _ in sides))
        requests = list(dict.fromkeys(request for request, _ in reads))
        replies = yield [*scores, *requests]
        answers = cast("Sequence[Scores]", replies[: len(scores)])
        values = dict(zip(requests, cast("Sequence[Values]", replies[len(scores) :]), strict=True))
        logprobs = {score: reply.logprobs for score, reply in zip(scores, answers, strict=True)}
        evidence: list[Evidence] = [
            tuple(q.evidence(logprobs[q.good[0]][q.good[1]], logprobs[q.bad[0]][q.bad[1]]) for q in group)
            for group in groups
        ]
        if any(math.isnan(one) for found in evidence for one in found):
            raise ModelError(
                f"the judge {self._judge.name} returned NaN log-probabilities, so nothing can be judged: "
                "use another model or another dtype"
            )
        odds = {
            (criterion.name, request): self._reader.log_odds(criterion, request, values[request])
            for request, own in reads
            for criterion in own
        }
        return evidence, odds


def _stand_in(
    criterion: Criterion, waiting: Sequence[Criterion], own: Sequence[Criterion]
) -> tuple[Criterion, ...]:
    """Return the criterion that judges until tools have returned the context that all others need.

    Args:
        criterion: the built-in criterion to use.
        waiting: the criteria that it replaces; if one of them needs no context, nothing is returned.
        own: all criteria of the settings. If one of them has the same name, the replacement is renamed.
    """
    if not waiting or not all(c.needs_context for c in waiting):
        return ()
    while any(c.name == criterion.name and c != criterion for c in own):
        criterion = criterion.model_copy(update={"name": f"{criterion.name}_meanwhile"})
    return (criterion,)


def says_something(answer: str) -> bool:
    """Return whether an answer has a visible character."""
    return bool(seen(answer[:_GLANCE]).strip() or seen(answer).strip())


def sigmoid(logit: float) -> float:
    """Return the probability of a logit."""
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))


def log_odds(evidence: Evidence) -> float:
    """Return the mean evidence (nats), which is the soft score before calibration."""
    return sum(evidence) / len(evidence)


def votes(evidence: Evidence) -> float:
    """Return the share of questions that vote for good, in [0, 1]; a tie is half a vote.

    With both orders of a choice, the paper's v is ``2 * votes - 1``.
    """
    return sum(0.5 + 0.5 * ((e > 0) - (e < 0)) for e in evidence) / len(evidence)
