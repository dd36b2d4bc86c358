"""A causal language model in a GGUF file, run by llama.cpp in this process.

Every forward pass is one batch of rows of all branches of all requests, over one cache (``llama_cache``). The
jobs (``jobs``) decide which tokens a request needs, and choose tokens by the logits.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from rain_llm.errors import (
    ModelError,
    ModelNotSupportedError,
    PromptError,
    PromptTooLongError,
)
from rain_llm.forks import renew_after_fork
from rain_llm.models.base import Job
from rain_llm.models.described import fingerprint
from rain_llm.models.grammar import check_sample
from rain_llm.models.local import llama_library as llama
from rain_llm.models.local.embedded import NAME, embedded_file
from rain_llm.models.local.gguf_file import check_kind, load, reason, usable_cores
from rain_llm.models.local.gguf_text import GgufText
from rain_llm.models.local.jobs import SampleJob, ScoreJob
from rain_llm.models.local.llama_cache import FullError, SequenceCache
from rain_llm.models.local.llama_pass import Memory, Pass
from rain_llm.models.local.numpy_rows import Floats, NumpyRows
from rain_llm.requests import Sample, Samples, Score, Scores
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, TokenIds, Tool

_CELLS = 4096  # of the cache at first: a pass is slower over a large one
_BATCH = 2048  # rows of one call of llama.cpp
_AT_ONCE = 512  # of these, computed together
_PREFIXES = 32  # sequences that hold prefixes in a pass; the others can be branches
_RECENT = 64  # passes: what was used since then is evicted only if the cache cannot grow
_CACHE_TYPES = {"f16": (llama.F16, 2.0), "q8_0": (llama.Q8_0, 34 / 32)}  # ggml's type, and bytes of a number


class LlamaCppModel:
    """A frozen causal language model in a GGUF file, with a prefix cache.

    Args:
        settings: name (the file), threads, GPU layers and cache.

    Raises:
        ModelNotFoundError: there is no such file, or llama.cpp cannot load it.
        ModelNotSupportedError: it is not a causal language model, or cannot be rewound. This is tested when
            it is loaded: after a branch and a rewind, a text must have the same logits as without the cache.
    """

    def __init__(self, settings: ModelSettings | None = None) -> None:
        settings = settings or ModelSettings()
        file = embedded_file() if settings.name is None else Path(settings.name).expanduser()
        self._llama = llama.open_library()
        self._lock = threading.RLock()
        self._threads = llama.threads(settings.threads or usable_cores())
        self._cache_type = settings.kv_cache_type or "q8_0"
        self._model = load(self._llama, file, settings.gpu_layers)
        self.name = NAME if settings.name is None else f"{file.name}@{fingerprint(file)}"
        self.text = GgufText(self._model, self.name)
        check_kind(self._llama, self._model, self.name)
        self.context_length: int = self._llama.llama_model_n_ctx_train(self._model)
        self._cache_bytes = settings.kv_cache_bytes
        slides = self._llama.llama_model_n_swa(self._model) > 0
        self._sequences = llama.MOST_SEQUENCES // (2 if slides else 1)
        self._memory: Memory
        self._context: int | None = None
        self._close: Any = None
        self.cache: SequenceCache
        self.model_tokens = 0  # processed so far
        self.forwards = 0
        self._open_and_check(may_choose=settings.kv_cache_type is None)
        renew_after_fork(self)

    # -- text ----------------------------------------------------------------------------------

    @property
    def start(self) -> TokenIds:
        """Return the start token, if the tokenizer adds one."""
        return self.text.start

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens."""
        return self.text.encode(text)

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text."""
        return self.text.decode(tokens)

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat with the model's template."""
        return self.text.render_chat(messages, tools)

    # -- sampling and scoring -------------------------------------------------------------------

    def begin(self, request: Sample | Score) -> SampleJob | ScoreJob:
        """Create a job for a request, without computing anything yet."""
        if isinstance(request, Sample):
            self._check(request.prefix, request.max_tokens)
            check_sample(request)
            matchers = [
                self.text.vocabulary.matcher(request.schema) for _ in range(request.n) if request.schema
            ]
            return SampleJob(
                request, self.text.special, self.text.piece, matchers, self._sequences - _PREFIXES
            )
        self._check(request.prefix, max(map(len, request.options)))
        for option in request.options:
            self._check(option)
        return ScoreJob(request)

    def step(self, jobs: Sequence[Job]) -> None:
        """Run one forward pass for as many jobs as the cache has room for, the first ones first.

        Samples grow by one token, questions are answered.
        """
        begun = cast("Sequence[SampleJob | ScoreJob]", jobs)
        if not begun:
            return
        with self._lock:
            if self.cache.youngest < _RECENT and 2 * self.cache.cells <= self._most_cells:
                self._open(2 * self.cache.cells)
            try:
                forward, taken = self._gather(begun)
                self._run(forward)
                self.cache.commit()
            except BaseException:
                self.cache.clear()
                raise
            # All jobs decide before the first one changes, so that an error changes none.
            decided: list[tuple[SampleJob | ScoreJob, Any, int]] = [
                (job, job.weigh(NumpyRows(forward.of(rows))), cost) for job, rows, cost in taken
            ]
            for job, decision, cost in decided:
                job.accept(decision, cost)

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; all requests and branches share the forward passes."""
        return cast(list[Samples], self._answer(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Score each request's options, all in one forward pass once the prefixes are read."""
        return cast(list[Scores], self._answer(batch))

    def _answer(self, batch: Sequence[Sample | Score]) -> list[Samples | Scores | None]:
        jobs = [self.begin(request) for request in batch]
        while unfinished := [job for job in jobs if job.reply is None]:
            self.step(unfinished)
        return [job.reply for job in jobs]

    def after_fork(self) -> None:
        """Replace the lock in a forked process, and the cache if the parent was in a forward pass."""
        idle = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._threads = llama.threads(self._threads)
        if idle:
            self._llama.llama_set_n_threads(self._context, self._threads, self._threads)
        else:
            self._close.detach()  # half of a pass may be in it: it is not touched again
            self._close = None
            self._open(_CELLS)

    def forget(self) -> None:
        """Clear the prefix cache."""
        with self._lock:
            self.cache.clear()

    # -- the forward pass -----------------------------------------------------------------------

    def _gather(
        self, jobs: Sequence[SampleJob | ScoreJob]
    ) -> tuple[Pass, list[tuple[SampleJob | ScoreJob, list[int], int]]]:
        """Put a pass together; return it, and which jobs take part with which rows, at what cost."""
        while True:
            self.cache.begin()
            forward = Pass(self.cache)
            taken: list[tuple[SampleJob | ScoreJob, list[int], int]] = []
            width = 0
            for job in jobs:
                width += job.width
                if taken and width > self._sequences - _PREFIXES:
                    break
                before = len(forward.tokens)
                try:
                    rows = job.read(forward)
                except FullError as full:
                    if taken:
                        break
                    if full.lacking == "sequences":
                        raise ModelError(
                            f"one request has more branches than llama.cpp's {self._sequences} sequences"
                        ) from full
                    self._open(2 * self.cache.cells)  # one request alone needs more: start again
                    break
                taken.append((job, rows, len(forward.tokens) - before))
            if taken:
                return forward, taken

    def _run(self, forward: Pass) -> None:
        """Compute the rows of a pass, and give it the logits that it wants.

        Raises:
            ModelError: llama.cpp could not compute it.
        """
        parts: list[Floats] = []
        rows = len(forward.tokens)
        token = np.array(forward.tokens, np.int32)
        position = np.array(forward.positions, np.int32)
        wanted = np.zeros(rows, np.int8)
        wanted[list(forward.outputs)] = 1
        owned = [self._memory.owners(row) for row in forward.owners]
        counts = np.array([len(row) for row in owned], np.int32)
        owners = np.array([number for row in owned for number in row], np.int32)
        first = np.concatenate([[0], counts.cumsum()[:-1]])
        pointers = (owners.ctypes.data + 4 * first).astype(np.uint64)
        for start in range(0, rows, _BATCH):
            size = min(_BATCH, rows - start)
            batch = llama.Batch(
                size,
                token.ctypes.data + 4 * start,
                None,
                position.ctypes.data + 4 * start,
                counts.ctypes.data + 4 * start,
                pointers.ctypes.data + 8 * start,
                wanted.ctypes.data + start,
            )
            llama.log.clear()
            status = self._llama.llama_decode(self._context, batch)
            if status:
                raise ModelError(f"llama.cpp could not compute a pass (status {status}): {reason()}")
            if count := int(wanted[start : start + size].sum()):
                found = np.ctypeslib.as_array(
                    self._llama.llama_get_logits(self._context), (count, self.text.size)
                )
                parts.append(found if rows <= _BATCH else found.copy())
        forward.take(parts)
        self.model_tokens += rows
        self.forwards += 1

    def _check(self, tokens: TokenIds, more: int = 0) -> None:
        """Check what llama.cpp would not survive.

        Raises:
            PromptError: a text is empty or has a token that there is not.
            PromptTooLongError: it is longer than the context.
        """
        if not tokens:
            raise PromptError("a text of 0 tokens cannot be continued or scored: give at least 1 token")
        if not 0 <= min(tokens) <= max(tokens) < self.text.size:
            wrong = next(token for token in tokens if not 0 <= token < self.text.size)
            raise PromptError(f"there is no token {wrong}: {self.name} has tokens 0 to {self.text.size - 1}")
        if len(tokens) + more > self.context_length:
            raise PromptTooLongError(
                f"{len(tokens)} tokens and {more} more exceed the context of {self.name}, "
                f"{self.context_length} tokens: shorten the prompt or ask for fewer tokens"
            )

    # -- loading --------------------------------------------------------------------------------

    def _open(self, cells: int) -> None:
        """Create a context with an empty cache of this many cells, in place of the present one.

        Raises:
            ModelError: there is not enough memory for it.
        """
        if self._close is not None:
            self.cache.clear()  # places that point into it are of no use any more
            self._close()
        settings = self._llama.llama_context_default_params()
        settings.n_ctx = cells
        settings.n_batch, settings.n_ubatch = _BATCH, _AT_ONCE
        settings.n_seq_max = llama.MOST_SEQUENCES
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.pooling_type = llama.POOLING_NONE
        settings.flash_attn_type = llama.FLASH_ATTENTION
        settings.type_k = settings.type_v = _CACHE_TYPES[self._cache_type][0]
        settings.kv_unified = True
        llama.log.clear()
        context = self._llama.llama_init_from_model(self._model, settings)
        if not context:
            raise ModelError(
                f"there is no memory for {cells} tokens of {self.name} ({reason()}): "
                "lower model.kv_cache_bytes, or close other programs"
            )
        self._context = context
        self._close = weakref.finalize(self, _close, self._llama, context, self.text)
        self._close.atexit = False
        twin = llama.MOST_SEQUENCES - self._sequences
        self._memory = Memory(self._llama, self._llama.llama_get_memory(context), twin)
        self.cache = SequenceCache(self._memory, self._sequences, cells)

    def _open_and_check(self, may_choose: bool) -> None:
        """Open the cache, and check that the model can be rewound.

        With numbers in f16, llama.cpp attends by other routines for one row, for many and over a large cache.
        With q8_0 it does not, but is slower with many rows. It is worth it if a text's logits are then the
        same to the last bit however it is read, which the check finds out.

        Args:
            may_choose: take f16 if q8_0 gains nothing, or if the network's shape does not support it.

        Raises:
            ModelNotSupportedError: the model cannot be rewound.
        """
        try:
            self._open(_CELLS)
            if self._rewound() == 0 or not may_choose:
                return
        except ModelError:
            if not may_choose:
                raise
        self._cache_type = "f16"
        self._open(_CELLS)
        self._rewound()

    @property
    def _most_cells(self) -> int:
        """Return how many cells the cache may grow to."""
        heads = self._llama.llama_model_n_head(self._model)
        shared = self._llama.llama_model_n_head_kv(self._model)
        width = self._llama.llama_model_n_embd(self._model) * shared // max(1, heads)
        number = _CACHE_TYPES[self._cache_type][1]
        each = 2 * width * self._llama.llama_model_n_layer(self._model) * number
        return max(_CELLS, int(self._cache_bytes // max(1, each)))

    def _rewound(self) -> float:
        """Return the largest difference of a text's logits after branches and rewinds from those without.

        Rounding in a quantised file makes one, too: it must be small beside that of one other token.

        Raises:
            ModelNotSupportedError: it is not.
        """
        ids = [i for i in range(self.text.size) if i not in self.text.special][:64]
        text = tuple(ids[7 * i % len(ids)] for i in range(12))
        other = (*text[:4], *text[:5])
        # OpenMP keeps threads for each thread that has computed with several, and lets all spin less once
        # they outnumber the cores. So this thread, which is hardly ever the scheduler's, computes alone.
        self._llama.llama_set_n_threads(self._context, 1, 1)
        try:
            changed = self._last((*text[:5], text[6], *text[6:]))
            reference = self._last(text)
            rewound = self._last(text[:6], other, text[:9], text[:-1], text)
        except ModelError as error:
            raise ModelNotSupportedError(f"{self.name} cannot be rewound: {error}") from error
        self._llama.llama_set_n_threads(self._context, self._threads, self._threads)
        most = float(np.abs(changed - reference).max()) / 2
        difference = float(np.abs(rewound - reference).max())
        if not difference <= most:
            raise ModelNotSupportedError(
                f"{self.name} cannot be rewound: after a rewind, logits differ by {difference:.3f}, more "
                f"than half of what another token makes ({most:.3f}): use a Llama- or Qwen-like model"
            )
        self.cache.clear()
        self.model_tokens = self.forwards = 0
        return difference

    def _last(self, *texts: TokenIds) -> Floats:
        """Return the last text's last logits, after all texts were computed in turn with an empty cache."""
        self.cache.clear()
        for text in texts:
            self.cache.begin()
            forward = Pass(self.cache)
            rows = forward.add(text)
            self._run(forward)
            found: Floats = forward.of(rows)[0].copy()
            self.cache.commit()
        return found


def _close(library: Any, context: int, text: GgufText) -> None:
    """Free a context; until then ``text``, which owns the model's memory, is kept."""
    library.llama_free(context)
