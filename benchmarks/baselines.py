"""What RAIN is compared with: best-of-N at the same criterion, and transformers' own ``generate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from benchmarks.meter import PARTS, Cost, peak, reset_peak, tidy
from rain_llm import Rain
from rain_llm.evaluation import SelfEvaluator, Subject
from rain_llm.models.base import LanguageModel
from rain_llm.types import Sample, Score, Verdict

SENTENCE_TOKENS = 24
STOP = (".", "!", "?", "\n")


def best_of(
    rain: Rain,
    prompts: Sequence[str],
    n: int,
    seed: int,
    tokens: int = SENTENCE_TOKENS,
    stop: tuple[str, ...] = STOP,
    evaluator: SelfEvaluator | None = None,
) -> list[tuple[str, int, int, float]]:
    """Sample n texts for each prompt, return the one that the model itself likes best.

    Args:
        tokens, stop: a text ends after so many tokens, or before the first of these strings.
        evaluator: one that knows its calibration; a new one finds it first.

    Returns:
        For each prompt the text, tokens through the model, tokens of the text, and its score.
    """
    runtime = rain.runtime
    writer = runtime.writer
    evaluator = evaluator or SelfEvaluator(rain.settings.evaluation, runtime.judge)
    asked = [Sample(rain.encode(p), n, tokens, seed * 1009 + i, ends=stop) for i, p in enumerate(prompts)]
    made = []
    for prompt, reply in zip(prompts, writer.sample(asked), strict=True):
        texts = [_first(writer.decode(c.tokens), stop) for c in reply.continuations]
        cost = reply.model_tokens
        asking = evaluator.judge(Subject(prompt), texts)
        replies = runtime.judge.score(cast("Sequence[Score]", next(asking)))
        cost += sum(r.model_tokens for r in replies)
        try:
            asking.send(replies)
        except StopIteration as stopped:  # a judge asks one round
            verdicts: list[Verdict] = stopped.value
        best = max(range(n), key=lambda i: verdicts[i].score)
        made.append((texts[best], cost, len(reply.continuations[best].tokens), verdicts[best].score))
    return made


def _first(text: str, stop: Sequence[str]) -> str:
    places = [place for end in stop if (place := text.find(end)) >= 0]
    return text[: min(places)] if places else text


@dataclass
class Generate:
    """transformers' ``generate`` with its KV cache, on a network of its own."""

    network: Any

    @classmethod
    def embedded(cls) -> Generate:
        """Load the embedded model once more, as anybody would."""
        import torch
        from transformers import AutoModelForCausalLM

        from rain_llm.models.embedded import embedded_model, quiet_loading

        with quiet_loading():
            network: Any = AutoModelForCausalLM.from_pretrained(embedded_model(), dtype=torch.float32)
        return cls(network.eval())

    def cost(self, model: LanguageModel, prompts: Sequence[str], tokens: int) -> Cost:
        """Sample exactly ``tokens`` tokens for each prompt, one prompt after another."""
        import torch

        tidy()
        reset_peak()
        read = cache = 0
        began = time.perf_counter(), time.process_time()
        for prompt in prompts:
            ids = torch.tensor([model.start + model.encode(prompt)])
            made = self.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                return_dict_in_generate=True,
            )
            read += ids.shape[1] + tokens - 1  # the last token is never read
            layers = made.past_key_values.layers
            cache = max(cache, sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)))
        cpu = time.process_time() - began[1]
        return Cost(
            tokens * len(prompts),
            read,
            tokens * len(prompts),
            cpu,
            time.perf_counter() - began[0],
            dict.fromkeys(PARTS, 0.0) | {"simulate": cpu},
            peak=peak(),
            cache=cache,
        )
