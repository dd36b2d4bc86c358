"""What an answer may hold beside free text: one JSON document, or calls of tools behind its text.

What is fixed (a call's opening and closing) is written here and never sampled; what is free within a
document or a call is sampled under its schema, from its first token on. So a schema is asked for where
its document begins, and nobody, no server either, has to take up half of one.
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
    """The form of an answer; without arguments, free text.

    Attributes:
        document: JSON schema, as JSON text, of an answer that is one document; "": it is none.
        call: the same of one call; "": there are no tools.
        forced: the answer begins with a call.
        several: one answer may hold several calls.
    """

    document: str = ""
    call: str = ""
    forced: bool = False
    several: bool = True

    @property
    def opening(self) -> str:
        """What stands before a call; "": there are none."""
        return OPENING if self.call else ""


class Draw(Protocol):
    """Makes the request for one continuation."""

    def __call__(
        self, tokens: TokenIds, length: int, schema: str = "", ends: tuple[str, ...] | None = None
    ) -> Sample:
        """Ask for at most ``length`` tokens behind the draft's ``tokens``; ``ends`` in place of the usual."""
        ...


class Draft(NamedTuple):
    """A document, or calls, as far as they came.

    Attributes:
        tokens: of what is whole. finished: nothing is missing. cut: there was no room for the rest.
    """

    tokens: TokenIds
    finished: bool
    cut: bool = False


Drafting: TypeAlias = Generator[Sample, Continuation, Draft]
"""Yields requests, receives continuations."""


def write_document(form: OutputSpec, draw: Draw, room: int) -> Drafting:
    """Write a document of at most ``room`` tokens."""
    found = yield draw((), room, form.document)
    return Draft(found.tokens, found.ended, not found.ended and len(found.tokens) >= room)


def write_calls(
    form: OutputSpec, writer: LanguageModel, draw: Draw, room: int, opening: TokenIds
) -> Drafting:
    """Write a call behind its opening, and those that the model lets follow.

    Returns the opening too. Where there is no room for another call, those before it stand.
    """
    closing, another = writer.encode(f"\n{CLOSING}"), writer.encode(f"\n{OPENING}\n")
    whole: TokenIds = ()
    tokens = opening
    cut = True
    while (left := room - len(tokens) - len(closing)) > 0:
        call = yield draw(tokens, left, form.call)
        if not call.ended:
            cut = len(call.tokens) >= left
            break
        whole = tokens = tokens + call.tokens + closing
        left = min(len(another), room - len(tokens))
        if not (form.several and left):
            break
        more = yield draw(tokens, left, ends=(OPENING,))
        if not writer.decode(more.tokens).lstrip().startswith(OPENING):
            break
        tokens += another
    return Draft(whole, True) if whole else Draft(tokens, False, cut)


def opening_tokens(writer: LanguageModel) -> TokenIds:
    """Return how an answer begins that begins with a call."""
    return writer.encode(f"{OPENING}\n")


def opening_of(
    writer: LanguageModel, read: Callable[[TokenIds], tuple[str, bool]], draft: TokenIds
) -> tuple[TokenIds, TokenIds]:
    """Cut a draft where it opens a call.

    Args:
        writer: encodes the opening.
        read: the text of the answer with some tokens behind it, and whether a stop string has cut it.
        draft: tokens that may open a call.

    Returns:
        The tokens that stay of the draft, and those of the opening as it is to be written behind them;
        (): the draft opens no call.
    """
    text, stopped = read(draft)
    place = -1 if stopped else text.find(OPENING)
    if place < 0:
        return draft, ()
    kept = len(draft)
    while True:
        before, cut = read(draft[:kept])
        if not kept or (not cut and len(before) <= place and text.startswith(before)):
            return draft[:kept], writer.encode(f"{text[:place]}{OPENING}\n"[len(before) :])
        kept -= 1


def calls_in(answer: Answer, origin: int, form: OutputSpec, more: TokenIds = ()) -> tuple[ToolCall, ...]:
    """Return the calls in an answer with ``more`` tokens after it; their ids depend on its tokens."""
    if not form.call:
        return ()
    _, calls = read(answer.read(more)[0])
    written = (*answer.tokens, *more)
    return tuple(
        replace(call, id=f"call_{seed_of(origin, place, *written):016x}") for place, call in enumerate(calls)
    )
