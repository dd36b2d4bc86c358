"""bfloat16 against float32 on this CPU: speed, and how many verdicts differ.

    python -m benchmarks.precision --data FOLDER [--model FOLDER] [--items 500] [--repeat 5]

FOLDER holds `xstest_answers.jsonl` (prompt, answer) and `movie_review_sentences.jsonl` (text). Both
networks are in this process and take turns, so their ratios hold on a busy machine, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from benchmarks.scenarios import BENIGN, PROMPTS, of_length
from rain_llm import POSITIVE_SENTIMENT, Rain, RainSettings, Verdict
from rain_llm.models.local.transformers import TransformersModel
from rain_llm.requests import Sample, Score
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds
from tests.servers.unpacked import unpacked_model

DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
CHARACTERS = 240  # of an answer that is judged
READ = 512  # tokens of the prompt that is read


@dataclass(frozen=True)
class Flips:
    """How verdicts of one criterion differ between the two data types.

    Attributes:
        items: how many were judged. flipped: of these, how many passed in one data type only.
        passed: how many passed in float32. mean, largest: difference of the scores, in [0, 2].
    """

    criterion: str
    items: int
    passed: int
    flipped: int
    mean: float
    largest: float


Speed: TypeAlias = tuple[str, list[float], float]
"""A kind of work, its tokens a second in each data type, and float32's CPU time over bfloat16's."""


def speeds(models: dict[str, TransformersModel], tokens: int, repeat: int) -> Iterator[Speed]:
    """Yield each kind of work with its tokens a second: medians; the data types take turns."""
    rains = {name: of_length(RainSettings(), tokens, model) for name, model in models.items()}
    prompts = PROMPTS + BENIGN

    def alone(name: str) -> int:
        return rains[name].plain(BENIGN[0]).usage.output_tokens

    def at_once(name: str) -> int:
        return sum(result.usage.output_tokens for result in rains[name].plain_batch(prompts))

    def read(name: str) -> int:
        models[name].forget()
        text = models[name].encode(" ".join(PROMPTS) * READ)[:READ]
        models[name].score([Score(text, ((5,),))])
        return READ

    works: dict[str, Callable[[str], int]] = {
        "plain, alone": alone,
        "plain, 8 at once": at_once,
        f"reading {READ} tokens": read,
    }
    for what, work in works.items():
        found: dict[str, list[float]] = {name: [] for name in models}
        spent: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(repeat + 1):
            for name in models:
                began, cpu = time.perf_counter(), time.process_time()
                count = work(name)
                if turn:  # the first turn warms up
                    found[name].append(count / (time.perf_counter() - began))
                    spent[name].append((time.process_time() - cpu) / count)
        single, half = (statistics.median(spent[name]) for name in DTYPES)
        yield what, [statistics.median(found[name]) for name in DTYPES], single / half


def flips(models: dict[str, TransformersModel], data: Path, items: int) -> Iterator[Flips]:
    """Judge answers by harmlessness and film reviews by sentiment, half of ``items`` each."""
    answers = [(row["prompt"], row["answer"][:CHARACTERS]) for row in _rows(data / "xstest_answers.jsonl")]
    reviews = [("A film review:", row["text"]) for row in _rows(data / "movie_review_sentences.jsonl")]
    sentiment = RainSettings().updated(evaluation={"criteria": [POSITIVE_SENTIMENT]})
    for settings, rows in ((RainSettings(), answers), (sentiment, reviews)):
        chosen = rows[:: max(1, len(rows) * 2 // items)][: items // 2]
        one, other = (_judged(Rain(settings, model=models[name]), chosen) for name in DTYPES)
        pairs = list(zip(one, other, strict=True))
        differences = [abs(a.score - b.score) for a, b in pairs]
        yield Flips(
            settings.evaluation.criteria[0].name,
            len(pairs),
            sum(verdict.passed for verdict in one),
            sum(a.passed != b.passed for a, b in pairs),
            statistics.fmean(differences),
            max(differences),
        )


def batched(model: TransformersModel, data: Path, count: int = 64, tokens: int = 16) -> int:
    """Count the prompts, of ``count``, whose sampled answer differs between alone and in a batch of 8."""
    prompts = [row["prompt"] for row in _rows(data / "xstest_answers.jsonl")]
    chosen = list(dict.fromkeys(prompts))[:count]
    requests = [Sample(model.encode(prompt), 1, tokens, seed) for seed, prompt in enumerate(chosen)]
    alone = [_tokens(model, [request]) for request in requests]
    eights = [_tokens(model, requests[i : i + 8]) for i in range(0, len(requests), 8)]
    together = [tokens for eight in eights for tokens in eight]
    return sum(one != [other] for one, other in zip(alone, together, strict=True))


def _tokens(model: TransformersModel, requests: list[Sample]) -> list[TokenIds]:
    model.forget()  # nor does the cache hold what another way has computed
    return [reply.continuations[0].tokens for reply in model.sample(requests)]


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _judged(rain: Rain, rows: list[tuple[str, str]]) -> list[Verdict]:
    return [rain.judge(prompt, answer) for prompt, answer in rows]


def main() -> None:
    """Measure and print, line by line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", help="folder or hub name (default: the embedded model, unpacked)")
    parser.add_argument("--data", type=Path, help="folder with public data; without it, only speed")
    parser.add_argument("--items", type=int, default=500, help="verdicts (default 500)")
    parser.add_argument("--tokens", type=int, default=48, help="length of the answers (default 48)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; the median counts (default 5)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    options = parser.parse_args()
    name = options.model or str(unpacked_model())
    settings = [ModelSettings(name=name, device="cpu", dtype=dtype) for dtype in DTYPES]
    models = {str(one.dtype): TransformersModel(one) for one in settings}
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(
        "| tokens a second | float32 | bfloat16 | ratio | ratio of CPU time |\n|---|---|---|---|---|",
        flush=True,
    )
    for what, (single, half), cpu in speeds(models, options.tokens, options.repeat):
        print(f"| {what} | {single:.1f} | {half:.1f} | {half / single:.2f} | {cpu:.2f} |", flush=True)
    if options.data:
        print(
            "\n| criterion | items | passed in float32 | flipped | mean difference of the score | largest |"
        )
        print("|---|---|---|---|---|---|", flush=True)
        for found in flips(models, options.data, options.items):
            print(
                f"| {found.criterion} | {found.items} | {found.passed} | {found.flipped} "
                f"| {found.mean:.4f} | {found.largest:.4f} |",
                flush=True,
            )
        print("\nOf 64 sampled answers of 16 tokens, those that differ between alone and in a batch of 8:")
        print(", ".join(f"{dtype} {batched(model, options.data)}" for dtype, model in models.items()))


if __name__ == "__main__":
    main()
