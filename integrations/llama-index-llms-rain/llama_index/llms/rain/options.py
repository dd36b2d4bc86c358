"""Arguments by the names that LlamaIndex's other models and OpenAI's API have for them.

What only repeats a default (``n=1``, ``logprobs=False``) or changes no answer (``user``) is dropped.
All else that is not known is an error, which says what to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rain_llm import PromptError, RainSettings, SettingsError
from rain_llm.redaction import nearest, shown_name

Place = tuple[str, ...]

GENERATION: Mapping[str, Place] = {
    "temperature": ("generation", "temperature"),
    "max_tokens": ("generation", "max_new_tokens"),
    "top_p": ("generation", "top_p"),
    "top_k": ("generation", "top_k"),
    "seed": ("generation", "seed"),
    "stop": ("generation", "stop"),
    "timeout": ("search", "deadline_s"),
    "is_chat_model": ("generation", "chat_template"),
}
"""What a model or a single call may be given, and where the settings hold it."""

ENGINE: Mapping[str, Place] = {
    "model": ("model", "name"),
    "api_base": ("model", "base_url"),
    "api_key": ("model", "api_key"),
    "max_retries": ("model", "limits", "attempts"),
}
"""What only a model may be given: it decides which engine there is."""

ALIASES: Mapping[str, str] = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
    "base_url": "api_base",
    "model_name": "model",
}

_ANY = object()
_HARMLESS: Mapping[str, Any] = {
    **dict.fromkeys(("user", "metadata", "stream_options", "service_tier", "extra_headers"), _ANY),
    **dict.fromkeys(("safety_identifier", "prompt_cache_key", "reuse_client"), _ANY),
    **dict.fromkeys(("strict", "stream", "streaming"), _ANY),
    **dict.fromkeys(("n", "best_of"), (1,)),
    **dict.fromkeys(("logprobs", "top_logprobs", "echo", "store", "json_mode"), (0,)),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), (0,)),
    "repetition_penalty": (1,),
    **dict.fromkeys(("logit_bias", "extra_body"), ({},)),
    "modalities": (["text"],),
    "is_function_calling_model": (True,),
}
_PENALTIES = "how words repeat is not weighed; temperature, top_k and top_p choose among words"
_REMEDIES: Mapping[str, str] = {
    **dict.fromkeys(("n", "best_of"), "a call gives one answer: call again, with another seed"),
    **dict.fromkeys(
        ("logprobs", "top_logprobs"), "no log-probabilities are given out: raw['verdict'] has the judge's"
    ),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), _PENALTIES),
    "logit_bias": "words are not forbidden one by one; a criterion judges what they say",
    "functions": "give tools=, as chat_with_tools does",
    "function_call": "give tool_choice=, as chat_with_tools does",
    "json_mode": "give schema= (a JSON schema), or use structured_predict",
    "modalities": "only text can be judged",
    "is_function_calling_model": "it calls the functions that it is given; give none, or use a ReActAgent",
    **dict.fromkeys(
        ("http_client", "async_http_client", "default_headers", "organization", "api_version"),
        "servers are asked by rain itself: give api_base and api_key",
    ),
    "device_map": "give settings=RainSettings(model={'device': ...})",
    "tokenizer_name": "give settings=RainSettings(model={'tokenizer': ...})",
    **dict.fromkeys(("model_kwargs", "generate_kwargs"), "give its parameters one by one"),
}


def known_only(options: Mapping[str, Any], known: Collection[str], rest: str) -> dict[str, Any]:
    """Return options under our names, without those that change nothing.

    Args:
        options: by name; None means not given, but for ``seed``.
        known: the names that are taken.
        rest: says where all else is to be given.

    Raises:
        SettingsError: one is unknown, or given under two names.
    """
    taken: dict[str, Any] = {}
    for name, value in options.items():
        if value is None and name != "seed":
            continue
        ours = ALIASES.get(name, name)
        if ours in known:
            if ours in taken:
                raise SettingsError(f"{name} and {ours} mean the same: give one of them")
            taken[ours] = value
        elif name not in _HARMLESS or not (_HARMLESS[name] is _ANY or value in _HARMLESS[name]):
            raise SettingsError(_unknown(name, known, rest))
    return taken


def _unknown(name: str, known: Iterable[str], rest: str) -> str:
    if name in _REMEDIES:
        return f"'{name}' cannot be given: {_REMEDIES[name]}"
    near = nearest(name, known)
    hint = f"did you mean '{near}'? " if near else ""
    return f"unknown argument '{shown_name(name, known)}': {hint}{rest}"


def updated(settings: RainSettings, given: Mapping[str, Any]) -> RainSettings:
    """Return settings with what was given by name.

    Raises:
        SettingsError: a value is out of bounds.
    """
    if not given:
        return settings
    sections: dict[str, Any] = {}
    for name, value in given.items():
        *path, last = {**GENERATION, **ENGINE}.get(name) or ("generation", name)
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value + 1 if name == "max_retries" else value
    try:
        return settings.updated(**sections)
    except SettingsError as error:
        raise SettingsError(_by_our_names(str(error), given)) from None


def _by_our_names(reason: str, given: Iterable[str]) -> str:
    """Return an error of the settings that names what was given instead of where the settings hold it."""
    for name in given:
        reason = reason.replace(".".join({**GENERATION, **ENGINE}.get(name, ())) or name, name)
    return reason.replace("in the changed settings: ", "")


def schema_in(response_format: object) -> Any:
    """Return the schema that OpenAI's ``response_format`` asks for; None: it asks for text.

    Raises:
        PromptError: it asks for nothing known.
    """
    match response_format:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return schema
    raise PromptError(
        f"response_format={response_format!r:.80} asks for nothing known: give schema= (a JSON schema), or "
        "{'type': 'json_schema', 'json_schema': {'schema': ...}}"
    )
