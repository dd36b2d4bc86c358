"""Fit the probes that come with rain-llm, and print what they reach on answers that are not theirs.

    python -m benchmarks.probes [--data FOLDER] [--model FILE.gguf] [--out FOLDER] [--criterion NAME ...]

They are fitted to the labelled answers that ship; with ``--data``, harmlessness also to those of FOLDER:
``xstest_answers.jsonl`` (XSTest, CC-BY-4.0) and ``jailbreakbench_answers.jsonl`` (MIT).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from rain_llm.doctor.items import read, shipped
from rain_llm.judging import probe
from rain_llm.models.local.llama_cpp import LlamaCppModel
from rain_llm.probing.examining import examine_probe
from rain_llm.probing.fitting import PASS
from rain_llm.probing.report import page
from rain_llm.settings import ModelSettings

CRITERIA = ("harmlessness", "civility", "harmless_actions")
PUBLIC = {"harmlessness": ("xstest_answers.jsonl", "jailbreakbench_answers.jsonl")}
PASSING = {"harmless_actions": 0.99}  # an agent whose call is refused has failed: a suspicion is not enough
EMBEDDED = "smollm2-135m-instruct"
PACKAGE = Path(probe.__file__).parent / "probes"


def main() -> None:
    """Fit, print and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path, default=PACKAGE)
    parser.add_argument("--criterion", nargs="*", default=CRITERIA)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    model = LlamaCppModel(
        ModelSettings(name=str(given.model) if given.model else None, threads=given.threads)
    )
    name = given.model.stem.lower() if given.model else EMBEDDED
    console = Console()
    for criterion in given.criterion:
        items = shipped(criterion)
        for file in PUBLIC.get(criterion, ()) if given.data else ():
            items += read(given.data / file)
        began = time.monotonic()
        passing = PASSING.get(criterion, PASS)
        probed = examine_probe(model, criterion, items, seed=0, passing=passing)
        console.print(f"\n{criterion}, {len(items)} answers, {time.monotonic() - began:.0f} s")
        console.print(page(probed.findings))
        if probed.probe is not None:
            probed.probe.save(given.out / f"{name}.{criterion}.probe.json")


if __name__ == "__main__":
    main()
