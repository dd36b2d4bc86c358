"""Parameters of other models: what changes nothing is taken, and all else says what to do."""

from __future__ import annotations

from typing import Any

import pytest

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
