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

SENTENCES = 256
"""Sentences of a text that are judged one by one in one call."""
