"""Parameters by the names that OpenAI's models have for them, and what of theirs means nothing here.

Code that was written for another chat model should run as it is, and never do silently what it did not ask
for: what changes no answer is taken and left, anything else is an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

ALIASES = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "model_name": "model",
    "openai_api_key": "api_key",
    "openai_api_base": "base_url",
    "api_base": "base_url",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
"""Other names of parameters."""

_PENALTY = "it has no such penalty; leave it out"
_ONE_ANSWER = "a call has one answer; for more, give the same message to batch several times"
_NO_LOGPROBS = "log-probabilities do not leave the engine; leave it out"
_UNCHANGED: dict[str, tuple[Collection[object], str]] = {
    "n": ((1,), _ONE_ANSWER),
    "best_of": ((1,), _ONE_ANSWER),
    "logprobs": ((False, 0), _NO_LOGPROBS),
    "top_logprobs": ((0,), _NO_LOGPROBS),
    "frequency_penalty": ((0,), _PENALTY),
    "presence_penalty": ((0,), _PENALTY),
    "repetition_penalty": ((1,), _PENALTY),
    "logit_bias": (({},), "tokens cannot be favoured; write criteria that judge the answer"),
    "extra_body": (({},), "name each parameter itself"),
    "echo": ((False,), "the prompt is not repeated; leave it out"),
    "parallel_tool_calls": ((True,), "give it to bind_tools"),
    "tools": (([],), "give them to bind_tools of a ChatRain"),
    "tool_choice": (("auto",), "give it to bind_tools of a ChatRain"),
    "response_format": ((), "give the schema to with_structured_output of a ChatRain"),
    "use_responses_api": ((False,), "leave it out"),
}
"""Parameters with the values that ask for nothing; and what to do about others."""

_LEFT = {
    *("stream", "streaming", "stream_usage", "stream_options", "strict", "store", "metadata", "service_tier"),
    *("user", "safety_identifier", "prompt_cache_key", "tiktoken_model_name"),
}
"""What changes no answer, whatever it is: streams and usage are always there, schemas are always kept."""

_MORE = "model_kwargs"


def understood(given: Mapping[str, Any], known: Collection[str], who: str) -> dict[str, Any]:
    """Return parameters by our names, without those that ask for nothing.

    Args:
        given: by whatever names.
        known: names that stay as they are.
        who: takes them, for errors.

    Raises:
        ValueError: one asks for what there is not, or two are the same.
    """
    ours: dict[str, Any] = {}
    for name, value in _flat(given, known).items():
        own = name if name in known else ALIASES.get(name, name)
        if own in ours and own != name and value is not None and ours[own] not in (None, value):
            raise ValueError(f"{name} and {own} are the same parameter of {who}: give one of them")
        if own not in known and (name in _LEFT or _asks_for_nothing(name, value, who)):
            continue
        if own == name or value is not None:
            ours[own] = value
    return ours


def _flat(given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return parameters with those in ``model_kwargs`` beside the others, our own names first."""
    flat = {name: value for name, value in given.items() if name != _MORE}
    for name, value in dict(given.get(_MORE) or {}).items():
        if name in flat:
            said = name if name in {*known, *ALIASES, *_UNCHANGED} else "a parameter"
            raise ValueError(f"{said} is given twice, once in {_MORE}: give it once")
        flat[name] = value
    return {name: flat[name] for name in sorted(flat, key=lambda name: name not in known)}


def _asks_for_nothing(name: str, value: object, who: str) -> bool:
    if name not in _UNCHANGED:
        return False
    values, remedy = _UNCHANGED[name]
    if value is None or value in values:
        return True
    raise ValueError(f"{name} asks for what {who} does not do: {remedy}")
