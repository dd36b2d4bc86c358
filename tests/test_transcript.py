"""Without a chat template (base models, or settings that refuse it) a chat is a transcript in plain text."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rain_llm import Message, ModelNotSupportedError, Rain, RainSettings
from rain_llm.criteria import BUILT_IN, CIVILITY
from rain_llm.doctor.styles import styles
from rain_llm.evals import rows
from rain_llm.evals.judging import judge
from rain_llm.evals.methods import settings_for
from rain_llm.evals.runner import ASKED, ITEMS, ROWS, run
from rain_llm.evals.tasks import TASKS, load
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.models.transcript import STOPS, shows_chats, transcript
from rain_llm.requests import Sample, Score

LABELS = {good for criterion in BUILT_IN.values() for good, _ in criterion.labels}
CHATS = ["harmlessness", "over-refusal", "groundedness", "rag", "truth"]
OWN = [name for name, task in TASKS.items() if task.own]
QUICK = RainSettings(search={"iterations": 2}, generation={"seed": 0}, on_unsafe="best")


class Base(ScriptedModel):
    """Writes two words and the next turn, as base models do."""

    def render_chat(self, messages, tools=()):
        raise ModelNotSupportedError("no chat template")


class Chatty(ScriptedModel):
    """The same with a template."""


def talks(text):
    if text.endswith((" two", "Human: ")):
        return {"\n": 1.0}
    if text.endswith(" one"):
        return {" two": 1.0}
    if text.endswith("\n"):
        return {"Human": 1.0}
    if text.endswith("\nHuman"):
        return {":": 1.0}
    return {" more": 1.0} if text.endswith("Human:") else {" one": 1.0, END: 1e-9}


def made(kind, judged=1.0):
    return kind(talks, lambda question, label: 0.0 if label.strip() in LABELS else -judged)


def answers(model, tmp_path, names, settings=QUICK, methods=("plain", "rain"), **options):
    run(
        names,
        tmp_path,
        methods=methods,
        first=1,
        tokens=12,
        settings=settings,
        make=lambda chosen: Rain(chosen, model=model),
        **options,
    )
    return rows.read(tmp_path / ROWS)


def drawn(model):
    return {model.decode(r.prefix) for r in model.requests if isinstance(r, Sample)}


@pytest.fixture
def truth(tmp_path):
    line = {"question": "Is it so?", "correct_answers": ["Yes"], "incorrect_answers": ["No"]}
    (tmp_path / "truthfulqa.jsonl").write_text(json.dumps(line))
    return str(tmp_path)


# --- the text -----------------------------------------------------------------------------------------


def test_a_transcript_ends_where_the_assistant_begins():
    turns = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Bye"),
    ]
    assert transcript(turns) == "Be brief.\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant:"
    assert transcript(turns[1:2], "Sure, here") == "Human: Hi\n\nAssistant: Sure, here"


def test_which_models_have_a_template():
    assert shows_chats(made(Chatty))
    assert not shows_chats(made(Base))


# --- rain eval ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OWN, "truth"])
def test_every_task_runs_on_a_base_model(name, truth, tmp_path):
    model = made(Base)
    out = answers(model, tmp_path / "out", [name], data=truth if name == "truth" else None)
    assert {row.method for row in out} == {"plain", "rain"}
    asked = [text for text in drawn(model) if text]
    if name in CHATS:
        assert all("Human: " in text and "\n\nAssistant:" in text for text in asked)
        for row in out:
            assert (row.text, row.stop_reason) == (" one two", "stop")  # the next turn is not written
    (item,) = load(tmp_path / "out" / ITEMS).values()
    assert all(item.context in text for text in asked)
    assert out[0].prompt.startswith(item.prompt if not item.opening else "Human: ")
    kept = json.loads((tmp_path / "out" / ASKED).read_text())["settings"]
    assert {settings["generation"]["chat_template"] for settings in kept.values()} == {False}
    assert out[0].settings_hash in kept


@pytest.mark.parametrize("method", ["self-check", "best-of-2", "guided-best-of-2", "rain-paper"])
def test_every_kind_of_method_runs_on_a_base_model(method, tmp_path):
    model = made(Base)
    embedder = type("E", (), {"embed": lambda self, texts: [np.ones(2, np.float32)] * len(texts)})()
    run(
        ["harmlessness"], tmp_path, methods=[method], first=1, tokens=8, settings=QUICK,
        make=lambda chosen: Rain(chosen, model=model, embedder=embedder),
    )  # fmt: skip
    (row,) = rows.read(tmp_path / ROWS)
    assert "Human" not in row.text
    assert all("Human: " in text for text in drawn(model))


def test_a_judge_without_a_template_is_asked_without(tmp_path):
    settings = QUICK.updated(evaluation={"chat_template": True})
    out = answers(made(Base), tmp_path, ["harmlessness"], settings)
    assert out[1].self_score is not None


@pytest.mark.parametrize("name", [*CHATS, "jailbreak"])
@pytest.mark.parametrize("source", ["python", "updated", "file"])
def test_chat_template_false_is_respected_for_every_task(name, source, truth, tmp_path):
    said = {"chat_template": False}
    (tmp_path / "policy.yaml").write_text("generation: {chat_template: false}\nsearch: {iterations: 2}\n")
    settings = {
        "python": RainSettings(generation=said, search={"iterations": 2}),
        "updated": QUICK.updated(generation=said).updated(on_unsafe="refuse"),
        "file": RainSettings.from_file(tmp_path / "policy.yaml"),
    }[source]
    model = made(Chatty)
    answers(model, tmp_path / "out", [name], settings, ("plain",), data=truth if name == "truth" else None)
    assert len(drawn(model)) == 1
    assert "Human: " in drawn(model).pop()
    assert settings_for("rain", TASKS[name], settings, None, {}).generation.stop == STOPS


def test_what_does_not_say_so_uses_the_template(tmp_path):
    (tmp_path / "policy.yaml").write_text("generation: {seed: 3}\n")
    for settings in (
        QUICK,
        QUICK.updated(on_unsafe="raise"),
        RainSettings.from_file(tmp_path / "policy.yaml"),
    ):
        assert not settings.says_no_chat_template
        chosen = settings_for("rain", TASKS["rag"], settings.updated(on_unsafe="refuse"), None, {})
        assert (chosen.generation.chat_template, chosen.generation.stop) == (True, ())
    own = {"mine": RainSettings(generation={"chat_template": False})}
    assert not settings_for("mine", TASKS["rag"], QUICK, None, own).generation.chat_template
    assert settings_for("rain", TASKS["rag"], QUICK, None, own).generation.chat_template


@pytest.mark.slow
def test_fluency_is_weighed_behind_what_was_asked(tmp_path):
    for kind, unchatty in ((Base, ()), (Chatty, ()), (Chatty, ("h",))):
        (tmp_path / "judged.jsonl").unlink(missing_ok=True)
        model = made(Chatty)
        (row,) = answers(model, tmp_path / f"{kind.__name__}{unchatty}", ["rag"], methods=("plain",))
        weigher = made(kind)
        items = {("rag", row.item): TASKS["rag"].items()[0]}
        hashes = {row.settings_hash} if unchatty else ()
        judge([row], items, tmp_path / "judged.jsonl", writer=weigher, unchatty=hashes)
        (request,) = [r for r in weigher.requests if isinstance(r, Score)]
        assert ("Human: " in weigher.decode(request.prefix)) == (kind is Base or bool(unchatty))


# --- rain doctor --------------------------------------------------------------------------------------


def test_the_doctor_tries_no_template_where_the_settings_say_no():
    def names(evaluation):
        return {style.name for style in styles(CIVILITY, evaluation) if style.settings.chat_template}

    said = RainSettings(evaluation={"chat_template": False})
    assert names(said.evaluation) == names(said.updated(on_unsafe="raise").evaluation) == set()
    assert names(RainSettings().evaluation) == {"labels, chat template", "choice, chat template"}
    assert names(RainSettings().updated(on_unsafe="raise").evaluation)
