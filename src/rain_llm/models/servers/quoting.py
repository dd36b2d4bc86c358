"""Prepare a server's text for an error: short, on one line, without the API key in any spelling."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

from rain_llm.bounds import QUOTED

_HIDDEN = "..."
_BETWEEN = r"(?:[\s\\\"'+\u00ad\u200b-\u200f\u2028\u2029\u2060\ufeff]|\\[nrt]|%20|%0a)*"
_WORD = r"[A-Za-z0-9+/=_-]{0,40}"
_READ = 4_096  # characters that are searched for the key; the rest is cut off
_LONG_VALUE = re.compile(r"(['\"])((?:(?!\1).){60})(?:(?!\1).)+\1")
_LEAST = 8  # characters; a shorter key ("EMPTY") is only hidden where it is a word of its own


class Quoting:
    """Prepares a server's text for an error.

    Args:
        secret: the API key; "" for none.
    """

    def __init__(self, secret: str) -> None:
        self._key = re.compile("|".join(_spellings(secret)), re.IGNORECASE) if secret else None

    def __call__(self, text: str, most: int = QUOTED) -> str:
        """Return at most ``most`` characters of ``text``, with the key hidden and nothing unprintable."""
        text = self.hidden(" ".join(text.split())[:_READ])
        text = _LONG_VALUE.sub(r"\1\2...\1", text)[:most]
        return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)[:most]

    def hidden(self, text: str) -> str:
        """Return ``text`` with three dots in place of the key."""
        return self._key.sub(_HIDDEN, text) if self._key else text

    def holds_key(self, error: BaseException) -> bool:
        """Return whether an error, or one that caused it, may contain the key."""
        seen: BaseException | None = error
        while seen is not None and self._key is not None:
            text = f"{seen} {seen!r}"
            if len(text) > _READ or self._key.search(text):
                return True
            seen = seen.__cause__ or seen.__context__
        return False


def _spellings(secret: str) -> list[str]:
    """Return patterns of the key: plain, split, escaped or percent-encoded, in hexadecimal, in base64."""
    if len(secret) < _LEAST:
        return [rf"(?<![\w-]){re.escape(secret)}(?![\w-])"]
    found = [_BETWEEN.join(map(_signs, secret))]
    found.append(_BETWEEN.join(secret.encode().hex()))
    for ahead in range(3):  # bytes before the key in its group of three
        code = base64.b64encode(b" " * ahead + secret.encode()).decode().rstrip("=")
        # The characters at both ends also depend on the bytes around the key.
        sure = code[(0, 2, 3)[ahead] : len(code) - 1 if (ahead + len(secret)) % 3 else len(code)]
        signs = [f"[{sign}{'-' if sign == '+' else '_'}]" if sign in "+/" else sign for sign in sure]
        found.append(_WORD + _BETWEEN.join(signs) + _WORD)
    return found


def _signs(sign: str) -> str:
    """Return a pattern of one character of the key, as it may be written in JSON, HTML or an address."""
    code = ord(sign)
    ways = [sign, quote(sign, safe=""), f"%{code:02x}", f"%25{code:02x}", f"\\u{code:04x}", f"\\x{code:02x}"]
    ways += [f"&#{code};", f"&#x{code:x};"]
    return "(?:" + "|".join(dict.fromkeys(map(re.escape, ways))) + ")"


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
