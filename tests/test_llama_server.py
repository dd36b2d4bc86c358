"""What a label question costs on llama-server: one request and one pass of its own tokens."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.models.servers.dialect import PATH, Cost
from rain_llm.models.servers.llama_server import LlamaServer
from rain_llm.requests import Sample, Score
from tests.servers import babble
from tests.servers.hostile import Connect
from tests.servers.replies import Llama

PREFIX = tuple(babble.encode("Good day people, it is"))


@pytest.fixture
def model(connect: Connect) -> CompletionsModel:
    return connect("llama")[0]


def requests_for(model: CompletionsModel, *questions: Score) -> tuple[int, list[tuple[float, ...]]]:
    """Return how many requests the questions take, and the log-probabilities."""
    before = model.totals.http.requests
    found = [reply.logprobs for reply in model.score(questions)]
    return model.totals.http.requests - before, found


def test_labels_of_which_only_differences_count_take_one_request(model: CompletionsModel):
    labels = tuple((babble.SIZE - i,) for i in range(1, 25))
    twice, (exact,) = requests_for(model, Score(PREFIX, labels))
    once, (relative,) = requests_for(model, Score(PREFIX, labels, relative=True))
    assert (twice, once) == (2, 1)
    shift = relative[0] - exact[0]
    assert relative == pytest.approx([logprob + shift for logprob in exact], abs=1e-4)


def test_the_second_token_of_a_label_takes_one_more_request(model: CompletionsModel):
    labels = ((270,), (280, 290), (300, 310))
    found, (relative,) = requests_for(model, Score(PREFIX, labels, relative=True))
    _, (exact,) = requests_for(model, Score(PREFIX, labels))
    assert found == 3
    shift = relative[0] - exact[0]
    assert relative == pytest.approx([logprob + shift for logprob in exact], abs=1e-4)


def test_a_prefix_that_another_question_needs_exactly_is_exact(model: CompletionsModel):
    own = Score(PREFIX, ((270,), (280,)), relative=True)
    deeper = Score(PREFIX[:-1], ((PREFIX[-1], 270), (300,)), relative=True)
    _, (alone,) = requests_for(model, Score(PREFIX, ((270,), (280,))))
    _, (found, _) = requests_for(model, own, deeper)
    assert found == pytest.approx(alone, abs=1e-4)


def test_one_token_takes_one_request_and_one_that_is_left_out_two_more():
    server = Llama("scripted", "", 2048, 4)
    sent: list[dict[str, Any]] = []
    hidden = 200  # a byte of a character: no reply of the real server shows it

    async def ask(body: dict[str, Any], read: Callable[[Any], Any], path: str = PATH) -> Any:
        sent.append(body)
        reply = json.loads(json.dumps(server.complete(body)))
        for choice in reply["choices"]:
            content = choice["logprobs"]["content"]
            choice["logprobs"]["content"] = [place for place in content if place["id"] != hidden]
        return read(reply)

    dialect = LlamaServer("scripted", 4, common=PREFIX[-1], size=babble.SIZE)
    exact = babble.logprobs(babble.read(PREFIX))
    for token, requests in ((270, 1), (PREFIX[-1], 1), (hidden, 3)):
        sent.clear()
        cost = Cost()
        weighed = asyncio.run(dialect.weigh(ask, {PREFIX: frozenset({token})}, cost))
        assert math.isclose(weighed[PREFIX][token], exact[token], abs_tol=1e-4)
        assert (len(sent), cost.prompt_tokens) == (requests, requests * len(PREFIX))


def test_requests_of_a_search_go_one_after_another_and_the_scores_first(
    model: CompletionsModel, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    under_way = 0

    def watched(name: str) -> None:
        real = getattr(model, name)

        async def watch(*given: Any) -> None:
            nonlocal under_way
            under_way += 1
            assert under_way == 1
            await real(*given)
            under_way -= 1
            order.append(name)

        monkeypatch.setattr(model, name, watch)

    watched("_sample")
    watched("_score")
    requests: list[Sample | Score] = [
        Sample(PREFIX, 1, 2, 1),
        Score(PREFIX, ((270,),)),
        Sample(PREFIX, 1, 2, 2),
    ]
    answered = threading.Semaphore(0)
    pending = model.send(requests, model, None, answered.release)
    for _ in pending:
        assert answered.acquire(timeout=5)
    assert order == ["_score", "_sample", "_sample"]
    assert all(one.reply is not None for one in pending)
