"""The answers that safety classifiers are fitted on are well formed, and no trivial cue tells them."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from tests.test_items import CALL, FIELDS, Rows, auc, items, labels, unique, words

INJECTED = "harmless_actions.injected"
CIVILITY = "civility.more"
FILES = (INJECTED, CIVILITY)

HAZARDS = {
    "theft_or_fraud",
    "data_leak",
    "destruction",
    "unauthorised_access",
    "surveillance",
    "harassment",
    "unsafe_device",
    "privacy",
    "sabotage",
    "deception",
    "self_propagation",
    "unsafe_medical",
}
KINDS = {"direct", "injected", "harmful_request", "lookalike"}
OPTIONAL = {INJECTED: {"dialogue", "hazard", "kind", "injected"}, CIVILITY: {"dialogue", "written"}}


def pairs(rows: Rows) -> list[Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["pair"], []).append(row)
    return list(found.values())


def tool(row: dict[str, str]) -> str:
    return row["answer"].partition("(")[0]


@pytest.mark.parametrize("name", FILES)
def test_items_are_well_formed(name):
    rows = items(name)
    whole = CALL if name == INJECTED else r'.*[.!?]"?'
    for row in rows:
        assert row.keys() >= FIELDS and not row.keys() - FIELDS - OPTIONAL[name], row
        assert type(row["good"]) is bool
        assert row["query"] == row["query"].strip()
        assert 6 <= len(words(row["answer"])) <= 36, row
        # A continuation brings the space before it, if any: query + answer is the text that is judged.
        before = "" if row.get("dialogue", False) or row["answer"].startswith(("'", ",")) else " "
        assert row["answer"] == before + row["answer"].strip()
        assert re.fullmatch(whole, row["answer"]), row
    assert unique(rows, "id")
    assert unique(rows, "answer")


@pytest.mark.parametrize("name", FILES)
def test_each_query_has_a_good_and_a_bad_answer(name):
    found = pairs(items(name))
    for pair in found:
        assert sorted(row["good"] for row in pair) == [False, True]
        assert len({(row["query"], row.get("dialogue")) for row in pair}) == 1
    assert unique([pair[0] for pair in found], "query")


@pytest.mark.parametrize("name", FILES)
def test_no_query_is_in_the_smaller_file(name):
    """One file may be fitted on and the other one examined with."""
    smaller = {row["query"].lower() for row in items(name.partition(".")[0])}
    assert not smaller & {row["query"].lower() for row in items(name)}


@pytest.mark.parametrize("name", FILES)
def test_length_does_not_tell(name):
    rows = items(name)
    lengths = np.array([len(words(row["answer"])) for row in rows])
    good = labels(rows)
    assert lengths[good].mean() == pytest.approx(lengths[~good].mean(), rel=0.1)
    assert 0.4 <= auc(rows, lengths) <= 0.6
    assert 0.4 <= auc(rows, [len(row["answer"]) for row in rows]) <= 0.6


@pytest.mark.parametrize("name", FILES)
def test_single_words_do_not_tell(name):
    """Logistic regression on the words, tested on pairs that it has not seen; the mean of four draws."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    rows = items(name)
    model = make_pipeline(
        CountVectorizer(tokenizer=words, token_pattern=None), LogisticRegression(max_iter=500)
    )
    found = [
        cross_val_predict(
            model,
            [row["answer"] for row in rows],
            labels(rows),
            groups=[row["pair"] for row in rows],
            cv=GroupKFold(8, shuffle=True, random_state=seed),
            method="predict_proba",
        )[:, 1]
        for seed in range(4)
    ]
    assert np.mean([auc(rows, scores) for scores in found]) <= 0.65


@pytest.mark.parametrize(("name", "bound"), [(INJECTED, 0.75), (CIVILITY, 0.8)])
def test_a_sentiment_lexicon_does_not_tell(name, bound):
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    rows = items(name)
    assert 0.35 <= auc(rows, [analyzer.polarity_scores(row["answer"])["compound"] for row in rows]) <= bound


@pytest.mark.parametrize("name", FILES)
def test_overlap_with_the_query_does_not_tell(name):
    """Neither copying what an attacker wrote nor staying close to the request is a cue."""
    rows = items(name)
    said = [(set(words(row["answer"])), set(words(row["query"]))) for row in rows]
    assert 0.35 <= auc(rows, [len(answer & query) / len(answer) for answer, query in said]) <= 0.65


# --------------------------------------------------------------------------------- actions, injected


def test_hazards_and_kinds_are_covered():
    rows = items(INJECTED)
    assert len(rows) >= 340
    assert all(row["dialogue"] for row in rows)
    hazards = Counter(row["hazard"] for row in rows)
    assert hazards.keys() == HAZARDS
    assert min(hazards.values()) >= 24
    kinds = Counter(row["kind"] for row in rows)
    assert kinds.keys() == KINDS
    assert min(kinds.values()) >= 56
    assert 0.4 <= kinds["injected"] / len(rows) <= 0.5
    for pair in pairs(rows):
        assert len({(row["hazard"], row["kind"], row["injected"]) for row in pair}) == 1
    for row in rows:
        assert row["injected"] == (row["kind"] == "injected")


def test_an_injected_query_holds_the_request_and_what_a_tool_returned():
    for row in items(INJECTED):
        request, _, returned = row["query"].partition("\n\n")
        assert request.endswith((".", "?", "!")), row
        assert not row["injected"] or re.fullmatch(r'\w+ returned: ".+"', returned), row


def test_the_tool_does_not_tell():
    """About half of the pairs have one tool, so that only its arguments differ."""
    same = [len({tool(row) for row in pair}) == 1 for pair in pairs(items(INJECTED))]
    assert 0.4 <= np.mean(same) <= 0.6


# ---------------------------------------------------------------------------------------- civility


def test_what_the_model_wrote_is_as_often_civil_as_not():
    rows = items(CIVILITY)
    assert len(rows) >= 120
    written = [row["good"] for row in rows if row["written"] == "model"]
    assert len(written) >= 40
    assert 0.4 <= np.mean(written) <= 0.6
    assert {row["written"] for row in rows} == {"author", "model"}
    assert 0.3 <= np.mean([row.get("dialogue", False) for row in rows]) <= 0.4


def test_the_model_wrote_one_side_of_a_pair_at_most():
    assert max(sum(row["written"] == "model" for row in pair) for pair in pairs(items(CIVILITY))) == 1
