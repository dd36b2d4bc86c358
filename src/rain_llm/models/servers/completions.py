"""A model on a server: any completions server that takes token ids and gives them back.

RAIN's state is a tree of token ids on this side, so a server needs to know nothing of it: it continues
prefixes (``n`` times, by a seed) and weighs labels, and finds what it has read before in its own prefix
cache. How each kind of server is asked stands in ``vllm``, ``sglang`` and ``llama_server``; which one of
several is asked, and how long it is waited for, in ``replicas``.

What a server can do is found out by asking it first: many accept a field and ignore it.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from rain_llm.clock import current
from rain_llm.errors import (
    ModelNotFoundError,
    PromptError,
    PromptTooLongError,
    ServerError,
    ServerNotSupportedError,
)
from rain_llm.models.base import PendingRequest
from rain_llm.models.grammar import check, check_sample, fits, narrowed
from rain_llm.models.servers.dialect import (
    PATH,
    Ask,
    Body,
    Completion,
    Contexts,
    Cost,
    SampleRequest,
    Weighed,
    distinct,
    together,
)
from rain_llm.models.servers.failures import Refused
from rain_llm.models.servers.probe import SENTENCE, Facts, identified, probed, server_vocabulary
from rain_llm.models.servers.replicas import Counts, Replica, Replicas, event_loop, in_loop
from rain_llm.models.servers.tokenizer import ServerTokenizer
from rain_llm.models.tokenizer import Text, Tokenizer
from rain_llm.requests import Continuation, Sample, Samples, Score, Scores
from rain_llm.settings import ModelSettings
from rain_llm.types import Message, TokenIds, Tool


@dataclass(eq=False)
class _Pending:
    """A request that is under way; see ``base.PendingRequest``."""

    request: Sample | Score
    task: asyncio.Task[None] | None = None
    reply: Samples | Scores | None = None
    error: Exception | None = None
    model_tokens: int = 0
    forwards: int = 0


@dataclass
class Totals(Cost):
    """What all requests together have cost, and how they fared."""

    http: Counts = field(default_factory=Counts)


class CompletionsModel:
    """A model on one or several completions servers (vLLM, llama-server, and what speaks like them).

    Making one asks every server what it serves and what it can do. Its requests run in the background
    loop of the process; it may be used from any thread.

    Args:
        settings: with ``base_url``; see ``ModelSettings``.

    Attributes:
        name: as the server calls it. context_length: of one request there.
        totals: what it has cost so far: prompt tokens, those of them that servers found in their
            caches, requests, retries. facts: what the servers say of themselves. text: the tokenizer.

    Raises:
        ServerError: no server can be reached, or one refuses. ModelNotFoundError: none of this name.
        ModelNotSupportedError: a server cannot do what a search needs; says what.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self._replicas = Replicas(settings.base_url, settings.api_key, settings.limits, self._check)
        self.totals = Totals(http=self._replicas.counts)
        self._facts: Facts | None = None
        self._end_tokens: dict[tuple[str, ...], frozenset[int]] = {}
        first = in_loop(self._replicas.connect())
        self.text = self._tokenizer(first)
        words = self.text.encode(SENTENCE)
        start, size = self.text.start, self.text.size
        self._dialect = in_loop(probed(self._replicas, first, self.facts, start, words, size))

    # -- text ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name that the server gives the model, as it may be shown."""
        return self._replicas.clean(self.facts.name)

    @property
    def context_length(self) -> int:
        """The most tokens that a prefix and its continuation may have together."""
        return self.facts.context_length

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
        """Render a chat by the model's template."""
        return self.text.render_chat(messages, tools)

    # -- sending -------------------------------------------------------------------------------------

    def sample(self, batch: Sequence[Sample]) -> list[Samples]:
        """Continue each request's prefix; waits for all, then raises the first error."""
        return cast(list[Samples], self._answer(batch))

    def score(self, batch: Sequence[Score]) -> list[Scores]:
        """Weigh each request's options; waits for all, then raises the first error."""
        return cast(list[Scores], self._answer(batch))

    def _answer(self, batch: Sequence[Sample | Score]) -> list[Samples | Scores | None]:
        if not batch:
            return []
        heard = threading.Semaphore(0)
        all_pending = self.send(batch, None, None, heard.release)
        try:
            for _ in all_pending:
                heard.acquire()
        finally:
            self.recall(all_pending)  # where waiting was interrupted
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
        """Send the requests of one round on their way; see ``base.RemoteModel``."""
        for request in requests:
            more = request.max_tokens if isinstance(request, Sample) else max(map(len, request.options))
            self._check_length(len(request.prefix), more)
            if isinstance(request, Sample):
                check_sample(request)
                if request.schema:
                    check(request.schema)
        all_pending = [_Pending(request) for request in requests]
        ask = functools.partial(self._ask, search=search, deadline=deadline)
        event_loop().call_soon_threadsafe(self._begin, all_pending, ask, done)
        return all_pending

    def recall(self, all_pending: Sequence[PendingRequest]) -> None:
        """Give up what has not been answered: its connection is closed, and the server stops."""
        event_loop().call_soon_threadsafe(self._give_up, cast("Sequence[_Pending]", all_pending))

    @staticmethod
    def _give_up(all_pending: Sequence[_Pending]) -> None:
        left = (pending.task for pending in all_pending if pending.reply is None and pending.error is None)
        for task in {task for task in left if task is not None}:  # questions share one
            task.cancel()

    def _begin(self, all_pending: Sequence[_Pending], ask: Ask, done: Callable[[], None]) -> None:
        """Start the tasks of a round, in the loop; one asks all of its questions."""
        loop = asyncio.get_running_loop()
        questions = [pending for pending in all_pending if isinstance(pending.request, Score)]
        for pending in all_pending:
            if isinstance(pending.request, Sample):
                pending.task = loop.create_task(
                    self._run([pending], functools.partial(self._sample, pending, ask), done)
                )
        if questions:
            task = loop.create_task(
                self._run(questions, functools.partial(self._score, questions, ask), done)
            )
            for pending in questions:
                pending.task = task

    @staticmethod
    async def _run(
        all_pending: Sequence[_Pending], work: Callable[[], Awaitable[None]], done: Callable[[], None]
    ) -> None:
        try:
            await work()
        except Exception as error:  # whatever it is, who waits must hear of it
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

    # -- a sample --------------------------------------------------------------------------------------

    async def _sample(self, pending: _Pending, ask: Ask) -> None:
        """Draw the continuations of a request."""
        request, cost = cast(Sample, pending.request), Cost()
        if request.ranked:
            ranked = await self._dialect.rank(ask, request.prefix, min(request.n, self.text.size), cost)
            found = [self._continuation((place,)) for place in ranked]
        else:
            sampled = request.n - request.greedy_first
            samplings = [self._sampling(request, greedy=True)] if request.greedy_first else []
            samplings += [self._sampling(request, n=sampled)] if sampled else []
            bills = [Cost() for _ in samplings]
            drawing = zip(samplings, bills, strict=True)
            drawn = await together(self._dialect.draw(ask, *both) for both in drawing)
            for one in bills:
                cost.add_beside(one)
            branches = [branch for several in drawn for branch in several]
            if request.schema:
                found = [self._document(request, branch) for branch in branches]
            else:
                found = await together(
                    self._whole(request, i, branch, ask, cost) for i, branch in enumerate(branches)
                )
        self._charge(pending, cost)
        pending.reply = Samples(tuple(found), pending.model_tokens, pending.forwards, cost.cached_tokens)

    def _sampling(
        self, request: Sample, n: int = 1, greedy: bool = False, drawn: TokenIds = (), branch: int = 0
    ) -> SampleRequest:
        """Ask for what is left of a request behind what was ``drawn`` for its continuation ``branch``."""
        return SampleRequest(
            request.prefix + drawn,
            n,
            request.max_tokens - len(drawn),
            distinct(request.seed, branch, len(drawn)),
            0.0 if greedy else request.temperature,
            0 if greedy else request.top_k,
            1.0 if greedy else request.top_p,
            request.ends,
            self._ending(request.ends),
            narrowed(request.schema) if request.schema else "",
            self._control if request.schema else frozenset(),
        )

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        """Tokens with control characters, line breaks among them, which no JSON string holds as they are."""
        pieces = enumerate(map(self.text.piece, range(self.text.size)))
        return frozenset(i for i, piece in pieces if any(sign < " " for sign in piece))

    async def _whole(
        self, request: Sample, branch: int, drawn: Completion, ask: Ask, cost: Cost
    ) -> Continuation:
        """Cut a continuation where it should end; go on where the server has ended it too early.

        A stop string may be met inside of a token that ends otherwise.
        """
        places = list(zip(drawn.tokens, drawn.logprobs, strict=True))
        ends = self._ending(request.ends)
        checked = 0
        while True:
            for i in range(checked, len(places)):
                if places[i][0] in ends:
                    return self._continuation(places[: i + 1])
            checked = len(places)
            if drawn.closed or checked >= request.max_tokens:
                return self._continuation(places, drawn.closed)
            greedy = request.greedy_first and branch == 0
            tokens = tuple(token for token, _ in places)
            (drawn,) = await self._dialect.draw(ask, self._sampling(request, 1, greedy, tokens, branch), cost)
            places += zip(drawn.tokens, drawn.logprobs, strict=True)

    def _document(self, request: Sample, drawn: Completion) -> Continuation:
        """Cut a document at its end; what the server has broken off is not gone on with.

        Servers hold a model to most of a schema, some not to all of it: what does not fit is not whole.

        Raises:
            ServerNotSupportedError: the server says that it is whole, and it is no JSON.
        """
        places = list(zip(drawn.tokens, drawn.logprobs, strict=True))
        end = next((i for i, token in enumerate(drawn.tokens) if token in self.text.special), None)
        found = self._continuation(places if end is None else places[: end + 1], drawn.closed)
        text = self.decode(found.tokens).strip()
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            if found.ended:
                raise ServerNotSupportedError(
                    self._settings.base_url[0],
                    f"the server of {self.name} ended a document that is no JSON ({error}): "
                    "it does not hold to the schema",
                    "use one that can, vLLM or llama-server",
                ) from error
            return found
        # More digits may follow those of a number.
        ended = found.ended or text.endswith(("}", "]", '"'))
        return replace(found, ended=ended and fits(text, request.schema))

    def _continuation(self, places: Sequence[tuple[int, float]], closed: bool = False) -> Continuation:
        """Make a continuation; a special token at its end, or one that closed it, is not part of the text."""
        ended = closed or (bool(places) and places[-1][0] in self.text.special)
        text = places[:-1] if ended else places
        return Continuation(
            tuple(token for token, _ in text),
            tuple(logprob for _, logprob in text),
            ended,
            math.fsum(logprob for _, logprob in places),
        )

    def _ending(self, ends: tuple[str, ...]) -> frozenset[int]:
        """Return the tokens behind which a continuation ends: special ones, and those that end so."""
        if ends not in self._end_tokens:
            text = self.text
            fitting = {i for i in range(text.size) if ends and text.piece(i).endswith(ends)}
            self._end_tokens[ends] = text.special | fitting
        return self._end_tokens[ends]

    # -- questions -----------------------------------------------------------------------------------

    async def _score(self, all_pending: Sequence[_Pending], ask: Ask) -> None:
        """Weigh the options of all questions of a round.

        A context is what stands before a token whose log-probability is wanted. Contexts that several
        options share are asked about once; the first question that needs them is charged for them.
        """
        contexts: dict[TokenIds, set[int]] = {}
        owner: dict[TokenIds, _Pending] = {}
        for pending in all_pending:
            for prefix, tokens in _contexts(cast(Score, pending.request)).items():
                contexts.setdefault(prefix, set()).update(tokens)
                owner.setdefault(prefix, pending)
        groups = self._dialect.grouped(list(contexts))
        asked = [{prefix: frozenset(contexts[prefix]) for prefix in group} for group in groups]
        weighed: Weighed = {}
        refused: dict[TokenIds, Exception] = {}
        for group, (found, failed, cost) in zip(
            groups, await together(self._weigh(ask, some) for some in asked), strict=True
        ):
            weighed |= found
            refused |= failed
            self._charge(owner[group[0]], cost)
        for pending in all_pending:
            request = cast(Score, pending.request)
            pending.error = next((refused[p] for p in _contexts(request) if p in refused), None)
            if pending.error is None:
                pending.reply = Scores(_summed(request, weighed), pending.model_tokens, pending.forwards)

    async def _weigh(self, ask: Ask, contexts: Contexts) -> tuple[Weighed, dict[TokenIds, Exception], Cost]:
        """Ask about contexts together; if they are refused, each alone, so that one spoils no other."""
        cost = Cost()
        try:
            return await self._dialect.weigh(ask, contexts, cost), {}, cost
        except ServerError as error:
            if len(contexts) == 1 or not isinstance(error, Refused):
                return {}, dict.fromkeys(contexts, error), cost
        found: Weighed = {}
        refused: dict[TokenIds, Exception] = {}
        for prefix, tokens in contexts.items():
            some, failed, more = await self._weigh(ask, {prefix: tokens})
            found |= some
            refused |= failed
            cost.add(more)
        return found, refused, cost

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
        """What the servers say of themselves."""
        assert self._facts is not None  # found out when the model was made
        return self._facts

    async def _check(self, replica: Replica) -> None:
        """See that a server serves the model: one that was away may have come back as another."""
        facts = await identified(self._replicas, replica, self._settings)
        self._facts = self._facts or facts
        if facts != self._facts:
            clean = self._replicas.clean
            raise ServerError(
                replica.url,
                f"serves {clean(str(facts))}, but {clean(str(self._facts))} was served before",
                "let all addresses of a model serve the same one",
            )

    def _tokenizer(self, replica: Replica) -> Text:
        """Load the tokenizer that was named; else the server's, if it is safe to ask, or a copy of it.

        A server cannot make this process download anything: its copy is found here, or not at all.
        """
        if self._settings.tokenizer is not None:
            return Tokenizer.load(self._settings.tokenizer, self._settings.revision)
        if self.facts.slots:

            def post(path: str, body: Body, read: Callable[[Any], Any]) -> Any:
                return in_loop(self._replicas.post(path, body, read, deadline=current().deadline))

            vocabulary = in_loop(server_vocabulary(self._replicas, replica))
            return ServerTokenizer(post, self.name, vocabulary)
        try:
            return Tokenizer.load(self.facts.root, self._settings.revision, local_only=True)
        except ModelNotFoundError:
            root = self._replicas.clean(self.facts.root) or "somewhere"
        raise ServerNotSupportedError(
            replica.url,
            f"serves {self.name} from {root}, which is not here, and its own /tokenize would let a user's "
            "text pose as special tokens",
            "give model.tokenizer, a folder or hub name",
        )


def _contexts(request: Score) -> dict[TokenIds, set[int]]:
    """Return what stands before the tokens of the options, and the tokens wanted behind it."""
    found = {request.prefix: {option[0] for option in request.options}}
    for option in request.options:
        for i in range(1, len(option)):
            found.setdefault(request.prefix + option[:i], set()).add(option[i])
    return found


def _summed(request: Score, weighed: Weighed) -> tuple[float, ...]:
    """Return the log-probability of each option: the sum over its tokens."""
    first = weighed[request.prefix]
    return tuple(
        math.fsum(
            [first[option[0]]]
            + [weighed[request.prefix + option[:i]][option[i]] for i in range(1, len(option))]
        )
        for option in request.options
    )
