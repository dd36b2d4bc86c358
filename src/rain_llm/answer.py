"""The answer as it grows: accepted tokens, their text, and how much of that text may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rain_llm.types import TokenIds

_UNFINISHED = "\ufffd"


class Answer:
    """Tokens after a prompt, and their text up to a stop string.

    Args:
        decode: the model's.
        prompt: its last tokens are the context that the answer is decoded in.
        stop: strings before which the answer ends.
    """

    def __init__(self, decode: Callable[[TokenIds], str], prompt: TokenIds, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._before = prompt[-4:]  # some tokenizers drop the space before a text's first word
        self._skip = len(decode(self._before))
        self._stop = tuple(stop)
        self.tokens: TokenIds = ()
        self.shown = ""

    def read(self, more: TokenIds = ()) -> tuple[str, bool]:
        """Return the text with ``more`` tokens behind it, and whether a stop string ended it."""
        text = self._decode(self._before + self.tokens + more)[self._skip :]
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def extend(self, more: TokenIds) -> str:
        """Accept ``more`` tokens; return the text that may now be shown.

        Held back until it is settled: a character whose bytes are not all there, and what may be
        the beginning of a stop string.
        """
        self.tokens += more
        text, stopped = self.read()
        if not stopped:
            text = text.rstrip(_UNFINISHED)
            held = max((_overlap(text, stop) for stop in self._stop), default=0)
            text = text[: len(text) - held]
        return self._show(text)

    def finish(self) -> str:
        """Return the rest of the text."""
        return self._show(self.read()[0])

    def _show(self, text: str) -> str:
        new = text[len(self.shown) :]
        self.shown += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Return how many last characters of ``text`` begin ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
