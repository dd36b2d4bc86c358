"""Policy files: every mistake at its line, what a file may say more than data, and the schema for editors."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from rain_llm import BUILT_IN, CIVILITY, HARMLESSNESS, Criterion, RainSettings, SettingsError
from rain_llm.criteria.criterion import Calibration, Choice, Example
from rain_llm.settings import (
    EvaluationSettings,
    GenerationSettings,
    KeepDraftsSettings,
    ModelSettings,
    PolicyError,
)

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "policy.md"
SECRET = "sk-do-not-tell"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load settings from a text, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str, name: str = "policy.yaml") -> RainSettings:
        Path(name).write_text(text, encoding="utf-8")
        return RainSettings.from_file(name)

    return from_text


@pytest.fixture
def mistakes(load):
    """Load settings from a text that is refused; return what each line of the error says."""

    def of(text: str, name: str = "policy.yaml") -> list[str]:
        with pytest.raises(PolicyError) as caught:
            load(text, name)
        assert str(caught.value).splitlines() == [str(mistake) for mistake in caught.value.mistakes]
        return str(caught.value).splitlines()

    return of


# --- each mistake at its line ---------------------------------------------------------------------

PLACES: list[tuple[str, str, str]] = [
    ("on_unsafe: best\nserach:\n  width: 3\n", "2:1: serach: unknown setting", "did you mean 'search'"),
    ("search:\n  # a comment\n  iteratons: 3\n", "3:3: search.iteratons: unknown", "'iterations'"),
    ("search:\n  iterations: many\n", "2:15: search.iterations: Input should be a valid integer", ""),
    ("search:\n  iterations: 0\n", "2:15: search.iterations: ", "greater than or equal to 1 (got 0)"),
    ("search:\n  leaves:\n    - 3\n", "2:3: search.leaves: ", "valid integer"),
    ("search: 3\n", "1:9: search: ", "(got 3)"),
    ("search:\n  iterations: '3'\n", "2:15: search.iterations: this must be a number, not text", "quotes"),
    ("search:\n  iterations: true\n", "2:15: search.iterations: this must be a number, not true or", "false"),
    ("search:\n  guided: 1\n", "2:11: search.guided: this must be true or false, not a number", ""),
    ("search:\n  widening: 1e3\n", "2:13: search.widening: this must be a number", "1.0e+3"),
    (
        "search:\n  token_set_lengths: [3, '6']\n",
        "2:26: search.token_set_lengths.1: this must be a number",
        "",
    ),
    ("search:\n  width: 3\n", "2:3: search.width: ", "only strategy 'paper'"),
    (
        "evaluation:\n  criteria:\n    - civility\n    - kindness\n",
        "4:7: evaluation.criteria.1: ",
        "civility",
    ),
    ("evaluation:\n  actions: kindness\n", "2:12: evaluation.actions.0: unknown criterion", "harmlessness"),
    ("evaluation:\n  criteria: []\n", "2:3: evaluation.criteria: ", "at least 1"),
    (
        "evaluation:\n  criteria:\n    - civility\n    - name: warm\n      threshold: 0.3\n",
        "4:7: evaluation.criteria.1: criterion 'warm' cannot be asked",
        "give labels",
    ),
    (
        "evaluation:\n  criteria:\n    - extends: civility\n      threshold: 0.6\n",
        "3:7: evaluation.criteria.0: criterion 'civility': target 0.5 is below the threshold 0.6",
        "",
    ),
    (
        "evaluation:\n  criteria:\n    - extends: civilty\n",
        "3:16: evaluation.criteria.0.extends: unknown criterion 'civilty'",
        "civility",
    ),
    (
        "evaluation:\n  criteria:\n    extends: civility\n    calibration:\n      scale: 0\n",
        "5:14: evaluation.criteria.0.calibration.scale: ",
        "greater than 0",
    ),
    (
        "evaluation:\n  criteria:\n    - civility\n    - extends: civility\n",
        "4:7: evaluation.criteria.1: ",
        "different names",
    ),
    (
        "evaluation:\n  style: guard\n  criteria:\n    - harmlessness\n    - civility\n",
        "5:7: evaluation.criteria.1: criterion 'civility' has no 'guard'",
        "another style",
    ),
    (
        "evaluation:\n  criteria:\n    - name: x\n      labels: [[yes, 'no']]\n",
        "4:17: evaluation.criteria.0.labels.0.0: ",
        "yes without quotes is a truth value",
    ),
    (
        "search: {iterations: 3}\nevaluation:\n  criteria:\n  - {extends: civility, iterations: 4}\n",
        "4:37: evaluation.criteria.0.iterations: criterion 'civility': iterations 4 are more than "
        "search.iterations 3",
        "",
    ),
    ("on_unsafe: best\npreset: papre\n", "2:9: preset: unknown preset 'papre'", "paper-truth"),
    ("search:\n  width: [3\n", "3:1: malformed: ", "flow sequence"),
    ("search:\n\twidth: 3\n", "2:1: malformed: ", "cannot start any token"),
    ("on_unsafe: best\nrefusal: *none\n", "2:10: malformed: found undefined alias", ""),
    ("a: 1\n---\nb: 2\n", "2:1: malformed: ", "single document"),
    ("a: \x00\n", "1:4: malformed: ", "special characters"),
    ("search: &s\n  similarity: *s\n", "1:9: malformed: an alias refers to a value that contains it", ""),
    (
        "refusal: !!python/object/apply:os.getcwd []\n",
        "1:10: malformed: tags are not allowed",
        "leave it out",
    ),
    ("refusal: !!str 3\n", "1:10: malformed: tags are not allowed", ""),
    ("refusal: [" + "[" * 1500, "1:59: malformed: too deeply nested", "at most 50"),
    ("refusal: 0x_\n", "1:10: malformed: a number cannot be read", ""),
    ("refusal: " + "1:" * 300 + "1.5\n", "1:10: malformed: a number cannot be read", ""),
    ("search:\n  width: 0x" + "F" * 9999 + "\n", "2:10: malformed: a number cannot be read", ""),
    ("search:\n  width: " + "9" * 9999 + "\n", "2:10: malformed: a number cannot be read", ""),
    ("search:\n  ? [a]\n  : 3\n", "2:5: malformed: a key cannot be a list or a mapping", ""),
    ("search:\n  deadline_s: .inf\n", "2:15: search.deadline_s: Input should be a finite number", "got inf"),
    (
        "evaluation:\n  criteria: {extends: civility, weight: .nan}\n",
        "2:41: evaluation.criteria.0.weight: Input should be a finite number (got nan)",
        "",
    ),
    (
        "generation:\n  <<: {seed: 1}\n  <<: {seed: 2}\n",
        "3:3: generation.<<: duplicate key, first in line 2",
        "",
    ),
    ("preset: [paper]\n", "1:1: preset: unknown preset of type list: there are", "paper"),
    (
        "evaluation:\n  criteria: {extends: {civility: 1}}\n",
        "2:14: evaluation.criteria.0.extends: unknown criterion of type dict: built in are",
        "civility",
    ),
    ("", "1:1: a settings file must hold a mapping, not NoneType", ""),
]


@pytest.mark.parametrize(("text", "start", "said"), PLACES, ids=lambda value: repr(value)[:50])
def test_a_mistake_is_told_with_file_line_column_and_key_path(mistakes, text: str, start: str, said: str):
    (line,) = mistakes(text)
    assert line.startswith(f"policy.yaml:{start}")
    assert said in line


JSON_PLACES = [
    ('{\n\t"search": {\n\t\t"iterations":0}}', "3:16: search.iterations: "),
    ('{"search": {"leaves": 3,\n "leavse": 3}}', "2:2: search.leavse: unknown setting"),
    ('{"refusal": "a",\n "refusal": "b"}', "2:2: refusal: duplicate key, first in line 1"),
    ('{"refusal": "a"\n "on_unsafe": "best"}', "2:2: malformed: Expecting ',' delimiter"),
    ('["a"]', "1:1: a settings file must hold a mapping, not list"),
]


@pytest.mark.parametrize(("text", "start"), JSON_PLACES, ids=lambda value: repr(value)[:50])
def test_a_mistake_in_json_has_its_line_too(mistakes, text: str, start: str):
    (line,) = mistakes(text, "policy.json")
    assert line.startswith(f"policy.json:{start}")


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(mistakes):
    said = mistakes(
        "preset: papre\non_unsafe: maybe\nsearch:\n  iteratons: 1\n  leaves: 0\n  leaves: 0\n"
        "evaluation:\n  criteria:\n    - kindness\n    - {extends: civility, weight: 0, wieght: 1}\n"
    )
    assert [line.split(": ")[0] for line in said] == [
        "policy.yaml:1:9",
        "policy.yaml:2:12",
        "policy.yaml:4:3",
        "policy.yaml:6:3",
        "policy.yaml:6:11",
        "policy.yaml:9:7",
        "policy.yaml:10:35",
        "policy.yaml:10:38",
    ]


def test_a_value_that_may_be_of_two_kinds_is_told_of_both_at_its_place(mistakes):
    said = mistakes("evaluation:\n  criteria:\n    extends: civility\n    calibration: {center: middle}\n")
    assert {line.partition(": Input")[0] for line in said} == {
        "policy.yaml:4:27: evaluation.criteria.0.calibration.center"
    }
    assert "valid number" in said[0]
    assert "'content_free'" in said[1]


def test_a_contradiction_with_the_preset_is_told_at_the_part_that_makes_it(mistakes):
    (line,) = mistakes("preset: paper\nevaluation:\n  criteria: civility\n")  # the preset shows examples
    assert line.startswith("policy.yaml:3:13: evaluation.criteria.0: criterion 'civility' has no examples")


KEYS = [
    f"model: {{api_key: {SECRET}}}",
    f"model:\n  api_key: {SECRET}\n  base_url: ftp://a\n",
    f"model: {{base_url: 'http://a', api_key: [{SECRET}], width: 3}}",
    f"model: {{base_url: 'http://a', api_kee: {SECRET}}}",
    f"model: {{base_url: 'http://a', api_key: {SECRET}}}\nsearch: {{width: 0}}",
    f"{{model: {{base_url: 'http://a', api_key: {SECRET}}}, search: {{width: 0}}}}",
    f"evaluation: {{judge: {{api_key: {SECRET}}}}}",
    f"evaluation: {{judge: {SECRET}}}",
    f"api_key: {SECRET}",
    f"search:\n  api_key: {SECRET}\n",
    f"evaluation: {{criteria: [{{extends: civility, api_key: {{is: {SECRET}}}}}]}}",
    f"model:\n  base_url: http://{SECRET}@a\n",
    f"model:\n  api_key: '{SECRET}\n",
    f"model:\n  api_key: *{SECRET}\n",
    f"model:\n  api_key: !{SECRET} 3\n",
    f"model:\n  api_key: {SECRET}\n  api_key: {SECRET}\n",
    f"model:\n  <<: {{api_key: {SECRET}}}\n  <<: {{api_key: {SECRET}}}\n",
    f"model: {{base_url: 'http://a'}}\nsearch: {{api_key: >-\n   {SECRET}\n   {SECRET}, width: 3}}",
]


@pytest.mark.parametrize("text", KEYS)
def test_no_error_and_no_line_that_is_shown_tells_a_key(load, text: str):
    with pytest.raises(PolicyError) as caught:
        load(text)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.mistakes)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)


def test_the_line_is_shown_without_its_comment(load):
    with pytest.raises(PolicyError) as caught:
        load("model: {base_url: 'http://a', api_key: abc}\nsearch: {width: 0}  # narrow\n")
    assert [m.source for m in caught.value.mistakes] == ["search: {width: 0}"]


KEYS_AND_SIGNS = [
    "model",
    "search",
    "width",
    "criteria",
    "extends",
    "civility",
    "<<",
    "&a ",
    "*a",
    "? ",
    "!b ",
]
SOUP = st.lists(
    st.sampled_from(
        [*KEYS_AND_SIGNS, *"[]{}:,-#|>%@'\"\\\t\n", ": ", "\n  ", "\n    - ", "1", "null", ".nan", "\ud800"]
    )
).map("".join)


@settings(deadline=None)
@given(text=SOUP, name=st.sampled_from(["policy.yaml", "policy.json"]))
def test_whatever_a_file_holds_it_loads_or_is_refused(tmp_path_factory, text: str, name: str):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(RainSettings.from_file(path), RainSettings)
    except SettingsError as error:
        assert str(path) in str(error)


# --- what a file may hold -------------------------------------------------------------------------


def test_anchors_merges_dates_and_comments_are_fine(load):
    settings = load(
        "evaluation:\n  criteria:\n    - &warm\n      name: warm\n      labels: &l [[warm, cold]]\n"
        "    - {<<: *warm, name: kind, threshold: 0.3}\n    - {name: 2024-01-02, labels: *l}\n"
        "refusal: 2024-13-45  # no date\n"
    )
    warm, kind, dated = settings.evaluation.criteria
    assert (kind.name, kind.labels, kind.threshold) == ("kind", warm.labels, 0.3)
    assert (dated.name, dated.labels) == ("2024-01-02", warm.labels)
    assert settings.refusal == "2024-13-45"


def test_a_mistake_in_what_an_alias_stands_for_is_told_where_it_is_written(mistakes):
    said = mistakes(
        "evaluation:\n  criteria:\n    - &warm\n      name: warm\n      labels: [[warm, cold]]\n"
        "      weight: 0\n    - {<<: *warm, name: kind}\n"
    )
    assert [line.split(": ")[:2] for line in said] == [
        ["policy.yaml:6:15", f"evaluation.criteria.{index}.weight"] for index in (0, 1)
    ]


def test_many_aliases_of_aliases_take_no_time(mistakes):
    levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 60))
    (said,) = mistakes(f"a0: &a0 [x]\n{levels}refusal: *a59\n")
    assert "with its aliases it has more than 20,000 keys and values" in said


NESTED = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        "preset: *a11",
        "? *a11\n: 3",
        "evaluation: {criteria: {extends: *a11}}",
        "evaluation: {criteria: *a11, actions: [*a11]}",
        "evaluation: {criteria: {extends: civility, labels: *a11, calibration: {center: *a11}}}",
        "model: {base_url: *a11}",
        "search: {token_set_lengths: *a11, similarity: *a11}",
    ],
)
def test_lists_of_lists_of_lists_are_not_told_in_errors(mistakes, text: str):
    """Written out they would have thirty thousand million items."""
    started = time.process_time()
    said = mistakes(f"a0: &a0 [x]\n{NESTED}{text}\n")
    assert sum(map(len, said)) < 5000
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a {'x' * 20_000}\nsearch: {{token_set_lengths: [{'*a , ' * 300}]}}\n",
        f"a: &a {'x' * 20_000}\nevaluation: {{criteria: [{'*a , ' * 300}]}}\n",
        f"evaluation: {{criteria: [{'civility, ' * 300}]}}\n",
        f"a: &a [{'x, ' * 2000}]\n" + "".join(f"k{i}: *a\n" for i in range(300)),
    ],
)
def test_what_many_mistakes_have_in_common_is_not_told_many_times(mistakes, text: str):
    started = time.process_time()
    assert sum(map(len, mistakes(text))) < 200_000
    assert time.process_time() - started < 5


def test_json_is_read_as_json(load):
    text = '{"$schema": "x.json",\t"refusal": "\\ud83d\\ude00", "search": {"widening": 1e3, "deadline_s": 2}}'
    settings = load(text, "policy.json")
    assert (settings.refusal, settings.search.widening, settings.search.deadline_s) == ("\U0001f600", 1000, 2)


def test_what_settings_write_down_is_a_file(load):
    for preset in ("default", "paper", "paper-truth"):
        settings = RainSettings.preset(preset)
        assert load(settings.model_dump_json(), "policy.json") == settings
        assert load(yaml.safe_dump(settings.model_dump(mode="json"))) == settings


def test_a_criterion_extends_a_built_in_one(load):
    file = load(
        "evaluation:\n  criteria:\n    - {extends: harmlessness, threshold: 0.4}\n"
        "    - {extends: civility, name: mild, calibration: {center: 0.5}, choice: {good: mild}}\n"
        "  actions: {extends: harmless_actions, calibration: null}\n"
    )
    data = RainSettings(
        evaluation={
            "criteria": [
                {"extends": "harmlessness", "threshold": 0.4},
                {
                    "extends": "civility",
                    "name": "mild",
                    "calibration": {"center": 0.5},
                    "choice": {"good": "mild"},
                },
            ],
            "actions": {"extends": "harmless_actions", "calibration": None},
        }
    )
    assert file == data
    harmless, mild = file.evaluation.criteria
    assert harmless == HARMLESSNESS.model_copy(update={"threshold": 0.4})
    assert (mild.calibration, mild.name) == (Calibration(center=0.5, scale=0.5), "mild")
    assert mild.choice == Choice(
        question="Is the tone of the text friendly or hostile?", good="mild", bad="hostile"
    )
    assert mild.labels == CIVILITY.labels
    assert [c.calibration for c in file.evaluation.actions] == [None]


def test_only_lists_of_criteria_can_extend():
    with pytest.raises(ValidationError, match="unknown setting 'extends'"):
        Criterion.model_validate({"extends": "civility"})


@pytest.mark.parametrize("place", ["criteria", "actions"])
def test_a_criterions_budget_is_within_the_searchs(place: str):
    def made(iterations: int) -> RainSettings:
        criteria = [{"extends": "harmlessness", "name": "mine", "iterations": iterations}]
        return RainSettings().updated(search={"iterations": 8}, evaluation={place: criteria})

    assert [c.iterations for c in getattr(made(8).evaluation, place)] == [8]
    with pytest.raises(SettingsError, match=rf"{place}\.0\.iterations: .* 9 .* search\.iterations 8"):
        made(9)
    with pytest.raises(SettingsError, match="greater than or equal to 1"):
        made(0)
    assert made(8).hash != made(7).hash


# --- the schema -----------------------------------------------------------------------------------

SCHEMA = RainSettings.file_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def accepted(data: Any, folder: Path) -> bool:
    path = folder / "policy.json"
    path.write_text(json.dumps(data))
    try:
        RainSettings.from_file(path)
    except SettingsError:
        return False
    return True


AGREED: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"$schema": "rain.schema.json", "preset": "paper"}, True),
    ({"preset": "papre"}, False),
    ({"preset": None}, False),
    ({"model": "a/folder"}, True),
    ({"model": ""}, False),
    ({"model": {"base_url": "http://a", "api_key": "k"}}, True),
    ({"model": {"base_url": ["http://a", "http://b"]}}, True),
    ({"model": {"base_url": 3}}, False),
    ({"model": None}, False),
    ({"model": {"limits": {"read_s": 3, "attempts": 0}}}, False),
    ({"generation": {"stop": "end"}}, True),
    ({"generation": {"stop": ["end", "."]}}, True),
    ({"generation": {"stop": [3]}}, False),
    ({"generation": {"seed": None, "temperature": 2}}, True),
    ({"generation": {"seed": "3"}}, False),
    ({"generation": {"seed": 2.5}}, False),
    ({"generation": {"temperature": True}}, False),
    ({"generation": {"temperature": 0}}, True),
    ({"generation": {"temperature": -0.1}}, False),
    ({"generation": {"chat_template": 1}}, False),
    ({"search": {"strategy": "paper", "similarity": {}, "addition": None}}, True),
    ({"search": {"similarity": []}}, False),
    ({"search": {"token_set_lengths": []}}, False),
    ({"search": {"token_set_lengths": [1, 2]}}, True),
    ({"search": None}, False),
    ({"evaluation": {"criteria": "civility"}}, True),
    ({"evaluation": {"criteria": ["civility", "harmlessness"]}}, True),
    ({"evaluation": {"criteria": ["kindness"]}}, False),
    ({"evaluation": {"criteria": []}}, False),
    ({"evaluation": {"actions": []}}, True),
    ({"evaluation": {"criteria": {"extends": "civility"}}}, True),
    ({"evaluation": {"criteria": [{"extends": "civility", "calibration": {"scale": 2}}]}}, True),
    ({"evaluation": {"criteria": [{"extends": "civility", "choice": {"good": "kind"}}]}}, True),
    ({"evaluation": {"criteria": [{"extends": "civility", "choice": {"godo": "kind"}}]}}, False),
    ({"evaluation": {"criteria": [{"extends": "harmlessness", "turn": {"first": "No:"}}]}}, True),
    ({"evaluation": {"criteria": [{"extends": "harmlessness", "turn": {"begin": "No:"}}]}}, False),
    ({"search": {"window": 5, "rewinds": 0}}, True),
    ({"search": {"strategy": "read_and_rewind", "window": 0}}, False),
    ({"evaluation": {"criteria": [{"extends": "kindness"}]}}, False),
    ({"evaluation": {"criteria": [{"labels": [["a", "b"]]}]}}, False),
    ({"evaluation": {"criteria": [{"name": "x", "labels": [["a", "b"]]}]}}, True),
    ({"evaluation": {"criteria": [{"name": "x", "labels": [["a", "b", "c"]]}]}}, False),
    ({"evaluation": {"criteria": [{"name": "x y", "labels": [["a", "b"]]}]}}, False),
    ({"evaluation": {"criteria": [{"name": "x", "labels": [["a", "b"]], "iterations": 0}]}}, False),
    ({"evaluation": {"criteria": [{"name": "x", "labels": [["a", "b"]], "choice": {"good": "a"}}]}}, False),
    ({"evaluation": {"judge": "a/folder"}}, False),
    ({"evaluation": {"judge": {"name": "a/folder"}}}, True),
    ({"on_unsafe": "refuse", "refusal": "No."}, True),
    ({"on_unsafe": "no"}, False),
    ({"refusal": ""}, False),
    ({"extends": "paper"}, False),
]


@pytest.mark.parametrize(("data", "fine"), AGREED, ids=lambda value: str(value)[:70])
def test_schema_and_file_agree(data: dict[str, Any], fine: bool, tmp_path: Path):
    assert (VALIDATOR.is_valid(data), accepted(data, tmp_path)) == (fine, fine)


def test_the_schema_is_a_schema_that_describes_every_field():
    Draft202012Validator.check_schema(SCHEMA)
    for part in (SCHEMA, *SCHEMA["$defs"].values()):
        assert part["additionalProperties"] is False
        assert [name for name, field in part["properties"].items() if not field.get("description")] == []


def test_what_presets_and_built_in_criteria_write_down_fits_the_schema():
    for preset in ("default", "paper", "paper-adversarial", "paper-truth"):
        VALIDATOR.validate(RainSettings.preset(preset).model_dump(mode="json"))
    VALIDATOR.validate({"evaluation": {"criteria": list(BUILT_IN)}})
    VALIDATOR.validate({"evaluation": {"criteria": [c.model_dump(mode="json") for c in BUILT_IN.values()]}})


SECTIONS: list[tuple[type[BaseModel], tuple[str | int, ...]]] = [
    (RainSettings, ()),
    (ModelSettings, ("model",)),
    (GenerationSettings, ("generation",)),
    (KeepDraftsSettings, ("search",)),
    (EvaluationSettings, ("evaluation",)),
    (ModelSettings, ("evaluation", "judge")),
    (Criterion, ("evaluation", "criteria", 0)),
    (Example, ("evaluation", "criteria", 0, "examples", 0)),
    (Calibration, ("evaluation", "actions", 0, "calibration")),
]
EXAMPLE = {"query": "q", "answer": "a", "good": True}
FIELDS = [name for section, _ in SECTIONS for name in section.model_fields]


@settings(deadline=None)
@given(
    section=st.sampled_from(SECTIONS),
    name=st.one_of(
        st.sampled_from(FIELDS), st.sampled_from(FIELDS).map(lambda name: name[:-1] + "_"), st.text()
    ),
)
def test_a_key_that_a_file_may_not_hold_is_refused_by_the_schema_too(tmp_path_factory, section, name):
    model, place = section
    if name in (*model.model_fields, "$schema", "preset", "extends"):
        return
    data: dict[str, Any] = {
        "model": {},
        "generation": {},
        "search": {},
        "evaluation": {
            "judge": {},
            "criteria": [{"extends": "civility", "examples": [dict(EXAMPLE)]}],
            "actions": [{"extends": "harmless_actions", "calibration": {}}],
        },
    }
    assert VALIDATOR.is_valid(data)
    below: Any = data
    for part in place:
        below = below[part]
    below[name] = None
    assert not VALIDATOR.is_valid(data)
    assert not accepted(data, tmp_path_factory.getbasetemp())


def test_every_policy_in_the_documentation_fits_the_schema_and_loads(load):
    blocks = [
        block
        for page in sorted(PAGE.parents[1].rglob("*.md"))
        for block in re.findall(r"```yaml[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        if "serve run" not in block  # that is a file of Ray's
    ]
    assert len(blocks) >= 5
    for block in blocks:
        VALIDATOR.validate(yaml.safe_load(block))
        load(block)


# --- the page -------------------------------------------------------------------------------------


def test_the_pages_policy_holds_and_its_python_runs(load, capsys):
    page = PAGE.read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    settings = load(text)
    VALIDATOR.validate(yaml.safe_load(text))
    assert [c.name for c in settings.evaluation.criteria] == ["harmlessness", "civility", "discretion"]
    assert [c.iterations for c in settings.evaluation.criteria] == [None, 6, 4]
    assert [c.threshold for c in settings.evaluation.actions] == [0.4]
    for code in re.findall(r"```python[^\n]*\n(.*?)```", page, re.DOTALL):
        exec(code, namespace := {"RainSettings": RainSettings})
        assert "civility" in [c.name for c in namespace["settings"].evaluation.criteria]
    assert capsys.readouterr().out == f"0.3 6 0.4 {settings.hash}\n"


def test_the_pages_mistakes_are_told_as_it_says(load):
    page = PAGE.read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```console\n\$ rain check policy.yaml\n(.*?)```", page, re.DOTALL)
    with pytest.raises(PolicyError) as caught:
        load(text.replace("threshold: 0.3", "treshold: 0.3").replace("refuse", "refuze"))
    told = [
        line
        for mistake in caught.value.mistakes
        for line in (str(mistake), mistake.source, "^".rjust(mistake.column))
    ]
    for line, expected in zip(told, shown.splitlines(), strict=True):
        assert line.startswith(expected.removesuffix("..."))
