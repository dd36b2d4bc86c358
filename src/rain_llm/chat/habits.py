"""Parameters of other models: their names here, which change no answer, and a remedy for the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping

ALIASES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "num_predict": "max_tokens",
    "model_name": "model",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
"""Other names of parameters."""

_LEFT = {
    *("stream", "streaming", "stream_usage", "stream_options", "strict", "store", "metadata", "service_tier"),
    *("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "tiktoken_model_name"),
    *("extra_headers", "reuse_client", "disabled_params", "include_response_headers"),
}
"""Parameters that change no answer, with any value: streams and usage are always available."""

_ONE_ANSWER = "a call has one answer; for more, call it several times"
_NO_LOGPROBS = "log-probabilities do not leave the engine; leave it out"
_PENALTY = "there is no such penalty; leave it out, or choose words by temperature, top_k and top_p"
_OWN_CLIENT = "servers are asked by rain itself: give base_url (api_base in LlamaIndex) and api_key"
_ONE_BY_ONE = "name each parameter itself"
_OTHERS: Mapping[str, tuple[Collection[object], str]] = {
    "n": ((1,), _ONE_ANSWER),
    "best_of": ((1,), _ONE_ANSWER),
    "logprobs": ((0,), _NO_LOGPROBS),
    "top_logprobs": ((0,), _NO_LOGPROBS),
    "frequency_penalty": ((0,), _PENALTY),
    "presence_penalty": ((0,), _PENALTY),
    "repetition_penalty": ((1,), _PENALTY),
    "repeat_penalty": ((1,), _PENALTY),
    "logit_bias": (({},), "tokens cannot be favoured; write criteria that judge the answer"),
    "echo": ((0,), "the prompt is not repeated; leave it out"),
    "modalities": ((["text"],), "only text can be judged"),
    "extra_body": (({},), _ONE_BY_ONE),
    "generate_kwargs": (({},), _ONE_BY_ONE),
    "model_kwargs": (({},), _ONE_BY_ONE),
    "pipeline_kwargs": (({},), _ONE_BY_ONE),
    "default_headers": ((), _OWN_CLIENT),
    "http_client": ((), _OWN_CLIENT),
    "async_http_client": ((), _OWN_CLIENT),
    "http_async_client": ((), _OWN_CLIENT),
    "organization": ((), _OWN_CLIENT),
    "openai_organization": ((), _OWN_CLIENT),
    "api_version": ((), _OWN_CLIENT),
    "device_map": ((), "give settings=RainSettings(model={'device': ...})"),
    "tokenizer_name": ((), "give settings=RainSettings(model={'tokenizer': ...})"),
    "use_responses_api": ((0,), "there is one API; leave it out"),
}
"""Parameters with the values that change nothing, and a remedy for all others."""


def remedy(name: str, value: object) -> str | None:
    """Return the remedy for a parameter of another model.

    Returns:
        "": it changes no answer. None: it is unknown.
    """
    if name in _LEFT:
        return ""
    if name not in _OTHERS:
        return None
    harmless, what = _OTHERS[name]
    return "" if value is None or value in harmless else what
