"""Use llama-server's own tokenizer over HTTP, where no tokenizer of the model is installed here.

This is safe only because llama-server can treat special tokens in a user's text as plain text
(``parse_special``); vLLM's ``/tokenize`` cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rain_llm.bounds import MODELS, REPLY_BYTES, VOCABULARY
from rain_llm.errors import ModelNotSupportedError, PromptError
from rain_llm.models.servers.dialect import PATH, Fetch, Post
from rain_llm.models.servers.failures import Refused
from rain_llm.models.servers.reading import Node, Unreadable
from rain_llm.models.templates.chat_template import OPTIONS, ChatTemplate
from rain_llm.types import Message, TokenIds, Tool

_REMEMBERED = 4096  # texts
_MOST_PER_BYTE, _MOST_MORE = 16, 64  # tokens of a text: some tokenizers spell characters out


class LlamaTokenizer:
    """Encodes text by requests to llama-server; decodes here, from the bytes of the whole vocabulary.

    Args:
        post: sends a request to the server.
        name: of the model, for errors.
        vocabulary: the bytes of each token, by id; special tokens have none. See :func:`vocabulary`.

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
        """Turn tokens into text; the bytes of an incomplete character become U+FFFD."""
        return b"".join(self._bytes.get(token, b"") for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        return self.decode((token,))

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat with the model's template, up to where the assistant's message begins.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot render these messages.
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
            raise ModelNotSupportedError(f"the chat template cannot render this chat: {error}") from error

    def _encode(self, text: str) -> TokenIds:
        tokens = self._tokens({"content": text, "parse_special": False})
        if not self.special.isdisjoint(tokens):
            raise PromptError(
                f"the server of {self._name} turns this text into a special token: leave that out of the text"
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


def vocabulary(fetch: Fetch) -> dict[int, bytes]:
    """Return the bytes of every token of llama-server's model, by id; special tokens have none.

    One token is drawn, with the log-probabilities of all others.

    Raises:
        Failed: no reply. Unreadable: the replies do not hold all tokens.
    """
    models = Node(fetch("/v1/models"))["data"].items(MODELS)
    if not models:
        raise Unreadable("lists no model")
    size = models[0]["meta"]["n_vocab"].whole(1, VOCABULARY)
    words = Node(fetch("/tokenize", {"content": "a"}))["tokens"].tokens(size)
    if not words:
        raise Unreadable("returned no token for a text")
    body = {"prompt": list(words[:1]), "max_tokens": 1, "temperature": 0, "logprobs": size}
    choice = _only(Node(fetch(PATH, body, REPLY_BYTES))["choices"])
    top = _only(choice["logprobs"]["content"])["top_logprobs"].items(size)
    found = {place["id"].whole(0, size - 1): token_bytes(place) for place in top}
    if len(found) != size:
        raise Unreadable(f"returned {len(found)} of its {size} tokens")
    return found


def token_bytes(place: Node) -> bytes:
    """Return the bytes of a token, from its entry in a list of log-probabilities."""
    values = place["bytes"].value or []
    if not isinstance(values, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in values):
        raise place["bytes"].wrong("a list of bytes")
    return bytes(values)


def _only(listed: Node) -> Node:
    """Return the only item of a list."""
    items = listed.items(1)
    if not items:
        raise Unreadable(f"returned no {listed.place}")
    return items[0]
