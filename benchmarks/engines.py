"""What writes in the table: llama.cpp alone, its server, Rain on llama.cpp or transformers, RAIN's searches.

All of them write the same number of tokens after the same prompts, on an empty cache, and sample at
temperature 1 from the whole vocabulary.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx

from benchmarks.meter import Cost, Meter, empty, output, peak, reset_peak, tidy
from benchmarks.raw_llama import RawLlama
from benchmarks.scenarios import guarded, of_length, warm
from rain_llm import Rain, RainSettings
from rain_llm.evals.best_of import best, sample_answers
from rain_llm.requests import Sample
from tests.servers.llama_server import fast_server
from tests.servers.process import Server

MOST = 32  # texts at once
LENGTH = 16  # tokens of the answer whose first text is awaited


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run something in a thread of its own, whose OpenMP threads end with it.

    Those of several engines would outnumber the cores, and all of them would then spin less.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work, *arguments).result()


class Engine(Protocol):
    """Writes texts."""

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        """Write ``tokens`` tokens after each prompt, or in each branch of the only prompt."""
        ...

    def first(self, prompt: str) -> float:
        """Return the seconds until the first text."""
        ...


class Alone:
    """llama.cpp without rain-llm."""

    def __init__(self, model: Any) -> None:
        self._model, self._raw = model, RawLlama(model, MOST)

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        raw, texts = self._raw, [self._tokens(prompt) for prompt in prompts]
        tidy()
        reset_peak()
        before = raw.rows, raw.passes
        began = time.perf_counter(), time.process_time()
        made = apart(raw.write, texts, tokens, branches)
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        return Cost(made, raw.rows - before[0], raw.passes - before[1], cpu, wall, peak=peak())

    def first(self, prompt: str) -> float:
        began = time.perf_counter()
        apart(self._raw.write, [self._tokens(prompt)], 1)
        return time.perf_counter() - began

    def _tokens(self, prompt: str) -> tuple[int, ...]:
        return (*self._model.start, *self._model.encode(prompt))


class LlamaServer:
    """llama.cpp's own server, over HTTP; a server for each number of texts at once."""

    def __init__(self, file: Path, threads: int) -> None:
        self._file, self._threads = file, threads
        self._servers: dict[int, Server] = {}
        self._http = httpx.Client(trust_env=False, timeout=600)
        self._pool = ThreadPoolExecutor(MOST)

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        server = self._server(max(branches, len(prompts)))
        bodies = [self._body(prompt, tokens) | {"n": branches, "seed": i} for i, prompt in enumerate(prompts)]
        began = time.perf_counter(), _cpu(server)
        replies = list(self._pool.map(lambda body: self._post(server, body), bodies))
        wall, cpu = time.perf_counter() - began[0], _cpu(server) - began[1]
        made = [one for reply in replies for one in (reply if isinstance(reply, list) else [reply])]
        drawn = sum(one["tokens_predicted"] for one in made)
        read = drawn - len(made) + sum(one["timings"]["prompt_n"] for one in made[::branches])
        return Cost(drawn, read, 0, cpu, wall, peak=_peak(server))

    def first(self, prompt: str) -> float:
        url = f"{self._server(1).url}/completion"
        began = time.perf_counter()
        with self._http.stream("POST", url, json=self._body(prompt, 8) | {"stream": True}) as reply:
            next(reply.iter_lines())
            return time.perf_counter() - began

    def close(self) -> None:
        self._pool.shutdown()
        for server in self._servers.values():
            server.__exit__(None, None, None)

    def _server(self, at_once: int) -> Server:
        if at_once not in self._servers:
            server = fast_server(self._file, threads=self._threads, parallel=at_once, context=256)
            self._servers[at_once] = server.__enter__()
            self._post(server, self._body("Hello", 4))
        return self._servers[at_once]

    def _post(self, server: Server, body: dict[str, Any]) -> Any:
        reply = self._http.post(f"{server.url}/completion", json=body)
        reply.raise_for_status()
        return reply.json()

    def _body(self, prompt: str, tokens: int) -> dict[str, Any]:
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
        return body | {"samplers": ["temperature"], "temperature": 1.0}


class Plain:
    """``Rain.plain``: several prompts by ``plain_batch``, branches as one request to the model."""

    def __init__(self, settings: RainSettings, model: Any = None) -> None:
        self._settings, self._given = settings, model
        self._kept = self.rain(1)  # so that the model is loaded once
        self.model: Any = self._kept.runtime.writer

    def rain(self, tokens: int) -> Rain:
        """Return a Rain whose answers have at most ``tokens`` tokens."""
        return of_length(self._settings, tokens, self._given)

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        with Meter(self.rain(tokens)) as meter:
            if branches == 1:
                made = output(self.rain(tokens).plain_batch(prompts))
            else:
                sample = Sample(self._kept.encode(prompts[0]), branches, tokens, 0)
                made = sum(len(one.tokens) for one in apart(self.model.sample, [sample])[0].continuations)
        return meter.cost(made)

    def first(self, prompt: str) -> float:
        empty(self.model)
        return first_text(self.rain(LENGTH).plain_stream(prompt))


class Guarded(Plain):
    """RAIN's search, by the model's own verdicts; all prompts at once."""

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        return guarded(self.rain(tokens), prompts, at_once=True)

    def first(self, prompt: str) -> float:
        warm(self._kept)
        empty(self.model)
        return first_text(self.rain(LENGTH).stream(prompt))


class BestOf8(Plain):
    """Eight answers to each prompt, of which the best is taken; there is no text before the end."""

    def write(self, prompts: Sequence[str], tokens: int, branches: int = 1) -> Cost:
        rain = self.rain(tokens)
        warm(rain)
        with Meter(rain) as meter:
            made = [best(sample_answers(rain, prompt, 8)) for prompt in prompts]
        return meter.cost(output(made))

    def first(self, prompt: str) -> float:
        return self.write([prompt], LENGTH).wall


def first_text(steps: Iterator[Any]) -> float:
    """Return the seconds until a stream's first text; read it to its end, so that nothing runs on."""
    began = time.perf_counter()
    next(step for step in steps if step.text)
    seconds = time.perf_counter() - began
    for _ in steps:
        pass
    return seconds


def _cpu(server: Server) -> float:
    """Return the CPU seconds that a server has used (Linux)."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _peak(server: Server) -> int:
    """Return the most memory that a server has used (Linux)."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
