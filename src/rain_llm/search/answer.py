"""The growing answer: its accepted tokens, their text, and how much of that text may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rain_llm.types import TokenIds

UNFINISHED = "\ufffd"
"""What an incomplete character at the end of a text is decoded to."""

LONGEST = 4
"""The most tokens of one character."""


class Answer:
    """Collect the tokens after a prompt and decode them up to a stop string.

    Args:
        decode: the model's decoder.
        prompt: its last tokens are the context in which the answer is decoded.
        stop: strings that end the answer; they are not part of it.
        opening: the marker before tool calls, which are not shown as text; "": there are no calls.
        encode: the model's encoder. It distinguishes an incomplete character at the end, which is left out,
            from a U+FFFD that the model wrote.
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
        """Return the text of the answer followed by ``more`` tokens, and whether a stop string ended it.

        The text includes tool calls. An incomplete character at its end is left out.
        """
        text = self._complete(self._before + self.tokens + more)[self._skip :]
        prose = self._prose(text)
        places = [place for stop in self._stop if (place := prose.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _complete(self, tokens: TokenIds) -> str:
        """Decode tokens, without an incomplete character at the end."""
        text = self._decode(tokens)
        while text.endswith(UNFINISHED) and not self._written(tokens):
            text = text[:-1]
            while len(self._decode(tokens)) > len(text):
                tokens = tokens[:-1]
        return text

    def _written(self, tokens: TokenIds) -> bool:
        """Return whether the model wrote the final U+FFFD itself: encoding it yields the same tokens."""
        ends = (tokens[-length:] for length in range(1, min(LONGEST, len(tokens)) + 1))
        return any(self._encode(self._decode(end)) == end for end in ends)

    def extend(self, more: TokenIds) -> str:
        """Accept ``more`` tokens; return the text that may now be shown.

        U+FFFD and a possible beginning of a stop string or a call are held back until more tokens follow.
        """
        self.tokens += more
        text, stopped = self.read()
        prose = self._prose(text)
        if not stopped and prose == text:
            text = text.rstrip(UNFINISHED)
            held = max((_overlap(text, mark) for mark in (*self._stop, self._opening)), default=0)
            prose = text[: len(text) - held]
        return self._show(prose)

    def finish(self) -> str:
        """Return the text that has not been shown yet."""
        return self._show(self._prose(self.read()[0]))

    def _prose(self, text: str) -> str:
        """Return the text before the first tool call; without a call, all of it."""
        if not self._opening or self._opening not in text:
            return text
        return text.partition(self._opening)[0].rstrip()

    def _show(self, text: str) -> str:
        new = text[len(self.shown) :]  # empty if white space before a call was already shown
        self.shown += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` are the beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
