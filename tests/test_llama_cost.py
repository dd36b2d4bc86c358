"""What an answer costs the real llama-server, counted from the ``timings`` of its replies at fixed seeds."""

from __future__ import annotations

import pytest

from benchmarks.llama import CHATS, Load, answers, counted
from benchmarks.servers import OPENINGS
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.requests import Sample, Score
from rain_llm.settings import ModelSettings
from tests.servers.process import Server

pytestmark = [pytest.mark.real, pytest.mark.allow_hosts(["127.0.0.1"])]

FOUND = 0.95  # of the tokens that the server has read before
TEXT = "The library opens at nine in the morning, and it closes at six in the evening. "


@pytest.fixture(scope="module")
def model(llama: Server) -> CompletionsModel:
    return CompletionsModel(ModelSettings(base_url=(llama.url,)))


def test_a_label_question_after_a_text_costs_one_pass_of_its_own_tokens(model: CompletionsModel):
    prefix, question = model.encode(TEXT), model.encode("\n\nThe tone of this text is")
    labels = tuple(model.encode(label)[:1] for label in (" friendly", " hostile", " kind", " cruel"))
    with counted() as load:
        model.sample([Sample(prefix, 1, 8, 1)])
        model.score([Score(prefix + question, labels, relative=True)])
    (asked,) = load.labels
    assert asked.read == len(asked.prompt) - asked.known <= len(question)
    assert asked.drawn == 1  # nothing is computed for it: the logits of the prompt's last token are enough


def test_samples_of_one_request_share_their_prompt(model: CompletionsModel):
    prefix = model.encode("Once more: " + TEXT * 2)
    for ends in ((), (".",)):
        with counted() as load:
            (reply,) = model.sample([Sample(prefix, 4, 6, 1, ends=ends)])
        assert len(reply.continuations) == 4
        known = sum(asked.known for asked in load.asked[:1])
        assert sum(asked.read for asked in load.asked) <= len(prefix) - known + len(load.asked)
        prefix += prefix[:1]


@pytest.mark.parametrize("kind", ["chat", "opening"])
def test_an_answer_finds_what_the_server_has_read(llama: Server, kind: str):
    load: Load = (
        answers(llama.url, "harmlessness", 32, CHATS[1:2])
        if kind == "chat"
        else answers(llama.url, "positive_sentiment", 32, OPENINGS[:1])
    )
    print(f"\n{kind}: {load}")
    assert load.found >= FOUND
    prompts = [asked.prompt for asked in load.labels]
    assert len(set(prompts)) == len(prompts)  # one request for all labels at a place
    assert all(asked.drawn == 1 for asked in load.labels)
