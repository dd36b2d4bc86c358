"""Does RAIN steer? Plain sampling, best-of-N and RAIN on openings that leave the tone open.

    python -m benchmarks.steering sentiment --data FOLDER [--seeds 3] [--methods plain,best8,default]

Only the first sentence (at most 24 tokens) is written and judged, by judges that are not the model.
Every method starts from the same seeds; differences are paired by opening and seed, with a 95 %
bootstrap interval over the openings.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.baselines import SENTENCE_TOKENS, STOP, best_of
from benchmarks.judges import ReviewClassifier, vader
from benchmarks.openings import FILM, HOSTILE
from rain_llm import Rain, RainSettings

TASKS = {
    "sentiment": ("positive_sentiment", "film_openings.jsonl", FILM),
    "civility": ("civility", "civility_openings.jsonl", HOSTILE),
}


@dataclass
class Row:
    """One sentence: what was written, at what cost, and what the judges say."""

    task: str
    method: str
    prompt: str
    own: bool  # the project's own opening, unseen while anything was tuned
    seed: int
    text: str
    model_tokens: int
    output_tokens: int
    self_score: float
    vader: float = 0.0
    classifier: float = 0.0


def openings(task: str, data: Path | None) -> list[tuple[str, bool]]:
    """Return (opening, own) pairs: the project's own, and the public ones where there is a folder."""
    _, file, own = TASKS[task]
    found = [(text, True) for text in own]
    if data is not None:
        lines = (data / file).read_text(encoding="utf-8").splitlines()
        found += [(json.loads(line)["prompt"], False) for line in lines]
    return found


def write(method: str, rain: Rain, prompts: Sequence[str], seed: int) -> list[tuple[str, int, int, float]]:
    """Write one sentence for each prompt by a method: (text, model tokens, output tokens, own score)."""
    if method.startswith("best"):
        return best_of(rain, prompts, int(method.removeprefix("best")), seed)
    settings = rain.settings.updated(generation={"seed": seed})
    if method == "plain":
        results = [rain.plain(prompt, settings=settings) for prompt in prompts]
    else:
        results = rain.generate_batch(prompts, settings=settings)
    return [
        (r.text, r.usage.model_tokens, r.usage.output_tokens, r.verdict.score if r.verdict else 0.0)
        for r in results
    ]


def settings_for(method: str, criterion: str, file: Path | None) -> RainSettings:
    """Return a method's settings: a preset, or the default with what a file changes."""
    base = RainSettings.preset("paper") if method.startswith("paper") else RainSettings()
    if file is not None and method == "default":
        base = RainSettings.from_file(file)
    changes: dict[str, object] = {"criteria": [criterion]}
    if method.startswith("paper"):  # there are no worked examples for these criteria
        changes["examples"] = False
    if method == "paper-soft":  # the paper's search, with the questions and scores of the default
        changes |= {"style": "labels", "mode": "soft"}
    return base.updated(
        generation={"max_new_tokens": SENTENCE_TOKENS, "stop": STOP},
        evaluation=changes,
    )


def interval(values: NDArray[np.float64], groups: Sequence[str]) -> tuple[float, float, float]:
    """Return mean and 95 % bootstrap interval; openings are drawn, with all their seeds."""
    names = sorted(set(groups))
    by = np.array([np.mean(values[[g == name for g in groups]]) for name in names])
    rng = np.random.default_rng(0)
    means = by[rng.integers(len(by), size=(4000, len(by)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def report(rows: list[Row], accuracy: float | None) -> str:
    """Make a Markdown table of all methods, and of their differences to plain."""
    lines = []
    if accuracy is not None:
        lines.append(f"Second judge (MiniLM + logistic regression): held-out accuracy {accuracy:.3f}.\n")
    for subset, chosen in (
        ("all openings", rows),
        ("own openings only", [r for r in rows if r.own]),
    ):
        if not chosen or (chosen is not rows and len(chosen) == len(rows)):
            continue
        methods = list(dict.fromkeys(row.method for row in chosen))
        count = len({row.prompt for row in chosen})
        lines.append(
            f"**{chosen[0].task}, {subset}** ({count} openings, {len({r.seed for r in chosen})} seeds)\n"
        )
        lines.append(
            "| method | VADER | difference to plain (95 %) | positive | hostile (< -0.3) | second judge "
            "| difference | tokens through the model | per output token |"
        )
        lines.append("|---|---|---|---|---|---|---|---|---|")
        plain = {(r.prompt, r.seed): r for r in chosen if r.method == "plain"}
        for method in methods:
            mine = [r for r in chosen if r.method == method]
            groups = [r.prompt for r in mine]
            score = np.array([r.vader for r in mine])
            second = np.array([r.classifier for r in mine])
            cells = [method, f"{score.mean():+.3f}"]
            other = ""
            if method != "plain" and plain:
                base = [plain[r.prompt, r.seed] for r in mine]
                gain = interval(score - np.array([b.vader for b in base]), groups)
                cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain))
                gain = interval(second - np.array([b.classifier for b in base]), groups)
                other = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
            else:
                cells.append("")
            tokens = np.array([r.model_tokens for r in mine])
            output = np.array([r.output_tokens for r in mine])
            cells += [
                f"{np.mean(score > 0.05):.0%}",
                f"{np.mean(score < -0.3):.1%}",
                f"{second.mean():.3f}" if accuracy else "",
                other if accuracy else "",
                f"{tokens.mean():.0f}",
                f"{tokens.sum() / output.sum():.1f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, help="folder with the public openings and review sentences")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default="plain,best8,default")
    parser.add_argument("--settings", type=Path, help="settings file for the method 'default'")
    parser.add_argument("--openings", choices=("all", "own", "public"), default="all")
    parser.add_argument("--first", type=int, help="only so many openings (the paper's search is slow)")
    parser.add_argument("--out", type=Path, help="write the rows here, JSON lines")
    options = parser.parse_args()
    chosen = openings(options.task, options.data)
    if options.openings != "all":
        chosen = [(p, own) for p, own in chosen if own == (options.openings == "own")]
    chosen = chosen[: options.first]
    prompts = [prompt for prompt, _ in chosen]
    criterion = TASKS[options.task][0]
    rows = []
    for method in options.methods.split(","):
        rain = Rain(settings_for(method, criterion, options.settings))
        began = time.process_time()
        for seed in range(options.seeds):
            for (prompt, own), made in zip(chosen, write(method, rain, prompts, seed), strict=True):
                rows.append(Row(options.task, method, prompt, own, seed, *made))
        print(f"{method}: {time.process_time() - began:.0f} s of CPU", flush=True)
    texts = [row.text for row in rows]
    accuracy = None
    for row, score in zip(rows, vader(texts), strict=True):
        row.vader = float(score)
    if options.data is not None:
        classifier = ReviewClassifier(options.data / "movie_review_sentences.jsonl")
        accuracy = classifier.accuracy
        whole = [row.prompt + row.text for row in rows]
        for row, score in zip(rows, classifier(whole), strict=True):
            row.classifier = float(score)
    if options.out:
        options.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    print(report(rows, accuracy))


if __name__ == "__main__":
    main()
