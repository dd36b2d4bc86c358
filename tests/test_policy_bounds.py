"""A policy file is read within bounds of time and memory, whatever stands in it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rain_llm import Criterion, RainSettings, SettingsError
from rain_llm.bounds import CRITERIA, POLICY_BYTES
from tests.examples import examples

CRITERION = "evaluation: {{criteria: {{name: a, labels: [[a, b]], frames: [{frames}]}}}}"
BOMB = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))

CASES: dict[str, tuple[str, str]] = {
    "bytes": ("refusal: " + "x" * POLICY_BYTES, f"more than {POLICY_BYTES:,} bytes"),
    "unknown keys": ("".join(f"k{i}: v\n" for i in range(30_000)), "more than 20,000 keys and values"),
    "fewer unknown keys": ("".join(f"k{i}: v\n" for i in range(3_000)), "and 2,980 more"),
    "wide": (f"search: {{token_set_lengths: [{'1, ' * 300_000}]}}", "more than 20,000 keys and values"),
    "deep": ("a: " + "[" * 500_000, "too deeply nested"),
    "deep mappings": ("a: " + "{a: " * 200_000, "too deeply nested"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(900)), "too deeply nested"),
    "merges of merges": (f"a0: &a0 {{x: 1}}\n{BOMB}", "with its aliases"),
    "aliases": (
        f"a: &a {{labels: [{'[a, b], ' * 2000}]}}\nevaluation: {{criteria: [{'*a, ' * 900}]}}",
        "with its aliases",
    ),
    "unknown criteria": (f"evaluation: {{criteria: [{'x, ' * 3_000}]}}", f"more than {CRITERIA}"),
    "labels": (f"evaluation: {{criteria: {{name: a, labels: [{'[a, b], ' * 2000}]}}}}", "at most 1000"),
    "number to the base of 60": (f"search: {{width: {'1:' * 200_000}1}}", "a number cannot be read"),
    "number": (f"search: {{width: {'9' * 900_000}}}", "a number cannot be read"),
    "format": (CRITERION.format(frames="'{text:>300000000}'"), "without a format or an index"),
    "placeholders": (CRITERION.format(frames=f"'{'{text}' * 9000}'"), "more than 32"),
    "long frame": (CRITERION.format(frames=f"'{'x' * 70_000}{{text}}'"), "at most 65,536 bytes"),
}

READ = """
import json, sys, time
from rain_llm import RainSettings, SettingsError
found = {}
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        RainSettings.from_file(path)
        said = ""
    except SettingsError as error:
        said = str(error)
    found[path] = time.process_time() - began, said
print(json.dumps(found))
"""


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))


@pytest.mark.slow
def test_no_file_takes_long_or_much(tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name.replace(' ', '-')}.yaml" for name in CASES}
    for name, file in files.items():
        file.write_text(CASES[name][0], encoding="utf-8")
    command = [sys.executable, "-c", READ, *map(str, files.values())]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=_limit)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout)
    for name, file in files.items():
        seconds, said = found[str(file)]
        assert CASES[name][1] in said, name
        assert len(said) < 10_000, name
        assert seconds < 5, (name, seconds)


PIECES = [
    "{",
    "}",
    "{{",
    "}}",
    "text",
    "answer",
    ":",
    "!r",
    "!",
    ">9",
    "[0]",
    ".x",
    "0",
    " ",
    "{text}",
]


@settings(max_examples=examples(150), deadline=None, derandomize=True)
@given(template=st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_a_template_holds_nothing_but_plain_names(template: str) -> None:
    try:
        Criterion(name="a", labels=(("a", "b"),), frames=(template,))
    except ValueError:
        return
    plain = template.replace("{{", "").replace("}}", "")
    for name in ("text", "answer", "query", "context"):
        plain = plain.replace(f"{{{name}}}", "").replace(f"{{{name}:}}", "")
    assert not set(plain) & set("{}")
    assert len(template.format(**dict.fromkeys(("text", "answer", "query", "context"), ""))) <= len(template)


@pytest.mark.parametrize("place", ["good", "bad"])
def test_the_contexts_of_a_channel_hold_nothing_else_either(place: str) -> None:
    channel = {"good": "{query}", "bad": "{query}", place: "{query:>300000000}"}
    with pytest.raises(SettingsError, match="without a format or an index"):
        RainSettings().updated(evaluation={"criteria": [{"extends": "civility", "channel": channel}]})


def test_other_texts_of_a_criterion_are_no_templates() -> None:
    text = "{text:>300000000} {0} {"
    criterion = Criterion(
        name="a",
        labels=((text, "b"),),
        choice={"question": text, "good": text, "bad": "b"},
        guard={"cue": text},
        guide=text,
    )
    assert criterion.guide == text
