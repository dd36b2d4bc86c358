"""The words that a fake verdict can consist of, and how to find them in a text.

Words are compared by what they seem to spell (:mod:`rain_llm.judging.spelling`). Known words may be removed
from the text that the judge reads (:mod:`rain_llm.judging.quoting`), so the lists contain no word that could
be harmful in any language: German "die" and "war" are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from rain_llm.criteria import BUILT_IN
from rain_llm.criteria.criterion import Criterion
from rain_llm.judging.spelling import closes, form, opens, seen, spelled

_FIELDS = """
    tone sentiment emotion mood style attitude manner polarity intent stance vibe note remark check
    reviewer moderator annotator assessor grader rater evaluator
    answer response reply output result results verdict decision conclusion summary opinion finding
    label labels tag class category classification prediction predicted status type flag
    rating rate score grade rank value quality assessment evaluation judgement judgment judge review analysis
    text message comment content passage sentence statement post action overall word
    safety harmfulness harmlessness toxicity civility politeness kindness friendliness
    Ton Tonfall Stimmung Antwort Urteil Bewertung Ergebnis Fazit
    tono sentimiento respuesta veredicto valoración resultado etiqueta
    sentiment réponse verdict humeur évaluation résultat étiquette avis
    risposta sentimento giudizio valutazione risultato resposta avaliação toon antwoord oordeel svar
    тон настроение ответ вердикт оценка результат тональность
    语气 語氣 情感 情绪 答案 回答 结论 评价 判断 标签 结果 トーン 感情 答え 判定 評価 어조 감정 답변 판정
"""
"""Words that name the judged property, or the verdict."""

_LETTERED = "option choice choose chosen pick select selected"
"""Fields after which a capital letter always is an option."""

_LABELS = """
    warm loving gentle lovely pleasant courteous civil benign neutral nontoxic acceptable approved excellent
    perfect friendliest helpful harmless safe amicable cordial affectionate caring compassionate peaceful
    freundlich positiv höflich harmlos sicher nett amable amistoso positivo seguro bueno
    amical aimable positif gentil poli sûr bon amichevole gentile sicuro buono amigável vriendelijk positief
    дружелюбный дружелюбно позитивный положительный безопасно безопасный добрый вежливый
    友好 积极 正面 安全 无害 礼貌 善良 好 フレンドリー 肯定的 無害 친절 긍정적 안전
"""
"""Words that are a good verdict, in addition to the criteria's labels."""

_VALUES = "yes no true false right correct accurate supported pass passed ok okay none low zero high max"
"""Words that are a verdict only after a field and a sign (``harmful: no``); so is a number."""

_LINKS = """
    is was are were be been being as seems seem sounds reads remains equals
    judged rated classified labelled labeled considered deemed found evaluated assessed scored marked set
    ist est era es é è это 是 为 です は
"""
_SMALL = """
    a an the of in by to for from with at on this that these those it its and or has have had can will would
    very quite really so rather extremely totally completely absolutely entirely truly highly all both total
    final finally clearly given above below following preceding previous here there equal one percent s
    sehr der das très le la les el muy un una il molto очень 很 的 が
"""
"""Words without content, which may be part of a claim; ``_LINKS`` may also turn prose into one."""

_TAGS = "b i u p br em td th tr li ul ol div span strong code pre table json yaml xml html body h1 h2 h3"
_NOT = ("not", "non", "never", "no", "un", "hardly")
_CUES = ("human", "assistant", "user", "system", "question", "options", "answer", "passage")
_NAMED = re.compile(r"([^\W_]+)[\s*_`~]*:")
_CJK = "\u3040-\u30ff\u3400-\u9fff"
# A word. In scripts without spaces, each character is one; letters with signs between ("s a f e") are one.
_WORD = rf"[{_CJK}]|[^\W_](?![^\W_])(?:[ .*_~-][^\W_](?![^\W_])){{2,40}}+|[^\W_{_CJK}]+"
_LONGEST_PHRASE = 32  # words; bounds the search for phrases at every word of a text
_LONGEST = 16  # letters of a known word with signs between its letters

Kind: TypeAlias = Literal["field", "cue", "good", "bad", "value", "link", "small", "letter", "mark", "other"]
"""The role of a word in an answer to the question; ``mark`` and ``letter`` belong to an option."""

Phrase: TypeAlias = tuple[str, ...]


class Word(NamedTuple):
    """A word or known phrase: its position, its kind, and the folded form of its last word."""

    start: int
    end: int
    kind: Kind
    name: str


class Vocabulary:
    """The words of one criterion's question, and the words common to all verdicts.

    Attributes:
        own: words that only the question may follow with a colon.
    """

    def __init__(self, criterion: Criterion) -> None:
        choice = (criterion.choice.good, criterion.choice.bad) if criterion.choice else ()
        channel = (criterion.channel.good, criterion.channel.bad) if criterion.channel else ()
        cues = [frame.rpartition("\n")[2].rpartition("}")[2] for frame in criterion.frames]
        good = [label for label, _ in criterion.labels] + list(choice[:1])
        bad = [label for _, label in criterion.labels] + list(choice[1:])
        self._pattern = _pattern((*good, *bad))
        # Not the single words of a cue, nor a user's bad labels ("kill people"): they may be the harm itself.
        self._known = _common() | self._learn((one for one in bad if _is_sign(one)), "bad")
        self._known |= self._learn((f"{no} {label}" for label in bad for no in _NOT), "good")
        self._known |= self._learn(good, "good")
        self._known |= self._learn(cues, "cue")
        self._sizes: dict[str, int] = {}
        for phrase in self._known:
            self._sizes[phrase[0]] = max(len(phrase), self._sizes.get(phrase[0], 0))
        named = [name for template in (*criterion.frames, *channel) for name in _NAMED.findall(template)]
        self.own = {names[-1] for name in (*_CUES, *named) if (names := self._names(name))}

    def words(self, text: str) -> list[Word]:
        """Find the words of a text and the kind of each."""
        looks, places = spelled(text)
        found = [word for match in self._pattern.finditer(looks) for word in self._spaced(match)]
        names = [name for _, _, name in found]
        words: list[Word] = []
        at = 0
        while at < len(found):
            sizes = range(min(self._sizes.get(names[at], 0), len(names) - at), 0, -1)
            size = next((n for n in sizes if tuple(names[at : at + n]) in self._known), 1)
            last = at + size - 1
            start, end = places[found[at][0]], places[found[last][1] - 1] + 1
            kind: Kind = self._known.get(tuple(names[at : last + 1]), "other")
            if size == 1:
                kind = _kind(text, start, end, names[at], kind, words[-1].name if words else "")
            words.append(Word(start, end, kind, names[last]))
            at += size
        return words

    def _spaced(self, match: re.Match[str]) -> list[tuple[int, int, str]]:
        """Return the word that was found, or the words written with signs between their letters."""
        if match[0].isalnum() or not match[0][0].isalnum():
            return [(match.start(), match.end(), form(match[0]))]
        letters = [place for place in range(*match.span()) if match.string[place].isalnum()]
        name = form("".join(match.string[place] for place in letters))
        found, start = [], 0
        while start < len(name):
            sizes = range(min(_LONGEST, len(name) - start), 1, -1)
            size = next((n for n in sizes if (name[start : start + n],) in self._known), 0)
            if not size:
                return [(match.start(), match.end(), name)]
            found.append((letters[start], letters[start + size - 1] + 1, name[start : start + size]))
            start += size
        return found

    def _names(self, phrase: str) -> Phrase:
        return _names(self._pattern, phrase)

    def _learn(self, phrases: Iterable[str], kind: Kind) -> dict[Phrase, Kind]:
        found = map(self._names, phrases)
        return {names: kind for names in found if 0 < len(names) <= _LONGEST_PHRASE}


def _is_sign(label: str) -> bool:
    return not any(map(str.isalpha, label))


def _pattern(labels: Iterable[str]) -> re.Pattern[str]:
    """Build the pattern of a word, including labels made of signs and words in scripts without spaces."""
    listed = [*labels, *" ".join((_FIELDS, _LABELS, _LINKS, _SMALL)).split()]
    literals = {
        spelled(seen(word))[0]
        for word in listed
        if re.search(f"[{_CJK}]", word) or not re.search(r"[^\W_]", word)
    }
    literal = sorted(filter(None, map(str.strip, literals)), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, literal), _WORD]))


def _names(pattern: re.Pattern[str], phrase: str) -> Phrase:
    return tuple(form(word) for word in pattern.findall(spelled(seen(phrase))[0]))


@lru_cache(maxsize=1)
def _common() -> dict[Phrase, Kind]:
    """Return the phrases that are known for every criterion."""
    pattern = _pattern(())
    praise, blame = zip(*(pair for built_in in BUILT_IN.values() for pair in built_in.labels), strict=True)
    known: dict[Phrase, Kind] = {}
    listed: list[tuple[Kind, Iterable[str]]] = [
        ("small", (*_TAGS.split(), *_SMALL.split())),
        ("link", _LINKS.split()),
        ("bad", blame),
        ("good", praise),
        ("field", (*_FIELDS.split(), *_LETTERED.split())),
        ("value", _VALUES.split()),
        ("good", _LABELS.split()),
    ]
    for kind, phrases in listed:
        known |= {_names(pattern, phrase): kind for phrase in phrases}
    return known


def _kind(text: str, start: int, end: int, name: str, kind: Kind, before: str) -> Kind:
    """Decide whether a word is an option's letter, an article, a tag's name, or a number."""
    left, right = text[max(0, start - 2) : start].rstrip()[-1:], text[end : end + 2].lstrip()[:1]
    if name in _TAG_NAMES and left in ("<", "/", "`"):
        return "small"
    if name in ("a", "b"):
        if (opens(left) and not right.isalnum()) or closes(right):
            return "mark"
        if not right.isalnum() or (text[start].isupper() and (name == "b" or before in _CHOSEN)):
            return "letter"
        return "small" if name == "a" else "other"
    if name in _TAG_NAMES:
        return "other"
    return "value" if kind == "other" and name.isdigit() else kind


_TAG_NAMES = frozenset(map(form, _TAGS.split()))
_CHOSEN = frozenset(map(form, _LETTERED.split()))
