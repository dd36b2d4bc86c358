"""The doctor: its measures against known values, its honesty about halves, and what it says and writes."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from rain_llm import BUILT_IN, CIVILITY, HARMLESSNESS, POSITIVE_SENTIMENT, RainSettings, cli
from rain_llm.doctor import command, measures
from rain_llm.doctor import examine as examination
from rain_llm.doctor.examine import examine
from rain_llm.doctor.findings import Diagnosis, Measures, Ranked, Trust
from rain_llm.doctor.items import Item, read, shipped
from rain_llm.doctor.measures import Interval
from rain_llm.doctor.report import sentence
from rain_llm.doctor.styles import styles
from rain_llm.errors import LabelError, ModelNotSupportedError, PromptError, SettingsError
from rain_llm.judging.evaluator import Answered, Asking, SelfEvaluator, log_odds, votes
from rain_llm.judging.probe import Probe
from rain_llm.judging.questions import JudgeInput
from rain_llm.models.scripted import END, ScriptedModel
from rain_llm.probing.halves import split
from rain_llm.probing.ranking import probe_for, ranked
from rain_llm.requests import Read, Score
from rain_llm.settings import EvaluationSettings

GOOD = {good for criterion in BUILT_IN.values() for good, _ in criterion.labels} | {"yes"}
POSITIVE = EvaluationSettings(criteria=(POSITIVE_SENTIMENT,))


def noise(text: str) -> float:
    """A number in [-1, 1) that hangs on the text alone."""
    return (zlib.crc32(text.encode()) % 2000) / 1000 - 1


def judge(signal: float = 1.0, bias: float = 0.0, **changes) -> ScriptedModel:
    """A judge whose label words tell ' lovely' from the rest, and whose letters are always A."""

    def opinion(question: str, label: str) -> float:
        if label in ("A", "B"):
            return -1.0 if label == "A" else -3.0
        if label.strip() not in GOOD:
            return 0.0
        return bias + signal * (" lovely" in question) + noise(question) - 0.5 * signal

    return ScriptedModel(lambda text: {END: 1.0}, opinion, **changes)


def items(pairs: int = 40) -> list[Item]:
    return [
        Item(
            id=f"{n}-{word}", query=f"Day {n} was", answer=f"a {word} day by the sea.", good=good, pair=str(n)
        )
        for n in range(pairs)
        for word, good in (("lovely", True), ("dreary", False))
    ]


def answered(asking: Asking[Answered], model: ScriptedModel) -> Answered:
    """Let a model answer the one round of a judgement."""
    questions = next(asking)
    with pytest.raises(StopIteration) as done:
        asking.send(model.score([question for question in questions if isinstance(question, Score)]))
    result: Answered = done.value.value
    return result


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


# --- measures -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_with_ties_is_sklearns(answers):
    scores, good = np.array([float(s) for s, _ in answers]), np.array([g for _, g in answers])
    if good.all() or not good.any():
        return
    assert measures.auc(scores, good) == pytest.approx(roc_auc_score(good, scores))


def draw(rng, n: int, distance: float):
    """Pairs that share an offset: the good one's score is ``distance`` higher, on average."""
    offsets = rng.normal(size=n)
    scores = np.concatenate([offsets + distance + rng.normal(size=n), offsets + rng.normal(size=n)])
    good = np.repeat([True, False], n)
    return scores, good, np.tile(np.arange(n), 2)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth = 0.5 * (1 + math.erf(1.5 / 2 / math.sqrt(2)))  # Phi(distance / sqrt(2 * variance))
    held = 0
    for seed in range(150):
        scores, good, pairs = draw(rng, 20, 1.5)
        interval = measures.auc_interval(scores, good, pairs, seed)
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= truth <= interval.high
    assert held >= 0.93 * 150


def test_no_mistake_among_a_few_is_no_proof():
    good = np.repeat([True, False], 10)
    interval = measures.auc_interval(good.astype(float), good, np.arange(20), 0)
    assert interval.value == interval.high == 1.0
    assert 0.6 < interval.low < 0.9


def test_pairs_that_go_right_or_wrong_together_widen_the_interval():
    rng = np.random.default_rng(1)
    good = np.tile([True, False], 60)
    right = np.repeat(rng.random(12) < 0.7, 10)  # 12 groups, each all right or all wrong
    scores = np.where(right, good, ~good) + 0.01 * rng.normal(size=120)
    wide = measures.auc_interval(scores, good, np.repeat(np.arange(12), 10), 0)
    narrow = measures.auc_interval(scores, good, np.arange(120), 0)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_tie_is_half_right_and_counted():
    hard, good = np.array([1.0, 0.5, 0.5, 0.0]), np.array([True, True, False, True])
    assert measures.hard_accuracy(hard, good) == 0.5
    assert measures.ties(hard) == 0.5


def test_position_bias_is_what_the_two_orders_do_not_agree_on():
    judgement, letter = np.array([1.0, -2.0, 0.5]), 3.0
    assert measures.position_bias(judgement + letter, judgement - letter) == pytest.approx(letter)
    assert measures.position_bias(judgement, judgement) == 0


def test_the_fit_finds_the_curve_that_made_the_labels():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(2.0, 1.0, 4000)
    good = rng.random(4000) < 1 / (1 + np.exp(-(log_odds - 2.5) / 0.4))
    fitted = measures.fit(log_odds, good)
    assert fitted is not None
    assert fitted.center == pytest.approx(2.5, abs=0.05)
    assert fitted.scale == pytest.approx(0.4, abs=0.05)
    reference = LogisticRegression(C=1e9).fit(log_odds[:, None], good)
    assert fitted.scale == pytest.approx(1 / reference.coef_[0, 0], rel=0.02)
    bins = measures.curve(fitted.probability(log_odds), good)
    assert measures.calibration_error(bins) < 0.02
    assert sum(b.n for b in bins) == 4000


def test_answers_without_a_mistake_among_them_give_a_finite_curve():
    good = np.repeat([True, False], 6)
    fitted = measures.fit(np.where(good, 1.0, -1.0), good)
    assert fitted is not None and fitted.scale > 0.1
    assert fitted.threshold == pytest.approx(0.5, abs=0.01)
    assert 0.5 < fitted.clear < 1


def test_scores_that_point_the_wrong_way_or_nowhere_are_not_fitted():
    good = np.repeat([True, False], 6)
    assert measures.fit(np.where(good, -1.0, 1.0), good) is None
    assert measures.fit(np.zeros(12), good) is None


def test_the_threshold_has_the_largest_balanced_accuracy():
    rng = np.random.default_rng(3)
    log_odds, good = rng.normal(size=60), rng.random(60) < 0.3
    log_odds[good] += 1.5
    fitted = measures.fit(log_odds, good)
    assert fitted is not None
    probability = fitted.probability(log_odds)
    reached = measures.balanced_accuracy(probability, good, fitted.threshold)
    tried = [measures.balanced_accuracy(probability, good, t) for t in np.linspace(0, 0.99, 1000)]
    assert reached >= max(tried)


# --- items --------------------------------------------------------------------------------------------


def test_both_shapes_of_a_line_are_read(tmp_path):
    rows = [{"text": f"text {n}", "label": label} for n in range(8) for label in ("positive", 0)]
    rows.append({"query": "It is", "answer": "fine", "good": True, "pair": 7, "id": 3, "source": "a book"})
    found = read(write(tmp_path / "own.jsonl", rows))
    assert [item.good for item in found[:2]] == [True, False]
    assert found[0].answer == "text 0" and found[0].pair == "1" and found[2].pair == "3"
    assert found[-1].pair == "7" and found[-1].id == "3"


@pytest.mark.parametrize(
    ("label", "good"),
    [("positive", True), ("BAD", False), (True, True), ("false", False), (1, True), ("0", False)],
)
def test_labels_may_be_words_numbers_or_truth_values(label, good):
    assert Item.model_validate({"id": "1", "pair": "1", "text": "x", "label": label}).good is good


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"answer": "x", "good": tru}', "line 3 is not a JSON object"),
        ('["x", true]', "line 3: "),
        ('{"query": "x", "good": true}', "line 3: answer: Field required"),
        ('{"answer": "x"}', "line 3: good: Field required"),
        ('{"text": "x", "label": "lukewarm"}', "unknown label 'lukewarm': there are positive"),
        ('{"answer": "  ", "good": true}', "the answer is empty"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, said):
    file = tmp_path / "own.jsonl"
    file.write_text('{"answer": "a", "good": true}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"own\.jsonl") as error:
        read(file)
    assert said in str(error.value)


def test_too_few_answers_and_no_file_are_refused(tmp_path):
    rows = [{"answer": "x", "good": n > 2} for n in range(20)]
    with pytest.raises(SettingsError, match="17 good and 3 bad complete answers: give at least 8 of each"):
        read(write(tmp_path / "few.jsonl", rows))
    with pytest.raises(SettingsError, match="cannot read the labelled answers"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(SettingsError, match="no labelled answers are included for the criterion 'warmth'"):
        shipped("warmth")


@pytest.mark.parametrize(
    ("query", "answer", "dialogue", "said"),
    [
        ("It is", "fine now.", False, " fine now."),
        ("It is", " fine", False, " fine"),
        ("It is", "n't", True, "n't"),
        ("It is ", "fine", False, "fine"),
        ("It is", ", well, fine", False, ", well, fine"),
        ("", "fine", False, "fine"),
    ],
)
def test_a_continuation_is_not_glued_to_its_query(query, answer, dialogue, said):
    assert Item(id="1", query=query, answer=answer, dialogue=dialogue, good=True, pair="1").said == said


def test_an_answer_is_cut_after_half_of_its_words():
    item = Item(id="1", query="It is", answer="a very fine day indeed", good=True, pair="1")
    assert item.halved().said == " a very" and item.halved().cut
    assert item.model_copy(update={"answer": "fine"}).halved().said == " fine"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_shipped_items_can_be_examined(name):
    found = shipped(name)
    assert len({item.id for item in found}) == len(found)
    halves = split(found, 0)
    for half in halves:
        whole = [item.good for item in half if not item.cut]
        assert 0.4 <= sum(whole) / len(whole) <= 0.6
    assert all(item.context.strip() for item in found) or not BUILT_IN[name].needs_context


def test_pairs_are_never_split_and_every_seed_splits_otherwise():
    found = items()
    halves = split(found, 0)
    assert not {item.pair for item in halves[0]} & {item.pair for item in halves[1]}
    assert sorted(i.id for half in halves for i in half) == sorted(i.id for i in found)
    assert split(found, 1) != halves == split(found, 0)
    with pytest.raises(SettingsError, match="1 pairs that cannot be halved"):
        split([item.model_copy(update={"pair": "all"}) for item in found], 0)


# --- styles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", BUILT_IN.values(), ids=BUILT_IN)
def test_every_criterion_is_asked_in_all_styles_that_it_has_material_for(criterion):
    found = styles(criterion, EvaluationSettings(criteria=(criterion,)))
    names = [style.name for style in found]
    assert names[0] == (criterion.style or "labels") and len(set(names)) == len(names)
    assert {"labels", "choice", "choice, chat template", "channel", "labels, yes or no"} <= set(names)
    assert ("choice, examples" in names) == bool(criterion.examples)
    assert sum("frame" in name for name in names) == (len(criterion.frames) if criterion.frames[1:] else 0)
    assert len({style.settings for style in found}) == len(found)


def test_settings_of_ones_own_come_first():
    own = EvaluationSettings(criteria=(HARMLESSNESS,), examples=True)
    assert [style.name for style in styles(HARMLESSNESS, own)][:2] == ["as set", "labels"]
    by_choice = HARMLESSNESS.model_copy(update={"style": "choice"})  # a criterion's own before the settings'
    assert styles(by_choice, EvaluationSettings(criteria=(by_choice,)))[0].name == "choice"
    paper = RainSettings.preset("paper").evaluation
    assert styles(paper.criteria[0], paper)[0].name == "choice, examples"


# --- the examination ------------------------------------------------------------------------------------


def test_a_good_judge_is_trusted_and_its_blind_question_is_seen():
    found = examine(judge(3.0), POSITIVE_SENTIMENT, POSITIVE, items(), 0)
    assert found.trust is Trust.YES
    assert found.recommended.style.name == "labels"
    ranked = {style.style.name: style for style in found.ranking}
    assert ranked["choice"].measures.ties == 1.0
    assert ranked["choice"].measures.hard == 0.5
    assert ranked["choice"].position_bias == pytest.approx(2.0)
    assert ranked["choice"].measures.auc.value == 0.5
    assert ranked["labels"].position_bias is None
    assert found.recommended.passing is not None
    assert found.recommended.passing.good > 0.9 > 0.1 > found.recommended.passing.bad


def test_the_bias_of_labels_is_found_and_fitted_away():
    found = examine(judge(3.0, bias=5.0), POSITIVE_SENTIMENT, POSITIVE, items(), 0)
    assert found.recommended.fit is not None
    assert found.recommended.fit.center == pytest.approx(5.0, abs=0.7)
    labels = next(ranked for ranked in found.ranking if ranked.style.name == "labels")
    assert labels.label_bias == pytest.approx(5.0 - 1.5, abs=0.7)
    assert labels.measures.hard == 0.5  # every vote is for good
    assert found.passing_as_set.bad < 0.5 or found.passing_as_set.good > 0.9


def test_a_blind_judge_is_not_trusted_however_many_styles_are_tried():
    trusts = [examine(judge(0.0), CIVILITY, POSITIVE, items(), seed).trust for seed in range(5)]
    # Picked from ten, and reported on answers that it was not picked by.
    assert not {Trust.YES, Trust.WEAK} & set(trusts) and Trust.NO in trusts


def test_an_interval_that_holds_everything_says_that_it_takes_more_answers():
    def measured(low: float, high: float) -> Trust:
        return Measures(20, measures.Interval((low + high) / 2, low, high), 0.5, 0.0).trust

    assert measured(0.61, 0.8) is Trust.YES and measured(0.51, 0.8) is Trust.WEAK
    assert measured(0.4, 0.8) is Trust.UNKNOWN and measured(0.4, 0.74) is Trust.NO
    assert measured(0.2, 0.49) is Trust.INVERTED


def test_a_judge_that_has_it_the_wrong_way_round_is_told():
    found = examine(judge(-3.0), POSITIVE_SENTIMENT, POSITIVE, items(), 0)
    inverted = next(ranked for ranked in found.ranking if ranked.style.name == "labels")
    assert inverted.measures.trust is Trust.INVERTED
    assert found.as_set.trust is Trust.INVERTED
    assert found.as_set.fit is None and found.as_set.passing is None


def test_what_is_reported_was_not_fitted_to():
    """Labels of the reporting half, turned round, change its report and nothing that was chosen."""
    found = items()
    fitting, reporting = split(found, 0)
    turned = {item.id for item in reporting}
    lies = [item.model_copy(update={"good": item.good != (item.id in turned)}) for item in found]
    # The split deals alike pairs by their labels, which turning leaves as they are: one good, one bad.
    assert [item.id for item in split(lies, 0)[0]] == [item.id for item in fitting]
    true, false = (examine(judge(2.0), POSITIVE_SENTIMENT, POSITIVE, told, 0) for told in (found, lies))
    assert true.ranking == false.ranking
    assert true.recommended.style == false.recommended.style
    assert true.recommended.fit == false.recommended.fit
    assert false.recommended.complete.auc.value == pytest.approx(1 - true.recommended.complete.auc.value)


def test_the_style_as_set_is_kept_unless_another_is_clearly_better():
    def opinion(question: str, label: str) -> float:
        clear = question.endswith("In one word:")
        good = label.strip() in GOOD
        return good * ((" lovely" in question) * clear + (0.1 if clear else 3.0) * noise(question))

    frames = ("{text}\n\nSentiment:", "{text}\n\nIn one word:")
    asked = POSITIVE_SENTIMENT.model_copy(update={"frames": frames})
    as_set = EvaluationSettings(criteria=(asked,))
    found = examine(ScriptedModel(lambda text: {END: 1.0}, opinion), asked, as_set, items(), 0)
    assert found.ranking[0].style.name == found.recommended.style.name == "labels, frame 2"
    assert found.as_set.style.name == "labels"
    assert found.recommended.complete.auc.value > found.as_set.complete.auc.value


def test_no_question_is_asked_twice_and_what_is_told_adds_up():
    model = judge()
    told: list[int] = []
    found = examine(model, POSITIVE_SENTIMENT, POSITIVE, items(16), 0, told.append)
    asked = [request for request in model.requests if isinstance(request, Score)]
    pairs = [(request.prefix, option) for request in asked for option in request.options]
    assert len(pairs) == len(set(pairs))
    assert len({request.prefix for request in asked}) == len(asked)
    assert found.model_tokens == model.model_tokens
    assert sum(told) == len(found.ranking) * 16 + 2 * 16  # one finalist, complete and cut


def test_the_scores_are_the_evaluators_own():
    """The doctor's log-odds and votes are what the search would be steered by."""
    item = items()[0]
    for style in styles(POSITIVE_SENTIMENT, POSITIVE):
        model = judge()
        evaluator = SelfEvaluator(style.settings, model)
        ((evidence,),) = answered(evaluator.evidence(item.subject, [item.said]), model)
        hard = SelfEvaluator(style.settings.model_copy(update={"mode": "hard"}), model)
        (verdict,) = answered(hard.judge(item.subject, [item.said]), model)
        (score,) = verdict.criteria
        assert (score.log_odds, score.probability) == (log_odds(evidence), votes(evidence))


def test_cut_items_are_judged_as_such_and_fit_nothing():
    cut = [item.halved().model_copy(update={"id": f"{item.id}-cut"}) for item in items(20)]
    found = examine(judge(3.0), POSITIVE_SENTIMENT, POSITIVE, items(20) + cut, 0)
    assert found.ranking[0].measures.answers == 20
    assert (found.recommended.complete.answers, found.recommended.cut.answers) == (20, 40)


def test_a_model_without_a_chat_template_is_asked_in_the_other_styles():
    class Bare(ScriptedModel):
        def render_chat(self, messages, tools=()):
            raise ModelNotSupportedError("no chat template")

    model = Bare(lambda text: {END: 1.0}, judge(3.0).opinion)
    found = examine(model, POSITIVE_SENTIMENT, POSITIVE, items(), 0)
    assert {name for name, _ in found.refused} == {"labels, chat template", "choice, chat template"}
    assert found.trust is Trust.YES
    chat = POSITIVE.model_copy(update={"chat_template": True})
    found = examine(model, POSITIVE_SENTIMENT, chat, items(), 0)  # as if they said no
    assert not found.as_set.style.settings.chat_template
    assert found.trust is Trust.YES


def test_items_that_cannot_be_asked_about_are_named_before_the_model_runs():
    model = judge(context_length=60)
    long = [*items()[:-1], items()[-1].model_copy(update={"answer": "very " * 60, "id": "the-long-one"})]
    with pytest.raises(PromptError, match=r"item the-long-one: .* shorten the prompt"):
        examine(model, POSITIVE_SENTIMENT, POSITIVE, long, 0)
    with pytest.raises(PromptError, match="item 0-lovely: criterion 'groundedness' judges against a context"):
        examine(judge(), BUILT_IN["groundedness"], EvaluationSettings(), items(), 0)
    assert not model.requests


# --- the command ----------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path) -> Path:
    rows = [{"query": i.query, "answer": i.answer, "good": i.good, "pair": i.pair} for i in items()]
    return write(tmp_path / "own.jsonl", rows)


@pytest.fixture
def doctor(monkeypatch, capsys):
    """Run ``rain doctor`` on a scripted judge: code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(model, *args):
        monkeypatch.setattr(command, "_judge", lambda settings: model)
        code = cli.main(["doctor", *(str(arg) for arg in args)])
        return (code, *capsys.readouterr())

    return run


SENTIMENT = ("--criterion", "positive_sentiment")


def test_it_says_in_one_sentence_what_the_model_can_judge(doctor, own):
    code, out, _ = doctor(judge(3.0), *SENTIMENT, "--data", own)
    assert code == 0
    assert "This model can judge positive_sentiment." in out
    assert "▸∙ labels " in out and "100 %" in out
    assert max(map(len, out.splitlines())) <= 100 and "…" not in out
    code, out, _ = doctor(judge(0.0), *SENTIMENT, "--data", own)
    assert code == 0
    assert "This model can't judge positive_sentiment." in out


@pytest.mark.parametrize(
    ("trusts", "said"),
    [
        ("yes", "This model can judge a."),
        ("no yes yes no", "This model can judge b and c and can't judge a or d."),
        (
            "yes weak no inverted",
            "can judge a, judges b weakly, can't judge c and judges d the wrong way round.",
        ),
        ("unknown", "It takes more labelled answers to tell whether this model can judge a."),
        (
            "no unknown",
            "This model can't judge a; it takes more labelled answers to tell whether it can judge b.",
        ),
    ],
)
def test_the_sentence(trusts, said):
    examinations = [
        SimpleNamespace(criterion=SimpleNamespace(name=name), trust=Trust(trust))
        for name, trust in zip("abcd", trusts.split(), strict=False)
    ]
    assert sentence(cast("Diagnosis", SimpleNamespace(examinations=examinations))).endswith(said)


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_pages_are_neither_cut_nor_wider_than_the_terminal(doctor, own, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    _, out, _ = doctor(judge(3.0), "--criterion", "civility", "--data", own)
    assert max(map(len, out.splitlines())) <= min(columns, 100) and "…" not in out
    assert ("┊" in out) == (columns >= 100)


def test_strict_makes_a_judge_that_cannot_judge_an_error(doctor, own):
    assert doctor(judge(0.0), *SENTIMENT, "--data", own, "--strict")[0] == 3
    assert doctor(judge(3.0), *SENTIMENT, "--data", own, "--strict")[0] == 0


def test_the_settings_file_loads_and_changes_verdicts(doctor, own, tmp_path):
    model, file = judge(3.0, bias=5.0), tmp_path / "fitted.yaml"
    _, out, _ = doctor(model, *SENTIMENT, "--data", own, "--out", file)
    assert f"rain generate --settings {file}" in " ".join(out.split())
    fitted = RainSettings.from_file(file)
    (criterion,) = fitted.evaluation.criteria
    assert criterion.name == "positive_sentiment" and criterion.frames == POSITIVE_SENTIMENT.frames
    assert criterion.calibration is not None and criterion.calibration.center == pytest.approx(5, abs=0.7)
    assert criterion.target is not None and criterion.threshold <= criterion.target < 1
    assert fitted.model_copy(update={"evaluation": RainSettings().evaluation}) == RainSettings()

    def share(settings: RainSettings, good: bool) -> float:
        evaluator = SelfEvaluator(settings.evaluation, model)
        judged = [
            answered(evaluator.judge(item.subject, [item.said]), model)[0].passed
            for item in items()
            if item.good == good
        ]
        return sum(judged) / len(judged)

    as_set = RainSettings().updated(evaluation={"criteria": ["positive_sentiment"]})
    uncalibrated = as_set.updated(
        evaluation={"criteria": [POSITIVE_SENTIMENT.model_copy(update={"calibration": None})]}
    )
    assert share(uncalibrated, good=False) == 1.0  # the bias of the labels lets everything pass
    assert share(fitted, good=True) > 0.9
    assert share(fitted, good=False) < 0.1


@pytest.mark.parametrize("scale", [1e-7, 1.0, 300.0])
def test_the_settings_file_loads_however_sure_the_judge_is(doctor, own, tmp_path, scale):
    def opinion(question: str, label: str) -> float:
        return float(
            scale * (1 + noise(question) / 2) * (1 if " lovely" in question else -1) * (label.strip() in GOOD)
        )

    file = tmp_path / "fitted.yaml"
    odd = tmp_path / "odd\nevaluation: {}\n.jsonl"
    odd.write_bytes(b"\xef\xbb\xbf" + own.read_bytes())  # with the mark that some editors put there
    model = ScriptedModel(lambda text: {END: 1.0}, opinion, name="toy\nmodel: other")
    assert doctor(model, *SENTIMENT, "--data", odd, "--out", file)[0] == 0
    fitted = RainSettings.from_file(file)
    assert fitted.model == RainSettings().model
    (criterion,) = fitted.evaluation.criteria
    assert criterion.calibration is not None and 0.01 * scale < criterion.calibration.scale < 100 * scale
    assert criterion.target is not None and criterion.threshold <= criterion.target < 1


def test_a_probability_that_is_all_but_certain_stays_below_one(doctor, own, tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "fit", lambda *given: measures.Fit(0.0, 1.0, 0.9999991, 0.9999999))
    file = tmp_path / "fitted.yaml"
    assert doctor(judge(3.0), *SENTIMENT, "--data", own, "--out", file)[0] == 0
    (criterion,) = RainSettings.from_file(file).evaluation.criteria
    assert criterion.target is not None and 0.9999 < criterion.threshold <= criterion.target < 1


@pytest.mark.slow
def test_a_settings_file_leaves_out_what_cannot_be_judged_and_says_why(doctor, tmp_path, monkeypatch):
    def opinion(question: str, label: str) -> float:
        if label in ("A", "B"):
            return 0.0
        tone = any(label.strip() == good for good, _ in CIVILITY.labels)
        return tone * (2.0 * (" lovely" in question) + noise(question))

    monkeypatch.setattr(
        command,
        "shipped",
        lambda name: [item.model_copy(update={"context": "A diary."}) for item in items()],
    )
    model, file = ScriptedModel(lambda text: {END: 1.0}, opinion), tmp_path / "all.yaml"
    code, out, _ = doctor(model, "--out", file, "--json", tmp_path / "all.json")
    assert code == 0
    said = " ".join(out.split())
    assert "can't judge truthfulness or groundedness" in said
    text = file.read_text(encoding="utf-8")
    assert "# truthfulness can't be judged: AUC 0." in text
    names = [criterion.name for criterion in RainSettings.from_file(file).evaluation.criteria]
    assert "civility" in names and "truthfulness" not in names and "groundedness" not in names
    diagnosis = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert diagnosis["verdict"] in said
    trusts = {e["criterion"]["name"]: e["trust"] for e in diagnosis["examinations"]}
    assert list(trusts) == list(BUILT_IN) and trusts["civility"] == "yes" and trusts["truthfulness"] == "no"

    blind, nothing = judge(0.0), tmp_path / "nothing.yaml"
    doctor(blind, "--criterion", "civility", "--out", nothing)
    assert RainSettings.from_file(nothing) == RainSettings()


@pytest.mark.slow
def test_a_criterion_that_needs_a_context_waits_in_a_comment_unless_it_was_named(
    doctor, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        command,
        "shipped",
        lambda name: [item.model_copy(update={"context": "A diary."}) for item in items()],
    )
    file = tmp_path / "fitted.yaml"
    doctor(judge(3.0), "--out", file)
    loaded = RainSettings.from_file(file).evaluation
    texts = [name for name in BUILT_IN if name != "harmless_actions"]
    assert [c.name for c in loaded.criteria] == [name for name in texts if name != "groundedness"]
    assert [c.name for c in loaded.actions] == ["harmless_actions"]
    assert loaded.actions[0].calibration != BUILT_IN["harmless_actions"].calibration
    text = file.read_text(encoding="utf-8")
    assert "# - name: groundedness" in text and "# It needs a context" in text
    file.write_text(text.replace("    # - ", "    - ").replace("    #   ", "      "), encoding="utf-8")
    names = [criterion.name for criterion in RainSettings.from_file(file).evaluation.criteria]
    assert names == texts
    doctor(judge(3.0), "--criterion", "groundedness", "--out", file, "--force")
    (criterion,) = RainSettings.from_file(file).evaluation.criteria
    assert criterion.name == "groundedness" and criterion.needs_context


def test_criteria_of_two_styles_stand_in_one_file_but_share_the_chat_template(doctor, tmp_path, monkeypatch):
    """Label words tell the tone, a passage what is grounded; truth is told in the chat template alone."""

    def opinion(question: str, label: str) -> float:
        if label in ("A", "B"):
            return 0.0
        if " lovely" in label or " dreary" in label:  # the answer itself, behind a context
            told = "Passage: " in question
            return -10.0 + told * (2.0 + 3.0 * (" lovely" in label) + noise(label + question))
        in_chat = "The answer is" in question and "\nThe answer is" not in question  # in a turn of its own
        pairs = BUILT_IN["truthfulness"].labels if in_chat else CIVILITY.labels
        meant = any(label.strip() == good for good, _ in pairs)
        return meant * (3.0 * (" lovely" in question) + noise(question))

    def told(name: str) -> list[Item]:
        return [item.model_copy(update={"context": f"It was {item.answer}"}) for item in items()]

    monkeypatch.setattr(command, "shipped", told)
    model, file = ScriptedModel(lambda text: {END: 1.0}, opinion), tmp_path / "two.yaml"
    asked = [arg for name in ("civility", "truthfulness", "groundedness") for arg in ("--criterion", name)]
    assert doctor(model, *asked, "--out", file)[0] == 0
    otherwise = "but asked\n    # otherwise (labels, chat template): rain doctor --criterion truthfulness"
    assert otherwise in file.read_text(encoding="utf-8")
    evaluation = RainSettings.from_file(file).evaluation
    civility, groundedness = evaluation.criteria
    assert (civility.style, groundedness.style) == ("labels", "channel")
    assert groundedness.evidence and groundedness.channel == BUILT_IN["groundedness"].channel
    evaluator = SelfEvaluator(evaluation, model)
    lovely, dreary = told("")[:2]
    for item, right in ((lovely, True), (dreary, False)):
        (verdict,) = answered(evaluator.judge(item.subject, [item.said]), model)
        assert [score.passed for score in verdict.criteria] == [right, right]


def test_criteria_and_judge_of_ones_own_come_from_a_settings_file(doctor, own, tmp_path, monkeypatch):
    settings = tmp_path / "warm.yaml"
    settings.write_text(
        "evaluation:\n"
        "  judge: {name: some/judge}\n"
        "  criteria:\n"
        "    - {name: warmth, labels: [[kind, cruel]], frames: ['{text} Tone:']}\n",
        encoding="utf-8",
    )
    asked = []

    def load(chosen: RainSettings) -> ScriptedModel:
        asked.append(chosen.model.name)
        return judge(3.0)

    monkeypatch.setattr(command, "_judge", load)
    out = tmp_path / "fitted.yaml"
    assert cli.main(["doctor", "--settings", str(settings), "--data", str(own), "--out", str(out)]) == 0
    assert asked == ["some/judge"]
    fitted = RainSettings.from_file(out)
    assert fitted.evaluation.criteria[0].name == "warmth"
    assert fitted.evaluation.judge is not None and fitted.evaluation.judge.name == "some/judge"
    assert fitted.model == RainSettings().model


POLICY = """
# What the shop assistant may say.
preset: paper
model: {base_url: "http://127.0.0.1:9", api_key: sk-do-not-tell, context_length: 4096}
search: {strategy: keep_drafts, iterations: 7}
evaluation:
  style: labels
  examples: false
  criteria:
    - truthfulness
    - &mild {extends: civility, threshold: 0.31, iterations: 3}
    - {<<: *mild, name: warmth, weight: 2, calibration: null}
  actions: [{extends: harmless_actions, threshold: 0.4}]
on_unsafe: raise
refusal: I had rather not.
"""


@pytest.mark.parametrize("names", [["civility"], ["civility", "warmth", "positive_sentiment"]])
@pytest.mark.parametrize("kind", ["yaml", "json"])
def test_a_policy_is_written_whole_with_the_fit_merged_in(doctor, own, tmp_path, monkeypatch, names, kind):
    monkeypatch.setattr(command, "shipped", lambda name: items())
    policy, out = tmp_path / "policy.yaml", tmp_path / f"fitted.{kind}"
    policy.write_text(POLICY, encoding="utf-8")
    asked = [argument for name in names for argument in ("--criterion", name)]
    code, said, _ = doctor(judge(3.0), "--settings", policy, *asked, "--out", out)
    assert code == 0
    before, after = RainSettings.from_file(policy), RainSettings.from_file(out)
    whole = before.model_dump() | {"evaluation": None}
    assert whole == after.model_dump() | {"evaluation": None}
    assert (after.on_unsafe, after.refusal, after.search.iterations) == ("raise", "I had rather not.", 7)
    assert after.evaluation.actions == before.evaluation.actions
    assert after.evaluation.mode == "soft"
    told = " ".join(said.split())
    assert 'evaluation.mode: "hard" -> "soft"' in told
    assert "without its comments" in told and "The API key is left out" in told
    old = {c.name: c for c in before.evaluation.criteria}
    new = {c.name: c for c in after.evaluation.criteria}
    assert list(new) == list(dict.fromkeys([*old, *names]))
    for name, criterion in old.items():
        fitted = {"threshold", "target", "calibration"} if name in names else set()
        other = fitted | ({"style", "labels", "frames"} if fitted else set())
        assert new[name].model_dump(exclude=other) == criterion.model_dump(exclude=other)
        assert (new[name].threshold != criterion.threshold) == bool(fitted)
        assert (f"evaluation.criteria.{name}.threshold: {criterion.threshold} -> " in told) == bool(fitted)
    assert "sk-do-not-tell" not in said + out.read_text(encoding="utf-8")


def test_a_policy_whose_criteria_cannot_be_judged_stays_as_it_is(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "shipped", lambda name: items())
    policy, out = tmp_path / "policy.yaml", tmp_path / "fitted.yaml"
    policy.write_text("evaluation: {criteria: [civility, harmlessness]}\nrefusal: No.\n", encoding="utf-8")
    _, said, _ = doctor(judge(0.0), "--settings", policy, "--out", out)
    assert RainSettings.from_file(out) == RainSettings.from_file(policy)
    told = " ".join(said.split())
    assert "What is different: nothing" in told
    assert told.count("left as it was") == 2


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--criterion", "warmth"], 1, "unknown criterion 'warmth': there are harmlessness"),
        (["--data", "OWN"], 2, "select the criterion of the labelled answers: --criterion NAME"),
        (["", *SENTIMENT, "--data", "OWN"], 1, "model.name: String should have at least 1 character"),
        ([*SENTIMENT, "--data", "none.jsonl"], 1, "cannot read the labelled answers none.jsonl"),
        ([*SENTIMENT, "--data", "OWN", "--out", "OWN"], 1, "exists: name another file"),
        (
            [*SENTIMENT, "--data", "OWN", "--json", "no/such/x.json"],
            1,
            "name a file in a folder that may be written to",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_a_model_runs(doctor, own, args, code, said):
    model = judge()
    found = doctor(model, *(own if arg == "OWN" else arg for arg in args))
    assert found[0] == code and said in found[2] and found[2].count("\n") == 1
    assert found[1] == "" and not model.requests


def test_labels_that_the_tokenizer_cannot_tell_apart_drop_one_style_only():
    twins = POSITIVE_SENTIMENT.model_copy(update={"labels": (("good", "bad"), ("very good", "very bad"))})
    found = examine(judge(3.0), twins, EvaluationSettings(criteria=(twins,)), items(), 0)
    assert found.refused == ()

    class Short(ScriptedModel):
        def encode(self, text):
            return super().encode(text[:3] if text.strip() in ("yes", "no") else text)[:1] or ()

    model = Short(lambda text: {END: 1.0}, judge(3.0).opinion)
    with pytest.raises((LabelError, ModelNotSupportedError)):
        examine(model, twins, EvaluationSettings(criteria=(twins,)), items(), 0)


# --- the embedded model -----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.slow
def test_the_embedded_model_tells_plain_praise_from_plain_scorn_but_not_by_hard_votes(real_model):
    praise = ("wonderful", "brilliant and moving", "a joy from start to end", "funny, warm and wise")
    scorn = ("terrible", "boring and stupid", "a waste of time and money", "clumsy, cold and dull")
    things = ("The film was", "I think this book is", "To me, the concert was", "The whole evening was")
    said = [
        Item(id=f"{thing} {word}", query=thing, answer=f" {word}.", good=good, pair=f"{thing} {n}")
        for thing in things
        for good, words in ((True, praise), (False, scorn))
        for n, word in enumerate(words)
    ]
    found = examine(real_model, POSITIVE_SENTIMENT, POSITIVE, said, 0)
    assert found.trust is Trust.YES
    assert found.recommended.passing is not None
    assert found.recommended.passing.good - found.recommended.passing.bad > 0.5
    ranked = {style.style.name: style.measures for style in found.ranking}
    assert ranked["choice"].ties > 0.9  # the paper's question, as the paper reads it


# --- probes -------------------------------------------------------------------------------------------


def varied(pairs: int = 40, **fields: Any) -> list[dict[str, Any]]:
    """Pairs whose answers differ in one word, which a scripted model's states know."""
    return [
        {
            "query": f"Day {n} was",
            "answer": f"a {word} day, beach {n}.",
            "good": good,
            "pair": str(n),
            **fields,
        }
        for n in range(pairs)
        for word, good in (("lovely", True), ("dreary", False))
    ]


def knowing(signal: float = 0.0) -> ScriptedModel:
    """A judge that knows in its states what it says in words only with a ``signal``."""
    return judge(signal, state=lambda text: float(" lovely" in text) + 0.01 * noise(text))


def test_what_is_read_is_ranked_with_what_is_asked_and_written(doctor, tmp_path):
    own, out = write(tmp_path / "own.jsonl", varied()), tmp_path / "fitted.yaml"
    files = "--fit", tmp_path / "probes", "--out", out, "--json", tmp_path / "all.json"
    code, page, _ = doctor(knowing(), *SENTIMENT, "--data", own, *files)
    assert code == 0
    assert "▸  probe " in page and "This model can judge positive_sentiment." in page
    assert "read from layer" in page and "first 4 tokens" in page and "labelled answers  10: " in page
    assert max(map(len, page.splitlines())) <= 100 and "…" not in page
    file = tmp_path / "probes" / "positive_sentiment.probe.json"
    probe = Probe.load(file)
    assert [(source.name, source.good) for source in probe.data] == [("own.jsonl", 40)]
    (criterion,) = RainSettings.from_file(out).evaluation.criteria
    assert (criterion.style, criterion.probe) == ("probe", str(file))
    evaluator = SelfEvaluator(RainSettings.from_file(out).evaluation, model := knowing())
    texts = [" a lovely day.", " a dreary day."]
    asking = evaluator.judge(JudgeInput("Day 3 was"), texts)
    with pytest.raises(StopIteration) as done:
        asking.send(model.read(cast("list[Read]", next(asking))))
    assert [verdict.passed for verdict in done.value.value] == [True, False]
    rows = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["examinations"][0]["probe"]
    assert rows["cuts"][0]["n"] == 80 and rows["cuts"][0]["auc"]["value"] > 0.95


def test_a_probe_is_compared_with_the_best_question_on_the_half_that_ranked_none(
    doctor, tmp_path, monkeypatch
):
    """The best of a dozen questions looks good on a few answers; a probe must not lose to that."""
    first: list[Ranked] = []

    def unlucky(*given: Any) -> Ranked:
        found = ranked(*given)
        if first:
            return found
        auc = Interval(0.1, 0.05, 0.2)
        first.append(replace(found, measures=replace(found.measures, auc=auc)))
        return first[0]

    monkeypatch.setattr(examination, "ranked", unlucky)
    own = write(tmp_path / "own.jsonl", varied())
    code, page, _ = doctor(knowing(), *SENTIMENT, "--data", own, "--fit", tmp_path / "probes")
    assert code == 0 and first
    assert "▸  probe " in page


def test_a_probe_is_written_beside_the_settings_and_never_over_another(doctor, tmp_path):
    own, out = write(tmp_path / "own.jsonl", varied()), tmp_path / "fitted.yaml"
    file = tmp_path / "positive_sentiment.probe.json"
    assert doctor(knowing(), *SENTIMENT, "--data", own, "--out", out)[0] == 0 and file.exists()
    out.unlink()
    code, _, error = doctor(knowing(), *SENTIMENT, "--data", own, "--out", out)
    assert code == 1 and "positive_sentiment.probe.json exists" in error


def test_several_files_are_several_sources(doctor, tmp_path):
    files = [
        write(tmp_path / "one.jsonl", varied()),
        write(tmp_path / "two.jsonl", [{**row, "answer": f"At noon, {row['answer']}"} for row in varied(20)]),
    ]
    code, page, _ = doctor(knowing(), *SENTIMENT, "--data", files[0], "--data", files[1])
    assert code == 0
    assert "one.jsonl, not fitted to" in page and "two.jsonl, not fitted to" in page


def test_why_there_is_no_probe_is_said(doctor, own, tmp_path):
    code, page, _ = doctor(judge(3.0), *SENTIMENT, "--data", own)
    assert code == 0 and "too few for a probe" in " ".join(page.split())
    remote = cast(Any, SimpleNamespace(name="remote"))
    assert probe_for(remote, "civility", [], 0, lambda n: None) == (None, "remote gives no hidden states")


def test_items_of_a_criterion_come_from_all_its_files():
    found = shipped("civility")
    assert [*dict.fromkeys(item.source for item in found)] == ["civility.jsonl", "civility.more.jsonl"]
    assert {item.source for item in shipped("truthfulness")} == {"truthfulness.jsonl"}


def test_a_policy_with_a_probe_is_merged(doctor, tmp_path):
    own, policy = write(tmp_path / "own.jsonl", varied()), tmp_path / "policy.yaml"
    policy.write_text("evaluation: {style: labels, criteria: [positive_sentiment]}\n", encoding="utf-8")
    out = tmp_path / "out" / "fitted.yaml"
    out.parent.mkdir()
    code, page, _ = doctor(knowing(), "--settings", policy, "--data", own, "--out", out)
    assert code == 0 and 'positive_sentiment.style: null -> "probe"' in " ".join(page.split())
    (criterion,) = RainSettings.from_file(out).evaluation.criteria
    assert criterion.style == "probe" and criterion.probe == str(out.parent / "positive_sentiment.probe.json")
    again = doctor(knowing(), "--settings", out, "--data", own)  # what was fitted can be examined
    assert again[0] == 0 and "▸  probe " in again[1]
