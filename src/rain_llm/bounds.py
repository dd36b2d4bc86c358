"""The most that is accepted of anything that comes from outside.

Every bound in bytes and seconds on a reply, a schema, a policy file or a chat template stands here, so
that a reader finds them all and no input is read without one.
"""

from __future__ import annotations

POLICY_BYTES = 1 << 20
"""A settings file."""

POLICY_VALUES = 20_000
"""Keys and values in a settings file, after its aliases are expanded."""

POLICY_DEPTH = 50
"""Lists and mappings within each other in a settings file."""

MISTAKES = 20
"""Mistakes that one error lists; it counts the others."""

CRITERIA = 100
"""Criteria in a list."""

FRAME_BYTES = 1 << 16
"""A text of a criterion (frame, question, guide, example), and the refusal."""

PLACEHOLDERS = 32
"""Placeholders in a frame: each is filled with a whole text."""

REPLY_BYTES = 64 << 20
"""A server's reply, after decompression."""

SCHEMA_BYTES = 1 << 18
"""A JSON schema, of a document or of all tools of a request together."""

SCHEMA_PARTS = 2000
"""Objects in a JSON schema."""

SCHEMA_DEPTH = 64
"""Objects and lists within each other in a JSON schema."""

PATTERN_SIZE = 20_000
"""Characters of all patterns of a schema, where what is repeated counts as often as it may stand."""

LEXER_STATES = 50_000
"""States of a schema's grammar while a document is written; about 2 kB each."""

GRAMMAR_ROW = 10_000
"""Ways to go on at one place of a document: an object whose parts are all optional has some four for each."""

TEMPLATE_BYTES = 1 << 16
"""A chat template's source."""

SENTENCES = 256
"""Sentences of a text that are judged one by one in one call."""

TEMPLATE_STEPS = 300_000
"""Rounds of loops, calls and values while a chat template writes."""

TEMPLATE_VALUE = 4 << 20
"""Characters or parts of one value of a chat template, and of all that it writes."""

TEMPLATE_MEMORY = 128 << 20
"""Bytes of all values together that a chat template makes."""

TEMPLATE_S = 0.5
"""Seconds of computing for a chat template."""

REPLY_VALUES = 4_000_000
"""The values (numbers, texts, lists, objects) in a server's reply, counted before it is parsed."""

REPLY_FIELDS = 1_500_000
"""The fields of all objects in a server's reply, counted before it is parsed."""

EVENTS = 500_000
"""The events of a reply that is a stream."""

DESCRIPTION_BYTES = 4 << 20
"""What a server says of itself: its list of models, its properties, the replies to a probe."""

ERROR_BYTES = 1 << 16
"""What is read of a reply that reports an error."""

MODELS = 10_000
"""The models that a server lists."""

NAME_CHARACTERS = 1_000
"""A model's name, or the place where its files are."""

VOCABULARY = 1 << 21
"""The tokens of a vocabulary; the largest of today have some 260,000."""

CONTEXT = 1 << 28
"""The tokens of a context; the largest of today have 100 million."""

SLOTS = 10_000
"""The requests that llama-server works on at once."""

QUOTED = 300
"""The characters of what a server says that an error repeats."""

CONFIG_BYTES = 4 << 20
"""A model's ``config.json``."""
