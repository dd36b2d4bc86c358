"""LangChain's standard tests of chat models, on ChatRain.

The unit tests construct it for a server that nobody asks. The integration tests run twice:

* on a scripted model, which means what the tests ask for: all of them pass, and none is skipped that is
  about tools, structured output or JSON mode. The schemas are kept by the same grammars as everywhere.
* on the embedded SmolLM2-135M-Instruct: forced calls are right by their grammar, and so are documents, of
  which one is written here, for the time that they take. Two tests are about the wits of a model, and this
  one has too few for them.

Skipped is what ChatRain does not have: other inputs than text (images, audio, PDF), Anthropic's blocks,
recorded HTTP (VCR), and LangChain's own serialisation.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, Field

from langchain_rain import ChatRain
from rain_llm import CIVILITY, Message, Rain, RainSettings, Tool
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.types import TokenIds

SETTINGS = RainSettings().updated(
    generation={"max_new_tokens": 96, "seed": 0},
    search={"iterations": 2, "guided": False},
    evaluation={"criteria": [CIVILITY]},
)


class TestUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatRain

    @property
    def chat_model_params(self):
        return {"model": "some/model", "base_url": "http://localhost:1"}

    @property
    def init_from_env_params(self):
        return {"RAIN_LLM_API_KEY": "key"}, self.chat_model_params, {"api_key": None}  # asked for when used


# --- a model that means what it is asked for ----------------------------------------------------

_WORDS = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_HERE = "#"  # where the answer begins


def call(name: str, **arguments: Any) -> str:
    document = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, separators=(",", ":"))
    return f"<tool_call>\n{document}\n</tool_call>"


JOKE = '{"setup":"Why do cats purr?","punchline":"They like it."}'
ANSWERS = {
    "magic_function(3)? Use the tool.": call("magic_function", input=3),
    "magic_function_no_args()? Use the tool.": call("magic_function_no_args"),
    "generate a Pirate greeting.": call("greeting_generator", answer_style="pirate"),
    "What is 3 + 4": call("my_adder_tool", a=3, b=4),
    "San Francisco, CA?": call("get_weather", location="San Francisco"),
    "joke about cats.": JOKE,
    "no punchline.": '{"setup":"Why do cats purr?"}',
    "include the punchline.": JOKE,
    "Chinese technology company": call("unicode_customer", customer_name="你好啊集团", description="new"),
    "Japanese company": call("unicode_customer", customer_name="こんにちは株式会社", description="new"),
}
"""What is asked, and answered."""
OTHERWISE = ("Hello to all.", call("magic_function", input=1))  # the second if a call is wanted


def next_words(text: str) -> Mapping[str, float]:
    asked, _, said = text.rpartition(_HERE)
    fitting = [answer for question, answer in ANSWERS.items() if question in asked]
    if not fitting or asked.endswith("</tool_response>"):
        fitting = [answer for answer in OTHERWISE if answer.startswith(said)]
    rest = _WORDS.findall(fitting[0].removeprefix(said))
    return {rest[0]: 1.0} if rest and fitting[0] != said else {END: 1.0}


class Meaning(ScriptedModel):
    """It sees where its answer begins."""

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        return (*super().render_chat(messages, tools), *self.encode(_HERE))


def opinion(question: str, label: str) -> float:
    """Find everything civil, and no two texts alike."""
    civil = label.strip() in {good for good, _ in CIVILITY.labels}
    return -0.1 if civil else -4.0 - len(question) / 100


class Integration(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatRain

    @property
    def supports_json_mode(self):
        return True

    @property
    def supported_usage_metadata_details(self):
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """Answer twice: the second time the prompt has been read before."""
        chat = ChatRain(**self.chat_model_params)
        chat.invoke("Hello")
        if not stream:
            return chat.invoke("Hello")
        first, *more = chat.stream("Hello")
        return add_ai_message_chunks(first, *more)


class TestScripted(Integration):
    @property
    def chat_model_params(self):
        return {"rain": ENGINE}

    @property
    def supports_model_override(self):
        return False  # a ready engine has its model


ENGINE = Rain(SETTINGS, model=Meaning(next_words, opinion))


# --- the embedded model ---------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
class TestEmbedded(Integration):
    @pytest.fixture(autouse=True)
    def _other_model(self, tiny_folder):
        TestEmbedded.other = str(tiny_folder)

    other = ""

    @property
    def chat_model_params(self):
        # The likeliest words: what is drawn from so small a model's others calls with other arguments.
        return {"settings": SETTINGS.updated(generation={"top_k": 1, "max_new_tokens": 64})}

    @property
    def has_structured_output(self):
        return False  # some twenty documents: the test below writes one

    @property
    def supports_json_mode(self):
        return False

    @property
    def model_override_value(self):
        return self.other

    @pytest.mark.xfail(reason="unless it must, a model of 135M parameters calls no tool")
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(
        strict=False, reason="a model of 135M parameters ends a string of Chinese, or not, by the last bit"
    )
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)

    def test_a_document_fits_its_schema(self, model):
        class Joke(BaseModel):
            """Joke to tell user."""

            setup: str = Field(max_length=40)
            punchline: str = Field(max_length=40)

        assert isinstance(model.with_structured_output(Joke).invoke("Tell me a joke about cats."), Joke)
