"""What RAIN is compared with: transformers' own ``generate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.meter import PARTS, Cost, peak, reset_peak, tidy
from rain_llm.models.base import LanguageModel


@dataclass
class Generate:
    """transformers' ``generate`` with its KV cache, on a network of its own."""

    network: Any

    @classmethod
    def embedded(cls) -> Generate:
        """Load the embedded model once more, as anybody would."""
        import torch
        from transformers import AutoModelForCausalLM

        from rain_llm.models.local.loading import quiet_loading
        from tests.servers.unpacked import unpacked_model

        with quiet_loading():
            network: Any = AutoModelForCausalLM.from_pretrained(unpacked_model(), dtype=torch.float32)
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
