"""A tokenizer of transformers: text to tokens and back, where no text can become a special token."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rain_llm.errors import ModelNotFoundError, ModelNotSupportedError, PromptError
from rain_llm.forks import renew_after_fork
from rain_llm.missing import needed
from rain_llm.models.templates.chat_template import OPTIONS, ChatTemplate
from rain_llm.types import Message, TokenIds, Tool


class Text(Protocol):
    """Whoever knows a model's tokens. May be asked from many threads."""

    @property
    def start(self) -> TokenIds:
        """The tokens that every raw text begins with."""
        ...

    @property
    def special(self) -> frozenset[int]:
        """Tokens that are never text."""
        ...

    @property
    def size(self) -> int:
        """Tokens in the vocabulary: ids are below this."""
        ...

    def encode(self, text: str) -> TokenIds:
        """Turn text into ordinary tokens."""
        ...

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text."""
        ...

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        ...

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat up to where the assistant begins to speak."""
        ...


class Tokenizer:
    """Encodes, decodes and renders chats. May be used from many threads.

    Args:
        loaded: a tokenizer of transformers.
        name: of its model, for errors.
        ends: tokens that end a text by the model's configuration, beside the special ones.
    """

    def __init__(self, loaded: Any, name: str, ends: frozenset[int] = frozenset()) -> None:
        self._loaded = loaded
        self._name = name
        self._ends = ends
        # A fast tokenizer keeps "special tokens are text" as a state of its own: two threads with
        # different wishes would let a user's text become a special token. So there is a copy in which
        # they always are; and it answers several times as fast as what is wrapped around it.
        self.after_fork()
        renew_after_fork(self)
        self._plain: Any = copy.deepcopy(getattr(loaded, "backend_tokenizer", None))
        if self._plain is not None:
            self._plain.encode_special_tokens = True
            self._plain.no_truncation()
            self._plain.no_padding()
        self._pieces: dict[int, str] = {}
        self._chat = ChatTemplate(self._render, self.encode, self._encode_template, name)

    def after_fork(self) -> None:
        """Be of use in a forked process."""
        self._lock = threading.RLock()

    @classmethod
    def load(cls, source: str, revision: str | None = None, local_only: bool = False) -> Tokenizer:
        """Load the tokenizer of a folder or hub name; never remote code. ``local_only``: without a download.

        Raises:
            ModelNotFoundError: there is none, or it cannot be read.
        """
        with needed("a tokenizer in this process"):
            from transformers import AutoTokenizer

        source = local_folder(source)
        try:
            loaded = AutoTokenizer.from_pretrained(
                source, revision=revision, trust_remote_code=False, local_files_only=local_only
            )
        except Exception as error:  # the library raises anything for a broken file
            raise ModelNotFoundError(f"cannot load the tokenizer {source}: {first_line(error)}") from error
        return cls(loaded, source)

    @cached_property
    def start(self) -> TokenIds:
        """The start token, if the tokenizer puts one before a text."""
        plain = tuple(self._loaded("a").input_ids)
        bos = self._loaded.bos_token_id
        return (bos,) if bos is not None and plain[:1] == (bos,) else ()

    @cached_property
    def size(self) -> int:
        """Tokens in the vocabulary: ids are below this."""
        return len(self._loaded)

    @cached_property
    def special(self) -> frozenset[int]:
        """Tokens that are never text: sampling one ends the answer."""
        added = self._loaded.added_tokens_decoder.items()
        return self._ends | set(self._loaded.all_special_ids) | {i for i, token in added if token.special}

    def encode(self, text: str) -> TokenIds:
        """Turn text into ordinary tokens: special tokens in the text stay the characters they are."""
        if self._plain is not None:
            tokens = tuple(self._plain.encode(text, add_special_tokens=False).ids)
        else:
            with self._lock:
                found = self._loaded(text, add_special_tokens=False, split_special_tokens=True)
            tokens = tuple(found.input_ids)
        forged = self.special.intersection(tokens) - {self._loaded.unk_token_id}
        return self._apart(text, min(forged)) if forged else tokens

    def _apart(self, text: str, token: int) -> TokenIds:
        """Encode a text in two, so that a special token that its vocabulary makes of it is taken apart.

        Raises:
            PromptError: it is not there as it is written.
        """
        written = str(self._loaded.convert_ids_to_tokens(token))
        place = text.find(written)
        if place < 0 or len(written) < 2:
            raise PromptError(
                f"the tokenizer of {self._name} makes its special token {written!r} of a text, and it cannot "
                "be taken apart: leave that out of the text"
            )
        return self.encode(text[: place + 1]) + self.encode(text[place + 1 :])

    def decode(self, tokens: TokenIds) -> str:
        """Turn tokens into text."""
        if self._plain is not None:
            return str(self._plain.decode(tokens, skip_special_tokens=True))
        with self._lock:
            return str(
                self._loaded.decode(
                    list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
            )

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        if token not in self._pieces:
            self._pieces[token] = self.decode((token,))
        return self._pieces[token]

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat by the model's template, up to where the assistant begins to speak.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot show these messages.
        """
        if not self._loaded.chat_template:
            raise ModelNotSupportedError(f"{self._name} has no chat template: use plain text prompts")
        return self._chat.tokens(messages, tools)

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        from rain_llm.models.templates.sandbox import render

        values = self._loaded.special_tokens_map | OPTIONS
        values |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        try:
            return render(self._loaded.get_chat_template(tools=tools), values)
        except Exception as error:  # a template is a program, and may fail in any way
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise ModelNotSupportedError(
                f"the chat template of {self._name} cannot show messages of the roles {roles}: "
                f"{first_line(error)[:200]}"
            ) from error

    def _encode_template(self, text: str) -> TokenIds:
        with self._lock:
            found = self._loaded(text, add_special_tokens=False, split_special_tokens=False)
        return tuple(found.input_ids)


def local_folder(source: str) -> str:
    """Return ``source`` with ``~`` expanded; what looks like a folder must be one.

    Raises:
        ModelNotFoundError: it looks like a folder and is none.
    """
    folder = Path(source)
    looks_local = folder.is_absolute() or source.startswith((".", "~"))
    if looks_local and not folder.expanduser().is_dir():
        raise ModelNotFoundError(f"there is no model folder {source}: give an existing folder or a hub name")
    return str(folder.expanduser()) if looks_local else source


def first_line(error: BaseException) -> str:
    """Return what an error says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
