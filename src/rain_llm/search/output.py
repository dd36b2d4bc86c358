"""Structured output: an answer that is one JSON document, or free text followed by tool calls.

The fixed parts of a call (its opening and closing) are inserted here and never sampled. The rest is sampled
under its JSON schema, always from the first token of the document: no model or server has to continue a
half-written document.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

from rain_llm.models.base import LanguageModel
from rain_llm.requests import Continuation, Sample
from rain_llm.search.answer import Answer
from rain_llm.search.seeds import seed_of
from rain_llm.tools import CLOSING, OPENING, read
from rain_llm.types import TokenIds, ToolCall


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The form of an answer: free text by default, one JSON document, or text with tool calls.

    Attributes:
        document: JSON schema (as JSON text) of an answer that is one document; "": it is free text.
        call: JSON schema (as JSON text) of one tool call; "": there are no tools.
        forced: whether the answer must begin with a call.
        several: whether one answer may contain several calls.
    """

    document: str = ""
    call: str = ""
    forced: bool = False
    several: bool = True

    @property
    def opening(self) -> str:
        """Return the marker that precedes a call; "" if there are no tools."""
        return OPENING if self.call else ""


class Draw(Protocol):
    """Builds the request for one continuation."""

    def __call__(
        self, tokens: TokenIds, length: int, schema: str = "", ends: tuple[str, ...] | None = None
    ) -> Sample:
        """Request at most ``length`` tokens after ``tokens``; ``ends`` replaces the usual end strings."""
        ...


class Draft(NamedTuple):
    """A document or tool calls, as far as they were sampled.

    Attributes:
        tokens: the complete calls; without one, or for a document, all tokens sampled.
        finished: whether nothing is missing.
        cut: whether the token limit cut it off.
    """

    tokens: TokenIds
    finished: bool
    cut: bool = False


Drafting: TypeAlias = Generator[Sample, Continuation, Draft]
"""Yields requests, receives continuations."""


def write_document(form: OutputSpec, draw: Draw, room: int) -> Drafting:
    """Sample a JSON document of at most ``room`` tokens."""
    found = yield draw((), room, form.document)
    return Draft(found.tokens, found.ended, not found.ended and len(found.tokens) >= room)


def write_calls(
    form: OutputSpec, writer: LanguageModel, draw: Draw, room: int, opening: TokenIds
) -> Drafting:
    """Sample a tool call after its opening, and the further calls that the model adds.

    The result includes the opening. If there is no room for another call, the calls before it are kept.
    """
    closing, another = writer.encode(f"\n{CLOSING}"), writer.encode(f"\n{OPENING}\n")
    complete: TokenIds = ()
    tokens = opening
    cut = True
    while (left := room - len(tokens) - len(closing)) > 0:
        call = yield draw(tokens, left, form.call)
        if not call.ended:
            cut = len(call.tokens) >= left
            break
        complete = tokens = tokens + call.tokens + closing
        left = min(len(another), room - len(tokens))
        if not (form.several and left):
            break
        more = yield draw(tokens, left, ends=(OPENING,))
        if not writer.decode(more.tokens).lstrip().startswith(OPENING):
            break
        tokens += another
    return Draft(complete, True) if complete else Draft(tokens, False, cut)


def opening_tokens(writer: LanguageModel) -> TokenIds:
    """Encode the beginning of an answer that must begin with a call."""
    return writer.encode(f"{OPENING}\n")


def opening_of(
    writer: LanguageModel, read: Callable[[TokenIds], tuple[str, bool]], tokens: TokenIds
) -> tuple[TokenIds, TokenIds]:
    """Split sampled tokens where they open a tool call.

    Args:
        writer: encodes the opening.
        read: returns the answer's text followed by some tokens, and whether a stop string ended it.
        tokens: sampled tokens that may open a call.

    Returns:
        The tokens before the call, and the tokens of its opening; (): no call is opened.
    """
    text, stopped = read(tokens)
    place = -1 if stopped else text.find(OPENING)
    if place < 0:
        return tokens, ()
    kept = len(tokens)
    while True:
        before, cut = read(tokens[:kept])
        if not kept or (not cut and len(before) <= place and text.startswith(before)):
            return tokens[:kept], writer.encode(f"{text[:place]}{OPENING}\n"[len(before) :])
        kept -= 1


def calls_in(answer: Answer, origin: int, form: OutputSpec, more: TokenIds = ()) -> tuple[ToolCall, ...]:
    """Return the tool calls in an answer followed by ``more`` tokens; their ids depend on all tokens."""
    if not form.call:
        return ()
    _, calls = read(answer.read(more)[0])
    written = (*answer.tokens, *more)
    return tuple(
        replace(call, id=f"call_{seed_of(origin, place, *written):016x}") for place, call in enumerate(calls)
    )
