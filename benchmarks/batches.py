"""How often a request with a seed has another answer alone, in a batch of 8, streamed, or as a coroutine.

    python -m benchmarks.batches [--requests 500] [--tokens 12] [--model FILE.gguf] [--plain]

Each way begins with an empty cache. An answer differs if its text is not the same, character by character.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.meter import empty
from benchmarks.scenarios import OPENINGS
from rain_llm import Rain, RainSettings

AT_ONCE = 8


WAYS = ("in a batch of 8", "streamed", "8 coroutines")


def flips(
    rain: Rain, requests: int, guarded: bool = True, prompts: Sequence[str] = OPENINGS
) -> dict[str, int]:
    """Return how many answers of each way differ from those that were computed alone.

    Args:
        requests: how many, in batches of 8; each batch has a seed of its own.
        guarded: search; else plain generation.
    """
    found = dict.fromkeys(WAYS, 0)
    for start in range(0, requests, AT_ONCE):
        some = [prompts[i % len(prompts)] for i in range(start, min(requests, start + AT_ONCE))]
        alone, *others = _texts(rain, some, start // AT_ONCE, guarded)
        for way, texts in zip(WAYS, others, strict=True):
            found[way] += sum(text != same for text, same in zip(texts, alone, strict=True))
        print(f"{start + len(some)} of {requests}: {found}", file=sys.stderr, flush=True)
    return found


def _texts(rain: Rain, prompts: list[str], seed: int, guarded: bool) -> list[list[str]]:
    """Return the answers to all prompts, computed one by one, and in each of the ways."""
    settings = rain.settings.updated(generation={"seed": seed})
    alone = rain.generate if guarded else rain.plain
    batch = rain.generate_batch if guarded else rain.plain_batch
    stream = rain.stream if guarded else rain.plain_stream
    astream = rain.astream if guarded else rain.plain_astream

    async def read(prompt: str) -> str:
        return "".join([step.text async for step in astream(prompt, settings=settings)])

    async def together() -> list[str]:
        return list(await asyncio.gather(*map(read, prompts)))

    ways: tuple[Callable[[], list[str]], ...] = (
        lambda: [alone(prompt, settings=settings).text for prompt in prompts],
        lambda: [result.text for result in batch(prompts, settings=settings)],
        lambda: ["".join(step.text for step in stream(prompt, settings=settings)) for prompt in prompts],
        lambda: asyncio.run(together()),
    )
    found = []
    for way in ways:
        empty(rain.runtime.writer)
        found.append(way())
    return found


def main() -> None:
    """Count, and print one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=12, help="longest answer (default 12)")
    parser.add_argument("--model", type=Path, help="a GGUF file; else the embedded model")
    parser.add_argument("--plain", action="store_true", help="without the search")
    options = parser.parse_args()
    settings = RainSettings(on_unsafe="best").updated(generation={"max_new_tokens": options.tokens})
    if options.model:
        settings = settings.updated(model={"name": str(options.model)})
    found = flips(Rain(settings), options.requests, not options.plain)
    print(json.dumps({"requests": options.requests, "tokens": options.tokens, "other answers": found}))


if __name__ == "__main__":
    main()
