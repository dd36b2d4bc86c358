"""Measure what the client itself adds when many searches over documents share a server.

    python -m benchmarks.latency [--delay 0.2] [--dialect vllm]

The server is a scripted one: it answers every completion after the same time, however many there are. So many
searches at once can take no longer than the longest of them alone, plus the work of this process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.servers import AT_ONCE, documents
from rain_llm import Rain, RainSettings
from rain_llm.types import Message
from tests.servers.babble import write_tokenizer
from tests.servers.process import Server
from tests.servers.scripted import DIALECTS, control, scripted_server, stats


def rain_on(server: Server, folder: Path) -> Rain:
    """Make a Rain on the server that is connected already."""
    settings = RainSettings().updated(
        model={"base_url": server.url, "tokenizer": str(folder), "limits": {"max_concurrency": 256}},
        evaluation={"criteria": ["harmlessness"]},
        generation={"max_new_tokens": 48, "seed": 0},
        on_unsafe="best",
    )
    rain = Rain(settings)
    rain.generate(
        [Message("user", "Hello there")], settings=settings.updated(generation={"max_new_tokens": 2})
    )
    return rain


def main() -> None:
    """Start the scripted server, answer all at once and one by one, and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--delay", type=float, default=0.2, help="seconds before each reply")
    parser.add_argument("--dialect", choices=DIALECTS, default="vllm")
    options = parser.parse_args()
    prompts = documents(AT_ONCE)
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted_server(options.dialect, context=16_000, slots=256) as server,
    ):
        rain = rain_on(server, write_tokenizer(Path(folder)))
        control(server, delay=options.delay, forget=True)
        began, cpu = time.perf_counter(), time.process_time()
        rain.generate_batch(prompts)
        together, cpu = time.perf_counter() - began, time.process_time() - cpu
        requests = stats(server)["requests"]["/v1/completions"]
        alone = []
        for prompt in prompts:
            began = time.perf_counter()
            rain.generate(prompt)
            alone.append(time.perf_counter() - began)
    print(
        f"{AT_ONCE} searches, {requests} requests: {together:.1f} s at once, {sum(alone):.1f} s one by one, "
        f"{sum(alone) / together:.1f} times as fast (at most {sum(alone) / max(alone):.1f}: the longest one "
        f"takes {max(alone):.1f} s); {cpu:.2f} s of CPU of the client"
    )


if __name__ == "__main__":
    main()
