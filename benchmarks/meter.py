"""What a piece of work costs: tokens, passes, CPU by part, memory.

The CPU of a forward pass that samples and questions share is split by their tokens in it. Nothing in
the package is changed for this: the calls of one model object are wrapped while it is measured. The model
is llama.cpp's in this process, or one of transformers.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.networks import never_say
from rain_llm import Rain, RainResult
from rain_llm.requests import Read, Sample, Score

PARTS = ("expand", "simulate", "evaluate", "embed", "python")
"""Candidates drawn ahead; what is simulated or written; questions; embeddings; all the rest."""


@dataclass(frozen=True)
class Cost:
    """What a piece of work cost.

    Attributes:
        output: tokens of the returned answers. tokens: through the model, for all of it.
        forwards: passes of the network. cpu, wall: seconds, comparable within one run only.
        parts: CPU seconds of each of ``PARTS``.
        network: seconds by the clock inside the network: the rest is Python's.
        peak: most memory in use meanwhile, bytes, the weights included. cache: keys and values, bytes.
    """

    output: int
    tokens: int
    forwards: int
    cpu: float
    wall: float
    parts: dict[str, float] = field(default_factory=dict)
    network: float = 0.0
    peak: int = 0
    cache: int = 0

    @property
    def tokens_each(self) -> float:
        """Tokens through the model for one token of output."""
        return self.tokens / max(1, self.output)

    @property
    def forwards_each(self) -> float:
        """Passes of the network for one token of output."""
        return self.forwards / max(1, self.output)

    @property
    def cpu_each(self) -> float:
        """CPU seconds for one token of output."""
        return self.cpu / max(1, self.output)

    @property
    def speed(self) -> float:
        """Tokens of output in a second."""
        return self.output / self.wall

    @property
    def outside(self) -> float:
        """Share of the time outside the network, in [0, 1]."""
        return 1 - self.network / self.wall

    def share(self, *parts: str) -> float:
        """Return the share of the CPU that some parts took, in [0, 1]."""
        return sum(self.parts[part] for part in parts) / max(1e-9, self.cpu)


class Meter:
    """Measures a ``Rain`` with one local model inside a ``with`` block, on an empty cache."""

    def __init__(self, rain: Rain) -> None:
        self.model: Any = rain.runtime.writer
        self._embedder: Any = rain.runtime.embedder() if rain.settings.search.similarity else None
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._jobs: dict[int, tuple[Any, str]] = {}  # a job is kept, so that its id stays its own
        self._inside = False
        self._network = 0.0
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Meter:
        model = self.model
        empty(model)
        for name, wrapper in (("begin", self._begin), ("step", self._step)):
            if hasattr(model, name):
                self._wrap(model, name, wrapper)
        for name in ("sample", "score"):
            self._wrap(model, name, self._batch)
        if self._embedder is not None:
            self._wrap(self._embedder, "embed", self._embed)
        self._watch_network()
        tidy()
        reset_peak()
        self._counts = model.model_tokens, model.forwards
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._wall = time.perf_counter() - self._began[0]
        self._cpu = time.process_time() - self._began[1]
        self._peak = peak()
        for undo in self._undo:
            undo()

    def cost(self, output: int) -> Cost:
        """Return what was measured, for ``output`` returned tokens."""
        model, parts = self.model, dict(self._parts)
        calls = parts["expand"] + parts["simulate"] + parts["evaluate"]
        parts["python"] = max(0.0, self._cpu - calls - parts["embed"])
        return Cost(
            output,
            model.model_tokens - self._counts[0],
            model.forwards - self._counts[1],
            self._cpu,
            self._wall,
            parts,
            self._network,
            self._peak,
            cache_bytes(model),
        )

    # -- wrapped calls ---------------------------------------------------------------------------

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, lambda *args: wrapper(original, *args))
        self._undo.append(lambda: delattr(owner, name))

    def _begin(self, original: Callable[[Any], Any], request: Sample | Score | Read) -> Any:
        job = original(request)
        if not self._inside:
            self._jobs[id(job)] = job, part_of(request)
        return job

    def _step(self, original: Callable[[Any], None], jobs: Sequence[Any]) -> None:
        if self._inside:
            return original(jobs)
        before = [_read(job) for job in jobs]
        began = time.process_time()
        original(jobs)
        spent = time.process_time() - began
        tokens = [_read(job) - had for job, had in zip(jobs, before, strict=True)]
        self._charge(spent, [self._jobs[id(job)][1] for job in jobs], tokens)
        for job in jobs:
            if job.reply is not None:
                del self._jobs[id(job)]

    def _batch(self, original: Callable[[Any], Any], batch: Sequence[Sample | Score]) -> Any:
        self._inside = True  # it may step through the requests itself
        began = time.process_time()
        try:
            replies = original(batch)
        finally:
            self._inside = False
        spent = time.process_time() - began
        self._charge(spent, [part_of(request) for request in batch], [r.model_tokens for r in replies])
        return replies

    def _embed(self, original: Callable[[Any], Any], texts: Sequence[str]) -> Any:
        began = time.process_time()
        vectors = original(texts)
        self._parts["embed"] += time.process_time() - began
        return vectors

    def _charge(self, spent: float, parts: Sequence[str], tokens: Sequence[int]) -> None:
        """Split the CPU of a pass by tokens; evenly, if nothing new was read."""
        weights = tokens if sum(tokens) > 0 else [1] * len(parts)
        for part, weight in zip(parts, weights, strict=True):
            self._parts[part] += spent * weight / sum(weights)

    def _watch_network(self) -> None:
        """Time the network itself within the model's calls."""
        model = self.model
        if hasattr(model, "_llama"):
            context = model._context
            library = context._llama
            context._llama = _Watched(library, self._passed)
            self._undo.append(lambda: setattr(context, "_llama", library))
            return
        began = [0.0]

        def before(*_: Any) -> None:
            began[0] = time.perf_counter()

        def after(*_: Any) -> None:
            self._passed(time.perf_counter() - began[0])

        network = model._network
        hooks = network.register_forward_pre_hook(before), network.register_forward_hook(after)
        self._undo += [hook.remove for hook in hooks]

    def _passed(self, seconds: float) -> None:
        self._network += seconds


class _Watched:
    """llama.cpp's library, whose passes are timed."""

    def __init__(self, library: Any, passed: Callable[[float], None]) -> None:
        self._library = library
        self._passed = passed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def llama_decode(self, *arguments: Any) -> int:
        began = time.perf_counter()
        status: int = self._library.llama_decode(*arguments)
        self._passed(time.perf_counter() - began)
        return status


def empty(model: Any) -> None:
    """Empty a model's prefix cache, and give its memory back: the arenas of transformers only grow."""
    model.forget()
    if hasattr(model.cache, "max_bytes"):
        model.cache = type(model.cache)(model.cache.max_bytes)


def cache_bytes(model: Any) -> int:
    """Return the size of the keys and values in a model's prefix cache."""
    if hasattr(model, "_llama"):
        return int(len(model.cache) * model._cache_bytes // model._most_cells)
    return int(len(model.cache) * model.cache.bytes_per_token)


@contextmanager
def endless(model: Any) -> Generator[None, None, None]:
    """Let a model sample no end and no other special token, so that answers have their full length."""
    special = list(model.text.special)
    if not hasattr(model, "_llama"):
        hook = never_say(model._network, special)
        yield
        hook.remove()
        return
    run = model._run

    def without(forward: Any) -> None:
        run(forward)
        if len(forward._logits):  # none are wanted of the middle of a prompt
            forward._logits[:, special] = -1e4

    model._run = without
    yield
    del model._run


def part_of(request: Sample | Score | Read) -> str:
    """Tell which part of the search asks for this."""
    if isinstance(request, Score | Read):
        return "evaluate"
    return "expand" if request.n > 1 or request.ranked else "simulate"


def output(results: Sequence[RainResult]) -> int:
    """Count the tokens of the answers."""
    return sum(result.usage.output_tokens for result in results)


def _read(job: Any) -> int:
    """Return the tokens that went through the model for a job so far."""
    return int(getattr(job if job.reply is None else job.reply, "model_tokens", 0))


# --- memory -----------------------------------------------------------------------------------------


def rss() -> int:
    """Return the resident memory of this process, bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return _maxrss()


def reset_peak() -> None:
    """Let :func:`peak` begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """Return the most resident memory since :func:`reset_peak`, or since the start, bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _maxrss()


def tidy() -> None:
    """Give memory that is free back to the system, so that what is measured is what is used."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not every C library has it
        if trim is not None:
            trim(0)


def _maxrss() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
