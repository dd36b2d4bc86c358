"""The LanguageModel protocol: all that a search may ask of a model, and what it may rely on.

**Promises** (one contract suite, ``tests/test_contract.py``, holds every implementation to them):

1. *Determinism.* A request carries its own seed. The same request gives the same tokens, alone or
   in a batch, today or tomorrow, up to the model's numerical tolerance: a draw may differ only
   where the random number falls within 1e-4 of a boundary between two tokens.
2. *Log-probabilities* are nats over the whole vocabulary at temperature 1; they agree with an
   uncached forward pass within 1e-3 (float32).
3. *Order.* ``sample`` and ``score`` answer the requests of a batch in their order.
4. *Text is text.* ``encode`` never produces a special token, whatever the text says: a user who
   types ``<|im_start|>`` gets those characters. Only ``render_chat`` writes special tokens, and
   only those of the template.
5. *The end is the end.* Sampling stops at the first special token; it is not part of ``tokens``.
6. *Nothing is left behind.* Caching is the model's own affair: any request may follow any other,
   and memory stays within the model's own budget.
7. *Errors* are ``rain_llm.errors``; a failed batch leaves the model usable.

A local model keeps one promise more, :class:`SteppedModel`: it lets requests join and leave between
two forward passes, questions in the same pass as samples. A model on a server keeps another,
:class:`RemoteModel`: each request travels on its own, and can be called back.

What a server computes in half precision, or in an order that hangs on its other work, is less exact: the
tolerances of 1 and 2 are then the server's (``docs/scale-out.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from rain_llm.requests import Sample, Samples, Score, Scores, Vector
from rain_llm.types import Message, TokenIds, Tool


@runtime_checkable
class LanguageModel(Protocol):
    """A frozen model that can continue token sequences and weigh them."""

    @property
    def name(self) -> str:
        """The model's name and revision: what a cache may key on. Holds no secret."""
        ...

    @property
    def context_length(self) -> int:
        """The most tokens that a prefix and its continuation may have together."""
        ...

    @property
    def start(self) -> TokenIds:
        """The tokens that every raw text begins with: ``(bos,)`` or ``()``."""
        ...

    def encode(self, text: str) -> TokenIds:
        """Turn text into ordinary tokens: no start token, no special token."""
        ...

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text; bytes that do not yet make a character become U+FFFD."""
        ...

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat up to the place where the assistant begins to speak.

        What ``tools`` there are is told by the template, or, where it has no place for them, in words.

        Raises:
            ModelNotSupportedError: the model has no chat template.
        """
        ...

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; see :class:`~rain_llm.requests.Sample`."""
        ...

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Weigh each request's options; see :class:`~rain_llm.requests.Score`."""
        ...


@runtime_checkable
class Job(Protocol):
    """A request that a model is answering.

    Attributes:
        reply: None until the answer is complete.
        model_tokens: tokens that went through the model for it so far; at the end the reply's.
        forwards: forward passes in which it took part so far; at the end the reply's.
    """

    reply: Samples | Scores | None
    model_tokens: int
    forwards: int


@runtime_checkable
class SteppedModel(LanguageModel, Protocol):
    """A model that answers pass by pass, so that requests may join and leave between two passes.

    ``sample`` and ``score`` give what stepping through their requests alone would give.
    """

    def begin(self, request: Sample | Score) -> Job:
        """Take up a request; nothing is computed yet.

        Raises:
            PromptError: the prefix is empty, or it and its continuation exceed the context.
        """
        ...

    def step(self, jobs: Sequence[Job]) -> None:
        """Make one forward pass for all ``jobs``: samples grow by a token, questions are answered.

        A job that is not stepped again is given up: it holds nothing that must be freed. If the pass
        fails, no job has changed.
        """
        ...


@runtime_checkable
class PendingRequest(Job, Protocol):
    """A request that is under way to a model elsewhere.

    Attributes:
        error: why there will be no reply; None while there may be one.
    """

    error: Exception | None


@runtime_checkable
class RemoteModel(LanguageModel, Protocol):
    """A model that answers elsewhere: requests are sent, and each is answered in its own time.

    ``sample`` and ``score`` give what sending their requests gives.
    """

    def send(
        self,
        requests: Sequence[Sample | Score],
        search: object,
        deadline: float | None,
        done: Callable[[], None],
    ) -> Sequence[PendingRequest]:
        """Send the requests of one round on their way, and return at once. From any thread.

        Args:
            requests: at least one.
            search: whose they are: any object that can be hashed and weakly referenced. What one search
                sends goes to the same server, where its prefixes are cached, while that one answers.
            deadline: by ``time.monotonic``; afterwards no reply is wanted.
            done: called whenever a reply or an error has come, from any thread; must return at once.

        Raises:
            PromptError: a prefix is empty, or it and its continuation exceed the context.
        """
        ...

    def recall(self, all_pending: Sequence[PendingRequest]) -> None:
        """Give up what has not been answered; the server is told. From any thread."""
        ...


@runtime_checkable
class Forgetful(Protocol):
    """A model that keeps what it has read, and can let go of it."""

    def forget(self) -> None:
        """Drop every cached prefix; afterwards everything costs, and is computed, as at first."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Turns sentences into unit vectors."""

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """Embed each text: unit vectors of one common length, in order."""
        ...
