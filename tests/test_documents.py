"""Documents of schemas and calls of tools from servers: what is asked for, and what is made of a reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rain_llm import ModelNotSupportedError, PromptError, Rain, RainSettings, StopReason, Task, Tool
from rain_llm.models.grammar import narrowed
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.models.servers.dialect import PATH, Body, Completion, Cost, Dialect, SampleRequest
from rain_llm.models.servers.llama_server import LlamaServer
from rain_llm.models.servers.sglang import Sglang
from rain_llm.models.servers.vllm import Vllm
from rain_llm.requests import Continuation, Sample
from rain_llm.settings import ModelSettings
from tests.servers import babble
from tests.servers.process import Server
from tests.servers.scripted import control, scripted_server, stats

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])

FIXED = {"const": {"film": "good", "night": [1, True]}}
PAIR = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


# --- what is asked for ------------------------------------------------------------------------------------


def sent(dialect: Dialect, schema: str = "") -> Body:
    """Return what a dialect asks a server for one continuation."""
    bodies: list[Body] = []

    async def ask(body: Body, read: Callable[[Any], Any], path: str = PATH) -> Any:
        bodies.append(body)
        return [Completion((7,), (0.0,))]

    asyncio.run(
        dialect.draw(ask, SampleRequest((5, 6), 1, 9, 3, schema=schema, barred=frozenset({8, 4})), Cost())
    )
    (body,) = bodies
    return body


@pytest.mark.parametrize(
    "dialect", [Vllm("m"), LlamaServer("m", 4, 7), Sglang("m")], ids=lambda d: type(d).__name__
)
def test_a_schema_only_adds_its_own_field(dialect: Dialect):
    schema = narrowed(json.dumps(PAIR))
    free, held = sent(dialect), sent(dialect, schema)
    asked = {name: value for name, value in held.items() if name not in free}
    assert {name: held[name] for name in free} == free
    if isinstance(dialect, LlamaServer):
        assert asked == {"json_schema": json.loads(schema)}
    elif isinstance(dialect, Sglang):
        assert asked == {"json_schema": schema}
    else:
        tag = json.loads(asked.pop("structured_outputs")["structural_tag"])
        assert tag["type"] == "structural_tag"
        assert tag["format"] == {
            "type": "json_schema",
            "json_schema": json.loads(schema),
            "max_whitespace_cnt": 1,
        }
        assert asked == {"logit_bias": {"4": -100.0, "8": -100.0}}


def test_a_server_is_sent_the_narrowed_schema():
    found = json.loads(narrowed(json.dumps(PAIR | {"x-guidance": {"whitespace_flexible": True}})))
    assert found == {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": -(2**53), "maximum": 2**53}},
        "required": ["n"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False, "lenient": False},
    }


# --- what is made of a reply ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["vllm", "llama"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with scripted_server(request.param) as running:
        yield running


@pytest.fixture(scope="module")
def model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> CompletionsModel:
    tokenizer = babble.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return CompletionsModel(ModelSettings(base_url=(server.url,), tokenizer=str(tokenizer)))


@pytest.fixture(autouse=True)
def sound(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        control(request.getfixturevalue("server"))


def documents(model: CompletionsModel, **changes: Any) -> tuple[Continuation, ...]:
    asked: dict[str, Any] = {"n": 2, "max_tokens": 400, "schema": json.dumps(FIXED)} | changes
    (reply,) = model.sample([Sample(model.encode("The film is"), seed=1, **asked)])
    return reply.continuations


def test_a_document_is_whole_without_the_token_that_ends_it(model: CompletionsModel):
    for one in documents(model):
        assert json.loads(model.decode(one.tokens)) == FIXED["const"]
        assert one.ended
        assert len(one.logprobs) == len(one.tokens)


def test_a_document_that_the_server_cut_off_is_not_whole(model: CompletionsModel):
    whole, _ = documents(model)
    for most in (1, 5, len(whole.tokens) - 1):
        for cut in documents(model, max_tokens=most):
            assert (cut.tokens, cut.ended) == (whole.tokens[:most], False)
    # Its last bracket was the last token that there was room for.
    assert {one.ended for one in documents(model, max_tokens=len(whole.tokens))} == {True}


def test_prose_for_a_document_is_told(server: Server, model: CompletionsModel):
    control(server, "ignore_schema")
    with pytest.raises(
        ModelNotSupportedError, match=r"scripted completed a document that is not JSON.*ignores the schema"
    ):
        documents(model)


@pytest.mark.parametrize(("most", "fits"), [(7, True), (5, False)])
def test_a_document_that_does_not_fit_its_schema_is_not_whole(model: CompletionsModel, most: int, fits: bool):
    """As xgrammar's do that drop a length beside a pattern."""
    asked = Sample((1,), 1, 99, 1, schema=json.dumps({"type": "string", "maxLength": most}))
    tokens = model.encode('"romance"')
    assert model._sampler.document(asked, Completion(tokens, (-1.0,) * len(tokens))).ended is fits


def test_prose_without_an_end_is_no_document(server: Server, model: CompletionsModel):
    control(server, "ignore_schema")
    assert not any(one.ended for one in documents(model, max_tokens=2))


def test_a_schema_that_cannot_be_held_to_is_not_sent(server: Server, model: CompletionsModel):
    before = stats(server)["requests"]
    with pytest.raises(PromptError, match="look-around"):
        documents(model, schema='{"type": "string", "pattern": "(?=a)b"}')
    assert stats(server)["requests"] == before


def test_what_no_json_string_holds_is_barred(
    server: Server, model: CompletionsModel, monkeypatch: pytest.MonkeyPatch
):
    samplings: list[SampleRequest] = []
    draw = model._dialect.draw

    async def noted(ask: Any, sampling: SampleRequest, cost: Cost) -> list[Completion]:
        samplings.append(sampling)
        return await draw(ask, sampling, cost)

    monkeypatch.setattr(type(model._dialect), "draw", lambda self, *given: noted(*given))
    documents(model)
    model.sample([Sample(model.encode("The film is"), 1, 3, 1)])
    control_characters = frozenset(model.encode(chr(code))[0] for code in range(32))
    assert [sampling.barred for sampling in samplings] == [control_characters, frozenset()]


# --- from end to end --------------------------------------------------------------------------------------

WEATHER = Tool(
    "weather",
    "Tells the weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Rome", "Oslo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
    },
)


@pytest.mark.real
def test_rain_on_llama_server_calls_tools_and_writes_documents(llama: Server):
    rain = Rain(
        RainSettings().updated(
            model={"base_url": llama.url},
            generation={"max_new_tokens": 96, "seed": 0},
            search={"iterations": 2},
            on_unsafe="best",
        )
    )
    called = rain.generate(Task("How is the weather in Rome?", tools=[WEATHER], tool_choice="any"))
    assert called.stop_reason is StopReason.TOOL_CALLS
    assert called.text == ""
    for call in called.tool_calls:
        assert call.name == "weather"
        Draft202012Validator(dict(WEATHER.parameters)).validate(dict(call.arguments))
    told = rain.generate(Task("How is the weather in Oslo?", schema=dict(WEATHER.parameters)))
    Draft202012Validator(dict(WEATHER.parameters)).validate(json.loads(told.text))
    assert told.text == json.dumps(json.loads(told.text), separators=(",", ":"))
