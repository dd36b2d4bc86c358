"""The data that ship are what they claim to be, and no trivial cue tells good items from bad ones."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from importlib import resources
from typing import Any

import numpy as np
import pytest

from rain_llm.criteria import BUILT_IN
from rain_llm.evals.wording import admits, names

Rows = list[dict[str, Any]]

FIELDS = {"id", "query", "answer", "good", "pair"}
OPTIONAL = {"context", "dialogue", "cut"}
CRITERIA = sorted(BUILT_IN)
ACTIONS = "harmless_actions"
CALL = r'\w+\((\w+=(".*?"|\[.*?\]|true|false|[\d.]+)(, |(?=\)$)))+\)'
HAZARD_FIELDS = FIELDS | {"dialogue", "hazard", "kind", "unsafe", "language", "written"}
HAZARDS = [
    "violent_crimes",
    "non_violent_crimes",
    "sex_related_crimes",
    "child_sexual_exploitation",
    "defamation",
    "specialized_advice",
    "privacy",
    "intellectual_property",
    "indiscriminate_weapons",
    "hate",
    "suicide_and_self_harm",
    "sexual_content",
]
OPENINGS = {"film_openings": (96, range(4, 13)), "hostile_openings": (90, range(3, 17))}


def load(package: str, *path: str) -> Rows:
    text = resources.files(package).joinpath(*path).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def items(criterion: str) -> Rows:
    return load("rain_llm.doctor", "items", f"{criterion}.jsonl")


def data(name: str) -> Rows:
    return load("rain_llm.evals", "data", f"{name}.jsonl")


def words(text: str) -> list[str]:
    return re.findall(r"[a-zà-ÿ0-9']+", text.lower())


def labels(rows: Rows) -> np.ndarray:
    return np.array([row["good"] for row in rows])


def auc(rows: Rows, scores: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels(rows), scores))


def by_words(rows: Rows, tokens: Any) -> float:
    """Logistic regression on the words, tested on pairs that it has not seen; the mean of four draws."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        CountVectorizer(tokenizer=tokens, token_pattern=None), LogisticRegression(max_iter=500)
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
    return float(np.mean([auc(rows, scores) for scores in found]))


def by_sentiment(rows: Rows) -> float:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()
    return auc(rows, [analyzer.polarity_scores(row["answer"])["compound"] for row in rows])


def unique(rows: Rows, field: str) -> bool:
    return max(Counter(row[field].strip().lower() for row in rows).values()) == 1


# ------------------------------------------------------------------------------- labelled items


@pytest.mark.parametrize("criterion", CRITERIA)
def test_items_are_well_formed(criterion):
    rows = items(criterion)
    whole = CALL if criterion == ACTIONS else r'.*[.!?]"?'
    for row in rows:
        assert row.keys() >= FIELDS and not row.keys() - FIELDS - OPTIONAL, row
        assert type(row["good"]) is bool
        assert row["query"] == row["query"].strip()
        assert 6 <= len(words(row["answer"])) <= 36, row
        assert ("context" in row) == BUILT_IN[criterion].needs_context
        # A continuation brings the space before it: query + answer is the text that is judged.
        continues = not row.get("dialogue", False)
        assert row["answer"] == (" " if continues else "") + row["answer"].strip()
        assert row.get("cut", False) == (re.fullmatch(whole, row["answer"]) is None), row
    assert unique(rows, "id")
    assert unique(rows, "answer")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_query_has_a_good_and_a_bad_answer(criterion):
    rows = items(criterion)
    assert len(rows) >= 72
    cut = sum(row.get("cut", False) for row in rows)
    assert cut == 0 if criterion == ACTIONS else 8 <= cut <= 12  # half a call is never judged
    pairs: dict[str, Rows] = {}
    for row in rows:
        pairs.setdefault(row["pair"], []).append(row)
    for pair in pairs.values():
        assert sorted(row["good"] for row in pair) == [False, True]
        assert (
            len({(row["query"], row.get("context"), row.get("dialogue"), row.get("cut")) for row in pair})
            == 1
        )
    assert unique([pair[0] for pair in pairs.values()], "query")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_length_does_not_tell(criterion):
    rows = items(criterion)
    lengths = np.array([len(words(row["answer"])) for row in rows])
    good = labels(rows)
    assert lengths[good].mean() == pytest.approx(lengths[~good].mean(), rel=0.1)
    assert 0.4 <= auc(rows, lengths) <= 0.6
    assert 0.4 <= auc(rows, [len(row["answer"]) for row in rows]) <= 0.6


@pytest.mark.parametrize("criterion", CRITERIA)
def test_single_words_do_not_tell(criterion):
    assert by_words(items(criterion), words) <= 0.65


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_labels_themselves_do_not_tell(criterion):
    rows = items(criterion)
    good, bad = (Counter(column) for column in map(set, zip(*BUILT_IN[criterion].labels, strict=True)))
    scores = [sum(good[word] - bad[word] for word in words(row["answer"])) for row in rows]
    assert 0.35 <= auc(rows, scores) <= 0.65


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_sentiment_lexicon_does_not_tell(criterion):
    """Nor does the opposite of what it says: a set of nothing but sarcasm would have a cue as well."""
    bound = 0.8 if criterion in ("civility", "positive_sentiment") else 0.75
    assert 0.35 <= by_sentiment(items(criterion)) <= bound


def test_overlap_with_the_passage_does_not_tell():
    rows = items("groundedness")
    said = [(set(words(row["answer"])), set(words(row["context"]))) for row in rows]
    assert 0.35 <= auc(rows, [len(answer & passage) / len(answer) for answer, passage in said]) <= 0.65


# --------------------------------------------------------------------------- answers to hazards


@pytest.fixture(scope="module")
def hazards() -> Rows:
    return load("rain_llm.doctor", "items", "harmlessness.hazards.jsonl")


def tokens(text: str) -> list[str]:
    """Words in any script; each Chinese sign is one."""
    return re.findall(r"[\u4e00-\u9fff]|[\w\u0900-\u097f']+", text.lower())


def pairs_of(rows: Rows) -> list[Rows]:
    pairs: dict[str, Rows] = {}
    for row in rows:
        pairs.setdefault(row["pair"], []).append(row)
    return list(pairs.values())


def test_answers_to_hazards_are_well_formed(hazards):
    for row in hazards:
        assert row.keys() == HAZARD_FIELDS, row
        assert {type(row[name]) for name in ("good", "unsafe", "dialogue")} == {bool} and row["dialogue"]
        assert row["kind"] in ("complies", "refuses", "partly") and row["written"] in ("author", "model")
        assert row["hazard"] in HAZARDS or (row["hazard"] == "none" and not row["unsafe"]), row
        assert re.fullmatch("[a-z]{2}", row["language"])
        assert all(row[name] == row[name].strip() for name in ("query", "answer"))
        assert 8 <= len(tokens(row["answer"])) <= 60, row
        assert re.fullmatch(r".*[.!?\u3002\uff01\uff1f\u0964]['\"”]?", row["answer"], re.DOTALL), row
    assert unique(hazards, "id")
    assert unique(hazards, "answer")


def test_each_hazardous_query_has_good_and_bad_answers(hazards):
    pairs = pairs_of(hazards)
    for pair in pairs:
        assert 2 <= len(pair) <= 4
        assert {row["good"] for row in pair} == {False, True}, pair
        assert (
            len({tuple(row[name] for name in ("query", "hazard", "unsafe", "language")) for row in pair}) == 1
        )
    assert unique([pair[0] for pair in pairs], "query")


def test_no_query_is_one_on_which_guards_are_compared(hazards):
    """Nor one of the other answers for this criterion: those are folded by their own pairs."""
    ours = [set(tokens(pair[0]["query"])) for pair in pairs_of(hazards)]
    other = [row["prompt"] for row in data("requests")] + [row["query"] for row in items("harmlessness")]
    for query, words_of in itertools.product(ours, [set(tokens(text)) for text in other]):
        assert len(query & words_of) <= 0.6 * len(query | words_of), (query, words_of)


def test_answers_to_hazards_are_of_every_kind(hazards):
    def number(**fields: Any) -> int:
        return sum(all(row[name] == value for name, value in fields.items()) for row in hazards)

    assert len(hazards) >= 320
    assert 0.4 <= number(good=True) / len(hazards) <= 0.6
    assert all(number(hazard=hazard) >= 20 for hazard in HAZARDS)
    assert len(hazards) - number(language="en") >= 40
    assert number(written="model") >= 120
    assert number(unsafe=True, kind="complies", good=False) >= 60
    assert number(unsafe=True, kind="refuses", good=True) >= 60
    for good in (True, False):
        assert number(unsafe=True, kind="partly", good=good) >= 10
        assert number(unsafe=False, good=good) >= 50
        assert number(written="model", good=good) >= 30


def test_length_does_not_tell_in_answers_to_hazards(hazards):
    lengths = np.array([len(tokens(row["answer"])) for row in hazards])
    good = labels(hazards)
    assert lengths[good].mean() == pytest.approx(lengths[~good].mean(), rel=0.05)
    assert 0.4 <= auc(hazards, lengths) <= 0.6
    assert 0.4 <= auc(hazards, [len(row["answer"]) for row in hazards]) <= 0.6


def test_words_and_sentiment_do_not_tell_in_answers_to_hazards(hazards):
    """Nor among the answers to unsafe requests, nor among the others: opposite cues would cancel out."""
    unsafe = [row for row in hazards if row["unsafe"]]
    benign = [row for row in hazards if not row["unsafe"]]
    for rows in (hazards, unsafe, benign):
        assert by_words(rows, tokens) <= 0.65
        assert 0.35 <= by_sentiment(rows) <= 0.65


# ----------------------------------------------------------------------------------- evaluation


def start(prompt: str, length: int) -> tuple[str, ...]:
    return tuple(words(prompt)[:length])


@pytest.mark.parametrize("name", OPENINGS)
def test_openings_are_split_and_open(name):
    rows = data(name)
    dev, lengths = OPENINGS[name]
    assert Counter(row["split"] for row in rows) == {"dev": dev, "test": 72}
    assert unique(rows, "id") and unique(rows, "prompt")
    for row in rows:
        assert row.keys() == {"id", "split", "prompt"} | ({"harmful"} if name == "film_openings" else set())
        assert row["prompt"] == row["prompt"].strip()
        assert not row["prompt"].endswith((".", "!", "?", '"')), row
        if row["split"] == "test":
            assert len(row["prompt"].split()) in lengths, row


@pytest.mark.parametrize("name", OPENINGS)
def test_no_opening_repeats_another(name):
    """Above all, none of the test split is like one of the dev split, on which choices were made."""
    rows = data(name)
    everyday = {
        word for word, n in Counter(w for r in rows for w in set(words(r["prompt"]))).items() if n > 7
    }
    for one, other in itertools.combinations(rows, 2):
        if {one["split"], other["split"]} == {"dev"}:
            continue
        assert start(one["prompt"], 3) != start(other["prompt"], 3), (one, other)
        left, right = (set(words(row["prompt"])) - everyday for row in (one, other))
        assert len(left & right) <= 0.4 * len(left | right) or len(left & right) < 2, (one, other)


def test_requests_come_harmful_and_harmless():
    rows = data("requests")
    assert Counter(row["harmful"] for row in rows) == {True: 40, False: 60}
    assert Counter(row["id"].partition("-")[0] for row in rows) == {
        "harmful": 40,
        "lookalike": 40,
        "ordinary": 20,
    }
    assert unique(rows, "id") and unique(rows, "prompt")
    for row in rows:
        assert row.keys() == {"id", "prompt", "harmful"}
        assert row["harmful"] == row["id"].startswith("harmful")
        assert 4 <= len(words(row["prompt"])) <= 25
        assert row["prompt"].endswith((".", "?"))


def test_passages_hold_the_answer_or_none():
    rows = data("passages")
    assert len(rows) == 80
    assert sum(row["answer"] is None for row in rows) == 20
    assert unique(rows, "id") and unique(rows, "context") and unique(rows, "question")
    for row in rows:
        assert row.keys() == {"id", "context", "question", "answer", "harmful"}
        assert 40 <= len(row["context"].split()) <= 90, row
        assert row["question"].endswith("?")
        if row["answer"] is not None:
            assert row["answer"].lower() in row["context"].lower(), row
            assert len(row["answer"].split()) <= 12


def answered(rows: Rows) -> Rows:
    """The supported and the unsupported answers, labelled."""
    return [
        {**row, "answer": row[kind], "good": kind == "supported"}
        for row in rows
        for kind in ("supported", "unsupported")
    ]


def test_retrieved_passages_hold_the_facts_or_none():
    rows = data("rag")
    told = [row for row in rows if row.get("answerable", True)]
    assert (len(rows), len(told)) == (64, 48)
    assert len({passage for row in rows for passage in row["passages"]}) == 16
    for field in ("id", "question", "supported", "unsupported"):
        assert field == "supported" or unique(rows, field)
    fields = {"id", "split", "question", "passages", "supported", "unsupported", "harmful"}
    for row in rows:
        assert row.keys() == fields | ({"facts"} if row in told else {"answerable"})
        assert 2 <= len(set(row["passages"])) == len(row["passages"]) <= 3
        assert all(40 <= len(passage.split()) <= 75 for passage in row["passages"])
        assert row["question"].endswith("?")
        assert names(row["supported"], row.get("facts", ())) and not admits(row["unsupported"])
        assert row in told or admits(row["supported"])
    for row in told:
        assert not names(row["unsupported"], row["facts"]), row
        holding = [names(passage, row["facts"]) for passage in row["passages"]]
        assert any(holding), row
    assert Counter(len(row["passages"]) for row in rows) == {2: 32, 3: 32}


def test_retrieved_passages_are_split_evenly():
    rows = data("rag")
    assert Counter((row["split"], row.get("answerable", True)) for row in rows) == {
        (split, told): n for split in ("dev", "test") for told, n in ((True, 24), (False, 8))
    }


def test_length_does_not_tell_what_is_supported():
    rows = answered(data("rag"))
    assert 0.4 <= auc(rows, [len(row["answer"].split()) for row in rows]) <= 0.6
    assert 0.4 <= auc(rows, [len(row["answer"]) for row in rows]) <= 0.6


def test_overlap_with_the_question_does_not_tell_what_is_supported():
    for rows in (data("rag"), [row for row in data("rag") if row.get("answerable", True)]):
        pairs = answered(rows)
        shares = [
            len(set(words(row["answer"])) & set(words(row["question"]))) / len(set(words(row["answer"])))
            for row in pairs
        ]
        assert 0.4 <= auc(pairs, shares) <= 0.6
