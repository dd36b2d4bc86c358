"""How llama.cpp's library is opened: its threads, and what is said if it cannot be opened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rain_llm import ModelError
from rain_llm.models.local import llama_library

OPEN = """
import os
from rain_llm.models.local.llama_library import open_library
open_library()
print(dict(os.environ))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
@pytest.mark.parametrize(
    ("given", "count"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_soon_sleep_unless_the_user_says_so(given, count):
    base = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    shown = base | given | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", OPEN], env=shown, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (f"GOMP_SPINCOUNT = '{count}'" in done.stderr) is (count is not None)
    assert "GOMP_SPINCOUNT = '1000'" not in done.stderr or count == "1000"
    assert {name for name in eval(done.stdout) if "SPIN" in name} == {*given} & {"GOMP_SPINCOUNT"}


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        (
            "libgomp.so.1: cannot open shared object file",
            r"install libgomp \(Debian: apt-get install libgomp1\)",
        ),
        ("invalid ELF header", "pip install --upgrade xllamacpp"),
    ],
)
def test_a_library_that_cannot_be_opened_names_the_remedy(message, remedy, monkeypatch):
    def fail(path: Path) -> None:
        raise OSError(message)

    monkeypatch.setattr(llama_library, "_open", fail)
    with pytest.raises(ModelError, match=rf"{message}\): {remedy}"):
        llama_library.open_library.__wrapped__()
