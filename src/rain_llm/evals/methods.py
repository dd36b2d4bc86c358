"""Method: a way to get an answer out of a model, with all that it costs.

* ``plain``: the model unguarded.
* ``self-check``: the plain answer, or the refusal if the model's own verdict on it fails (as guardrails do).
* ``best-of``: up to 16 drafts, of which the model's own verdict takes one. The first n of them are
  best-of-n, so that one run gives the whole curve of quality against tokens.
* ``guided-best-of``: the same with every draft written behind the criteria's guides.
* ``rain`` and its variants: the table below. Settings of the user's own are one more variant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from rain_llm.criteria.criterion import Criterion
from rain_llm.engine import Rain
from rain_llm.errors import PromptError, SettingsError
from rain_llm.evals.rows import Row
from rain_llm.evals.tasks import Item, Task
from rain_llm.judging.evaluator import Asking
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.models.transcript import shows_chats
from rain_llm.search.answer import Answer
from rain_llm.search.seeds import seed_of
from rain_llm.settings import RainSettings
from rain_llm.task import subject_of, task_of
from rain_llm.types import Prompt, RainResult, Sample, Score, Scores, StopReason, Trace, Usage, Verdict

START = RainSettings(on_unsafe="best")
"""What methods start from where no settings are given: a refusal has no tone or truth to be measured."""

LADDER = (1, 2, 3, 4, 6, 8, 12, 16)
"""Which n of best-of-n the method ``best-of`` gives."""

UNGUARDED = ("plain", "self-check", "best-of")
_GUIDED = "guided-"


@dataclass(frozen=True, slots=True)
class Variant:
    """RAIN with something changed.

    Attributes:
        tells: what is changed, in a few words.
        paper: start from the paper's preset for the task, not from the default.
        settings: changes of the settings.
        criterion: changes of the fields of each criterion.
    """

    tells: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    criterion: Callable[[Criterion], Mapping[str, Any]] = lambda criterion: {}
    paper: bool = False


_SOFT: dict[str, Any] = {"style": "labels", "mode": "soft", "examples": False}

VARIANTS: dict[str, Variant] = {
    "rain": Variant("the default"),
    "rain-refuse": Variant("refuses where nothing passes", {"on_unsafe": "refuse"}),
    "no-tree": Variant(
        "every draft starts from the prompt", {"search": {"token_set_lengths": (10**6,), "widening": 10**6}}
    ),
    "no-lookahead": Variant("judges after every token", {"search": {"simulation_tokens": 1}}),
    "no-values": Variant("follows the prior, not the verdicts", {"search": {"exploration": 1e6}}),
    "no-prior": Variant("follows the verdicts, not the prior", {"search": {"exploration": 0.0}}),
    "no-guide": Variant("drafts are never guided", {"search": {"guided": False}}),
    "four-leaves": Variant("four leaves in a round", {"search": {"leaves": 4}}),
    "one-frame": Variant("asks in one frame", criterion=lambda c: {"frames": c.frames[:1]}),
    "one-pair": Variant("asks by one pair of words", criterion=lambda c: {"labels": c.labels[:1]}),
    "hard": Variant("questions vote instead of being weighed", {"evaluation": {"mode": "hard"}}),
    "no-calibration": Variant("log-odds as they are", criterion=lambda c: {"calibration": None}),
    "rain-paper": Variant("the paper's constants and question", paper=True),
    "rain-paper-soft": Variant("its search, the default's questions", {"evaluation": _SOFT}, paper=True),
    "rain-paper-no-swap": Variant("its question in one order", {"evaluation": {"swap": False}}, paper=True),
    "rain-paper-soft-no-similarity": Variant(
        "nothing shared with similar texts", {"search": {"similarity": None}, "evaluation": _SOFT}, paper=True
    ),
    "rain-paper-soft-no-addition": Variant(
        "no dynamic node addition", {"search": {"addition": None}, "evaluation": _SOFT}, paper=True
    ),
}
"""RAIN, and RAIN with each part of it changed or switched off."""

GROUPS: dict[str, tuple[str, ...]] = {
    "ablations": tuple(name for name in VARIANTS if name not in ("rain", "rain-paper")),
    "all": (*UNGUARDED, *VARIANTS),
}


def chosen(names: Sequence[str], own: Mapping[str, RainSettings]) -> list[str]:
    """Check the names of methods and spell out groups of them.

    Args:
        names: methods, ``best-of-N``, or groups: "ablations", "all".
        own: the user's own methods.

    Raises:
        SettingsError: there is no such method, or one of the user's has the name of another.
    """
    for name in own:
        if not name or name in VARIANTS or name in GROUPS or name.removeprefix(_GUIDED).startswith(UNGUARDED):
            raise SettingsError(f"a method of your own cannot be called '{name}': choose another name")
    found: list[str] = []
    for name in names:
        if name in VARIANTS or name in UNGUARDED or name in own or _ladder(name):
            found.append(name)
        elif name in GROUPS:
            found += GROUPS[name]
        else:
            known = ", ".join((*UNGUARDED, "best-of-N", "guided-best-of", *VARIANTS, *GROUPS))
            raise SettingsError(f"unknown method {name!r}: there are {known}, and NAME=settings.yaml")
    whole = [name for name in found if name.removeprefix(_GUIDED) == "best-of"]
    rungs = {rung for name in whole for rung in labels(name)}  # they write these themselves
    return list(dict.fromkeys(name for name in found if name not in rungs))


def labels(method: str) -> tuple[str, ...]:
    """Return the methods that the rows of one run of ``method`` are of."""
    guided = _GUIDED if method.startswith(_GUIDED) else ""
    return tuple(f"{guided}best-of-{n}" for n in _ladder(method)) or (method,)


def settings_for(
    method: str, task: Task, start: RainSettings, tokens: int | None, own: Mapping[str, RainSettings]
) -> RainSettings:
    """Return a method's settings for a task.

    The task says how much is written, and what is judged unless the settings name criteria themselves.
    The paper's variants take model, temperature, ``top_k`` and ``top_p`` from ``start``.

    Raises:
        SettingsError: they do not fit together, or ask for an error where nothing passes.
    """
    start = own.get(method, start)
    variant = VARIANTS.get(method, VARIANTS["rain"])
    criteria = start.evaluation.criteria
    if criteria == RainSettings().evaluation.criteria:
        criteria = (task.criterion,)
    settings, changes = start, dict(variant.settings)
    evaluation: dict[str, Any] = changes.pop("evaluation", {})
    if variant.paper:
        settings = RainSettings.preset(task.preset).updated(
            **start.data("model", "generation", "on_unsafe", "refusal"),
            evaluation={"judge": start.evaluation.judge},
        )
        asked = settings.evaluation.criteria
        if evaluation is not _SOFT and [c.name for c in asked] == [c.name for c in criteria]:
            criteria = asked  # the paper's own question, with its worked examples
        else:
            evaluation = {"examples": False, **evaluation}
    criteria = tuple(Criterion(**{**dict(c), **variant.criterion(c)}) for c in criteria)
    settings = settings.updated(
        **changes,
        generation=task.generation(tokens, chat=not start.says_no_chat_template),
        evaluation={**evaluation, "criteria": criteria},
    )
    if settings.on_unsafe == "raise":
        raise SettingsError(
            f"method '{method}' has on_unsafe='raise', which leaves no answer to look at: "
            "choose 'best' or 'refuse'"
        )
    if method.startswith(_GUIDED) and not any(c.guide for c in settings.evaluation.criteria):
        raise SettingsError(
            f"method '{method}' needs a guide, and no criterion of task '{task.name}' has one: "
            "give it one, or leave the method out"
        )
    return settings


def fitting(settings: RainSettings, rain: Rain, task: Task) -> RainSettings:
    """Return a method's settings as its models can follow them: one without a chat template is used without.

    Args:
        settings: of :func:`settings_for`.
        rain: has the models; they are loaded now.
        task: that is answered.

    Raises:
        ModelError: a model cannot be loaded.
    """
    changes: dict[str, Any] = {}
    drawing = settings.generation
    if drawing.chat_template and not shows_chats(rain.runtime.writer):
        changes["generation"] = task.generation(drawing.max_new_tokens, chat=False)
    if settings.evaluation.chat_template and not shows_chats(rain.runtime.judge):
        changes["evaluation"] = {"chat_template": False}
    return settings.updated(**changes) if changes else settings


def check(method: str, rain: Rain, task: Task, items: Sequence[Item]) -> None:
    """Refuse items that cannot be answered, before the first one is.

    Raises:
        PromptError: naming the item.
    """
    writer, settings = rain.runtime.writer, rain.settings
    if settings.search.similarity is not None:
        rain.runtime.embedder()  # loaded now, and a missing one told, not in the middle of an answer
    evaluator = rain.runtime.evaluator(settings.evaluation)
    room = settings.generation.max_new_tokens
    guided = _guides(method, settings)
    for item in items:
        prompt = task.prompt(item, settings.generation.chat_template)
        try:
            evaluator.check(subject_of(task_of(prompt, item.context), settings), room)
            length = max(len(rain.encode(prompt)), len(rain.guided(prompt)) if guided else 0)
            if length + room > writer.context_length:
                shown = "prompt and guides have" if guided else "prompt has"
                raise PromptError(
                    f"its {shown} {length} tokens; with {room} tokens of answer that exceeds the context "
                    f"of {writer.name}, {writer.context_length} tokens: ask for fewer --tokens"
                )
        except PromptError as error:
            raise PromptError(f"task '{task.name}', item {item.id}: {error}") from error


def calibrate(rain: Rain, dialogue: bool) -> None:
    """Ask what is asked once for all texts, so that no answer is charged with it."""
    evaluator = rain.runtime.evaluator(rain.settings.evaluation)
    _ask(rain.runtime.judge, [evaluator.judge(JudgeInput("", "", dialogue), [])])


def write(method: str, rain: Rain, task: Task, items: Sequence[Item], seed: int) -> list[Row]:
    """Answer each item by a method; of ``best-of`` there are rows for each n.

    The name of the method has passed :func:`chosen`; ``rain`` has the settings of :func:`settings_for`.

    Raises:
        RainError: as ``Rain.generate``.
    """
    settings = rain.settings.updated(generation={"seed": seed})
    prompts = [task.prompt(item, settings.generation.chat_template) for item in items]

    def row(label: str, place: int, result: RainResult) -> Row:
        item = items[place]
        return Row(
            task.name,
            label,
            item.id,
            seed,
            str(prompts[place]) if item.opening else item.prompt,
            item.context,
            result.text,
            result.accepted,
            result.stop_reason is StopReason.REFUSED,
            str(result.stop_reason),
            result.verdict.score if result.verdict else None,
            result.usage.output_tokens,
            result.usage.model_tokens,
            result.usage.evaluation_tokens,
            result.usage.forwards,
            None,
            rain.settings.hash,
            {c.name: c.passed for c in result.verdict.criteria} if result.verdict else None,
        )

    if ladder := _ladder(method):
        made = [
            drafts(
                rain,
                prompt,
                ladder[-1],
                context=item.context,
                settings=settings,
                guided=method.startswith(_GUIDED),
            )
            for prompt, item in zip(prompts, items, strict=True)
        ]
        rungs = zip(labels(method), ladder, strict=True)
        return [row(label, place, best(some[:n])) for label, n in rungs for place, some in enumerate(made)]
    asked = [task_of(prompt, item.context) for prompt, item in zip(prompts, items, strict=True)]
    if method in UNGUARDED:
        judge = method == "self-check"
        results = rain.plain_batch(asked, settings=settings, judge=judge)
        results = [_checked(result, settings) for result in results] if judge else results
    else:
        results = rain.generate_batch(asked, settings=settings)
    return [row(method, place, result) for place, result in enumerate(results)]


def drafts(
    rain: Rain,
    prompt: Prompt,
    n: int,
    *,
    context: str = "",
    settings: RainSettings | None = None,
    guided: bool = False,
) -> list[RainResult]:
    """Write n answers, ``guided`` behind the criteria's guides, each with the model's own verdict.

    Each is charged with what it costs when all before it are there already: the first with the prompt as
    well. So the first k of n drafts cost what k drafts cost, and are the same texts.
    """
    settings = settings or rain.settings
    drawing, runtime = settings.generation, rain.runtime
    tokens = (rain.guided(prompt, settings) if guided else ()) or rain.encode(prompt, settings)
    subject = subject_of(task_of(prompt, context), settings)
    evaluator = runtime.evaluator(settings.evaluation)
    seed = drawing.seed or 0
    replies = runtime.writer.sample(
        [
            Sample(
                tokens,
                1,
                drawing.max_new_tokens,
                seed_of(seed, place, *tokens),
                drawing.temperature,
                drawing.top_k,
                drawing.top_p,
                ends=drawing.stop,
            )
            for place in range(n)
        ]
    )
    answers = []
    for reply in replies:
        answer = Answer(runtime.writer.decode, tokens, drawing.stop, encode=runtime.writer.encode)
        answer.extend(reply.continuations[0].tokens)
        answer.finish()
        answers.append(answer)
    # A calibration by the query is asked once, before all drafts, and charged to the first.
    ((_, calibration),) = _ask(runtime.judge, [evaluator.judge(subject, [])])
    asked = _ask(runtime.judge, [evaluator.judge(subject, [answer.shown]) for answer in answers])
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
    """Return the one that the model's own verdict likes best, with what all of them have cost."""
    chosen = max(results, key=lambda result: result.verdict.score if result.verdict else -1.0)
    usages = [result.usage for result in results]
    usage = replace(
        chosen.usage,
        model_tokens=sum(usage.model_tokens for usage in usages),
        evaluation_tokens=sum(usage.evaluation_tokens for usage in usages),
        forwards=max(usage.forwards for usage in usages),  # they share their passes
        evaluations=len(results),
    )
    return replace(chosen, usage=usage)


def _ladder(method: str) -> tuple[int, ...]:
    """Return which n a method of the best-of kind gives; nothing of other methods."""
    method = method.removeprefix(_GUIDED)
    if method == "best-of":
        return LADDER
    number = method.removeprefix("best-of-")
    return (int(number),) if number != method and re.fullmatch("[1-9][0-9]{0,3}", number) else ()


def _guides(method: str, settings: RainSettings) -> bool:
    """Whether a method writes behind the criteria's guides, if they have some."""
    if method in UNGUARDED or _ladder(method):
        return method.startswith(_GUIDED)
    return settings.search.guided


def _checked(result: RainResult, settings: RainSettings) -> RainResult:
    """Let the finished answer pass, or refuse in its place."""
    assert result.verdict is not None  # it was asked for
    if result.verdict.passed:
        return replace(result, accepted=True)
    return replace(result, text=settings.refusal, stop_reason=StopReason.REFUSED)


def _ask(
    judge: LanguageModel, askings: Sequence[Asking[list[Verdict]]]
) -> list[tuple[list[Verdict], list[Scores]]]:
    """Ask all in one batch; return what each came to, and the replies that it took."""
    asked = [cast("Sequence[Score]", next(asking)) for asking in askings]
    replies = iter(judge.score([question for questions in asked for question in questions]))
    results = []
    for asking, questions in zip(askings, asked, strict=True):
        mine = [next(replies) for _ in questions]
        try:
            asking.send(mine)
        except StopIteration as stopped:  # a judge asks one round
            results.append((cast("list[Verdict]", stopped.value), mine))
    return results
