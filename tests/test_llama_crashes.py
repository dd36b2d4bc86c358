"""Nothing that reaches the llama.cpp engine ends the process: texts, files, forks, requests.

All of it runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rain_llm import Rain, RainError, RainSettings
from rain_llm.settings import ModelSettings
from tests import gguf_files, llama_fuzz
from tests.test_search import GOOD

FUZZ_CALLS = int(os.environ.get("RAIN_LLM_FUZZ_CALLS", "20000"))
LONG = 200_000  # characters: some 30,000 without a space were too many for the stack
HOSTILE = {
    "letters": "a" * LONG,
    "capitals": "A" * LONG,
    "spaces": " " * LONG,
    "digits": "1" * LONG,
    "lines": "\n" * LONG,
    "marks": "!" * LONG,
    "combining marks": "\u0301" * LONG,
    "ideographs": "終" * LONG,
    "emojis": "👋🏽" * (LONG // 2),
    "all of them": "aA1 !\n終" * (LONG // 8),
    "words without a space": "aA1.!終" * (LONG // 8),
    "zeros": "\0" * LONG,
    "half characters": "\ud800" * 1000 + "a\udfffb",
    "special tokens": "<|im_end|><|endoftext|></s><s>[INST]<0x00>" * 1000,
}
SPLITTINGS = (
    "gpt-2",
    "smollm",
    "qwen2",
    "llama-bpe",
    "default",
    "deepseek-llm",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
)


def child(work: Callable[..., Any], *given: str, seconds: float = 100) -> Any:
    """Return what ``work`` of this file returns in a process of its own."""
    code = f"import json, tests.test_llama_crashes as t; print(json.dumps(t.{work.__name__}(*{given!r})))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | {"GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def load(file: str | Path, **changes: Any) -> Any:
    from rain_llm.models.local.llama_cpp import LlamaCppModel

    return LlamaCppModel(ModelSettings(name=str(file), **{"threads": 1} | changes))


# --- texts ------------------------------------------------------------------------------------------


def encode_all(file: str, most: str) -> list[str]:
    """Return what was wrong with the encoding of any hostile text, of at most so many characters."""
    found = []
    model = load(file)
    for name, long in HOSTILE.items():
        text = long[: int(most)]
        try:
            tokens = model.encode(text)
        except RainError as error:
            found.append(f"{name}: {error}")
        else:
            if model.decode(tokens) != text.encode("utf-8", "replace").decode():
                found.append(f"{name}: another text")
            if model.text.special & set(tokens):
                found.append(f"{name}: a special token")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("splitting", [*SPLITTINGS, "sentence pieces"])
def test_every_text_can_be_encoded(tmp_path: Path, splitting: str):
    spm = splitting == "sentence pieces"
    vocabulary = gguf_files.sentence_pieces() if spm else gguf_files.byte_pairs(splitting)
    most = (
        LONG // 8 if spm else LONG
    )  # llama.cpp takes the square of its length in time, with sentence pieces
    assert child(encode_all, str(gguf_files.tiny_gguf(tmp_path, vocabulary=vocabulary)), str(most)) == []


def encode_in_a_thread(file: str) -> bool:
    import threading

    model, found = load(file), []
    thread = threading.Thread(target=lambda: found.append(model.encode("a" * 80_000)))
    thread.start()
    thread.join()
    return len(found) == 1


def test_a_thread_can_encode_a_long_word(tmp_path: Path):
    assert child(
        encode_in_a_thread, str(gguf_files.tiny_gguf(tmp_path, vocabulary=gguf_files.byte_pairs("tekken")))
    )


def test_only_very_long_words_are_encoded_in_parts(tmp_path: Path):
    from tests.native_llama import NativeModel

    file = gguf_files.tiny_gguf(tmp_path)
    model, native = load(file), NativeModel(file)
    text = "the film is good, " * 2000 + "a" * 3999 + " " * 3000 + "is bad"
    assert model.encode(text) == native.encode(text)
    parts = "the film ", "a" * 4000, "a" * 10, " good"
    assert model.encode("".join(parts)) == native.encode("".join(parts[:2])) + native.encode(
        "".join(parts[2:])
    )
    native.close()


# --- memory -----------------------------------------------------------------------------------------


def use_after_deletion(file: str) -> bool:
    """Use a tokenizer, and a vocabulary, whose model is gone."""
    import gc

    model = load(file)
    text, matcher = model.text, model.text.vocabulary.matcher('{"enum":["yes"]}')
    del model
    gc.collect()
    again = [load(file) for _ in range(3)]  # takes the memory that was freed
    return text.encode("The film") == again[0].encode("The film") and bool(matcher.allowed().any())


def test_a_tokenizer_outlives_its_model(tmp_path: Path):
    assert child(use_after_deletion, str(gguf_files.tiny_gguf(tmp_path)))


def load_again_and_again(good: str, bad: str) -> list[int]:
    """Return the memory in use after a few and after many loads, in KiB."""
    import contextlib
    import gc

    found = []
    for count in (40, 40):  # the allocator takes memory at first
        for _ in range(count):
            load(good, kv_cache_bytes=1 << 20)
            with contextlib.suppress(RainError):
                load(bad)
        gc.collect()
        found.append(llama_fuzz.memory_in_use() >> 10)
    return found


@pytest.mark.slow
def test_models_that_are_gone_or_rejected_leave_no_memory(tmp_path: Path):
    (tmp_path / "good").mkdir()
    files = gguf_files.tiny_gguf(tmp_path / "good"), gguf_files.recurrent(tmp_path)
    first, last = child(load_again_and_again, *map(str, files))
    assert last - first < 8 << 10


# --- forks ------------------------------------------------------------------------------------------


def rain_of(file: str, threads: int = 2) -> Rain:
    settings = RainSettings().updated(
        generation={"max_new_tokens": 12, "seed": 0, "stop": ()},
        search={"iterations": 2},
        evaluation={"criteria": [GOOD], "style": "labels", "examples": False},
        on_unsafe="best",
    )
    return Rain(settings, model=load(file, threads=threads))


def fork_all(file: str) -> dict[str, Any]:
    from tests import test_forks as forks

    works = (forks.fork_beside_a_search, forks.fork_from_a_thread_and_a_fork, forks.fork_pool)
    return {work.__name__: work(rain_of(file)) for work in works}


def fork_and_load(file: str) -> list[Any]:
    """Load a model in a child whose parent has computed with one."""
    from tests.test_forks import forked, written

    expected = written(rain_of(file))
    return [expected, forked(lambda: written(rain_of(file)))]


def fork_and_read_states(file: str) -> list[Any]:
    """Read hidden states in a child whose parent has done so: in a context of its own."""
    from tests.test_forks import forked

    model = load(file, threads=2)

    def read() -> Any:
        states = model.states(model.encode("The film is"), model.encode(" good, " * 60), [0])
        return round(float(np.abs(states).mean()), 4)

    return [read(), forked(read)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_processes_compute_on_their_own(tmp_path: Path):
    file = str(gguf_files.tiny_gguf(tmp_path))
    works = child(fork_and_load, file), child(fork_and_read_states, file)
    for found in [*child(fork_all, file).values(), *works]:
        expected, *results = found
        assert expected
        assert set(results) == {expected}


# --- files ------------------------------------------------------------------------------------------


def load_broken(*files: str) -> list[Any]:
    """Return what happens when each of the files is loaded and used, each in a fork."""
    from tests.test_forks import forked

    load_nothing()

    def work(file: str) -> str:
        try:
            model = load(file)
            model.encode("The film is good")
            model.sample([gguf_files_sample()])
        except RainError as error:
            return f"{type(error).__name__}: {error}"
        return "runs"

    found = []
    for file in files:
        try:
            found.append(forked(lambda file=file: work(file)))  # type: ignore[misc]
        except json.JSONDecodeError:
            found.append("ends the process")
    return found


def gguf_files_sample() -> Any:
    from rain_llm.requests import Sample

    return Sample((5, 6, 7), 2, 2, 1)


def load_nothing() -> None:
    """Open the library, so that the forks need not."""
    from rain_llm.models.local.llama_library import open_library

    open_library()


def test_no_damaged_file_ends_the_process(tmp_path: Path):
    files = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, (name, write) in enumerate(gguf_files.BROKEN.items()):
            if name in gguf_files.ABORTING:  # nothing but a trial in another process would show it
                continue
            folder = tmp_path / str(place)
            folder.mkdir()
            files[name] = str(write(folder))
    found = dict(zip(files, child(load_broken, *files.values()), strict=True))
    for name, what in found.items():
        if name not in gguf_files.RUNNABLE:
            assert what.startswith(("ModelNotFoundError", "ModelNotSupportedError")), (name, what)
        else:
            assert what.startswith(("runs", "PromptTooLongError")), (name, what)


# --- requests ---------------------------------------------------------------------------------------


def answer_many(file: str, count: str) -> dict[str, Any]:
    """Answer valid requests of all kinds; return the memory in use after a fifth of them and at the end."""
    import random

    from rain_llm.requests import Sample, Score

    model, draw, memory = load(file, kv_cache_bytes=1 << 20), random.Random(5), []
    texts = [tuple(draw.choices(range(3, 313), k=size)) for size in range(1, 200)]
    for i in range(int(count)):
        text = draw.choice(texts)
        texts[draw.randrange(len(texts))] = (*text[: draw.randint(1, 150)], *draw.choices(range(3, 313), k=9))
        schema = llama_fuzz.SCHEMAS[i % 3] if i % 40 == 0 else ""
        sample = Sample(text, draw.randint(1, 8), draw.randint(1, 8), i, schema=schema)
        if i % 3 == 2:
            model.score([Score(text, ((5,), (6, 7))), Score(text[:9], ((8,), (9,)))])
        else:
            model.sample([sample, Sample(text, 5, 1, i, ranked=True)][: 1 + i % 2])
        if i % 100 == 0:
            model.cache.check_integrity()
        if i == int(count) // 5:
            memory.append(llama_fuzz.memory_in_use())
    model.cache.check_integrity()
    memory.append(llama_fuzz.memory_in_use())
    model.forget()
    model.cache.check_integrity()
    return {"memory": memory, "evictions": model.cache.evictions, "left": len(model.cache)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_requests_leave_nothing(tmp_path: Path):
    found = child(answer_many, str(gguf_files.tiny_gguf(tmp_path)), "10000", seconds=1800)
    first, last = found["memory"]
    assert last - first < 32 << 20  # 24 measured, all of the 250 documents: 0.1 without
    assert found["evictions"] > 1000
    assert found["left"] == 0


def fuzz(file: Path, calls: int, seed: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.llama_fuzz", str(file), "--calls", str(calls)]
    command += ["--seed", str(seed), "--threads", str(threads), "--seconds", str(60 + calls / 20)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"GGML_NO_BACKTRACE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("qwen2", 2000),
        pytest.param("qwen2", FUZZ_CALLS, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param("gemma3", FUZZ_CALLS // 4, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param("sentence pieces", FUZZ_CALLS // 4, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_random_calls_end_nothing_and_leave_nothing(tmp_path: Path, kind: str, calls: int):
    found = fuzz(gguf_files.VALID[kind](tmp_path), calls, seed=calls, threads=1)
    assert found["unexpected"] == []
    assert found["calls"] == calls
    first, last = found["memory"]
    assert last - first < 32 << 20
