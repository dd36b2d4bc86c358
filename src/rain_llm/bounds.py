"""The most that is accepted of anything that comes from outside.

Every bound in bytes and seconds on a reply, a schema, a policy file or a chat template stands here, so
that a reader finds them all and no input is read without one.
"""

from __future__ import annotations

POLICY_BYTES = 1 << 20
"""A settings file."""

FRAME_BYTES = 1 << 16
"""A criterion's frame or question, before and after its placeholders are filled with nothing."""

REPLY_BYTES = 64 << 20
"""A server's reply, after decompression."""

SCHEMA_BYTES = 1 << 18
"""A JSON schema, of a document or of all tools of a request together."""

TEMPLATE_BYTES = 1 << 18
"""A chat template's source."""

REPLY_VALUES = 4_000_000
"""The values (numbers, texts, lists, objects) in a server's reply, counted before it is parsed."""

REPLY_FIELDS = 1_500_000
"""The fields of all objects in a server's reply, counted before it is parsed."""

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
