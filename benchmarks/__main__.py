"""What an answer costs: plain generation, the default search and the paper's, on the embedded model.

    python -m benchmarks [--tokens 24] [--seed 0]

Counts are exact and repeatable. CPU time is given only as a ratio within this run: seconds of one
machine say nothing about another. ``generate`` is transformers' own, with its KV cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

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


def generate(model: TransformersModel, tokens: int) -> float:
    """Return the CPU seconds a token that transformers' own ``generate`` takes."""
    import torch
    from transformers import AutoModelForCausalLM

    from rain_llm.models.embedded import embedded_model

    network = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32).eval()
    began = time.process_time()
    for prompt in PROMPTS:
        ids = torch.tensor([model.encode(prompt)])
        network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
        )
    return (time.process_time() - began) / (tokens * len(PROMPTS))


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
    own = generate(model, options.tokens) / plain
    print(f"| transformers' `generate`, KV cache | | | 1.00 | {own:.2f} |")
    for row in rows:
        print(
            f"| {row.method} | {row.tokens / row.output:.1f} | {row.judged / max(1, row.tokens):.0%} "
            f"| {row.forwards / row.output:.2f} | {row.cpu / row.output / plain:.2f} |"
        )


if __name__ == "__main__":
    main()
