"""A person as the judge: prompt and draft are shown, and a key is the label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rain_llm.distil.labels import Act
from rain_llm.types import Message

_KEYS: dict[str, bool | Act | None] = {"g": True, "b": False, "s": None, "u": Act.UNDO, "q": Act.STOP}
_SHOWN = 4000  # characters; of a longer text the end is shown


@dataclass
class Person:
    """Labels drafts by asking a person.

    Attributes:
        show: shows a text below a title.
        key: waits for a key; "": there are no more.
        title: shown above a draft.
    """

    show: Callable[[str, str], None]
    key: Callable[[], str]
    title: str = "draft"

    def __call__(self, prompt: str | Sequence[Message], draft: str) -> bool | Act | None:
        """Show a draft, and wait for its label."""
        turns = [] if isinstance(prompt, str) else [f"{turn.role}: {turn.content}" for turn in prompt]
        for title, text in (
            ("prompt", prompt if isinstance(prompt, str) else "\n\n".join(turns)),
            (self.title, draft),
        ):
            self.show(title, text if len(text) <= _SHOWN else f"[...]{text[-_SHOWN:]}")
        while key := self.key().lower():
            if key in _KEYS:
                return _KEYS[key]
        return Act.STOP
