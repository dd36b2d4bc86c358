"""The LanguageModel protocol: the operations that a search needs from a model, and their guarantees.

**Guarantees** (``tests/test_contract.py`` checks every implementation):

1. *Determinism.* A request carries its own seed. The same request returns the same tokens, alone or in a
   batch, up to the model's numerical tolerance: a sampled token may differ only where the random number
   falls within 1e-4 of a boundary between two tokens.
2. *Log-probabilities* are in nats, over the full vocabulary at temperature 1; they agree with an uncached
   forward pass within 1e-3 (float32).
3. *Order.* ``sample`` and ``score`` return replies in the order of the requests.
4. *Text is text.* ``encode`` never produces a special token: a user who types ``<|im_start|>`` gets those
   characters. Only ``render_chat`` produces special tokens, and only those of the template.
5. *End.* Sampling stops at the first special token, which is not part of ``tokens``.
6. *No side effects.* Caching is internal: any request may follow any other, and memory stays within the
   model's budget.
7. *Errors* are those of ``rain_llm.errors``; a failed batch leaves the model usable.

A local model also implements :class:`SteppedModel`: requests can join and leave between two forward passes,
and questions share a pass with samples. A model on a server implements :class:`RemoteModel`: each request is
sent on its own and can be cancelled.

A quantised model, one in half precision, or a server whose order of computation depends on its other work, is
less exact: the tolerances of 1 and 2 are then its own (``docs/performance.md``, ``docs/scale-out.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rain_llm.requests import Read, Reading, Sample, Samples, Score, Scores, Values, Vector
from rain_llm.types import Message, TokenIds, Tool


@runtime_checkable
class LanguageModel(Protocol):
    """A frozen model that can continue token sequences and compute their log-probabilities."""

    @property
    def name(self) -> str:
        """Return the model's name and revision, usable as a cache key. Contains no secret."""
        ...

    @property
    def context_length(self) -> int:
        """Return the maximum number of tokens of a prefix and its continuation together."""
        ...

    @property
    def start(self) -> TokenIds:
        """Return the tokens that every raw text begins with: ``(bos,)`` or ``()``."""
        ...

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens: no start token, no special token."""
        ...

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text; an incomplete character becomes U+FFFD."""
        ...

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat up to the beginning of the assistant's turn.

        The template describes ``tools``; if it cannot, they are described in a system message.

        Raises:
            ModelNotSupportedError: the model has no chat template.
        """
        ...

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; see :class:`~rain_llm.requests.Sample`."""
        ...

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Compute each request's option log-probabilities; see :class:`~rain_llm.requests.Score`."""
        ...


@runtime_checkable
class Job(Protocol):
    """A request that a model is working on.

    Attributes:
        model_tokens: tokens that the model has processed for it so far; at the end those of the reply.
        forwards: forward passes that it took part in so far; at the end those of the reply.
    """

    model_tokens: int
    forwards: int

    @property
    def reply(self) -> Samples | Scores | Values | None:
        """Return the reply; None until it is complete."""
        ...


@runtime_checkable
class SteppedModel(LanguageModel, Protocol):
    """A model that works pass by pass, so that requests can join and leave between two forward passes.

    ``sample`` and ``score`` return the same as stepping through their requests alone.
    """

    def begin(self, request: Sample | Score) -> Job:
        """Create a job for a request, without computing anything yet.

        Raises:
            PromptError: the prefix is empty, or it and its continuation exceed the context.
        """
        ...

    def step(self, jobs: Sequence[Job]) -> None:
        """Run one forward pass for all ``jobs``: samples grow by one token, questions are answered.

        A job that is never stepped again needs no cleanup. If the pass fails, no job has changed.
        """
        ...


@runtime_checkable
class Readable(LanguageModel, Protocol):
    """A model whose hidden states can be read. If it is a :class:`SteppedModel`, it begins Reads, too.

    Attributes:
        fingerprint: identifies architecture, sizes, weights and chat template: what was fitted to the hidden
            states of one model means nothing for another.
        folder: the folder of its files, where the files of probes may lie, too; None: unknown.
    """

    fingerprint: str
    folder: Path | None

    @property
    def depth(self) -> int:
        """Return how many blocks have outputs that can be read, from the first one on."""
        ...

    @property
    def width(self) -> int:
        """Return how many numbers the output of a block has for each token."""
        ...

    def watch(self, readings: Sequence[Reading]) -> None:
        """Read these from now on, besides those of earlier calls; this may clear the prefix cache."""
        ...

    def read(self, batch: Sequence[Read]) -> list[Values]:
        """Return what each request reads; see :class:`~rain_llm.requests.Read`."""
        ...

    def states(self, prefix: TokenIds, tokens: TokenIds, layers: Sequence[int]) -> NDArray[np.float32]:
        """Return the hidden states of ``tokens`` after ``prefix``, shape [tokens, layers, width].

        Raises:
            PromptError: the prefix or the text is empty. PromptTooLongError: they exceed the context.
        """
        ...


@runtime_checkable
class PendingRequest(Job, Protocol):
    """A request that was sent to a remote model.

    Attributes:
        error: why there will be no reply; None while a reply is still possible.
    """

    error: Exception | None


@runtime_checkable
class RemoteModel(LanguageModel, Protocol):
    """A model on a server, to which requests are sent asynchronously.

    ``sample`` and ``score`` return the same as sending their requests.
    """

    def send(
        self,
        requests: Sequence[Sample | Score],
        search: object,
        deadline: float | None,
        done: Callable[[], None],
    ) -> Sequence[PendingRequest]:
        """Send the requests of one round and return immediately. Thread-safe.

        Args:
            requests: at least one request.
            search: the search that sends them: any hashable, weakly referenceable object. Requests of one
                search go to the same server, which has its prefixes cached, while that server answers.
            deadline: time by ``time.monotonic`` after which no reply is needed.
            done: called from any thread when a reply or an error has arrived; must return immediately.

        Raises:
            PromptError: a prefix is empty, or it and its continuation exceed the context.
        """
        ...

    def recall(self, all_pending: Sequence[PendingRequest]) -> None:
        """Cancel requests that have no reply yet, also on the server. Thread-safe."""
        ...


@runtime_checkable
class RemoteText(Protocol):
    """A model that may have no tokenizer of its own.

    Attributes:
        encodes_remotely: ``encode`` and ``render_chat`` wait for a server.
    """

    encodes_remotely: bool


@runtime_checkable
class Forgetful(Protocol):
    """A model that has a prefix cache and can clear it."""

    def forget(self) -> None:
        """Clear the prefix cache, so that every prefix is computed again."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Embeds sentences as unit vectors."""

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Embed each text; returns unit vectors of equal dimension, in order."""
        ...
