"""Parameters of other models: what changes nothing is taken, and all else says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from rain_llm import SettingsError
from rain_llm.chat import Parameters
from rain_llm.chat.habits import ALIASES, remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("n", 1), ("logprobs", False), ("top_logprobs", None), ("frequency_penalty", 0.0)],
        *[("repeat_penalty", 1.0), ("logit_bias", {}), ("modalities", ["text"]), ("user", object())],
        *[("http_client", None), ("default_headers", None), ("stream_options", {})],
    ],
)
def test_what_changes_no_answer_needs_no_remedy(name: str, value: Any) -> None:
    assert remedy(name, value) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("n", 2), ("n", "1"), ("n", [1]), ("logprobs", True), ("presence_penalty", 0.5), ("organization", "o")],
)
def test_what_asks_for_something_has_one(name: str, value: Any) -> None:
    assert remedy(name, value)


def test_what_no_model_has_is_unknown() -> None:
    assert remedy("modle", None) is None
    assert not any(remedy(name, None) is not None for name in ALIASES)


TAKEN = Parameters("A", others={"tools": (([],), "give them to the chat")})


def test_parameters_are_known_under_our_names() -> None:
    given = {"max_completion_tokens": 7, "user": "me", "n": 1, "tools": [], "seed": None}
    assert TAKEN.known(given, ["max_tokens", "seed"]) == {"max_tokens": 7, "seed": None}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model", r"model is the model's, not a call's: give it to A\(...\)"),
        ("iterations", r"'iterations' is a setting: give settings=RainSettings\(search="),
        ("device", r"'device' is the model's, not a call's: give it to A\(settings=RainSettings\(model="),
        ("sead", "'sead': did you mean 'seed'.*settings=RainSettings"),
        ("tools", "tools asks for what A does not do: give them to the chat"),
        ("n", "a call has one answer"),
    ],
)
def test_a_parameter_that_is_not_known_says_where_it_belongs(name: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        TAKEN.known({name: 7}, ["seed"])
