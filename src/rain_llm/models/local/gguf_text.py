"""The tokenizer and the chat template of a GGUF file, used through llama.cpp."""

from __future__ import annotations

import ctypes
import re
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from rain_llm.errors import ModelNotSupportedError, PromptError
from rain_llm.forks import renew_after_fork
from rain_llm.models.grammar import Vocabulary, vocabulary_of_bytes
from rain_llm.models.local.llama_library import CONTROL, UNKNOWN, open_library
from rain_llm.models.templates.chat_template import ChatTemplate
from rain_llm.models.tokenizer import rendered
from rain_llm.types import Message, TokenIds, Tool

_PIECE = 64  # bytes; longer tokens are asked for twice
_WITH_SPACE = 1  # LLAMA_VOCAB_TYPE_SPM: most of these write a space before a text
_BYTE_PAIRS = 2  # LLAMA_VOCAB_TYPE_BPE
_LONGEST_RUN = 4000
"""Characters without a space, or spaces, that are encoded together. llama.cpp splits a text by regular
expressions that recurse for each character: some 30,000 overflow the stack, and the process ends."""

_RUN = re.compile(r"\S+|\s+")
_VALUE = 1 << 16  # bytes of a value of the file's description


class GgufText:
    """Encodes, decodes and renders chats as a GGUF file says. Thread-safe.

    Args:
        model: llama.cpp's model, whose memory is freed when nothing refers to this object any more.
        name: name of the model, for error messages.
    """

    def __init__(self, model: int, name: str) -> None:
        self._llama = open_library()
        self._model = model
        weakref.finalize(self, self._llama.llama_model_free, model).atexit = False
        renew_after_fork(self)
        self._vocab = self._llama.llama_model_get_vocab(model)
        self._kind: int = self._llama.llama_vocab_type(self._vocab)
        self._name = name
        self.size: int = self._llama.llama_vocab_n_tokens(self._vocab)
        ids = range(self.size)
        ends = {i for i in ids if self._llama.llama_vocab_is_eog(self._vocab, i)}
        marks = {i for i in ids if self._llama.llama_vocab_get_attr(self._vocab, i) & (CONTROL | UNKNOWN)}
        self.ends = frozenset(ends)
        self.special = frozenset(ends | marks)
        self._pieces = [b"" if i in self.special else self._piece(i) for i in ids]
        self._chat = ChatTemplate(self._render, self.encode, self._encode_template, name)

    def after_fork(self) -> None:
        """Do nothing: the locks of cached properties are replaced for what is registered."""

    @cached_property
    def start(self) -> TokenIds:
        """Return the tokens that every raw text begins with."""
        bare, begun = self._tokens("a"), self._tokens("a", begin=True)
        return begun[: len(begun) - len(bare)] if begun[-len(bare) :] == bare else ()

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens; the name of a special token is encoded as its characters."""
        tokens = self._tokens(text)
        if forged := self.special.intersection(tokens):
            written = self._written(min(forged))
            raise PromptError(
                f"the tokenizer of {self._name} encodes part of a text as its special token {written!r}: "
                "remove it from the text"
            )
        return tokens

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text; special tokens are left out, an incomplete character becomes U+FFFD."""
        text = b"".join(self._pieces[token] for token in tokens)
        return (text.removeprefix(b" ") if self._spaced else text).decode("utf-8", "replace")

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        return self._pieces[token].decode("utf-8", "replace")

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat with the file's template, up to the beginning of the assistant's turn.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot render these messages.
        """
        if self._template(()) is None:
            raise ModelNotSupportedError(f"{self._name} has no chat template: use plain text prompts")
        return self._chat.tokens(messages, tools)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary for constrained decoding."""
        return vocabulary_of_bytes(self._pieces, self.special, self.ends, self.encode)

    def value(self, key: str) -> str | None:
        """Return a value of the file's description; None if it has none."""
        found = ctypes.create_string_buffer(_VALUE)
        size = self._llama.llama_model_meta_val_str(self._model, key.encode(), found, _VALUE)
        return None if size < 0 else found.value.decode("utf-8", "replace")

    @cached_property
    def _spaced(self) -> bool:
        """Return whether the tokenizer writes a space before a text."""
        given = self.value("tokenizer.ggml.add_space_prefix")
        spm = self._kind == _WITH_SPACE
        return spm if given is None else spm and given == "true"

    def _template(self, tools: Sequence[Any]) -> str | None:
        """Return the source of the chat template; a file may have one of its own for tools."""
        find = self._llama.llama_model_chat_template
        found = (tools and find(self._model, b"tool_use")) or find(self._model, None)
        return found.decode("utf-8", "replace") if found else None

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        bos, eos = self._llama.llama_vocab_bos(self._vocab), self._llama.llama_vocab_eos(self._vocab)
        special = {"bos_token": self._written(bos), "eos_token": self._written(eos)}
        return rendered(self._template(tools or ()) or "", special, messages, tools, self._name)

    def _encode_template(self, text: str) -> TokenIds:
        return self._tokens(text, special=True)

    def _tokens(self, text: str, begin: bool = False, special: bool = False) -> TokenIds:
        if len(text) <= _LONGEST_RUN or self._kind != _BYTE_PAIRS:
            return self._tokens_of(text, begin, special)
        cuts = [
            cut
            for run in _RUN.finditer(text)
            for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN)
        ]
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        found = [self._tokens_of(part, begin and not i, special) for i, part in enumerate(parts)]
        return tuple(token for tokens in found for token in tokens)

    def _tokens_of(self, text: str, begin: bool, special: bool) -> TokenIds:
        written = text.encode("utf-8", "replace")
        room = len(written) + 8
        for _ in range(2):
            found = (ctypes.c_int32 * room)()
            count = self._llama.llama_tokenize(
                self._vocab, written, len(written), found, room, begin, special
            )
            if count >= 0:
                return tuple(found[:count])
            room = -count
        raise PromptError(f"the tokenizer of {self._name} cannot encode a text of {len(written)} bytes")

    def _piece(self, token: int) -> bytes:
        room = _PIECE
        while True:
            found = ctypes.create_string_buffer(room)
            size = self._llama.llama_token_to_piece(self._vocab, token, found, room, 0, False)
            if size >= 0:
                return found.raw[:size]
            room = -size

    def _written(self, token: int) -> str:
        """Return how a special token is written; "" for none."""
        found = self._llama.llama_vocab_get_text(self._vocab, token) if 0 <= token < self.size else None
        return found.decode("utf-8", "replace") if found else ""
