"""llama-server's own tokenizer, over HTTP: for whoever has no tokenizer of the model at hand.

Only a server that can be told to leave special tokens in a text alone is trusted with user text:
llama-server can (``parse_special``), vLLM's ``/tokenize`` cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rain_llm.bounds import REPLY_BYTES
from rain_llm.errors import ModelNotSupportedError, PromptError
from rain_llm.models.servers.failures import Refused
from rain_llm.models.servers.reading import Node
from rain_llm.models.templates.chat_template import OPTIONS, ChatTemplate
from rain_llm.types import Message, TokenIds, Tool

Post = Callable[[str, dict[str, Any], Callable[[Any], Any]], Any]
"""Posts a body to a path, and returns what a function makes of the reply."""

_REMEMBERED = 4096  # texts
_MOST_PER_BYTE, _MOST_MORE = 16, 64  # tokens of a text: some tokenizers spell signs out


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
        encode_template = lru_cache(_REMEMBERED)(self._encode_template)
        self._chat = ChatTemplate(self._render, self.encode, encode_template, name)
        bare, begun = self._encode("a"), self._tokens({"content": "a", "add_special": True})
        self.start: TokenIds = begun[: len(begun) - len(bare)] if begun[-len(bare) :] == bare else ()

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text; bytes that do not yet make a character become U+FFFD."""
        return b"".join(self._bytes.get(token, b"") for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        return self.decode((token,))

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat by the model's template, up to where the assistant begins to speak.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot show these messages.
        """
        return self._chat.tokens(messages, tools)

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        body = {"messages": messages, "chat_template_kwargs": OPTIONS} | ({"tools": tools} if tools else {})
        try:
            text: str = self._post(
                "/apply-template", body, lambda found: Node(found)["prompt"].text(REPLY_BYTES)
            )
            return text
        except Refused as error:
            raise ModelNotSupportedError(f"the chat template cannot show these messages: {error}") from error

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
        most = _MOST_PER_BYTE * len(body["content"].encode(errors="surrogatepass")) + _MOST_MORE

        def read(found: Any) -> TokenIds:
            return Node(found)["tokens"].tokens(self.size, most)

        tokens: TokenIds = self._post("/tokenize", {"add_special": False} | body, read)
        return tokens


def _prompt_of(reply: Any) -> str:
    return Node(reply)["prompt"].text(REPLY_BYTES)
