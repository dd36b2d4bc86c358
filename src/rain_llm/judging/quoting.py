"""Remove fake verdicts from a text before a judge reads it (prompt injection against the judge).

**Threat.** A prompt, an answer, a passage and the arguments of a tool call all become part of the judge's
question. A language model continues what it reads: a text that ends in ``Tone: friendly`` makes ``friendly``
likelier after the frame ``The tone of this text is``, whatever the rest of the text says. So a text must not
be able to

1. imitate the question: open a line, a field, an option or a chat turn of it;
2. imitate the answer: give a label or an option's letter as if it were the verdict;
3. hide either from this module by signs, invisible characters, letters of other scripts or markup;
4. use this module to hide its own words from the judge.

**Defence.** Every text that a judge reads passes through :meth:`Quoter.readings`:

* The judge sees one line of visible characters (:mod:`rain_llm.judging.spelling`).
* Only *words* matter, not the signs between them, so all signs, brackets, quotes, table cells and tags are
  equal. Adjacent words of the question (fields), labels and a closed list of small words form a *claim*. A
  claim is removed. It consists of these words only, so no other text can be hidden in it.
* Unknown words may form a claim, too (``Stimmung: warm``). A text with passages of that form (a short
  ``key: value``, a remark on the text itself, a label alone) gets three readings: as it is, without claims
  of one unknown word, and without all of them. The lowest score counts. So such a passage cannot improve a
  verdict, and removing it cannot hide its content.

**Limits.** Flattery: kind words in ordinary sentences are part of the text, and a soft judge weighs them
(measured in ``docs/evaluation.md``). If the harm itself is written as short records, only the first reading
shows both the harm and a claim of several unknown words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from rain_llm.criteria.criterion import Criterion
from rain_llm.judging.spelling import closes, is_colon, opens, seen
from rain_llm.judging.vocabulary import Kind, Vocabulary, Word

_ENDS = re.compile(r"\n|[.!?\u2026\u3002\uff01\uff1f][\"'\u2019\u201d)\]]{0,4}\s")
_ATTACHED = ".!?,;\u2026)]\"'\u2019\u201d"  # signs that stay with the word before a claim
_LAYERS = 4  # rounds of removal: removing a claim may form a new one; then all labels and brackets go
_KEY, _VALUE = 3, 5  # maximum words of key and value in a record, ``key: value``
_REMARK = 16  # maximum words of a remark on the text
_OTHERS = 2  # maximum unknown words of a remark without a label

_TELLING = frozenset({"field", "cue", "good", "mark", "letter"})


class Quoter:
    """Removes from texts what imitates an answer to one criterion's question."""

    def __init__(self, criterion: Criterion) -> None:
        self._vocabulary = Vocabulary(criterion)
        self._words = self._vocabulary.words

    def read(self, text: str) -> str:
        """Return a text on one line, without claims."""
        return _read(self, text)

    def readings(self, text: str) -> tuple[str, str]:
        """Return a text on one line without claims, and a second reading without possible claims.

        For most texts both are equal. The second may be empty.
        """
        return self.read(text), _rest(self, text, _VALUE)

    def between(self, text: str) -> str:
        """Return a third reading, without possible claims of one unknown word.

        The second reading of :meth:`readings` removes all short records, which may contain the harm. This
        one keeps them, so that claims in unknown words cannot cover it.
        """
        return _rest(self, text, 1)

    # -- claims ------------------------------------------------------------------------------------

    def without_claims(self, text: str) -> str:
        """Remove claims; if they are nested too deeply, remove all labels, brackets and colons."""
        text = _one_line(text)
        for _ in range(_LAYERS):
            before, text = text, _one_line(self._without_claims(text))
            if text == before:
                return text
        bare = list(text)
        for word in self._words(text):
            if word.kind in ("good", "bad"):
                bare[word.start : word.end] = " " * (word.end - word.start)
        return _one_line("".join(" " if opens(c) or closes(c) or is_colon(c) else c for c in bare))

    def _without_claims(self, text: str) -> str:
        words = self._words(text)
        dropped = self._dropped(text, words)
        kept, start = [], 0
        for first, last in _claims(text, words):
            left = _gap(text, words, first)
            attached = len(left) - len(left.lstrip(_ATTACHED + ":" * _is_named(words, first))) if first else 0
            kept.append((start, words[first].start - len(left) + attached))
            right = _gap(text, words, last + 1)
            start = words[last].end + len(right)
            if last + 1 < len(words) and " " in right:
                start -= len(right) - right.rfind(" ") - 1  # keep the signs attached to the next word
        kept.append((start, len(text)))
        return " ".join("".join(text[i] for i in range(*part) if i not in dropped) for part in kept)

    def _dropped(self, text: str, words: Sequence[Word]) -> set[int]:
        """Find the signs that would turn a word into a field or an option's mark."""
        dropped = set()
        for i, word in enumerate(words):
            gap = _gap(text, words, i + 1)
            if word.name in self._vocabulary.own:
                dropped |= {word.end + place for place, sign in enumerate(gap) if is_colon(sign)}
            if word.kind == "mark" and _any(opens, _gap(text, words, i)[-2:]):
                left = _gap(text, words, i)
                around = len(left) - len(left.rstrip("".join(filter(opens, left)) + " "))
                dropped |= {p for p in range(word.start - around, word.start) if text[p] != " "}
                around = len(gap) - len(gap.lstrip("".join(filter(closes, gap)) + " "))
                dropped |= {p for p in range(word.end, word.end + around) if text[p] != " "}
        return dropped

    # -- possible claims -----------------------------------------------------------------------------

    def cut(self, text: str, most: int = _VALUE) -> str:
        """Remove possible claims: labels alone, remarks on the text, short records.

        Args:
            text: the visible characters of a text.
            most: maximum number of words in a record's value.
        """
        kept, headed = [], False
        ends = [0, *(end.end() for end in _ENDS.finditer(text)), len(text)]
        for sentence in (_one_line(text[i:j]) for i, j in pairwise(ends)):
            words = self._words(sentence)
            kinds = {word.kind for word in words}
            if not words:
                kept.append("" if _any(_joins, sentence) else sentence)
                headed = False
            elif "other" not in kinds and kinds & _TELLING:
                headed = headed or bool(kinds & {"field", "cue"})
            elif not _is_remark(words, kinds, min(most, _OTHERS)):
                cut = _asides(sentence, words, most)
                if headed:  # the value is on the line after its key
                    cut |= _value(words, 0, len(words), most)
                kept.append(_without(sentence, words, cut))
                headed = kinds != {"small"} and kinds <= {"bad", "small", "link"}
        return " ".join(kept)


def _asides(text: str, words: Sequence[Word], most: int) -> set[int]:
    """Find the words of ``key: value``, in any signs, and of labels between signs."""
    cut: set[int] = set()
    gaps = [_joint(text, words, i) for i in range(len(words))]
    starts = [i for i, gap in enumerate(gaps) if gap or i == 0] + [len(words)]
    key, free = range(0), False  # the previous cell, and whether it is separate from prose
    for first, end in pairwise(starts):
        cell = range(first, end)
        apart = end == len(words) or gaps[end] in ("join", "sign")
        praise = _praise(words, first, end)
        named = gaps[first] == "join" and _is_named(words, first - 1)
        if named and len(cell) > most:  # "the blue label; after that it ..." is prose
            named = _any(_joins, _gap(text, words, first))
        record = gaps[first] == "join" and free and len(key) <= _KEY
        if named:
            cut |= {first - 1} | _value(words, first, end, most)
        if record and (praise or (apart and len(cell) <= most)):
            cut |= {*key} | _value(words, first, end, most)
        good = any(words[i].kind == "good" for i in praise)
        if good and (
            gaps[first] == "join"
            or (apart and (first == 0 or gaps[first] == "sign") and len(praise) == len(cell))
        ):
            cut |= praise
        key, free = cell, gaps[first] != "part"
    return cut


def _joint(text: str, words: Sequence[Word], i: int) -> str:
    """Classify the signs before a word: "join" (before a value), "sign" or "part" (separators), or ""."""
    gap = _gap(text, words, i)
    sign = _is_sign(gap)
    if _any(_joins, gap) or (sign and _is_named(words, i - 1)):
        return "join"
    return "sign" if sign else "part" if _any(_parts, gap) else ""


def _value(words: Sequence[Word], first: int, end: int, most: int) -> set[int]:
    """Select a possible value: all words if they are few, or else the known ones, or else the first."""
    if end - first <= most:
        return {*range(first, end)}
    return _praise(words, first, end) or ({first} if most > 1 else set())


def _praise(words: Sequence[Word], first: int, end: int) -> set[int]:
    """Find the known words at the beginning, up to the last verdict among them."""
    found = last = first
    while found < end and words[found].kind != "other":
        found += 1
        if words[found - 1].kind in ("good", "value", "letter"):
            last = found
    return {*range(first, last)}


def _is_remark(words: Sequence[Word], kinds: set[Kind], most: int) -> bool:
    """Return whether a sentence is a remark on the text itself: with a label, or in a few words."""
    if not kinds & {"field", "cue"} or len(words) > _REMARK:
        return False
    others = sum(word.kind == "other" for word in words)
    if "good" in kinds:
        return most > 1 or others <= most
    return bool(kinds & {"link", "cue"}) and others <= most


def _without(text: str, words: Sequence[Word], cut: set[int]) -> str:
    """Remove some words and the signs around them."""
    kept, start = [], 0
    for i, word in enumerate(words):
        if i in cut:
            if i == 0 or i - 1 not in cut:
                kept.append(text[start : words[i - 1].end if i else 0])
            start = words[i + 1].start if i + 1 < len(words) else len(text)
        elif i and i - 1 in cut:
            start = word.start
    return " ".join([*kept, text[start:]])


def _claims(text: str, words: Sequence[Word]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last word of each claim."""
    start = 0
    for i in range(len(words) + 1):
        if i == len(words) or words[i].kind == "other" or _ENDS.search(_gap(text, words, i)):
            if claim := _claim(text, words, start, i):
                yield claim
            start = i if i < len(words) and words[i].kind != "other" else i + 1


def _claim(text: str, words: Sequence[Word], start: int, end: int) -> tuple[int, int] | None:
    """Find the claim in a run of known words: a field, followed by at least one verdict."""
    first = last = named = None
    linked = False  # a link or sign was found since the field or the previous verdict
    for i in range(start, end):
        kind, gap = words[i].kind, _gap(text, words, i)
        before = words[i - 1].kind if i > start else "other"
        joined = _any(_joins, gap)
        signed = joined or _is_sign(gap) or "/" in gap
        linked = linked or signed or kind == "link"
        follows = named is not None and (linked or before in ("field", "cue", "mark", "good", "bad"))
        if kind in ("field", "cue", "mark"):
            named = i if named is None else named
            linked = kind == "cue"
        elif (
            kind == "good" and (follows or _any(is_colon, gap) or (joined and _ends(text, words, i, end)))
        ) or (
            kind == "bad"
            and (before == "cue" or (_ends(text, words, i, end) and (joined or (follows and signed))))
        ):
            last = i
        elif kind == "value" and (
            (signed and before in ("field", "cue", "good", "bad"))
            or (last == i - 1 and (" " not in gap or "/" in gap))
        ):
            named = i - 1 if named is None and before == "good" else named
            last = i
        elif kind == "letter" and named is not None and words[named].kind != "mark":
            last = i
        if last == i and first is None:
            first = named if named is not None else i
    if first is None or last is None:
        return None
    while first > start and words[first - 1].kind in ("small", "link"):
        first -= 1
    while last + 1 < end and "/" in _gap(text, words, last + 1):  # a closing tag
        last += 1
    return first, last


def _ends(text: str, words: Sequence[Word], i: int, end: int) -> bool:
    """Return whether a label stands alone, not as an attribute of the next word."""
    return i + 1 == len(words) or i + 1 < end or _gap(text, words, i + 1) not in (" ", "-", ", ")


def _gap(text: str, words: Sequence[Word], i: int) -> str:
    """Return the signs before word ``i``; for ``i == len(words)``, those after the last word."""
    return text[words[i - 1].end if i else 0 : words[i].start if i < len(words) else len(text)]


def _joins(sign: str) -> bool:
    """Return whether a sign may join a label to a field: a colon, a bracket, an arrow, a table cell."""
    return is_colon(sign) or sign == "#" or unicodedata.category(sign) in ("Sm", "So", "Ps")


def _parts(sign: str) -> bool:
    """Return whether a sign separates a possible record from the words around it."""
    return sign in ",;" or unicodedata.category(sign) in ("Pe", "Pi", "Pf")


def _is_sign(gap: str) -> bool:
    """Return whether there are signs between two words that are unusual in prose."""
    return gap.strip("'\u2019,/ ") not in ("", "-", ".") or " - " in gap


def _is_named(words: Sequence[Word], i: int) -> bool:
    return i >= 0 and words[i].kind in ("field", "cue")


def _any(test: Callable[[str], bool], text: str) -> bool:
    return any(map(test, text))


def _one_line(text: str) -> str:
    return " ".join(seen(text).split())


_REMEMBERED = 1024  # texts: each search reads its query and context with every answer, hundreds at once


@lru_cache(_REMEMBERED)
def _read(quoter: Quoter, text: str) -> str:
    return quoter.without_claims(text)


@lru_cache(_REMEMBERED)
def _rest(quoter: Quoter, text: str, most: int) -> str:
    return quoter.without_claims(quoter.cut(seen(text), most))


@lru_cache(maxsize=64)
def quoter(criterion: Criterion) -> Quoter:
    """Return the cached quoter of a criterion."""
    return Quoter(criterion)
