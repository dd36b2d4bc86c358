"""The table: what each engine and each method costs on the same prompts, with 1, 8 and 32 texts at once."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from benchmarks.engines import Alone, BestOf8, Engine, Guarded, LlamaServer, Plain
from benchmarks.memory import in_own_process
from benchmarks.meter import PARTS, Cost, endless
from benchmarks.scenarios import DEFAULT, OPENINGS, PAPER, Figure, Options
from rain_llm import POSITIVE_SENTIMENT, RainSettings
from rain_llm.models.local.embedded import embedded_file
from tests.servers.unpacked import unpacked_model

CASES = {"1": (1, 1), "8": (8, 1), "32": (32, 1), "8 branches": (1, 8)}
"""Prompts at once, and branches of each."""

ALONE, SERVER, PLAIN, TRANSFORMERS = (
    "llama.cpp alone",
    "llama-server",
    "Rain.plain",
    "Rain.plain, transformers",
)
ENGINES = (ALONE, SERVER, PLAIN, TRANSFORMERS)
METHODS = (
    "best of 8, positive sentiment",
    "RAIN default, harmlessness",
    "RAIN default, positive sentiment",
    "RAIN paper (HH)",
)
_LEFT_OUT = {
    TRANSFORMERS: ("32", "8 branches"),
    METHODS[0]: ("8", "32", "8 branches"),
    METHODS[1]: ("8 branches",),
    METHODS[2]: ("32", "8 branches"),
    METHODS[3]: ("8", "32", "8 branches"),
}
"""What takes too long, or does not exist."""

FIRST = " ".join(OPENINGS[:24])
"""A prompt of some 200 tokens, to measure the time to the first text."""


@dataclass
class Row:
    """An engine or a method, measured several times.

    Attributes:
        costs: of each repetition of a case. firsts: seconds to the first text.
        memory: most memory of a process that does nothing else, 8 texts at once; 0: unknown.
    """

    method: str
    engine: Engine
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    firsts: list[float] = field(default_factory=list)
    memory: int = 0

    def cells(self, base: Row) -> dict[str, float]:
        """Return the row's figures; CPU is a ratio to ``base`` in the same repetition."""
        ones, last = self.costs["1"], self.costs["1"][-1]
        pairs = zip(ones, base.costs["1"], strict=False)
        return {
            **{f"speed {case}": self.speed(case) for case in CASES if case in self.costs},
            "first": 1e3 * statistics.median(self.firsts),
            "forwards": last.forwards_each,
            "tokens": last.tokens_each,
            "cpu": statistics.median(own.cpu_each / other.cpu_each for own, other in pairs),
            "memory": self.memory,
            "repetitions": len(ones),
            **{part: statistics.median(cost.share(part) for cost in ones) for part in PARTS if last.parts},
        }

    def speed(self, case: str) -> float:
        """Return the median of the tokens a second."""
        return statistics.median(cost.speed for cost in self.costs[case])

    def over(self, other: Row, case: str, cpu: bool = False) -> float:
        """Return the median of the ratios to another row: tokens a second, or tokens a second of CPU."""
        pairs = zip(self.costs[case], other.costs[case], strict=False)
        ratios = ((own.speed / base.speed, base.cpu_each / own.cpu_each) for own, base in pairs)
        return statistics.median(ratio[cpu] for ratio in ratios)


def measured(method: str) -> list[str]:
    """Return the cases that are measured of a row."""
    return [case for case in CASES if case not in _LEFT_OUT.get(method, ())]


def settings_for(options: Options) -> RainSettings:
    """Return the default settings with the model of the options."""
    return DEFAULT.updated(model={"name": str(options.model)}) if options.model else DEFAULT


@contextmanager
def rows(options: Options, names: tuple[str, ...]) -> Generator[list[Row], None, None]:
    """Make the rows; their answers do not end before their length."""
    default = settings_for(options)
    steering = default.updated(evaluation={"criteria": [POSITIVE_SENTIMENT]})
    with ExitStack() as opened:
        ours = Plain(default)
        models = [ours.model]

        def server() -> Engine:
            made = LlamaServer(options.model or embedded_file(), ours.model._threads)
            opened.callback(made.close)
            return made

        def theirs() -> Engine:
            made = Plain(DEFAULT.updated(model={"name": str(unpacked_model())}))
            models.append(made.model)
            return made

        makers: dict[str, Callable[[], Engine]] = {
            ALONE: lambda: Alone(ours.model),
            SERVER: server,
            PLAIN: lambda: ours,
            TRANSFORMERS: theirs,
            METHODS[0]: lambda: BestOf8(steering),
            METHODS[1]: lambda: Guarded(default),
            METHODS[2]: lambda: Guarded(steering),
            METHODS[3]: lambda: Guarded(PAPER.updated(model=default.model)),
        }
        made = [Row(name, makers[name]()) for name in names]
        for model in models:
            opened.enter_context(endless(model))
        yield made


def measure(
    options: Options, tokens: int = 32, methods: bool = True, patience_s: float = 12
) -> tuple[list[Row], list[Figure]]:
    """Measure all rows in turn, several times; a case that has taken ``patience_s`` is not repeated."""
    names = (*ENGINES, *(METHODS if methods else ()))
    if options.model:
        names = tuple(name for name in names if name != TRANSFORMERS)
    with rows(options, names) as found:
        for row in found:  # libraries start their threads, and pages are read in
            row.engine.write(OPENINGS[:2], 2)
        for repetition in range(options.repeat):
            for row in found:
                for case in measured(row.method):
                    prompts, branches = CASES[case]
                    done = row.costs.setdefault(case, [])
                    if sum(cost.wall for cost in done) < patience_s:
                        done.append(row.engine.write(OPENINGS[:prompts], tokens, branches))
                if sum(row.firsts) < patience_s:
                    row.firsts.append(row.engine.first(FIRST))
            print(f"table: repetition {repetition + 1} of {options.repeat}", file=sys.stderr, flush=True)
        for row in found:
            if row.method == SERVER:
                row.memory = row.costs["8"][-1].peak
            elif row.method != ALONE:
                given = ("--model", str(options.model)) if options.model else ()
                row.memory = int(in_own_process("row", "--row", row.method, *given)["peak"])
    return found, figures(found, options)


def figures(found: list[Row], options: Options) -> list[Figure]:
    """Compare the engines, and hold them against the bars."""
    row = {one.method: one for one in found}
    ours = row[PLAIN]
    made = []
    for case in CASES:
        made.append(
            Figure("engines", f"{case}: {PLAIN} over {ALONE}", ours.over(row[ALONE], case), 0.92, True)
        )
        bar = 1.2 if case.startswith("8") else None
        made.append(
            Figure("engines", f"{case}: {PLAIN} over {SERVER}", ours.over(row[SERVER], case), bar, True)
        )
        for other in (ALONE, SERVER):
            what = f"{case}: {PLAIN} over {other}, a second of CPU"
            made.append(Figure("engines", what, ours.over(row[other], case, cpu=True)))
    for case in ("1", "8"):
        share = statistics.median(cost.outside for cost in ours.costs[case])
        made.append(
            Figure("engines", f"{case}: Python's share of the time", share, 0.02 if options.model else 0.08)
        )
    return made
