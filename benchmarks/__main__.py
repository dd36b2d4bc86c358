"""What an answer costs, and whether it keeps to the bars: one table, one list of figures.

    python -m benchmarks [--quick] [--only table,paper-fine] [--data FOLDER] [--out build/bench]

Counts are exact and repeatable. CPU time is given only as a ratio within this run: seconds of one
machine say nothing about another. Nothing is fetched; the embedded model writes and judges.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks import report, table
from benchmarks.scenarios import SCENARIOS, Options, Skipped

NAMES = ("table", *SCENARIOS)


def _names(value: str) -> list[str]:
    chosen = value.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: there are {', '.join(NAMES)}")
    return chosen


def about(options: argparse.Namespace) -> dict[str, object]:
    """Tell what the figures were measured with."""
    import torch
    import transformers

    return {
        "model": "embedded:SmolLM2-135M-Instruct",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "quick": options.quick,
        "repeat": options.repeat,
    }


def main() -> None:
    """Measure, print, and write into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_names, default=list(NAMES), help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="shorter answers and fewer of them")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of what is timed (default 5)")
    parser.add_argument("--tokens", type=int, default=16, help="longest answer in the table (default 16)")
    parser.add_argument("--data", type=Path, help="folder with the public prompts, for 'mixed'")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="default build/bench")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = Options(options.quick, options.repeat, options.data)
    rows, figures, notes = [], [], []
    for name in options.only:
        began = time.perf_counter()
        try:
            if name == "table":
                rows = table.measure(options.tokens, options.repeat)
            else:
                figures += SCENARIOS[name](chosen)
        except Skipped as reason:
            notes.append(f"{name}: skipped, {reason}.")
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    record = report.data(rows, figures, notes, about(options))
    text = report.markdown(rows, figures, notes)
    print(text)
    for note in report.write(options.out, text, record, rows):
        print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
