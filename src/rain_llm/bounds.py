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

TEMPLATE_BYTES = 1 << 18
"""A chat template's source."""
