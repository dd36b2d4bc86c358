"""What an answer costs, and whether it keeps to the bars: one table, one list of figures.

    python -m benchmarks [--quick] [--only engines,paper-fine] [--model FILE.gguf] [--data FOLDER]

``engines`` is the part of the table without RAIN's searches. Counts are exact and repeatable; compare times
only within one run. Nothing is fetched; the embedded model writes and judges, or in the table and its
engines a GGUF file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import report, table
from benchmarks.scenarios import SCENARIOS, Figure, Options, Skipped

NAMES = ("table", "engines", *SCENARIOS)


def _names(value: str) -> list[str]:
    chosen = value.split(",")
    if unknown := [name for name in chosen if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: there are {', '.join(NAMES)}")
    return chosen


def about(options: argparse.Namespace) -> dict[str, object]:
    """Tell what the figures were measured with."""
    return {
        "model": options.model.name if options.model else "embedded:SmolLM2-135M-Instruct",
        "python": platform.python_version(),
        **{package: version(package) for package in ("xllamacpp", "numpy", "torch", "transformers")},
        "cores": os.cpu_count(),
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
    usual = [name for name in NAMES if name != "engines"]
    parser.add_argument("--only", type=_names, default=usual, help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="shorter answers and fewer of them")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions of what is timed (default 5)")
    parser.add_argument(
        "--tokens", type=int, default=32, help="length of the texts in the table (default 32)"
    )
    parser.add_argument("--model", type=Path, help="a GGUF file, for the table and 'engines'")
    parser.add_argument("--data", type=Path, help="folder with the public prompts, for 'mixed'")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="default build/bench")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = Options(options.quick, options.repeat, options.data, options.model)
    rows: list[table.Row] = []
    figures: list[Figure] = []
    notes: list[str] = []
    for name in options.only:
        began = time.perf_counter()
        try:
            if name in ("table", "engines"):
                rows, found = table.measure(chosen, options.tokens, methods=name == "table")
                figures += found
            else:
                figures += SCENARIOS[name](chosen)
        except Skipped as reason:
            notes.append(f"{name}: skipped, {reason}.")
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    record = report.data(rows, figures, notes, about(options))
    text = report.markdown(rows, figures, notes)
    print(text)
    report.write(options.out, text, record)


if __name__ == "__main__":
    main()
