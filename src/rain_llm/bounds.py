"""Upper bounds on all input: replies, schemas, settings files, chat templates.

All bounds are collected here, so that they are easy to find and no input is read without one.
"""

from __future__ import annotations

POLICY_BYTES = 1 << 20
"""Bytes of a settings file."""

POLICY_VALUES = 20_000
"""Keys and values in a settings file, after its aliases are expanded."""

POLICY_DEPTH = 50
"""Nesting depth of lists and mappings in a settings file."""

MISTAKES = 20
"""Mistakes that one error lists; further ones are only counted."""

CRITERIA = 100
"""Criteria in a list."""

FRAME_BYTES = 1 << 16
"""Bytes of a criterion's text (frame, question, guide, example), and of the refusal."""

PLACEHOLDERS = 32
"""Placeholders in a frame: each is replaced by a complete text."""

REPLY_BYTES = 64 << 20
"""Bytes of a server's reply, after decompression."""

SCHEMA_BYTES = 1 << 18
"""Bytes of a JSON schema: of a document, or of all tools of a request together."""

SCHEMA_PARTS = 2000
"""Objects in a JSON schema."""

SCHEMA_DEPTH = 64
"""Nesting depth of objects and lists in a JSON schema."""

PATTERN_SIZE = 20_000
"""Characters of all patterns of a schema; repeated parts count as often as they may repeat."""

LEXER_STATES = 50_000
"""States of a schema's grammar during constrained decoding; about 2 kB each."""

GRAMMAR_ROW = 10_000
"""Alternatives at one position of a document; an object has about four for each optional property."""

TEMPLATE_BYTES = 1 << 16
"""Bytes of a chat template's source."""

SENTENCES = 256
"""Sentences of a text that one call judges one by one."""

TEMPLATE_STEPS = 300_000
"""Loop iterations, calls and values while a chat template is rendered."""

TEMPLATE_VALUE = 4 << 20
"""Characters or items of one value in a chat template, and characters of its output."""

TEMPLATE_MEMORY = 128 << 20
"""Bytes of all values together that a chat template creates."""

TEMPLATE_S = 0.5
"""Seconds for rendering a chat template."""

REPLY_VALUES = 4_000_000
"""Values (numbers, strings, lists, objects) in a server's reply, counted before it is parsed."""

REPLY_FIELDS = 1_500_000
"""Fields of all objects in a server's reply, counted before it is parsed."""

EVENTS = 500_000
"""Events of a streamed reply."""

DESCRIPTION_BYTES = 4 << 20
"""Bytes of a server's list of models, its properties, or its reply to a probe."""

ERROR_BYTES = 1 << 16
"""Bytes that are read of an error reply."""

MODELS = 10_000
"""Models that a server lists."""

NAME_CHARACTERS = 1_000
"""Characters of a model's name, or of the path to its files."""

VOCABULARY = 1 << 21
"""Tokens of a vocabulary; the largest models have about 260,000."""

CONTEXT = 1 << 28
"""Tokens of a context; the largest models have 100 million."""

SLOTS = 10_000
"""Parallel requests of llama-server."""

QUOTED = 300
"""Characters of a server's message that an error quotes."""

CONFIG_BYTES = 4 << 20
"""Bytes of a model's ``config.json``."""

LINES_BYTES = 1 << 28
"""Bytes of a file of drafts or labels."""

PROMPTS_BYTES = 16 << 20
"""Bytes of a file of prompts, of which ``rain distil`` writes drafts."""

PROMPTS = 10_000
"""Prompts in such a file."""

DRAFTS = 100_000
"""Drafts of all prompts together."""

DRAFT_TOKENS = 4096
"""Tokens of such a draft."""
