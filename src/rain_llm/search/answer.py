"""The answer as it grows: accepted tokens, their text, and how much of that text may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rain_llm.types import TokenIds

_UNFINISHED = "\ufffd"
_LONGEST = 4  # tokens of one character


class Answer:
    """Tokens after a prompt, and their text up to a stop string.

    Args:
        decode: the model's.
        prompt: its last tokens are the context that the answer is decoded in.
        stop: strings before which the answer ends.
        opening: what stands before calls, which are no text to show; "": there are none.
        encode: the model's; tells a character of which bytes are missing at the end, which is left
            out, from a U+FFFD that the model has written.
    """

    def __init__(
        self,
        decode: Callable[[TokenIds], str],
        prompt: TokenIds,
        stop: Sequence[str] = (),
        opening: str = "",
        encode: Callable[[str], TokenIds] = lambda text: (),
    ) -> None:
        self._decode = decode
        self._encode = encode
        self._before = prompt[-4:]  # some tokenizers drop the space before a text's first word
        self._skip = len(decode(self._before))
        self._stop = tuple(stop)
        self._opening = opening
        self.tokens: TokenIds = ()
        self.shown = ""

    def read(self, more: TokenIds = ()) -> tuple[str, bool]:
        """Return the text with ``more`` tokens behind it, and whether a stop string ended it.

        Calls are part of that text. A character of which bytes are missing at its end is not.
        """
        text = self._whole(self._before + self.tokens + more)[self._skip :]
        said = self._said(text)
        places = [place for stop in self._stop if (place := said.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _whole(self, tokens: TokenIds) -> str:
        """Return the text of tokens, without a character at its end of which bytes are missing."""
        text = self._decode(tokens)
        while text.endswith(_UNFINISHED) and not self._written(tokens):
            text = text[:-1]
            while len(self._decode(tokens)) > len(text):
                tokens = tokens[:-1]
        return text

    def _written(self, tokens: TokenIds) -> bool:
        """Whether the U+FFFD that tokens end with was written as such: encoded, it is the same tokens."""
        ends = (tokens[-length:] for length in range(1, min(_LONGEST, len(tokens)) + 1))
        return any(self._encode(self._decode(end)) == end for end in ends)

    def extend(self, more: TokenIds) -> str:
        """Accept ``more`` tokens; return the text that may now be shown.

        Held back until it is settled: U+FFFD, and what may be the beginning of a stop string or a call.
        """
        self.tokens += more
        text, stopped = self.read()
        said = self._said(text)
        if not stopped and said == text:
            text = text.rstrip(_UNFINISHED)
            held = max((_overlap(text, mark) for mark in (*self._stop, self._opening)), default=0)
            said = text[: len(text) - held]
        return self._show(said)

    def finish(self) -> str:
        """Return the rest of the text."""
        return self._show(self._said(self.read()[0]))

    def _said(self, text: str) -> str:
        """Return what stands before the first call; without one, all of it."""
        if not self._opening or self._opening not in text:
            return text
        return text.partition(self._opening)[0].rstrip()

    def _show(self, text: str) -> str:
        new = text[len(self.shown) :]  # none where white space before a call was shown already
        self.shown += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of ``text`` begin ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
