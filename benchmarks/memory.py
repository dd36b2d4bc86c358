"""Memory of one process: many answers at once, and many in a row. Prints one line of JSON.

python -m benchmarks.memory at-once | in-a-row
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.meter import peak, reset_peak, rss, tidy
from benchmarks.networks import never_say
from benchmarks.scenarios import BENIGN, PROMPTS, of_length
from rain_llm import RainSettings


def at_once(tokens: int = 512) -> dict[str, float]:
    """Eight searches at once, by the model's own verdicts; no answer ends before ``tokens`` tokens.

    The budget is the default's. It is for keys and values; the peak holds the work of a pass as well.
    """
    rain = of_length(RainSettings(on_unsafe="best"), tokens)
    budget = rain.settings.model.kv_cache_bytes
    model: Any = rain.runtime.writer
    never_say(model._network, model.text.special)
    tidy()
    reset_peak()
    loaded = rss()
    results = rain.generate_batch(PROMPTS + BENIGN)
    return {
        "loaded": loaded,
        "peak": peak() - loaded,
        "cache": len(model.cache) * model.cache.bytes_per_token,
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


def main() -> None:
    """Measure one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=("at-once", "in-a-row"))
    parser.add_argument("--tokens", type=int, default=512, help="at-once: length of the answers")
    parser.add_argument("--requests", type=int, default=500, help="in-a-row: how many")
    options = parser.parse_args()
    found = at_once(options.tokens) if options.name == "at-once" else in_a_row(options.requests)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
