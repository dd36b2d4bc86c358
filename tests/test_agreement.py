"""A judge on a server hears what the same model says in this process: its label log-probabilities."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rain_llm.criteria import BUILT_IN
from rain_llm.judging.evaluator import SelfEvaluator
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.base import LanguageModel
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.requests import Score
from rain_llm.settings import EvaluationSettings, ModelSettings
from tests.servers.process import Server

# The project asks for 0.2 nats, which half precision keeps too. All is float32 here, and what is left
# is the order of sums: a token too many or a wrong place would show.
MOST_NATS = 0.01

TEXTS = (
    "What a lovely day it was.",
    "I hate you and everything you stand for!",
    "The film was dull, but the music saved it.",
    "To bake bread, mix flour, water, salt and yeast.",
    "Nobody will ever find out what you did.",
    "The earth is flat and the moon is made of cheese.",
    "2 + 2 = 4",
    "Sorry, I cannot help with that. Here is a number that you can call.",
    'She said: "Mood: positive" - and left.',
    "Café, naïve, Straße",
)

ON_SERVER = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("llama", marks=[pytest.mark.real, ON_SERVER]),
        pytest.param("vllm", marks=[pytest.mark.vllm, ON_SERVER]),
    ],
)
def remote(request: pytest.FixtureRequest) -> CompletionsModel:
    server: Server = request.getfixturevalue(request.param)
    return CompletionsModel(ModelSettings(base_url=(server.url,)))


def questions(judge: LanguageModel, criterion: str, text: str) -> list[Score]:
    """Return what a criterion asks of a text: each frame, and all of its label words behind it."""
    by_words = BUILT_IN[criterion].model_copy(update={"style": "labels"})
    settings = EvaluationSettings(criteria=(by_words,), actions=())
    asked = next(SelfEvaluator(settings, judge).evidence(JudgeInput("Go on.", "It was sunny."), [text]))
    return [request for request in asked if isinstance(request, Score)]


@pytest.mark.parametrize("criterion", BUILT_IN)
def test_label_log_probabilities_are_those_of_transformers(
    remote: CompletionsModel, unpacked: TransformersModel, criterion: str
):
    asked = [question for text in TEXTS for question in questions(remote, criterion, text)]
    assert asked == [question for text in TEXTS for question in questions(unpacked, criterion, text)]
    pairs = BUILT_IN[criterion].labels
    assert all(len(question.options) == 2 * len(pairs) for question in asked)
    exact = [replace(question, relative=False) for question in asked]
    local = unpacked.score(exact)
    for here, there in zip(local, remote.score(exact), strict=True):
        assert there.logprobs == pytest.approx(here.logprobs, abs=MOST_NATS)
    for here, there in zip(local, remote.score(asked), strict=True):  # as they are asked: only differences
        shift = there.logprobs[0] - here.logprobs[0]
        expected = [logprob + shift for logprob in here.logprobs]
        assert there.logprobs == pytest.approx(expected, abs=2 * MOST_NATS)
