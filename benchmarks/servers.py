"""What a search on vLLM costs: how much of its prompts is cached there, and what many at once gain.

    python -m benchmarks.servers --python .venv-vllm/bin/python [--dtype bfloat16] [--out build/bench-servers]

Starts vLLM on the CPU with the embedded model. Token counts are the server's own. Speed is given only as
a ratio within this run: the same prompts all at once and one after another, both on an empty cache.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks import report
from benchmarks.meter import output
from benchmarks.scenarios import Figure
from rain_llm import Rain, RainResult, RainSettings
from rain_llm.evals.tasks import TASKS
from rain_llm.models.servers.completions import CompletionsModel
from rain_llm.types import Message, Prompt
from tests.servers.unpacked import unpacked_model
from tests.servers.vllm import BLOCK, PYTHON_VARIABLE, vllm_python, vllm_server

AT_ONCE = 16
OPENINGS = [item.prompt for item in TASKS["sentiment"].items(split="dev", first=AT_ONCE)]
"""Short texts to go on with: of a few tokens, less than a block of the prefix cache."""


def documents(count: int, passages: int = 4) -> list[list[Message]]:
    """Return chats as of retrieval: some passages of 100 tokens each, and a question about the first."""
    items = TASKS["groundedness"].items()
    chats = []
    for place in range(count):
        some = [items[(place * passages + i) % len(items)] for i in range(passages)]
        shown = "\n\n".join(item.context for item in some)
        question = f"Answer the question by these passages.\n\n{shown}\n\nQuestion: {some[0].prompt}"
        chats.append(
            [Message("system", "You help the readers of a library. Be brief."), Message("user", question)]
        )
    return chats


@dataclass(frozen=True)
class Load:
    """What some answers asked of a server.

    Attributes:
        results: the answers. wall, cpu: seconds, the latter of this process.
        requests: over HTTP. prompt: tokens in all prompts; cached: of these, as each reply tells it.
        looked_up, hits: the same by the server's own counters, which know of all prompts of a batch.
    """

    results: Sequence[RainResult]
    wall: float
    cpu: float
    requests: int
    prompt: int
    cached: int
    looked_up: int
    hits: int

    @property
    def output(self) -> int:
        """Tokens of the answers."""
        return output(self.results)

    @property
    def speed(self) -> float:
        """Tokens of the answers in a second."""
        return self.output / self.wall


def on_server(url: str, criterion: str, tokens: int) -> Rain:
    """Make a Rain whose model is on a server, and let it find its calibration."""
    settings = RainSettings().updated(
        model={"base_url": url},
        evaluation={"criteria": [criterion]},
        generation={"max_new_tokens": tokens, "seed": 0},
        on_unsafe="best",  # a refusal would end the answer that is timed
    )
    rain = Rain(settings)
    for prompt in ("Hello there", [Message("user", "Hello there")]):
        rain.generate(prompt, settings=settings.updated(generation={"max_new_tokens": 2}))
    return rain


def load(rain: Rain, prompts: Sequence[Prompt], at_once: bool) -> Load:
    """Answer the prompts on an empty prefix cache, and measure what that asks of the server."""
    httpx.post(f"{rain.settings.model.base_url[0]}/reset_prefix_cache", trust_env=False).raise_for_status()
    before = _counters(rain)
    began = time.perf_counter(), time.process_time()
    results = rain.generate_batch(prompts) if at_once else [rain.generate(prompt) for prompt in prompts]
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    counted = (now - then for now, then in zip(_counters(rain), before, strict=True))
    return Load(results, wall, cpu, *counted)


def _counters(rain: Rain) -> tuple[int, ...]:
    """Return what has been counted so far: the last five fields of a load."""
    model = rain.runtime.writer
    assert isinstance(model, CompletionsModel)
    totals = model.totals
    page = httpx.get(f"{rain.settings.model.base_url[0]}/metrics", trust_env=False).text
    found = dict(re.findall(r"^vllm:prefix_cache_(queries|hits)_total\{.*\} (\S+)$", page, re.MULTILINE))
    server = int(float(found["queries"])), int(float(found["hits"]))
    return totals.http.requests, totals.prompt_tokens, totals.cached_tokens, *server


# --- the figures ----------------------------------------------------------------------------------------


def _figures(name: str, found: Load, bar: float | None) -> list[Figure]:
    """Say what a load came to, all of it for each token of the answers."""
    tokens = max(1, found.output)
    return [
        Figure(
            name, "prompt tokens found in the cache, by the replies", found.cached / found.prompt, bar, True
        ),
        Figure(name, "the same by the server's counters", found.hits / found.looked_up),
        Figure(name, "prompt tokens that were not, per output token", (found.prompt - found.cached) / tokens),
        Figure(name, "requests per output token", found.requests / tokens),
        Figure(name, "CPU of the client, cores", found.cpu / found.wall),
    ]


def measure(url: str) -> list[Figure]:
    """Measure documents and openings, one search and many at once."""
    figures = []
    kinds: dict[str, tuple[str, Sequence[Prompt], int, float | None]] = {
        "documents": ("harmlessness", documents(AT_ONCE + 1), 128, 0.85),
        "documents, short answers": ("harmlessness", documents(AT_ONCE), 48, 0.85),
        "openings": ("positive_sentiment", OPENINGS, 32, None),
    }
    for name, (criterion, prompts, tokens, bar) in kinds.items():
        rain = on_server(url, criterion, tokens)
        many = prompts[:AT_ONCE]
        if len(prompts) > AT_ONCE:  # one that the cache does not know
            figures += _figures(f"{name}, one", load(rain, prompts[AT_ONCE:], at_once=False), bar)
        together = load(rain, many, at_once=True)
        alone = load(rain, many, at_once=False)
        figures += _figures(f"{name}, {AT_ONCE} at once", together, bar)
        ratio = together.speed / alone.speed
        figures.append(Figure(f"{name}, {AT_ONCE} at once", "speed over one after another", ratio, 3.0, True))
    return figures


def main() -> None:
    """Start vLLM, measure, print, and write into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--python", type=Path, default=vllm_python(), help="interpreter that has vLLM")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--out", type=Path, default=Path("build/bench-servers"))
    options = parser.parse_args()
    if options.python is None:
        parser.error(f"name vLLM's interpreter: --python, or the variable {PYTHON_VARIABLE}")
    with vllm_server(options.python, unpacked_model(), dtype=options.dtype) as server:
        figures = measure(server.url)
    about = {"model": "embedded:SmolLM2-135M-Instruct", "dtype": options.dtype, "block": BLOCK}
    text = report.markdown([], figures, [])
    print(text)
    report.write(options.out, text, report.data([], figures, [], about))


if __name__ == "__main__":
    main()
