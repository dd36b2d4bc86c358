"""Normalise how a text looks: its visible characters, and the plain letters that its words seem to spell.

Characters are classified by their Unicode category, decomposition and name, not by lists of code points.
Only letters of other scripts that look like Latin ones need a short table.
"""

# ruff: noqa: RUF001 (this module is about letters that look alike)

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_DRAWN_LIKE = (
    ("абсԁеғԍһіјкӏмнорԛѕтѵԝхуґпиьв", "abcdefghijklmhopqstvwxyrnubb"),  # Cyrillic
    ("αβγδεηικμνορτυχως", "abydenikuvoptuxws"),  # Greek, small
    ("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "abezhikmnoptyx"),  # and capital
    ("աբցեհյոսւքօզվ", "wpgehjnuvfoqu"),  # Armenian
    ("ᎪᏴᏟᎠᎬᏀᎻᎫᏦᏞᎷᏢᎡᏚᎢᏙᎳᎩᏃ", "abcdeghjklmprstvwyz"),  # Cherokee
    ("ꓮꓐꓚꓓꓰꓝꓖꓧꓲꓙꓗꓡꓟꓠꓳꓑꓣꓢꓔꓴꓦꓪꓫꓬꓜ", "abcdefghijklmnoprstuvwxyz"),  # Lisu
)
_LOOKS = {
    other: letter for others, letters in _DRAWN_LIKE for other, letter in zip(others, letters, strict=True)
}
_LATIN = re.compile(
    r"(?:LATIN (?:CAPITAL |SMALL )?LETTER |LATIN LETTER SMALL CAPITAL |REGIONAL INDICATOR SYMBOL LETTER |"
    r"NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER |MODIFIER LETTER (?:SMALL |CAPITAL )?)"
    r"(?:(?:SCRIPT|DOTLESS|LONG|OPEN|TURNED|REVERSED|SIDEWAYS|BLACKLETTER|INSULAR|SMALL CAPITAL) )*"
    r"([A-Z])(?: WITH .*)?"
)
_FOLDED = str.maketrans("l13045$7", "iieoasst")  # "1abe1", "T0ne"
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})


def seen(text: str) -> str:
    """Remove invisible characters from a text and replace compatibility letters by plain ones.

    Control, format, private and unassigned characters, fillers and combining marks are removed. Full-width,
    mathematical, enclosed and similar letters and digits become plain ones. Line breaks are kept.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_seen, text)))
        text = unicodedata.normalize("NFC", "".join(c for c in text if not _laid_over(c)))
    elif not text.isprintable():
        text = "".join(map(_seen, text))
    return text


def spelled(text: str) -> tuple[str, list[int]]:
    """Return the plain letters that a text seems to spell, and the position in the text of each of them."""
    if text.isascii():
        return text.lower(), list(range(len(text) + 1))
    letters, places = [], []
    for place, character in enumerate(text):
        looks = _looks(character)
        letters.append(looks)
        places += [place] * len(looks)
    return "".join(letters), [*places, len(text)]


def form(looks: str) -> str:
    """Fold digits and letters that look alike: the form of all spellings of a word (:func:`spelled`)."""
    return looks if looks.isdigit() else looks.translate(_FOLDED)


def opens(sign: str) -> bool:
    """Return whether a character is an opening bracket."""
    return sign != "" and unicodedata.category(sign) == "Ps"


def closes(sign: str) -> bool:
    """Return whether a character is a closing bracket."""
    return sign != "" and unicodedata.category(sign) == "Pe"


@lru_cache(maxsize=8192)
def is_colon(character: str) -> bool:
    """Return whether a character is read as a colon."""
    return bool(
        re.search(r"(?<!SEMI)COLON|^(?:RATIO|PROPORTION|TWO DOT PUNCTUATION)$|SOF PASUQ", _name(character))
    )


@lru_cache(maxsize=8192)
def _seen(character: str) -> str:
    category = unicodedata.category(character)
    if character.isspace() or category in ("Zl", "Zp"):
        return "\n" if character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029" else " "
    if category in _UNSEEN or re.search(
        r"FILLER|PATTERN BLANK|REPLACEMENT CHARACTER|JOINER|VARIATION SEL", _name(character)
    ):
        return ""
    plain = unicodedata.normalize("NFKC", character)
    return plain if any(c.isalnum() for c in plain) else character


@lru_cache(maxsize=8192)
def _laid_over(character: str) -> bool:
    return unicodedata.category(character)[0] == "M" and _name(character).startswith("COMBINING ")


@lru_cache(maxsize=8192)
def _looks(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character)
    return "".join(_letter(c) for c in parts if unicodedata.category(c)[0] != "M")


def _letter(character: str) -> str:
    if character.isascii():
        return character.lower()
    if latin := _LATIN.fullmatch(_name(character)):
        return latin[1].lower()
    small = character.casefold()
    return _LOOKS.get(character) or "".join(_LOOKS.get(c, c) for c in small)


def _name(character: str) -> str:
    return unicodedata.name(character, "")
