"""How SGLang is spoken to: as vLLM, but for labels. By its documentation and source; **not tried**.

Its ``/v1/completions`` takes token ids and gives them back. It knows no ``logprob_token_ids``, and a
log-probability that it tells beside a logit bias holds the bias; but its own ``/generate`` takes
``token_ids_logprob``. Seeds need ``--enable-deterministic-inference``, cached tokens
``--enable-cache-report``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rain_llm.models.dialect import Ask, Bill, Body, Contexts, Weighed, Wish, as_dict, nats, together
from rain_llm.models.replicas import Unreadable
from rain_llm.models.vllm import Vllm
from rain_llm.types import TokenIds


@dataclass(frozen=True)
class Sglang(Vllm):
    """SGLang, by its documentation."""

    async def weigh(self, ask: Ask, contexts: Contexts, bill: Bill) -> Weighed:
        """Ask about each prefix by a request of its own."""
        asked = (self._labels(ask, prefix, wanted, bill) for prefix, wanted in contexts.items())
        found = dict(zip(contexts, await together(asked), strict=True))
        bill.forwards += 1
        return found

    def _held_to(self, wish: Wish) -> Body:
        return {"json_schema": wish.schema}

    async def _labels(
        self, ask: Ask, prefix: TokenIds, wanted: frozenset[int], bill: Bill
    ) -> dict[int, float]:
        body = {
            "input_ids": list(prefix),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": -1,
            "token_ids_logprob": sorted(wanted),
        }

        def read(reply: Any) -> dict[int, float]:
            told = as_dict(as_dict(reply).get("meta_info"))
            places = told.get("output_token_ids_logprobs") or [[]]
            found = {int(token): nats(logprob) for logprob, token, *_ in places[0] or ()}
            if set(found) != wanted:
                raise Unreadable("gave no log-probabilities of the tokens that were asked for")
            details = {"cached_tokens": told.get("cached_tokens")}
            usage = {"prompt_tokens": told.get("prompt_tokens"), "prompt_tokens_details": details}
            bill.charge_prompt({"usage": usage}, len(prefix))
            return found

        logprobs: dict[int, float] = await ask(body, read, "/generate")
        return logprobs
