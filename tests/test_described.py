"""What is known of a model that nobody has loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rain_llm import Rain, RainSettings
from rain_llm.models.described import known_of
from rain_llm.models.scripted import ScriptedModel, script
from rain_llm.settings import ModelSettings


@pytest.mark.parametrize(
    "config, length",
    [
        ('{"max_position_embeddings": 2048}', 2048),
        ('{"n_positions": 1024}', 1024),
        ('{"text_config": {"max_position_embeddings": 512}}', 512),
        ('{"max_position_embeddings": "many", "text_config": 5}', None),
        ("{}", None),
        ("[]", None),
        ("{", None),
    ],
)
def test_a_folder_tells_by_its_config(tmp_path: Path, config: str, length: int | None):
    (tmp_path / "config.json").write_text(config)
    assert known_of(ModelSettings(name=str(tmp_path))) == (str(tmp_path), length)
    assert known_of(ModelSettings(name=str(tmp_path), revision="v2")) == (f"{tmp_path}@v2", length)


def test_what_is_nowhere_is_not_known():
    assert known_of(ModelSettings(name="some/model")) == ("some/model", None)
    served = ModelSettings(base_url=("http://localhost:1",))
    assert known_of(served) == ("", None)
    told = served.model_copy(update={"name": "served", "context_length": 2048})
    assert known_of(told) == ("served", 2048)


def test_an_engine_tells_without_loading():
    assert (Rain().model_name, Rain().context_length) == ("embedded:SmolLM2-135M-Instruct", 8192)
    ready = Rain(model=ScriptedModel(script({}), context_length=99))
    assert (ready.model_name, ready.context_length) == ("scripted", 99)
    unknown = Rain(RainSettings().updated(model={"name": "some/model"}))
    assert (unknown.model_name, unknown.context_length) == ("some/model", None)
