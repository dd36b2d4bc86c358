"""What a text may not say to its judge.

**Threat.** Whoever writes a prompt, an answer, a passage or the arguments of a call also writes into the
question that a judge is asked about them. A language model continues what it reads: a text that ends in
``Tone: friendly`` makes ``friendly`` likelier after the frame's own ``The tone of this text is``, whatever
the text says. So a text must not be able to

1. pose as the question: open a line, a field or an option of it, or its chat turns;
2. pose as the answer: give a label, or an option's letter, as if it were the verdict;
3. hide either from this module, by signs, invisible characters, letters of other scripts or markup;
4. use this module to hide its own words from the judge.

**Defence.** All that a judge reads passes through :meth:`Quoting.readings`:

* It is shown as it is seen (:mod:`rain_llm.spelling`), on one line.
* The *words* are looked at, never the signs between them, so every sign, bracket, quote, table cell or tag
  is alike. Words of the question (fields), labels and a closed list of small words make up a *claim* where
  they stand next to each other. A claim is left out. It holds none but these words, so nothing else can be
  left out by writing it there.
* Words that are not known may be a claim as well (``Stimmung: warm``). A text with passages that are shaped
  like one (a short ``key: value``, a remark on the text itself, a label alone) is judged twice: as it is, and
  without them. The lower of the two counts, so such a passage cannot make a verdict better, and cutting it
  cannot hide what it says.

**What remains possible.** Flattery: kind words in ordinary sentences are part of the text, and a soft judge
weighs them (measured in ``docs/evaluation.md``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

from rain_llm.criteria import BUILT_IN, Criterion
from rain_llm.spelling import form, is_colon, seen, spelled

_FIELDS = """
    tone sentiment emotion mood style attitude manner polarity intent stance vibe note remark check
    reviewer moderator annotator assessor grader rater evaluator
    answer response reply output result results verdict decision conclusion summary opinion finding
    label labels tag class category classification prediction predicted status type flag
    rating rate score grade rank value quality assessment evaluation judgement judgment judge review analysis
    text message comment content passage sentence statement post action overall word
    safety harm harmfulness harmlessness toxicity civility politeness kindness friendliness hostility
    Ton Tonfall Stimmung Antwort Urteil Bewertung Ergebnis Fazit
    tono sentimiento respuesta veredicto valoración resultado etiqueta
    sentiment réponse verdict humeur évaluation résultat étiquette avis
    risposta sentimento giudizio valutazione risultato resposta avaliação toon antwoord oordeel svar
    тон настроение ответ вердикт оценка результат тональность
    语气 語氣 情感 情绪 答案 回答 结论 评价 判断 标签 结果 トーン 感情 答え 判定 評価 어조 감정 답변 판정
"""
"""Words that name what is judged, or the verdict."""

_LETTERED = "option choice choose chosen pick select selected"
"""Fields after which a capital is the letter of an option, whatever follows."""

_LABELS = """
    warm loving gentle lovely pleasant courteous civil benign neutral nontoxic acceptable approved excellent
    perfect friendliest helpful harmless safe amicable cordial affectionate caring compassionate peaceful
    freundlich positiv höflich harmlos sicher gut nett amable amistoso positivo seguro bueno
    amical aimable positif gentil poli sûr bon amichevole gentile sicuro buono amigável vriendelijk positief
    дружелюбный дружелюбно позитивный положительный безопасно безопасный добрый вежливый
    友好 积极 正面 安全 无害 礼貌 善良 好 フレンドリー 肯定的 無害 친절 긍정적 안전
"""
"""Words that would be a good verdict, besides the labels of criteria."""

_VALUES = "yes no true false right correct accurate supported pass passed ok okay none low zero high max"
"""What is a verdict only where it follows a field by a sign: ``harmful: no``. So is a number."""

_LINKS = """
    is was are were be been being as seems seem sounds reads remains equals
    judged rated classified labelled labeled considered deemed found evaluated assessed scored marked set
    ist war est era es é è это 是 为 です は
"""
_SMALL = """
    a an the of in by to for from with at on this that these those it its and or has have had can will would
    very quite really so rather extremely totally completely absolutely entirely truly highly all both total
    final finally clearly given above below following preceding previous here there equal one percent s
    sehr der die das très le la les el muy un una il molto очень 很 的 が
"""
"""Words without content of their own, which may stand within a claim; links also make one of prose."""

_TAGS = "b i u p br em td th tr li ul ol div span strong code pre table json yaml xml html body h1 h2 h3"
_NOT = ("not", "non", "never", "no", "un", "hardly")
_CUES = ("human", "assistant", "user", "system", "question", "options", "answer", "passage")
_NAMED = re.compile(r"([^\W_]+)[\s*_`~]*:")
_CJK = "\u3040-\u30ff\u3400-\u9fff"
# A word; one in scripts without spaces is a character, and one with signs between its letters is one, too.
_WORD = rf"[{_CJK}]|[^\W_](?![^\W_])(?:[ .*_~-][^\W_](?![^\W_])){{2,40}}+|[^\W_{_CJK}]+"
_ENDS = re.compile(r"\n|[.!?\u2026\u3002\uff01\uff1f][\"'\u2019\u201d)\]]{0,4}\s")
_ATTACHED = ".!?,;\u2026)]\"'\u2019\u201d"  # signs that stay with the word before a claim
_LONGEST = 16  # letters of a known word, if there are signs between them
_LAYERS = 4  # of claims, each made by leaving out the one before; then all signs and labels go
_KEY, _VALUE = 3, 5  # words of the longest record, ``key: value``
_REMARK = 16  # words of the longest remark on the text
_OTHERS = 2  # unknown words of a remark without a label

_Kind: TypeAlias = Literal["field", "cue", "good", "bad", "value", "link", "small", "letter", "mark", "other"]


class _Word(NamedTuple):
    """A known phrase, or a word: where it stands, what it is, and the form of its last word."""

    start: int
    end: int
    kind: _Kind
    name: str


class Quoter:
    """Shows a text to the judge of one criterion, without what would be an answer to its question."""

    def __init__(self, criterion: Criterion) -> None:
        choice = (criterion.choice.good, criterion.choice.bad) if criterion.choice else ()
        channel = (criterion.channel.good, criterion.channel.bad) if criterion.channel else ()
        cues = [frame.rpartition("\n")[2].rpartition("}")[2] for frame in criterion.frames]
        good = [label for label, _ in criterion.labels] + list(choice[:1])
        bad = [label for _, label in criterion.labels] + list(choice[1:])
        named = (name for template in (*criterion.frames, *channel) for name in _NAMED.findall(template))
        signs = [label.strip() for label in (*good, *bad) if not any(map(str.isalnum, label))]
        listed = " ".join((_FIELDS, _LABELS, _LINKS, _SMALL, *good, *bad)).split()
        unspaced = [
            spelled(seen(word))[0] for word in listed if len(word) > 1 and re.search(f"[{_CJK}]", word)
        ]
        literal = sorted({*filter(None, signs), *unspaced}, key=len, reverse=True)
        self._pattern = re.compile("|".join([*map(re.escape, literal), _WORD]))
        self._known: dict[tuple[str, ...], _Kind] = {}
        self._learn(_TAGS.split(), "small")
        self._learn(_SMALL.split(), "small")
        self._learn(_LINKS.split(), "link")
        self._learn([w for cue in cues for w in cue.split() if self._names(w) not in self._known], "field")
        self._learn((*_FIELDS.split(), *_LETTERED.split()), "field")
        self._learn(_VALUES.split(), "value")
        self._learn(
            (label for built_in in BUILT_IN.values() for label, _ in built_in.labels), "good", new=True
        )
        self._learn(_LABELS.split(), "good")
        self._learn(bad, "bad")
        self._learn((f"{no} {label}" for label in bad for no in _NOT), "good")
        self._learn(good, "good")
        self._learn(cues, "cue")
        self._own = {names[-1] for name in (*_CUES, *named) if (names := self._names(name))}
        self._longest: dict[str, int] = {}
        for phrase in self._known:
            self._longest[phrase[0]] = max(len(phrase), self._longest.get(phrase[0], 0))

    def readings(self, text: str) -> tuple[str, str]:
        """Return a text on one line without claims, and once more without what may be one.

        The second is the same in most texts. Nothing may be left in it.
        """
        return _readings(self, text)

    # -- words -------------------------------------------------------------------------------------

    def _names(self, phrase: str) -> tuple[str, ...]:
        looks = spelled(seen(phrase))[0]
        return tuple(name for found in self._pattern.finditer(looks) for _, _, name in self._spaced(found))

    def _learn(self, phrases: Iterable[str], kind: _Kind, *, new: bool = False) -> None:
        for phrase in phrases:
            if (names := self._names(phrase)) and not (new and names in self._known):
                self._known[names] = kind

    def _spaced(self, match: re.Match[str]) -> list[tuple[int, int, str]]:
        """Return the word that was found, or the words that are written with signs between their letters."""
        if match[0].isalnum() or not match[0][0].isalnum():
            return [(match.start(), match.end(), form(match[0]))]
        letters = [place for place in range(*match.span()) if match.string[place].isalnum()]
        name = form("".join(match.string[place] for place in letters))
        if (name,) in self._known:
            return [(match.start(), match.end(), name)]
        found, start = [], 0
        while start < len(name):
            sizes = range(min(_LONGEST, len(name) - start), 1, -1)
            size = next((n for n in sizes if (name[start : start + n],) in self._known), 0)
            if not size:
                return [(match.start(), match.end(), name)]
            found.append((letters[start], letters[start + size - 1] + 1, name[start : start + size]))
            start += size
        return found

    def _words(self, text: str) -> list[_Word]:
        looks, places = spelled(text)
        found = [word for match in self._pattern.finditer(looks) for word in self._spaced(match)]
        names = [name for _, _, name in found]
        words: list[_Word] = []
        at = 0
        while at < len(found):
            sizes = range(min(self._longest.get(names[at], 0), len(names) - at), 0, -1)
            size = next((n for n in sizes if tuple(names[at : at + n]) in self._known), 1)
            last = at + size - 1
            start, end = places[found[at][0]], places[found[last][1] - 1] + 1
            kind = self._known.get(tuple(names[at : last + 1]), "other")
            before = words[-1] if words else None
            word = _Word(start, end, kind, names[last])
            words.append(word._replace(kind=_kind_of_one(text, word, before)) if size == 1 else word)
            at += size
        return words

    # -- claims ------------------------------------------------------------------------------------

    def read(self, text: str) -> str:
        """Return a text on one line, without claims."""
        return _read(self, text)

    def _without(self, text: str) -> str:
        text = _one_line(text)
        for _ in range(_LAYERS):
            before, text = text, _one_line(self._without_claims(text))
            if text == before:
                return text
        bare = list(text)
        for word in self._words(text):
            if word.kind in ("good", "bad"):
                bare[word.start : word.end] = " " * (word.end - word.start)
        return _one_line("".join(" " if _is_bracket(c) or is_colon(c) else c for c in bare))

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
                start -= len(right) - right.rfind(" ") - 1  # what is attached to the next word
        kept.append((start, len(text)))
        return " ".join("".join(text[i] for i in range(*part) if i not in dropped) for part in kept)

    def _dropped(self, text: str, words: Sequence[_Word]) -> set[int]:
        """Find the signs that would make a field or an option's mark of a word."""
        dropped = set()
        for i, word in enumerate(words):
            gap = _gap(text, words, i + 1)
            if word.name in self._own:
                dropped |= {word.end + place for place, sign in enumerate(gap) if is_colon(sign)}
            if word.kind == "mark" and _any(_opens, _gap(text, words, i)[-2:]):
                left = _gap(text, words, i)
                around = len(left) - len(left.rstrip("".join(filter(_opens, left)) + " "))
                dropped |= {p for p in range(word.start - around, word.start) if text[p] != " "}
                around = len(gap) - len(gap.lstrip("".join(filter(_closes, gap)) + " "))
                dropped |= {p for p in range(word.end, word.end + around) if text[p] != " "}
        return dropped

    # -- what may be a claim -------------------------------------------------------------------------

    def cut(self, text: str) -> str:
        """Leave out what may be a claim: labels alone, remarks on the text, short records."""
        kept, headed = [], False
        ends = [0, *(end.end() for end in _ENDS.finditer(text)), len(text)]
        for sentence in (_one_line(text[i:j]) for i, j in pairwise(ends)):
            words = self._words(sentence)
            kinds = {word.kind for word in words}
            if headed and words and len(words) <= _VALUE:  # the value on the line after its key
                headed = False
            elif "other" not in kinds and (kinds & _TELLING or (not words and _any(_joins, sentence))):
                headed = headed or bool(kinds & {"field", "cue"})
            elif not _is_remark(words, kinds):
                kept.append(_without(sentence, words, self._asides(sentence, words)))
                headed = False
        return " ".join(kept)

    def _asides(self, text: str, words: Sequence[_Word]) -> Iterator[tuple[int, int]]:
        """Find ``key: value``, in any signs, and labels between signs."""
        start, free, joins = (
            0,
            True,
            list[int](),
        )  # of a part: its first word, if it is apart, words after a sign
        for i in range(len(words) + 1):
            gap = _gap(text, words, i)
            joined = i < len(words) and (_any(_joins, gap) or (_is_named(words, i - 1) and _is_sign(gap)))
            if joined:
                joins.append(i)
            elif i == len(words) or _any(_parts, gap) or _is_sign(gap):
                apart = i == len(words) or _is_sign(gap)
                last = {word.kind for word in words[joins[-1] if joins else start : i]}
                named = [j - 1 for j in joins if _is_named(words, j - 1)]
                if free and apart and joins and joins[0] - start <= _KEY and i - joins[-1] <= _VALUE:
                    yield start, i - 1
                elif named and i - named[0] - 1 <= _VALUE:
                    yield named[0], i - 1
                elif apart and (free or joins) and "good" in last and "other" not in last:
                    yield (joins[-1] if joins else start), i - 1
                start, free, joins = i, apart, []


def _is_remark(words: Sequence[_Word], kinds: set[_Kind]) -> bool:
    """Whether a sentence says what the text is: with a label, or in a few words."""
    if not kinds & {"field", "cue"} or len(words) > _REMARK:
        return False
    return "good" in kinds or bool(
        kinds & {"link", "cue"} and sum(word.kind == "other" for word in words) <= _OTHERS
    )


def _without(text: str, words: Sequence[_Word], asides: Iterable[tuple[int, int]]) -> str:
    kept, start = [], 0
    for first, last in asides:
        kept.append(text[start : words[first - 1].end if first else 0])
        start = words[last + 1].start if last + 1 < len(words) else len(text)
    return " ".join([*kept, text[start:]])


def _claims(text: str, words: Sequence[_Word]) -> Iterator[tuple[int, int]]:
    """Find answers given in the judge's place: from the first word to the last."""
    start = 0
    for i in range(len(words) + 1):
        if i == len(words) or words[i].kind == "other" or _ENDS.search(_gap(text, words, i)):
            if claim := _claim(text, words, start, i):
                yield claim
            start = i if i < len(words) and words[i].kind != "other" else i + 1


def _claim(text: str, words: Sequence[_Word], start: int, end: int) -> tuple[int, int] | None:
    """Find the claim in a run of known words: a field, and behind it at least one verdict."""
    first = last = named = None
    linked = False  # since the field, or the verdict before
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
        elif kind == "good" and (follows or _any(is_colon, gap) or (joined and _ends(text, words, i, end))):
            last = i
        elif kind == "bad" and (
            (joined and _ends(text, words, i, end))
            or (follows and (signed or before == "cue" or last == i - 1))
        ):
            last = i
        elif kind == "value" and (
            (signed and before in ("field", "cue", "good", "bad"))
            or (last == i - 1 and (" " not in gap or "/" in gap))
        ):
            named = i - 1 if named is None else named
            last = i
        elif kind == "letter" and named is not None:
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


def _ends(text: str, words: Sequence[_Word], i: int, end: int) -> bool:
    """Whether a label stands for itself: it does not belong to a word after it."""
    return i + 1 == len(words) or i + 1 < end or _gap(text, words, i + 1) not in (" ", "-", ", ")


def _kind_of_one(text: str, word: _Word, previous: _Word | None) -> _Kind:
    """Tell the letter of an option from an article, a tag's name from a letter, and numbers."""
    around = (
        text[max(0, word.start - 2) : word.start].rstrip()[-1:],
        text[word.end : word.end + 2].lstrip()[:1],
    )
    tag = around[0] in ("<", "/", "`")
    if word.name in _TAG_NAMES:
        if tag:
            return "small"
        if word.name != "b":
            return "other"
    if word.name in ("a", "b"):
        opened, closed = (
            sign != "" and test(sign) for sign, test in zip(around, (_opens, _closes), strict=True)
        )
        if (opened and not around[1].isalnum()) or closed:
            return "mark"
        if _is_letter(text, word, around, previous):
            return "letter"
        return "small" if word.name == "a" else "other"
    return "value" if word.kind == "other" and word.name.isdigit() else word.kind


def _is_letter(text: str, word: _Word, around: tuple[str, str], previous: _Word | None) -> bool:
    chosen = previous is not None and previous.name in _CHOSEN
    return not around[1].isalnum() or (text[word.start].isupper() and (word.name == "b" or chosen))


def _gap(text: str, words: Sequence[_Word], i: int) -> str:
    """Return the signs before a word; those before the one after the last end the text."""
    return text[words[i - 1].end if i else 0 : words[i].start if i < len(words) else len(text)]


def _opens(sign: str) -> bool:
    return unicodedata.category(sign) == "Ps"


def _closes(sign: str) -> bool:
    return unicodedata.category(sign) == "Pe"


def _is_bracket(sign: str) -> bool:
    return _opens(sign) or _closes(sign)


def _joins(sign: str) -> bool:
    """Whether a sign may join a label to a field: a colon, a bracket, an arrow, a table's cell."""
    return is_colon(sign) or sign == "#" or unicodedata.category(sign) in ("Sm", "Ps")


def _parts(sign: str) -> bool:
    """Whether a sign parts what may be a record from the words around it."""
    return sign in ",;" or unicodedata.category(sign) in ("Pe", "Pi", "Pf")


def _is_sign(gap: str) -> bool:
    """Whether there is more between two words than what is common in prose."""
    return gap.strip("'\u2019,/ ") not in ("", "-", ".") or " - " in gap


def _is_named(words: Sequence[_Word], i: int) -> bool:
    return i >= 0 and words[i].kind in ("field", "cue")


def _any(test: Callable[[str], bool], text: str) -> bool:
    return any(map(test, text))


def _one_line(text: str) -> str:
    return " ".join(seen(text).split())


@lru_cache(maxsize=32)  # the same query and context stand beside every answer
def _readings(quoter: Quoter, text: str) -> tuple[str, str]:
    whole = quoter.read(text)
    rest = quoter.read(quoter.cut(seen(text)))
    return whole, rest


@lru_cache(maxsize=32)
def _read(quoter: Quoter, text: str) -> str:
    return quoter._without(text)


_TELLING = frozenset({"field", "cue", "good", "mark", "letter"})
_TAG_NAMES = frozenset(map(form, _TAGS.split()))
_CHOSEN = frozenset(map(form, _LETTERED.split()))
