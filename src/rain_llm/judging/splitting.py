"""Split a text into sentences: prose, lists, tables and code, in any script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""Start and end of a sentence in its text, without the white space around it."""

# All quantifiers are possessive: the patterns never backtrack, so the time is linear in the text.
_FENCE = re.compile(r"[ \t]*+(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*+(?:[-*+\u2022\u2013\u2014]|\(?(?:\d{1,3}|[^\W\d_])[.)])[ \t]++")
_HEADING = re.compile(r"[ \t]*+(?:#{1,6}[ \t]|>|\|)")
_CODE = re.compile(r"`[^`]++`")
_CLOSERS = "\"'\u201d\u2019\u00bb)\\]*_\u300d\u300f\uff09\u3011\u300b"
_END = re.compile(
    rf"(?P<spaced>[.!?\u2026]++)[{_CLOSERS}]*+"  # ends a sentence where white space follows
    rf"|[\u3002\uff01\uff1f\uff61\uff0e\u0964\u0965\u061f\u06d4\u1362\u17d4\u104b]++[{_CLOSERS}]*+"
)
_GO_ON = frozenset("\u3068\u3001\uff0c")  # as in: "Yes," he said
_WORD_BEFORE = re.compile(r"[\w.]*\Z")
_HAS_WORD = re.compile(r"\w")
_LONGEST_ABBREVIATION = 12

_ABBREVIATION = re.compile(
    "mr|mrs|ms|dr|prof|sr|jr|st|mt|messrs|gen|col|sgt|capt|lt|rev|hon|gov|sen|rep"
    "|vs|cf|approx|ca|etc|al|ibid|viz|resp|incl|excl|est|dept|univ|inc|ltd|corp|co|bros"
    "|bzw|vgl|usw|evtl|ggf|inkl|sog|mme|mlle|env"
    r"|(?:[^\W\d_]\.)*+[^\W\d_]"  # initials
)
_BEFORE_NUMBERS = re.compile(
    "no|nr|nos|p|pp|figs?|eqs?|sec|ch|vol|art|para|ver|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)


def split(text: str) -> Iterator[Span]:
    """Yield the positions of a text's sentences, in order; each word is in exactly one sentence.

    A list item, a heading, a table row or a line of a poem ends its sentence; a line that continues in lower
    case does not. A fenced code block is one sentence. A full stop after an abbreviation or an initial, in a
    number or in code ends no sentence. A piece without a word belongs to the sentence before it.
    """
    held: Span | None = None
    held_has_word = False
    for start, end in _pieces(text):
        has_word = _HAS_WORD.search(text, start, end) is not None
        if held is None:
            held, held_has_word = (start, end), has_word
        elif has_word and held_has_word:
            yield held
            held = start, end
        else:
            held, held_has_word = (held[0], end), held_has_word or has_word
    if held is not None:
        yield held


def _pieces(text: str) -> Iterator[Span]:
    for start, end, single in _blocks(text):
        for first, last in ((start, end),) if single else _prose(text, start, end):
            words = text[first:last]
            left = len(words) - len(words.lstrip())
            if stripped := words.strip():
                yield first + left, first + left + len(stripped)


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield paragraphs, list items, table rows and code blocks, and whether each is a single sentence."""
    begin = place = 0
    fence = ""
    goes_on = False  # the line before is part of a paragraph that the next may continue
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            place += len(line)
            if found and found[1].startswith(fence):
                yield begin, place, True
                begin, fence = place, ""
            continue
        row = _HEADING.match(line) is not None
        if found or row or not goes_on or _ITEM.match(line) or not line.lstrip()[:1].islower():
            yield begin, place, False
            begin = place
        place += len(line)
        if found:
            fence, goes_on = found[1], False
        elif row:
            yield begin, place, line.lstrip().startswith("|")
            begin, goes_on = place, False
        else:
            goes_on = bool(line.strip())
    yield begin, place, bool(fence)


def _prose(text: str, start: int, end: int) -> Iterator[Span]:
    """Yield the sentences of a paragraph or a list item."""
    item = _ITEM.match(text, start, end)
    codes = (found.span() for found in _CODE.finditer(text, start, end))
    code = next(codes, None)
    begin = start
    for found in _END.finditer(text, item.end() if item else start, end):
        while code and code[1] <= found.start():
            code = next(codes, None)
        if code and code[0] < found.start():
            continue
        if _ends_here(text, found, end):
            yield begin, found.end()
            begin = found.end()
    yield begin, end


def _ends_here(text: str, found: re.Match[str], end: int) -> bool:
    """Return whether these punctuation marks and closing quotes or brackets end a sentence."""
    marks, after = found["spaced"], found.end()
    following = text[after : min(end, after + 4)].lstrip()[:1]
    if marks is None:
        return following not in _GO_ON
    if after < end and not text[after].isspace():
        return False
    quoted = len(found[0]) > len(marks)
    if (quoted or marks in ("...", "\u2026")) and following.islower():
        return False
    if marks != ".":
        return True
    before = text[max(0, found.start() - _LONGEST_ABBREVIATION) : found.start()]
    match = _WORD_BEFORE.search(before)
    word = match[0].casefold() if match else ""
    if _ABBREVIATION.fullmatch(word):
        return quoted
    return not (_BEFORE_NUMBERS.fullmatch(word) and following.isdigit())
