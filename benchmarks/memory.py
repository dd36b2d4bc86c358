"""Memory of one process: many answers at once, many in a row, or a row of the table. Prints one line of JSON.

python -m benchmarks.memory at-once | in-a-row | row [--row NAME]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.meter import cache_bytes, endless, peak, reset_peak, rss, tidy
from benchmarks.scenarios import BENIGN, OPENINGS, PROMPTS, Options, of_length
from rain_llm import RainSettings


def at_once(tokens: int = 512) -> dict[str, float]:
    """Eight searches at once, by the model's own verdicts; no answer ends before ``tokens`` tokens.

    The budget is the default's. It is for keys and values; the peak holds the work of a pass as well.
    """
    rain = of_length(RainSettings(on_unsafe="best"), tokens)
    budget = rain.settings.model.kv_cache_bytes
    model: Any = rain.runtime.writer
    tidy()
    reset_peak()
    loaded = rss()
    with endless(model):
        results = rain.generate_batch(PROMPTS + BENIGN)
    return {
        "loaded": loaded,
        "peak": peak() - loaded,
        "cache": cache_bytes(model),
        "budget": budget,
        "longest": max(result.usage.output_tokens for result in results),
        "iterations": sum(result.usage.iterations for result in results),
    }


def in_a_row(
    requests: int = 500, tokens: int = 4, budget: int = 16 << 20, settled: int = 50
) -> dict[str, float]:
    """One short answer after another, on a cache that is soon full: what grows then is a leak."""
    rain = of_length(RainSettings(model={"kv_cache_bytes": budget}, on_unsafe="best"), tokens)
    sizes = []
    for i in range(requests):
        rain.generate(f"{i}. {PROMPTS[i % len(PROMPTS)]}")
        sizes.append(rss())
    before = sizes[min(settled, requests) - 1]
    return {
        "requests": requests,
        "settled": before,
        "end": sizes[-1],
        "growth": (sizes[-1] - before) / before,
        "budget": budget,
    }


def row(name: str, model: Path | None) -> dict[str, float]:
    """One row of the table: short texts, as many at once as it writes, at most 8."""
    from benchmarks.table import measured, rows

    with rows(Options(model=model), (name,)) as (one,):
        one.engine.write(OPENINGS[: 8 if "8" in measured(name) else 1], 8)
    return {"peak": peak()}


def in_own_process(name: str, *arguments: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", name, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("at-once", "in-a-row", "row"))
    parser.add_argument("--tokens", type=int, default=512, help="at-once: length of the answers")
    parser.add_argument("--requests", type=int, default=500, help="in-a-row: how many")
    parser.add_argument("--row", help="row: its name")
    parser.add_argument("--model", type=Path, help="row: a GGUF file")
    options = parser.parse_args()
    if options.name == "row":
        found = row(options.row, options.model)
    else:
        found = at_once(options.tokens) if options.name == "at-once" else in_a_row(options.requests)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
