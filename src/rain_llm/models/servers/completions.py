"""A model on one or several completions servers that take token ids and return token ids.

The search's tree of token ids stays on this side: a server continues prefixes (``n`` times, by a seed) and
weighs labels, and finds what it has read before in its own prefix cache. How each kind of server is asked is
in ``vllm``, ``sglang`` and ``llama_server``; which of several servers is asked, in ``replicas``.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rain_llm.errors import (
    ModelNotFoundError,
    PromptError,
    PromptTooLongError,
    ServerError,
    ServerNotSupportedError,
)
from rain_llm.models.base import PendingRequest
from rain_llm.models.grammar import check, check_sample
from rain_llm.models.servers.attempt import Counts
from rain_llm.models.servers.dialect import PATH, Ask, Body, Cost, Dialect, Facts
from rain_llm.models.servers.loop import event_loop, in_loop
from rain_llm.models.servers.probe import SENTENCE, identified, own_tokenizer, probed
from rain_llm.models.servers.replica import Replica
from rain_llm.models.servers.replicas import Replicas
from rain_llm.models.servers.sampling import Sampler
from rain_llm.models.servers.scoring import score
from rain_llm.models.tokenizer import Text, Tokenizer
from rain_llm.requests import Sample, Samples, Score, Scores
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, TokenIds, Tool


@dataclass(eq=False)
class _Pending:
    """A request that was sent; see ``base.PendingRequest``."""

    request: Sample | Score
    task: asyncio.Task[None] | None = None
    reply: Samples | Scores | None = None
    error: Exception | None = None
    model_tokens: int = 0
    forwards: int = 0


_Work = tuple[Sequence[_Pending], Callable[[], Awaitable[None]]]
"""Requests, and what answers them."""


@dataclass
class Totals(Cost):
    """What all requests of a model have cost, and how many HTTP requests they took."""

    http: Counts = field(default_factory=Counts)


class CompletionsModel:
    """A model on one or several completions servers (vLLM, SGLang, llama-server, or with the same API).

    The constructor connects, and checks what every server serves and can do. Requests run in the background
    loop of the process; any thread may send them.

    Args:
        settings: with ``base_url``; see ``ModelSettings``.

    Attributes:
        totals: what all requests have cost so far: prompt tokens, those of them that the servers had
            cached, HTTP requests, retries. text: the tokenizer.

    Raises:
        ServerError: no server can be reached, or one refuses. ModelNotFoundError: no model of this name.
        ModelNotSupportedError: a server cannot do what a search needs; its message says what.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._replicas = Replicas(settings.base_url, settings.api_key, settings.limits, self._check)
        self.totals = Totals(http=self._replicas.counts)
        self._facts: Facts | None = None
        self._tokens: tuple[TokenIds, TokenIds, int] | None = None
        self._identified: set[Replica] = set()  # before the tokenizer was known
        self._dialects: list[Dialect] = []  # the one of the first server that was probed
        self.text = self._tokenizer(in_loop(self._replicas.connect()))
        self._tokens = self.text.start, self.text.encode(SENTENCE), self.text.size
        in_loop(self._replicas.check_again())  # with a tokenizer, every server can be probed
        self._dialect = self._dialects[0]
        self._sampler = Sampler(self._dialect, self.text, self.name, settings.base_url[0])

    # -- text ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name that the server gives the model, without the API key."""
        return self._replicas.clean(self.facts.name)

    @property
    def context_length(self) -> int:
        """The most tokens that a prefix and its continuation may have together."""
        return self.facts.context_length

    @property
    def encodes_remotely(self) -> bool:
        """Whether text is encoded by the server."""
        return not isinstance(self.text, Tokenizer)

    @property
    def start(self) -> TokenIds:
        """The tokens that every raw text begins with."""
        return self.text.start

    def encode(self, text: str) -> TokenIds:
        """Turn text into ordinary tokens."""
        return self.text.encode(text)

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text."""
        return self.text.decode(tokens)

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat with the model's template."""
        return self.text.render_chat(messages, tools)

    # -- sending -------------------------------------------------------------------------------------

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; wait for all, then raise the first error."""
        return cast(list[Samples], self._answer(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Score each request's options; wait for all, then raise the first error."""
        return cast(list[Scores], self._answer(batch))

    def _answer(self, batch: Sequence[Sample | Score]) -> list[Samples | Scores | None]:
        if not batch:
            return []
        answered = threading.Semaphore(0)
        all_pending = self.send(batch, None, None, answered.release)
        try:
            for _ in all_pending:
                answered.acquire()
        finally:
            self.recall(all_pending)  # does something only if waiting was interrupted
        for pending in all_pending:
            if pending.error is not None:
                raise pending.error
        return [pending.reply for pending in all_pending]

    def send(
        self,
        requests: Sequence[Sample | Score],
        search: object,
        deadline: float | None,
        done: Callable[[], None],
    ) -> list[_Pending]:
        """Send the requests of one round and return at once; see ``base.RemoteModel``."""
        for request in requests:
            more = request.max_tokens if isinstance(request, Sample) else max(map(len, request.options))
            self._check_length(len(request.prefix), more)
            if isinstance(request, Sample):
                check_sample(request)
                if request.schema:
                    check(request.schema)
        all_pending = [_Pending(request) for request in requests]
        ask = functools.partial(self._ask, search=search, deadline=deadline)
        event_loop().call_soon_threadsafe(self._begin, all_pending, search, ask, done)
        return all_pending

    def recall(self, all_pending: Sequence[PendingRequest]) -> None:
        """Cancel requests without a reply: closing their connections makes the server stop."""
        event_loop().call_soon_threadsafe(self._give_up, cast("Sequence[_Pending]", all_pending))

    @staticmethod
    def _give_up(all_pending: Sequence[_Pending]) -> None:
        left = (pending.task for pending in all_pending if pending.reply is None and pending.error is None)
        for task in {task for task in left if task is not None}:  # several requests share one
            task.cancel()

    def _begin(
        self, all_pending: Sequence[_Pending], search: object, ask: Ask, done: Callable[[], None]
    ) -> None:
        """Start the tasks of a round, in the loop: one for each sample, one for all scores.

        If the requests of a search go in turn, one task does all: first the scores, so that the cache ends
        with what was drawn last, which the next round continues.
        """
        scores = [pending for pending in all_pending if isinstance(pending.request, Score)]
        works = [(scores, functools.partial(self._score, scores, ask))] if scores else []
        for pending in all_pending:
            if isinstance(pending.request, Sample):
                works.append(([pending], functools.partial(self._sample, pending, ask)))
        in_turn = self._dialect.in_turn and search is not None
        for some in [works] if in_turn else [[work] for work in works]:
            task = asyncio.get_running_loop().create_task(self._run(some, done))
            for pending in (pending for group, _ in some for pending in group):
                pending.task = task

    @staticmethod
    async def _run(works: Sequence[_Work], done: Callable[[], None]) -> None:
        """Do each work, and report when the requests that it answers are done."""
        for all_pending, work in works:
            try:
                await work()
            except Exception as error:  # any kind: the thread that waits must get it
                for pending in all_pending:
                    pending.error = error
            finally:
                for _ in all_pending:
                    done()

    async def _ask(
        self,
        body: Body,
        read: Callable[[Any], Any],
        path: str = PATH,
        *,
        search: object,
        deadline: float | None,
    ) -> Any:
        return await self._replicas.post(path, body, read, search, deadline)

    # -- answering, in the loop ------------------------------------------------------------------------

    async def _sample(self, pending: _Pending, ask: Ask) -> None:
        cost = Cost()
        found = await self._sampler.continuations(cast(Sample, pending.request), ask, cost)
        self._charge(pending, cost)
        pending.reply = Samples(tuple(found), pending.model_tokens, pending.forwards, cost.cached_tokens)

    async def _score(self, all_pending: Sequence[_Pending], ask: Ask) -> None:
        requests = [cast(Score, pending.request) for pending in all_pending]
        results = await score(
            self._dialect, ask, requests, lambda i, cost: self._charge(all_pending[i], cost)
        )
        for pending, result in zip(all_pending, results, strict=True):
            if isinstance(result, Exception):
                pending.error = result
            else:
                pending.reply = Scores(result, pending.model_tokens, pending.forwards)

    # -- limits and costs ----------------------------------------------------------------------------

    def _check_length(self, prefix: int, more: int) -> None:
        if prefix < 1:
            raise PromptError("a prefix of 0 tokens cannot be continued: give at least 1 token")
        if prefix + more > self.context_length:
            raise PromptTooLongError(
                f"{prefix} tokens and {more} more exceed the context of {self.name}, "
                f"{self.context_length} tokens: shorten the prompt or ask for fewer tokens"
            )

    def _charge(self, pending: _Pending, cost: Cost) -> None:
        pending.model_tokens += cost.model_tokens
        pending.forwards = max(pending.forwards, cost.forwards)
        self.totals.add(cost)

    # -- the servers ---------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """What the servers report about themselves."""
        assert self._facts is not None  # set while connecting
        return self._facts

    async def _check(self, replica: Replica) -> None:
        """Check what a server serves, and probe it: after a failure, anything may run at its address.

        As long as no tokenizer is known, it is not probed.
        """
        if replica not in self._identified:
            facts = await identified(self._replicas, replica, self._settings)
            self._facts = self._facts or facts
            if facts != self._facts:
                clean = self._replicas.clean
                raise ServerError(
                    replica.url,
                    f"serves {clean(str(facts))}, but {clean(str(self._facts))} was served before",
                    "use addresses that all serve the same model",
                )
        if self._tokens is None:
            self._identified.add(replica)
            return
        self._identified.discard(replica)
        found = await probed(self._replicas, replica, self.facts, *self._tokens)
        self._dialects = self._dialects or [found]
        if type(found) is not type(self._dialects[0]):
            raise ServerNotSupportedError(
                replica.url, "cannot do all that the other servers can", "use servers of one kind and version"
            )

    def _tokenizer(self, replica: Replica) -> Text:
        """Return the tokenizer that the settings name; else the server's own, or a local copy of it.

        Nothing is downloaded because a server names it: the copy must be here already.
        """
        if self._settings.tokenizer is not None:
            return Tokenizer.load(self._settings.tokenizer, self._settings.revision)
        own = own_tokenizer(self._replicas, replica, self.facts, self.name)
        if own is not None:
            return own
        try:
            return Tokenizer.load(self.facts.root, self._settings.revision, local_only=True)
        except ModelNotFoundError:
            root = self._replicas.clean(self.facts.root) or "somewhere"
        raise ServerNotSupportedError(
            replica.url,
            f"serves {self.name} from {root}, which is not on this machine, and its own tokenizer "
            "could read special tokens in a user's text",
            "give model.tokenizer, a folder or hub name",
        )
