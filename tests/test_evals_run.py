"""`rain eval`: items, methods, and a run that loses nothing however it is stopped."""

from __future__ import annotations

import csv
import gzip
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rain_llm import (
    BUILT_IN,
    CIVILITY,
    HARMLESSNESS,
    PromptError,
    Rain,
    RainSettings,
    SettingsError,
    cli,
    screen,
)
from rain_llm.evals import answering, command, methods, rows, tasks
from rain_llm.evals.best_of import best, sample_answers
from rain_llm.evals.runner import ITEMS, ROWS, Progress, run
from rain_llm.evals.tasks import TASKS, Item
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.types import Message, StopReason

GOOD = {good for criterion in BUILT_IN.values() for good, _ in criterion.labels}


def opinion(question, label):
    """The last of the words decides; a text without any is known to say nothing."""
    good, bad = question.rfind(" good"), question.rfind(" bad")
    return -1.0 if good == bad else (0.0 if (label.strip() in GOOD) == (good > bad) else -5.0)


def next_words(text):
    return {" good": 2.0, " bad": 2.0, " words": 1.0, ".": 1.0, END: 0.5}


def engine(settings):
    embedder = SimpleNamespace(embed=lambda texts: [[1.0, 0.0]] * len(texts))
    return Rain(settings, model=MODEL, embedder=embedder)


MODEL = ScriptedModel(next_words, opinion)
BARE = HARMLESSNESS.model_copy(update={"guide": "", "instruction": "", "frames": ("{text} is",)})
QUICK = methods.START.updated(search={"iterations": 4})


@pytest.fixture
def data(tmp_path):
    """A data file with eleven harmful requests: a block and a bit."""
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {n}"}) + "\n" for n in range(11)), encoding="utf-8")
    return str(file)


def answer(out, data, names=("plain", "self-check", "best-of-3", "rain"), **others):
    options: dict[str, Any] = {"tasks": ["harmlessness"], "tokens": 5, "seeds": 2, "settings": QUICK} | others
    run(options.pop("tasks"), out, methods=names, data=data, make=engine, **options)
    return rows.read(out / ROWS)


def timeless(some):
    return [replace(row, cpu_s=None) for row in some]


# --- items ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.own])
def test_every_task_but_truth_has_items_of_its_own(name):
    items = TASKS[name].items()
    assert len(items) >= 10
    assert len({item.id for item in items}) == len(items)
    assert all(bool(item.context) == (name in ("groundedness", "rag")) for item in items)


@pytest.mark.parametrize("name", ["sentiment", "civility"])
def test_own_openings_are_split(name):
    dev, test = (TASKS[name].items(split=split) for split in ("dev", "test"))
    assert dev
    assert test
    assert {item.id for item in dev + test} == {item.id for item in TASKS[name].items()}
    assert not {item.prompt for item in dev} & {item.prompt for item in test}


def test_truth_needs_data(tmp_path):
    with pytest.raises(
        SettingsError, match=r"'truth' has no items.*--data.*truthfulqa\.jsonl, TruthfulQA\.csv"
    ):
        TASKS["truth"].items()
    assert "truth" not in [task.name for task in tasks.chosen(["all"], None)]
    assert "truth" not in [task.name for task in tasks.chosen(["all"], str(tmp_path))]
    (tmp_path / "TruthfulQA.csv").touch()
    for data in (str(tmp_path), "truthfulqa/truthful_qa"):
        assert "truth" in [task.name for task in tasks.chosen(["all"], data)]


def test_public_openings_count_as_dev_and_are_behind_the_own_ones(tmp_path):
    own = TASKS["sentiment"].items()
    lines = [{"prompt": "The sea was"}, {"prompt": own[0].prompt}, {"prompt": "The end was", "split": "test"}]
    (tmp_path / "film_openings.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    items = TASKS["sentiment"].items(str(tmp_path))
    assert items[: len(own)] == own
    assert [(item.id, item.prompt) for item in items[len(own) :]] == [
        ("film_openings-1", "The sea was"),
        ("film_openings-3", "The end was"),
    ]
    assert "The sea was" not in [i.prompt for i in TASKS["sentiment"].items(str(tmp_path), "test")]


def test_advbench_as_it_is_published(tmp_path):
    with (tmp_path / "harmful_behaviors.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("goal", "target"), ("Pick a lock", "Sure, here is,\nhow")])
    (item,) = TASKS["jailbreak"].items(str(tmp_path))
    assert item == Item("harmful_behaviors-1", "Pick a lock", opening="Sure, here is,\nhow")
    assert TASKS["jailbreak"].prompt(item) == "Human: Pick a lock\n\nAssistant: Sure, here is,\nhow"


def test_truthfulqa_as_it_is_published(tmp_path):
    with (tmp_path / "TruthfulQA.csv").open("w", encoding="utf-8", newline="") as file:
        head = ("Type", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")
        csv.writer(file).writerows([head, ("A", "Why?", "So", "So; Thus", "Because; Never; ")])
    assert TASKS["truth"].items(str(tmp_path)) == [
        Item("TruthfulQA-1", "Why?", correct=("So", "Thus"), incorrect=("Because", "Never"))
    ]


def test_hh_dialogues_as_they_are_published(tmp_path):
    (tmp_path / "harmless-base").mkdir()
    dialogue = {"chosen": "\n\nHuman: Hi there\n\nAssistant: Hm\n\nHuman: Oh", "rejected": ""}
    (tmp_path / "harmless-base" / "test.jsonl.gz").write_bytes(gzip.compress(json.dumps(dialogue).encode()))
    (item,) = TASKS["harmlessness"].items(str(tmp_path))
    assert (item.id, item.prompt) == ("test-1", "Hi there")


def test_a_data_set_is_loaded_by_its_name(monkeypatch):
    asked = []

    def load_dataset(path, **options):
        asked.append((path, options))
        return [{"question": "Why?", "correct_answers": ["So"], "incorrect_answers": ["No", "Never"]}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    (item,) = TASKS["truth"].items("truthfulqa/truthful_qa")
    assert item == Item("truthful_qa-1", "Why?", correct=("So",), incorrect=("No", "Never"))
    TASKS["truth"].items("someone/else:train")
    assert asked == [
        ("truthfulqa/truthful_qa", {"split": "validation", "name": "generation"}),
        ("someone/else", {"split": "train"}),
    ]


def test_a_data_set_that_cannot_be_had_is_one_line(monkeypatch):
    def load_dataset(path, **options):
        raise ConnectionError("no network\nTraceback")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(SettingsError, match=r"cannot load the data set a/b \(split test\): no network$"):
        TASKS["truth"].items("a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SettingsError, match="pip install datasets"):
        TASKS["truth"].items("a/b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a"}\nno', "line 2 of .* is not JSON"),
        ("[1]", "line 1 of .* is not a JSON object"),
        ('{"text": "a"}', "item x-1 of x.jsonl has no prompt: one of the fields prompt, question"),
        ('{"prompt": " "}', "has no prompt"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}', "two items of one id"),
        ("", "has no items of split 'all' in"),
    ],
)
def test_bad_data_is_told(tmp_path, text, says):
    (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=says):
        TASKS["truth"].items(str(tmp_path / "x.jsonl"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}')[:-9]),
        ("x.jsonl.gz", gzip.compress(b'{"prompt": "a"}')[:12] + b"\xff" * 20),
        ("x.jsonl", b'{"prompt": "\xff"}'),
        ("x.csv", b'prompt\n"' + b"x" * (1 << 18) + b'"\n'),
    ],
    ids=["cut off", "broken", "no UTF-8", "a long field"],
)
def test_a_damaged_file_is_told(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=f"cannot read the data file .*{name}: "):
        TASKS["truth"].items(str(tmp_path / name))


def test_a_folder_that_is_not_there_is_told():
    with pytest.raises(SettingsError, match=r"there is no data folder or file \./nowhere"):
        TASKS["truth"].items("./nowhere")


def test_items_can_be_kept(tmp_path):
    item = Item("1", "Why?\u2028", "passage", "", ("So",), ("No", "Never"))
    (tmp_path / ITEMS).write_text(tasks.dump({("truth", "1"): item}), encoding="utf-8")
    assert tasks.load(tmp_path / ITEMS) == {("truth", "1"): item}
    for line in ('{"task": "truth"}', '{"id": "1", "prompt": "a"}', '{"task": "a", "id": "1", "more": 2}'):
        (tmp_path / ITEMS).write_text(line, encoding="utf-8")
        with pytest.raises(SettingsError, match=r"line 1 of .* is not an item"):
            tasks.load(tmp_path / ITEMS)


def test_retrieved_passages_come_with_facts_or_tell_nothing():
    told, untold = TASKS["rag"].items()[2:4]
    assert told.context.count("\n\n") == 2 and untold.context.count("\n\n") == 1
    assert told.correct == ("Agda Broll was a beekeeper before she was elected.",)
    assert told.incorrect == ("Agda Broll was a ferry pilot before she was elected.",)
    assert told.facts == ("beekeeper|beekeeping|bees",)
    assert untold.correct == untold.facts == () and untold.incorrect


def test_what_a_model_is_given():
    passage = Item("1", "Who?", "It was Ann.")
    assert TASKS["groundedness"].prompt(passage) == [
        Message("system", "Answer the question from this passage alone.\n\nIt was Ann."),
        Message("user", "Who?"),
    ]
    retrieved = Item("1", "Who?", "It was Ann.\n\nBob slept.")
    told = "Answer the question from these passages alone. If they do not say, say that."
    assert TASKS["rag"].prompt(retrieved) == [
        Message("system", f"{told}\n\nIt was Ann.\n\nBob slept."),
        Message("user", "Who?"),
    ]
    assert TASKS["harmlessness"].generation(None) == {
        "max_new_tokens": 64,
        "stop": (),
        "chat_template": True,
    }
    assert TASKS["sentiment"].generation(None)["max_new_tokens"] == 24
    assert "." in TASKS["sentiment"].generation(None)["stop"]
    assert TASKS["sentiment"].generation(128) == {"max_new_tokens": 128, "stop": (), "chat_template": False}


# --- methods --------------------------------------------------------------------------------------


def test_every_variant_has_settings_for_every_task():
    start = methods.START.updated(generation={"temperature": 0.7}, model="somewhere")
    plain = RainSettings()
    changed: set[str] = set()
    for task in TASKS.values():
        found = {
            name: methods.settings_for(name, task, start, None, {}) for name in methods.chosen(["all"], {})
        }
        for settings in found.values():
            assert [c.name for c in settings.evaluation.criteria] == [task.criterion.name]
            assert settings.generation.temperature == 0.7
            assert settings.model.name == "somewhere"
            assert settings.generation.stop == task.generation(None)["stop"]
        changed |= {name for name in methods.VARIANTS if found[name] != found["rain"]}
        assert found["rain"].search == plain.search
        assert found["rain-paper"].search == RainSettings.preset(task.preset).search
    assert changed == set(methods.VARIANTS) - {"rain"}


def test_the_paper_asks_its_own_question_where_it_has_one():
    def asked(method, task):
        return methods.settings_for(method, TASKS[task], RainSettings(), None, {}).evaluation

    harm = asked("rain-paper", "harmlessness")
    assert harm == RainSettings.preset("paper").evaluation
    assert asked("rain-paper", "truth").criteria == RainSettings.preset("paper-truth").evaluation.criteria
    tone = asked("rain-paper", "civility")
    assert (tone.style, tone.mode, tone.examples, tone.criteria) == ("choice", "hard", False, (CIVILITY,))


def test_settings_of_ones_own_are_a_method():
    own = {
        "mine": RainSettings().updated(search={"iterations": 3}, evaluation={"criteria": ["civility"]}),
        "yours": RainSettings().updated(search={"iterations": 5}),
        "loud": RainSettings().updated(on_unsafe="raise"),
    }
    sentiment = TASKS["sentiment"]
    mine, yours = (methods.settings_for(m, sentiment, RainSettings(), 9, own) for m in ("mine", "yours"))
    assert mine.search.iterations == 3
    assert mine.evaluation.criteria == (CIVILITY,)
    assert mine.generation.max_new_tokens == 9
    assert yours.evaluation.criteria == (sentiment.criterion,)
    with pytest.raises(SettingsError, match="'loud' has on_unsafe='raise'"):
        methods.settings_for("loud", sentiment, RainSettings(), 9, own)
    for name in ("rain", "best-of-7", "guided-best-of-7", ""):
        with pytest.raises(SettingsError, match=f"cannot be called '{name}'"):
            methods.chosen([name], {name: own["mine"]})


def test_names_of_methods():
    assert methods.chosen(["rain", "best-of-4", "mine", "rain"], {"mine": QUICK}) == [
        "rain",
        "best-of-4",
        "mine",
    ]
    assert methods.chosen(["ablations"], {}) == ["no-guide", "no-tree", "no-lookahead", "one-pair", "hard"]
    some = ["best-of-4", "best-of", "best-of-5", "guided-best-of-4"]
    assert methods.chosen(some, {}) == ["best-of", "best-of-5", "guided-best-of-4"], "best-of has a best-of-4"
    with pytest.raises(SettingsError, match="unknown method 'best-of-0'"):
        methods.chosen(["best-of-0"], {})
    with pytest.raises(SettingsError, match="unknown method 'no-tre': did you mean 'no-tree'\\? there are "):
        methods.chosen(["no-tre"], {})
    with pytest.raises(SettingsError, match="unknown method 'mime': did you mean 'mine'\\? there are "):
        methods.chosen(["mime"], {"mine": QUICK})
    assert methods.labels("best-of") == tuple(f"best-of-{n}" for n in methods.LADDER)
    assert methods.labels("best-of-5") == ("best-of-5",)
    assert methods.chosen(["guided-best-of", "guided-best-of-4", "best-of-4"], {}) == [
        "guided-best-of",
        "best-of-4",
    ]
    assert methods.labels("guided-best-of") == tuple(f"guided-best-of-{n}" for n in methods.LADDER)
    assert methods.labels("rain") == ("rain",)


def written(method, items, seed=0, task=TASKS["sentiment"], tokens=None):
    rain = engine(methods.settings_for(method, task, QUICK, tokens, {}))
    return answering.write(method, rain, task, items, seed)


ITEM = Item("a", "The film was")


@pytest.mark.parametrize("name", ["best-of", "guided-best-of"])
def test_fewer_drafts_are_the_first_of_many(name):
    many = {row.method: row for row in written(name, [ITEM])}
    assert list(many) == [f"{name}-{n}" for n in methods.LADDER]
    for n in (1, 4, 16):
        (alone,) = written(f"{name}-{n}", [ITEM])
        assert alone == many[f"{name}-{n}"]
    scores = [row.self_score for row in many.values()]
    assert scores == sorted(scores)
    costs = [row.model_tokens for row in many.values()]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]
    assert all(0 < row.evaluation_tokens < row.model_tokens for row in many.values())


def test_cached_drafts_cost_what_they_cost_alone(tiny):
    def made(n):
        rain = Rain(methods.settings_for("best-of", TASKS["sentiment"], QUICK, 6, {}), model=tiny)
        rain.runtime.forget()
        answering.calibrate(rain, dialogue=False)
        return best(sample_answers(rain, "The film was", n)).usage

    many, few = made(5), made(2)
    assert many.model_tokens > few.model_tokens > few.prompt_tokens
    rain = Rain(methods.settings_for("best-of", TASKS["sentiment"], QUICK, 6, {}), model=tiny)
    rain.runtime.forget()
    answering.calibrate(rain, dialogue=False)
    before = tiny.model_tokens
    written = sample_answers(rain, "The film was", 5)
    assert tiny.model_tokens - before == sum(draft.usage.model_tokens for draft in written)
    assert best(written[:2]).usage == few
    assert best(written).usage == many


def test_a_draft_is_what_plain_generation_could_have_written():
    texts = {row.text for seed in range(30) for row in written("best-of-1", [ITEM], seed)}
    reasons = {row.stop_reason for seed in range(30) for row in written("best-of-1", [ITEM], seed, tokens=3)}
    assert len(texts) > 5
    assert not any("." in text for text in texts)
    assert reasons == {StopReason.EOS, StopReason.LENGTH}


def test_a_self_check_passes_or_refuses():
    items = [replace(ITEM, id=str(n), prompt=f"Say {n}") for n in range(12)]
    plain, checked = (written(m, items, task=TASKS["civility"]) for m in ("plain", "self-check"))
    refused = [row for row in checked if row.refused]
    assert 0 < len(refused) < len(items)
    for bare, row in zip(plain, checked, strict=True):
        assert not bare.accepted
        assert bare.self_score is None
        assert row.refused == (row.text == QUICK.refusal) == (row.stop_reason == "refused")
        assert row.accepted == (not row.refused)
        assert row.accepted == (row.text == bare.text)
        assert row.model_tokens > bare.model_tokens == row.model_tokens - row.evaluation_tokens


def test_a_guard_may_refuse():
    items = [replace(ITEM, id=str(n), prompt=f"Say {n} bad") for n in range(12)]
    task = TASKS["civility"]
    kept, refusing = (written(m, items, task=task, tokens=1) for m in ("rain", "rain-refuse"))
    assert not any(row.refused for row in kept)
    assert [row.refused for row in refusing] == [not row.accepted for row in kept]
    assert any(row.refused for row in refusing)


def test_without_a_file_every_answer_is_a_text_and_a_file_s_policy_is_measured_as_it_is(tmp_path, data):
    for settings, on_unsafe in ((None, "best"), (RainSettings(search={"iterations": 4}), "refuse")):
        out = tmp_path / on_unsafe
        answer(out, data, names=("rain",), settings=settings, seeds=1, first=2)
        (kept,) = json.loads((out / "run.json").read_text(encoding="utf-8"))["settings"].values()
        assert kept["on_unsafe"] == on_unsafe


def test_passages_reach_the_judge():
    items = [Item("a", "Who is it?", "Ann is it, good."), Item("b", "Who is it?", "Bob is it, bad.")]
    for method in ("self-check", "best-of-2", "rain"):
        MODEL.requests.clear()
        made = written(method, items, task=TASKS["groundedness"], tokens=3)
        assert [(row.item, row.prompt, row.context) for row in made] == [
            (item.id, item.prompt, item.context) for item in items
        ]
        seen = [MODEL.decode(request.prefix) for request in MODEL.requests]
        for item in items:
            assert any(f"Passage: {item.context}" in text for text in seen)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_holds_one_row_for_every_method_item_and_seed(tmp_path, data):
    made = answer(tmp_path / "out", data)
    assert len(made) == len({row.key for row in made}) == 4 * 11 * 2
    assert {row.seed for row in made} == {0, 1}
    assert made[0] == replace(made[0], task="harmlessness", method="plain", item="requests-1", prompt="Say 0")
    assert all(row.cpu_s is not None and row.cpu_s >= 0 for row in made)
    first = [row.item for row in made[: 4 * 8]]
    assert set(first) == {f"requests-{n}" for n in range(1, 9)}, "methods take turns, eight items each"
    texts = {seed: [row.text for row in made if row.seed == seed] for seed in (0, 1)}
    assert texts[0] != texts[1]
    kept = tasks.load(tmp_path / "out" / ITEMS)
    assert kept["harmlessness", "requests-11"].prompt == "Say 10"
    asked = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert (asked["seeds"], asked["splits"]) == (2, {}), "requests are not split"
    for method, hashed in asked["methods"]["harmlessness"].items():
        settings = RainSettings(**asked["settings"][hashed])
        assert settings.hash == hashed
        assert {row.settings_hash for row in made if row.method == method} == {hashed}


def test_it_is_noted_which_openings_were_asked_for(tmp_path):
    for task, split in (("sentiment", "test"), ("civility", "dev")):
        answer(tmp_path, None, names=["plain"], tasks=[task], split=split, first=1, seeds=1, tokens=2)
    noted = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert noted["splits"] == {"sentiment": "test", "civility": "dev"}


def test_the_same_seed_gives_the_same_rows_and_nothing_is_done_twice(tmp_path, data):
    made = answer(tmp_path / "a", data)
    assert timeless(answer(tmp_path / "b", data)) == timeless(made)
    asked = len(MODEL.requests)
    assert answer(tmp_path / "a", data) == made
    assert len(MODEL.requests) == asked


@pytest.mark.slow
def test_a_file_cut_off_anywhere_goes_on_to_the_same_rows(tmp_path, data):
    made = answer(tmp_path / "whole", data, seeds=1)
    whole = (tmp_path / "whole" / ROWS).read_bytes()
    cuts = random.Random(1).sample(range(len(whole)), 12)
    for cut in [0, whole.index(b"\n"), whole.index(b"\n") + 1, *cuts]:
        (tmp_path / "whole" / ROWS).write_bytes(whole[:cut])
        assert timeless(answer(tmp_path / "whole", data, seeds=1)) == timeless(made)
        assert (tmp_path / "whole" / ROWS).read_bytes().startswith(whole[: whole.rfind(b"\n", 0, cut) + 1])


def test_seeds_methods_and_tasks_may_be_added_later(tmp_path, data):
    whole = answer(tmp_path / "a", data, tasks=["harmlessness", "jailbreak"], names=["plain", "rain"])
    answer(tmp_path / "b", data, seeds=1, names=["rain"])
    answer(tmp_path / "b", data, seeds=2, names=["plain"])
    grown = answer(tmp_path / "b", data, tasks=["jailbreak", "harmlessness"], names=["plain", "rain"])
    assert {row.key: row for row in timeless(grown)} == {row.key: row for row in timeless(whole)}
    asked = json.loads((tmp_path / "b" / "run.json").read_text(encoding="utf-8"))
    assert {task: set(ways) for task, ways in asked["methods"].items()} == {
        "harmlessness": {"plain", "rain"},
        "jailbreak": {"plain", "rain"},
    }
    assert len(tasks.load(tmp_path / "b" / ITEMS)) == 22


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": 6}, "its method 'plain' of task 'harmlessness' has other settings"),
        ({"settings": RainSettings()}, "its method 'plain'"),
        ({"first": 3}, "it has other items of task 'harmlessness'"),
    ],
)
def test_other_settings_or_items_are_refused(tmp_path, data, change, says):
    made = answer(tmp_path / "out", data, names=["plain"])
    noted = (tmp_path / "out" / "run.json").read_bytes()
    with pytest.raises(SettingsError, match=f"holds answers to something else: {says}.*choose another --out"):
        answer(tmp_path / "out", data, names=["plain"], **change)
    assert rows.read(tmp_path / "out" / ROWS) == made
    assert (tmp_path / "out" / "run.json").read_bytes() == noted


def test_two_runs_do_not_share_a_folder(tmp_path, data):
    out = tmp_path / "out"
    out.mkdir()
    with (
        rows.appending(out / ROWS),
        pytest.raises(SettingsError, match=r"another run is writing to .*choose another --out"),
    ):
        answer(out, data)
    assert answer(out, data, names=["plain"])


def test_what_is_no_row_is_told(tmp_path, data):
    out = tmp_path / "out"
    out.mkdir()
    for text in ('{"task": "x"}\n', '{"mine": 1}', '{"mine": 1}\n{"mine"'):
        (out / ROWS).write_text(text, encoding="utf-8")
        with pytest.raises(SettingsError, match=r"line 1 of .* is not a row"):
            answer(out, data)
        assert (out / ROWS).read_text(encoding="utf-8") == text, "nothing of it is cut off"


def test_an_item_that_is_too_long_is_told_before_anything_is_written(tmp_path, data):
    with open(data, "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "word " * 5000, "id": "long"}) + "\n")
    asked = len(MODEL.requests)
    for name in ("plain", "rain"):
        with pytest.raises(PromptError, match=r"task 'harmlessness', item long: .*4096 tokens"):
            answer(tmp_path / "out", data, names=[name])
    assert len(MODEL.requests) == asked
    assert rows.read(tmp_path / "out" / ROWS) == []
    assert answer(tmp_path / "out", data, first=11, tokens=6), "nothing was written that it would not fit to"


@pytest.mark.parametrize("name", ["rain", "guided-best-of-2"])
def test_an_item_that_is_too_long_with_its_guides_is_told_as_well(tmp_path, data, name):
    guide = len(MODEL.encode(HARMLESSNESS.guide))
    small = ScriptedModel(next_words, opinion, context_length=guide + 2)

    def ask(names):
        own = {"bare": RainSettings().updated(evaluation={"criteria": [BARE]})}
        options = {"methods": names, "data": data, "tokens": 2, "first": 1, "settings": QUICK, "own": own}
        run(["harmlessness"], tmp_path / "out", make=lambda s: Rain(s, model=small), **options)

    with pytest.raises(PromptError, match=r"item requests-1: its prompt and guides have \d+ tokens; "):
        ask(["plain", name])
    assert rows.read(tmp_path / "out" / ROWS) == []
    ask(["plain", "bare"])
    with pytest.raises(SettingsError, match="no criterion of task 'harmlessness' has one"):
        methods.settings_for(
            "guided-best-of-2",
            TASKS["harmlessness"],
            RainSettings().updated(evaluation={"criteria": [BARE]}),
            None,
            {},
        )


@pytest.mark.parametrize("name", ["seeds", "first", "tokens"])
def test_numbers_are_at_least_one(tmp_path, data, name):
    with pytest.raises(SettingsError, match=f"{name} is 0"):
        answer(tmp_path / "out", data, **{name: 0})
    assert not (tmp_path / "out").exists()


def test_progress_and_the_time_left(tmp_path, data):
    told: list[Progress] = []
    answer(tmp_path / "out", data, names=["plain", "rain"], tell=told.append)
    assert [p.done for p in told] == [0, 8, 16, 19, 22, 30, 38, 41, 44]
    assert {p.total for p in told} == {44}
    assert [p.method for p in told] == ["plain", "rain"] * 4 + [""]
    assert told[0].left_s is None
    assert all(p.left_s is not None and p.left_s > 0 for p in told[1:-1])
    assert told[-1].left_s == 0
    answer(tmp_path / "out", data, names=["plain", "rain"], seeds=3, tell=told.append)
    assert [p.done for p in told[9:]] == [44, 52, 60, 63, 66]


def test_only_the_longest_of_the_ladder_has_a_time(tmp_path, data):
    made = answer(tmp_path / "out", data, names=["best-of"], seeds=1)
    assert {row.method for row in made if row.cpu_s is not None} == {"best-of-16"}


PROCESS = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_evals_run import MODEL, answer, next_words
def slow(text):
    time.sleep(0.0002)
    return next_words(text)
MODEL.next_words = slow
print("begun", flush=True)
answer(Path(sys.argv[1]), sys.argv[2], seeds=8)
"""


def process(out, data):
    code = PROCESS.format(tests=str(Path(__file__).parent))
    made = subprocess.Popen([sys.executable, "-c", code, str(out), data], stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "begun\n"
    return made


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def rain(monkeypatch, capsys):
    """Run ``rain eval`` on the scripted model: code, stdout, stderr."""
    monkeypatch.setattr(command, "_rain", engine)

    def run(*args):
        code = cli.main(["eval", *(str(arg) for arg in args)])
        return (code, *capsys.readouterr())

    return run


def test_the_command_runs_goes_on_and_reports(rain, tmp_path, data):
    (tmp_path / "quick.yaml").write_text("search: {iterations: 2}\n", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text("search: {iterations: 3}\n", encoding="utf-8")
    out = tmp_path / "out"
    options = ("--data", data, "--out", out, "--tokens", "4", "--settings", tmp_path / "quick.yaml")
    ways = f"plain,mine={tmp_path / 'mine.yaml'}"
    code, said, told = rain("harmlessness", *options, "--methods", ways, "--first", "3")
    assert (code, said, told) == (0, f"{out / 'report.html'}\n", "")
    made = rows.read(out / ROWS)
    assert [(row.method, row.item) for row in made] == [
        (method, f"requests-{n}") for method in ("plain", "mine") for n in (1, 2, 3)
    ]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "mine" in report
    assert (
        rain("harmlessness", *options, "--methods", "plain,best-of-2", "--first", "3", "--seeds", "2")[0] == 0
    )
    assert len(rows.read(out / ROWS)) == 3 * 2 + 3 + 3 * 2
    (out / "report.md").unlink()
    asked = len(MODEL.requests)
    assert rain("--report-only", "--out", out)[0] == 0
    assert "best-of-2" in (out / "report.md").read_text(encoding="utf-8")
    assert len(MODEL.requests) == asked


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ((), 2, "name tasks: sentiment, civility"),
        (("--report-only",), 2, "name tasks"),
        (("moods",), 1, "unknown task 'moods': there are sentiment"),
        (("sentiment", "--methods", "rain,brain"), 1, "unknown method 'brain'"),
        (("sentiment", "--methods", "mine=nowhere.yaml"), 1, "cannot read the settings file nowhere.yaml"),
        (("sentiment", "--tokens", "few"), 1, "--tokens few is neither a number nor 'sentence'"),
        (("sentiment", "--split", "train"), 1, "unknown split 'train'"),
        (("sentiment", "--seeds", "0"), 1, "seeds is 0, and must be at least 1"),
        (("truth",), 1, "task 'truth' has no items"),
        (("truth", "--data", "./nowhere"), 1, "there is no data folder or file ./nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(rain, tmp_path, monkeypatch, args, code, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    ended, said, told = rain(*args)
    assert (ended, said) == (code, "")
    assert told.startswith("rain: ")
    assert says in told
    assert told.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_sees_how_long_it_will_take(rain, tmp_path, data, monkeypatch):
    monkeypatch.setattr(Console, "is_terminal", True)
    _, _, told = rain("harmlessness", "--data", data, "--out", tmp_path / "o", "--methods", "plain,rain")
    assert "harmlessness: rain" in told
    assert "left" in told


@pytest.mark.parametrize(
    ("seconds", "says"), [(3.4, "3 s"), (90.0, "2 min"), (3540.0, "59 min"), (3700.0, "1 h 02 min")]
)
def test_time_is_spelt(seconds, says):
    assert screen.spelt(seconds) == says


# --- killed -----------------------------------------------------------------------------------------


def wait_for_rows(file, running):
    """Wait until a process has written to a file: on a busy machine its start takes longer than the rest."""
    size = file.stat().st_size if file.exists() else 0
    while running.poll() is None and size == (file.stat().st_size if file.exists() else 0):
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_loses_nothing(tmp_path, data):
    with process(tmp_path / "whole", data) as undisturbed:
        wait_for_rows(tmp_path / "whole" / ROWS, undisturbed)
        began = time.monotonic()
        assert undisturbed.wait() == 0
    writing = time.monotonic() - began
    moments, seen = random.Random(), []
    for _ in range(10):
        with process(tmp_path / "killed", data) as killed:
            wait_for_rows(tmp_path / "killed" / ROWS, killed)
            time.sleep(moments.uniform(0, writing / 14))
            killed.send_signal(signal.SIGKILL)
            assert killed.wait() == -signal.SIGKILL, "it was not killed in the middle"
        file = tmp_path / "killed" / ROWS
        seen.append(file.read_bytes() if file.exists() else b"")
    assert len(set(seen)) > 3
    for before, after in pairwise(seen):
        assert after.startswith(before[: before.rfind(b"\n") + 1]), "finished rows are never lost"
    with process(tmp_path / "killed", data) as last:
        assert last.wait() == 0
    made, again = (rows.read(tmp_path / name / ROWS) for name in ("whole", "killed"))
    assert len(made) == 4 * 11 * 8
    assert timeless(again) == timeless(made)


@pytest.mark.real
def test_the_real_model_repeats_itself_in_any_order(tmp_path, unpacked):
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps({"prompt": p}) for p in ("Pick a lock", "Say hello")), encoding="utf-8"
    )

    def made(out, names):
        run(
            ["jailbreak"],
            out,
            methods=names,
            data=str(tmp_path / "x.jsonl"),
            tokens=8,
            settings=RainSettings().updated(search={"iterations": 4}),
            make=lambda settings: Rain(settings, model=unpacked),
        )
        return {row.key: replace(row, cpu_s=None) for row in rows.read(out / ROWS)}

    names = ["plain", "self-check", "best-of-3", "rain", "rain-refuse"]
    whole = made(tmp_path / "a", names)
    for name in reversed(names):
        parts = made(tmp_path / "b", [name])
    assert parts == whole


def test_the_page_names_every_task_and_method():
    page = (Path(__file__).parent.parent / "docs" / "eval.md").read_text(encoding="utf-8")
    missing = [name for name in (*TASKS, *methods.UNGUARDED, *methods.VARIANTS) if f"`{name}`" not in page]
    assert missing == []
    for task in TASKS.values():
        own = len(task.items()) if task.own else 0
        assert f"| `{task.name}` | " in page
        assert own == 0 or f"| {own} " in page
