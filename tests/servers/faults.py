"""How the faults of a scripted server change what it is asked and what it replies; see ``scripted``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.servers.replies import Json


def asked(body: Json, fault: str | None) -> Json:
    """Return the request as a server with this fault reads it."""
    batch = body.get("prompt") or []
    several = bool(batch) and isinstance(batch[0], list)
    changed: dict[str | None, Callable[[], Json]] = {
        "clip": lambda: {"prompt": [_half(p) for p in batch] if several else _half(batch)},
        "clip_output": lambda: {"max_tokens": max(1, body["max_tokens"] // 2)},
        "ignore_n": lambda: {"n": 1, "prompt": batch[:1] if several else batch},
        "ignore_bias": lambda: {"logit_bias": None},
        "ignore_schema": lambda: {"structured_outputs": None, "json_schema": None},
        "no_labels": lambda: {"logprob_token_ids": None},
    }
    return body | changed[fault]() if fault in changed else body


def told(reply: Json, fault: str | None) -> Json:
    """Return the reply as a server with this fault gives it."""
    for choice in reply["choices"]:
        if fault == "abort":
            choice["finish_reason"] = "abort"
        if fault == "no_ids":
            choice.pop("token_ids", None)
            for place in (choice["logprobs"] or {}).get("content", ()):
                for one in (place, *place.get("top_logprobs", ()), *place.get("top_probs", ())):
                    del one["id"]
    return reply


def _half(prompt: Sequence[int]) -> Sequence[int]:
    return prompt[len(prompt) // 2 :]
