"""The benchmarks measure what they say: on a tiny network, and without any where none is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from unittest.mock import Mock

import pytest

from benchmarks import __main__ as bench
from benchmarks import gpu, report
from benchmarks.batches import WAYS, flips
from benchmarks.engines import Alone, Plain
from benchmarks.meter import PARTS, Cost, Meter, endless, output
from benchmarks.scenarios import (
    DEFAULT,
    Figure,
    Mixed,
    Options,
    default_all_fine,
    default_mixed,
    forced,
    guarded,
    mixed_prompts,
    of_length,
    with_verdicts,
)
from benchmarks.table import ALONE, CASES, PLAIN, SERVER, Row, figures
from rain_llm import Criterion, RainSettings
from rain_llm.evals.tasks import TASKS

EITHER = Criterion(
    name="either", labels=[("good", "bad")], frames=["{text}\n\nIt is"], threshold=0.5, calibration=None
)
SETTINGS = RainSettings().updated(evaluation={"criteria": [EITHER]})
CANDIDATES = SETTINGS.updated(search={"strategy": "paper", "iterations": 4, "width": 3, "leaves": 1})
PROMPTS = ("the film is", "kind people answer")


def cost(**changes):
    values = {"output": 10, "tokens": 20, "forwards": 12, "cpu": 2.0, "wall": 1.0}
    return Cost(**values | {"parts": dict.fromkeys(PARTS, 0.4)} | changes)


def test_the_meter_counts_what_usage_counts_and_leaves_no_trace(tiny):
    rain = of_length(CANDIDATES, 6, tiny)
    before = dict(vars(tiny))
    with Meter(rain) as meter:
        results = [rain.generate(prompt) for prompt in PROMPTS]
    measured = meter.cost(output(results))
    assert measured.tokens == sum(result.usage.model_tokens for result in results)
    assert measured.output == output(results) > 0
    assert measured.forwards > 0
    assert sum(measured.parts.values()) == pytest.approx(measured.cpu)
    assert min(measured.parts[part] for part in ("expand", "simulate", "evaluate")) > 0
    assert measured.parts["embed"] == 0
    assert measured.peak > measured.cache > 0
    assert set(vars(tiny)) <= set(before) | {"context_length", "start", "_special"}  # cached properties


def test_forced_verdicts_are_forced_and_asked_for(tiny):
    with forced(of_length(SETTINGS, 8, tiny), fine=True) as rain:
        fine = rain.generate(PROMPTS[0])
        assert fine.accepted
        assert all(step.iterations == 1 for step in fine.trace.steps)
        assert fine.usage.evaluation_tokens > 0
    with forced(rain, fine=False):
        never = rain.generate(PROMPTS[0])
        assert not never.accepted
        assert never.usage.iterations > fine.usage.iterations
    evaluators = rain.runtime._evaluators.values()
    assert all(type(evaluator).__name__ == "SelfEvaluator" for evaluator in evaluators)


@pytest.mark.slow
def test_counts_of_a_scenario_are_the_same_each_time(tiny):
    first, second = (with_verdicts(CANDIDATES, False, PROMPTS, 6, tiny, at_once=True) for _ in range(2))
    assert (first.tokens, first.forwards, first.output) == (second.tokens, second.forwards, second.output)
    alone = guarded(of_length(SETTINGS, 6, tiny), PROMPTS)
    assert alone.forwards > 0


@pytest.mark.slow
def test_what_a_guard_adds_where_all_is_fine(tiny):
    added = default_all_fine(tiny, 6, force=True, prompts=PROMPTS, settings=SETTINGS)
    assert added.cpu > 0
    assert added.extra < 6  # questions, never a second draft


@pytest.mark.slow
def test_mixed_prompts_are_compared_one_by_one(tiny):
    found = default_mixed([(prompt, 0) for prompt in PROMPTS], 6, tiny, SETTINGS)
    assert len(found.each) == len(found.searched) == 2
    assert found.overall > 0
    assert Mixed(2.0, (1.0, 3.0, 5.0), (False, True, True)).where_searched(50) == 4.0
    assert Mixed(2.0, (1.0,), (False,)).where_searched(95) == 0.0


def test_mixed_prompts_repeat_with_another_seed_where_there_are_too_few(tmp_path):
    for name in ("film_openings", "hh_red_team_prompts"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n", encoding="utf-8")
    films = 1 + len(TASKS["sentiment"].items(split="dev"))
    prompts = mixed_prompts(tmp_path, 2 * (films + 3))
    assert prompts[0] == ("film_openings", 0)
    assert prompts[films] == ("film_openings", 1)
    assert len(set(prompts[: films + 3])) == films + 3
    assert prompts[films + 3 :] == [("hh_red_team_prompts", 0)]


def test_the_report_holds_figures_against_their_bars(tmp_path):
    rows = [
        Row("plain", Mock(), {"1": [cost()]}, [0.5], memory=7 << 20),
        Row("a", Mock(), {"1": [cost(cpu=6.0)]}, [1.0]),
    ]
    figures = [Figure("one", "x", 2.0, 1.0), Figure("two", "y", 4.0, 3.0, more=True), Figure("two", "z", 1.0)]
    text = report.markdown(rows, figures, ["a note"])
    assert "| plain | 10.0 |  |  |  | 500 | 1.20 | 2.0 | 1.00 | 7 | 20.0% |" in text
    assert "| a | 10.0 |  |  |  | 1000 | 1.20 | 2.0 | 3.00 |  | 6.7% |" in text
    assert "| one | x | 2 | ≤ 1 | **no** |" in text
    assert "| two | y | 4 | ≥ 3 | yes |" in text
    assert text.endswith("- a note\n")
    report.write(tmp_path, text, report.data(rows, figures, [], {}))
    assert json.loads((tmp_path / "bench.json").read_text())["figures"][0]["met"] is False


def test_engines_are_compared_in_the_same_repetition():
    def row(name, *walls):
        costs = [cost(wall=wall, network=wall / 2) for wall in walls]
        return Row(name, Mock(), dict.fromkeys(CASES, costs))

    rows = [row(ALONE, 1.0, 2.0, 9.0), row(SERVER, 2.0, 4.0, 18.0), row(PLAIN, 1.25, 2.5, 9.0)]
    found = {figure.what: figure for figure in figures(rows, Options())}
    assert found[f"1: {PLAIN} over {ALONE}"].value == 0.8
    assert found[f"1: {PLAIN} over {ALONE}"].met is False
    assert found[f"8 branches: {PLAIN} over {SERVER}"].value == 1.6
    assert found[f"8 branches: {PLAIN} over {SERVER}"].met is True
    assert found[f"32: {PLAIN} over {SERVER}"].bar is None
    assert found["8: Python's share of the time"].value == 0.5


@pytest.mark.real
def test_an_engine_writes_as_many_tokens_as_llama_cpp_alone(real_model):
    ours, alone = Plain(DEFAULT, real_model), Alone(real_model)
    for prompts, branches in ((PROMPTS, 1), (PROMPTS[:1], 3)):
        with endless(real_model):
            costs = [engine.write(prompts, 5, branches) for engine in (ours, alone)]
        assert [one.output for one in costs] == [5 * len(prompts) * branches] * 2
        assert costs[0].forwards == costs[1].forwards == 5
        assert costs[0].tokens == costs[1].tokens
    assert 0 < costs[0].outside < 1
    assert costs[0].peak > costs[0].cache > 0
    assert "_run" not in vars(real_model)


@pytest.mark.slow
def test_answers_are_compared_with_those_computed_alone(tiny, monkeypatch):
    rain = of_length(SETTINGS, 6, tiny)
    assert flips(rain, 2, prompts=PROMPTS) == dict.fromkeys(WAYS, 0)
    other = [rain.plain("something else")] * len(PROMPTS)
    monkeypatch.setattr(type(rain), "plain_batch", lambda *_, **__: other)
    assert flips(rain, 2, guarded=False, prompts=PROMPTS) == dict.fromkeys(WAYS, 0) | {WAYS[0]: 2}


def test_the_command_says_what_it_skips(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "mixed", "--out", str(tmp_path)])
    bench.main()
    assert "mixed: skipped, needs --data FOLDER" in capsys.readouterr().out
    assert (tmp_path / "bench.md").exists()
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "nothing"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "unknown nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_data_types_are_compared_in_turn(tiny, tiny_folder, tmp_path, monkeypatch, capsys):
    from benchmarks import precision

    monkeypatch.setattr(precision, "READ", 64)  # the tiny network's context is short
    arguments = f"--model {tiny_folder} --tokens 2 --repeat 1"
    monkeypatch.setattr(sys, "argv", ["precision", *arguments.split()])
    precision.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain")]
    assert [row.split(" | ")[0] for row in rows] == ["| plain, alone", "| plain, 8 at once"]
    rows = [json.dumps({"prompt": f"The film {i}", "answer": "good"}) for i in range(9)]
    (tmp_path / "xstest_answers.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert precision.batched(tiny, tmp_path, 9, 4) == 0


@pytest.mark.slow
def test_the_gpu_command_runs_anywhere_on_a_tiny_shape(tmp_path, monkeypatch, capsys):
    arguments = "--device cpu --shape tiny --tokens 4 --repeat 1 --out"
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments.split(), str(tmp_path)])
    gpu.main()
    assert "**tiny**" in capsys.readouterr().out
    (shape,) = json.loads((tmp_path / "bench-gpu.json").read_text())["shapes"]
    assert len(shape["methods"]) == 6
    assert [method["repetitions"] for method in shape["methods"]] == [1] * 6
    assert shape["missing"] == []
    assert shape["methods"][0]["forwards"] == 1.0
    assert shape["bandwidth"] > 0


@pytest.mark.slow
def test_the_gpu_command_keeps_to_its_limit(tmp_path, monkeypatch, capsys):
    arguments = "--device cpu --shape tiny --tokens 2 --repeat 9 --limit 0 --out"
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments.split(), str(tmp_path)])
    gpu.main()
    assert "Not measured within the limit: RAIN default, all fine," in capsys.readouterr().out
    (shape,) = json.loads((tmp_path / "bench-gpu.json").read_text())["shapes"]
    assert [(method["method"], method["repetitions"]) for method in shape["methods"]] == [("plain", 1)]
    assert len(shape["missing"]) == 5


TOO_LONG = """
import threading
from benchmarks import gpu

def late(*args, **kwargs):
    (timer,) = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert timer.interval == 1e6 + gpu.GRACE_S
    timer.function()

gpu.guarded = late
gpu.main()
"""


@pytest.mark.slow
def test_the_gpu_command_ends_while_a_row_takes_too_long(tmp_path):
    arguments = "--device cpu --shape tiny --tokens 2 --repeat 1 --limit 1e6 --out"
    done = subprocess.run(
        [sys.executable, "-c", TOO_LONG, *arguments.split(), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert "the limit has passed" in done.stderr
    (shape,) = json.loads((tmp_path / "bench-gpu.json").read_text())["shapes"]
    assert [method["method"] for method in shape["methods"]] == ["plain"]


def test_the_gpu_command_needs_a_device(monkeypatch, capsys):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "There is no CUDA device here" in capsys.readouterr().err
