"""Large networks on a CUDA device: Llama-3.2-1B- and Llama-3.1-8B-shaped, bfloat16, random weights.

    python -m benchmarks.gpu [--shape 1b,8b] [--tokens 128] [--repeat 3] [--limit 420] [--out build/bench-gpu]

Random weights write nonsense, but each pass costs what it costs with real ones: verdicts are forced.
Nothing is fetched or saved; the weights are made on the device. Each row is written when it is measured,
and the command ends by itself within its limit. Shape ``tiny`` tries the command itself anywhere:
``--device cpu --shape tiny``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.meter import Cost, Meter, output
from benchmarks.networks import build_tokenizer, never_say
from benchmarks.scenarios import OPENINGS, forced, guarded, of_length, plain
from rain_llm import RainSettings
from rain_llm.models.local import transformers as local
from rain_llm.settings import ModelSettings

SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
    },
}
GRACE_S = 30
"""Seconds after the limit that the row in progress may take before the process ends."""

PROMPTS = OPENINGS[:32]


@dataclass
class Report:
    """What was measured of one shape so far.

    Attributes:
        weights: bytes that every pass reads. bandwidth: bytes a second of a copy on this device.
        plain_ms: a token of plain generation. bandwidth_share: of the time that reading the weights
            alone would take. methods: what each method costs. missing: what the limit left out.
    """

    shape: str
    weights: int
    bandwidth: float
    plain_ms: float = 0.0
    bandwidth_share: float = 0.0
    methods: list[Line] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Line:
    """One method: its costs a token of output, in ratio to plain, and its most memory.

    Attributes:
        repetitions: how often it was measured; the median counts.
    """

    method: str
    wall: float
    cpu: float
    tokens: float
    forwards: float
    tokens_per_s: float
    memory: int
    repetitions: int


def build(shape: str, device: str, cache_bytes: int) -> tuple[local.TransformersModel, int]:
    """Make a model of a shape with random weights, on the device, without a file.

    Returns it and the bytes of its weights that a pass reads.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = build_tokenizer(OPENINGS)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = weights_read(network)
    settings = ModelSettings(
        name=f"random-{shape}", device=device, dtype="bfloat16", kv_cache_bytes=cache_bytes
    )
    # The check compares logits by their spread, of which random weights have next to none.
    with (
        mock.patch.object(local, "_load", lambda *_: (tokenizer, network)),
        mock.patch.dict(local._REWIND_TOLERANCE, dict.fromkeys(local._REWIND_TOLERANCE, float("inf"))),
    ):
        model = local.TransformersModel(settings)
    # What is written must be text: only tokens that the tokenizer has, and no end before the limit.
    never_say(network, [0, *range(len(tokenizer), config.vocab_size)])
    return model, weights


def weights_read(network: Any) -> int:
    """Return the bytes of weights that one pass reads: of input embeddings of their own, next to none."""
    total = sum(parameter.nbytes for parameter in network.parameters())
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    return int(total - (0 if embedding.data_ptr() == head.data_ptr() else embedding.nbytes))


def peak_bandwidth(device: str, size: int) -> float:
    """Return bytes a second that a copy of ``size`` bytes reads and writes, the best of ten."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def measure(
    shape: str, device: str, tokens: int, repeat: int, until: float, patience_s: float
) -> Iterator[Report]:
    """Measure one shape, and yield the report after each row; every answer has ``tokens`` tokens.

    Args:
        repeat: repetitions of a row.
        until: no row begins after this time, by ``time.monotonic``.
        patience_s: a row that has taken so many seconds is not repeated further.
    """
    import torch

    cuda = device.startswith("cuda")
    bandwidth = peak_bandwidth(device, (1 << 30) if cuda else (64 << 20))
    model, weights = build(shape, device, (16 << 30) if cuda else (64 << 20))
    rain = of_length(RainSettings(on_unsafe="best"), tokens, model)
    report = Report(shape, weights, bandwidth)

    def plainly(count: int) -> Cost:
        with Meter(rain) as meter:
            results = rain.plain_batch(PROMPTS[:count])
        return meter.cost(output(results))

    def with_verdicts(fine: bool, count: int) -> Cost:
        with forced(rain, fine):
            return guarded(rain, PROMPTS[:count], at_once=True)

    works: dict[str, Callable[[], Cost]] = {
        "plain": lambda: plainly(1),
        "RAIN default, all fine": lambda: with_verdicts(True, 1),
        "plain, 32 at once": lambda: plainly(32),
        "all fine, 8 at once": lambda: with_verdicts(True, 8),
        "all fine, 32 at once": lambda: with_verdicts(True, 32),
        "RAIN default, never fine": lambda: with_verdicts(False, 1),  # the longest
    }
    plain(rain, PROMPTS[:1])  # kernels are chosen and loaded at their first use
    base: Cost | None = None
    for method, work in works.items():
        began = time.monotonic()
        if base and began > until:
            report.missing.append(method)
            continue
        tried: list[Cost] = []
        model.cache = type(model.cache)(model.cache.max_bytes)
        before = torch.cuda.memory_allocated() if cuda else 0
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        while len(tried) < repeat and (not tried or time.monotonic() < min(until, began + patience_s)):
            tried.append(work())
        most = torch.cuda.max_memory_allocated() - before if cuda else max(cost.cache for cost in tried)
        cost = sorted(tried, key=lambda cost: cost.wall / cost.output)[len(tried) // 2]
        if base is None:
            base = cost
            report.plain_ms = 1e3 * base.wall / base.output
            report.bandwidth_share = weights / (base.wall / base.forwards) / bandwidth
        report.methods.append(_line(method, cost, base, int(most), len(tried)))
        yield report
    yield report


def _line(method: str, cost: Cost, base: Cost, memory: int, repetitions: int) -> Line:
    return Line(
        method,
        (cost.wall / cost.output) / (base.wall / base.output),
        cost.cpu_each / base.cpu_each,
        cost.tokens_each,
        cost.forwards_each,
        cost.output / cost.wall,
        memory,
        repetitions,
    )


def markdown(reports: list[Report], device: str) -> str:
    """Make a table for each shape."""
    lines = [f"Device: {device}. bfloat16, random weights, forced verdicts.", ""]
    for report in reports:
        lines += [
            f"**{report.shape}**: {report.weights / 1e9:.2f} GB of weights read a pass; plain "
            f"{report.plain_ms:.2f} ms a token, {report.bandwidth_share:.0%} of the memory-bandwidth limit "
            f"(a copy on this device, in this run: {report.bandwidth / 1e9:.0f} GB/s, read and written).",
            "",
            "| method | wall over plain, a token | CPU over plain | tokens through the model per output "
            "token | forward passes per output token | output tokens a second "
            "| memory above the weights, MiB | repetitions |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {m.method} | {m.wall:.2f} | {m.cpu:.2f} | {m.tokens:.1f} | {m.forwards:.2f} "
                f"| {m.tokens_per_s:.1f} | {m.memory / (1 << 20):.0f} | {m.repetitions} |"
                for m in report.methods
            ),
            "",
        ]
        if report.missing:
            lines += [f"Not measured within the limit: {', '.join(report.missing)}.", ""]
    return "\n".join(lines)


def _stop() -> None:
    """End the process, whatever it is doing: the rows so far have been written."""
    print("bench-gpu: the limit has passed; the last row is missing.", file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    """Measure, print, and write into a folder."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", help="default cuda")
    parser.add_argument("--shape", default="1b,8b", help=f"some of {', '.join(SHAPES)} (default 1b,8b)")
    parser.add_argument("--tokens", type=int, default=128, help="length of the answers (default 128)")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts (default 3)")
    parser.add_argument(
        "--limit", type=float, default=420, help="seconds after which no row begins (default 420)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"), help="default build/bench-gpu")
    options = parser.parse_args()
    import torch

    if unknown := [shape for shape in options.shape.split(",") if shape not in SHAPES]:
        parser.exit(2, f"There is no shape {', '.join(unknown)}: choose from {', '.join(SHAPES)}.\n")
    if options.device is None and not torch.cuda.is_available():
        parser.exit(2, "There is no CUDA device here: to try the command, add --device cpu --shape tiny.\n")
    device = options.device or "cuda"
    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    about = {"device": name, "python": platform.python_version(), "torch": torch.__version__}
    about |= {"tokens": str(options.tokens)}
    watch = threading.Timer(options.limit + GRACE_S, _stop)
    watch.daemon = True
    watch.start()
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = options.shape.split(",")
    reports: list[Report] = []
    for i, shape in enumerate(shapes):
        until = started + options.limit * (i + 1) / len(shapes)
        for report in measure(shape, device, options.tokens, options.repeat, until, options.limit / 20):
            reports[i:] = [report]
            _write(options.out, reports, about)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    watch.cancel()
    print(markdown(reports, name))


def _write(folder: Path, reports: list[Report], about: dict[str, str]) -> None:
    record = {"about": about, "shapes": [asdict(report) for report in reports]}
    (folder / "bench-gpu.md").write_text(markdown(reports, about["device"]), encoding="utf-8")
    (folder / "bench-gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
