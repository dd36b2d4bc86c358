"""Judge the sentences of a text one by one, and find the passage nearest to each.

A verdict on a complete answer does not show which sentence fails. Here each sentence is judged alone, all in
one round of requests. This explains a verdict but does not replace it: sentences that pass one by one may
fail together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rain_llm.bounds import SENTENCES
from rain_llm.errors import ModelError, PromptError
from rain_llm.judging.evaluator import Asking, SelfEvaluator
from rain_llm.judging.evidence import nearest
from rain_llm.judging.questions import JudgeInput
from rain_llm.judging.splitting import Span, split
from rain_llm.search.algorithm import RainSearch
from rain_llm.search.outcome import Interrupted, Outcome, Search
from rain_llm.search.read_and_rewind import ReadAndRewind
from rain_llm.tools import OPENING
from rain_llm.types import SentenceVerdict, StopReason

_EXCERPT = 200  # characters of a passage
_ANSWERED = (StopReason.EOS, StopReason.STOP, StopReason.LENGTH, StopReason.REFUSED, StopReason.UNSAFE)


def spans_of(text: str) -> list[Span]:
    """Return the positions of a text's sentences.

    Raises:
        PromptError: there are none, or too many.
    """
    spans: list[Span] = []
    for span in split(text):
        spans.append(span)
        if len(spans) > SENTENCES:
            raise PromptError(
                f"the text has more than {SENTENCES} sentences, the maximum for one call: "
                "split it and call judge_sentences for each part"
            )
    if not spans:
        raise PromptError("the text is empty: there is no sentence to judge")
    return spans


def only_judge_sentences(
    evaluator: SelfEvaluator, subject: JudgeInput, passages: Sequence[str], text: str, spans: Sequence[Span]
) -> Search:
    """Judge each sentence of a given text."""
    try:
        found = yield from _judged(evaluator, subject, passages, text, spans)
    except Interrupted as interruption:
        return Outcome(text, text, (), None, False, interruption.reason)
    passed = all(sentence.verdict.passed for sentence in found)
    return Outcome(
        text, text, (), None, passed, StopReason.EOS, evaluations=len(spans), sentences=tuple(found)
    )


def run_and_explain(search: RainSearch | ReadAndRewind, passages: Sequence[str]) -> Search:
    """Run a search; if its answer did not pass, judge the sentences of that answer or of the rejected text.

    This needs passages and a criterion that reads them; JSON documents and tool calls are not explained. If
    a limit or a model error interrupts the explanation, the answer is returned without sentences.
    """
    outcome = yield from search.run()
    state = search.state
    evaluation = state.settings.evaluation
    text = outcome.text if state.rejected is None else state.rejected
    wanted = evaluation.sentences != "none" and any(c.needs_context for c in evaluation.criteria)
    if (
        outcome.accepted
        or outcome.stop_reason not in _ANSWERED
        or not (wanted and any(passage.strip() for passage in passages))
        or state.form.document
        or (state.form.call and OPENING in text)
    ):
        return outcome
    spans = list(enumerate(split(text)))[-SENTENCES:]
    if not spans:
        return outcome
    try:
        found = yield from _judged(
            state.evaluator, state.subject, passages, text, [span for _, span in spans]
        )
    except (Interrupted, ModelError):
        return outcome
    left = len(text) if evaluation.sentences == "texts" else len(state.answer.shown)
    sentences = tuple(
        replace(sentence, index=index, text=sentence.text if sentence.end <= left else "")
        for (index, _), sentence in zip(spans, found, strict=True)
    )
    return replace(outcome, evaluations=outcome.evaluations + len(found), sentences=sentences)


def _judged(
    evaluator: SelfEvaluator, subject: JudgeInput, passages: Sequence[str], text: str, spans: Sequence[Span]
) -> Asking[list[SentenceVerdict]]:
    """Judge every sentence in one round of requests."""
    sentences = [text[start:end] for start, end in spans]
    verdicts = yield from evaluator.judge(subject, sentences)
    found = []
    nearest_passages = nearest(passages, subject.query, sentences)
    for place, (span, near) in enumerate(zip(spans, nearest_passages, strict=True)):
        passage, words = near or (None, "")
        excerpt = words if len(words) <= _EXCERPT else f"{words[:_EXCERPT]}..."
        found.append(SentenceVerdict(place, *span, verdicts[place], passage, excerpt, sentences[place]))
    return found
