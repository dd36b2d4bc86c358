"""Build the judge's questions about a text, in four styles (a fifth, 'probe', asks nothing: ``reading``).

A question is a :class:`~rain_llm.requests.Score` request: a rendered text and the options that may follow it.
The judged text cannot answer the question itself: it is encoded as plain text, so that it contains no special
tokens, and text that imitates an answer is removed (:mod:`rain_llm.judging.quoting`).
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
    """The part of a prompt that the judge sees.

    Attributes:
        query: the prompt, or the last user turn of a chat.
        context: the passages that the answer must be supported by; may be empty.
        dialogue: whether the answer is a reply to the query, not its continuation.
        acts: whether the answer may contain tool calls. The context may then arrive later, as a tool's
            result; criteria that need it do not apply before.
        prompt: the complete prompt as the judge itself continues it; (): another model writes.
    """

    query: str
    context: str = ""
    dialogue: bool = False
    acts: bool = False
    prompt: TokenIds = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question whose evidence for a criterion is ``(log p(good) - log p(bad)) / tokens``, in nats.

    Many questions may share one request.

    Attributes:
        good: a request and the index of its good option.
        bad: a request and the index of its bad option.
        tokens: the divisor.
        share: divide by ``-log p(bad)`` instead of ``tokens``.
    """

    good: tuple[Score, int]
    bad: tuple[Score, int]
    tokens: int = 1
    share: bool = False

    def evidence(self, good: float, bad: float) -> float:
        """Compute the evidence from both options' log-probabilities (nats)."""
        return (good - bad) / (max(-bad, 1e-6) if self.share else self.tokens)


class Questions:
    """Build questions for one judge.

    Args:
        settings: the question style, worked examples, the chat template.
        judge: the model that judges.
        criteria: all criteria that it may judge.

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
        """Return whether a criterion needs a context that the subject does not have."""
        reads = self.style(criterion) not in ("choice", "guard")
        return reads and criterion.needs_context and not subject.context.strip()

    def readings(
        self, criterion: Criterion, subject: JudgeInput, answer: str, *, acts: bool = False
    ) -> list[list[Question]]:
        """Return the questions about an answer, once for each reading of it.

        The first reading is the answer as it is. If it contains text that may be a fake verdict, two more
        readings leave that out: first verdicts with one unknown word, then all.

        A criterion that needs a context gets one reading, because facts may look like verdicts
        (``key: value``). Tool calls (``acts``) are never shortened.
        """
        asked = [self.ask(criterion, subject, answer)]
        if self.style(criterion) == "guard" or criterion.needs_context:
            return asked
        quote = quoter(criterion)

        def three_readings(text: str) -> tuple[str, str, str]:
            full, rest = quote.readings(text)
            return full, (full if rest == full else quote.between(text)), rest

        query, rest_of_query = quote.readings(subject.query)
        if subject.dialogue:
            queries = (
                query,
                rest_of_query,
                rest_of_query,
            )  # two, not three: each different prefix costs a forward pass
            full, between, rest = three_readings(answer)
            answers = (full,) * 3 if acts else (full, between or full, rest or between or full)
            shown = list(zip(queries, answers, strict=True))
        else:  # a continuation is read with its prompt: a single word alone would look like a label
            texts = three_readings(subject.query + answer)
            shown = [
                (query, text.removeprefix(query)) if text.startswith(query) else ("", text) for text in texts
            ]
        for query, text in dict.fromkeys(shown[1:]):
            if (query, text) != shown[0] and (query or text):
                asked.append(self.ask(criterion, replace(subject, query=query), text))
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
        """Return the question style of a criterion: for 'auto', the first that it has."""
        style = criterion.style or self.settings.style
        if style != "auto":
            return style
        return next(
            (way for way in ("labels", "choice", "channel", "guard") if getattr(criterion, way)), "probe"
        )

    def _label_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Return the questions that compare each pair of label words after every frame."""
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
            score = Score(asked, options, relative=True)
            questions += [Question((score, i), (score, i + 1)) for i in range(0, len(options), 2)]
        return questions

    def _choice_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Return the multiple-choice question, and with ``swap`` a copy with swapped options (section 3).

        The question precedes the text, so that all answers share this prefix; the options follow the text.
        """
        choice = criterion.choice
        assert choice is not None  # the settings require it for this style
        letters = self._labels[criterion.name][0]
        shape = _shape(subject)
        quote = quoter(criterion).read

        def ask(text: str, swapped: bool) -> str:
            options = (choice.bad, choice.good) if swapped else (choice.good, choice.bad)
            return f"{choice.question}\n{text}\n(A) {options[0]} (B) {options[1]}\nAnswer: ("

        shown = []
        for i, example in enumerate(self._examples(criterion)):
            swapped = i % 4 > 1  # examples alternate between both orders, so that both questions share them
            text = fill(shape, JudgeInput(example.query, "", subject.dialogue), example.answer)
            letter = "A" if example.good != swapped else "B"
            shown.append(f"{ask(text, swapped)}{letter}) {example.why}")
        questions = []
        for swapped in (False, True) if self.settings.swap else (False,):
            text = ask(fill(shape, subject, answer, quote), swapped)
            score = Score(self._tokens(shown, text, "Answer: ("), letters, relative=True)
            good = 1 if swapped else 0
            questions.append(Question((score, good), (score, 1 - good)))
        return questions

    def _channel_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Return the question that compares the answer's likelihood after a good and after a bad context."""
        channel = criterion.channel
        assert channel is not None  # the settings require it for this style
        quote = quoter(criterion).read
        shown = quote(answer) or _one_line(answer)  # an answer that is only a claim is scored as it is
        tokens = self._judge.encode(" " + shown) or self._judge.encode(".")
        good, bad = (
            Score(self._tokens((), fill(context, subject, "", quote), ""), (tokens,))
            for context in (channel.good, channel.bad)
        )
        return [Question((good, 0), (bad, 0), len(tokens), channel.measure == "share")]

    def _guard_questions(self, criterion: Criterion, subject: JudgeInput, answer: str) -> list[Question]:
        """Return the question for a guard model, which sees the conversation in its own chat template."""
        guard = criterion.guard
        assert guard is not None  # the settings require it for this style
        turns = [Message("user", subject.query), Message("assistant", answer)]
        if not subject.dialogue:
            turns = [Message("user", subject.query + answer)]
        prefix = self._judge.render_chat(turns) + self._judge.encode(guard.cue)
        score = Score(prefix, self._labels[criterion.name][0], relative=True)
        return [Question((score, 0), (score, 1))]

    def _examples(self, criterion: Criterion) -> Sequence[Example]:
        return criterion.examples if self.settings.examples else ()

    def _tokens(self, shown: Sequence[str], text: str, cue: str) -> TokenIds:
        """Encode a complete question after the worked examples.

        With a chat template, the cue is the beginning of the judge's own turn.
        """
        if self.settings.chat_template:
            body = "\n\n".join([*shown, text]).removesuffix(cue).rstrip()
            return self._judge.render_chat([Message("user", body)]) + self._judge.encode(cue)
        if not shown:
            return self._judge.start + self._judge.encode(text)
        before = "\n\n".join(shown)  # ends before white space, where tokenizers split anyway
        if before not in self._encoded:
            self._encoded[before] = self._judge.encode(before)
        return self._judge.start + self._encoded[before] + self._judge.encode("\n\n" + text)

    def _label_tokens(self, criterion: Criterion) -> tuple[tuple[TokenIds, TokenIds], ...]:
        """Encode every label as it follows the frame."""
        style = self.style(criterion)
        if style in ("channel", "probe"):
            return ()
        if style == "choice":
            pairs: Sequence[tuple[str, str]] = (("A", "B"),)
        elif style == "guard":
            assert criterion.guard is not None  # the settings require it for this style
            pairs = ((criterion.guard.safe, criterion.guard.unsafe),)
        else:
            pairs = [(f" {good.strip()}", f" {bad.strip()}") for good, bad in criterion.labels]
        found = []
        for good, bad in pairs:
            tokens = self._judge.encode(good), self._judge.encode(bad)
            shorter = min(len(tokens[0]), len(tokens[1]))
            if shorter == 0 or tokens[0][:shorter] == tokens[1][:shorter]:
                raise LabelError(
                    f"criterion '{criterion.name}': the tokenizer of {self._judge.name} does not distinguish "
                    f"the labels {good!r} {tokens[0]} and {bad!r} {tokens[1]}: choose other words"
                )
            found.append(tokens)
        return tuple(found)


def _shape(subject: JudgeInput) -> str:
    """Return the template that shows the subject in a multiple-choice question."""
    passage = "Passage: {context}\n\n" if subject.context else ""
    return passage + ("Human: {query}\n\nAssistant: {answer}" if subject.dialogue else "Text: {text}")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def fill(template: str, subject: JudgeInput, answer: str, quote: Callable[[str], str] = _one_line) -> str:
    """Insert the judged texts into a template, each passed through ``quote`` first."""
    names = placeholders(template)
    parts = {"query": subject.query, "answer": answer, "context": subject.context}
    if "text" in names and subject.dialogue:
        parts["text"] = f"{quote(subject.query)}\n{quote(answer)}"  # a claim may end at the end of a turn
    elif "text" in names:
        parts["text"] = subject.query + answer
    return template.format(**{name: quote(parts[name]) for name in names})
