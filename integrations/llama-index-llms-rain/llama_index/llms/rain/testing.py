"""Standard tests for language models of LlamaIndex, whoever wrote them. Needs pytest (the extra ``testing``).

A class of tests for each model::

    class TestMyLLM(LLMStandardTests):
        @pytest.fixture
        def llm(self) -> MyLLM:
            return MyLLM(...)

Properties say what the model has; what it has not is skipped. A test that a model cannot pass is overridden
and marked ``xfail(reason=...)``. The model should answer the same twice; no plugin of pytest is needed. To
see values in what fails, ``conftest.py`` calls
``pytest.register_assert_rewrite("llama_index.llms.rain.testing")``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr, ValidationError
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import LLM, ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool, FunctionTool

Answer: TypeAlias = CompletionResponse | ChatResponse

COMPLETIONS = ("complete", "stream_complete", "acomplete", "astream_complete")
CHATS = ("chat", "stream_chat", "achat", "astream_chat")


class City(BaseModel):
    """A city."""

    name: str


class Journey(BaseModel):
    """A journey from one city to another."""

    start: City
    stops: list[City]


def add(a: int, b: int) -> int:
    """Add two whole numbers."""
    return a + b


class LLMStandardTests:
    """What a language model has to do to work in LlamaIndex's engines, agents and counters."""

    # -- what a model's own class says of it ---------------------------------------------------------

    @pytest.fixture
    def llm(self) -> LLM:
        """Return the model; a new one for each test."""
        raise NotImplementedError("override the fixture llm")

    @property
    def prompt(self) -> str:
        """A text that the model continues."""
        return "The capital of France is"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of every call, for example a seed."""
        return {}

    @property
    def has_stop(self) -> bool:
        """A call takes ``stop``, a list of strings before which the answer ends."""
        return True

    @property
    def has_serialisation(self) -> bool:
        """``from_dict`` makes a model of what ``to_dict`` gives."""
        return True

    @property
    def has_function_calling(self) -> bool:
        """The model is a ``FunctionCallingLLM`` and calls the tool ``add`` when it has to."""
        return False

    @property
    def has_structured_predict(self) -> bool:
        """The model predicts instances of nested classes."""
        return False

    @property
    def bad_options(self) -> dict[str, Any]:
        """Keyword arguments that the model has to refuse with an error; empty: none are known."""
        return {}

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """The errors by which the model refuses ``bad_options``."""
        return (ValueError, TypeError)

    def seen(self, llm: LLM, answer: str) -> str:
        """Return all that the model was given last, where that can be known, else an empty text.

        Args:
            llm: the model.
            answer: what it answered.
        """
        return ""

    # -- what it is ----------------------------------------------------------------------------------

    def test_metadata(self, llm: LLM) -> None:
        """The prompt's room is known."""
        metadata = llm.metadata
        assert isinstance(metadata, LLMMetadata)
        assert metadata.context_window > 0
        assert metadata.num_output == -1 or 0 < metadata.num_output < metadata.context_window
        assert metadata.model_name

    def test_function_calling_is_declared(self, llm: LLM) -> None:
        """Agents look at the metadata, programs at the class."""
        assert llm.metadata.is_function_calling_model == self.has_function_calling
        assert isinstance(llm, FunctionCallingLLM) or not self.has_function_calling

    def test_class_name(self, llm: LLM) -> None:
        """The class has its own name, by which it is found again."""
        inherited = {base.class_name() for base in type(llm).__mro__[1:] if issubclass(base, BaseLLM)}
        assert llm.class_name() == type(llm).class_name()
        assert llm.class_name() not in inherited
        assert llm.to_dict()["class_name"] == llm.class_name()

    def test_serialisation(self, llm: LLM) -> None:
        """What events and stores write of a model is JSON, and a model is made of it again."""
        json.dumps(llm.to_payload())
        data = json.loads(llm.to_json())
        if not self.has_serialisation:
            pytest.skip("the model says that it cannot be made of its own data")
        again = type(llm).from_dict(data)
        assert again.to_dict() == llm.to_dict()

    # -- the eight methods ------------------------------------------------------------------------------

    def test_completions_agree(self, llm: LLM) -> None:
        """All four ways complete a text alike."""
        texts = {method: _text(self._ask(llm, method)[-1]) for method in COMPLETIONS}
        assert texts["complete"]
        assert len(set(texts.values())) == 1, texts

    def test_chats_agree(self, llm: LLM) -> None:
        """All four ways answer a chat alike, as the assistant."""
        answers = {method: self._ask(llm, method)[-1] for method in CHATS}
        texts = {method: _text(answer) for method, answer in answers.items()}
        assert texts["chat"]
        assert len(set(texts.values())) == 1, texts
        for answer in answers.values():
            assert isinstance(answer, ChatResponse)
            assert answer.message.role is MessageRole.ASSISTANT

    @pytest.mark.parametrize("method", ["stream_complete", "astream_complete", "stream_chat", "astream_chat"])
    def test_deltas_join_to_the_text(self, llm: LLM, method: str) -> None:
        """Each chunk carries the answer so far, and what is new in it."""
        so_far = ""
        chunks = self._ask(llm, method)
        assert chunks
        for chunk in chunks:
            assert chunk.delta is not None
            so_far += chunk.delta
            assert _text(chunk) == so_far

    @pytest.mark.parametrize("method", [*COMPLETIONS, *CHATS])
    def test_the_caller_s_messages_and_options_stay(self, llm: LLM, method: str) -> None:
        """A call changes nothing that it was given."""
        messages, options = self._messages, dict(self.options)
        before = [message.model_dump() for message in messages]
        self._ask(llm, method, messages=messages, **options)
        assert [message.model_dump() for message in messages] == before
        assert options == self.options

    @pytest.mark.parametrize("method", ["stream_complete", "stream_chat"])
    def test_a_stream_may_be_left(self, llm: LLM, method: str) -> None:
        """A stream that is closed early leaves a model that answers."""
        stream = self._call(llm, method)
        next(stream)
        stream.close()
        assert _text(self._ask(llm, "complete")[-1])

    @pytest.mark.parametrize("method", ["astream_complete", "astream_chat"])
    def test_an_async_stream_may_be_left(self, llm: LLM, method: str) -> None:
        """As :meth:`test_a_stream_may_be_left`."""

        async def leave() -> str:
            stream = await self._call(llm, method)
            await anext(stream)
            await stream.aclose()
            return _text(await self._call(llm, "acomplete"))

        assert asyncio.run(leave())

    # -- options ------------------------------------------------------------------------------------------

    def test_stop(self, llm: LLM) -> None:
        """An answer ends before a stop string, in all eight methods."""
        if not self.has_stop:
            pytest.skip("the model says that it takes no stop strings")
        for methods in (COMPLETIONS, CHATS):
            whole = _text(self._ask(llm, methods[0])[-1])
            stop = whole[len(whole) // 2 :][:4]
            for method in methods:
                assert _text(self._ask(llm, method, stop=[stop])[-1]) == whole.partition(stop)[0]

    @pytest.mark.parametrize("method", [*COMPLETIONS, *CHATS])
    def test_what_cannot_be_is_refused(self, llm: LLM, method: str) -> None:
        """A wrong option is an error, not an answer; and the call is over for those who count calls."""
        if not self.bad_options:
            pytest.skip("no option is known that the model refuses")
        counter = _Calls()
        llm.callback_manager = CallbackManager([counter])
        with pytest.raises(self.refusals):
            self._ask(llm, method, **self.bad_options)
        assert counter.started == counter.ended == 1

    # -- templates ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("formatted", [False, True])
    def test_a_prompt_is_formatted_once(self, llm: LLM, formatted: bool) -> None:
        """``completion_to_prompt`` is for prompts that are not formatted yet; ``predict`` formats its own."""
        if llm.metadata.is_chat_model:
            pytest.skip("LlamaIndex sends a chat model messages")
        prompts: list[str] = []

        def wrap(prompt: str) -> str:
            prompts.append(prompt)
            return prompt

        llm.completion_to_prompt = wrap
        if formatted:
            llm.complete(self.prompt, formatted=True, **self.options)
        else:
            llm.predict(PromptTemplate("{text}"), text=self.prompt)
        assert prompts == ([] if formatted else [self.prompt])

    @pytest.mark.parametrize("method", ["predict", "stream", "apredict", "astream"])
    def test_a_system_prompt_is_told_once(self, llm: LLM, method: str) -> None:
        """What ``predict`` puts in front of a prompt is not put there again."""
        llm.system_prompt = "Speak like a sailor."
        answer = self._predict(llm, method)
        seen = self.seen(llm, answer)
        if not seen:
            pytest.skip("what the model was given cannot be known: override seen")
        assert seen.count(llm.system_prompt) == 1
        assert self.prompt in seen

    def test_predictions_agree(self, llm: LLM) -> None:
        """All four ways fill a template and answer alike."""
        texts = {
            method: self._predict(llm, method) for method in ("predict", "stream", "apredict", "astream")
        }
        assert texts["predict"]
        assert len(set(texts.values())) == 1, texts

    # -- async ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("method", ["acomplete", "astream_complete", "achat", "astream_chat"])
    def test_the_event_loop_goes_on(self, llm: LLM, method: str) -> None:
        """A model that takes its time leaves the loop to others meanwhile."""
        self._ask(llm, method)  # what is loaded once is loaded now

        async def ask() -> tuple[float, float]:
            longest, done = 0.0, False

            async def watch() -> None:
                nonlocal longest
                while not done:
                    before = time.perf_counter()
                    await asyncio.sleep(0.001)
                    longest = max(longest, time.perf_counter() - before)

            watching = asyncio.create_task(watch())
            begun = time.perf_counter()
            await asyncio.gather(*(_aread(self._call(llm, method)) for _ in range(4)))
            taken = time.perf_counter() - begun
            done = True
            await watching
            return taken, longest

        taken, longest = asyncio.run(ask())
        assert longest < max(0.25, taken / 8), f"the loop stood still for {longest:.2f} of {taken:.2f} s"

    # -- who counts calls -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("method", [*COMPLETIONS, *CHATS])
    def test_a_call_is_counted_once(self, llm: LLM, method: str) -> None:
        """Callbacks and instrumentation see one beginning and one end."""
        counter = _Calls()
        llm.callback_manager = CallbackManager([counter])
        with _events() as events:
            self._ask(llm, method)
        assert (counter.started, counter.ended) == (1, 1)
        kind = "LLMChat" if method in CHATS else "LLMCompletion"
        assert {name: n for name, n in events.items() if name.endswith(("StartEvent", "EndEvent"))} == {
            f"{kind}StartEvent": 1,
            f"{kind}EndEvent": 1,
        }

    # -- tools ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("sync", [True, False])
    def test_a_tool_is_called(self, llm: LLM, sync: bool, streamed: bool) -> None:
        """A call that has to be is made, with arguments that fit; so do those who go on with its reply."""
        calling = self._calling(llm)
        method = f"{'' if sync else 'a'}{'stream_' if streamed else ''}chat_with_tools"
        asked: dict[str, Any] = {"tools": [_tool()], "user_msg": self.prompt, "tool_required": True}
        answer = asyncio.run(_aread(getattr(llm, method)(**asked, **self.options)))[-1]
        (call, *_) = calling.get_tool_calls_from_response(answer)
        assert call.tool_name == "add"
        assert set(call.tool_kwargs) == {"a", "b"}
        assert all(isinstance(value, int) for value in call.tool_kwargs.values())
        reply = ChatMessage(role="tool", content="5", additional_kwargs={"tool_call_id": call.tool_id})
        history = [*self._messages, answer.message, reply]
        answer = calling.chat_with_tools([_tool()], chat_history=history, **self.options)
        assert answer.message.role is MessageRole.ASSISTANT

    def test_a_tool_is_called_at_once(self, llm: LLM) -> None:
        """``predict_and_call`` returns what the tool says."""
        said = self._calling(llm).predict_and_call([_tool()], self.prompt, tool_required=True, **self.options)
        assert int(str(said.sources[0].raw_output)) == sum(said.sources[0].raw_input["kwargs"].values())

    def test_no_call_is_an_error_if_asked_for(self, llm: LLM) -> None:
        """An answer without calls has none to give."""
        calling = self._calling(llm)
        answer = ChatResponse(message=ChatMessage(role="assistant", content="Paris."))
        assert calling.get_tool_calls_from_response(answer, error_on_no_tool_call=False) == []
        with pytest.raises(ValueError):
            calling.get_tool_calls_from_response(answer, error_on_no_tool_call=True)

    # -- structured prediction ----------------------------------------------------------------------

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("sync", [True, False])
    def test_an_instance_is_predicted(self, llm: LLM, sync: bool, streamed: bool) -> None:
        """A class with classes in it is filled; the template stays as it was."""
        self._predicting(llm)
        template = PromptTemplate("Make up a journey from {place}.")
        method = f"{'' if sync else 'a'}{'stream_' if streamed else ''}structured_predict"
        made = asyncio.run(_aread(getattr(llm, method)(Journey, template, place="Paris")))[-1]
        assert isinstance(made, Journey)
        assert template.output_parser is None

    def test_a_structured_model_answers_instances(self, llm: LLM) -> None:
        """``as_structured_llm`` chats in JSON."""
        self._predicting(llm)
        answer = llm.as_structured_llm(Journey).chat(self._messages)
        assert isinstance(answer.raw, Journey)
        try:
            Journey.model_validate_json(answer.message.content or "")
        except ValidationError as error:
            pytest.fail(f"the message is no JSON of the class: {error}")

    # -- how it is asked ----------------------------------------------------------------------------

    @property
    def _messages(self) -> list[ChatMessage]:
        return [ChatMessage(role="user", content=self.prompt)]

    def _call(
        self, llm: LLM, method: str, messages: Sequence[ChatMessage] | None = None, **options: Any
    ) -> Any:
        asked = self.prompt if method in COMPLETIONS else messages or self._messages
        return getattr(llm, method)(asked, **{**self.options, **options})

    def _ask(self, llm: LLM, method: str, **options: Any) -> list[Answer]:
        """Call one of the eight methods; return its chunks, or its one answer."""

        async def ask() -> list[Answer]:
            return await _aread(self._call(llm, method, **options))

        return asyncio.run(ask())

    def _predict(self, llm: LLM, method: str) -> str:
        async def predict() -> list[str]:
            return await _aread(getattr(llm, method)(PromptTemplate("{text}"), text=self.prompt))

        return "".join(asyncio.run(predict()))

    def _calling(self, llm: LLM) -> FunctionCallingLLM:
        if not self.has_function_calling:
            pytest.skip("the model says that it calls no functions")
        assert isinstance(llm, FunctionCallingLLM)
        return llm

    def _predicting(self, llm: LLM) -> None:
        if not self.has_structured_predict:
            pytest.skip("the model says that it predicts no instances")


# --- helpers ------------------------------------------------------------------------------------------


class _Calls(BaseCallbackHandler):
    """Counts what LlamaIndex's callbacks tell of calls of a language model."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.started = self.ended = 0

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        self.started += event_type is CBEventType.LLM
        return event_id

    def on_event_end(
        self,
        event_type: CBEventType,
        payload: dict[str, Any] | None = None,
        event_id: str = "",
        **kwargs: Any,
    ) -> None:
        self.ended += event_type is CBEventType.LLM

    def start_trace(self, trace_id: str | None = None) -> None:
        """Nothing is traced."""

    def end_trace(self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None) -> None:
        """Nothing is traced."""


class _Listener(BaseEventHandler):
    """Counts instrumentation events by name."""

    _counts: Counter[str] = PrivateAttr(default_factory=Counter)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._counts[event.class_name()] += 1


@contextmanager
def _events() -> Generator[Counter[str], None, None]:
    root, listener = get_dispatcher(), _Listener()
    before = root.event_handlers
    root.event_handlers = [*before, listener]
    try:
        yield listener._counts
    finally:
        root.event_handlers = before


def _tool() -> BaseTool:
    return FunctionTool.from_defaults(add)


def _text(answer: Answer) -> str:
    return (answer.text if isinstance(answer, CompletionResponse) else answer.message.content) or ""


async def _aread(called: Any) -> list[Any]:
    """Read what a call returns, whatever it is: an answer, a stream, or either to be awaited."""
    if isinstance(called, Awaitable):
        called = await called
    if hasattr(called, "__aiter__"):
        return [chunk async for chunk in called]
    return list(called) if isinstance(called, Generator) else [called]
