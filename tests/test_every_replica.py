"""Every server of a model is probed before it is used, not only the first one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest

from rain_llm.errors import ModelNotFoundError, ServerError, ServerNotSupportedError
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.requests import Sample
from rain_llm.settings import ModelSettings
from tests.servers.process import Server, free_port
from tests.servers.scripted import control, scripted_server, stats

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def first() -> Iterator[Server]:
    with scripted_server("llama") as server:
        yield server


def on(*servers: Server, **limits: Any) -> CompletionsModel:
    chosen = {"read_s": 2.0, "total_s": 6.0, "attempts": 1} | limits
    return CompletionsModel(ModelSettings(base_url=tuple(server.url for server in servers), limits=chosen))


def asked(server: Server) -> int:
    found: int = stats(server)["requests"].get("/v1/completions", 0)
    return found


def test_all_servers_are_probed_and_then_used(first: Server):
    with scripted_server("llama") as second:
        model = on(first, second)
        assert asked(second) >= 2  # something was drawn, and something weighed
        assert all(replica.checked for replica in model._replicas.replicas)


@pytest.mark.parametrize("fault", ["ignore_bias", "ignore_n", "no_ids", "clip"])
def test_a_second_server_that_lacks_an_ability_is_refused(first: Server, fault: str):
    with scripted_server("llama", fault=fault) as second, pytest.raises(ServerNotSupportedError) as raised:
        on(first, second)
    assert raised.value.server == second.url


@pytest.mark.parametrize(
    ("differs", "named"),
    [
        ({"vocabulary": 300}, "300"),
        ({"context": 1024}, "1024"),
        ({"slots": 3}, "3"),
        ({"name": "other"}, "other"),
    ],
)
def test_a_second_server_with_something_else_is_refused(first: Server, differs: dict[str, Any], named: str):
    with (
        scripted_server("llama", **differs) as second,
        pytest.raises((ServerError, ModelNotFoundError)) as raised,
    ):
        on(first, second)
    assert named in str(raised.value)


@pytest.mark.parametrize("dialect", ["llama", "vllm"])
def test_a_server_that_comes_later_is_probed_before_it_is_used(
    first: Server, dialect: Literal["llama", "vllm"]
):
    with ExitStack() as stack:
        port = free_port()
        late = Server(["true"], port=port)
        model = on(first, late)
        request = Sample(model.encode("Good day people"), 1, 2, 7)
        searches = [Search() for _ in range(8)]
        late = stack.enter_context(scripted_server(dialect, fault="ignore_bias", port=port))
        replica = model._replicas.replicas[1]
        replica.retry_at = 0.0
        for search in searches:
            done: list[None] = []
            (pending,) = model.send([request], search, None, lambda done=done: done.append(None))  # type: ignore[misc]
            wait_for(done)
            assert pending.error is None and pending.reply is not None
        assert not replica.checked
        assert stats(late)["requests"]["/v1/models"] >= 1
        assert stats(late)["prompts"] < 8  # only what the probe sent


def test_a_server_that_is_away_while_it_is_probed_is_probed_again(first: Server):
    with scripted_server("llama") as second:
        control(second, "503", times=1)
        model = on(first, second)
        assert [replica.checked for replica in model._replicas.replicas] == [True, False]
        request = Sample(model.encode("Good day people"), 1, 2, 7)
        searches = [Search() for _ in range(4)]
        for search in searches:
            done: list[None] = []
            model.send([request], search, None, lambda done=done: done.append(None))  # type: ignore[misc]
            wait_for(done)
        assert all(replica.checked for replica in model._replicas.replicas)


class Search:
    """Whose requests these are."""


def wait_for(done: list[None]) -> None:
    end = time.monotonic() + 10
    while not done:
        assert time.monotonic() < end
        time.sleep(0.005)
