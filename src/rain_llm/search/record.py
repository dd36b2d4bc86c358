"""Convert the visited part of the search tree into plain data for the trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set

from rain_llm.search.tree import Node
from rain_llm.types import Candidate, TokenIds

DEPTH = 32
"""Maximum number of levels in the recorded tree.

Below it, each rollout is recorded as one candidate: a tree of thousands of levels cannot be pickled, copied
or printed.
"""


def record(
    node: Node, text: Callable[[TokenIds], str], chosen: Set[Node], tokens: TokenIds = (), depth: int = 1
) -> tuple[Candidate, ...]:
    """Describe the visited nodes below a node.

    Args:
        node: the root, or a node below it.
        text: returns the answer's text followed by some tokens.
        chosen: nodes that are committed.
        tokens: tokens from the root to ``node``.
        depth: depth of the children, from 1.
    """
    before = len(text(tokens))
    found: list[Candidate] = []
    for child in _visited(node):
        if depth < DEPTH:
            below = tokens + child.tokens
            own = record(child, text, chosen, below, depth + 1)
            found.append(_candidate(child, text(below)[before:], child in chosen, own))
        else:
            found += (
                _candidate(end, text(tokens + below)[before:], child in chosen and taken)
                for end, below, taken in _rollouts(child, chosen)
            )
    return tuple(found)


def _visited(node: Node) -> list[Node]:
    return [child for child in node.children if child.visits]


def _rollouts(node: Node, chosen: Set[Node]) -> Iterator[tuple[Node, TokenIds, bool]]:
    """Yield the last node of each rollout through ``node``, its tokens, and whether it was committed."""
    ways: list[tuple[Node, TokenIds, bool]] = [(node, node.tokens, node in chosen)]
    while ways:
        end, tokens, taken = ways.pop()
        further = _visited(end)
        committed = any(child in chosen for child in further)
        for child in reversed(further):
            ways.append((child, tokens + child.tokens, child in chosen or (taken and not committed)))
        if not further:
            yield end, tokens, taken


def _candidate(node: Node, text: str, chosen: bool, children: tuple[Candidate, ...] = ()) -> Candidate:
    return Candidate(text, node.prior, node.visits, node.weight, node.value, node.best, chosen, children)
