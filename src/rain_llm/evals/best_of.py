"""Best-of-n: sample n answers, judge each with the model itself, and take the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from rain_llm.engine import Rain
from rain_llm.judging.evaluator import Asking
from rain_llm.models.base import LanguageModel, Readable
from rain_llm.requests import Read, Sample, Score, Scores, Values
from rain_llm.search.answer import Answer
from rain_llm.search.seeds import seed_of
from rain_llm.settings import RainSettings
from rain_llm.task import subject_of, task_of
from rain_llm.types import Prompt, RainResult, StopReason, Trace, Usage, Verdict


def sample_answers(
    rain: Rain,
    prompt: Prompt,
    n: int,
    *,
    context: str = "",
    settings: RainSettings | None = None,
    guided: bool = False,
) -> list[RainResult]:
    """Sample n answers and let the model judge each of them.

    Each answer is charged with what it adds to the cost of those before it; the first also with the
    prompt. So the first k of n answers cost what k answers cost, and are the same texts.

    Args:
        rain: has the models.
        prompt: what is to be answered or continued.
        n: how many answers, >= 1.
        context: the passages that the answer is to keep to, or "".
        settings: those of ``rain`` if left out.
        guided: write the answers after the criteria's guides.

    Raises:
        RainError: as ``Rain.generate``.
    """
    settings = settings or rain.settings
    generation, runtime = settings.generation, rain.runtime
    tokens = (rain.guided(prompt, settings) if guided else ()) or rain.encode(prompt, settings)
    subject = subject_of(task_of(prompt, context), settings)
    evaluator = runtime.evaluator(settings.evaluation)
    if evaluator.probes and runtime.judge is runtime.writer:
        subject = replace(subject, prompt=rain.encode(prompt, settings))  # it reads what it has written
    seed = generation.seed or 0
    replies = runtime.writer.sample(
        [
            Sample(
                tokens,
                1,
                generation.max_new_tokens,
                seed_of(seed, place, *tokens),
                generation.temperature,
                generation.top_k,
                generation.top_p,
                ends=generation.stop,
            )
            for place in range(n)
        ]
    )
    answers = []
    for reply in replies:
        answer = Answer(runtime.writer.decode, tokens, generation.stop, encode=runtime.writer.encode)
        answer.extend(reply.continuations[0].tokens)
        answer.finish()
        answers.append(answer)
    # Calibration that is still missing is done before all answers, and charged to the first.
    ((_, calibration),) = ask(runtime.judge, [evaluator.judge(subject, [])])
    asked = ask(
        runtime.judge,
        [evaluator.judge(subject, [answer.shown], written=[answer.tokens]) for answer in answers],
    )
    results: list[RainResult] = []
    for answer, reply, ((verdict,), questions) in zip(answers, replies, asked, strict=True):
        if not results:
            questions = [*calibration, *questions]
        evaluation = sum(question.model_tokens for question in questions)
        if answer.read()[1]:
            reason = StopReason.STOP
        else:
            reason = StopReason.EOS if reply.continuations[0].ended else StopReason.LENGTH
        results.append(
            RainResult(
                answer.shown,
                verdict,
                reason,
                verdict.passed,
                Usage(
                    len(tokens),
                    len(answer.tokens),
                    reply.model_tokens + evaluation,
                    evaluation,
                    reply.forwards + max((question.forwards for question in questions), default=0),
                    1,
                ),
                Trace(seed, settings.hash, runtime.writer.name),
                settings.hash,
            )
        )
    return results


def best(results: Sequence[RainResult]) -> RainResult:
    """Return the answer with the best verdict of the model itself, at the cost of all of them."""
    chosen = max(results, key=lambda result: result.verdict.score if result.verdict else -1.0)
    usages = [result.usage for result in results]
    usage = replace(
        chosen.usage,
        model_tokens=sum(usage.model_tokens for usage in usages),
        evaluation_tokens=sum(usage.evaluation_tokens for usage in usages),
        forwards=max(usage.forwards for usage in usages),  # they share their forward passes
        evaluations=len(results),
    )
    return replace(chosen, usage=usage)


def ask(
    judge: LanguageModel, judgements: Sequence[Asking[list[Verdict]]]
) -> list[tuple[list[Verdict], list[Scores | Values]]]:
    """Send the questions of several judgements in one batch, and read for those that read.

    Returns:
        For each judgement its verdicts, and the replies that they were read from.
    """
    asked = [next(judgement) for judgement in judgements]
    requests = [request for some in asked for request in some]
    scores = iter(judge.score([request for request in requests if isinstance(request, Score)]))
    reads = [request for request in requests if isinstance(request, Read)]
    values = iter(cast("Readable", judge).read(reads) if reads else [])  # only such a judge has probes
    results = []
    for judgement, some in zip(judgements, asked, strict=True):
        mine = [next(scores) if isinstance(request, Score) else next(values) for request in some]
        try:
            judgement.send(mine)
        except StopIteration as stopped:  # a judgement asks one round of questions
            results.append((cast("list[Verdict]", stopped.value), mine))
    return results
