"""llama-server's own tokenizer, over HTTP: for whoever has no tokenizer of the model at hand.

Only a server that can be told to leave special tokens in a text alone is trusted with user text:
llama-server can (``parse_special``), vLLM's ``/tokenize`` cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rain_llm.errors import PromptError
from rain_llm.models.tokenizer import rendered
from rain_llm.types import Message, TokenIds

Post = Callable[[str, dict[str, Any], Callable[[Any], Any]], Any]
"""Posts a body to a path, and returns what a function makes of the reply."""

_REMEMBERED = 4096  # texts


class ServerTokenizer:
    """Asks llama-server for tokens; decodes by itself, from the bytes of the whole vocabulary.

    Args:
        post: reaches the server.
        name: of the model, for errors.
        vocabulary: the bytes of each token, by id; special tokens have none.

    Attributes:
        start: the tokens that every raw text begins with. special: tokens that are never text.
        size: tokens in the vocabulary.
    """

    def __init__(self, post: Post, name: str, vocabulary: dict[int, bytes]) -> None:
        self._post = post
        self._name = name
        self._bytes = vocabulary
        self.size = max(vocabulary) + 1
        self.special = frozenset(token for token, piece in vocabulary.items() if not piece)
        self.encode = lru_cache(_REMEMBERED)(self._encode)
        bare, begun = self._encode("a"), self._tokens({"content": "a", "add_special": True})
        self.start: TokenIds = begun[: len(begun) - len(bare)] if begun[-len(bare) :] == bare else ()

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text; bytes that do not yet make a character become U+FFFD."""
        return b"".join(self._bytes.get(token, b"") for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        return self.decode((token,))

    def render_chat(self, messages: Sequence[Message]) -> TokenIds:
        """Render a chat by the model's template, up to where the assistant begins to speak.

        Raises:
            ServerError: the server has no template. ModelNotSupportedError: it leaves out a message.
        """
        return rendered(messages, self._template, self.encode, self._encode_template, self._name)

    def _template(self, messages: list[dict[str, str]]) -> str:
        return str(self._post("/apply-template", {"messages": messages}, lambda found: found["prompt"]))

    def _encode(self, text: str) -> TokenIds:
        tokens = self._tokens({"content": text, "parse_special": False})
        if not self.special.isdisjoint(tokens):
            raise PromptError(
                f"the server of {self._name} makes a special token of a text: leave that out of it"
            )
        return tokens

    def _encode_template(self, text: str) -> TokenIds:
        return self._tokens({"content": text, "parse_special": True})

    def _tokens(self, body: dict[str, Any]) -> TokenIds:
        def read(found: Any) -> TokenIds:
            return tuple(int(token) for token in found["tokens"])

        tokens: TokenIds = self._post("/tokenize", {"add_special": False} | body, read)
        return tokens
