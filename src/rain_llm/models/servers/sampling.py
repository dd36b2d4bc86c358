"""Answer a ``Sample`` on a server: draw continuations, and cut each where it should end."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import replace

from rain_llm.errors import ServerNotSupportedError
from rain_llm.models.grammar import fits, narrowed
from rain_llm.models.servers.dialect import Ask, Completion, Cost, Dialect, SampleRequest, distinct, together
from rain_llm.models.tokenizer import Text
from rain_llm.requests import Continuation, Sample
from rain_llm.types import TokenIds


class Sampler:
    """Draws the continuations of requests. Its coroutines run in the background loop; see ``loop``.

    Args:
        dialect: how the server is asked.
        text: the tokenizer.
        name: of the model, for errors.
        server: its address, for errors.
    """

    def __init__(self, dialect: Dialect, text: Text, name: str, server: str) -> None:
        self._dialect = dialect
        self._text = text
        self._name = name
        self._server = server
        self._end_tokens: dict[tuple[str, ...], frozenset[int]] = {}

    async def continuations(self, request: Sample, ask: Ask, cost: Cost) -> list[Continuation]:
        """Draw the continuations of a request, and add what that takes to ``cost``.

        Raises:
            ServerError: no server answered. ServerNotSupportedError: the server ignores the schema.
        """
        if request.ranked:
            ranked = await self._dialect.rank(ask, request.prefix, min(request.n, self._text.size), cost)
            return [self._continuation((place,)) for place in ranked]
        sampled = request.n - request.greedy_first
        parts = [self._part(request, greedy=True)] if request.greedy_first else []
        parts += [self._part(request, n=sampled)] if sampled else []
        costs = [Cost() for _ in parts]
        completions = await together(
            self._dialect.draw(ask, part, its_cost) for part, its_cost in zip(parts, costs, strict=True)
        )
        for its_cost in costs:
            cost.add_beside(its_cost)
        branches = [branch for several in completions for branch in several]
        if request.schema:
            return [self.document(request, branch) for branch in branches]
        return await together(
            self._completed(request, i, branch, ask, cost) for i, branch in enumerate(branches)
        )

    def document(self, request: Sample, completion: Completion) -> Continuation:
        """Cut a JSON document at its end; one that was cut off by the server stays incomplete.

        Servers enforce most of a schema, some not all of it: output that does not match counts as incomplete.

        Raises:
            ServerNotSupportedError: the server reports a complete document, and it is not JSON.
        """
        places = list(zip(completion.tokens, completion.logprobs, strict=True))
        end = next((i for i, token in enumerate(completion.tokens) if token in self._text.special), None)
        found = self._continuation(places if end is None else places[: end + 1], completion.closed)
        text = self._text.decode(found.tokens).strip()
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            if found.ended:
                raise ServerNotSupportedError(
                    self._server,
                    f"the server of {self._name} completed a document that is not JSON ({error}): "
                    "it ignores the schema",
                    "use vLLM or llama-server",
                ) from error
            return found
        # A number may have more digits.
        ended = found.ended or text.endswith(("}", "]", '"'))
        return replace(found, ended=ended and fits(text, request.schema))

    def _part(
        self, request: Sample, n: int = 1, greedy: bool = False, drawn: TokenIds = (), branch: int = 0
    ) -> SampleRequest:
        """Ask for ``n`` continuations of a request; or for the rest of its ``branch``, after ``drawn``."""
        return SampleRequest(
            request.prefix + drawn,
            n,
            request.max_tokens - len(drawn),
            distinct(request.seed, branch, len(drawn)),
            0.0 if greedy else request.temperature,
            0 if greedy else request.top_k,
            1.0 if greedy else request.top_p,
            request.ends,
            self._tokens_that_end(request.ends),
            narrowed(request.schema) if request.schema else "",
            self._control_tokens if request.schema else frozenset(),
        )

    async def _completed(
        self, request: Sample, branch: int, completion: Completion, ask: Ask, cost: Cost
    ) -> Continuation:
        """Cut a continuation where it should end; draw the rest if the server has ended it too early.

        A server stops too early when it finds a stop string inside of a token that ends otherwise.
        """
        places = list(zip(completion.tokens, completion.logprobs, strict=True))
        ends = self._tokens_that_end(request.ends)
        checked = 0
        while True:
            for i in range(checked, len(places)):
                if places[i][0] in ends:
                    return self._continuation(places[: i + 1])
            checked = len(places)
            if completion.closed or checked >= request.max_tokens:
                return self._continuation(places, completion.closed)
            greedy = request.greedy_first and branch == 0
            tokens = tuple(token for token, _ in places)
            rest = self._part(request, 1, greedy, tokens, branch)
            (completion,) = await self._dialect.draw(ask, rest, cost)
            places += zip(completion.tokens, completion.logprobs, strict=True)

    def _continuation(self, places: Sequence[tuple[int, float]], closed: bool = False) -> Continuation:
        """Make a continuation of tokens and log-probabilities; a token that ended it is not in its text."""
        ended = closed or (bool(places) and places[-1][0] in self._text.special)
        text = places[:-1] if ended else places
        return Continuation(
            tuple(token for token, _ in text),
            tuple(logprob for _, logprob in text),
            ended,
            math.fsum(logprob for _, logprob in places),
        )

    def _tokens_that_end(self, ends: tuple[str, ...]) -> frozenset[int]:
        """Return the tokens after which a continuation ends: special ones, and those with such an end."""
        if ends not in self._end_tokens:
            text = self._text
            matching = {i for i in range(text.size) if ends and text.piece(i).endswith(ends)}
            self._end_tokens[ends] = text.special | matching
        return self._end_tokens[ends]

    @functools.cached_property
    def _control_tokens(self) -> frozenset[int]:
        """Tokens with control characters, line breaks among them: a JSON string must escape these."""
        pieces = enumerate(map(self._text.piece, range(self._text.size)))
        return frozenset(i for i, piece in pieces if any(sign < " " for sign in piece))
