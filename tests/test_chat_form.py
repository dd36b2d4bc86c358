"""Chats as OpenAI's API has them, and chats that the assistant ends."""

from __future__ import annotations

from typing import Any

import pytest

from rain_llm import Criterion, Message, PromptError, Rain, RainSettings, Task, ToolCall
from rain_llm.chat import messages_of, replies_of, tool_choice_of
from rain_llm.models.scripted import END, ScriptedModel

SETTINGS = RainSettings(
    evaluation={
        "criteria": [
            Criterion(
                name="kind", frames=["{query}: {answer} is"], labels=[("good", "bad")], calibration=None
            )
        ]
    }
)


class Seeing(ScriptedModel):
    """It notes the chats that it was shown."""

    def render_chat(self, messages, tools=()):
        self.shown = list(messages)
        return super().render_chat(messages, tools)


def opinion(question: str, label: str) -> float:
    """Find everything good."""
    return -0.1 if label == " good" else -4.0


def answered(prompt: Any) -> tuple[str, Seeing]:
    """Return an answer and the model that wrote it."""
    model = Seeing(lambda text: {END: 1.0} if text.endswith("Yes") else {" Yes": 1.0}, opinion)
    return Rain(SETTINGS, model=model).generate(prompt).text, model


def judged(model: ScriptedModel) -> str:
    return next(model.decode(asked.prefix) for asked in model.requests if hasattr(asked, "options"))


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"word": "rain"}'}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def test_a_chat_of_dicts_is_read_as_openai_has_it():
    assert messages_of(
        [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
            {"role": "tool", "tool_call_id": "c1", "content": "Water."},
            {"role": "assistant", "content": None, "refusal": "No."},
            Message("user", "And?"),
        ]
    ) == [
        Message("system", "Be brief."),
        Message("user", "What is it?"),
        Message("assistant", "", (ToolCall("look", {"word": "rain"}, "c1"),)),
        Message("tool", "Water.", name="look", tool_call_id="c1"),
        Message("assistant", "No."),
        Message("user", "And?"),
    ]


def test_such_a_chat_is_answered_alone_and_in_a_task():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it so?"}]
    for prompt in (chat, Task(chat)):  # type: ignore[arg-type]
        text, model = answered(prompt)
        assert text == " Yes"
        assert model.shown == [Message("system", "Be brief."), Message("user", "Is it so?")]
        assert judged(model).startswith("Is it so?: Yes")


def test_a_tools_reply_with_an_image_is_used_without_it():
    (reply,) = messages_of([{"role": "tool", "content": [{"type": "text", "text": "A cat: "}, IMAGE]}])
    assert reply.content == "A cat: [image left out]"


def test_replies_are_those_after_the_users_last_turn():
    first, second = Message("tool", "1"), Message("tool", "2")
    asked, said = Message("user", "And?"), Message("assistant", "So.")
    assert replies_of([asked, first, said, asked, second, second]) == ["2", "2"]
    assert replies_of([asked, first, said, asked]) == replies_of([first]) == ["1"]
    assert replies_of([asked, said]) == []


def test_of_an_assistants_turn_its_words_are_read_and_a_marker_stands_for_an_image():
    parts = [{"type": "text", "text": "A cat: "}, {"type": "reasoning", "reasoning": "Hm."}, IMAGE]
    (turn,) = messages_of([{"role": "assistant", "content": parts}])
    assert turn.content == "A cat: [image left out]"


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "user", "content": [IMAGE]}, "'image_url': only text can be judged"),
        ({"role": "oracle", "content": "x"}, "the role 'oracle': there are system, developer, user"),
        ({"role": "user"}, "no content"),
        ({"role": "user", "contnet": "x"}, "no content"),
        ({"content": "x"}, "the role None"),
        ({"role": "user", "content": 5}, "holds a int"),
        ({"role": "assistant", "tool_calls": [{"name": "x"}]}, "cannot be read"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}, "of 'x'"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[]"}}]}, "of 'x'"),
        ("Hello", "Message(role, text)"),
    ],
)
def test_what_is_no_message_is_refused(turn: Any, said: str):
    with pytest.raises(PromptError) as caught:
        Rain(SETTINGS, model=ScriptedModel(lambda _: {END: 1.0})).generate([turn])
    assert said in str(caught.value)


# --- the assistant spoke last ---

ASKED, SAID = Message("user", "Is it so?"), Message("assistant", "It is.")
CALLING = Message("assistant", "", (ToolCall("look", {"word": "rain"}, "c1"),))


@pytest.mark.parametrize(
    ("chat", "query"),
    [
        ([ASKED, SAID], "Is it so?"),
        ([ASKED, SAID, Message("system", "Be brief.")], "Is it so?"),
        ([ASKED, CALLING], "Is it so?"),
        ([ASKED, Message("assistant", "")], "Is it so?"),
        ([SAID], "It is."),
        ([Message("system", "Say yes.")], "Say yes."),
    ],
    ids=[
        "assistant",
        "system last",
        "calls without replies",
        "an empty turn",
        "only assistant",
        "only system",
    ],
)
def test_it_is_answered_and_judged_by_what_the_user_asked(chat: list[Message], query: str):
    text, model = answered(chat)
    assert text == " Yes"
    assert judged(model).startswith(f"{query}: Yes")
    assert model.shown == [turn for turn in chat if turn.content or turn.tool_calls]


@pytest.mark.parametrize(
    ("choice", "ours"),
    [
        (None, "auto"),
        (False, "auto"),
        (True, "any"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "any"),
        ("required", "any"),
        ("clock", "clock"),
        ({"type": "function", "function": {"name": "clock"}}, "clock"),
        ({"type": "function", "name": "clock"}, "clock"),
        ({"type": "tool", "name": "clock"}, "clock"),
        ({"name": "clock"}, "clock"),
        ({"type": "any"}, "any"),
        ({"type": "required"}, "any"),
        ({"type": "none"}, "none"),
    ],
)
def test_a_tool_choice_of_every_api(choice: object, ours: str) -> None:
    assert tool_choice_of(choice) == ours


@pytest.mark.parametrize("choice", [{}, {"any": {}}, {"tool": {"name": "a"}}, {"type": "x"}, ["a"], 1, b"a"])
def test_another_tool_choice_is_refused(choice: object) -> None:
    with pytest.raises(PromptError, match="tool_choice is"):
        tool_choice_of(choice)
