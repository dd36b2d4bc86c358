"""A forked process searches on its own: its parent's threads, locks and connections are not in its way."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from rain_llm import ModelError, Rain, RainSettings
from rain_llm.engine import runtime
from rain_llm.models.scripted import ScriptedModel
from rain_llm.models.servers import loop
from tests.servers.scripted import scripted_server
from tests.test_search import GOOD

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.allow_hosts(["127.0.0.1"]),
]
PROMPT = "Good day people, it is I"
CHILD_S = 20.0
TOKENS = 30


# --- what runs in a process of its own ------------------------------------------------------------


def forked(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a forked child; "hangs" where it takes too long."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if not child:
        try:
            found = work()
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    end = time.monotonic() + CHILD_S
    while time.monotonic() < end and not os.waitpid(child, os.WNOHANG)[0]:
        time.sleep(0.01)
    if time.monotonic() >= end:
        os.kill(child, 9)
        os.waitpid(child, 0)
        return "hangs"
    with os.fdopen(read) as found_there:
        return json.loads(found_there.read())


def slowly(text: str) -> Mapping[str, float]:
    time.sleep(0.002)
    return {" a": 1.0, " b": 1.0}


def scripted() -> Rain:
    settings = RainSettings().updated(
        generation={"max_new_tokens": TOKENS, "seed": 0, "stop": ()},
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        on_unsafe="best",
    )
    return Rain(settings, model=ScriptedModel(slowly, lambda q, label: len(q) % 7 * (label == " good")))


def served(url: str) -> Rain:
    settings = RainSettings().updated(
        model={"base_url": url},
        generation={"max_new_tokens": 8, "seed": 0},
        search={"iterations": 2},
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        on_unsafe="best",
    )
    return Rain(settings)


def written(rain: Rain) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rain.generate(PROMPT).text


def beside(work: Callable[[], Any]) -> Callable[[], Any]:
    """Begin ``work`` in a thread; return what waits for its result."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(CHILD_S)
        return found[0] if found else "hangs"

    return wait


def fork_beside_a_search(rain: Rain, times: int = 3) -> list[Any]:
    expected = written(rain)
    results: list[Any] = [expected]
    for _ in range(times):  # at another moment of the search each time
        parent = beside(lambda: written(rain))
        time.sleep(0.03)
        results += [forked(lambda: written(rain)), parent()]
    return results


def fork_from_a_thread_and_a_fork(rain: Rain) -> list[Any]:
    return [
        written(rain),
        beside(lambda: forked(lambda: written(rain)))(),
        forked(lambda: forked(lambda: written(rain))),
    ]


def fork_beside_locks(rain: Rain) -> list[Any]:
    expected = written(rain)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime._loading, rain.runtime.writer._lock, rain.runtime.scheduler._lock:  # type: ignore[attr-defined]
            held.set()
            over.wait(2 * CHILD_S)

    rain.runtime  # noqa: B018
    wait = beside(hold)
    held.wait()
    found = forked(lambda: [written(rain), written(scripted())])
    over.set()
    wait()
    return [expected, *found, written(rain)]


def fork_within_a_stream(rain: Rain) -> list[Any]:
    steps = rain.stream(PROMPT, settings=rain.settings.updated(generation={"max_new_tokens": 9 * TOKENS}))
    first = next(steps)
    found = forked(lambda: [step.text for step in steps])
    return [found, first.text + "".join(step.text for step in steps)]


def pooled(place: int) -> str:
    return written(POOLED[0])


POOLED: list[Rain] = []


def fork_pool(rain: Rain) -> list[Any]:
    POOLED.append(rain)
    expected = written(rain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return [expected, *pool.map_async(pooled, range(3)).get(CHILD_S)]


def connections() -> list[str]:
    """Where the numbers lead that the parent's loop has connections under."""
    kept = [one for one in loop._left if hasattr(one, "get_map")]
    return sorted({os.readlink(f"/proc/self/fd/{number}") for one in kept for number in one.get_map()})


SCRIPTED = (
    fork_beside_a_search,
    fork_from_a_thread_and_a_fork,
    fork_beside_locks,
    fork_within_a_stream,
    fork_pool,
)


def main(*given: str) -> None:
    if given:
        rain = served(*given)
        print(json.dumps([*fork_beside_a_search(rain, 1), written(rain), forked(connections)]))
    else:
        print(json.dumps({work.__name__: work(scripted()) for work in SCRIPTED}))


# --- the tests ------------------------------------------------------------------------------------


def run(*given: str) -> Any:
    code = f"from tests.test_forks import main; main(*{given!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found() -> Any:
    return run()


@pytest.mark.parametrize(
    "name", ["fork_beside_a_search", "fork_from_a_thread_and_a_fork", "fork_beside_locks", "fork_pool"]
)
def test_a_child_writes_as_its_parent_does(name: str, found: Any):
    expected, *results = found[name]
    assert len(expected.split()) == TOKENS
    assert set(results) == {expected}


def test_a_stream_goes_on_in_the_parent_only(found: Any):
    child, parent = found["fork_within_a_stream"]
    assert child.startswith(f"{ModelError.__name__}: the process was forked")
    assert len(parent.split()) == 9 * TOKENS


@pytest.mark.slow
def test_a_child_has_connections_of_its_own():
    with scripted_server("llama") as server:
        expected, *results, there = run(server.url)
    assert expected
    assert set(results) == {expected}
    assert there == ["/dev/null"]
