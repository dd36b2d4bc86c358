"""Ask SGLang: as vLLM, except for the log-probabilities of given tokens. **Not tested**.

By its documentation and source, ``/v1/completions`` takes token ids and returns token ids. It ignores
``logprob_token_ids``, and its log-probabilities include a logit bias; but its own ``/generate`` accepts
``token_ids_logprob``. Seeds need ``--enable-deterministic-inference``, cached tokens
``--enable-cache-report``.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from rain_llm.models.servers.dialect import Ask, Body, Contexts, Cost, SampleRequest, Weighed, together
from rain_llm.models.servers.reading import Node, Unreadable, token_ids
from rain_llm.models.servers.replies import nats
from rain_llm.models.servers.vllm import Vllm
from rain_llm.types import TokenIds


@dataclass(frozen=True)
class Sglang(Vllm):
    """SGLang, by its documentation."""

    async def weigh(
        self, ask: Ask, contexts: Contexts, cost: Cost, relative: Set[TokenIds] = frozenset()
    ) -> Weighed:
        """Ask for each prefix with a request of its own."""
        asked = (self._labels(ask, prefix, wanted, cost) for prefix, wanted in contexts.items())
        found = dict(zip(contexts, await together(asked), strict=True))
        cost.forwards += 1
        return found

    def _held_to(self, sampling: SampleRequest) -> Body:
        return {"json_schema": sampling.schema}

    async def _labels(
        self, ask: Ask, prefix: TokenIds, wanted: frozenset[int], cost: Cost
    ) -> dict[int, float]:
        body = {
            "input_ids": list(prefix),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": -1,
            "token_ids_logprob": sorted(wanted),
        }

        def read(reply: Any) -> dict[int, float]:
            reported = Node(reply)["meta_info"]
            places = reported["output_token_ids_logprobs"].items()
            found: dict[int, float] = {}
            for place in places[0].items() if places else ():
                logprob, token = ([item.value for item in place.items()] + [None, None])[:2]
                found[token_ids([token], self.size, place.place)[0]] = nats(logprob)
            if set(found) != wanted:
                raise Unreadable("returned no log-probabilities of the tokens that were asked for")
            details = {"cached_tokens": reported["cached_tokens"].value}
            usage = {"prompt_tokens": reported["prompt_tokens"].value, "prompt_tokens_details": details}
            cost.charge_prompt({"usage": usage}, len(prefix))
            return found

        logprobs: dict[int, float] = await ask(body, read, "/generate")
        return logprobs
