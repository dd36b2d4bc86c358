"""RAIN on a real vLLM: what it writes, what the prefix cache saves, many searches at once, and its death."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from benchmarks.servers import OPENINGS, Load, documents, load, on_server
from rain_llm import Rain, RainResult, RainSettings, SearchError, StopReason
from tests.servers.process import Server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def cheerful(vllm: Server) -> Rain:
    """Steers towards positive sentences: most first drafts are rewound."""
    return on_server(vllm.url, "positive_sentiment", tokens=20)


@pytest.fixture(scope="module")
def together(cheerful: Rain) -> Load:
    """Sixteen openings, all at once."""
    return load(cheerful, OPENINGS, at_once=True)


def tone(results: Sequence[RainResult]) -> float:
    """Return the mean of VADER, which is not the model, in [-1, 1]."""
    vader = SentimentIntensityAnalyzer()
    return statistics.fmean(vader.polarity_scores(result.text)["compound"] for result in results)


def test_guarded_sentences_have_the_better_tone(cheerful: Rain, together: Load):
    gain = tone(together.results) - tone(cheerful.plain_batch(OPENINGS))
    print(f"{gain:+.2f}")
    assert gain > 0.1  # in this process: +0.39 [+0.28, +0.49] (docs/results-embedded.md)


def test_many_searches_share_the_batches_of_the_server(cheerful: Rain, together: Load):
    """On a quiet machine of two cores they are 3.4 times as fast as one after another (docs/scale-out.md)."""
    alone = load(cheerful, OPENINGS[:6], at_once=False)
    print(f"{together.speed / alone.speed:.2f}")
    assert together.speed > 2 * alone.speed  # a busy machine spoils the batches first


def test_prompts_are_found_in_the_prefix_cache(vllm: Server):
    rain = on_server(vllm.url, "harmlessness", tokens=128)
    found = load(rain, documents(4), at_once=True)
    print(f"{found.cached / found.prompt:.3f} {found.hits / found.looked_up:.3f} of {found.prompt}")
    assert found.looked_up == found.prompt
    assert found.hits >= found.cached  # of a batch, the reply tells one prompt's alone
    assert found.cached >= 0.85 * found.prompt


# --- its death ------------------------------------------------------------------------------------------


def processes(server: Server) -> dict[int, str]:
    """Return what runs in a server's process group: titles by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if os.getpgid(int(folder.name)) == server.process.pid:
                found[int(folder.name)] = (folder / "cmdline").read_text()
    return found


class Writing:
    """A search under way in a thread."""

    def __init__(self, server: Server, **limits: float) -> None:
        settings = RainSettings().updated(
            model={"base_url": server.url, "limits": limits},
            evaluation={"criteria": ["positive_sentiment"]},
            generation={"max_new_tokens": 64, "seed": 0},
            search={"simulation_tokens": 8},
        )
        self.rain = Rain(settings)
        self.rain.runtime  # noqa: B018 - connects now
        self.accepted = ""
        self.begun = threading.Event()
        self.result: RainResult | None = None
        self.error: SearchError | None = None
        self.ended = 0.0
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        try:
            for step in self.rain.stream("I watched this movie last night and it was"):
                self.accepted += step.text
                self.begun.set()
                self.result = step.result
        except SearchError as error:
            self.error = error
        self.ended = time.monotonic()

    def outcome(self) -> RainResult | None:
        return self.result

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("death", ["SIGKILL of the engine", "SIGTERM of the server"])
def test_a_search_outlives_the_server(vllm: Server, death: str):
    """One search waits for it to come back, and goes on; another gives up in its time."""
    patient = Writing(vllm, read_s=20, total_s=400)
    hasty = Writing(vllm, read_s=4, total_s=6)
    assert patient.begun.wait(60)
    assert hasty.begun.wait(60)
    before = processes(vllm)
    try:
        struck = time.monotonic()
        if "SIGTERM" in death:
            vllm.process.send_signal(signal.SIGTERM)
        else:
            (engine,) = (pid for pid, title in before.items() if "EngineCore" in title)
            os.kill(engine, signal.SIGKILL)
        hasty.wait(30)
        so_far = patient.accepted
        assert patient.outcome() is None
    finally:
        vllm.restart()
    assert hasty.error is not None
    assert vllm.url in str(hasty.error)
    assert hasty.ended - struck < 12
    assert hasty.error.result.stop_reason is StopReason.ERROR
    assert hasty.error.result.text == hasty.accepted
    assert hasty.accepted
    assert not before.keys() & processes(vllm).keys()
    patient.wait(200)
    result = patient.outcome()
    assert result is not None
    assert result.stop_reason in (StopReason.LENGTH, StopReason.EOS)
    assert result.text == patient.accepted
    assert patient.accepted.startswith(so_far)
    assert len(patient.accepted) > len(so_far)
