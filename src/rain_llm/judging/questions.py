"""What a judge is asked: the four styles of questions, and the readings of a text.

A question is a :class:`~rain_llm.requests.Score` request: a rendered text and the options that may follow it.
What is judged cannot answer the question in the judge's place: it is encoded as plain text, so no special
token comes from it, and read without what would be an answer (:mod:`rain_llm.judging.quoting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rain_llm.criteria.criterion import Criterion, Example, placeholders
from rain_llm.errors import LabelError
from rain_llm.judging.evidence import pertinent
from rain_llm.judging.quoting import quoter
from rain_llm.models.base import LanguageModel
from rain_llm.requests import Score
from rain_llm.settings import EvaluationSettings
from rain_llm.types import Message, TokenIds


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
class Question:
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


class Questions:
    """Turns texts into questions for one judge.

    Args:
        settings: the question style, worked examples, the chat template.
        judge: the model that is asked.
        criteria: all that it may be asked about.

    Raises:
        LabelError: the judge's tokenizer encodes two labels to the same tokens.
    """

    def __init__(
        self, settings: EvaluationSettings, judge: LanguageModel, criteria: Sequence[Criterion]
    ) -> None:
        self.settings = settings
        self._judge = judge
        self._labels = {c.name: self._label_tokens(c) for c in criteria}
        self._encoded: dict[str, TokenIds] = {}  # worked examples

    def lacks_context(self, criterion: Criterion, subject: JudgeInput) -> bool:
        """Whether a criterion would be asked about a context that is not there."""
        reads = self.style(criterion) not in ("choice", "guard")
        return reads and criterion.needs_context and not subject.context.strip()

    def readings(
        self, criterion: Criterion, subject: JudgeInput, answer: str, *, acts: bool = False
    ) -> list[list[Question]]:
        """Ask about an answer as it is, and without what may be verdicts of its own, if it holds such.

        They are left out by degrees: first those of one unknown word, then all.

        What is checked against passages is left whole, as facts look like that, too; so is a call (``acts``).
        """
        asked = [self.ask(criterion, subject, answer)]
        if self.style(criterion) == "guard" or criterion.needs_context:
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
                asked.append(self.ask(criterion, replace(subject, query=query), said))
        return asked

    def ask(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Return the questions about one reading of an answer."""
        if criterion.evidence and subject.context:
            shown = pertinent(subject.context, subject.query, answer)
            subject = replace(subject, context=shown)
        style = self.style(criterion)
        if style == "labels":
            return self._label_questions(criterion, subject, answer)
        if style == "choice":
            return self._choice_questions(criterion, subject, answer)
        if style == "guard":
            return self._guard_questions(criterion, subject, answer)
        return self._channel_questions(criterion, subject, answer)

    def style(self, criterion: Criterion) -> str:
        """Return how a criterion is asked for."""
        return criterion.style or self.settings.style

    def _label_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Ask for the pairs of label words behind every frame."""
        options = tuple(label for pair in self._labels[criterion.name] for label in pair)
        quote = quoter(criterion).read
        questions = []
        for frame in criterion.frames:
            shown = [
                fill(frame, JudgeInput(e.query, "", subject.dialogue), e.answer)
                + f" {criterion.labels[0][0 if e.good else 1]}"
                for e in self._examples(criterion)
            ]
            asked = self._tokens(shown, fill(frame, subject, answer, quote), frame.rpartition("\n")[2])
            score = Score(asked, options)
            questions += [Question((score, i), (score, i + 1)) for i in range(0, len(options), 2)]
        return questions

    def _choice_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
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
            text = fill(shape, JudgeInput(example.query, "", subject.dialogue), example.answer)
            letter = "A" if example.good != swapped else "B"
            shown.append(f"{ask(text, swapped)}{letter}) {example.why}")
        questions = []
        for swapped in (False, True) if self.settings.swap else (False,):
            text = ask(fill(shape, subject, answer, quote), swapped)
            score = Score(self._tokens(shown, text, "Answer: ("), letters)
            good = 1 if swapped else 0
            questions.append(Question((score, good), (score, 1 - good)))
        return questions

    def _channel_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Weigh the answer behind a good and behind a bad context, per token."""
        channel = criterion.channel
        assert channel is not None  # settings refuse a style without material
        quote = quoter(criterion).read
        shown = quote(answer) or _one_line(
            answer
        )  # of an answer that is nothing but a claim, that is weighed
        said = self._judge.encode(" " + shown) or self._judge.encode(".")
        good, bad = (
            Score(self._tokens((), fill(context, subject, "", quote), ""), (said,))
            for context in (channel.good, channel.bad)
        )
        return [Question((good, 0), (bad, 0), len(said), channel.measure == "share")]

    def _guard_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Show a guard model the conversation as such: each text in its turn, where it is only text."""
        guard = criterion.guard
        assert guard is not None  # settings refuse a style without material
        turns = [Message("user", subject.query), Message("assistant", answer)]
        if not subject.dialogue:
            turns = [Message("user", subject.query + answer)]
        prefix = self._judge.render_chat(turns) + self._judge.encode(guard.cue)
        score = Score(prefix, self._labels[criterion.name][0])
        return [Question((score, 0), (score, 1))]

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
        style = self.style(criterion)
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


def _shape(subject: JudgeInput) -> str:
    """Return how a multiple-choice question shows its subject."""
    passage = "Passage: {context}\n\n" if subject.context else ""
    return passage + ("Human: {query}\n\nAssistant: {answer}" if subject.dialogue else "Text: {text}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def fill(template: str, subject: JudgeInput, answer: str, quote: Callable[[str], str] = _one_line) -> str:
    """Put what is judged into a template; ``quote``: as what it is read."""
    names = placeholders(template)
    parts = {"query": subject.query, "answer": answer, "context": subject.context}
    if "text" in names and subject.dialogue:
        parts["text"] = f"{quote(subject.query)}\n{quote(answer)}"  # a claim may end where a turn does
    elif "text" in names:
        parts["text"] = subject.query + answer
    return template.format(**{name: quote(parts[name]) for name in names})
