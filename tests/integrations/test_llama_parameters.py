"""RainLLM is made and called as its neighbours are; what cannot be is refused by the name that was given."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings
from llama_index.core.llms import ChatMessage
from llama_index.llms.rain import RainLLM
from llama_index.llms.rain.testing import CHATS, COMPLETIONS, _aread
from pydantic import ValidationError

from rain_llm import Rain, RainSettings, SettingsError
from rain_llm.models.scripted import ScriptedModel
from rain_llm.requests import Sample
from tests.integrations.llama_scripts import SETTINGS, opinion, says

PROMPT = "Dear neighbour,"
CHAT = [ChatMessage(PROMPT)]
SERVER = "http://127.0.0.1:9"


def scripted(settings: RainSettings = SETTINGS, **parameters: Any) -> RainLLM:
    model = ScriptedModel(says({PROMPT: {f" a splendid {i}": 1.0 for i in range(99)}}), opinion)
    return RainLLM(rain=Rain(settings, model=model), **parameters)


def asked(llm: RainLLM, **options: Any) -> Sample:
    """Return what the writer was asked first."""
    llm.complete(PROMPT, **options)
    assert llm.rain is not None and isinstance(llm.rain.runtime.writer, ScriptedModel)
    requests = llm.rain.runtime.writer.requests
    sample = next(request for request in requests if isinstance(request, Sample))
    requests.clear()
    return sample


# --- made as the neighbours are --------------------------------------------------------------------------


def test_the_neighbours_names() -> None:
    llm = RainLLM(
        model="some/model",
        temperature=0.1,
        max_tokens=64,
        top_p=0.9,
        top_k=40,
        seed=7,
        stop=["\n"],
        timeout=30,
        api_base=f"{SERVER}/v1",
        api_key="sk-1",
        max_retries=5,
        context_window=2048,
        system_prompt="Be brief.",
        additional_kwargs={"user": "me"},
    )
    assert llm.settings == RainSettings().updated(
        model={
            "name": "some/model",
            "base_url": SERVER,
            "api_key": "sk-1",
            "limits": {"attempts": 6},
        },
        generation={
            "temperature": 0.1,
            "max_new_tokens": 64,
            "top_p": 0.9,
            "top_k": 40,
            "seed": 7,
            "stop": ["\n"],
        },
        search={"deadline_s": 30},
    )
    assert (llm.temperature, llm.max_tokens, llm.timeout) == (0.1, 64, 30)
    Settings.llm = llm
    assert Settings.llm is llm


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"max_completion_tokens": 9}, {"max_tokens": 9}),  # OpenAI
        ({"max_new_tokens": 9, "model_name": "some/model"}, {"max_tokens": 9, "model": "some/model"}),
        ({"base_url": SERVER, "request_timeout": 9.0}, {"api_base": SERVER, "timeout": 9.0}),  # Ollama
        ({"reuse_client": False, "strict": True, "logprobs": None, "n": 1, "user": "me"}, {}),
        ({"is_function_calling_model": True}, {}),  # OpenAILike
        ({"temperature": None, "max_tokens": None, "api_key": None, "additional_kwargs": {}}, {}),
    ],
)
def test_other_names_and_what_changes_nothing(given: dict[str, Any], ours: dict[str, Any]) -> None:
    assert RainLLM(**given).settings == RainLLM(**ours).settings


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"max_retries": -1}, "max_retries"),
        ({"max_retries": "often"}, "max_retries"),
        ({"max_retries": 1000}, "max_retries"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 11}, "temperature"),
        ({"timeout": 0}, "timeout"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"api_base": "vllm.local"}, r"api_base.*http://host:port"),
        ({"api_key": "sk-1"}, "api_base"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "are the same parameter"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"n": 2}, "several times"),
        ({"logprobs": True}, "logprobs asks for .*log-probabilities"),
        ({"frequency_penalty": 0.5}, "temperature"),
        ({"default_headers": {}}, "api_base"),
        ({"device_map": "auto"}, r"RainSettings\(model="),
        ({"additional_kwargs": {"temprature": 1}}, "did you mean 'temperature'"),
        ({"additional_kwargs": {"temperature": -1}}, "temperature"),
        ({"keep_alive": 5}, "RainSettings"),
        ({"is_function_calling_model": False}, "ReActAgent"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_that_was_given(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        RainLLM(**given)


@pytest.mark.parametrize("name", ["model", "api_base", "api_key", "max_retries"])
def test_a_ready_engine_has_its_model(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} or rain, not both"):
        scripted(SETTINGS, **{name: 1 if name == "max_retries" else SERVER})
    with pytest.raises(SettingsError, match=f"{name} cannot be changed"):
        setattr(scripted(), name, 1)


def test_parameters_reach_the_model() -> None:
    llm = scripted(temperature=0.5, top_k=3, max_tokens=4, additional_kwargs={"top_p": 0.5, "user": "me"})
    assert (sample := asked(llm)).temperature == 0.5
    assert (sample.top_k, sample.top_p) == (3, 0.5)
    assert llm.metadata.num_output == 4
    assert scripted(is_chat_model=True).metadata.is_chat_model
    assert asked(llm, temperature=0.6, top_p=0.7).top_p == 0.7  # a call's own come first
    llm.temperature = 0.8
    assert asked(llm).temperature == llm.settings.generation.temperature == 0.8
    with pytest.raises(SettingsError, match="temperature"):
        llm.temperature = -1
    assert asked(llm, settings=SETTINGS).temperature == 1.0  # all of them are replaced
    twin = llm.model_copy(update={"temperature": 0.3, "guarded": False})
    assert (twin.settings.generation.temperature, twin.guarded) == (0.3, False)
    assert asked(llm).temperature == 0.8
    with pytest.raises(SettingsError, match="api_base cannot be changed"):
        llm.model_copy(update={"api_base": SERVER})


# --- called as the neighbours are -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*COMPLETIONS, *CHATS])
async def test_a_call_s_own_arguments(method: str) -> None:
    question: Any = PROMPT if method in COMPLETIONS else CHAT
    openai = {
        **{"temperature": 0.2, "max_tokens": 4, "seed": 1, "top_p": 1.0, "stop": None, "timeout": 60},
        **{
            "n": 1,
            "user": "me",
            "logprobs": False,
            "top_logprobs": None,
            "stream_options": {},
            "store": False,
        },
        **{"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "metadata": {}},
        **{"response_format": {"type": "text"}, "extra_headers": {}, "parallel_tool_calls": True},
    }
    answer = (await _aread(getattr(scripted(), method)(question, **openai)))[-1]
    expected = SETTINGS.updated(
        generation={"temperature": 0.2, "max_new_tokens": 4, "seed": 1}, search={"deadline_s": 60}
    )
    assert answer.raw["settings_hash"] == expected.hash


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"n": 2}, "n asks for .*: a call has one answer"),
        ({"logprobs": True}, "logprobs asks for"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_tokens"),
        ({"timeout": -1}, "timeout"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "the same parameter"),
        ({"functions": []}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"model": "other"}, "model is the model's, not a call's"),
        ({"max_tokns": 1}, "did you mean 'max_tokens'"),
    ],
)
def test_a_call_refuses_what_it_cannot_do(given: dict[str, Any], reason: str) -> None:
    llm = scripted()
    with pytest.raises(ValueError, match=reason) as caught:
        llm.complete(PROMPT, **given)
    assert "max_new_tokens:" not in str(caught.value) and "deadline_s:" not in str(caught.value)
    assert llm.rain is not None and llm.rain._runtime is None  # refused before any model is loaded


@pytest.mark.parametrize(
    "asked_for",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "integer"}}},
        {"type": "json_object"},
    ],
)
def test_a_response_format_is_held_to(asked_for: dict[str, Any]) -> None:
    document = "7" if "json_schema" in asked_for else '{"a":7}'
    model = ScriptedModel(says({PROMPT: {" Seven": 9.0, document: 1.0}}), opinion)
    llm = RainLLM(rain=Rain(SETTINGS, model=model))
    assert llm.chat(CHAT, response_format=asked_for).message.content == document


# --- seeds ------------------------------------------------------------------------------------------------

UNSEEDED = RainSettings().updated(evaluation=SETTINGS.data("evaluation")["evaluation"])


def draws(llm: RainLLM, **options: Any) -> set[str | None]:
    chats = {llm.chat(CHAT, **options).message.content for _ in range(6)}
    completions = {llm.complete(PROMPT, **options).text for _ in range(6)}
    assert (len(chats) == 1) == (len(completions) == 1)
    return chats


def test_answers_vary_unless_a_seed_is_given() -> None:
    assert len(draws(scripted(UNSEEDED))) > 2
    assert len(draws(scripted(UNSEEDED, max_tokens=8))) > 2  # whatever else was given
    assert len(draws(scripted(UNSEEDED, seed=0))) == 1
    assert len(draws(scripted(UNSEEDED), seed=0)) == 1
    assert len(draws(scripted(UNSEEDED.updated(generation={"seed": 0})))) == 1
    assert len(draws(scripted(UNSEEDED, seed=3), seed=None)) > 2  # a call's own comes first


def test_the_trace_tells_the_seed_that_was_drawn() -> None:
    llm = scripted(UNSEEDED)
    answer = llm.complete(PROMPT)
    assert answer.raw is not None
    assert llm.complete(PROMPT, seed=answer.raw["trace"]["seed"]).text == answer.text


def test_whoever_reads_a_model_draws_as_it_did() -> None:
    for llm, given in ((RainLLM(max_tokens=8), False), (RainLLM(seed=0), True)):
        read = RainLLM.from_dict(json.loads(llm.to_json()))
        for twin in (read, pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):
            assert ("seed" in twin.settings.generation.model_fields_set) is given
            assert twin.settings == llm.settings


# --- written down, and in other processes ---------------------------------------------------------------


def test_what_is_written_down_holds_no_key() -> None:
    llm = RainLLM(api_base=SERVER, api_key="sk-1", model="some/model", temperature=0.5)
    written = [
        str(llm.to_dict()),
        llm.to_json(),
        repr(llm),
        str(llm),
        llm.model_dump_json(),
    ]
    assert not [text for text in written if "sk-1" in text]
    read = RainLLM.from_dict(llm.to_dict())
    assert read.settings.model.name == "some/model" and read.settings.generation.temperature == 0.5
    assert read.settings.model.api_key is None
    for twin in (pickle.loads(pickle.dumps(llm)), copy.deepcopy(llm)):  # which may ask the same server
        assert twin.settings.model == llm.settings.model and twin.api_key == llm.api_key


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_it_has_a_json_schema(mode: Any) -> None:
    schema = RainLLM.model_json_schema(mode=mode)
    json.dumps(schema)
    if mode == "validation":  # of what is written LlamaIndex says no more than that it is an object
        names = {"model", "settings", "temperature", "max_tokens", "class_name"}
        assert names <= schema["properties"].keys()
    assert "rain" not in schema.get("properties", ())


def named(llm: RainLLM) -> tuple[str | None, int]:
    """Tell, in another process, what a model is."""
    return llm.settings.model.name, llm.metadata.num_output


def test_a_pool_that_spawns_takes_it(tiny_folder: Path) -> None:
    llm = RainLLM(model=str(tiny_folder), max_tokens=7)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(named, llm).result(timeout=60) == (str(tiny_folder), 7)
