"""Both frameworks with a model on a server: a setting like any other, its key in nothing that is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from llama_index.llms.rain import RainLLM as LlamaIndexRain

from langchain_rain import RainLLM
from rain_llm import RainSettings
from tests.servers.babble import write_tokenizer
from tests.servers.scripted import CONTEXT, scripted_server

KEY = "sk-do-not-tell"
pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RainSettings]:
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    with scripted_server("vllm", key=KEY) as server:
        model = {"base_url": server.url, "tokenizer": str(Path(tokenizer)), "api_key": KEY}
        yield RainSettings().updated(model=model, generation={"max_new_tokens": 12, "seed": 0})


def test_a_chain_asks_a_server(settings: RainSettings):
    llm = RainLLM(settings=settings)
    chain = PromptTemplate.from_template("The {what} is") | llm | StrOutputParser()
    text = chain.invoke({"what": "film"})
    assert text
    assert "".join(chain.stream({"what": "film"})) == text
    assert chain.batch([{"what": "film"}] * 3) == [text] * 3
    for shown in (repr(llm), str(llm.model_dump()), llm.model_dump_json(), str(llm._identifying_params)):
        assert KEY not in shown


async def test_a_chain_asks_a_server_without_blocking(settings: RainSettings):
    llm = RainLLM(settings=settings)
    assert await llm.ainvoke("The film is") == llm.invoke("The film is")


def test_llama_index_asks_a_server(settings: RainSettings):
    llm = LlamaIndexRain(settings=settings)
    assert llm.metadata.context_window == CONTEXT
    assert llm.metadata.model_name == "scripted"
    text = llm.complete("The film is").text
    assert text
    assert [*llm.stream_complete("The film is")][-1].text == text
    for shown in (repr(llm), str(llm.model_dump()), llm.to_json()):
        assert KEY not in shown
