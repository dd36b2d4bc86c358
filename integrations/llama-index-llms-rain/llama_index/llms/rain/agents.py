"""What the tools of a chat have told, and what its user has asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llama_index.core.llms import ChatMessage, TextBlock
from llama_index.llms.rain.messages import ROLES, text_of

_FOLDED = TextBlock(text="<current_conversation>\n")
_ROLE = re.compile(rf"\t<({'|'.join(ROLES)})>\n")
_SAID = re.compile(r"\t\t<message>(.*)</message>\n", re.DOTALL)


def told(messages: Sequence[ChatMessage]) -> tuple[tuple[str, ...], str]:
    """Return what the tools have told since the user's last turn (or else in all the chat), and that turn."""
    turns = [(ROLES[message.role], text_of(message)) for message in messages]
    last = max((place for place, (role, _) in enumerate(turns) if role == "user"), default=-1)
    replies = [(place, text) for place, (role, text) in enumerate(turns) if role == "tool"]
    latest = [text for place, text in replies if place > last] or [text for _, text in replies]
    return tuple(latest), turns[last][1] if last >= 0 else ""


def unfolded(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """Return the chat that an agent has folded into one turn of its user's; any other as it is.

    LlamaIndex's agents do that to have their ``output_cls`` filled. Each role and each text is a block of its
    own there, and every text stands between tags: none can pass for a role.
    """
    blocks = messages[-1].blocks if messages else []
    if _FOLDED not in blocks[:1]:
        return messages
    turns: list[ChatMessage] = []
    for text in (block.text for block in blocks if isinstance(block, TextBlock)):
        if role := _ROLE.fullmatch(text):
            turns.append(ChatMessage(role=role[1], blocks=[]))
        elif turns and (said := _SAID.fullmatch(text)):
            turns[-1].blocks.append(TextBlock(text=said[1]))
    return turns or messages
