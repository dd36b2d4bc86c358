"""``rain distil``: no label is lost or asked for twice, and no prompt that is held out is fitted to."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rain_llm import Message, Rain, RainSettings, cli
from rain_llm.distil import Act, Distilled, TooFewLabels, command, distil, fitting, labels
from rain_llm.distil.drafts import read_prompts
from rain_llm.doctor.items import Item, read
from rain_llm.errors import ModelError, ModelNotSupportedError, PromptError, RainError, SettingsError
from rain_llm.jsonl import JsonLines
from rain_llm.judging.probe import Probe
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.probing import baselines, examining

if TYPE_CHECKING:
    from rain_llm.models.local.llama_cpp import LlamaCppModel

PROMPTS = [f"Question {number}?" for number in range(40)]
LETTERS = [f" {letter}" for letter in "abcdefghijklmnop"]


def words(text: str) -> Mapping[str, float]:
    """Six words, of which some are cruel; that two answers are the same is unlikely."""
    if len(text.split("?")[-1].split()) == 6:
        return {END: 1.0}
    return {**dict.fromkeys(LETTERS, 1.0), " cruel": 1.5, " kind": 1.5}


def feeling(text: str) -> float:
    """The hidden state of a word."""
    return -3.0 if text.endswith(" cruel") else 1.0 if text.endswith(" kind") else len(text) % 7 / 10


def model(**changes: Any) -> ScriptedModel:
    return ScriptedModel(words, state=feeling, **changes)


def kind(prompt: object, draft: str) -> bool:
    return "cruel" not in draft


@dataclass
class Scripted:
    """A judge that counts its calls, and fails at one of them."""

    fails_at: int = -1
    with_what: BaseException | None = None
    calls: int = 0

    def __call__(self, prompt: object, draft: str) -> bool:
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise self.with_what or KeyboardInterrupt
        return kind(prompt, draft)


def run(
    folder: Path, label: Any = kind, prompts: Any = PROMPTS, writer: Any = None, **changes: Any
) -> Distilled:
    options = {"criterion": "civility", "drafts": 3, "tokens": 12, **changes}
    return distil(writer or model(), prompts, label, folder=folder, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(autouse=True)
def no_embedder(monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM takes seconds to load."""

    def missing(items: object) -> None:
        raise ModelError("left out")

    monkeypatch.setattr(baselines, "_minilm", missing)


@pytest.fixture
def unfitted(monkeypatch: pytest.MonkeyPatch) -> list[list[Item]]:
    """Leave out the fit, and keep what it was to be fitted to."""
    seen: list[list[Item]] = []

    def fit(model: Any, name: Any, criterion: str, items: list[Item], *more: Any) -> None:
        seen.append(items)

    monkeypatch.setattr("rain_llm.distil.fit", fit)
    return seen


# --- from prompts to a probe ------------------------------------------------------------------------------


def test_it_ends_with_a_probe_that_judges_as_the_labels_do(tmp_path: Path):
    found = run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "plan.json",
        "drafts.jsonl",
        "labels.jsonl",
        "skipped.jsonl",
        "civility.probe.json",
        "settings.yaml",
    }
    (held_out,) = found.tests
    assert held_out.name == "16 prompts held out" and held_out.n == 48 and held_out.auc.value > 0.9
    probe = Probe.load(tmp_path / "civility.probe.json")
    assert probe.held_out[0].name == "AUC, 16 prompts held out"
    assert probe.held_out[0].value == held_out.auc.value
    assert found.settings is not None
    settings = RainSettings.from_file(found.settings)
    assert settings.generation.chat_template
    rain = Rain(settings, model=model())
    assert rain.judge("Question 99?", " a kind b d kind c").passed
    assert not rain.judge("Question 99?", " a kind b cruel cruel c").passed


def test_labels_are_what_the_doctor_reads(tmp_path: Path):
    run(tmp_path)
    items = read(tmp_path / "labels.jsonl")
    assert len(items) == 120 == len({item.id for item in items})
    assert len({item.pair for item in items}) == 40
    assert all(item.dialogue and item.good == kind("", item.answer) for item in items)
    first = lines(tmp_path / "labels.jsonl")[0]
    assert first["judge"] == "function" and first["probability"] is None and first["ended"]
    assert [line["query"] for line in lines(tmp_path / "labels.jsonl")] == PROMPTS * 3  # first drafts first
    assert len({line["seed"] for line in lines(tmp_path / "labels.jsonl")}) == 3


def test_held_out_prompts_are_never_fitted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[Item]] = []
    examine = examining.examine_probe

    def watched(model: Any, criterion: str, items: list[Item], *more: Any) -> Any:
        seen.append(items)
        return examine(model, criterion, items, *more)

    monkeypatch.setattr(fitting, "examine_probe", watched)
    for seed in range(3):
        items = [
            Item(id=f"{n}", query=f"q{n // 2}", answer=f"{n} words", good=n % 3 > 0, pair=f"{n // 2}")
            for n in range(60)
        ]
        for share in (0.0, 0.1, 0.4, 0.8):
            fitted, held = fitting.parted(items, share, seed)
            assert sorted([*fitted, *held], key=items.index) == items
            for name in ("pair", "query"):
                assert not {getattr(i, name) for i in fitted} & {getattr(i, name) for i in held}
    run(tmp_path)
    (fitted_to,) = seen
    assert len({item.pair for item in fitted_to}) == 24
    run(tmp_path, hold_out=0.0)
    assert len({item.pair for item in seen[1]}) == 40


def test_labels_are_spread_evenly_over_what_is_held_out():
    items = [
        Item(id=f"{n}", query=f"q{n}", answer=f"words {n}", good=n % 5 > 0, pair=f"{n}") for n in range(100)
    ]
    for seed in range(5):
        _, held = fitting.parted(items, 0.4, seed)
        assert (len(held), sum(not item.good for item in held)) == (40, 8)


def test_an_own_test_is_measured_beside_it(tmp_path: Path):
    own = [
        Item(
            id=f"{n}", query=f"Own {n}?", answer=f" a {word} b {word}", dialogue=True, good=good, pair=f"{n}"
        )
        for n, (word, good) in enumerate([("kind", True), ("cruel", False)] * 10)
    ]
    found = run(tmp_path, test=own)
    assert [(row.name, row.n, row.auc.value) for row in found.tests[1:]] == [("own test", 20, 1.0)]
    assert not found.notes
    known = [item.model_copy(update={"query": "Question 0?"}) for item in own]
    assert (
        "20 answers are to prompts that the probe was fitted to"
        in run(tmp_path, test=known, hold_out=0.0).notes[0]
    )


def test_a_chat_and_a_text_are_prompts_too(tmp_path: Path, unfitted: list[list[Item]]):
    asked: list[object] = []

    def label(prompt: object, draft: str) -> bool:
        asked.append(prompt)
        return True

    chat = [Message("system", "Be brief."), Message("user", "Well?")]
    run(tmp_path / "chat", label, ["Well?", chat, "Well?"], drafts=1)
    assert asked == ["Well?", chat]
    assert [(item.query, item.dialogue) for item in unfitted[0]] == [("Well?", True)] * 2
    run(tmp_path / "text", label, ["Well?"], drafts=1, chat=False)
    assert not unfitted[1][0].dialogue


def test_the_labels_of_many_at_once_are_the_same(tmp_path: Path, unfitted: list[list[Item]]):
    run(tmp_path / "one")
    run(tmp_path / "many", at_once=8)
    assert (tmp_path / "one/labels.jsonl").read_bytes() == (tmp_path / "many/labels.jsonl").read_bytes()


def test_probabilities_and_none_are_labels(tmp_path: Path, unfitted: list[list[Item]]):
    answers = iter([0.7, 0.2, None, np.bool_(True), 1, False])
    run(tmp_path, lambda prompt, draft: next(answers), PROMPTS[:6], drafts=1)
    kept = [(line["good"], line["probability"]) for line in lines(tmp_path / "labels.jsonl")]
    assert kept == [(True, 0.7), (False, 0.2), (True, None), (True, 1.0), (False, None)]
    assert len(lines(tmp_path / "skipped.jsonl")) == 1
    run(tmp_path, Scripted(0), PROMPTS[:6], drafts=1)  # nothing is asked again


@pytest.mark.parametrize("answer", ["safe", float("nan"), 1.5, -1, [], {}])
def test_what_is_no_label_is_an_error(tmp_path: Path, answer: object):
    with pytest.raises(ModelError, match="the judge 'function' returned a") as caught:
        run(tmp_path, lambda prompt, draft: answer)
    assert "Question" not in str(caught.value)


# --- interruptions ----------------------------------------------------------------------------------------


def test_a_run_goes_on_after_any_label(tmp_path: Path, unfitted: list[list[Item]]):
    prompts = PROMPTS[:5]
    run(tmp_path / "at once", prompts=prompts)
    whole = (tmp_path / "at once/labels.jsonl").read_bytes()
    for place in range(15):
        folder = tmp_path / f"{place}"
        judge = Scripted(place)
        with pytest.raises(KeyboardInterrupt):
            run(folder, judge, prompts)
        assert len(lines(folder / "labels.jsonl")) == place
        run(folder, judge, prompts)
        assert judge.calls == 16  # the one that was interrupted was asked again, and no other
        assert (folder / "labels.jsonl").read_bytes() == whole


def test_a_run_goes_on_after_any_batch_of_drafts(tmp_path: Path, unfitted: list[list[Item]]):
    run(tmp_path / "at once")
    whole = (tmp_path / "at once/drafts.jsonl").read_bytes()

    class Fails(ScriptedModel):
        left = 0

        def sample(self, batch: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of memory")
            return super().sample(batch)

    writer = Fails(words, state=feeling)
    stopped = 0
    for left in range(0, 40, 3):
        writer.left = left
        try:
            run(tmp_path / "pieces", writer=writer)
            break
        except RainError:
            stopped += 1
    assert stopped > 2
    assert (tmp_path / "pieces/drafts.jsonl").read_bytes() == whole


@pytest.mark.parametrize("name", ["drafts.jsonl", "labels.jsonl"])
def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path, unfitted: list[list[Item]], name: str):
    run(tmp_path, prompts=PROMPTS[:2], drafts=1)
    path = tmp_path / name
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in (*range(last, len(whole), 9), len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        run(tmp_path, prompts=PROMPTS[:2], drafts=1)
        assert path.read_bytes() == whole


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_distil import PROMPTS, run

def label(prompt, draft, left=[7]):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return "cruel" not in draft

run(Path(sys.argv[1]), label, PROMPTS[:5])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_loses_nothing(tmp_path: Path, unfitted: list[list[Item]]):
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL
    judge = Scripted()
    run(tmp_path, judge, PROMPTS[:5])
    assert judge.calls == 8 and len({line["id"] for line in lines(tmp_path / "labels.jsonl")}) == 15


def test_two_runs_in_one_folder_are_an_error(tmp_path: Path):
    with JsonLines(tmp_path / "drafts.jsonl"), pytest.raises(SettingsError, match="another run is writing"):
        run(tmp_path)


@pytest.mark.parametrize("content", [b"not json\n", b"[1]\n", b'{"a": 1}\n', b"text", b'{"id": 3}\n'])
def test_a_file_that_holds_something_else_is_left_alone(tmp_path: Path, content: bytes):
    (tmp_path / "labels.jsonl").write_bytes(content)
    with pytest.raises(SettingsError, match=r"labels.jsonl"):
        run(tmp_path)
    assert (tmp_path / "labels.jsonl").read_bytes() == content


# --- the plan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 13}, "tokens was 12 and is 13"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"criterion": "harmlessness"}, "criterion was civility and is harmlessness"),
        ({"chat": False}, "chat was True and is False"),
        ({"drafts": 2}, "drafts was 3 and is 2"),
        ({"writer": model(fingerprint="other")}, "model was scripted and is other"),
        ({"prompts": PROMPTS[:3]}, "the first 4 prompts have changed"),
        ({"prompts": ["Secret?", *PROMPTS[1:4]]}, "the first 4 prompts have changed"),
    ],
)
def test_another_plan_is_an_error_that_names_what_differs(
    tmp_path: Path, unfitted: list[list[Item]], changes: dict[str, Any], said: str
):
    run(tmp_path, prompts=PROMPTS[:4])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SettingsError, match="choose another --out") as caught:
        run(tmp_path, **{"prompts": PROMPTS[:4], **changes})
    assert said in str(caught.value) and "Secret" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_prompts_and_drafts_may_be_added(tmp_path: Path, unfitted: list[list[Item]]):
    run(tmp_path, prompts=PROMPTS[:4], drafts=2)
    judge = Scripted()
    run(tmp_path, judge, PROMPTS[:6], drafts=3)
    assert judge.calls == 10
    assert len(unfitted[1]) == 18 and unfitted[1][:8] == unfitted[0]
    run(tmp_path / "at once", prompts=PROMPTS[:6])
    assert {i.id: i for i in unfitted[1]} == {i.id: i for i in unfitted[2]}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"prompts": "x", "drafts": 1}', "[" * 100_000])
def test_a_damaged_plan_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(SettingsError, match="is not a plan: move it away"):
        run(tmp_path)


def test_labels_without_a_plan_are_left_alone(tmp_path: Path):
    (tmp_path / "labels.jsonl").write_text('{"id": "1"}\n')
    with pytest.raises(SettingsError, match=r"no plan.json: choose another --out"):
        run(tmp_path)


# --- too little -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "prompts", "said"),
    [
        (
            lambda prompt, draft: True,
            PROMPTS,
            "72 good and 0 bad.*8 bad ones are missing.*that lead to bad",
        ),
        (lambda prompt, draft: False, PROMPTS, r"8 good ones are missing.*append prompts, or raise --drafts"),
        (kind, PROMPTS[:12], "10 prompts"),
        (lambda prompt, draft: Act.STOP, PROMPTS, "0 drafts are labelled"),
    ],
)
def test_too_few_labels_are_kept_and_what_is_missing_is_named(
    tmp_path: Path, label: Any, prompts: list[str], said: str
):
    with pytest.raises(TooFewLabels, match=said):
        run(tmp_path, label, prompts)
    assert not (tmp_path / "civility.probe.json").exists()


def test_labels_that_cannot_be_read_give_no_probe(tmp_path: Path):
    found = run(tmp_path, writer=ScriptedModel(words))
    assert found.probed.probe is None and found.settings is None
    assert len(lines(tmp_path / "labels.jsonl")) == 120


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def rain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run ``rain distil`` on a scripted model, with keys through a pipe: code, stdout, stderr."""
    writer = model()
    monkeypatch.setattr(command, "_model", lambda name: writer)
    monkeypatch.setenv("COLUMNS", "200")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS))

    def run(*options: str, keys: str = "", judge: str = "person") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(keys))
        given = ("--prompts", str(prompts), "--out", str(tmp_path / "out"), "--criterion", "civility")
        code = cli.main(["distil", *given, "--judge", judge, *options])
        return (code, *capsys.readouterr())

    yield run


def test_a_person_labels_by_keys(rain: Any, tmp_path: Path):
    code, out, err = rain("--drafts", "1", keys="g\nbsx?uuBsq")
    assert (code, err) == (3, "")
    kept = lines(tmp_path / "out/labels.jsonl")
    assert [(line["query"], line["good"], line["judge"]) for line in kept] == [
        ("Question 0?", True, "person"),
        ("Question 1?", False, "person"),
    ]
    assert [line["query"] for line in lines(tmp_path / "out/skipped.jsonl")] == ["Question 2?"]
    assert "draft, 0 of 40 labelled: civility? g good, b bad, s skip, u undo, q enough" in out
    assert "draft, 2 of 39 labelled" in out
    assert "2 drafts are labelled for 'civility'" in out and "bad ones are missing" in out
    assert out.count("Question 1?") == 2 and out.count("Question 0?") == 1
    rain("--drafts", "1", keys="uug")  # what an earlier run has labelled stays
    assert [line["query"] for line in lines(tmp_path / "out/labels.jsonl")][2:] == ["Question 3?"]


def test_a_person_ends_with_a_probe(rain: Any, tmp_path: Path):
    rain(keys="")
    drafts = lines(tmp_path / "out/drafts.jsonl")
    keys = "".join("g" if kind("", draft["answer"]) else "b" for draft in drafts)
    code, out, err = rain(keys=keys[:100])
    assert (code, err) == (0, "")
    assert "16 prompts held out, 40 answers: AUC" in out
    good, bad = keys[:100].count("g"), keys[:100].count("b")
    assert f"civility: {good} good and {bad} bad drafts to 40 prompts, labelled by person" in out
    assert f'Use it: rain generate --settings {tmp_path / "out" / "settings.yaml"} "..."' in out
    code, out, _ = rain(keys=keys[100:])
    assert code == 0 and len(lines(tmp_path / "out/labels.jsonl")) == len(keys)


def test_texts_cannot_move_the_cursor(rain: Any, tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "\x1b[2J\x07[red]Well?\r\x9b1A"}))
    _, out, err = rain(keys="q")
    assert "[red]Well?" in out
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(out + err)


def test_a_settings_file_judges(rain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def opinion(question: str, label: str) -> float:
        bad = "cruel" in question
        return -1.0 if (label.strip() in ("civil", "polite", "kind")) != bad else -3.0

    judge, made = ScriptedModel(words, opinion), []

    def engine(settings: RainSettings) -> Rain:
        made.append(settings)
        return Rain(settings, model=judge)

    monkeypatch.setattr(labels, "Rain", engine)
    criterion = {
        "extends": "civility",
        "labels": [["civil", "rude"]],
        "frames": ["Text: {text}"],
        "threshold": 0.5,
        "calibration": {"center": 0.0, "scale": 1.0},
    }
    settings = {"evaluation": {"criteria": ["harmlessness", criterion], "judge": {"name": "guard.gguf"}}}
    (tmp_path / "judge.json").write_text(json.dumps(settings))
    code, _, err = rain(judge=f"settings:{tmp_path / 'judge.json'}")
    assert (code, err) == (0, "")
    (used,) = made
    assert [c.name for c in used.evaluation.criteria] == ["civility"] and not used.evaluation.actions
    assert (used.model.name, used.evaluation.judge, used.generation.chat_template) == (
        "guard.gguf",
        None,
        True,
    )
    for line in lines(tmp_path / "out/labels.jsonl"):
        assert line["good"] == kind("", line["answer"])
        assert (line["probability"] > 0.5) == line["good"]
        assert line["judge"].endswith("judge.json")


@pytest.mark.parametrize(
    ("options", "judge", "said"),
    [
        ((), "nobody", "unknown judge"),
        ((), "settings:", "unknown judge"),
        ((), "settings:missing.yaml", "missing.yaml"),
        (("--criterion", "groundedness"), "person", "rain doctor --fit"),
        (("--criterion", "harmless_actions"), "person", "rain doctor --fit"),
        (("--criterion", "../civility"), "person", "the name of a criterion"),
        (("--drafts", "0"), "person", "drafts=0"),
        (("--tokens", "5000"), "person", "tokens=5000"),
        (("--hold-out", "1"), "person", "hold_out=1"),
        (("--test", "missing.jsonl"), "person", "missing.jsonl"),
        (("--prompts", "missing.jsonl"), "person", "missing.jsonl"),
        (("--drafts", "3000"), "person", "40 prompts with 3,000 drafts each"),
    ],
)
def test_mistakes_are_named_before_a_model_runs(
    rain: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], judge: str, said: str
):
    monkeypatch.setattr(command, "_model", lambda name: "/no/such/folder")
    code, out, err = rain(*options, judge=judge)
    assert (code, out) == (1, "")
    assert err.startswith("rain: ") and err.count("\n") == 1 and said in err


def test_a_settings_file_must_have_the_criterion(rain: Any, tmp_path: Path):
    (tmp_path / "judge.yaml").write_text("evaluation: {criteria: [truthfulness]}")
    code, _, err = rain(judge=f"settings:{tmp_path / 'judge.yaml'}")
    assert code == 1 and "does not judge 'civility' but truthfulness" in err


def test_an_interrupted_command_says_how_to_go_on(rain: Any, monkeypatch: pytest.MonkeyPatch):
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_key", interrupted)
    code, _, err = rain()
    assert (code, err) == (130, "rain: stopped; give the same command again to go on\n")


# --- prompts ----------------------------------------------------------------------------------------------


def test_prompts_are_objects_or_lines_of_text(tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "Hello"}]
    path.write_text(
        f'\ufeff{{"prompt": "One", "id": 3}}\n\n  Two, "{{x}}"\n{json.dumps({"messages": chat})}\n'
    )
    assert read_prompts(path) == ["One", 'Two, "{x}"', chat]


@pytest.mark.parametrize("line", ["{", '{"text": "Hi"}', '{"prompt": 3}', '{"prompt": null}', '{"a":' * 9000])
def test_an_invalid_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"One\n{line}\n")
    with pytest.raises(SettingsError, match="line 2: write"):
        read_prompts(path)


@pytest.mark.parametrize("prompt", [" ", [], [{"role": "nobody", "content": "x"}], "\ud800"])
def test_a_prompt_that_cannot_be_answered_has_its_number(tmp_path: Path, prompt: Any):
    with pytest.raises(PromptError, match="prompt 2: "):
        run(tmp_path, prompts=["One", prompt])


def test_a_prompt_that_is_too_long_has_its_number(tmp_path: Path):
    writer = model(context_length=30)
    with pytest.raises(PromptError, match="prompt 2 has 42 tokens, more than 18"):
        run(tmp_path, prompts=["One?", " x" * 40], writer=writer)
    assert not writer.requests


def test_files_of_prompts_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rain_llm.distil.drafts.PROMPTS_BYTES", 10)
    (tmp_path / "prompts.jsonl").write_text("0123456789A")
    with pytest.raises(SettingsError, match="more than 10 bytes"):
        read_prompts(tmp_path / "prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_prompts(tmp_path / "prompts.jsonl")
    monkeypatch.setattr("rain_llm.jsonl.LINES_BYTES", 10)
    (tmp_path / "labels.jsonl").write_text("0123456789A")
    with pytest.raises(SettingsError, match="more than 10 bytes"):
        JsonLines(tmp_path / "labels.jsonl")


def test_a_model_without_hidden_states_is_named(tmp_path: Path):
    class Blind:
        name, context_length, start = "blind", 100, ()

        def __getattr__(self, name: str) -> Any:
            if name in ("encode", "decode", "render_chat", "sample", "score"):
                return lambda *given: []
            raise AttributeError(name)

    with pytest.raises(ModelNotSupportedError, match="blind gives no hidden states"):
        run(tmp_path, writer=Blind())


# --- the embedded model -----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_embedded_model_ends_with_a_probe_that_it_loads(tmp_path: Path, real_model: LlamaCppModel):
    """A stub judges: it likes what is about food."""
    food = ("bread", "soup", "cheese", "a cake", "rice", "an omelette", "jam", "pasta", "tea", "a pie")
    games = ("football", "chess", "tennis", "golf", "hockey", "cricket", "judo", "rugby", "polo", "darts")
    prompts = [f"Tell me about {thing}." for pair in zip(food, games, strict=True) for thing in pair]

    def label(prompt: object, draft: str) -> bool:
        return any(str(prompt).endswith(f" {thing}.") for thing in food)

    options: dict[str, Any] = {"criterion": "food", "folder": tmp_path, "drafts": 2, "tokens": 12}
    found = distil(real_model, prompts, label, hold_out=0.0, **options)
    assert found.probed.findings.cuts[0].auc.value > 0.7
    assert found.settings is not None
    rain = Rain(RainSettings.from_file(found.settings), model=real_model)
    likes = [rain.judge(f"What do you think of {thing}?", f"I like {thing}.").score for thing in food + games]
    assert np.mean(likes[:10]) > np.mean(likes[10:])
    distil(real_model, prompts, Scripted(0), hold_out=0.0, **options)  # nothing is asked again
