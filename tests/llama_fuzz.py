"""Random calls of the llama.cpp engine, valid and not: ``python -m tests.llama_fuzz FILE --calls 100000``.

It runs in a process of its own, because a mistake in native code ends the process. Prints a JSON object: how
often each kind of call was made and what it raised, whether the cache stayed consistent, the memory in use
after a tenth of the calls and at the end, and the last call before anything unexpected.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rain_llm import Message, RainError
from rain_llm.models.local.llama_cache import SequenceCache
from rain_llm.models.local.llama_cpp import LlamaCppModel
from rain_llm.requests import Sample, Score
from rain_llm.settings import ModelSettings
from rain_llm.types import TokenIds

INVALID: tuple[type[BaseException], ...] = (
    RainError,
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    KeyError,
)
"""What a call that breaks the rules may raise; a valid call raises ``RainError`` only."""
SCHEMAS = (
    '{"type":"object","properties":{"a":{"enum":[1,2,3]}},"required":["a"],"additionalProperties":false}',
    '{"enum":["yes","no"]}',
    '{"type":"array","items":{"type":"boolean"},"maxItems":3}',
    '{"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"type":"null"},{"type":"array","items":{"$ref":"#/$defs/a"}}]}}}',
    '{"type":"string","pattern":"^[ab]{2,4}$"}',
    '{"type":"integer","minimum":3,"maximum":99}',
)
BAD_SCHEMAS = (
    "{",
    "[]",
    "1",
    '{"$ref":"#/none"}',
    '{"type":"none"}',
    '{"enum":[]}',
    '{"pattern":"(("}',
    "\0",
)
CELLS = 2048  # of llama.cpp's own cache, at least
LETTERS = 'the film is good, <|im_end|>\n\t\0\x7f\ud800\udfff\u0301\u200b終👋é123 {}[]"\\'


class Fuzz:
    """Random calls of one model.

    Args:
        model: the engine.
        seed: of the calls.
    """

    def __init__(self, model: LlamaCppModel, seed: int) -> None:
        self.model = model
        self.random = random.Random(seed)
        self.known: list[TokenIds] = [model.encode("The film is good")]
        self.counts: collections.Counter[str] = collections.Counter()
        self.last = ""
        self.jobs: list[Any] = []

    # -- what to call it with -------------------------------------------------------------------

    def odd(self, usual: Any, *others: Any) -> Any:
        """Return the usual value, or rarely one that breaks the rules."""
        return usual if self.random.random() < 0.97 else self.random.choice(others)

    def text(self) -> str:
        size = self.random.choice((0, 1, 5, 5, 20, 20, 60, 3000))
        return "".join(self.random.choices(LETTERS, k=size))

    def prefix(self) -> TokenIds:
        size, most = self.model.text.size, self.model.context_length
        known = self.random.choice(self.known)
        found = known[: self.random.randint(0, len(known))]
        found += tuple(self.random.randrange(size) for _ in range(self.random.choice((0, 1, 1, 3, 9, 40))))
        if not self.random.randrange(30):
            found = tuple(
                self.random.randrange(size) for _ in range(self.random.choice((most - 1, most, most + 1)))
            )
        wrong = self.odd(None, -1, -(2**31), size, size + 1, 2**31 - 1, 2**31, 2**63, 10**30)
        if wrong is not None:
            place = self.random.randint(0, len(found))
            found = (*found[:place], wrong, *found[place:])
        self.known[self.random.randrange(20) :] = (
            [] if self.random.random() < 0.05 else [found, *self.known[:20]]
        )
        self.known = self.known or [self.model.encode("The")]
        usual = found or (5,)
        return usual if self.random.random() < 0.97 else ()

    def sample(self) -> Sample:
        r = self.random
        ranked = r.random() < 0.1
        found = Sample(
            self.prefix(),
            self.odd(r.choice((1, 1, 2, 3, 8)), 0, -1, 40, 300, 1000),
            self.odd(1 if ranked else r.choice((1, 2, 4, 9)), 0, -1, 200, 10**9, 2**63),
            self.odd(r.getrandbits(62), 0, 2**64, -1),
            temperature=self.odd(
                r.choice((1.0, 0.01, 0.7, 2.0)), 0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")
            ),
            top_k=self.odd(r.choice((0, 0, 1, 5, 10**6)), -1, 2**63),
            top_p=self.odd(r.choice((1.0, 1.0, 0.9, 1e-6)), 0.0, -1.0, 2.0, float("nan")),
            greedy_first=r.random() < 0.2,
            ranked=ranked,
            ends=r.choice(((), (), (".",), (" ", "\n"), self.odd(("a",), ("",)))),
        )
        if r.random() < 0.1:
            schema = self.odd(r.choice(SCHEMAS), *BAD_SCHEMAS)
            found = replace(found, schema=schema, ranked=False, greedy_first=False, ends=())
        return found

    def score(self) -> Score:
        count = self.odd(self.random.choice((1, 2, 2, 3, 9)), 0, 60, 300)
        return Score(self.prefix(), tuple(self.prefix()[-3:] for _ in range(count)))

    def tokens(self) -> TokenIds:
        return tuple(
            self.odd(self.random.randrange(self.model.text.size), -1, 10**9, 2**70) for _ in range(9)
        )

    # -- the calls ------------------------------------------------------------------------------

    def call_sample(self) -> None:
        self.model.sample([self.sample() for _ in range(self.random.choice((1, 1, 2, 6)))])

    def call_score(self) -> None:
        self.model.score([self.score() for _ in range(self.random.choice((1, 1, 2, 6)))])

    def call_step(self) -> None:
        """Jobs join, leave and are given up between passes."""
        begun: Sample | Score = self.sample() if self.random.random() < 0.5 else self.score()
        self.jobs.append(self.model.begin(begun))
        self.random.shuffle(self.jobs)
        self.model.step(self.jobs[: self.random.randint(0, len(self.jobs))])
        self.jobs = [job for job in self.jobs if job.reply is None and self.random.random() < 0.9][:12]

    def call_broken_step(self) -> None:
        """An error while a job decides: nobody's text may suffer."""
        job = self.model.begin(Sample(self.prefix(), 2, 2, 1))
        job.weigh = None  # type: ignore[assignment,method-assign]
        self.model.step([job])

    def call_text(self) -> None:
        text = self.text()
        tokens = self.model.encode(text)
        assert not self.model.text.special & set(tokens)
        assert self.model.decode(tokens) == text.encode("utf-8", "replace").decode()

    def call_decode(self) -> None:
        self.model.decode(self.tokens())

    def call_chat(self) -> None:
        messages = [
            Message(self.random.choice(("user", "system", "assistant")), self.text()) for _ in range(2)
        ]
        self.model.render_chat(messages)

    def call_forget(self) -> None:
        self.model.forget()

    def call_small_cache(self) -> None:
        cells = self.random.choice((16, 40, 100, 300))
        shrink(self.model, cells, self.random.choice((3, 9, 40)))

    def run(self, calls: int) -> dict[str, Any]:
        """Make so many calls."""
        usual: list[Callable[[], None]] = [self.call_sample, self.call_score, self.call_step, self.call_step]
        rare = [self.call_text, self.call_decode, self.call_chat, self.call_broken_step]
        rarest = [self.call_forget, self.call_small_cache]
        unexpected: list[str] = []
        memory = [0, 0]
        for i in range(calls):
            kinds = self.random.choices((usual, rare, rarest), (90, 9, 1))[0]
            call = self.random.choice(kinds)
            raised = "-"
            try:
                call()
            except INVALID as error:
                raised = type(error).__name__
            except Exception as error:
                raised = type(error).__name__
                unexpected.append(f"{call.__name__}: {error!r}"[:300])
            self.counts[f"{call.__name__} {raised}"] += 1
            try:
                self.model.cache.check_integrity()
            except RuntimeError as error:
                unexpected.append(f"after {call.__name__} {raised}: {error}")
                self.model.forget()
            if i == calls // 10:
                memory[0] = memory_in_use()
        memory[1] = memory_in_use()
        return {
            "calls": calls,
            "counts": dict(sorted(self.counts.items())),
            "unexpected": unexpected[:9],
            "memory": memory,
        }


def memory_in_use() -> int:
    """Return the bytes of memory that this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def shrink(model: LlamaCppModel, cells: int, sequences: int) -> None:
    """Leave a model few cells and sequences, so that it evicts; more only where one request needs them."""
    large = type(model)._open

    def open_cache(cells: int) -> None:
        if cells > model.cache.cells and cells > CELLS:
            del model._open
            large(model, cells)
        else:
            model.cache.clear()
            model.cache = SequenceCache(model.cache.memory, sequences, cells)

    model._open = open_cache  # type: ignore[method-assign]
    model._cache_bytes = 0  # it does not grow
    open_cache(min(cells, model.cache.cells))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600, help="end with a traceback after this time")
    given = parser.parse_args()
    faulthandler.enable()
    faulthandler.dump_traceback_later(given.seconds, exit=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = LlamaCppModel(ModelSettings(name=str(given.file), threads=given.threads))
    json.dump(Fuzz(model, given.seed).run(given.calls), sys.stdout)


if __name__ == "__main__":
    main()
