"""Probes: what they find, what they must not find, and what is wrong with data and models."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from rain_llm.doctor.items import Item, read
from rain_llm.doctor.measures import auc
from rain_llm.errors import ModelError, SettingsError
from rain_llm.judging.probe import Probe
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.probing import baselines
from rain_llm.probing.baselines import TFIDF
from rain_llm.probing.examining import answers_of, auc_difference, examine_probe
from rain_llm.probing.fitting import Answers, balanced, folds, predict
from rain_llm.probing.ridge import ridge
from rain_llm.probing.states import COMPLETE, candidates, read_states

WIDTH = 24


@dataclass
class Planted(ScriptedModel):
    """A model with 11 layers. Layer 6 has the direction of good in the words' states, the others noise."""

    signal: float = 1.0
    good: dict[str, bool] = field(default_factory=dict)  # by the answer's text
    depth: int = 11
    width: int = WIDTH

    def states(self, prefix, tokens, layers):
        text = self.decode(tokens)
        rng = np.random.default_rng(zlib.crc32(self.decode(prefix + tokens).encode()))
        found = rng.normal(size=(len(tokens), len(layers), self.width)).astype(np.float32)
        if 6 in layers:
            found[:, list(layers).index(6), 3] += self.signal * (1 if self.good[text] else -1)
        return found * 50 + 7  # neither centred nor scaled


@pytest.fixture(autouse=True)
def no_embedder(monkeypatch):
    """MiniLM takes seconds to load."""

    def missing(items):
        raise ModelError("left out")

    monkeypatch.setattr(baselines, "_minilm", missing)


def labelled(n: int = 60, seed: int = 0, source: str = "one", **fields) -> list[Item]:
    """Two answers of random words to each of n prompts; the words say nothing about the label."""
    rng = np.random.default_rng(seed)
    return [
        Item(
            id=f"{source}-{number}-{good}",
            query=f"Question {source} {number}?",
            answer=" ".join(rng.choice(list("abcdefghijklmnop"), rng.integers(6, 14))),
            dialogue=True,
            good=good,
            pair=str(number),
            source=source,
            **fields,
        )
        for number in range(n)
        for good in (True, False)
    ]


def model(items: list[Item], **changes) -> Planted:
    return Planted(lambda text: {END: 1.0}, good={item.answer: item.good for item in items}, **changes)


def rows(found) -> dict[str, float]:
    return {row.name: row.auc.value for row in found}


def test_a_planted_direction_is_found_and_nothing_else():
    items = labelled()
    found = examine_probe(model(items), "civility", items, 0)
    assert found.probe is not None and 6 in found.probe.layers and found.probe.model == "scripted"
    assert rows(found.findings.cuts)["complete answers"] > 0.95
    assert rows(found.findings.cuts)["first 4 tokens"] > 0.8
    assert rows(found.findings.baselines)[TFIDF] < 0.7
    weights = np.abs(found.probe.weights[found.probe.layers.index(6)])
    assert weights.argmax() == 3
    sizes = [row.n for row in found.findings.learning]
    assert sizes == [10, 20, 40, 80]
    assert found.findings.learning[-1].auc.value > found.findings.learning[0].auc.value


def test_the_probe_predicts_in_its_file_as_in_the_fit(tmp_path):
    items = labelled()
    writer = model(items)
    found = examine_probe(writer, "civility", items, 0)
    assert found.probe is not None
    found.probe.save(tmp_path / "civility.probe.json")
    probe = Probe.load(tmp_path / "civility.probe.json")
    probe.check("civility", writer)
    log_odds = []
    for item in items:
        states = read_states(writer, [item]).of(probe.layers)[0, COMPLETE].reshape(1, len(probe.layers), -1)
        values = np.einsum("tlw,lw->t", states, np.array(probe.weights))
        log_odds.append(probe.log_odds(values.tolist()))
    good = np.array([item.good for item in items])
    assert auc(np.array(log_odds), good) > 0.95
    passed = 1 / (1 + np.exp(-np.array(log_odds))) > probe.threshold
    assert (passed == good).mean() > 0.9
    assert np.corrcoef(log_odds, found.log_odds[:, COMPLETE])[0, 1] > 0.9
    assert [(source.name, source.good, source.bad) for source in probe.data] == [("one", 60, 60)]
    assert {figure.name for figure in probe.held_out} >= {"AUC, complete answers", f"AUC, {TFIDF}"}


def test_random_labels_are_a_coin_for_every_seed():
    values = []
    for seed in range(12):
        items = labelled(40, seed)
        states = read_states(model(items, signal=0.0), items)
        answers, _ = answers_of(items)
        values.append(
            auc(predict(states.of, candidates(11), answers, seed).scores[:, COMPLETE], answers.good)
        )
    assert abs(np.mean(values) - 0.5) < 0.06


def test_the_prompt_alone_does_not_help_as_its_answers_are_never_separated():
    """Both answers to a prompt have one state, and one label: only a leak between folds could find it."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(60, 1, 200)), 4, axis=0).astype(np.float32)
    answers = Answers(
        np.repeat(rng.random(60) < 0.5, 4), np.repeat(np.arange(60), 4), np.zeros(240, np.int64)
    )
    value = auc(predict(lambda _: features, [()], answers, 0).scores[:, COMPLETE], answers.good)
    assert abs(value - 0.5) < 0.15
    loose = Answers(answers.good, np.arange(240), answers.sources)
    assert auc(predict(lambda _: features, [()], loose, 0).scores[:, COMPLETE], answers.good) > 0.95


def test_folds_keep_groups_and_spread_labels_and_sources():
    rng = np.random.default_rng(1)
    answers = Answers(rng.random(400) < 0.3, np.sort(rng.integers(0, 90, 400)), np.repeat([0, 1], 200))
    fold = folds(answers, 0, 5)
    for group in range(90):
        assert len(set(fold[answers.groups == group])) <= 1
    for number in range(5):
        assert 0.15 < answers.good[fold == number].mean() < 0.45
        assert 55 <= (fold == number).sum() <= 105
    assert (folds(answers, 0, 5) == fold).all() and (folds(answers, 1, 5) != fold).any()


def test_good_and_bad_answers_of_a_source_weigh_the_same():
    answers = Answers(np.array([1, 1, 1, 0, 0, 1], bool), np.arange(6), np.array([0, 0, 0, 0, 1, 1]))
    assert balanced(answers).tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2, 1, 1])


def test_ridge_is_the_same_in_both_forms():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 20)).astype(np.float32)
    good = features[:, 0] > 0
    wide = np.concatenate([features, np.zeros((30, 40), np.float32)], 1)  # constants say nothing
    small, large = (ridge(f, good, np.ones(30), [0.5], False)[0] for f in (features, wide))
    assert large.weights[:20] == pytest.approx(small.weights, abs=1e-4)
    assert (large.weights[20:] == 0).all() and large.bias == pytest.approx(small.bias, abs=1e-4)


def test_answers_with_the_same_words_stay_in_one_fold_and_are_reported():
    items = [*labelled(10, 0, "one"), *labelled(10, 1, "two")]
    items[25] = items[25].model_copy(update={"answer": items[3].answer.upper() + " "})
    answers, warnings = answers_of(items)
    assert answers.groups[25] == answers.groups[3] == answers.groups[24]
    assert len(set(answers.groups)) == 19
    assert warnings == [
        "1 answers stand in several sources or under several prompts with the same words: "
        "their prompts are kept in one fold"
    ]
    assert answers_of(labelled(10))[1] == []


def test_answers_to_one_prompt_are_one_group_in_all_sources():
    items = [*labelled(10, 0, "one"), *labelled(10, 1, "two")]
    items[20] = items[20].model_copy(update={"query": items[0].query})
    answers, _ = answers_of(items)
    assert answers.groups[20] == answers.groups[0]
    apart = [item.model_copy(update={"query": "The film was", "dialogue": False}) for item in items]
    assert len(set(answers_of(apart)[0].groups)) == 20  # the beginning that all continue is no prompt


def test_two_answers_and_labels_all_alike_are_errors():
    few = labelled(1)
    with pytest.raises(SettingsError, match="1 good and 1 bad answers to 1 prompts are too few for a probe"):
        examine_probe(model(few), "civility", few, 0)
    alike = [item.model_copy(update={"good": False}) for item in labelled()]
    with pytest.raises(SettingsError, match="all 120 labelled answers are bad: a probe needs both kinds"):
        examine_probe(model(alike), "civility", alike, 0)


def test_states_that_are_not_numbers_are_an_error():
    items = labelled()
    with pytest.raises(ModelError, match=r"item one-.*: the hidden states of scripted are not finite"):
        examine_probe(model(items, signal=float("nan")), "civility", items, 0)


def test_a_source_of_another_kind_is_reported_as_such():
    """What is good in one source is bad in the other: a probe of one is worse than a coin on the other."""
    one, two = labelled(40, 0, "one"), labelled(40, 1, "two")
    writer = model([*one, *(item.model_copy(update={"good": not item.good}) for item in two)])
    found = examine_probe(writer, "civility", [*one, *two], 0)
    values = rows(found.findings.sources)
    assert list(values) == ["one", "two", "one, not fitted to", "two, not fitted to"]
    assert values["one, not fitted to"] < 0.1 and values["two, not fitted to"] < 0.1
    assert any(said.startswith("one, not fitted to: 0.0") for said in found.findings.warnings)
    same = examine_probe(model([*one, *two]), "civility", [*one, *two], 0)
    assert rows(same.findings.sources)["two, not fitted to"] > 0.95


def test_words_that_do_as_well_are_reported():
    items = [
        item.model_copy(update={"answer": f"{item.answer} {'fine' if item.good else 'awful'}"})
        for item in labelled()
    ]
    found = examine_probe(model(items), "civility", items, 0)
    (row,) = found.findings.baselines
    assert row.auc.value > 0.95 and row.lead is not None and row.lead.low <= 0
    assert any(
        "not significantly better than TF-IDF of the answer" in said for said in found.findings.warnings
    )
    assert any("MiniLM of request and answer: left out" in said for said in found.findings.warnings)


def test_complied_against_refused_and_harmful_against_benign_have_rows():
    items = labelled(80)
    kinds = [
        item.model_copy(
            update={
                "unsafe": int(item.pair) % 2 == 0,
                "kind": "complies" if not item.good or int(item.pair) % 2 else "refuses",
            }
        )
        for item in items
    ]
    found = examine_probe(model(kinds), "harmlessness", kinds, 0)
    assert {row.name: row.n for row in found.findings.kinds} == {
        "complied against refused": 80,
        "harmful against benign compliance": 120,
    }
    assert not examine_probe(model(items), "harmlessness", items, 0).findings.kinds


def test_nothing_found_is_no_probe():
    items = labelled()
    writer = ScriptedModel(lambda text: {END: 1.0})  # all states are 0
    found = examine_probe(writer, "civility", items, 0)
    assert found.probe is None and rows(found.findings.cuts)["complete answers"] == 0.5


def test_a_difference_has_the_interval_of_its_pairs():
    rng = np.random.default_rng(0)
    good = np.tile([True, False], 100)
    first, second = good + rng.normal(size=200), rng.normal(size=200)
    found = auc_difference(first, second, good, np.repeat(np.arange(100), 2), 0)
    assert found.value == pytest.approx(auc(first, good) - auc(second, good))
    assert 0 < found.low < found.value < found.high
    assert auc_difference(first, first, good, np.arange(200), 0).high == 0


def test_public_data_sets_are_read_as_they_are(tmp_path: Path):
    xstest = [
        {"prompt": f"P{n}", "answer": f"A{n}", "prompt_safe": n % 2 == 0, "label": label}
        for n, label in enumerate(["complies", "complies", "refuses", "partly"] * 16)
    ]
    jailbreak = [{"prompt": f"J{n}", "answer": f"A{n}", "harmful": n % 2 == 0} for n in range(16)]
    files = tmp_path / "xstest.jsonl", tmp_path / "jbb.jsonl"
    for file, lines in zip(files, (xstest, jailbreak), strict=True):
        file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    items = read(*files)
    assert len(items) == 80 and {item.source for item in items} == {"xstest.jsonl", "jbb.jsonl"}
    first, second, third, fourth = items[:4]
    assert [item.good for item in items[:4]] == [True, False, True, True]
    assert (second.query, second.unsafe, second.kind, second.pair) == ("P1", True, "complies", "P1")
    assert first.unsafe is False and third.kind == "refuses" and fourth.dialogue
    assert [item.good for item in items[64:66]] == [False, True]


def test_answers_to_one_prompt_stay_together_however_they_are_linked():
    """Refusals with the same words link prompts; a chain of links of any order is one group."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        texts = [
            (f"prompt {rng.integers(12)}", "I can't help." if rng.random() < 0.3 else f"answer {number}")
            for number in range(60)
        ]
        items = [
            Item(id=str(n), query=query, answer=answer, dialogue=True, good=bool(n % 2), pair=str(n))
            for n, (query, answer) in enumerate(texts)
        ]
        groups = answers_of(items)[0].groups
        for one, (query, answer) in zip(groups, texts, strict=True):
            for other, (query_too, answer_too) in zip(groups, texts, strict=True):
                if query == query_too or answer == answer_too:
                    assert one == other
