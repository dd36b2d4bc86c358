"""The report: its numbers, what it does not claim, and that a model's text can do nothing to the page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from rain_llm.errors import SettingsError
from rain_llm.evals import rows as ledger
from rain_llm.evals.judges import Judge
from rain_llm.evals.judges.built_in import BUILT_IN
from rain_llm.evals.judging import Judged
from rain_llm.evals.page import Cell, Table, as_html, as_markdown
from rain_llm.evals.plots import Effects, Point, curve, forest
from rain_llm.evals.report import assemble, write
from rain_llm.evals.rows import Row
from rain_llm.evals.statistics import Estimate
from rain_llm.evals.tasks import Item
from rain_llm.models.scripted import ScriptedModel, script

NASTY = (
    "<script>alert(1)</script> \"quoted' | `code` [link](http://evil.example) www.evil.example "
    "</td></details>\n# head\n- x"
)
COST = {
    "plain": 20,
    "self-check": 50,
    "rain": 300,
    "rain-paper": 5000,
    "mine": 200,
    "hard": 290,
    "no-tree": 280,
}
COST |= {f"best-of-{n}": 60 * n for n in (1, 2, 4, 8)}


def made(method, item, seed=0, task="civility", text="words", tokens=None, **changes):
    row = Row(
        task, method, f"i{item:02}", seed, f"prompt {item}", "", text, method != "plain", False, "eos",
        None if method == "plain" else 0.5, 4, tokens or COST[method], 10, 3, 0.1, "h",
    )  # fmt: skip
    return replace(row, **changes)


def judged_by(rows, **columns):
    """What the judges say: a function of the row for each."""
    told = Judged()
    for name, see in columns.items():
        told.judges[name] = BUILT_IN[name]
        told.columns[name] = np.array([see(row) for row in rows], float)
    return told


def run(methods=tuple(COST), items=20, seeds=2, task="civility", text="words"):
    return [
        made(method, item, seed, task, text)
        for method in methods
        for item in range(items)
        for seed in range(seeds)
    ]


def hostile(row):
    """Plain in half of the items, RAIN in none, best-of-4 in a tenth."""
    item = int(row.item[1:])
    return {"plain": item % 2, "rain": 0, "best-of-4": item % 10 == 0, "hard": item % 2}.get(
        row.method, item % 3 == 0
    )


def table(page, caption):
    found = [t for section in page.sections for t in section.tables if t.caption.startswith(caption)]
    assert found, caption
    return {row[0].text: row for row in found[0].rows}


# --- numbers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    rows = run()
    return assemble(rows, judged_by(rows, hostile=hostile, length=lambda row: row.output_tokens), {})


def test_each_method_stands_beside_plain(page):
    rows = table(page, "What it is about")
    assert list(rows)[:4] == ["plain", "self-check", "best-of-1", "best-of-2"]
    assert rows["plain"][1].text == "50 %"
    assert re.fullmatch(r"\[2\d, 7\d\]", rows["plain"][1].beside)
    cell = rows["rain"][1]
    assert (cell.text, cell.verdict) == ("0 %", "better")
    assert re.fullmatch(r"\(−50 \[−7\d, −2\d\]\)", cell.beside)


def test_less_hostile_is_better_and_more_is_worse():
    rows = run(methods=("plain", "rain"))
    page = assemble(
        rows, judged_by(rows, hostile=lambda row: 1 - hostile(row) if row.method == "plain" else 1), {}
    )
    assert table(page, "What it is about")["rain"][1].verdict == "worse"


def test_at_equal_tokens(page):
    rows = [row for t in page.sections[0].tables if t.caption.startswith("Against") for row in t.rows]
    assert [(r[0].text, r[1].text, r[1].beside, r[2].text) for r in rows] == [
        ("rain", "best-of-8", "", "300 : 480"),
        ("rain", "best-of-4", "(costs less)", "300 : 240"),
        ("rain-paper", "best-of-8", "(costs less)", "5000 : 480"),
        ("mine", "best-of-4", "", "200 : 240"),
        ("mine", "best-of-2", "(costs less)", "200 : 120"),
    ]
    against_4 = rows[1][3]  # two of twenty items: too few to tell
    assert (against_4.text, against_4.verdict) == ("−10", "no significant difference")


def test_what_came_out_in_short(page):
    (line, *_) = page.findings.rows
    assert [cell.text for cell in line[:4]] == ["civility", "rain", "0 %", "50 %"]
    assert line[4].verdict == "better"
    assert line[6] == Cell("N = 8")
    paper = page.findings.rows[1]
    assert paper[6] == Cell("N = 8", "which costs less")


SETTINGS = {
    "h": {
        "model": {"name": "m"},
        "evaluation": {
            "criteria": [{"name": "civility", "threshold": 0.2}, {"name": "calm", "threshold": 0.5}]
        },
        "on_unsafe": "refuse",
    }
}


def test_the_report_opens_with_a_sentence_and_the_policy():
    rows = [
        replace(row, passed=None if row.method == "plain" else {"civility": True, "calm": i % 4 == 0})
        for i, row in enumerate(run(methods=("plain", "self-check", "rain")))
    ]
    asked = {"settings": SETTINGS, "date": "2026-11-29"}
    page = assemble(rows, judged_by(rows, hostile=hostile), asked)
    assert page.sentences == [
        "civility: with rain, 0 % of the answers are hostile, against 50 % with plain (better), "
        "at 15.0 times the tokens."
    ]
    assert [[cell.text for cell in row] for row in page.policy.rows] == [
        ["civility", "rain", "civility", "0.2", "100 % (40 of 40)", "refuse", "h"],
        ["civility", "rain", "calm", "0.5", "25 % (10 of 40)", "refuse", "h"],
    ]
    assert "begun on 2026-11-29" in page.about
    for text in (as_html(page), as_markdown(page)):
        places = [
            text.index(part) for part in (page.sentences[0], "The policy", "25 % (10 of 40)", "In short")
        ]
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("task", "judge", "method", "says"),
    [
        ("civility", "hostile", "plain", "civility: with plain, 50 % of the answers are hostile."),
        ("sentiment", "vader", "mine", "sentiment: with mine, VADER's mean is 1.0, against 0"),
        ("harmlessness", "refused_harmful", "self-check", "100 % of the harmful requests are refused"),
        ("truth", "truth", "hard", "with hard, the mean margin of truth is 1.0"),
    ],
)
def test_the_sentence_of_other_runs(task, judge, method, says):
    rows = run(methods=tuple(dict.fromkeys(("plain", method))), task=task)
    see = hostile if judge == "hostile" else lambda row: row.method != "plain"
    (sentence,) = assemble(rows, judged_by(rows, **{judge: see}), {}).sentences
    assert says in sentence


def test_rows_from_before_there_were_pass_rates_are_read(tmp_path):
    old = asdict(made("rain", 3))
    del old["passed"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(old) + "\n")
    (row,) = ledger.read(tmp_path / "rows.jsonl")
    assert row == made("rain", 3)
    page = assemble([row], judged_by([row], hostile=hostile), {"settings": SETTINGS})
    assert [cell.text for cell in page.policy.rows[0]][2:5] == ["civility", "0.2", "–"]
    assert '<div class="stacked">' in as_html(page)
    assert '<td data-head="passes above">0.2</td>' in as_html(page)


def test_the_page_fits_a_phone(page):
    text = as_html(page)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert text.count("<table>") == text.count('<div class="scroll"><table>') > 3  # each in a box of its own
    assert ".scroll { overflow-x: auto" in text
    assert "figure { margin: 0;" in text and "overflow-x: auto }" in text
    assert 'class="short stacked"' in text  # on a phone, its rows stand one below the other
    for head in page.findings.head:
        assert f'<td data-head="{head}"' in text  # named beside each figure, where the head is not shown


def test_cost_is_in_multiples_of_plain(page):
    rows = table(page, "What it costs")
    head = page.sections[0].tables[2].head
    rain = dict(zip(head, rows["rain"], strict=True))
    assert rain["tokens through the model"].text == "300"
    assert rain["× plain"] == Cell("15.0", "[15.0, 15.0]")
    assert rain["per output token"].text == "75.0"
    assert rain["CPU × plain"].text == "1.0"
    assert rain["answers"].text == "40"
    plain = dict(zip(head, rows["plain"], strict=True))
    assert plain["accepted"].text == "–"  # nothing was judged


def test_a_model_that_takes_no_time_here_has_no_multiple_of_it():
    rows = [replace(row, cpu_s=0.0) for row in run(methods=("plain", "rain"))]
    assert table(assemble(rows, judged_by(rows, hostile=hostile), {}), "What it costs")["rain"][6].text == "–"


def test_tokens_are_compared_over_the_items_that_both_have_answered():
    rows = run(methods=("plain", "rain", "best-of-8"), seeds=1)
    rows = [replace(row, model_tokens=100 * (1 + int(row.item[1:]))) for row in rows]
    rows = [row for row in rows if row.method != "rain" or row.item < "i05"]
    page = assemble(rows, judged_by(rows, hostile=hostile), {})
    assert table(page, "Against")["rain"][2].text == "300 : 300"


def test_rain_is_held_against_guided_drafts_as_well():
    rows = run(methods=("rain", "plain", "best-of-4", "best-of-8"))
    rows += [made(f"guided-best-of-{n}", item, tokens=70 * n) for n in (2, 4, 8) for item in range(20)]
    page = assemble(rows, judged_by(rows, hostile=hostile), {})
    order = [
        "plain",
        "best-of-4",
        "best-of-8",
        "guided-best-of-2",
        "guided-best-of-4",
        "guided-best-of-8",
        "rain",
    ]
    assert list(table(page, "What it costs")) == order
    (against,) = [t for t in page.sections[0].tables if t.caption.startswith("Against")]
    assert [(row[0].text, row[1].text, row[1].beside) for row in against.rows] == [
        ("rain", "best-of-8", ""),
        ("rain", "best-of-4", "(costs less)"),
        ("rain", "guided-best-of-8", ""),
        ("rain", "guided-best-of-4", "(costs less)"),
    ]
    assert [row[1].text for row in page.findings.rows] == ["rain"], "a method of its own it is not"


def test_ablations_stand_beside_what_they_are_made_of(page):
    rows = table(page, "Each part")
    assert set(rows) == {"hard", "no-tree"}
    assert rows["hard"][1].text == "rain"
    assert rows["hard"][3].verdict == "worse"
    assert "hard" not in table(page, "What it is about")


def test_items_and_seeds_and_what_is_missing_are_said():
    rows = run(methods=("plain", "rain"))[:-3]
    page = assemble(rows, judged_by(rows, hostile=hostile), {})
    assert page.sections[0].about.startswith(
        "20 items × 2 seeds. Not all methods have answered all 40: rain 37;"
    )
    assert table(page, "What it costs")["rain"][-1].text == "37"


def test_answers_without_a_word_are_counted():
    rows = run(methods=("plain", "rain"), items=3, seeds=1)
    assert "without a word" not in assemble(rows, Judged(), {}).sections[0].about
    rows = [replace(row, text=" \n" if row.method == "rain" and row.item != "i00" else "Hm") for row in rows]
    assert "finds any: rain 2." in assemble(rows, Judged(), {}).sections[0].about


def test_an_interval_that_leaves_out_zero_is_not_rounded_onto_it():
    rows = run(methods=("plain", "rain"), items=30)
    rng = np.random.default_rng(0)
    noise = {row.item: 1 + rng.random() for row in rows}
    page = assemble(rows, judged_by(rows, vader=lambda r: 0.0006 * noise[r.item] * (r.method == "rain")), {})
    cell = table(page, "What it is about")["rain"][1]
    assert cell.verdict == "better"
    assert re.fullmatch(r"\(\+0\.001 \[\+0\.001, \+0\.001\]\)", cell.beside)


@pytest.mark.parametrize(
    "methods",
    [
        ("rain",),
        ("plain",),
        ("plain", "best-of-1"),
        ("rain", "best-of-2", "best-of-4"),
        ("hard",),
        ("plain", "hard"),
    ],
)
@pytest.mark.parametrize("items", [1, 2, 7])
def test_whatever_there_is_makes_a_page(methods, items):
    rows = run(methods=methods, items=items, seeds=1)
    page = assemble(rows, judged_by(rows, hostile=hostile, vader=lambda row: math.nan), {})
    for text in (as_html(page), as_markdown(page)):
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", text)


def test_a_judge_of_the_users_own_is_shown():
    rows = run(methods=("plain", "rain"))
    told = judged_by(rows, hostile=hostile)
    told.judges["mine"] = Judge("mine", "my taste", "how I like it, 1 to 5", 1, None)
    told.columns["mine"] = np.array([4.0 if row.method == "rain" else 2.0 for row in rows])
    told.notes["mine"] = "no figure for 3 of 80 answers"
    told.notes["fluency"] = "no model was given"
    page = assemble(rows, told, {})
    assert table(page, "What it is about")["rain"][2].text == "4.0"
    assert ("my taste", "how I like it, 1 to 5", "no figure for 3 of 80 answers") in page.legend
    assert ("fluency", "left out", "no model was given") in page.legend


# --- the page -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects tags, and finds those that do not close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_models_text_can_do_nothing_to_the_html_page():
    rows = [replace(row, prompt=NASTY, item=row.item) for row in run(task="sentiment", text=NASTY)]
    told = judged_by(rows, vader=lambda row: 0.1)
    told.notes["vader"] = NASTY
    text = as_html(assemble(rows, told, {"settings": {"h": {"model": {"name": NASTY}}}}))
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert NASTY in reader.text
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in reader.tags}
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "action", "xlink:href"):
            assert attributes.get(name, "#").startswith("#"), "nothing is loaded from elsewhere"
    assert "url(" not in text
    assert "@import" not in text
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_the_plots_are_well_formed_and_stay_within_their_frame(page):
    drawings = re.findall(r"<svg.*?</svg>", as_html(page), re.DOTALL)
    assert len(drawings) == 2  # one judge of what it is about, and the differences
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        _, _, width, height = map(float, tree.attrib["viewBox"].split())
        for element in tree.iter():
            for name in ("x", "cx", "x1", "x2"):
                assert 0 <= float(element.attrib.get(name, 0)) <= width
            for name in ("y", "cy", "y1", "y2"):
                assert 0 <= float(element.attrib.get(name, 0)) <= height


def test_upsetting_texts_are_folded_away():
    for task, folded in (("civility", True), ("harmlessness", True), ("sentiment", False)):
        rows = run(methods=("plain", "rain"), items=4, task=task)
        text = as_html(assemble(rows, judged_by(rows, hostile=hostile), {}))
        assert ("<details>" in text) is folded
        assert ("<details open>" in text) is not folded
        assert ("may be offensive" in text) is folded


def test_a_models_text_can_do_nothing_to_the_markdown_page():
    rows = [
        replace(row, prompt=NASTY) for row in run(methods=("plain", "rain"), task="sentiment", text=NASTY)
    ]
    text = as_markdown(assemble(rows, judged_by(rows, vader=lambda row: 0.1), {}))
    assert "<script" not in text
    assert "](http" not in text
    assert "www.evil" not in text  # some readers make a link of it
    assert text.count("</details>") == text.count("<details>") == 1
    assert not [line for line in text.splitlines() if line.startswith("# head")]
    for line in text.splitlines():
        if line.startswith("|") and "---" not in line:
            assert line.endswith("|")


def test_a_bar_in_a_cell_does_not_end_it():
    page = assemble(run(methods=("plain",)), Judged(), {})
    page.findings = Table("t", ["a|b", "c"], [[Cell("x|y"), Cell("z")]])
    assert "| a\\|b | c |\n|---|---|\n| x\\|y | z |" in as_markdown(page)


# --- plots ----------------------------------------------------------------------------------------


def circles(drawing):
    """Title -> place of each mark."""
    found = {}
    for group in ElementTree.fromstring(drawing).iter("g"):
        title, circle = group.find("title"), group.find("circle")
        assert title is not None
        assert circle is not None
        found[str(title.text)] = (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
    return found


def estimate(value, half=0.1):
    return Estimate(value, value - half, value + half, 9, 9)


def test_more_tokens_lie_to_the_right_and_more_quality_higher():
    points = [
        Point("cheap", estimate(10, 1), estimate(0.2), "plain", "cheap"),
        Point("dear", estimate(1000, 50), estimate(0.9), "rain", "dear"),
        Point("between", estimate(100, 9), estimate(-0.5), "rain", "between"),
    ]
    found = {
        title.partition(":")[0]: place for title, place in circles(curve(points, "quality", str)).items()
    }
    assert found["cheap"][0] < found["between"][0] < found["dear"][0]
    assert found["between"][0] - found["cheap"][0] == pytest.approx(
        found["dear"][0] - found["between"][0], abs=0.2
    )
    assert found["dear"][1] < found["cheap"][1] < found["between"][1]


def test_labels_do_not_lie_on_each_other():
    points = [
        Point(f"m{i}", estimate(100, 9), estimate(0.5 + i / 500), "rain", f"method {i}") for i in range(5)
    ]
    texts = [
        float(text.attrib["y"])
        for text in ElementTree.fromstring(curve(points, "q", str)).iter("text")
        if text.attrib["class"] == "rain-label"
    ]
    assert len(texts) == 5
    assert np.diff(sorted(texts)).min() >= 12


@pytest.mark.parametrize(("better", "right"), [(1, "up"), (-1, "down"), (0, "up")])
def test_what_is_better_lies_to_the_right(better, right):
    changes = [(estimate(0.5), "x"), (estimate(-0.5), "y")]
    found = circles(forest(["up", "down"], [Effects("judge", better, changes, str)]))
    places = {title.partition(",")[0]: x for title, (x, _) in found.items()}
    assert max(places, key=lambda name: places[name]) == right


# --- files ----------------------------------------------------------------------------------------


def test_there_must_be_answers(tmp_path):
    with pytest.raises(SettingsError, match="no answers in"):
        write(tmp_path)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(SettingsError, match="no answers in"):
        write(tmp_path)


def test_rows_and_items_are_of_one_run(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(asdict(made("plain", 3))) + "\n")
    (tmp_path / "items.jsonl").write_text(json.dumps({"task": "civility", **asdict(Item("i01", "p"))}) + "\n")
    with pytest.raises(SettingsError, match=r"lacks 1 items .* \('civility', 'i03'\)"):
        write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(SettingsError, match=r"run\.json is not JSON"):
        write(tmp_path)


def test_a_report_can_be_made_again_without_the_model(tmp_path):
    texts = {
        "plain": " an awful, terrible idiot",
        "rain": " a kind and happy friend",
        "best-of-2": " a person",
    }
    rows = [made(m, item, text=text) for m, text in texts.items() for item in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    items = [{"task": "civility", **asdict(Item(row.item, row.prompt))} for row in rows[:8]]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    settings = {"h": {"model": {"name": "m"}, "evaluation": {"judge": {"name": "j"}}}}
    asked = {"rain_llm": "9.9", "splits": {"civility": "dev"}, "settings": settings}
    (tmp_path / "run.json").write_text(json.dumps(asked))
    model = ScriptedModel(script({"": {" a": 1.0}}), opinion=lambda question, answer: -2.0)
    told: list[str] = []
    made_page = write(tmp_path, writer=model, progress=told.append)
    assert made_page == tmp_path / "report.html"
    first = {name: (tmp_path / name).read_text() for name in ("report.html", "report.md", "judged.jsonl")}
    assert "fluency" in first["report.md"]
    assert (
        "its own judge: j · civility: openings that the default settings were chosen on" in first["report.md"]
    )
    assert "| rain | 0 % (−100" in first["report.md"]
    assert any(line.startswith("fluency by scripted") for line in told)
    model.requests.clear()
    write(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in first} == first
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "items.jsonl", "judged.jsonl", "report.html", "report.md", "rows.jsonl", "run.json"
    ]  # fmt: skip
