"""The tokenizer: no text becomes a special token, whatever the vocabulary holds."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rain_llm import Message, ModelNotSupportedError
from rain_llm.models.tokenizer import Tokenizer


def unigram() -> Any:
    """A tokenizer whose vocabulary itself spells its special token, as those of SentencePiece may."""
    letters = [(letter, -3.0) for letter in "ab<s>/\u2581"]
    vocabulary = [("<unk>", 0.0), ("</s>", -1.0), *letters]
    backend = Backend(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["a</s>b", "</s>", "</s></s>a", "<</s>/s>"])
def test_a_special_token_that_the_vocabulary_spells_is_taken_apart(text: str):
    tokenizer = Tokenizer(unigram(), "unigram")
    assert 1 in tokenizer._plain.encode(text, add_special_tokens=False).ids  # it would be one
    tokens = tokenizer.encode(text)
    assert not tokenizer.special & set(tokens)
    assert tokenizer.decode(tokens) == text


def test_what_the_vocabulary_does_not_know_is_no_forgery():
    assert 0 in Tokenizer(unigram(), "unigram").encode("a\u00e9b")


def test_a_template_that_shows_a_message_twice_is_refused(make_tokenizer: Any):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ messages[0].content }}"
    tokenizer = Tokenizer(make_tokenizer(chat_template=template), "twice")
    with pytest.raises(ModelNotSupportedError, match="twice"):
        tokenizer.render_chat([Message("user", "hello")])


def test_several_templates_of_which_none_is_the_default_are_an_error(make_tokenizer: Any):
    loaded = make_tokenizer(chat_template={"rag": "{{ messages }}", "other": "{{ messages }}"})
    with pytest.raises(ModelNotSupportedError, match="the chat template of m cannot be chosen"):
        Tokenizer(loaded, "m").render_chat([Message("user", "Hello")])
