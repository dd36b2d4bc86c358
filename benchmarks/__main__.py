"""What an answer costs: plain generation, the default search and the paper's, on the embedded model.

    python -m benchmarks [--tokens 24] [--seed 0]

Counts are exact and repeatable. CPU time is given only as a ratio within this run: seconds of one
machine say nothing about another.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rain_llm import POSITIVE_SENTIMENT, Rain, RainResult, RainSettings
from rain_llm.models.transformers import TransformersModel

PROMPTS = (
    "I think this film is",
    "The restaurant on the corner has",
    "When the train arrived, the passengers",
    "My neighbour knocked on the door and said",
)


@dataclass
class Cost:
    """What a method cost for all prompts together."""

    method: str
    output: int
    tokens: int
    judged: int
    forwards: int
    cpu: float


def measure(method: str, model: TransformersModel, work: Callable[[], list[RainResult]]) -> Cost:
    """Run a method on an empty cache; count what went through the network."""
    model.cache.clear()
    tokens, forwards, began = model.model_tokens, model.forwards, time.process_time()
    results = work()
    cpu = time.process_time() - began
    return Cost(
        method,
        sum(r.usage.output_tokens for r in results),
        model.model_tokens - tokens,
        sum(r.usage.evaluation_tokens for r in results),
        model.forwards - forwards,
        cpu,
    )


def against_generate(rain: Rain, model: TransformersModel, tokens: int = 48) -> tuple[float, float]:
    """Time our plain generation over transformers' own ``generate``, a token: (wall, CPU).

    Median of five pairs in turn, after a warm-up of both.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rain_llm.models.embedded import embedded_model

    network = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    ids = torch.tensor([model.encode(PROMPTS[0])])
    settings = rain.settings.updated(generation={"max_new_tokens": tokens})

    def theirs() -> int:
        network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )
        return tokens

    def ours() -> int:
        model.cache.clear()
        return rain.plain(PROMPTS[0], settings=settings).usage.output_tokens

    def a_token(work: Callable[[], int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        began = time.perf_counter(), time.process_time()
        made = work()
        return np.array([time.perf_counter() - began[0], time.process_time() - began[1]]) / made

    theirs(), ours()
    wall, cpu = np.median([a_token(ours) / a_token(theirs) for _ in range(5)], axis=0)
    return float(wall), float(cpu)


def main() -> None:
    """Measure and print one Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    changes = {"max_new_tokens": options.tokens, "seed": options.seed}
    default = Rain(RainSettings().updated(generation=changes))
    steering = Rain(default.settings.updated(evaluation={"criteria": [POSITIVE_SENTIMENT]}))
    paper = Rain(RainSettings.preset("paper").updated(generation=changes))
    model = default.runtime.writer
    assert isinstance(model, TransformersModel)
    rows = [
        measure("plain", model, lambda: [default.plain(p) for p in PROMPTS]),
        measure("RAIN default, harmlessness", model, lambda: [default.generate(p) for p in PROMPTS]),
        measure("the same, 4 at once", model, lambda: default.generate_batch(PROMPTS)),
        measure("RAIN default, positive sentiment", model, lambda: [steering.generate(p) for p in PROMPTS]),
        measure("the same, 4 at once", model, lambda: steering.generate_batch(PROMPTS)),
        measure("RAIN paper (HH), 4 at once", model, lambda: paper.generate_batch(PROMPTS)),
    ]
    plain = rows[0].cpu / rows[0].output
    print(
        "| method | tokens through the model per output token | of these judging | forwards | CPU / plain |"
    )
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.method} | {row.tokens / row.output:.1f} | {row.judged / max(1, row.tokens):.0%} "
            f"| {row.forwards / row.output:.2f} | {row.cpu / row.output / plain:.2f} |"
        )
    wall, cpu = against_generate(default, model)
    print(f"\nPlain over transformers' generate, a token: wall {wall:.2f}, CPU {cpu:.2f} (median of 5).")


if __name__ == "__main__":
    main()
