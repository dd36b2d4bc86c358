"""RainLLM for LlamaIndex: one test for each way in, and for each trap on the way."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.base.llms.types import CacheControl, CachePoint, CitableBlock, ImageBlock, TextBlock
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, CondenseQuestionChatEngine
from llama_index.core.extractors import TitleExtractor
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.dispatcher import instrument_tags  # type: ignore[attr-defined]
from llama_index.core.llms import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.llms import rain as package
from llama_index.llms.rain import RainLLM, RainVerdictEvent, VerdictCollector
from llama_index.llms.rain.testing import CHATS, COMPLETIONS, _aread
from pydantic import ValidationError

from rain_llm import (
    GROUNDEDNESS,
    IncompleteError,
    Message,
    PromptError,
    Rain,
    RainSettings,
    SearchError,
    SettingsError,
    StopReason,
    UnsafeAnswerError,
)
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.requests import Sample, Samples, Score, Scores
from tests.integrations.llama_scripts import SETTINGS, Recorder, judged, memory, opinion, recording, says

DISTRIBUTION = Path(__file__).parents[2] / "integrations" / "llama-index-llms-rain"
PROMPT = "Dear neighbour, your garden is"
GOOD = " splendid. Thanks!"
BAD = " rubbish."
CHAT = [ChatMessage(role="user", content="How is my garden?")]


# --- the scripted model ---------------------------------------------------------------------------


def next_words(text: str) -> Mapping[str, float]:
    """Nine times in ten the answer is hostile; the friendly one has two sentences."""
    if text.endswith(("rubbish", "splendid")):
        return {".": 1}
    if text.endswith("splendid."):
        return {" Thanks": 1}
    if text.endswith("Thanks"):
        return {"!": 1}
    if text.endswith(("rubbish.", "Thanks!")):
        return {END: 1}
    return {" rubbish": 9, " splendid": 1}


@dataclass
class Gated(ScriptedModel):
    """A model that writes nothing until its gate opens."""

    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        assert self.gate.wait(20), "nobody could open the gate: the event loop was blocked"
        self.batches.append(len(batch))
        return super().sample(batch)


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(next_words, opinion)


@pytest.fixture
def llm(model: ScriptedModel) -> RainLLM:
    return RainLLM(rain=Rain(SETTINGS, model=model))


def scripted(**changes: Any) -> RainLLM:
    return RainLLM(rain=Rain(SETTINGS.updated(**changes), model=ScriptedModel(next_words, opinion)))


def written(model: ScriptedModel) -> str:
    """What the writer was given first."""
    return model.decode(next(r.prefix for r in model.requests if isinstance(r, Sample)))


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


@pytest.fixture(autouse=True)
def global_settings() -> Iterator[None]:
    before = dict(vars(Settings))
    yield
    vars(Settings).clear()
    vars(Settings).update(before)


# --- the package ------------------------------------------------------------------------------------


def test_the_public_names() -> None:
    assert package.__all__ == ["PredictionError", "RainLLM", "RainVerdictEvent", "VerdictCollector"]
    assert RainLLM.class_name() == "RainLLM"


def test_the_namespace_stays_open() -> None:
    # One __init__.py there would hide llama_index.core.
    assert not (DISTRIBUTION / "llama_index" / "__init__.py").exists()
    assert not (DISTRIBUTION / "llama_index" / "llms" / "__init__.py").exists()


def test_llamahub_finds_the_class() -> None:
    hub = tomllib.loads((DISTRIBUTION / "pyproject.toml").read_text())["tool"]["llamahub"]
    assert hub["import_path"] == RainLLM.__module__.removesuffix(".base")
    assert list(hub["class_authors"]) == [RainLLM.class_name()]


@pytest.mark.slow
def test_import_construction_and_metadata_load_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 777}')
    code = f"""
import sys
from llama_index.llms.rain import RainLLM
for llm in RainLLM(), RainLLM(model={str(tmp_path)!r}):
    llm.metadata, llm.to_payload(), llm.to_json(), llm.unguarded()
print([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


# --- making one -------------------------------------------------------------------------------------


def test_model_and_settings_may_be_left_out() -> None:
    assert RainLLM().settings == RainSettings()
    assert RainLLM(model="some/model").settings.model.name == "some/model"
    both = RainLLM(model="some/model", settings=SETTINGS)
    assert both.settings == SETTINGS.updated(model={"name": "some/model"})


def test_what_is_unknown_is_refused(llm: RainLLM) -> None:
    with pytest.raises(ValidationError, match="temprature"):
        RainLLM(temprature=0.5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="not both"):
        RainLLM(model="some/model", rain=llm.rain)


def test_metadata_of_a_ready_engine(llm: RainLLM) -> None:
    assert llm.metadata.model_name == "scripted"
    assert llm.metadata.context_window == 4096
    assert llm.metadata.num_output == 16
    assert not llm.metadata.is_chat_model
    assert llm.metadata.is_function_calling_model
    assert scripted(generation={"chat_template": True}).metadata.is_chat_model


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ('{"max_position_embeddings": 2048}', 2048),
        ('{"n_positions": 1024}', 1024),
        ('{"text_config": {"max_position_embeddings": 512}}', 512),
        ("{}", 3900),
        ("broken", 3900),
    ],
)
def test_the_context_window_is_read_from_the_config(tmp_path: Path, config: str, window: int) -> None:
    (tmp_path / "config.json").write_text(config)
    assert RainLLM(model=str(tmp_path)).metadata.context_window == window


def test_the_context_window_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = RainLLM(model="nobody/never-downloaded").metadata
    assert (metadata.model_name, metadata.context_window) == ("nobody/never-downloaded", 3900)
    assert RainLLM(model="./no/such/folder").metadata.context_window == 3900
    assert RainLLM(model="nobody/x", context_window=123).metadata.context_window == 123

    import huggingface_hub

    (tmp_path / "config.json").write_text('{"max_position_embeddings": 9}')
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, revision: str(tmp_path / "config.json")
    )
    pinned = RainLLM(settings=RainSettings().updated(model={"name": "nobody/x", "revision": "v2"}))
    assert (pinned.metadata.model_name, pinned.metadata.context_window) == ("nobody/x@v2", 9)


def test_serialisation_carries_settings_and_no_weights(llm: RainLLM) -> None:
    llm.complete(PROMPT)
    data = json.loads(llm.to_json())
    assert "rain" not in data
    assert RainLLM.from_dict(data).settings == llm.settings
    assert RainLLM.from_dict(llm.unguarded().to_dict()).guarded is False
    named = RainLLM(model="some/model", settings=SETTINGS)
    assert RainLLM.from_dict(named.to_dict()).settings == named.settings
    json.dumps(llm.to_payload())
    assert copy.deepcopy(llm).complete(PROMPT).text == GOOD


def outspoken(messages: Sequence[ChatMessage]) -> str:
    """Render a chat."""
    return "!".join(str(message.content) for message in messages)


def test_a_pickled_model_makes_its_engine_anew(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = RainLLM(
        model=str(tiny_folder),
        settings=SETTINGS,
        system_prompt="Be brief.",
        messages_to_prompt=outspoken,
        callback_manager=CallbackManager([TokenCountingHandler(tokenizer=lambda text: [])]),
    ).unguarded()
    text = llm.complete("the film", max_tokens=2).text
    extractor = TitleExtractor(llm=llm)
    for twin in (pickle.loads(pickle.dumps(llm)), pickle.loads(pickle.dumps(extractor)).llm):
        assert (twin.to_dict(), twin.messages_to_prompt) == (llm.to_dict(), outspoken)
        assert not twin.guarded
        assert twin.complete("the film", max_tokens=2).text == text
    assert caplog.text == ""
    assert llm.complete("the film", max_tokens=2).text == text  # it lost nothing itself
    assert extractor.llm is llm


def test_a_ready_engine_is_not_pickled(llm: RainLLM) -> None:
    for each in (llm, llm.unguarded()):
        with pytest.raises(TypeError, match=r"RainLLM\(model=..., settings=...\)"):
            pickle.dumps(each)
    assert llm.complete(PROMPT).text == GOOD
    hooked = RainLLM(completion_to_prompt=lambda prompt: prompt)
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        pickle.dumps(hooked)


# --- completing and chatting ------------------------------------------------------------------------


def test_it_writes_the_friendly_branch(llm: RainLLM, model: ScriptedModel) -> None:
    response = llm.complete(PROMPT)
    assert response.text == GOOD
    assert response.delta is None
    assert "rubbish" in judged(model)  # the hostile branch was written, judged and rewound


def test_chat_goes_to_the_engine_as_messages(llm: RainLLM, model: ScriptedModel) -> None:
    response = llm.chat(CHAT)
    assert response.message.role is MessageRole.ASSISTANT
    assert response.message.content == GOOD
    assert model.requests[0].prefix == model.render_chat([Message("user", "How is my garden?")])


def test_a_stream_never_shows_the_rewound_branch(llm: RainLLM, model: ScriptedModel) -> None:
    chunks = list(llm.stream_complete(PROMPT))
    check_stream(chunks)
    assert "rubbish" in judged(model)
    check_stream([as_completion(reply) for reply in llm.stream_chat(CHAT)])


async def test_an_async_stream_never_shows_the_rewound_branch(llm: RainLLM, model: ScriptedModel) -> None:
    check_stream([chunk async for chunk in await llm.astream_complete(PROMPT)])
    assert "rubbish" in judged(model)
    check_stream([as_completion(reply) async for reply in await llm.astream_chat(CHAT)])


def as_completion(reply: ChatResponse) -> CompletionResponse:
    return CompletionResponse(text=reply.message.content or "", delta=reply.delta, raw=reply.raw)


def check_stream(chunks: list[CompletionResponse]) -> None:
    """Check that chunks are cumulative, accepted, and end with the verdict."""
    assert len(chunks) >= 2
    before = ""
    for chunk in chunks:
        assert chunk.text == before + (chunk.delta or "")
        assert "rubbish" not in chunk.text
        assert chunk.raw is not None and chunk.raw["accepted"]
        before = chunk.text
    assert before == GOOD
    assert chunks[-1].raw is not None and chunks[-1].raw["verdict"]["passed"]
    assert all(chunk.delta for chunk in chunks[:-1])


async def test_the_same_seed_gives_the_same_answer_in_all_ways(llm: RainLLM) -> None:
    texts = {
        llm.complete(PROMPT, seed=5).text,
        list(llm.stream_complete(PROMPT, seed=5))[-1].text,
        (await llm.acomplete(PROMPT, seed=5)).text,
        [chunk async for chunk in await llm.astream_complete(PROMPT, seed=5)][-1].text,
    }
    assert len(texts) == 1
    chats = {
        llm.chat(CHAT, seed=5).message.content,
        list(llm.stream_chat(CHAT, seed=5))[-1].message.content,
        (await llm.achat(CHAT, seed=5)).message.content,
        [chunk async for chunk in await llm.astream_chat(CHAT, seed=5)][-1].message.content,
    }
    assert len(chats) == 1


def test_raw_is_plain_data(llm: RainLLM) -> None:
    for raw in (llm.complete(PROMPT).raw, llm.chat(CHAT).raw, list(llm.stream_chat(CHAT))[-1].raw):
        assert raw is not None
        assert set(raw) == {
            *("verdict", "accepted", "stop_reason", "usage", "settings_hash"),
            *("context", "question", "tool_calls", "trace"),
        }
        assert raw["verdict"]["criteria"][0]["name"] == "civility"
        assert raw["stop_reason"] == "eos"
        assert raw["settings_hash"] == SETTINGS.hash
        assert raw["usage"]["model_tokens"] > raw["usage"]["output_tokens"] > 0
        json.dumps(raw)


@pytest.fixture
def endless() -> RainLLM:
    model = ScriptedModel(lambda text: {" splendid": 1} if text.endswith(".") else {".": 1}, opinion)
    model.context_length = 20000
    return RainLLM(rain=Rain(SETTINGS.updated(generation={"max_new_tokens": 16000}), model=model))


def asked(llm: RainLLM) -> int:
    """How much the model was asked until it was left alone."""
    assert llm.rain is not None
    requests = llm.rain.runtime.writer.requests  # type: ignore[attr-defined]
    before = -1
    while before < len(requests):
        before = len(requests)
        time.sleep(0.1)
    return before


def test_closing_a_stream_ends_the_search(endless: RainLLM) -> None:
    chunks = endless.stream_complete(PROMPT)
    assert next(chunks).text
    chunks.close()
    assert asked(endless) < 1000


@pytest.mark.parametrize("guarded", [True, False])
async def test_leaving_an_async_stream_ends_the_search(endless: RainLLM, guarded: bool) -> None:
    llm = endless if guarded else endless.unguarded()
    async for reply in await llm.astream_chat(CHAT):
        assert reply.delta
        break
    # In a thread: it is the loop that closes what was left.
    assert await asyncio.to_thread(asked, endless) < (1000 if guarded else 800)


@pytest.mark.parametrize("guarded", [True, False])
async def test_cancelling_a_call_ends_the_search(endless: RainLLM, guarded: bool) -> None:
    call = asyncio.create_task((endless if guarded else endless.unguarded()).acomplete(PROMPT))
    await asyncio.sleep(0.05)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(asked, endless) < (1000 if guarded else 800)


# --- prompts ----------------------------------------------------------------------------------------


def test_the_formatting_hooks(model: ScriptedModel) -> None:
    llm = RainLLM(
        rain=Rain(SETTINGS, model=model),
        completion_to_prompt=lambda prompt: f"<{prompt}>",
        system_prompt="Be brief.",
    )
    llm.complete(PROMPT)
    assert written(model) == f"Be brief.\n\n<{PROMPT}>"
    model.requests.clear()
    llm.complete(PROMPT, formatted=True)
    assert written(model) == PROMPT
    model.requests.clear()
    llm.predict(PromptTemplate("Hello {name}"), name="you")
    assert written(model) == "Be brief.\n\n<Hello you>"  # each once


def test_the_system_prompt_in_a_chat(model: ScriptedModel) -> None:
    llm = RainLLM(rain=Rain(SETTINGS, model=model), system_prompt="Be brief.")
    user = Message("user", "How is my garden?")
    llm.chat(CHAT)
    assert model.requests[0].prefix == model.render_chat([Message("system", "Be brief."), user])
    model.requests.clear()
    llm.chat([ChatMessage(role="developer", content="Be long."), *CHAT])
    assert model.requests[0].prefix == model.render_chat([Message("system", "Be long."), user])
    assert len(CHAT) == 1  # the caller's list is left alone


def test_the_system_prompt_comes_once_through_predict(model: ScriptedModel) -> None:
    settings = SETTINGS.updated(generation={"chat_template": True})
    llm = RainLLM(rain=Rain(settings, model=model), system_prompt="Be brief.")
    llm.predict(PromptTemplate("Hello {name}"), name="you")
    messages = [Message("system", "Be brief."), Message("user", "Hello you")]
    assert model.requests[0].prefix == model.render_chat(messages)


def test_messages_to_prompt_takes_the_template_s_place(model: ScriptedModel) -> None:
    for chat_template in (False, True):
        model.requests.clear()
        RainLLM(
            rain=Rain(SETTINGS.updated(generation={"chat_template": chat_template}), model=model),
            messages_to_prompt=lambda messages: "|".join(str(m.content) for m in messages),
        ).chat(CHAT * 2)
        assert model.requests[0].prefix == model.encode("How is my garden?|How is my garden?")


def test_formatted_goes_round_the_chat_template(model: ScriptedModel) -> None:
    llm = RainLLM(rain=Rain(SETTINGS.updated(generation={"chat_template": True}), model=model))
    llm.complete(PROMPT)
    assert model.requests[0].prefix == model.render_chat([Message("user", PROMPT)])
    model.requests.clear()
    llm.complete(PROMPT, formatted=True)
    assert model.requests[0].prefix == model.encode(PROMPT)


def test_all_roles_and_blocks_that_there_are(llm: RainLLM, model: ScriptedModel) -> None:
    blocks = [TextBlock(text="a"), TextBlock(text="b")]
    llm.chat([ChatMessage(role="user", blocks=blocks), ChatMessage(role="model", content="c"), *CHAT])
    turns = [Message("user", "a\nb"), Message("assistant", "c"), Message("user", "How is my garden?")]
    assert model.requests[0].prefix == model.render_chat(turns)
    model.requests.clear()
    llm.chat([ChatMessage(role=role, content=role) for role in ("system", "developer", "user", "user")])
    turns = [Message("system", "system\n\ndeveloper"), Message("user", "user\n\nuser")]
    assert model.requests[0].prefix == model.render_chat(turns)
    image = ImageBlock(image=b"")
    for block in (image, CitableBlock(title="T", source="S", content=[image])):
        with pytest.raises(PromptError, match="'image': only text can be judged"):
            llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="see"), block])])


def test_what_is_cited_is_read_and_marks_are_not(llm: RainLLM, model: ScriptedModel) -> None:
    mark = CachePoint(cache_control=CacheControl(type="ephemeral"))
    cited = CitableBlock(title="T", source="S", content=[TextBlock(text="b"), TextBlock(text="c")])
    llm.chat([ChatMessage(role="user", blocks=[TextBlock(text="a"), mark, cited, mark])])
    assert model.requests[0].prefix == model.render_chat([Message("user", "a\nb\nc")])


async def test_what_cannot_be_answered(llm: RainLLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.complete(" ")
    with pytest.raises(PromptError, match="empty"):
        llm.stream_complete("")  # at the call, not at the first chunk
    with pytest.raises(PromptError, match="empty"):
        llm.chat([])
    with pytest.raises(PromptError, match="empty"):
        await llm.acomplete("")


# --- a call's own arguments ---------------------------------------------------------------------------


def test_arguments_of_a_call(llm: RainLLM, model: ScriptedModel) -> None:
    assert llm.complete(PROMPT, stop=["."]).text == " splendid"
    assert llm.complete(PROMPT, stop=["."]).raw["stop_reason"] == "stop"
    assert llm.complete(PROMPT, max_tokens=2).text == " splendid."
    assert llm.chat(CHAT, max_new_tokens=2).message.content == " splendid."
    assert llm.complete(PROMPT, stop=None, max_tokens=None).text == GOOD
    model.requests.clear()
    llm.complete(PROMPT, temperature=0.5, top_k=1)
    sample = next(request for request in model.requests if isinstance(request, Sample))
    assert (sample.temperature, sample.top_k) == (0.5, 1)


def test_a_seed_of_none_is_a_fresh_one() -> None:
    wide = ScriptedModel(
        lambda text: {f" {i}": 1 for i in range(1000)},
        lambda question, label: -len(question) * len(label) / 1000,
    )
    llm = RainLLM(rain=Rain(SETTINGS, model=wide))
    assert llm.complete(PROMPT, seed=1).text == llm.complete(PROMPT, seed=1).text
    assert llm.complete(PROMPT, seed=None).text != llm.complete(PROMPT, seed=None).text


def test_settings_of_a_call(llm: RainLLM) -> None:
    other = SETTINGS.updated(generation={"max_new_tokens": 9})
    raw = llm.complete(PROMPT, settings=other, max_tokens=2).raw
    assert raw is not None
    assert raw["settings_hash"] == SETTINGS.updated(generation={"max_new_tokens": 2}).hash
    with pytest.raises(SettingsError, match="RainSettings, not dict"):
        llm.complete(PROMPT, settings={})


def test_settings_of_a_call_keep_the_model(tiny_folder: Path) -> None:
    llm = RainLLM(model=str(tiny_folder), settings=SETTINGS)
    short = SETTINGS.updated(generation={"max_new_tokens": 2})
    assert llm.complete("the film", settings=short, stop="zzz").raw is not None
    assert llm.metadata.context_window == Rain(llm.settings).runtime.writer.context_length


def test_a_context_reaches_the_judge(model: ScriptedModel) -> None:
    settings = SETTINGS.updated(evaluation={"criteria": [GROUNDEDNESS]})
    llm = RainLLM(rain=Rain(settings, model=model))
    llm.complete(PROMPT, context="Your garden is seventeen. The ferry is late.")
    assert "Passage: Your garden is seventeen." in judged(model)


async def test_unknown_arguments_are_refused_by_name(llm: RainLLM) -> None:
    with pytest.raises(SettingsError, match=r"'max_length'.*max_tokens.*stop"):
        llm.complete(PROMPT, max_length=3)
    with pytest.raises(SettingsError, match=r"functions asks for .*tools="):
        llm.stream_chat(CHAT, functions=[])
    with pytest.raises(SettingsError, match="logprobs asks for"):
        await llm.astream_complete(PROMPT, logprobs=True)
    with pytest.raises(SettingsError, match="temperature"):
        llm.complete(PROMPT, temperature=-1)


async def test_what_the_core_itself_sends_is_no_error(llm: RainLLM) -> None:
    # llama_index.core.extractors.DocumentContextExtractor
    response = await llm.achat(CHAT, max_tokens=5, extra_headers={"anthropic-beta": "x"})
    assert response.message.content == GOOD


# --- when nothing passes ------------------------------------------------------------------------------


def hopeless(on_unsafe: str) -> RainLLM:
    hostile = ScriptedModel(
        lambda text: next_words(text) if text.endswith(("rubbish", ".")) else {" rubbish": 1}, opinion
    )
    return RainLLM(rain=Rain(SETTINGS.updated(on_unsafe=on_unsafe, refusal="No."), model=hostile))


def test_the_best_is_marked() -> None:
    chunks = list(hopeless("best").stream_complete(PROMPT))
    assert chunks[-1].text == BAD
    assert not any(chunk.raw["accepted"] for chunk in chunks if chunk.raw)


def test_the_refusal_is_all_that_is_said() -> None:
    default = RainLLM().settings.on_unsafe
    with VerdictCollector() as collector:
        assert [chunk.text for chunk in hopeless(default).stream_complete(PROMPT)][-1] == "No."
    (event,) = collector.events
    assert (event.text, event.accepted, event.stop_reason) == ("No.", False, StopReason.REFUSED)
    assert event.verdict is not None and not event.verdict.passed


class Failing(ScriptedModel):
    """A model that fails in the middle of an answer."""

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        raise OSError("gone")


def failing(why: str) -> tuple[RainLLM, dict[str, Any]]:
    """Make a model whose answer ends in an error, and the options to ask it with."""
    if why == "unsafe":
        return hopeless("raise"), {}
    if why == "failed":
        return RainLLM(rain=Rain(SETTINGS, model=Failing(next_words, opinion))), {}
    limit = {"deadline_s": 1e-9} if why == "late" else {}
    settings = SETTINGS.updated(on_unsafe="raise" if why == "raised" else "best", search=limit)
    written = {'{"a":"rubbish"}': 1.0}
    document = ScriptedModel(says({"garden is": written, "my garden?": written}), opinion)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    options = {"schema": schema, "max_tokens": 2 if why == "half" else 16}
    return RainLLM(rain=Rain(settings, model=document)), options


@pytest.mark.parametrize("method", [*COMPLETIONS, *CHATS])
@pytest.mark.parametrize(
    ("why", "error", "stop_reason"),
    [
        ("unsafe", UnsafeAnswerError, StopReason.UNSAFE),
        ("raised", UnsafeAnswerError, StopReason.UNSAFE),
        ("refused", UnsafeAnswerError, StopReason.REFUSED),
        ("half", IncompleteError, StopReason.INCOMPLETE),
        ("late", IncompleteError, StopReason.DEADLINE),
        ("failed", SearchError, StopReason.ERROR),
    ],
)
async def test_an_answer_that_ends_in_an_error_has_its_event(
    why: str, error: type[UnsafeAnswerError], stop_reason: StopReason, method: str
) -> None:
    llm, options = failing(why)
    asked: Any = PROMPT if method in COMPLETIONS else CHAT
    with VerdictCollector() as collector, pytest.raises(error) as caught:
        await _aread(getattr(llm, method)(asked, **options))
    (event,) = collector.events
    assert event.stop_reason is stop_reason
    assert not event.accepted and not collector.accepted
    assert (event.text, event.verdict) == (caught.value.result.text, caught.value.result.verdict)


def test_an_error_of_the_twin_has_no_event() -> None:
    llm, options = failing("half")
    with VerdictCollector() as collector, pytest.raises(IncompleteError):
        llm.unguarded().complete(PROMPT, **options)
    assert collector.events == []


# --- async --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["acomplete", "achat", "astream_complete", "astream_chat", "twin", "twin's stream"]
)
async def test_the_event_loop_goes_on_and_calls_run_together(method: str) -> None:
    model = Gated(next_words, opinion)
    llm = RainLLM(rain=Rain(SETTINGS, model=model))

    async def ask() -> Any:
        match method:
            case "acomplete":
                return await llm.acomplete(PROMPT)
            case "achat":
                return await llm.achat(CHAT)
            case "astream_complete":
                return [chunk async for chunk in await llm.astream_complete(PROMPT)]
            case "astream_chat":
                return [chunk async for chunk in await llm.astream_chat(CHAT)]
            case "twin":
                return await llm.unguarded().acomplete(PROMPT)
            case _:
                return [chunk async for chunk in await llm.unguarded().astream_chat(CHAT)]

    calls = asyncio.gather(*(ask() for _ in range(4)))
    scheduler = llm.rain.runtime.scheduler if llm.rain else None
    assert scheduler is not None
    while len(scheduler._running) + len(scheduler._waiting) < 4:  # a blocked loop never gets to the gate
        await asyncio.sleep(0.01)
    assert not calls.done()
    model.gate.set()
    assert len(await calls) == 4
    assert max(model.batches) >= 2


# --- events -------------------------------------------------------------------------------------------


async def test_each_call_is_counted_once(llm: RainLLM, recorder: Recorder) -> None:
    llm.complete(PROMPT)
    assert calls(recorder) == {"LLMCompletionStartEvent": 1, "LLMCompletionEndEvent": 1}
    await llm.acomplete(PROMPT)
    assert calls(recorder) == {"LLMCompletionStartEvent": 2, "LLMCompletionEndEvent": 2}
    list(llm.stream_complete(PROMPT))
    assert [chunk async for chunk in await llm.astream_complete(PROMPT)]
    assert calls(recorder) == {"LLMCompletionStartEvent": 4, "LLMCompletionEndEvent": 4}


async def test_each_chat_is_counted_once(llm: RainLLM, recorder: Recorder) -> None:
    llm.chat(CHAT)
    assert calls(recorder) == {"LLMChatStartEvent": 1, "LLMChatEndEvent": 1}
    await llm.achat(CHAT)
    assert calls(recorder) == {"LLMChatStartEvent": 2, "LLMChatEndEvent": 2}
    list(llm.stream_chat(CHAT))
    assert [chunk async for chunk in await llm.astream_chat(CHAT)]
    assert calls(recorder) == {"LLMChatStartEvent": 4, "LLMChatEndEvent": 4}
    assert recorder.counts["RainVerdictEvent"] == 4


def calls(recorder: Recorder) -> dict[str, int]:
    """The counts of what LlamaIndex itself calls a call of a language model."""
    return {name: n for name, n in recorder.counts.items() if name.endswith(("StartEvent", "EndEvent"))}


async def test_tokens_are_counted_by_the_model_and_once(llm: RainLLM, model: ScriptedModel) -> None:
    counter = TokenCountingHandler(tokenizer=lambda text: pytest.fail("the tokens were guessed"))
    llm.callback_manager = CallbackManager([counter])
    prompt, chat = len(model.encode(PROMPT)), len(model.render_chat([Message("user", "How is my garden?")]))
    output = len(model.encode(GOOD))
    llm.complete(PROMPT)
    await llm.acomplete(PROMPT)
    list(llm.stream_complete(PROMPT))
    assert [chunk async for chunk in await llm.astream_complete(PROMPT)]
    llm.chat(CHAT)
    await llm.achat(CHAT)
    list(llm.stream_chat(CHAT))
    assert [chunk async for chunk in await llm.astream_chat(CHAT)]
    counted = [(count.prompt_token_count, count.completion_token_count) for count in counter.llm_token_counts]
    assert counted == [(prompt, output)] * 4 + [(chat, output)] * 4


def test_counts_stay_out_of_messages(llm: RainLLM) -> None:
    # LlamaIndex writes a message's additional_kwargs into later prompts.
    response = llm.chat(CHAT)
    assert response.message.additional_kwargs == {}
    assert set(response.additional_kwargs) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    usage = llm.complete(PROMPT).additional_kwargs
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


# --- verdicts -----------------------------------------------------------------------------------------


def test_the_event_is_complete(llm: RainLLM) -> None:
    with VerdictCollector() as collector:
        raw = llm.complete(PROMPT).raw
    (event,) = collector.events
    assert raw is not None
    assert event.class_name() == "RainVerdictEvent"
    assert (event.text, event.accepted, event.settings_hash) == (GOOD, True, SETTINGS.hash)
    assert event.stop_reason is StopReason.EOS
    assert event.usage.output_tokens == raw["usage"]["output_tokens"]
    assert event.verdict is not None and event.verdict.criteria[0].name == "civility"
    assert collector.verdicts == [event.verdict]
    data = event.model_dump(mode="json")
    assert data["class_name"] == "RainVerdictEvent"
    assert data["verdict"]["passed"] is True


def test_collectors_come_and_go_in_any_order(llm: RainLLM) -> None:
    before = list(get_dispatcher().event_handlers)
    first, second, third = VerdictCollector(), VerdictCollector(), VerdictCollector()
    first.__enter__()
    second.__enter__()
    assert first == second  # by value: what is removed must be looked for by identity
    first.__exit__(None, None, None)
    llm.complete(PROMPT)
    with third:
        llm.complete(PROMPT)
    second.__exit__(None, None, None)
    llm.complete(PROMPT)
    assert [len(each.events) for each in (first, second, third)] == [0, 2, 1]
    assert [id(handler) for handler in get_dispatcher().event_handlers] == [id(handler) for handler in before]


def test_a_collector_is_open_once(llm: RainLLM) -> None:
    with VerdictCollector() as collector:
        with pytest.raises(RuntimeError, match="another"), collector:
            pytest.fail("it was entered twice")
        llm.complete(PROMPT)
    assert len(collector.events) == 1
    with collector:  # one after the other
        llm.complete(PROMPT)
    assert len(collector.events) == 2


def test_a_collector_leaves_when_the_body_fails(llm: RainLLM) -> None:
    with pytest.raises(RuntimeError, match="body"), VerdictCollector() as collector:
        raise RuntimeError("body")
    llm.complete(PROMPT)
    assert collector.events == []


def test_collectors_in_many_threads(llm: RainLLM) -> None:
    before = len(get_dispatcher().event_handlers)
    at_once = threading.Barrier(8)

    def work(_: int) -> int:
        at_once.wait(20)
        with VerdictCollector() as own:
            llm.complete(PROMPT)
        return len(own.events)

    with VerdictCollector() as collector, ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(work, range(8)))
    assert len(collector.events) == 8
    assert all(count >= 1 for count in counts)
    assert len(get_dispatcher().event_handlers) == before


async def test_tags_tell_requests_apart(llm: RainLLM) -> None:
    async def request(number: int) -> None:
        with instrument_tags({"request": number}):
            await llm.acomplete(PROMPT)

    with VerdictCollector() as collector:
        await asyncio.gather(*(request(number) for number in range(4)))
    assert sorted(event.tags["request"] for event in collector.events) == [0, 1, 2, 3]


# --- the unguarded twin -----------------------------------------------------------------------------


async def test_the_twin_shares_the_weights_and_judges_nothing(llm: RainLLM, model: ScriptedModel) -> None:
    twin = llm.unguarded()
    with VerdictCollector() as collector:
        texts = [
            twin.complete(PROMPT).text,
            (await twin.acomplete(PROMPT)).text,
            list(twin.stream_complete(PROMPT))[-1].text,
            [chunk async for chunk in await twin.astream_complete(PROMPT)][-1].text,
            twin.chat(CHAT).message.content,
            (await twin.achat(CHAT)).message.content,
        ]
    assert texts == [BAD] * 6
    assert collector.events == []
    assert not any(isinstance(request, Score) for request in model.requests)
    raw = twin.complete(PROMPT).raw
    assert raw is not None
    assert raw["verdict"] is None and not raw["accepted"]
    assert llm.guarded and llm.complete(PROMPT).text == GOOD  # the model itself is as it was


# --- query engines, chat engines -----------------------------------------------------------------------


@pytest.fixture
def index(llm: RainLLM) -> VectorStoreIndex:
    Settings.llm = llm
    Settings.embed_model = MockEmbedding(embed_dim=4)
    return VectorStoreIndex.from_documents([Document(text="The garden is behind the house.")])


@pytest.mark.parametrize("chat_template", [False, True])
async def test_verdicts_come_through_a_query_engine(index: VectorStoreIndex, chat_template: bool) -> None:
    Settings.llm = scripted(generation={"chat_template": chat_template})
    engine = index.as_query_engine()
    with VerdictCollector() as collector:
        assert str(engine.query("How is the garden?")) == GOOD
        assert str(await engine.aquery("How is the garden?")) == GOOD
    assert [verdict.passed for verdict in collector.verdicts if verdict] == [True, True]


async def test_verdicts_come_through_a_streaming_query_engine(index: VectorStoreIndex) -> None:
    engine = index.as_query_engine(streaming=True)
    with VerdictCollector() as collector:
        response = engine.query("How is the garden?")
        assert isinstance(response, StreamingResponse)
        assert "".join(response.response_gen) == GOOD
        response = await engine.aquery("How is the garden?")
        pieces = [piece async for piece in response.response_gen]  # type: ignore[union-attr]
        assert "".join(pieces) == GOOD
    assert len(collector.events) == 2


async def test_a_query_is_one_call(index: VectorStoreIndex, recorder: Recorder) -> None:
    engine = index.as_query_engine()
    engine.query("How is the garden?")
    assert recorder.counts["LLMCompletionEndEvent"] == 1
    assert recorder.counts["LLMChatEndEvent"] == 0
    assert recorder.counts["RainVerdictEvent"] == 1


def test_only_what_is_read_pays_for_the_guard(index: VectorStoreIndex, llm: RainLLM) -> None:
    engine = CondenseQuestionChatEngine.from_defaults(
        query_engine=index.as_query_engine(llm=llm), llm=llm.unguarded(), memory=memory()
    )
    with VerdictCollector() as collector:
        engine.chat("How is the garden?")
        engine.chat("And the house?")  # condensed by the twin, answered by the guarded model
    assert len(collector.events) == 2


async def test_a_chat_engine(index: VectorStoreIndex) -> None:
    engine = CondensePlusContextChatEngine.from_defaults(retriever=index.as_retriever(), memory=memory())
    with VerdictCollector() as collector:
        assert str(engine.chat("How is the garden?")) == GOOD
        assert str(await engine.achat("And the house?")) == GOOD
    assert len(collector.events) == 3  # this engine condenses with the model that answers


# --- the real model -------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_query_engine_on_the_real_model() -> None:
    llm = RainLLM(settings=RainSettings().updated(generation={"max_new_tokens": 24, "seed": 0}))
    Settings.llm = llm
    Settings.embed_model = MockEmbedding(embed_dim=4)
    index = VectorStoreIndex.from_documents([Document(text="The tomatoes ripen in August.")])
    engine = index.as_query_engine()
    with VerdictCollector() as collector:
        response = engine.query("When do the tomatoes ripen?")
    (event,) = collector.events
    assert isinstance(event, RainVerdictEvent)
    assert event.text == str(response)
    assert event.verdict is not None
    assert 0 < event.usage.output_tokens <= 24

    writer = Rain(llm.settings).runtime.writer
    assert llm.metadata.context_window == writer.context_length
    assert llm.metadata.model_name == writer.name
