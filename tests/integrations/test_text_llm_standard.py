"""The standard tests for text models: on RainLLM, on foreign models, and on models with one fault each."""

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest
from langchain_core.language_models import LLM, BaseLLM
from langchain_core.language_models.fake import FakeListLLM, FakeStreamingListLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import Field, PrivateAttr, SecretStr

from langchain_rain import RainLLM
from langchain_rain.testing import TextLLMIntegrationTests, TextLLMUnitTests
from rain_llm import CIVILITY, Rain, RainSettings
from rain_llm.models.scripted import END, ScriptedModel

SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 40, "seed": 1},
    search={"iterations": 8, "leaves": 1},
    evaluation={"criteria": [CIVILITY]},
)


def next_words(text: str) -> Mapping[str, float]:
    """Count the words on, up to twelve; every third ends a sentence."""
    count = len(text.replace(CIVILITY.guide, "").split())
    if count > 12:
        return {END: 1.0}
    if count % 3 == 0 and not text.endswith("."):
        return {".": 1.0}
    return {f" n{count}": 3.0, f" m{count}": 1.0}


def opinion(question: str, label: str) -> float:
    """Find the more civil, the more of the words begin with n."""
    civil = label.strip() in {good for good, _ in CIVILITY.labels}
    return -1.0 - (0.2 * question.count(" m") if civil else 0.1 * question.count(" n"))


ENGINE = Rain(SETTINGS, model=ScriptedModel(next_words, opinion))


# --- RainLLM -------------------------------------------------------------------------------------


class TestRainLLMUnit(TextLLMUnitTests):
    @property
    def llm_class(self):
        return RainLLM

    @property
    def llm_params(self):
        return {"settings": SETTINGS}

    @property
    def distinct_params(self):
        return [
            {"settings": SETTINGS.updated(on_unsafe="raise")},
            {"settings": SETTINGS.updated(generation={"seed": 2})},
            {"model": "another/model"},
            {"context": "a passage"},
        ]


class TestRainLLMIntegration(TextLLMIntegrationTests):
    @property
    def llm_class(self):
        return RainLLM

    @property
    def llm_params(self):
        return {"rain": ENGINE}

    @property
    def generation_info_keys(self):
        return {"usage", "verdict", "accepted", "stop_reason", "settings_hash"}

    @property
    def call_overrides(self):
        return [{"max_new_tokens": 2}, {"seed": 5, "temperature": 3.0}]

    @property
    def failing_prompt(self):
        return " "


# --- foreign models ------------------------------------------------------------------------------


class Parrot(LLM):
    """Says the prompt's words backwards: a faultless model by LangChain's own helper class."""

    key: SecretStr = Field(default_factory=lambda: SecretStr(os.environ.get("PARROT_KEY", "")))
    tail: str = "Amen."
    pause_s: float = 0.0

    @property
    def _llm_type(self):
        return "parrot"

    @property
    def _identifying_params(self):
        return {"tail": self.tail}

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        if prompt == "fail":
            raise ValueError("as asked")
        time.sleep(self.pause_s)
        text = " ".join([*reversed(prompt.split()), self.tail])
        for end in stop or []:
            text = text.split(end)[0]
        return text

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        for i, word in enumerate(self._call(prompt, stop, **kwargs).split(" ")):
            chunk = GenerationChunk(text=f" {word}" if i else word)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


class TestParrotUnit(TextLLMUnitTests):
    @property
    def llm_class(self) -> type[BaseLLM]:
        return Parrot

    @property
    def init_from_env_params(self):
        return {"PARROT_KEY": "wings"}, {}, {"key": "wings"}

    @property
    def distinct_params(self):
        return [{"tail": "Squawk!"}]


class TestParrot(TextLLMIntegrationTests):
    @property
    def llm_class(self) -> type[BaseLLM]:
        return Parrot


class Loadable(Parrot):
    """It can be written and loaded again."""

    @classmethod
    def is_lc_serializable(cls):
        return True

    @property
    def lc_secrets(self):
        return {"key": "PARROT_KEY"}


class TestLoadableUnit(TestParrotUnit):
    @property
    def llm_class(self) -> type[BaseLLM]:
        return Loadable


class TestFakeStreamingListLLMUnit(TextLLMUnitTests):
    @property
    def llm_class(self):
        return FakeStreamingListLLM

    @property
    def llm_params(self):
        return {"responses": ["Yes, of course."]}

    @property
    def distinct_params(self):
        return [{"responses": ["No."]}]


class TestFakeListLLM(TextLLMIntegrationTests):
    """It has no ``_stream`` and knows no stop strings."""

    @property
    def llm_class(self):
        return FakeListLLM

    @property
    def llm_params(self):
        return {"responses": ["Yes, of course."]}

    @property
    def streams(self):
        return False

    @property
    def supports_stop(self):
        return False


# --- one fault each: the tests find it -----------------------------------------------------------


class Untyped(Parrot):
    @property
    def _llm_type(self):
        return ""


class Unwritable(Parrot):
    @property
    def _identifying_params(self):
        return {"lock": threading.Lock()}


class Restless(Parrot):
    @property
    def _identifying_params(self):
        return {"at": time.perf_counter_ns()}


class Lax(Parrot):
    @property
    def _identifying_params(self):
        return {}


class Talkative(Parrot):
    def __repr__(self):
        return self.key.get_secret_value()


class Lossy(Loadable):
    @property
    def lc_attributes(self):
        return {"tail": "lost"}


class TextOnly(Parrot):
    def _convert_input(self, model_input):
        if not isinstance(model_input, str):
            raise TypeError("text only")
        return super()._convert_input(model_input)


class OtherAsync(Parrot):
    async def _acall(self, prompt, stop=None, run_manager=None, **kwargs):
        return "something else"


class Shuffled(Parrot):
    def batch(self, inputs, config=None, **kwargs):
        return super().batch(inputs, config, **kwargs)[::-1]


class Lump(Parrot):
    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        chunk = GenerationChunk(text=self._call(prompt, stop))
        if run_manager:
            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
        yield chunk


class Mute(Parrot):
    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        return super()._stream(prompt, stop, None)


class Stammering(Parrot):
    def invoke(self, *args, **kwargs):
        super().invoke(*args, **kwargs)
        return super().invoke(*args, **kwargs)


class Untagged(Parrot):
    def invoke(self, input, config=None, **kwargs):
        return super().invoke(input, {"callbacks": (config or {}).get("callbacks")}, **kwargs)


class Unstoppable(Parrot):
    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        return super()._call(prompt, None)


class FirstOnly(Parrot):
    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        infos = [{"usage": 1}, *[None] * len(prompts)]
        texts = [self._call(prompt, stop) for prompt in prompts]
        return LLMResult(
            generations=[[Generation(text=t, generation_info=i)] for t, i in zip(texts, infos, strict=False)]
        )


class Uncached(Parrot):
    cache: bool = False


class Loud(Parrot):
    """LangChain's cache knows no arguments of a call; neither does this model's own key."""

    def _call(self, prompt, stop=None, run_manager=None, loud=False, **kwargs):
        text = super()._call(prompt, stop)
        return text.upper() if loud else text


class Swallowing(Parrot):
    def invoke(self, input, config=None, **kwargs):
        try:
            return super().invoke(input, config, **kwargs)
        except ValueError:
            return super().invoke("sorry", config, **kwargs)


class Blocking(Parrot):
    async def _acall(self, prompt, stop=None, run_manager=None, **kwargs):
        return self._call(prompt, stop)


class Absentminded(Parrot):
    """Keeps what it was asked in a place that all threads share."""

    _asked: str = PrivateAttr("")

    def _call(self, prompt, stop=None, run_manager=None, **kwargs):
        self._asked = prompt
        time.sleep(0.01)
        return super()._call(self._asked, stop)


class Busy(Parrot):
    """A stream that is not read to its end leaves it locked."""

    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("still busy")
        yield from super()._stream(prompt, stop, run_manager)
        self._lock.release()


UNIT_FAULTS = [
    ("test_init", int),
    ("test_init_from_env", Talkative),
    ("test_type", Untyped),
    ("test_identifying_params_can_be_written", Unwritable),
    ("test_equal_models_share_cache_keys", Restless),
    ("test_different_models_have_different_cache_keys", Lax),
    ("test_serialisation", Lossy),
]
FAULTS = [
    ("test_all_inputs", TextOnly),
    ("test_all_ways_agree", OtherAsync),
    ("test_batches_keep_their_order", Shuffled),
    ("test_streams_in_chunks", Lump),
    ("test_tokens_reach_callbacks_once", Mute),
    ("test_runs_reach_callbacks_once", Stammering),
    ("test_config_reaches_callbacks", Untagged),
    ("test_stop", Unstoppable),
    ("test_generation_info", FirstOnly),
    ("test_cache", Uncached),
    ("test_cache_knows_call_overrides", Loud),
    ("test_batch_returns_each_its_own_exception", Parrot),  # a fault of LangChain's own batch
    ("test_errors_reach_callbacks", Swallowing),
    ("test_event_loop_stays_free", Blocking),
    ("test_threads", Absentminded),
    ("test_stream_closed_early", Busy),
]


def run(tests: Any, name: str) -> None:
    """Run one standard test as pytest would."""
    method = getattr(tests, name)
    wanted = method.__code__.co_varnames[: method.__code__.co_argcount]
    outcome = method(*([tests.make()] if "llm" in wanted else []))
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)


@pytest.mark.parametrize(("name", "faulty"), UNIT_FAULTS)
def test_unit_tests_find_a_fault(name, faulty):
    class Tests(TestParrotUnit):
        @property
        def llm_class(self):
            return faulty

    with pytest.raises(Exception):  # noqa: B017
        run(Tests(), name)


class Declaring(TestParrot):
    """All that a model may declare; a pause, so that what blocks is noticed."""

    __test__ = False

    @property
    def generation_info_keys(self):
        return {"usage"}

    @property
    def call_overrides(self):
        return [{"loud": True}]

    @property
    def failing_prompt(self):
        return "fail"

    @property
    def longest_pause_s(self):
        return 0.1


@pytest.mark.parametrize(("name", "faulty"), FAULTS)
def test_integration_tests_find_a_fault(name, faulty):
    class Tests(Declaring):
        @property
        def llm_class(self):
            return faulty

        @property
        def llm_params(self):
            return {"pause_s": 0.2} if faulty is Blocking else {}

    with pytest.raises(Exception):  # noqa: B017
        run(Tests(), name)


def test_every_standard_test_is_known_to_find_a_fault():
    for tests, faults in ((TextLLMUnitTests, UNIT_FAULTS), (TextLLMIntegrationTests, FAULTS)):
        names = {name for name in dir(tests) if name.startswith("test_")}
        assert names == {name for name, _ in faults}
