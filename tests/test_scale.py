"""Hundreds of searches in one event loop against a real HTTP server: none is lost, and what they cost."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rain_llm import Rain, RainResult, RainSettings, StopReason
from rain_llm.models.servers.completions import CompletionsModel
from tests.servers.babble import write_tokenizer
from tests.servers.process import Server
from tests.servers.scripted import control, scripted_server, stats

pytestmark = [
    pytest.mark.alone,
    pytest.mark.enable_socket,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.timeout(300),
]

SEARCHES = 200


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server("vllm") as running:
        yield running


def guarded(server: Server, tokenizer: Path, **limits: int) -> Rain:
    model = {"base_url": server.url, "tokenizer": str(tokenizer), "limits": limits}
    return Rain(RainSettings().updated(model=model, generation={"max_new_tokens": 40}))


def at_once(rain: Rain, count: int) -> list[RainResult]:
    async def write() -> list[RainResult]:
        return await asyncio.gather(*(rain.agenerate(f"The film {i} is") for i in range(count)))

    return asyncio.run(write())


def requests_of(rain: Rain) -> int:
    model = rain.runtime.writer
    assert isinstance(model, CompletionsModel)
    return model.totals.http.requests


def memory() -> float:
    """Return what this process holds now, MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def test_no_search_of_hundreds_is_lost_and_each_is_what_it_is_alone(server: Server, tokenizer: Path):
    rain = guarded(server, tokenizer, max_concurrency=256)
    control(server, delay=0.2)  # hundreds are asked before the first is answered
    results = at_once(rain, SEARCHES)
    assert {result.stop_reason for result in results} <= {StopReason.EOS, StopReason.LENGTH}
    assert stats(server)["most_in_flight"] > 100  # they do run at once
    control(server)
    for i in (0, 7, SEARCHES - 1):
        assert rain.generate(f"The film {i} is").text == results[i].text


def test_requests_under_way_at_once_are_bounded(server: Server, tokenizer: Path):
    rain = guarded(server, tokenizer, max_concurrency=8)
    control(server, delay=0.01)
    assert len(at_once(rain, 40)) == 40
    assert stats(server)["most_in_flight"] <= 8


def test_a_request_costs_the_client_little_and_memory_stays_flat(server: Server, tokenizer: Path):
    # The measure is what the same number of bare requests costs in this process on this machine.
    rain = guarded(server, tokenizer, max_concurrency=256)
    at_once(rain, SEARCHES)  # connections, caches, the tokenizer's imports
    before, sent, began = memory(), requests_of(rain), time.process_time()
    for _ in range(2):
        at_once(rain, SEARCHES)
    each = (time.process_time() - began) / (requests_of(rain) - sent)
    grown = memory() - before
    bare = bare_request(server)
    print(f"\n{1000 * each:.2f} ms of a core a request, {each / bare:.1f} times a bare one; {grown:+.1f} MiB")
    assert each < 4 * bare
    assert grown < 16


def bare_request(server: Server, count: int = 400) -> float:
    """Return the seconds of CPU that a request of httpx costs, with a body as searches send it."""
    prompt = list(range(3, 43))
    body = {"model": "scripted", "prompt": prompt, "max_tokens": 12, "seed": 1, "logprobs": 1}
    content = json.dumps(body | {"return_token_ids": True}).encode()

    async def post() -> float:
        async with httpx.AsyncClient(headers={"Content-Type": "application/json"}) as client:
            await client.post(f"{server.url}/v1/completions", content=content)
            began = time.process_time()
            for _ in range(count):
                (await client.post(f"{server.url}/v1/completions", content=content)).json()
            return (time.process_time() - began) / count

    return asyncio.run(post())
