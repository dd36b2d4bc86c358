"""The search tree: select, expand, back up, commit (paper, section 3). It uses no model and no text.

A node is a *token set*: the tokens between it and its parent. The root is the end of the committed answer.
Values are in [-1, 1]; a node's ``weight`` is its visits plus the fractional visits that it received from
similar siblings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from rain_llm.requests import Vector
from rain_llm.settings import KeepDraftsSettings, PaperSettings
from rain_llm.types import TokenIds


@dataclass(slots=True, eq=False)
class Node:
    """A token set with its statistics.

    Attributes:
        tokens: tokens of this set.
        depth: number of sets from the answer's beginning; the first root has depth 0.
        prior: in [0, 1], normalised over the siblings.
        terminal: whether the answer ends after these tokens.
        closed: whether this step simulates nothing after the node (it is terminal, or a judged end).
        visits: number of real visits.
        weight: visits plus the shares received from similar siblings.
        value: mean value, in [-1, 1].
        passes: number of visits whose text passed.
        best: the best single value at or below this node.
        embedding: running mean over ``embedded`` visits; None before the first.
        embedded: number of embeddings in that mean.
        virtual_visits: of the iterations of this round that were selected before.
        virtual_children: how many of these end here and will give this node a child.
        children: child nodes.
    """

    tokens: TokenIds = ()
    depth: int = 0
    prior: float = 1.0
    terminal: bool = False
    closed: bool = False
    visits: int = 0
    weight: float = 0.0
    value: float = 0.0
    passes: int = 0
    best: float = -1.0
    embedding: Vector | None = None
    embedded: int = 0
    virtual_visits: int = 0
    virtual_children: int = 0
    children: list[Node] = field(default_factory=list, repr=False)

    def walk(self) -> Iterator[Node]:
        """Iterate over this node and all below it, depth first (iterative: the tree may be very deep)."""
        left = [self]
        while left:
            node = left.pop()
            yield node
            left += reversed(node.children)


Mark: TypeAlias = tuple[float, float, list[tuple[Node, int, float, float, int, float]]]
"""The statistics that :meth:`SearchTree.undo` restores."""


class SearchTree:
    """The tree of one answer; :meth:`commit` moves its root."""

    def __init__(self, settings: KeepDraftsSettings | PaperSettings) -> None:
        self.settings = settings
        self._widening = settings.widening if isinstance(settings, KeepDraftsSettings) else None
        self._root_mixing = settings.root_mixing if isinstance(settings, PaperSettings) else 0.0
        self._addition = settings.addition if isinstance(settings, PaperSettings) else None
        self.root = Node()
        self._low, self._high = math.inf, -math.inf  # values met in this step

    def length_below(self, node: Node) -> int:
        """Return the token set length below ``node``, by absolute depth; the last length repeats."""
        lengths = self.settings.token_set_lengths
        return lengths[min(node.depth, len(lengths) - 1)]

    # -- select ----------------------------------------------------------------------------------

    def is_leaf(self, node: Node) -> bool:
        """Return whether selection ends at this node.

        It ends at a node without children. With progressive widening it also ends where the node should
        have one more child, or where all its children are closed.
        """
        if self._widening is None or node.closed:
            return not node.children
        deserved = math.ceil(self._widening * math.sqrt(node.visits + node.virtual_visits))
        return len(node.children) + node.virtual_children < deserved or all(c.closed for c in node.children)

    def best_child(self, node: Node) -> Node:
        """Return the child with the largest value plus exploration (PUCT); the first of equals.

        ``h + u`` with ``u = c * p * sqrt(n_parent) / (1 + n)`` (paper, section 3): h is the child's value in
        [0, 1], p its prior, n its weight, and c ``settings.exploration``.
        """
        children = node.children
        if self._widening is not None:
            children = [child for child in children if not child.closed]
        sqrt_parent_weight = math.sqrt(node.weight + node.virtual_visits)

        def puct(child: Node) -> float:
            weight = child.weight + child.virtual_visits
            bonus = self.settings.exploration * child.prior * sqrt_parent_weight / (1 + weight)
            return self._value(child) + bonus

        return max(children, key=puct)

    def _value(self, child: Node) -> float:
        """Return h: the child's value scaled to [0, 1]; 0 for an unvisited child."""
        if child.visits == 0:
            return 0.0
        if self.settings.normalise_values and self._high > self._low:
            return (child.value - self._low) / (self._high - self._low)
        return (child.value + 1) / 2

    def hold(self, path: Sequence[Node]) -> None:
        """Add virtual visits, so that the round's next selection counts this one as done."""
        for node in path:
            node.virtual_visits += 1
        path[-1].virtual_children += 1

    def release(self, path: Sequence[Node]) -> None:
        """Remove the virtual visits of :meth:`hold`."""
        for node in path:
            node.virtual_visits -= 1
        path[-1].virtual_children -= 1

    # -- expand ----------------------------------------------------------------------------------

    def expand(self, node: Node, candidates: Sequence[tuple[TokenIds, bool, float]]) -> None:
        """Add children to ``node``, each as (tokens, terminal, probability). Duplicates are dropped."""
        seen = {(child.tokens, child.terminal) for child in node.children}
        for tokens, terminal, probability in candidates:
            if (tokens, terminal) not in seen:
                seen.add((tokens, terminal))
                node.children.append(
                    Node(tokens, node.depth + 1, max(probability, 1e-12), terminal, closed=terminal)
                )
        self._normalise_priors(node)

    def graft(self, node: Node, tokens: TokenIds, terminal: bool, atomic: int = 0) -> list[Node]:
        """Add a rollout below ``node`` as a chain of token sets, whose last node is closed.

        The last ``atomic`` tokens stay in one set: nothing branches off within them. Existing nodes with the
        same tokens are reused.
        """
        chain: list[Node] = []
        while tokens or (terminal and not (chain and chain[-1].terminal)):
            length = min(self.length_below(node), len(tokens) - atomic) or atomic
            head, tokens = tokens[:length], tokens[length:]
            ends = terminal and not tokens
            child = next((c for c in node.children if c.tokens == head and c.terminal == ends), None)
            if child is None:
                child = Node(head, node.depth + 1, terminal=ends)
                node.children.append(child)
                self._normalise_priors(node, uniform=True)
            chain.append(child)
            node = child
        node.closed = True
        return chain

    def _normalise_priors(self, node: Node, uniform: bool = False) -> None:
        for child in node.children if uniform else ():
            child.prior = 1.0
        total = sum(child.prior for child in node.children)
        for child in node.children:
            child.prior /= total
        if node is self.root:
            self._mix_root()

    def _mix_root(self) -> None:
        """Mix the root's priors with the uniform distribution."""
        share = self._root_mixing
        for child in self.root.children:
            child.prior = (1 - share) * child.prior + share / len(self.root.children)

    # -- back up ---------------------------------------------------------------------------------

    def back_up(
        self, path: Sequence[Node], value: float, passed: bool, embeddings: Sequence[Vector] = ()
    ) -> None:
        """Update every node of ``path`` with a value, and similar siblings with a share of it.

        Args:
            path: nodes, root first.
            value: in [-1, 1].
            passed: whether the judged text passed.
            embeddings: for each node below the root, the embedding of the text from its own tokens on; may
                be empty.
        """
        self._low, self._high = min(self._low, value), max(self._high, value)
        for node in path:
            node.visits += 1
            node.weight += 1
            node.value += (value - node.value) / node.weight
            node.passes += passed
            node.best = value if node.visits == 1 else max(node.best, value)
        for parent, node, embedding in zip(path, path[1:], embeddings, strict=False):
            node.embedded += 1
            mean = embedding if node.embedding is None else node.embedding
            node.embedding = mean + (embedding - mean) / np.float32(node.embedded)
            self._similarity_update(parent, node, value)

    def pretend(self, path: Sequence[Node], value: float) -> Mark:
        """Back up an expected value; :meth:`undo` reverts it."""
        mark = (
            self._low,
            self._high,
            [(n, n.visits, n.weight, n.value, n.passes, n.best) for n in path],
        )
        self.back_up(path, value, passed=False)
        return mark

    def undo(self, mark: Mark) -> None:
        """Revert the last :meth:`pretend`."""
        self._low, self._high, before = mark
        for node, visits, weight, value, passes, best in before:
            node.visits, node.weight, node.value = visits, weight, value
            node.passes, node.best = passes, best

    def _similarity_update(self, parent: Node, node: Node, value: float) -> None:
        """Add a share of ``value`` to visited siblings whose mean embedding is similar to this node's."""
        similarity = self.settings.similarity
        if similarity is None:
            return
        for sibling in parent.children:
            if sibling is node or sibling.embedding is None:
                continue
            cosine = _cosine(node.embedding, sibling.embedding)
            if cosine >= similarity.threshold:
                share = similarity.share * cosine
                before = sibling.weight
                sibling.weight += share
                sibling.value = (sibling.value * before + share * value) / sibling.weight

    # -- dynamic node addition -------------------------------------------------------------------

    def wants_addition(self, node: Node) -> bool:
        """Return whether all children were visited and are few, similar and bad (paper, section 3).

        A single child counts as similar. In the reference code its variance is not a number, so a single
        child never got a sibling there.
        """
        addition = self._addition
        children = node.children
        if addition is None or not children or len(children) >= addition.max_children:
            return False
        if any(child.visits == 0 for child in children):
            return False
        if max(child.value for child in children) >= addition.value:
            return False
        embeddings = [child.embedding for child in children if child.embedding is not None]
        if len(embeddings) < 2:
            return True
        variance = float(np.linalg.norm(np.var(np.stack(embeddings), axis=0, ddof=1)))
        return variance < addition.variance * self.length_below(node)

    # -- commit ----------------------------------------------------------------------------------

    def favourite(self) -> Node:
        """Return the root's child with the largest weight; a tie goes to the larger value."""
        return max(self.root.children, key=lambda child: (child.weight, child.value))

    def lead(self) -> float:
        """Return the weight difference between the root's two heaviest children; 0 for an only child."""
        weights = sorted((child.weight for child in self.root.children), reverse=True)
        return weights[0] - weights[1] if len(weights) > 1 else 0.0

    def commit(self, path: Iterable[Node]) -> Node:
        """Make the last node of ``path`` the root, and keep the subtree below it."""
        for node in path:
            self.root = node
        for node in self.root.walk():
            node.closed = node.terminal
        self._low, self._high = math.inf, -math.inf
        if self.root.children:
            self._mix_root()
        return self.root


def greedy_prior(greedy: float, sampled: Sequence[float]) -> float:
    """Raise the greedy candidate's probability above the sampled ones (paper's code).

    ``max(min(p_greedy, sum p), max p + min p)`` over the sampled candidates' probabilities p.
    """
    if not sampled:
        return greedy
    return max(min(greedy, sum(sampled)), max(sampled) + min(sampled))


def _cosine(a: Vector | None, b: Vector | None) -> float:
    if a is None or b is None:
        return 0.0
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
