"""Scenarios with fixed seeds, and the bar that each must meet.

The functions in the first half measure; their counts are exact and repeatable, so that tests may take
them as gates. The functions in the second half, in ``SCENARIOS``, hold them against the bars.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.meter import Cost, Meter, output
from rain_llm import POSITIVE_SENTIMENT, Rain, RainResult, RainSettings
from rain_llm.evals.tasks import TASKS
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.models.base import LanguageModel
from rain_llm.types import CriterionScore, StopReason

PROMPTS = (
    "I think this film is",
    "The restaurant on the corner has",
    "When the train arrived, the passengers",
    "My neighbour knocked on the door and said",
)
BENIGN = ("To bake bread, you", "The library opens at", "My garden has", "A triangle has")
"""Openings whose continuation the default criterion has nothing against."""
OPENINGS = [item.prompt for task in ("sentiment", "civility") for item in TASKS[task].items(split="dev")]
"""Short texts to continue, all different."""

PAPER = RainSettings.preset("paper").updated(on_unsafe="best")
DEFAULT = RainSettings(on_unsafe="best")  # a refusal would end the answer that is timed


# --- verdicts that are known beforehand ---------------------------------------------------------------


class _Forced(SelfEvaluator):
    """Asks all its questions, so that they cost what they cost; then says what it was told to."""

    value = 1.0

    def _criterion_score(self, *args: Any, **kwargs: Any) -> CriterionScore:
        score = super()._criterion_score(*args, **kwargs)
        fine = self.value > 0.5
        return replace(score, probability=self.value, passed=fine, on_target=fine)


class _Never(_Forced):
    value = 0.0


@contextmanager
def forced(rain: Rain, fine: bool) -> Generator[Rain, None, None]:
    """Let every verdict be fine, or none, whatever the model says."""
    evaluators, key = rain.runtime._evaluators, rain.settings.evaluation
    before = evaluators.get(key)
    evaluators[key] = (_Forced if fine else _Never)(key, rain.runtime.judge)
    try:
        yield rain
    finally:
        del evaluators[key]
        if before is not None:
            evaluators[key] = before


# --- measuring ------------------------------------------------------------------------------------------


def plain(rain: Rain, prompts: Sequence[str]) -> Cost:
    """Write without a guard, one prompt after another."""
    with Meter(rain) as meter:
        results = [rain.plain(prompt) for prompt in prompts]
    return meter.cost(output(results))


def guarded(rain: Rain, prompts: Sequence[str], at_once: bool = False) -> Cost:
    """Write with the guard, one prompt after another or all at once."""
    return _answers(rain, prompts, at_once)[1]


def _answers(rain: Rain, prompts: Sequence[str], at_once: bool) -> tuple[list[RainResult], Cost]:
    warm(rain)
    with Meter(rain) as meter:
        results = rain.generate_batch(prompts) if at_once else [rain.generate(p) for p in prompts]
    return results, meter.cost(output(results))


def warm(rain: Rain) -> None:
    """Let the evaluator find its calibration, and the libraries start their threads."""
    rain.generate("Hello there", settings=rain.settings.updated(generation={"max_new_tokens": 2}))


def of_length(settings: RainSettings, tokens: int, model: LanguageModel | None = None) -> Rain:
    """Make a Rain whose answers have at most ``tokens`` tokens."""
    return Rain(settings.updated(generation={"max_new_tokens": tokens}), model=model)


def with_verdicts(
    settings: RainSettings,
    fine: bool,
    prompts: Sequence[str],
    tokens: int,
    model: LanguageModel | None = None,
    at_once: bool = False,
) -> Cost:
    """Measure a search whose verdicts are all fine, or never."""
    with forced(of_length(settings, tokens, model), fine) as rain:
        return guarded(rain, prompts, at_once)


def paper_all_fine(model: LanguageModel | None = None, tokens: int = 48) -> Cost:
    """The paper's search on 4 prompts at once, every verdict fine."""
    return with_verdicts(PAPER, True, PROMPTS, tokens, model, at_once=True)


def paper_never_fine(model: LanguageModel | None = None, tokens: int = 48) -> Cost:
    """The paper's search on one prompt, no verdict fine: every step spends its whole budget."""
    return with_verdicts(PAPER, False, PROMPTS[:1], tokens, model)


@dataclass(frozen=True)
class Overhead:
    """What a guard adds where there is nothing to object to.

    Attributes:
        cost: of the guarded answers.
        extra: passes an answer beyond those of plain generation of the same tokens.
        cpu: ratio to plain, a token.
    """

    cost: Cost
    extra: float
    cpu: float


def default_all_fine(
    model: LanguageModel | None = None,
    tokens: int = 48,
    force: bool = False,
    repeat: int = 1,
    prompts: Sequence[str] = BENIGN,
    settings: RainSettings = DEFAULT,
) -> Overhead:
    """The default search on benign openings; by its own verdicts, or with all forced to be fine."""
    rain = of_length(settings, tokens, model)
    plain(rain, prompts[:1])
    ratios = []
    for _ in range(repeat):
        base = plain(rain, prompts)
        with forced(rain, fine=True) if force else nullcontext():
            results, cost = _answers(rain, prompts, at_once=False)
        ratios.append(cost.cpu_each / base.cpu_each)
    ended = sum(result.stop_reason is StopReason.EOS for result in results)  # an end takes a pass as well
    extra = (cost.forwards - cost.output - ended) / len(prompts)
    return Overhead(cost, extra, statistics.median(ratios))


@dataclass(frozen=True)
class Mixed:
    """The default search over plain on many prompts.

    Attributes:
        overall: CPU of all prompts, a token. each: of every prompt.
        searched: whether any step of that prompt needed more than one iteration.
    """

    overall: float
    each: tuple[float, ...]
    searched: tuple[bool, ...]

    def where_searched(self, percent: float) -> float:
        """Return a percentile of the ratio over the prompts that had to be searched."""
        chosen = [ratio for ratio, searched in zip(self.each, self.searched, strict=True) if searched]
        return float(np.percentile(chosen, percent)) if chosen else 0.0


def mixed_prompts(data: Path, count: int = 100) -> list[tuple[str, int]]:
    """Return (prompt, seed) pairs: half film openings, half red-team prompts."""
    films, reds = (
        [json.loads(line)["prompt"] for line in (data / name).read_text(encoding="utf-8").splitlines()]
        for name in ("film_openings.jsonl", "hh_red_team_prompts.jsonl")
    )
    films += [item.prompt for item in TASKS["sentiment"].items(split="dev")]
    half = count // 2
    return [(films[i % len(films)], i // len(films)) for i in range(half)] + [(r, 0) for r in reds[:half]]


def default_mixed(
    prompts: Sequence[tuple[str, int]],
    tokens: int = 48,
    model: LanguageModel | None = None,
    settings: RainSettings = DEFAULT,
) -> Mixed:
    """The default search against plain, prompt by prompt."""
    each, searched, ours, base = [], [], [], []
    warm(of_length(settings, tokens, model))
    for prompt, seed in prompts:
        changes = {"max_new_tokens": tokens, "seed": seed}
        rain = Rain(settings.updated(generation=changes), model=model)
        with Meter(rain) as meter:
            result = rain.plain(prompt)
        base.append(meter.cost(_drawn(result)))
        with Meter(rain) as meter:
            result = rain.generate(prompt)
        ours.append(meter.cost(_drawn(result)))
        searched.append(any(step.iterations > 1 for step in result.trace.steps))
        each.append(ours[-1].cpu_each / base[-1].cpu_each)
    spent = [sum(c.cpu for c in costs) / max(1, sum(c.output for c in costs)) for costs in (ours, base)]
    return Mixed(spent[0] / spent[1], tuple(each), tuple(searched))


def _drawn(result: RainResult) -> int:
    """Tokens of an answer and its end, which plain generation draws as well: an answer may be empty."""
    return result.usage.output_tokens + (result.stop_reason is StopReason.EOS)


def throughput(
    model: LanguageModel | None = None,
    tokens: int = 32,
    repeat: int = 3,
    settings: RainSettings = DEFAULT,
) -> float:
    """Eight prompts at once against one after another: ratio of tokens a second, by the clock."""
    rain, prompts = of_length(settings, tokens, model), PROMPTS + BENIGN
    ratios = []
    for _ in range(repeat):
        costs = guarded(rain, prompts), guarded(rain, prompts, at_once=True)
        alone, together = (cost.output / cost.wall for cost in costs)
        ratios.append(together / alone)
    return statistics.median(ratios)


# --- the bars ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A measured figure, and its bar: at most ``bar``, or at least where ``more`` is better."""

    scenario: str
    what: str
    value: float
    bar: float | None = None
    more: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.more else self.value <= self.bar


@dataclass(frozen=True)
class Options:
    """Options of all scenarios.

    Attributes:
        quick: shorter answers, and fewer of them.
        repeat: repetitions of what is timed; the median counts.
        data: folder of the public prompts. model: a GGUF file for ``engines``; None: the embedded one.
    """

    quick: bool = False
    repeat: int = 5
    data: Path | None = None
    model: Path | None = None


class Skipped(Exception):
    """A scenario lacks something; the message says what."""


def _paper_fine(options: Options) -> list[Figure]:
    cost = paper_all_fine(tokens=16 if options.quick else 48)
    return [
        Figure("paper-fine", "tokens through the model per output token", cost.tokens_each, 60),
        Figure("paper-fine", "forward passes per output token", cost.forwards_each, 1.8),
    ]


def _paper_never(options: Options) -> list[Figure]:
    cost = paper_never_fine(tokens=16 if options.quick else 48)
    return [
        Figure("paper-never", "tokens through the model per output token", cost.tokens_each, 350),
        Figure("paper-never", "forward passes per output token", cost.forwards_each),
        Figure("paper-never", "CPU of embeddings and Python", cost.share("embed", "python"), 0.06),
    ]


def _default_fine(options: Options) -> list[Figure]:
    found = []
    for force, name in ((False, "own verdicts"), (True, "all forced fine")):
        measured = default_all_fine(tokens=16 if options.quick else 48, force=force, repeat=options.repeat)
        found += [
            Figure("default-fine", f"{name}: passes beyond plain's, an answer", measured.extra, 0),
            Figure("default-fine", f"{name}: CPU over plain", measured.cpu, 1.03 if force else 1.9),
        ]
    return found


def _mixed(options: Options) -> list[Figure]:
    if options.data is None:
        raise Skipped(
            "needs --data FOLDER with film_openings.jsonl and hh_red_team_prompts.jsonl (HH-RLHF red team)"
        )
    prompts = mixed_prompts(options.data, 20 if options.quick else 100)
    found = default_mixed(prompts, 24 if options.quick else 48)
    return [
        Figure("mixed", f"{len(prompts)} prompts: CPU over plain", found.overall, 3),
        *(
            Figure("mixed", f"a prompt, percentile {percent}", float(np.percentile(found.each, percent)))
            for percent in (50, 95)
        ),
        Figure("mixed", "prompts that had to be searched", sum(found.searched)),
        Figure("mixed", "of these, median", found.where_searched(50)),
        Figure("mixed", "of these, percentile 95", found.where_searched(95), 12),
    ]


def _at_once(options: Options) -> list[Figure]:
    ratio = throughput(tokens=16 if options.quick else 32, repeat=min(3, options.repeat))
    return [Figure("at-once", "8 prompts at once over one after another: tokens a second", ratio, 3, True)]


def _shares(options: Options) -> list[Figure]:
    found = []
    steering = DEFAULT.updated(evaluation={"criteria": [POSITIVE_SENTIMENT]})
    for name, cost in (
        ("paper, all fine", with_verdicts(PAPER, True, PROMPTS[:1], 16)),
        ("default, positive sentiment", guarded(of_length(steering, 24), PROMPTS[:2])),
    ):
        found += [
            Figure("shares", f"{name}: CPU of embeddings and Python", cost.share("embed", "python"), 0.06),
            Figure("shares", f"{name}: time outside the network", cost.outside),
        ]
    return found


def _memory(options: Options) -> list[Figure]:
    from benchmarks.memory import in_own_process as memory

    at_once = memory("at-once", *(("--tokens", "64") if options.quick else ()))
    in_a_row = memory("in-a-row", *(("--requests", "100") if options.quick else ()))
    budget = at_once["budget"]
    what = f"8 at once, {at_once['longest']:.0f} tokens"
    return [
        Figure("memory", f"{what}: peak above the loaded model, of the budget", at_once["peak"] / budget, 1),
        Figure("memory", f"{what}: keys and values, of the budget", at_once["cache"] / budget, 1),
        Figure(
            "memory",
            f"{in_a_row['requests']:.0f} answers in a row: growth after the 50th",
            in_a_row["growth"],
            0.02,
        ),
    ]


SCENARIOS: dict[str, Callable[[Options], list[Figure]]] = {
    "paper-fine": _paper_fine,
    "paper-never": _paper_never,
    "default-fine": _default_fine,
    "mixed": _mixed,
    "at-once": _at_once,
    "shares": _shares,
    "memory": _memory,
}
