"""What needs neither torch nor transformers: the default model, and each command on it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "huggingface_hub", "tokenizers", "sentence_transformers", "sklearn")
_RUN = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY}))  # an import of these fails, as if they were not installed
from rain_llm import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def rain(*args: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process where the libraries of the extras cannot be imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", _RUN, *args], capture_output=True, text=True, timeout=100, env=environment
    )


@pytest.mark.parametrize(
    "args", [["--help"], ["demo", "--help"], ["doctor", "--help"], ["distil", "--help"], ["eval", "--help"]]
)
def test_help_needs_none_of_them(args):
    done = rain(*args)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_that_needs_them_is_an_error_of_one_line():
    done = rain("doctor", "owner/name", "--criterion", "civility")
    assert done.returncode == 1
    assert "torch is not installed: pip install 'rain-llm[transformers]'\n" in done.stderr


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_answers_without_them():
    done = rain("generate", "The film is", "--criterion", "civility", "--max-new-tokens", "4", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.real
@pytest.mark.slow
def test_nothing_imports_them_where_they_are_installed():
    done = subprocess.run(
        [sys.executable, "-c", _ANSWER], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout == "[]\n"


_ANSWER = f"""
import sys
import rain_llm.cli
from rain_llm import Rain, RainSettings
writing = {{"max_new_tokens": 4, "chat_template": True}}
result = Rain(RainSettings(generation=writing, evaluation={{"criteria": ["civility"]}})).generate("Hello")
assert result.usage.evaluation_tokens
print([name for name in {HEAVY} if name in sys.modules])
"""
