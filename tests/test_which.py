"""Names of models that cannot be loaded are refused by their form, with the row of the table that fits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from llama_index.llms.rain import RainLLM as LlamaIndexLLM

from langchain_rain import ChatRain, RainLLM
from rain_llm import ModelNotFoundError, Rain, RainSettings, cli
from rain_llm.models import which
from rain_llm.models.scripted import ScriptedModel, script

ROOT = Path(__file__).parent.parent

HOSTED = [
    "gpt-4o-mini", "gpt-4", "GPT-4.1", "gpt-3.5-turbo", "gpt-5", "o1", "o3-mini", "chatgpt-4o-latest",
    "text-davinci-003", "claude-3-5-sonnet-20241022", "claude-opus-4", "gemini-1.5-flash", "grok-3",
    "command-r-plus", "mistral-large-latest", "mistral-small", "codestral-latest", "deepseek-chat",
    "openai:gpt-4o", "anthropic:claude-3-opus", "azure_openai:mine", "groq:llama-3.1-8b-instant",
    "openai/gpt-4o", "anthropic/claude-3.5-sonnet", "gemini/gemini-pro", "google/gemini-2.0-flash",
    "openrouter/meta-llama/llama-3-8b", "bedrock/anthropic.claude-v2",
    "us.anthropic.claude-3-5-sonnet-20241022-v2:0", "amazon.nova-pro-v1:0", "mistral.mistral-7b-v0:2",
]  # fmt: skip
OLLAMA = [
    "llama3.2:1b", "llama3.2", "qwen2.5:0.5b", "ollama:llama3", "ollama/llama3.1", "mistral", "gemma3",
    "phi3", "deepseek-r1:7b", "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M", "smollm2:135m", "qwq",
]  # fmt: skip
GGUF = ["model.gguf", "/models/Q4.GGUF", "~/models/a.gguf", "bartowski/Llama-3.2-1B-Instruct-GGUF"]
HUB = [
    "gpt2", "distilgpt2", "openai-gpt", "HuggingFaceTB/SmolLM2-135M-Instruct", "openai-community/gpt2",
    "openai/gpt-oss-20b", "meta-llama/Llama-3.2-1B", "mistralai/Mistral-7B-v0.1", "Qwen/Qwen2.5-0.5B",
    "google/gemma-3-1b-it", "deepseek-ai/DeepSeek-R1", "someone/gpt-4-distilled", "EleutherAI/gpt-neo-125m",
    "C:\\models\\mine", "C:/models/mine", "./mine", "somewhere", "CohereForAI/c4ai-command-r-v01",
    "bigscience/bloom", "x" * 5000, "~nobody-here/model", "a\0b",
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "kind"),
    [(HOSTED, which.HOSTED), (OLLAMA, which.OLLAMA), (GGUF, which.GGUF), (HUB, which.TRANSFORMERS)],
    ids=["hosted", "ollama", "gguf", "hub"],
)
def test_a_name_tells_whose_model_it_is(names, kind):
    assert {name: which.kind_of(name).models for name in names} == dict.fromkeys(names, kind.models)


def test_a_folder_is_loaded_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("gpt-4o-mini", "llama3.2"):
        Path(name).mkdir()
        assert which.kind_of(name) is which.TRANSFORMERS
    (Path("llama3.2") / "weights-Q4.gguf").touch()
    assert which.kind_of("llama3.2") is which.GGUF
    (Path("llama3.2") / "config.json").touch()
    assert which.kind_of("llama3.2") is which.TRANSFORMERS


@pytest.mark.parametrize("make", [ChatRain, RainLLM, LlamaIndexLLM])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt-4o-mini", which.HOSTED), ("llama3.2:1b", which.OLLAMA)],
)
def test_it_is_refused_where_it_is_named(make, name, kind):  # no socket is allowed here
    with pytest.raises(ModelNotFoundError) as caught:
        make(model=name)
    assert name in str(caught.value)
    assert kind.models in str(caught.value)
    assert kind.works in str(caught.value)


def test_a_folder_of_gguf_files_is_not_one_file(tmp_path):
    (tmp_path / "weights-Q4.gguf").touch()
    for name in ("bartowski/Llama-3.2-1B-Instruct-GGUF", str(tmp_path)):
        with pytest.raises(
            ModelNotFoundError, match=r"give the path of one of them, FOLDER/FILE.gguf"
        ) as caught:
            Rain(RainSettings(model=name))
        assert name[:100] in str(caught.value)


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"GGU", b"", b"PK\3\4"])
def test_a_gguf_file_needs_no_ending(content, tmp_path, monkeypatch):
    """Ollama keeps its models in files named sha256-..., without an ending."""
    monkeypatch.chdir(tmp_path)
    blob = tmp_path / f"sha256-{'0123456789abcdef' * 4}"
    blob.write_bytes(content)
    gguf = content.startswith(b"GGUF")
    for name in (str(blob), blob.name):
        assert which.kind_of(name) is (which.GGUF if gguf else which.TRANSFORMERS)
        assert RainSettings(model=name).model.is_gguf is gguf
    if gguf:
        assert RainSettings(model={"name": str(blob), "threads": 2}).model.threads == 2
        assert RainLLM(model=blob.name).model == blob.name  # it looks like a key, but is there


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # who reads it waits for a writer
    assert which.kind_of(str(tmp_path / "pipe")) is which.TRANSFORMERS
    assert not RainSettings(model=str(tmp_path)).model.is_gguf


def test_ollama_users_learn_of_both_ways():
    with pytest.raises(ModelNotFoundError, match=r'"FILE.gguf"`; or, in an agent, `RainMiddleware\(ChatRain'):
        Rain(RainSettings(model="llama3.2"))


def test_a_judge_and_one_call_s_model_too():
    with pytest.raises(ModelNotFoundError, match="claude-3-haiku"):
        Rain(RainSettings().updated(evaluation={"judge": {"name": "claude-3-haiku"}}))
    with pytest.raises(ModelNotFoundError, match="gemini-pro"):
        ChatRain().invoke("Hello", model="gemini-pro")


def test_a_ready_model_may_be_called_anything():
    assert Rain(RainSettings(model="gpt-4o"), model=ScriptedModel(script({}))).model_name == "scripted"


def test_a_server_may_call_its_model_anything():
    assert ChatRain(model="gpt-4o-mini", base_url="http://127.0.0.1:9").model == "gpt-4o-mini"


@pytest.mark.parametrize(
    "host", ["api.openai.com", "mine.openai.azure.com", "generativelanguage.googleapis.com"]
)
def test_hosted_apis_are_not_asked(host):
    with pytest.raises(ModelNotFoundError, match=host) as caught:
        ChatRain(base_url=f"https://{host}", api_key="sk-secret")
    assert which.HOSTED.works in str(caught.value)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "HTTPS", "grpc", "file", "hf"])
def test_an_address_is_no_name(scheme):
    with pytest.raises(ModelNotFoundError, match="give it as base_url") as caught:
        ChatRain(model=f"{scheme}://user:secret@localhost:11434")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("make", [ChatRain, RainLLM, LlamaIndexLLM])
@pytest.mark.parametrize(
    "key",
    ["sk-proj-a1B2c3D4e5F6g7H8i9J0k1L2", "hf_aB3dE5fG7hI9jK1lM3nO5pQ7", "0123456789abcdef0123456789abcdef"],
)
def test_a_key_is_not_shown_and_not_sent_to_the_hub(make, key):
    with pytest.raises(ModelNotFoundError, match="given as api_key") as caught:
        make(model=key)
    assert key[8:] not in str(caught.value)


def test_a_folder_may_look_like_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a1b2c3d4e5f6a7b8c9d0e1f2").mkdir()
    assert RainLLM(model="a1b2c3d4e5f6a7b8c9d0e1f2").model == "a1b2c3d4e5f6a7b8c9d0e1f2"


def test_no_error_points_to_a_table_that_is_not_there():
    with pytest.raises(ModelNotFoundError) as caught:
        Rain(RainSettings(model="gpt-4o-mini"))
    assert all(row.models in str(caught.value) and row.needs in str(caught.value) for row in which.KINDS)
    assert not any(word in which.table() for word in ("below", "above", "first three"))


def test_a_name_that_is_nowhere_is_answered_with_the_whole_table(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelNotFoundError) as caught:
        Rain(RainSettings(model=str(tmp_path))).load()
    assert all(row.models in str(caught.value) and row.needs in str(caught.value) for row in which.KINDS)


def test_the_command_line_says_it_in_a_line(capsys):
    for command in (["generate", "x", "--model"], ["doctor"], ["eval", "civility", "--model"]):
        assert cli.main([*command, "gpt-4o-mini"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("rain: 'gpt-4o-mini' cannot be loaded. OpenAI, Anthropic")
        assert err.count("\n") == 1


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_readme_holds_the_table(page):
    assert which.table() in (ROOT / page).read_text(encoding="utf-8")
    assert len(which.KINDS) == 6


@pytest.mark.parametrize("make", [ChatRain, RainLLM, LlamaIndexLLM])
@pytest.mark.parametrize(
    ("name", "place"),
    [("tokenizer", "model={'tokenizer': ...}"), ("criteria", "evaluation={'criteria': ...}"),
     ("iterations", "search={'iterations': ...}"), ("on_unsafe", "on_unsafe=...")],
)  # fmt: skip
def test_a_setting_given_as_an_argument_is_shown_its_place(make, name, place):
    with pytest.raises(ValueError, match="is a setting: give settings=") as caught:
        make(**{name: "sk-secret"})
    assert f"'{name}' is a setting: give settings=RainSettings({place})" in str(caught.value)
    assert "sk-secret" not in str(caught.value)
