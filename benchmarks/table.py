"""What each method costs on the same prompts: the rows of the table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.baselines import Generate
from benchmarks.meter import PARTS, Cost, Meter, rss
from benchmarks.scenarios import DEFAULT, PAPER, PROMPTS, guarded, of_length, plain, warm
from rain_llm import POSITIVE_SENTIMENT, Rain
from rain_llm.evals.best_of import best, sample_answers
from rain_llm.models.local.transformers import TransformersModel

CHOSEN = PROMPTS[:2]
PLAIN = "plain"


@dataclass
class Row:
    """One method, measured several times.

    Attributes:
        costs: of each repetition. ratios: CPU of a token over that of plain in the same repetition.
        loaded: memory of the process with all models loaded and used once, on an empty cache, bytes.
    """

    method: str
    work: Callable[[], Cost]
    loaded: int
    costs: list[Cost] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def cells(self) -> dict[str, float]:
        """Return what the table says of it."""
        one = self.costs[-1]
        cpu = sum(cost.cpu for cost in self.costs)
        return {
            "tokens": one.tokens_each,
            "forwards": one.forwards_each,
            "cpu": statistics.median(self.ratios),
            "repetitions": len(self.costs),
            "memory": max(cost.peak for cost in self.costs) - self.loaded,
            "cache": one.cache,
            **{part: sum(cost.parts[part] for cost in self.costs) / cpu for part in PARTS},
            "bookkeeping": sum(cost.bookkeeping for cost in self.costs) / cpu,
        }


def measure(tokens: int = 16, repeat: int = 5, patience_s: float = 60) -> list[Row]:
    """Measure all methods in turn, ``repeat`` times.

    A row that has taken ``patience_s`` seconds of CPU is not repeated further: its counts are the
    same each time, and a long run is less noisy.
    """
    default, paper = of_length(DEFAULT, tokens), of_length(PAPER, tokens)
    steering = Rain(default.settings.updated(evaluation={"criteria": [POSITIVE_SENTIMENT]}))
    model = default.runtime.writer
    assert isinstance(model, TransformersModel)
    theirs = Generate.embedded()
    paper.runtime.embedder()
    for rain in (default, steering, paper):  # also reads the weights in: a file's pages come when used
        warm(rain)
    theirs.cost(model, CHOSEN[:1], 2)
    with Meter(default):  # an empty cache
        loaded = rss()

    def best_of_8() -> Cost:
        with Meter(steering) as meter:
            made = [best(sample_answers(steering, prompt, 8)) for prompt in CHOSEN]
        return meter.cost(sum(result.usage.output_tokens for result in made))

    methods: dict[str, Callable[[], Cost]] = {
        PLAIN: lambda: plain(default, CHOSEN),
        "transformers' generate, KV cache": lambda: theirs.cost(model, CHOSEN, tokens),
        "best of 8, positive sentiment": best_of_8,
        "RAIN default, harmlessness": lambda: guarded(default, CHOSEN),
        "RAIN default, positive sentiment": lambda: guarded(steering, CHOSEN),
        "RAIN paper (HH)": lambda: guarded(paper, CHOSEN),
    }
    rows = [Row(method, work, loaded) for method, work in methods.items()]
    for repetition in range(repeat):
        for row in rows:
            if sum(cost.cpu for cost in row.costs) < patience_s:
                row.costs.append(row.work())
                row.ratios.append(row.costs[-1].cpu_each / rows[0].costs[-1].cpu_each)
        print(f"table: repetition {repetition + 1} of {repeat}", file=sys.stderr, flush=True)
    return rows
