"""Standard tests for LangChain text models (``BaseLLM``), for which langchain-tests has none.

Derive from the two classes in a test file, and pytest runs what they hold on your model::

    class TestMyLLM(TextLLMIntegrationTests):
        @property
        def llm_class(self) -> type[BaseLLM]:
            return MyLLM

        @property
        def llm_params(self) -> dict[str, Any]:
            return {"model": "my-model", "temperature": 0}

The unit tests never ask the model for an answer; the integration tests do. What a model cannot do is
declared by a property, and its test is then skipped. Some tests are coroutines: pytest-asyncio
runs them where its ``asyncio_mode`` is "auto".
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.load import dumpd, load
from langchain_core.messages import HumanMessage
from langchain_core.prompts import PromptTemplate
from pydantic import SecretStr

from langchain_rain._recording import WAYS, Recorder, ask, cache_key, fresh_cache


class _TextLLMTests:
    """What both classes know of the model."""

    @property
    def llm_class(self) -> type[BaseLLM]:
        """The class under test; to be overridden."""
        raise NotImplementedError("override llm_class")

    @property
    def llm_params(self) -> dict[str, Any]:
        """What the class is constructed with, best so that equal prompts have equal answers."""
        return {}

    def make(self, **changes: Any) -> BaseLLM:
        """Construct the model, with changes to ``llm_params``."""
        return self.llm_class(**{**self.llm_params, **changes})

    def declared(self, name: str) -> Any:
        """Return what a property declares; skip the test if that is nothing."""
        return getattr(self, name) or pytest.skip(f"{name} is not declared")

    @pytest.fixture
    def llm(self) -> BaseLLM:
        """The model under test."""
        return self.make()


class TextLLMUnitTests(_TextLLMTests):
    """Tests that need no answer of the model."""

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        """Environment variables, constructor arguments, and the attributes that come of both.

        An attribute that is a ``SecretStr`` is compared with its secret, which must show nowhere.
        """
        return {}, {}, {}

    @property
    def distinct_params(self) -> list[dict[str, Any]]:
        """Changes to ``llm_params``, each of which changes answers: no two may share cache entries."""
        return []

    def test_init(self) -> None:
        """The class takes its parameters and makes a text model."""
        assert isinstance(self.make(), BaseLLM), f"{self.llm_class} is no BaseLLM"

    def test_init_from_env(self) -> None:
        """Parameters are read from the environment; a secret among them shows nowhere."""
        environment, params, expected = self.init_from_env_params
        if not environment:
            pytest.skip("init_from_env_params is not declared")
        with mock.patch.dict(os.environ, environment):
            llm = self.llm_class(**params)
        secrets = []
        for name, value in expected.items():
            actual = getattr(llm, name)
            if isinstance(actual, SecretStr):
                actual = actual.get_secret_value()
                secrets.append(actual)
            assert actual == value, f"{name} is not what the environment says"
        shown = f"{llm!r} {llm} {json.dumps(dumpd(llm), default=str)} {cache_key(llm)}"
        for secret in secrets:
            assert secret not in shown, "a secret shows in repr, str, dumpd or the cache key"

    def test_type(self, llm: BaseLLM) -> None:
        """The model has a type name for tracers."""
        assert isinstance(llm._llm_type, str)
        assert llm._llm_type, "_llm_type is empty"

    def test_identifying_params_can_be_written(self, llm: BaseLLM) -> None:
        """What identifies the model is JSON: tracers and cache keys write it."""
        json.dumps(dict(llm._identifying_params))

    def test_equal_models_share_cache_keys(self) -> None:
        """Two models made alike have one cache key."""
        assert cache_key(self.make()) == cache_key(self.make())

    def test_different_models_have_different_cache_keys(self) -> None:
        """Whatever changes an answer changes the cache key, too."""
        every = [{}, *self.declared("distinct_params")]
        keys = [cache_key(self.make(**changes)) for changes in every]
        for (one, key), (other, other_key) in itertools.combinations(zip(every, keys, strict=True), 2):
            assert key != other_key, f"{one} and {other} share cache entries"

    def test_serialisation(self) -> None:
        """What says that it can be written and loaded again comes back equal; what does not, says so."""
        environment, params, _ = self.init_from_env_params
        with mock.patch.dict(os.environ, environment):
            llm = self.make(**params)
            written = dumpd(llm)
            if not llm.is_lc_serializable():
                assert written["type"] == "not_implemented"
                return
            names = [llm.get_lc_namespace()[0]]
            kinds = [self.llm_class]
            loaded = load(written, allowed_objects=kinds, valid_namespaces=names, secrets_from_env=True)
            assert loaded == llm, "the loaded model differs"


class TextLLMIntegrationTests(_TextLLMTests):
    """Tests that ask the model for answers."""

    @property
    def prompts(self) -> list[str]:
        """Prompts with different answers, three at least."""
        return ["The capital of France is", "Dear neighbour, thank you for", "Two and two make"]

    @property
    def is_deterministic(self) -> bool:
        """Equal prompts have equal answers."""
        return True

    @property
    def streams(self) -> bool:
        """``_stream`` is there: an answer comes in several chunks, each reported to the callbacks."""
        return True

    @property
    def supports_stop(self) -> bool:
        """An answer ends before a stop string."""
        return True

    @property
    def generation_info_keys(self) -> set[str]:
        """What stands in the ``generation_info`` of every answer."""
        return set()

    @property
    def call_overrides(self) -> list[dict[str, Any]]:
        """Arguments of a call, each of which changes the answer to the first prompt."""
        return []

    @property
    def failing_prompt(self) -> str | None:
        """A prompt that the model refuses with an exception."""
        return None

    @property
    def longest_pause_s(self) -> float:
        """For how long an answer may keep the event loop from anything else, in seconds."""
        return 0.5

    def agree(self, *answers: str) -> None:
        """Check answers to one prompt: all are text, and equal where the model is deterministic."""
        for answer in answers:
            assert isinstance(answer, str), f"{type(answer).__name__} instead of text"
            assert answer, "the answer is empty"
            assert not self.is_deterministic or answer == answers[0], f"{answer!r} is not {answers[0]!r}"

    def test_all_inputs(self, llm: BaseLLM) -> None:
        """A text, a prompt value and a list of messages can be asked."""
        text = self.prompts[0]
        self.agree(llm.invoke(text), llm.invoke(PromptTemplate.from_template("{x}").invoke({"x": text})))
        self.agree(llm.invoke([HumanMessage(text)]))

    async def test_all_ways_agree(self) -> None:
        """Invoke, batch and stream give one answer, with and without async."""
        self.agree(*[await ask(self.make(), way, self.prompts[0]) for way in WAYS])

    async def test_batches_keep_their_order(self) -> None:
        """Each answer of a batch stands where its prompt stands."""
        alone = [self.make().invoke(prompt) for prompt in self.prompts]
        prompts: list[LanguageModelInput] = [*self.prompts]
        together = self.make().batch(prompts), await self.make().abatch(prompts)
        for answers in together:
            assert len(answers) == len(self.prompts)
            for expected, answer in zip(alone, answers, strict=True):
                self.agree(expected, answer)

    async def test_streams_in_chunks(self, llm: BaseLLM) -> None:
        """An answer comes in more than one chunk, or streaming is not declared."""
        chunks = [chunk for chunk in llm.stream(self.prompts[0]) if chunk]
        later = [chunk async for chunk in llm.astream(self.prompts[0]) if chunk]
        assert min(len(chunks), len(later)) > 1 or not self.streams, "the answer comes in one chunk"

    async def test_tokens_reach_callbacks_once(self) -> None:
        """Each streamed token is reported once, and joined they are the answer."""
        self.declared("streams")
        for way in ("stream", "astream"):
            recorder = Recorder()
            answer = await ask(self.make(), way, self.prompts[0], {"callbacks": [recorder]})
            assert "".join(recorder.tokens) == answer

    async def test_runs_reach_callbacks_once(self) -> None:
        """Each run begins once and ends once, with its answer."""
        for way in ("invoke", "ainvoke", "stream", "astream"):
            recorder = Recorder()
            answer = await ask(self.make(), way, self.prompts[0], {"callbacks": [recorder]})
            runs = (len(recorder.starts), len(recorder.ends), recorder.errors)
            assert runs == (1, 1, []), f"{way}: not one run"
            assert recorder.ends[0].generations[0][0].text == answer, f"{way}: another answer is reported"

    def test_config_reaches_callbacks(self, llm: BaseLLM) -> None:
        """Tags, metadata and the run's name and id get through, given by either way."""
        recorder, run_id = Recorder(), uuid4()
        named = llm.with_config({"tags": ["one"], "metadata": {"key": "value"}, "callbacks": [recorder]})
        named.invoke(self.prompts[0], {"tags": ["two"], "run_name": "mine", "run_id": run_id})
        (start,) = recorder.starts
        assert {"one", "two"} <= set(start["tags"])
        assert start["metadata"]["key"] == "value"
        assert (start["name"], start["run_id"]) == ("mine", run_id)

    def test_stop(self) -> None:
        """An answer with a stop string is the answer without it, up to it; bound or for one call."""
        if not (self.supports_stop and self.is_deterministic):
            pytest.skip("supports_stop or is_deterministic is declared False")
        answer = self.make().invoke(self.prompts[0])
        words = answer.split()
        assert len(words) > 1, f"the answer {answer!r} is too short to be stopped: take another first prompt"
        stop = words[-1]
        expected = answer[: answer.index(stop)]
        bound = self.make().bind(stop=[stop])
        for stopped in (
            self.make().invoke(self.prompts[0], stop=[stop]),
            bound.invoke(self.prompts[0]),
            "".join(bound.stream(self.prompts[0])),
        ):
            assert stopped.rstrip() == expected.rstrip(), f"not stopped before {stop!r}"

    def test_generation_info(self) -> None:
        """Every answer of a batch carries what is declared, and so does a streamed one."""
        keys, recorder = self.declared("generation_info_keys"), Recorder()
        list(self.make().stream(self.prompts[0], {"callbacks": [recorder]}))
        for result in (self.make().generate(self.prompts), *recorder.ends):
            for (generation,) in result.generations:
                assert set(generation.generation_info or {}) >= keys

    def test_cache(self) -> None:
        """A cached answer comes back without another question to the model."""
        generate = self.llm_class._generate
        with fresh_cache(), mock.patch.object(self.llm_class, "_generate", autospec=True) as counted:
            counted.side_effect = generate
            answer = self.make().invoke(self.prompts[0])
            assert self.make().invoke(self.prompts[0]) == answer
            assert counted.call_count == 1, "the second call asked the model again"

    def test_cache_knows_call_overrides(self) -> None:
        """An argument of a call that changes the answer is no hit for a call without it."""
        every = [{}, *self.declared("call_overrides")]
        expected = [self.make().invoke(self.prompts[0], **overrides) for overrides in every]
        assert len(set(expected)) > 1, "call_overrides changes no answer: the test would show nothing"
        with fresh_cache():
            for overrides, answer in zip(every, expected, strict=True):
                bound = self.make().bind(**overrides).invoke(self.prompts[0])
                assert bound == answer, f"{overrides}: the cached answer of another call came back"

    async def test_batch_returns_each_its_own_exception(self) -> None:
        """Asked to return exceptions, a batch answers the prompts that can be answered."""
        failing = self.declared("failing_prompt")
        batch: list[LanguageModelInput] = [self.prompts[0], failing, self.prompts[1]]
        for answers in (
            self.make().batch(batch, return_exceptions=True),
            await self.make().abatch(batch, return_exceptions=True),
        ):
            failed = [isinstance(answer, BaseException) for answer in answers]
            assert failed == [False, True, False], "the failing prompt took others with it"

    async def test_errors_reach_callbacks(self) -> None:
        """A failed run is reported once as an error, and not as an end."""
        failing = self.declared("failing_prompt")
        for way in ("invoke", "astream"):
            recorder = Recorder()
            with suppress(Exception):
                await ask(self.make(), way, failing, {"callbacks": [recorder]})
            assert (len(recorder.errors), len(recorder.ends)) == (1, 0)

    async def test_event_loop_stays_free(self, llm: BaseLLM) -> None:
        """While answers are written, the event loop does other things."""
        pauses = []

        async def beat() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                pauses.append(time.perf_counter() - before)

        beating = asyncio.create_task(beat())
        await asyncio.sleep(0.02)
        await asyncio.gather(*(llm.ainvoke(prompt) for prompt in self.prompts))
        await asyncio.sleep(0.02)
        beating.cancel()
        assert max(pauses) < self.longest_pause_s, f"the event loop stood still for {max(pauses):.2f} s"

    def test_threads(self, llm: BaseLLM) -> None:
        """One model answers several threads at once, each what it would have had alone."""
        alone = [self.make().invoke(prompt) for prompt in self.prompts]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(llm.invoke, self.prompts * 4))
        for expected, answer in zip(alone * 4, answers, strict=True):
            self.agree(expected, answer)

    async def test_stream_closed_early(self, llm: BaseLLM) -> None:
        """A stream that is closed early leaves the model ready for the next call."""
        for _ in llm.stream(self.prompts[0]):
            break
        async for _ in llm.astream(self.prompts[0]):
            break
        self.agree(llm.invoke(self.prompts[0]))
