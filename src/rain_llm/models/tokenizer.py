"""A transformers tokenizer that never encodes text as a special token."""

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
    """The tokenizer interface that models need. Thread-safe."""

    @property
    def start(self) -> TokenIds:
        """Return the tokens that every raw text begins with."""
        ...

    @property
    def special(self) -> frozenset[int]:
        """Return the tokens that are never text."""
        ...

    @property
    def size(self) -> int:
        """Return the size of the vocabulary; all token ids are below it."""
        ...

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens."""
        ...

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text."""
        ...

    def piece(self, token: int) -> str:
        """Return the text of one token."""
        ...

    def render_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> TokenIds:
        """Render a chat up to the beginning of the assistant's turn."""
        ...


class Tokenizer:
    """Encodes, decodes and renders chats with a transformers tokenizer. Thread-safe.

    Args:
        loaded: the transformers tokenizer.
        name: name of its model, for error messages.
        ends: tokens that end a text according to the model's configuration, besides the special ones.
    """

    def __init__(self, loaded: Any, name: str, ends: frozenset[int] = frozenset()) -> None:
        self._loaded = loaded
        self._name = name
        self._ends = ends
        # A fast tokenizer keeps "encode special tokens as text" as mutable state: two threads that set it
        # differently could turn a user's text into a special token. So text is encoded with a copy in which
        # it is always set; this copy is also several times as fast as the wrapper.
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
        """Replace the lock, so that the tokenizer works in a forked process."""
        self._lock = threading.RLock()

    @classmethod
    def load(cls, source: str, revision: str | None = None, local_only: bool = False) -> Tokenizer:
        """Load the tokenizer of a folder or hub name; remote code is never run.

        Args:
            source: folder or hub name.
            revision: revision of a hub model.
            local_only: do not download anything.

        Raises:
            ModelNotFoundError: there is no tokenizer, or it cannot be loaded.
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
        """Return the start token, if the tokenizer adds one."""
        plain = tuple(self._loaded("a").input_ids)
        bos = self._loaded.bos_token_id
        return (bos,) if bos is not None and plain[:1] == (bos,) else ()

    @cached_property
    def size(self) -> int:
        """Return the size of the vocabulary; all token ids are below it."""
        return len(self._loaded)

    @cached_property
    def special(self) -> frozenset[int]:
        """Return the tokens that are never text: sampling one ends the answer."""
        added = self._loaded.added_tokens_decoder.items()
        return self._ends | set(self._loaded.all_special_ids) | {i for i, token in added if token.special}

    def encode(self, text: str) -> TokenIds:
        """Encode text as ordinary tokens; the name of a special token is encoded as its characters."""
        if self._plain is not None:
            tokens = tuple(self._plain.encode(text, add_special_tokens=False).ids)
        else:
            with self._lock:
                found = self._loaded(text, add_special_tokens=False, split_special_tokens=True)
            tokens = tuple(found.input_ids)
        forged = self.special.intersection(tokens) - {self._loaded.unk_token_id}
        return self._split(text, min(forged)) if forged else tokens

    def _split(self, text: str, token: int) -> TokenIds:
        """Encode a text in two parts, split within a special token that the vocabulary would produce.

        Raises:
            PromptError: the text does not contain the special token literally.
        """
        written = str(self._loaded.convert_ids_to_tokens(token))
        place = text.find(written)
        if place < 0 or len(written) < 2:
            raise PromptError(
                f"the tokenizer of {self._name} encodes part of a text as its special token {written!r}, "
                "which cannot be split: remove it from the text"
            )
        return self.encode(text[: place + 1]) + self.encode(text[place + 1 :])

    def decode(self, tokens: TokenIds) -> str:
        """Decode tokens to text; special tokens are left out."""
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
        """Render a chat with the model's template, up to the beginning of the assistant's turn.

        Raises:
            ModelNotSupportedError: there is no template, or it cannot render these messages.
        """
        if not self._loaded.chat_template:
            raise ModelNotSupportedError(f"{self._name} has no chat template: use plain text prompts")
        return self._chat.tokens(messages, tools)

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        try:
            source = self._loaded.get_chat_template(tools=tools)
        except ValueError as error:  # several templates, and none is the default
            raise ModelNotSupportedError(
                f"the chat template of {self._name} cannot be chosen: {first_line(error)[:200]}"
            ) from error
        return rendered(source, self._loaded.special_tokens_map, messages, tools, self._name)

    def _encode_template(self, text: str) -> TokenIds:
        with self._lock:
            found = self._loaded(text, add_special_tokens=False, split_special_tokens=False)
        return tuple(found.input_ids)


def rendered(
    source: str,
    special: dict[str, Any],
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    name: str,
) -> str:
    """Render a chat with a template, up to the beginning of the assistant's turn.

    Args:
        source: source of the template.
        special: special tokens as they are written, by the template's names for them.
        messages: the messages.
        tools: the tools; None: none.
        name: name of the model, for the error message.

    Raises:
        ModelNotSupportedError: the template cannot show this chat.
    """
    from rain_llm.models.templates.sandbox import render

    values = special | OPTIONS
    values |= {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
    try:
        return render(source, values)
    except Exception as error:  # a template is a program, and may raise anything
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise ModelNotSupportedError(
            f"the chat template of {name} cannot show messages of the roles {roles}: "
            f"{first_line(error)[:200]}"
        ) from error


def local_folder(source: str) -> str:
    """Return ``source`` with ``~`` expanded, and check that a path is an existing folder.

    Raises:
        ModelNotFoundError: it looks like a path but is not a folder.
    """
    folder = Path(source)
    looks_local = folder.is_absolute() or source.startswith((".", "~"))
    if looks_local and not folder.expanduser().is_dir():
        raise ModelNotFoundError(f"there is no model folder {source}: give an existing folder or a hub name")
    return str(folder.expanduser()) if looks_local else source


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
