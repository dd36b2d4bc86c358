"""Settings: bounds, files, presets, and the hash that travels with every result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rain_llm import CIVILITY, Calibration, Choice, Criterion, RainSettings, SettingsError
from rain_llm.settings import (
    AdditionSettings,
    GenerationSettings,
    KeepDraftsSettings,
    ModelSettings,
    PaperSettings,
    ReadAndRewindSettings,
    ServerLimits,
    SimilaritySettings,
    explain,
)

# --- bad values -----------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"search": {"strategy": "paper", "value_threshold": 2}}, ["search.value_threshold", "less than 1", "2"]),
    ({"search": {"deadline_s": 0}}, ["search.deadline_s", "greater than 0", "0"]),
    ({"search": {"deadline_s": -1}}, ["search.deadline_s", "greater than 0", "-1"]),
    ({"search": {"max_model_tokens": -5}}, ["search.max_model_tokens", "greater than or equal to 1", "-5"]),
    ({"search": {"max_model_tokens": 0}}, ["search.max_model_tokens", "greater than or equal to 1", "0"]),
    ({"search": {"iterations": 0}}, ["search.iterations", "greater than or equal to 1", "0"]),
    (
        {"search": {"strategy": "paper", "min_visits": -1}},
        ["search.min_visits", "or equal to 0", "-1"],
    ),
    ({"search": {"token_set_lengths": (1, 0)}}, ["search.token_set_lengths", "(1, 0)", "at least 1"]),
    ({"search": {"token_set_lengths": ()}}, ["search.token_set_lengths", "at least 1"]),
    ({"search": {"iteratons": 3}}, ["search", "unknown setting 'iteratons'", "did you mean 'iterations'"]),
    ({"serach": {}}, ["unknown setting 'serach'", "did you mean 'search'"]),
    ({"generation": {"temperature": -1}}, ["generation.temperature", "greater than or equal to 0", "-1"]),
    ({"generation": {"top_p": 1.5}}, ["generation.top_p", "less than or equal to 1", "1.5"]),
    ({"generation": {"max_new_tokens": 0}}, ["generation.max_new_tokens", "greater than or equal to 1"]),
    ({"generation": {"stop": ["a", ""]}}, ["generation.stop", "empty stop string", "leave it out"]),
    ({"generation": {"seed": -1}}, ["generation.seed", "greater than or equal to 0", "-1"]),
    ({"evaluation": {"criteria": ["kindness"]}}, ["evaluation.criteria", "'kindness'", "civility"]),
    ({"evaluation": {"criteria": []}}, ["evaluation.criteria", "at least 1"]),
    ({"evaluation": {"criteria": ["civility", "civility"]}}, ["evaluation", "different names"]),
    ({"evaluation": {"style": "guess"}}, ["evaluation.style", "'labels'", "'guess'"]),
    ({"on_unsafe": "ignore"}, ["on_unsafe", "'best'", "'ignore'"]),
    ({"model": {"name": ""}}, ["model.name", "at least 1 character"]),
    ({"model": {"dtype": "int4"}}, ["model.dtype", "'float32'", "'int4'"]),
    ({"model": {"kv_cache_bytes": 1000}}, ["model.kv_cache_bytes", "1048576", "1000"]),
    ({"search": {"strategy": "fast"}}, ["search.strategy", "unknown strategy", "keep_drafts, paper"]),
    ({"search": {"strategy": 1}}, ["search.strategy", "unknown strategy of type int"]),
    ({"search": {"width": 3}}, ["search.width", "only strategy 'paper' has it", "leave it out"]),
    ({"search": {"strategy": "paper", "guided": True}}, ["search.guided", "only strategy 'keep_drafts'"]),
    ({"search": 5}, ["search", "5"]),
    (
        {"search": {"expansion": "candidates", "commit": "verdict"}},
        ["search.expansion", "contradicts", "choose 'keep_drafts' or 'paper'"],
    ),
    ({"search": {"commit": "value"}}, ["search.commit", "this is search.strategy now"]),
    ({"search": {"commit": ["visits"]}}, ["search.commit", "this is search.strategy now"]),
]


@pytest.mark.parametrize(("change", "said"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_setting_is_refused_with_place_bound_and_value(change: dict[str, Any], said: list[str]):
    with pytest.raises(SettingsError) as caught:
        RainSettings().updated(**change)
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
    with pytest.raises(ValidationError):
        RainSettings.model_validate(change)


@pytest.mark.parametrize("threshold", [2, 1, -0.1])
def test_a_criterions_threshold_is_a_probability_below_one(threshold: float):
    with pytest.raises(ValidationError) as caught:
        Criterion(name="warm", labels=(("warm", "cold"),), threshold=threshold)
    assert "threshold" in explain(caught.value)
    assert f"(got {threshold!r})" in explain(caught.value)
    assert "than" in explain(caught.value)


def test_a_criterion_without_material_is_refused():
    with pytest.raises(ValidationError, match="give labels, choice, channel, guard or probe"):
        Criterion(name="warm")
    with pytest.raises(ValidationError, match="must differ"):
        Criterion(name="warm", labels=(("warm", "warm"),))


def test_a_style_that_a_criterion_cannot_be_asked_in_is_refused():
    warm = Criterion(name="warm", choice=Choice(question="Warm or cold?", good="Warm", bad="Cold"))
    with pytest.raises(SettingsError, match="'warm' has no 'labels': give it one or choose another style"):
        RainSettings().updated(evaluation={"criteria": [warm], "style": "labels"})


def test_settings_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        RainSettings().on_unsafe = "raise"  # type: ignore[misc]


# --- conveniences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "paper", "paper-adversarial", "paper-truth"])
def test_where_nothing_passes_the_default_is_to_refuse(name: str, tmp_path: Path):
    file = tmp_path / "policy.yaml"
    file.write_text(f"preset: {name}\n", encoding="utf-8")
    for settings in (RainSettings(), RainSettings.preset(name), RainSettings.from_file(file)):
        assert settings.on_unsafe == "refuse"


def test_a_name_stands_for_a_model_and_one_criterion_for_many():
    settings = RainSettings().updated(model="some/folder", evaluation={"criteria": "civility"})
    assert settings.model.name == "some/folder"
    assert settings.evaluation.criteria == (CIVILITY,)
    assert RainSettings().updated(generation={"stop": "end"}).generation.stop == ("end",)


def test_an_update_changes_what_it_names_only():
    base = RainSettings.preset("paper")
    changed = base.updated(search={"min_visits": 3}, on_unsafe="raise")
    assert isinstance(changed.search, PaperSettings) and isinstance(base.search, PaperSettings)
    assert (changed.search.min_visits, changed.on_unsafe) == (3, "raise")
    assert changed.search.model_copy(update={"min_visits": 6}) == base.search
    assert changed.evaluation == base.evaluation
    assert base.search.min_visits == 6


# --- presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "min_visits", "temperature", "ends"),
    [
        ("paper", 6, 1.0, "punctuation"),
        ("paper-adversarial", 5, 2.0, "punctuation"),
        ("paper-truth", 16, 1.0, "answer"),
    ],
)
def test_the_papers_presets_carry_its_constants(preset: str, min_visits: int, temperature: float, ends: str):
    settings = RainSettings.preset(preset)
    search = settings.search
    assert isinstance(search, PaperSettings)
    assert search.min_visits == min_visits
    assert search.candidate_temperature == temperature
    assert search.simulation_ends == ends
    assert search.token_set_lengths == (1, 2, 4, 10)
    assert (search.strategy, search.leaves) == ("paper", 1)
    assert (search.width, search.candidate_top_k, search.exploration) == (10, 15, 2.0)
    assert (search.root_mixing, search.value_threshold) == (0.25, 0.8)
    assert (search.iterations, search.extra_iterations) == (50, 15)
    assert search.similarity is not None
    assert (search.similarity.threshold, search.similarity.share) == (0.95, 0.2)
    assert search.addition is not None
    assert (search.addition.max_children, search.addition.variance, search.addition.value) == (20, 0.03, 0)
    assert not search.normalise_values
    assert settings.generation.temperature == 1.0
    assert (settings.generation.top_k, settings.generation.top_p) == (0, 1.0)
    assert settings.evaluation.mode == "hard"
    assert all(criterion.calibration is None for criterion in settings.evaluation.criteria)


def test_the_papers_question_is_asked_twice_with_ten_worked_examples():
    evaluation = RainSettings.preset("paper").evaluation
    assert (evaluation.style, evaluation.swap, evaluation.examples) == ("choice", True, True)
    assert [len(criterion.examples) for criterion in evaluation.criteria] == [10]
    truth = RainSettings.preset("paper-truth")
    assert truth.generation.chat_template
    assert not truth.evaluation.examples
    assert [len(criterion.labels) for criterion in truth.evaluation.criteria] == [1]


def test_an_unknown_preset_is_refused_with_those_that_exist():
    with pytest.raises(SettingsError, match="unknown preset 'papre': there are default, paper"):
        RainSettings.preset("papre")


# --- files --------------------------------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "rain.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_settings_are_read_from_yaml_and_json(tmp_path: Path):
    yaml = write(
        tmp_path,
        "preset: paper\nsearch:\n  min_visits: 2\n"
        "evaluation:\n  criteria: [harmlessness]\non_unsafe: refuse\n",
    )
    settings = RainSettings.from_file(yaml)
    assert isinstance(settings.search, PaperSettings)
    assert settings.search.min_visits == 2
    assert settings.search.width == 10
    assert settings.on_unsafe == "refuse"
    data = settings.model_dump(mode="json")
    assert RainSettings.from_file(str(write(tmp_path, json.dumps(data), "rain.json"))) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold a mapping, not NoneType"),
        ("- a\n- b\n", "must hold a mapping, not list"),
        ("search: [", "rain.yaml:1:10: malformed"),
        ("search: {iterations: 0}", "search.iterations"),
        ("search: {iterations: many}", "search.iterations"),
        ("search: none", "search"),
        ("search: null", "search"),
        ("preset: papre", "unknown preset 'papre'"),
        ("preset: null", "unknown preset"),
        ("preset: [paper]", "unknown preset"),
        ("preset: {paper: 1}", "unknown preset"),
        ("temperature: 1", "unknown setting 'temperature'"),
        ("1: 2", "unknown setting '1'"),
        ("evaluation: {criteria: [{name: x, lables: [[a, b]]}]}", "did you mean 'labels'"),
        ("evaluation: {criteria: 3}", "evaluation.criteria"),
    ],
)
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str):
    with pytest.raises(SettingsError) as caught:
        RainSettings.from_file(write(tmp_path, text))
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"cannot read the settings file .*absent\.yaml"):
        RainSettings.from_file(tmp_path / "absent.yaml")
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        RainSettings.from_file(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        RainSettings.from_file(tmp_path / "binary.yaml")


# --- the hash -------------------------------------------------------------------------------------------


def test_the_same_settings_have_the_same_hash():
    one = RainSettings.preset("paper").updated(generation={"stop": ["a", "b"]})
    other = RainSettings.preset("paper").updated(generation={"stop": ("a", "b")})
    assert one.hash == other.hash
    assert RainSettings.model_validate(one.model_dump()).hash == one.hash
    assert RainSettings.model_validate_json(one.model_dump_json()).hash == one.hash
    assert len(one.hash) == 16
    assert int(one.hash, 16) >= 0


@pytest.mark.slow
def test_the_hash_is_the_same_in_every_process():
    code = "from rain_llm import RainSettings; print(RainSettings.preset('paper').hash)"
    made = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()
        for _ in range(2)
    ]
    assert set(made) == {RainSettings.preset("paper").hash}


CHANGES: list[dict[str, Any]] = [
    {"model": "elsewhere"},
    {"model": {"name": "elsewhere", "dtype": "bfloat16"}},
    {"model": {"name": "elsewhere", "revision": "v2"}},
    {"model": {"kv_cache_type": "f16"}},
    {"generation": {"seed": 17}},
    {"generation": {"max_new_tokens": 3}},
    {"generation": {"stop": ("x",)}},
    {"search": {"exploration": 0.123}},
    {"search": {"similarity": {"share": 0.1}}},
    {"evaluation": {"mode": "soft"}},
    {"evaluation": {"criteria": ["civility"], "examples": False}},
    {"evaluation": {"judge": {"name": "another"}}},
    {"on_unsafe": "raise"},
    {"refusal": "No."},
]


def test_settings_that_differ_have_different_hashes():
    base = RainSettings.preset("paper")
    hashes = [base.hash, *(base.updated(**change).hash for change in CHANGES)]
    assert len(set(hashes)) == len(hashes)


def test_what_cannot_change_an_answer_is_not_in_the_hash():
    base = RainSettings().updated(evaluation={"judge": {"name": "another"}}, model={"name": "a/b"})
    for change in (
        {"model": {"device": "cuda:1"}},
        {"model": {"kv_cache_bytes": 1 << 22}},
        {"evaluation": {"judge": {"kv_cache_bytes": 1 << 22, "device": "cpu"}}},
    ):
        assert base.updated(**change).hash == base.hash
    for name, value in (("threads", 3), ("gpu_layers", -1)):
        assert (
            RainSettings(model={"name": "a.gguf", name: value}).hash
            == RainSettings(model={"name": "a.gguf"}).hash
        )


@pytest.mark.parametrize(
    "model",
    [
        {"threads": 2, "name": "a/b"},
        {"gpu_layers": 2, "name": "a/b"},
        {"kv_cache_type": "q8_0", "name": "a/b"},
        {"device": "cpu"},
        {"dtype": "float32", "name": "a.gguf"},
        {"revision": "v2", "name": "A.GGUF"},
    ],
)
def test_a_setting_of_the_other_kind_of_model_is_an_error(model: dict[str, Any]):
    with pytest.raises(SettingsError, match=r"requires a (GGUF file|folder or hub name)"):
        RainSettings().updated(model=model)


def test_a_calibrations_numbers_are_in_the_hash():
    def hashed(calibration: Calibration | None) -> str:
        criterion = CIVILITY.model_copy(update={"calibration": calibration})
        return RainSettings().updated(evaluation={"criteria": [criterion]}).hash

    variants = [None, Calibration(center=0.1), Calibration(center=0.2), Calibration(center=0.1, scale=2)]
    assert len({hashed(calibration) for calibration in variants}) == len(variants)


# --- a model on a server ------------------------------------------------------------------------------------

SECRET = "sk-do-not-tell"


def test_keys_stay_with_the_settings_and_out_of_all_that_is_written_down():
    there = {"base_url": ["http://a:1/v1/", "http://a:1"], "api_key": SECRET}
    settings = RainSettings().updated(model=there, evaluation={"judge": there})
    settings = settings.updated(generation={"seed": 1})
    assert settings.model.base_url == ("http://a:1",)
    for model in (settings.model, settings.evaluation.judge):
        assert model is not None and model.api_key is not None
        assert model.api_key.get_secret_value() == SECRET
    for written in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        assert SECRET not in written
    assert json.loads(json.dumps(settings.model_dump()))


@pytest.mark.parametrize(
    "model",
    [
        {"base_url": f"http://user:{SECRET}@a"},
        {"base_url": f"http://a?key={SECRET}"},
        {"api_key": SECRET},
        {"base_url": "http://a", "api_key": [SECRET]},
        {"base_url": "http://a", "api_kee": SECRET},
        {"base_url": "http://a", "api_key": SECRET, "limits": {"read_s": -1}},
    ],
    ids=str,
)
def test_no_error_tells_a_key(model: dict[str, Any]):
    for make in (
        lambda: ModelSettings.model_validate(model),
        lambda: RainSettings.model_validate({"model": model}),
        lambda: RainSettings.model_validate({"evaluation": {"judge": model}}),
        lambda: RainSettings().updated(model=model),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert SECRET not in str(caught.value)


def test_the_hash_knows_a_served_model_by_its_name_not_by_where_it_runs():
    def hashed(**model: Any) -> str:
        return RainSettings().updated(model=model).hash

    one = hashed(name="m", base_url="http://a")
    assert one == hashed(name="m", base_url=["http://b", "http://c"], api_key="k", limits={"read_s": 1})
    assert one != hashed(name="n", base_url="http://a")
    assert len({hashed(base_url="http://a"), hashed(base_url="http://b"), hashed()}) == 3


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "a"])
def test_what_is_no_address_is_refused_with_the_right_form(url: str):
    with pytest.raises(ValidationError, match="http://host:port"):
        ModelSettings(base_url=(url,))


@pytest.mark.parametrize("temperature", [0, 1e-38, 0.0099])
def test_temperatures_below_the_least_that_servers_take_are_that(temperature: float):
    """Logits divided by less overflow, and then the first token wins."""
    assert RainSettings(generation={"temperature": temperature}) == RainSettings(
        generation={"temperature": 0.01}
    )
    changed = RainSettings.preset("paper").updated(
        generation={"temperature": temperature}, search={"candidate_temperature": temperature or 1e-300}
    )
    assert isinstance(changed.search, PaperSettings)
    assert changed.generation.temperature == changed.search.candidate_temperature == 0.01
    assert changed.updated(generation={"temperature": 0.02}).generation.temperature == 0.02


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_every_number_is_finite(value: float):
    """Field by field: whatever takes a fraction takes no infinity, and nothing that is no number."""
    fields = [
        (model, name)
        for model in (
            Criterion,
            Calibration,
            ServerLimits,
            GenerationSettings,
            SimilaritySettings,
            AdditionSettings,
            ReadAndRewindSettings,
            KeepDraftsSettings,
            PaperSettings,
        )
        for name, field in model.model_fields.items()
        if "float" in str(field.annotation)
    ]
    assert len(fields) >= 20
    for model, name in fields:
        with pytest.raises(ValidationError, match=name):
            model.model_validate({name: value})


OLD = {
    "commit": ({"commit": "visits", "width": 3}, {"strategy": "paper", "width": 3}),
    "expansion": (
        {"expansion": "simulations", "guided": False},
        {"strategy": "keep_drafts", "guided": False},
    ),
    "both": ({"expansion": "candidates", "commit": "visits"}, {"strategy": "paper"}),
    "foresight": ({"foresight": 0}, {"prefetch": False}),
    "foresight by default": ({"foresight": 4}, {}),
    "foresight of the paper": ({"commit": "visits", "foresight": 7}, {"strategy": "paper", "prefetch": 7}),
    "a whole record": (
        {"expansion": "simulations", "commit": "verdict", "width": 9, "root_mixing": 0.5, "addition": None},
        {"strategy": "keep_drafts"},
    ),
}


@pytest.mark.parametrize(("old", "new"), OLD.values(), ids=OLD)
def test_old_names_are_accepted_and_the_warning_names_the_new(old: dict[str, Any], new: dict[str, Any]):
    expected = RainSettings.model_validate({"search": new})
    for make in (
        lambda: RainSettings.model_validate({"search": old}),
        lambda: RainSettings().updated(search=old),
        lambda: RainSettings.from_data({"search": old}),
    ):
        with pytest.warns(DeprecationWarning) as caught:
            made = make()
        assert made == expected and made.hash == expected.hash
        assert caught[0].filename == __file__, "it does not point at the caller"
        said = str(caught[0].message)
        assert all(f"search.{name}" in said for name in old if name in ("commit", "expansion", "foresight"))
        assert "search.strategy='" in said or "search.prefetch" in said


def test_old_names_change_the_preset_that_they_are_laid_over():
    with pytest.warns(DeprecationWarning, match=r"search\.foresight is deprecated: use search\.prefetch"):
        changed = RainSettings.preset("paper").updated(search={"foresight": 2})
    assert changed == RainSettings.preset("paper").updated(search={"prefetch": 2})


def test_another_strategy_keeps_the_common_fields_only():
    paper = RainSettings.preset("paper").updated(search={"iterations": 7})
    changed = paper.updated(search={"strategy": "keep_drafts", "widening": 2.0})
    assert isinstance(changed.search, KeepDraftsSettings)
    assert (changed.search.iterations, changed.search.widening) == (7, 2.0)
    assert changed.search.token_set_lengths == paper.search.token_set_lengths
    back = changed.updated(search={"strategy": "paper"})
    assert isinstance(back.search, PaperSettings)
    assert back.search.min_visits == 0  # the field's default, not the preset's


def test_settings_come_back_from_their_own_data():
    for name in ("default", "paper"):
        settings = RainSettings.preset(name)
        assert RainSettings.from_data(settings.data()) == settings
        assert RainSettings.model_validate_json(settings.model_dump_json()) == settings
