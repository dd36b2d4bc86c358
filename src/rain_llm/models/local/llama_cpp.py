"""A causal language model in a GGUF file, run by llama.cpp in this process.

Every forward pass is one batch of rows of all branches of all requests, over one cache (``llama_cache``). The
jobs (``jobs``) decide which tokens a request needs, and choose tokens by the logits.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

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
from rain_llm.models.local.gguf_file import check_kind, load, usable_cores
from rain_llm.models.local.gguf_text import GgufText
from rain_llm.models.local.jobs import ReadJob, SampleJob, ScoreJob
from rain_llm.models.local.llama_cache import FullError, SequenceCache
from rain_llm.models.local.llama_context import CACHE_TYPES, Context
from rain_llm.models.local.llama_pass import Pass
from rain_llm.models.local.llama_states import architecture
from rain_llm.models.local.numpy_rows import Floats, NumpyRows
from rain_llm.models.local.watched import Watched
from rain_llm.requests import Read, Reading, Sample, Samples, Score, Scores, Values
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, TokenIds, Tool

_CELLS = 4096  # of the cache at first: a pass is slower over a large one
_SIDE_SEQUENCES = 8  # texts whose prefixes the context that reads states keeps
_PREFIXES = 32  # sequences that hold prefixes in a pass; the others can be branches
_RECENT = 64  # passes: what was used since then is evicted only if the cache cannot grow

_Job: TypeAlias = SampleJob | ScoreJob | ReadJob


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
        self.depth: int = self._llama.llama_model_n_layer(self._model) - 1  # see Tap
        self.width: int = self._llama.llama_model_n_embd(self._model)
        self.folder: Path | None = file.parent
        self.fingerprint = (
            f"{architecture(self._llama, self._model)}, {self.depth + 1} x {self.width}, "
            f"{self.text.size} tokens, file {fingerprint(file)}"
        )
        self._watched = Watched()
        self._context: Any = None
        self._side: tuple[tuple[int, ...], SequenceCache, Context] | None = None
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

    def begin(self, request: Sample | Score | Read) -> _Job:
        """Create a job for a request, without computing anything yet."""
        if isinstance(request, Read):
            self._check(request.prefix)
            self._check(request.prefix + request.tokens)
            self._watched.check(request)
            return ReadJob(request)
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
        begun = cast("Sequence[_Job]", jobs)
        if not begun:
            return
        with self._lock:
            if self.cache.youngest < _RECENT and 2 * self.cache.cells <= self._most_cells:
                self._open(2 * self.cache.cells)
            try:
                forward, taken = self._gather(begun)
                self._run(forward)
            except BaseException:
                self.cache.clear()
                raise
            # All jobs decide before the first one changes, so that an error changes none.
            decided: list[tuple[_Job, Any, int]] = [
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

    def read(self, batch: Sequence[Read]) -> list[Values]:
        """Read from the hidden states of each request's tokens; what is cached was read already."""
        return cast(list[Values], self._answer(batch))

    def watch(self, readings: Sequence[Reading]) -> None:
        """Read these from now on; if there is a new one, the prefix cache is cleared."""
        with self._lock:
            if self._watched.add(readings):
                self._open(self.cache.cells)
                self._last((min(set(range(self.text.size)) - self.text.special),))  # can they be read?
                self.cache.clear()

    def states(self, prefix: TokenIds, tokens: TokenIds, layers: Sequence[int]) -> Floats:
        """Return the hidden states of ``tokens`` after ``prefix``, shape [tokens, layers, width].

        They are computed in a context of their own, which keeps the latest prefixes.
        """
        text = prefix + tokens
        self._check(prefix)
        self._check(text)
        with self._lock:
            if self._side is None or self._side[0] != tuple(layers) or self._side[1].cells < 2 * len(text):
                cells = max(_CELLS // 4, 2 * len(text))
                context = self._new_context(cells, 0, layers)
                self._side = tuple(layers), SequenceCache(context.memory, _SIDE_SEQUENCES, cells), context
            _, cache, context = self._side
            cache.begin()
            forward = Pass(cache)
            try:
                forward.add(text, len(tokens))  # all rows of the tokens, cached or not
                forward.outputs.clear()
                context.run(forward)
            except BaseException:
                cache.clear()
                raise
            cache.commit()
            assert forward.states is not None  # the context reads some layers
            return forward.states[-len(tokens) :]

    def _answer(self, batch: Sequence[Sample | Score | Read]) -> list[Samples | Scores | Values | None]:
        jobs = [self.begin(request) for request in batch]
        while unfinished := [job for job in jobs if job.reply is None]:
            self.step(unfinished)
        return [job.reply for job in jobs]

    def after_fork(self) -> None:
        """Replace the lock in a forked process, and the cache if the parent was in a forward pass."""
        idle = self._lock.acquire(blocking=False)
        self._lock = threading.RLock()
        self._threads = llama.threads(self._threads)
        if self._side is not None:  # its threads are the parent's
            self._side[2].abandon()
            self._side = None
        if idle:
            self._context.use_threads(self._threads)
        else:
            self._context.abandon()
            self._context = None
            self._open(_CELLS)

    def forget(self) -> None:
        """Clear the prefix cache."""
        with self._lock:
            self.cache.clear()

    # -- the forward pass -----------------------------------------------------------------------

    def _gather(self, jobs: Sequence[_Job]) -> tuple[Pass, list[tuple[_Job, list[int], int]]]:
        """Put a pass together; return it, and which jobs take part with which rows, at what cost."""
        while True:
            self.cache.begin()
            forward = Pass(self.cache, self._watched)
            taken: list[tuple[_Job, list[int], int]] = []
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
        """Compute a pass, and what is read from its hidden states."""
        if forward.tokens:  # a text that is read may be cached completely
            self._context.run(forward)
            self.model_tokens += len(forward.tokens)
            self.forwards += 1
        self.cache.commit(self._watched.numbers(forward.states))

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
        if self._context is not None:
            self.cache.clear()  # places that point into it are of no use any more
            self._context.close()
            self._context = None
        twin = llama.MOST_SEQUENCES - self._sequences
        layers = self._watched.layers
        self._context = self._new_context(cells, twin, layers)
        self.cache = SequenceCache(self._context.memory, self._sequences, cells)

    def _new_context(self, cells: int, twin: int, layers: Sequence[int]) -> Context:
        return Context(
            self._llama, self._model, self.text, cells, self._cache_type, self._threads, twin, layers
        )

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
        number = CACHE_TYPES[self._cache_type][1]
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
        self._context.use_threads(1)
        try:
            changed = self._last((*text[:5], text[6], *text[6:]))
            reference = self._last(text)
            rewound = self._last(text[:6], other, text[:9], text[:-1], text)
        except ModelError as error:
            raise ModelNotSupportedError(f"{self.name} cannot be rewound: {error}") from error
        self._context.use_threads(self._threads)
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
        return found
