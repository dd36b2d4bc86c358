"""Golden trees: every number here was worked out by hand from the paper's rules.

The rules, in short (c = 2 unless a test says otherwise):

* select: the child with the largest ``h + u``; ``h = (q + 1) / 2``, 0 if unvisited;
  ``u = c * p * sqrt(n of the parent) / (1 + n)``;
* root priors: ``0.75 p + 0.25 / k``;
* back up: visits + 1, n + 1, ``q += (v - q) / n``;
* similar siblings (cosine >= 0.95): ``s = 0.2 * cosine``, n + s, ``q = (q * n_before + s * v) / n``;
* commit: the child with the largest n; of equals the one with the larger q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rain_llm.requests import Vector
from rain_llm.search.tree import Node, SearchTree, greedy_prior
from rain_llm.settings import AdditionSettings, RainSettings, SimilaritySettings
from rain_llm.settings.search import search_settings
from tests.examples import examples

PAPER: dict[str, Any] = {
    "token_set_lengths": (1, 2, 4, 10),
    "strategy": "paper",
    "exploration": 2.0,
    "root_mixing": 0.25,
    "normalise_values": False,
    "similarity": SimilaritySettings(threshold=0.95, share=0.2),
    "addition": AdditionSettings(max_children=20, variance=0.03, value=0.0),
}


def paper_tree(**changes: Any) -> SearchTree:
    return SearchTree(search_settings(PAPER | changes))


def simulating_tree(**changes: Any) -> SearchTree:
    own = {"strategy": "keep_drafts", "similarity": None}
    common = {name: PAPER[name] for name in ("token_set_lengths", "exploration", "normalise_values")}
    return SearchTree(search_settings(common | own | changes))


def two_candidates(**changes: Any) -> tuple[SearchTree, Node, Node]:
    """A visited root with the candidates a (0.6) and b (0.4), mixed to 0.575 and 0.425."""
    tree = paper_tree(**changes)
    tree.expand(tree.root, [((1,), False, 0.6), ((2,), False, 0.4)])
    tree.back_up([tree.root], 0.0, False)
    a, b = tree.root.children
    return tree, a, b


def vector(*numbers: float) -> Vector:
    return np.array(numbers, np.float32)


# --- select -----------------------------------------------------------------------------------


def test_selection_weighs_value_against_prior_as_worked_out_by_hand():
    tree, a, b = two_candidates()
    root = tree.root

    # n = 1: a 0 + 2 * .575 * 1 / 1 = 1.15; b 2 * .425 = 0.85.
    assert tree.best_child(root) is a
    tree.back_up([root, a], -0.2, False)
    # n = 2: a .4 + 1.15 * 1.41421 / 2 = 1.21317; b 0 + .85 * 1.41421 = 1.20208.
    assert tree.best_child(root) is a
    tree.back_up([root, a], -0.2, False)
    # n = 3: a .4 + 1.15 * 1.73205 / 3 = 1.06395; b .85 * 1.73205 = 1.47224.
    assert tree.best_child(root) is b
    tree.back_up([root, b], 0.5, True)
    # n = 4: a .4 + 1.15 * 2 / 3 = 1.16667; b .75 + .85 * 2 / 2 = 1.6.
    assert tree.best_child(root) is b
    tree.back_up([root, b], -0.7, False)  # q of b: (.5 - .7) / 2 = -.1
    # n = 5: a .4 + 1.15 * 2.23607 / 3 = 1.25716; b .45 + .85 * 2.23607 / 3 = 1.08355.
    assert tree.best_child(root) is a

    assert (root.visits, a.visits, b.visits) == (5, 2, 2)
    assert a.value == pytest.approx(-0.2)
    assert b.value == pytest.approx(-0.1)
    assert root.value == pytest.approx((0.0 - 0.2 - 0.2 + 0.5 - 0.7) / 5)


def test_an_unvisited_child_has_no_value_of_its_own():
    tree, a, b = two_candidates(root_mixing=0.0)
    tree.back_up([tree.root, a], -0.9, False)
    # n = 2: a .05 + 1.2 * 1.41421 / 2 = .89853; b 0 + .8 * 1.41421 = 1.13137.
    assert tree.best_child(tree.root) is b
    # a .65 + .84853 = 1.49853: above b, but below the 1.63137 that q = 0, h = .5 would give b.
    a.value = 0.3
    assert tree.best_child(tree.root) is a


def test_without_exploration_only_the_value_counts():
    tree, a, b = two_candidates(exploration=0.0)
    tree.back_up([tree.root, a], 0.2, True)
    tree.back_up([tree.root, b], 0.3, True)
    assert tree.best_child(tree.root) is b


def test_of_equals_the_first_is_selected():
    tree = paper_tree()
    tree.expand(tree.root, [((5,), False, 0.5), ((4,), False, 0.5)])
    tree.back_up([tree.root], 0.0, False)
    assert tree.best_child(tree.root).tokens == (5,)


def test_shares_from_siblings_count_in_the_exploration_of_both():
    tree, a, b = two_candidates()
    a.visits, a.weight, a.value = 1, 1.5, 0.0
    b.visits, b.weight, b.value = 1, 1.0, 0.0
    tree.root.weight = 4.0
    # a .5 + 1.15 * 2 / 2.5 = 1.42; b .5 + .85 * 2 / 2 = 1.35. With visits for n: a 1.65.
    assert tree.best_child(tree.root) is a
    a.weight = 1.8  # a .5 + 2.3 / 2.8 = 1.32143 < 1.35
    assert tree.best_child(tree.root) is b


def test_normalised_values_are_stretched_to_the_range_met_in_this_step():
    tree, a, b = two_candidates(normalise_values=True, root_mixing=0.0)
    tree.back_up([tree.root, a], 0.1, True)
    tree.back_up([tree.root, b], 0.3, True)
    # Range 0 (the root's own) to .3: a 1/3 + 1.2 * 1.73205 / 2 = 1.37256; b 1 + .8 * .866 = 1.69282.
    # As they are: a .55 + 1.03923 = 1.58923 > b .65 + .69282 = 1.34282.
    assert tree.best_child(tree.root) is b
    tree.settings = tree.settings.model_copy(update={"normalise_values": False})
    assert tree.best_child(tree.root) is a


# --- expand -----------------------------------------------------------------------------------


def test_root_priors_are_mixed_with_the_uniform_distribution():
    tree = paper_tree()
    tree.expand(tree.root, [((1,), False, 0.3), ((2,), False, 0.1)])
    # Normalised .75 and .25; mixed .75 * .75 + .125 = .6875 and .75 * .25 + .125 = .3125.
    assert [child.prior for child in tree.root.children] == pytest.approx([0.6875, 0.3125])


def test_priors_below_the_root_are_normalised_only():
    tree, a, _ = two_candidates()
    tree.expand(a, [((3, 4), False, 0.3), ((5, 6), False, 0.1)])
    assert [child.prior for child in a.children] == pytest.approx([0.75, 0.25])


def test_after_re_rooting_the_new_roots_priors_are_mixed():
    tree, a, _ = two_candidates()
    tree.expand(a, [((3, 4), False, 0.3), ((5, 6), False, 0.1)])
    tree.commit([a])
    assert tree.root is a
    assert [child.prior for child in a.children] == pytest.approx([0.6875, 0.3125])


def test_expanding_drops_duplicates_and_keeps_the_first_ones_prior():
    tree, a, _ = two_candidates()
    tree.expand(
        a,
        [((3, 4), False, 0.2), ((3, 4), False, 0.7), ((3, 4), True, 0.1), ((5, 6), False, 0.1)],
    )
    # The same tokens with an end behind them are another candidate: .2, .1 and .1 are left.
    assert [(c.tokens, c.terminal) for c in a.children] == [
        ((3, 4), False),
        ((3, 4), True),
        ((5, 6), False),
    ]
    assert [c.prior for c in a.children] == pytest.approx([0.5, 0.25, 0.25])
    tree.expand(a, [((5, 6), False, 0.9)])
    assert len(a.children) == 3


def test_a_candidate_whose_probability_underflows_keeps_a_prior():
    tree = paper_tree()
    tree.expand(tree.root, [((1,), False, 0.0), ((2,), False, 0.0)])
    assert [child.prior for child in tree.root.children] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    ("greedy", "sampled", "lifted"),
    [
        # min(.5, .2 + .1) = .3; max p + min p = .3.
        (0.5, [0.2, 0.1], 0.3),
        # min(.05, .3) = .05; .2 + .1 = .3.
        (0.05, [0.2, 0.1], 0.3),
        # min(.5, .6) = .5; .3 + .1 = .4.
        (0.5, [0.3, 0.2, 0.1], 0.5),
        # One sampled set is largest and smallest at once: min(.1, .3) = .1; .3 + .3 = .6.
        (0.1, [0.3], 0.6),
        (0.4, [], 0.4),
    ],
)
def test_the_greedy_candidates_prior_is_lifted(greedy: float, sampled: list[float], lifted: float) -> None:
    assert greedy_prior(greedy, sampled) == pytest.approx(lifted)


# --- back up ----------------------------------------------------------------------------------


def test_back_up_adds_a_visit_and_the_mean_along_the_path():
    tree, a, b = two_candidates()
    tree.expand(a, [((3, 4), False, 1.0)])
    (deep,) = a.children
    tree.back_up([tree.root, a], 1.0, True)
    tree.back_up([tree.root, a, deep], -0.5, False)
    # root: 0, 1, -.5; a: 1, -.5; deep: -.5; b was not on the path.
    assert [n.visits for n in (tree.root, a, deep, b)] == [3, 2, 1, 0]
    assert [n.weight for n in (tree.root, a, deep, b)] == [3, 2, 1, 0]
    assert [n.value for n in (tree.root, a, deep)] == pytest.approx([0.5 / 3, 0.25, -0.5])
    assert [n.passes for n in (tree.root, a, deep)] == [1, 1, 0]
    assert [n.best for n in (tree.root, a, deep)] == [1.0, 1.0, -0.5]


def test_a_similar_sibling_learns_a_share():
    tree, a, b = two_candidates()
    tree.back_up([tree.root, a], 0.5, True, [vector(1, 0)])
    tree.back_up([tree.root, b], -1.0, False, [vector(0.96, 0.28)])  # cosine with a: .96
    # s = .2 * .96 = .192; n of a 1 + .192; q of a (.5 * 1 + .192 * -1) / 1.192 = .308 / 1.192.
    assert a.weight == pytest.approx(1.192)
    assert a.value == pytest.approx(0.308 / 1.192)
    assert (a.visits, a.passes, a.best) == (1, 1, 0.5)
    assert (b.weight, b.value) == (1, -1.0)
    assert (tree.root.weight, tree.root.visits) == (3, 3)

    tree.back_up([tree.root, a], 0.7, True, [vector(1, 0)])
    # a: n 2.192, q .308 / 1.192 + (.7 - .308 / 1.192) / 2.192 = (.308 + .7) / 2.192.
    # b learns in turn: n 1.192, q (-1 * 1 + .192 * .7) / 1.192 = -.8656 / 1.192.
    assert a.weight == pytest.approx(2.192)
    assert a.value == pytest.approx(1.008 / 2.192)
    assert b.weight == pytest.approx(1.192)
    assert b.value == pytest.approx(-0.8656 / 1.192)


def test_a_sibling_that_is_less_alike_learns_nothing():
    tree, a, b = two_candidates()
    tree.back_up([tree.root, a], 0.5, True, [vector(1, 0)])
    tree.back_up([tree.root, b], -1.0, False, [vector(0.94, 0.3411744)])  # cosine .94
    assert (a.weight, a.value) == (1, 0.5)


def test_threshold_and_share_are_settings():
    tree, a, b = two_candidates(similarity=SimilaritySettings(threshold=0.5, share=0.5))
    tree.back_up([tree.root, a], 1.0, True, [vector(1, 0)])
    tree.back_up([tree.root, b], 0.0, False, [vector(3, 4)])  # cosine .6: vectors need not be unit
    # s = .5 * .6 = .3; q = (1 + .3 * 0) / 1.3.
    assert a.weight == pytest.approx(1.3)
    assert a.value == pytest.approx(1 / 1.3)


def test_a_cosine_at_the_threshold_is_alike():
    tree, a, b = two_candidates(similarity=SimilaritySettings(threshold=1.0))
    tree.back_up([tree.root, a], 1.0, True, [vector(1, 0)])
    tree.back_up([tree.root, b], 0.0, False, [vector(2, 0)])
    assert a.weight == pytest.approx(1.2)


def test_an_unvisited_sibling_learns_nothing():
    tree, a, b = two_candidates()
    tree.back_up([tree.root, a], 0.5, True, [vector(1, 0)])
    assert (b.visits, b.weight, b.value, b.embedding) == (0, 0, 0, None)


def test_embeddings_are_a_running_mean_and_similarity_is_measured_on_it():
    tree, a, b = two_candidates()
    tree.back_up([tree.root, a], 0.0, False, [vector(1, 0)])
    tree.back_up([tree.root, a], 0.0, False, [vector(0, 1)])
    tree.back_up([tree.root, a], 0.0, False, [vector(0, 1)])
    # (1, 0), then (.5, .5), then (1/3, 2/3).
    assert a.embedding == pytest.approx([1 / 3, 2 / 3])
    # Like a's mean (cosine with (1, 2) / 3: 1), unlike its last text (cosine .894).
    tree.back_up([tree.root, b], 1.0, True, [vector(1, 2) / math.sqrt(5)])
    assert a.weight == pytest.approx(3.2)
    assert a.value == pytest.approx(0.2 / 3.2)


def test_similarity_is_shared_at_every_level_of_the_path():
    tree, a, b = two_candidates()
    tree.expand(a, [((3, 4), False, 0.5), ((5, 6), False, 0.5)])
    low, high = a.children
    tree.back_up([tree.root, b], 0.0, False, [vector(1, 0, 0)])
    tree.back_up([tree.root, a, low], 0.0, False, [vector(0, 1, 0), vector(0, 0, 1)])
    tree.back_up([tree.root, a, high], 1.0, True, [vector(0, 1, 0), vector(0, 0, 1)])
    # low is like high (cosine 1): n 1.2, q .2 / 1.2. b is unlike a: untouched.
    assert low.weight == pytest.approx(1.2)
    assert low.value == pytest.approx(1 / 6)
    assert (b.weight, b.value) == (1, 0)


def test_without_the_similarity_setting_nothing_is_shared():
    tree, a, b = two_candidates(similarity=None)
    tree.back_up([tree.root, a], 0.5, True, [vector(1, 0)])
    tree.back_up([tree.root, b], -1.0, False, [vector(1, 0)])
    assert (a.weight, a.value) == (1, 0.5)


# --- dynamic node addition --------------------------------------------------------------------


def alike_and_bad(children: int = 2, **changes: Any) -> SearchTree:
    tree = paper_tree(**changes)
    tree.expand(tree.root, [((i,), False, 1.0) for i in range(children)])
    for child in tree.root.children:
        tree.back_up([tree.root, child], -0.5, False, [vector(1, 0)])
    return tree


def test_a_candidate_is_added_where_all_were_visited_and_are_alike_and_bad():
    assert alike_and_bad().wants_addition(alike_and_bad().root) is True
    assert alike_and_bad(children=19).wants_addition(alike_and_bad(children=19).root)


def test_none_is_added_while_one_was_not_visited():
    tree = alike_and_bad()
    tree.expand(tree.root, [((9,), False, 1.0)])
    assert not tree.wants_addition(tree.root)


def test_none_is_added_where_the_best_is_not_bad():
    tree = alike_and_bad()
    tree.root.children[1].value = 0.0
    assert not tree.wants_addition(tree.root)
    tree.root.children[1].value = -0.001
    assert tree.wants_addition(tree.root)


def test_no_more_than_twenty_children():
    tree = alike_and_bad(children=20)
    assert not tree.wants_addition(tree.root)


def test_none_is_added_where_children_differ():
    # Two embeddings (1, 0) and (1, y): sample variance (0, y^2 / 2), norm y^2 / 2.
    # Length 1: below .03 while y < sqrt(.06) = .24495.
    tree = alike_and_bad()
    _a, b = tree.root.children
    b.embedding = vector(1, 0.24)  # .0288
    assert tree.wants_addition(tree.root)
    b.embedding = vector(1, 0.25)  # .03125
    assert not tree.wants_addition(tree.root)


def test_the_variance_allowed_grows_with_the_token_sets_length():
    tree = paper_tree()
    tree.root.depth = 1  # sets of 2 tokens below: .03 * 2 = .06, y < sqrt(.12) = .34641
    tree.expand(tree.root, [((1, 2), False, 1.0), ((3, 4), False, 1.0)])
    a, b = tree.root.children
    for child in (a, b):
        tree.back_up([tree.root, child], -0.5, False, [vector(1, 0)])
    b.embedding = vector(1, 0.34)  # .0578
    assert tree.wants_addition(tree.root)
    b.embedding = vector(1, 0.35)  # .06125
    assert not tree.wants_addition(tree.root)


def test_a_single_child_counts_as_alike():
    tree = alike_and_bad(children=1)
    assert tree.wants_addition(tree.root)


def test_no_addition_without_the_setting_or_without_children():
    tree = alike_and_bad(addition=None)
    assert not tree.wants_addition(tree.root)
    tree = paper_tree()
    assert not tree.wants_addition(tree.root)


# --- commit -----------------------------------------------------------------------------------


def test_the_child_with_the_largest_weight_is_the_favourite():
    tree, a, b = two_candidates()
    a.visits, a.weight, a.value = 3, 3.0, 1.0
    b.visits, b.weight, b.value = 3, 3.2, -1.0  # the same visits, and a share
    assert tree.favourite() is b
    b.weight = 3.0
    assert tree.favourite() is a  # of equals the larger value
    a.value, b.value = -1.0, -0.9
    assert tree.favourite() is b


def test_commit_keeps_the_subtree_and_what_it_has_learnt():
    tree, a, b = two_candidates()
    tree.expand(a, [((3, 4), False, 0.5), ((5, 6), True, 0.5)])
    low, high = a.children
    tree.back_up([tree.root, a, low], 0.5, True)
    assert tree.commit([a]) is a
    assert tree.root.children == [low, high]
    assert (tree.root.visits, low.visits, low.value) == (1, 1, 0.5)
    assert b not in set(tree.root.walk())


def test_commit_of_a_path_moves_the_root_to_its_end():
    tree, a, _ = two_candidates()
    tree.expand(a, [((3, 4), False, 1.0)])
    (deep,) = a.children
    assert tree.commit([a, deep]) is deep
    assert tree.root.depth == 2


def test_token_sets_have_their_lengths_by_absolute_depth():
    tree = paper_tree()
    lengths = []
    for _ in range(6):
        length = tree.length_below(tree.root)
        lengths.append(length)
        tree.expand(tree.root, [(tuple(range(length)), False, 1.0)])
        tree.commit([tree.root.children[0]])  # re-rooting does not begin again at 1
    assert lengths == [1, 2, 4, 10, 10, 10]


def test_commit_forgets_the_range_of_values_and_opens_judged_ends():
    tree = simulating_tree(token_set_lengths=(1,))
    (first, end) = tree.graft(tree.root, (1, 2), terminal=False)
    (_, eos) = tree.graft(tree.root, (1, 3), terminal=True)
    tree.commit([first])
    assert not end.closed
    assert eos.closed and eos.terminal


# --- simulations kept as children ---------------------------------------------------------------


def test_a_simulation_is_kept_as_a_chain_of_token_sets_and_its_end_is_closed():
    tree = simulating_tree(token_set_lengths=(1, 2, 4))
    chain = tree.graft(tree.root, (1, 2, 3, 4, 5), terminal=False)
    assert [node.tokens for node in chain] == [(1,), (2, 3), (4, 5)]
    assert [node.depth for node in chain] == [1, 2, 3]
    assert [node.closed for node in chain] == [False, False, True]
    assert tree.root.children == [chain[0]]
    assert chain[0].children == [chain[1]]


def test_a_simulation_that_ends_the_answer_ends_in_a_terminal_set():
    tree = simulating_tree(token_set_lengths=(2,))
    chain = tree.graft(tree.root, (1, 2, 3), terminal=True)
    assert [(n.tokens, n.terminal) for n in chain] == [((1, 2), False), ((3,), True)]
    # The last set is full: it is terminal itself, without an empty set behind it.
    chain = tree.graft(tree.root, (1, 2, 3, 4), terminal=True)
    assert [(n.tokens, n.terminal) for n in chain] == [((1, 2), False), ((3, 4), True)]
    (ending,) = tree.graft(tree.root, (), terminal=True)
    assert (ending.tokens, ending.terminal, ending.closed) == ((), True, True)


def test_simulations_that_begin_alike_share_their_beginning():
    tree = simulating_tree(token_set_lengths=(2,))
    first = tree.graft(tree.root, (1, 2, 3, 4), terminal=False)
    second = tree.graft(tree.root, (1, 2, 5, 6), terminal=False)
    again = tree.graft(tree.root, (1, 2, 3, 4), terminal=False)
    assert second[0] is first[0]
    assert second[1] is not first[1]
    assert again == first
    assert len(tree.root.children) == 1
    assert len(first[0].children) == 2


def test_the_same_tokens_with_and_without_an_end_are_two_sets():
    tree = simulating_tree(token_set_lengths=(2,))
    (going,) = tree.graft(tree.root, (1, 2), terminal=False)
    (ending,) = tree.graft(tree.root, (1, 2), terminal=True)
    assert going is not ending
    assert (going.terminal, ending.terminal) == (False, True)


def test_kept_simulations_have_equal_priors():
    tree = simulating_tree(token_set_lengths=(1,))
    for token in (1, 2, 3):
        tree.graft(tree.root, (token,), terminal=False)
    assert [child.prior for child in tree.root.children] == pytest.approx([1 / 3] * 3)


def test_a_node_deserves_as_many_children_as_the_root_of_its_visits():
    tree = simulating_tree(token_set_lengths=(1,), widening=1.0)
    root = tree.root
    # Without visits and children: a leaf. ceil(sqrt(v)): 1 for v = 1, 2 for 2 to 4, 3 for 5 to 9.
    assert tree.is_leaf(root)
    chain = tree.graft(root, (1, 7), terminal=False)
    tree.back_up([root, *chain], 0.0, True)
    assert not tree.is_leaf(root)  # v = 1, one child
    tree.back_up([root, *chain], 0.0, True)
    assert tree.is_leaf(root)  # v = 2, deserves 2
    tree.back_up([root, *tree.graft(root, (2, 7), terminal=False)], 0.0, True)
    for visits, leaf in ((3, False), (4, False), (5, True), (9, True), (10, True)):
        root.visits = visits
        assert tree.is_leaf(root) is leaf, visits
    tree = simulating_tree(token_set_lengths=(1,), widening=0.5)
    tree.root = root
    for visits, leaf in ((5, False), (16, False), (17, True)):  # ceil(.5 * sqrt(17)) = 3
        root.visits = visits
        assert tree.is_leaf(root) is leaf, visits


def test_a_closed_child_is_not_selected_and_a_node_with_closed_children_only_is_a_leaf():
    tree = simulating_tree(token_set_lengths=(1,))
    (closed,) = tree.graft(tree.root, (1,), terminal=False)
    tree.back_up([tree.root, closed], 1.0, True)
    assert tree.is_leaf(tree.root)
    open_, _ = tree.graft(tree.root, (2, 3), terminal=False)
    tree.back_up([tree.root, open_], -1.0, False)
    assert tree.best_child(tree.root) is open_


# --- virtual visits -----------------------------------------------------------------------------


def snapshot(tree: SearchTree) -> list[tuple[object, ...]]:
    return [
        (
            n.tokens,
            n.visits,
            n.weight,
            n.value,
            n.prior,
            n.virtual_visits,
            n.virtual_children,
            len(n.children),
        )
        for n in tree.root.walk()
    ]


def test_virtual_visits_spread_a_round_and_leave_no_trace():
    tree, a, b = two_candidates()
    tree.back_up([tree.root, a], -0.2, False)
    before = snapshot(tree)
    # As in the first test, n = 2: a 1.21317, b 1.20208.
    assert tree.best_child(tree.root) is a
    tree.hold([tree.root, a])
    # n = 3 and a has 2: a .4 + 1.15 * 1.73205 / 3 = 1.06395; b .85 * 1.73205 = 1.47224.
    assert tree.best_child(tree.root) is b
    tree.hold([tree.root, b])
    # n = 4: a .4 + 1.15 * 2 / 3 = 1.16667; b 0 + .85 * 2 / 2 = .85.
    assert tree.best_child(tree.root) is a
    tree.release([tree.root, a])
    tree.release([tree.root, b])
    assert snapshot(tree) == before


def test_a_held_leaf_counts_as_a_child_about_to_be_opened():
    tree = simulating_tree(token_set_lengths=(1,), widening=1.0)
    chain = tree.graft(tree.root, (1, 2), terminal=False)
    tree.back_up([tree.root, *chain], 0.0, True)
    tree.root.visits = 3  # deserves 2, has 1
    assert tree.is_leaf(tree.root)
    tree.hold([tree.root])  # 4 visits deserve 2: one there, one being opened
    assert not tree.is_leaf(tree.root)
    tree.release([tree.root])
    assert tree.is_leaf(tree.root)


# --- whatever happens -----------------------------------------------------------------------------

UNIT = st.floats(-1, 1, allow_nan=False)
EVENT = st.tuples(
    st.sampled_from(["look", "look", "look", "look", "add", "commit"]),
    st.integers(0, 3),  # shapes what is found
    UNIT,
    st.booleans(),
)


def check(tree: SearchTree) -> None:
    for node in tree.root.walk():
        assert node.visits >= sum(child.visits for child in node.children)
        assert node.weight >= node.visits >= node.passes >= 0
        assert -1 - 1e-9 <= node.value <= 1 + 1e-9
        assert -1 <= node.best <= 1
        for child in node.children:
            assert 0 < child.prior <= 1 + 1e-9
            assert child.depth == node.depth + 1
            assert len(child.tokens) <= tree.length_below(node)
            if child.visits:
                assert node.best >= child.best
        if node.children:
            assert sum(child.prior for child in node.children) == pytest.approx(1)
            names = [(child.tokens, child.terminal) for child in node.children]
            assert len(set(names)) == len(names)
        if node.visits and node.weight == node.visits:  # no shares: the mean is a mean of verdicts
            assert node.best >= node.value - 1e-9
        assert (node.virtual_visits, node.virtual_children) == (0, 0)


@pytest.mark.parametrize("make", [paper_tree, simulating_tree])
@given(events=st.lists(EVENT, max_size=40), similar=st.booleans(), normalise=st.booleans())
@hypothesis_settings(max_examples=examples(150))
def test_the_trees_books_balance_after_any_search(
    make: Callable[..., SearchTree],
    events: list[tuple[str, int, float, bool]],
    similar: bool,
    normalise: bool,
) -> None:
    tree = make(
        token_set_lengths=(1, 2),
        similarity=SimilaritySettings(threshold=0.5) if similar else None,
        normalise_values=normalise,
    )
    for what, shape, value, flag in events:
        if what == "commit":
            if tree.root.children and tree.favourite().visits and not tree.favourite().terminal:
                tree.commit([tree.favourite()])
        elif what == "add" and tree.root.children:
            tree.expand(tree.root, [((90 + shape,), False, 0.1)])
        elif what == "look" and not tree.root.closed:
            path = [tree.root]
            while not tree.is_leaf(path[-1]):
                path.append(tree.best_child(path[-1]))
            tree.hold(path)
            tree.release(path)
            leaf = path[-1]
            length = tree.length_below(leaf)
            if leaf.terminal:
                pass
            elif make is paper_tree:
                sets = [((shape + i,) * length, flag and i == 1, 0.5**i) for i in range(3)]
                tree.expand(leaf, sets)
            else:
                tokens = tuple((shape * i) % 5 for i in range(1 + shape))
                path += tree.graft(leaf, tokens, terminal=flag)
            embeddings = [vector(1, shape, node.depth) for node in path[1:]] if similar else []
            tree.back_up(path, value, flag, embeddings)
        check(tree)


@given(
    weights=st.lists(st.floats(1e-9, 1), min_size=1, max_size=12),
    share=st.floats(0, 1),
)
def test_mixed_priors_stay_a_distribution(weights: list[float], share: float) -> None:
    tree = paper_tree(root_mixing=share)
    tree.expand(tree.root, [((i,), False, weight) for i, weight in enumerate(weights)])
    priors = [child.prior for child in tree.root.children]
    assert sum(priors) == pytest.approx(1)
    assert all(prior >= share / len(priors) - 1e-12 for prior in priors)


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=8), pretended=st.floats(-1, 1))
def test_what_was_pretended_is_taken_back_without_a_trace(values: list[float], pretended: float):
    settings = RainSettings.preset("paper").search
    trees = [SearchTree(settings), SearchTree(settings)]
    for tree in trees:
        tree.expand(tree.root, [((1,), False, 0.6), ((2,), False, 0.4)])
        for i, value in enumerate(values):
            tree.back_up([tree.root, tree.root.children[i % 2]], value, value > 0)
    plain, tree = trees
    paths = [[tree.root, tree.root.children[0]], [tree.root]]
    marks = [tree.pretend(path, pretended) for path in paths]
    assert tree.root.visits == len(values) + 2
    for mark in reversed(marks):
        tree.undo(mark)
    described = [
        [(n.visits, n.weight, n.value, n.passes, n.best) for n in one.root.walk()] for one in (plain, tree)
    ]
    assert described[0] == described[1]


def test_the_lead_is_what_the_heaviest_child_has_before_the_next():
    tree = SearchTree(RainSettings.preset("paper").search)
    assert tree.root.children == []
    tree.expand(tree.root, [((1,), False, 0.6), ((2,), False, 0.4)])
    for _ in range(3):
        tree.back_up([tree.root, tree.root.children[1]], 0.5, True)
    tree.back_up([tree.root, tree.root.children[0]], 0.5, True)
    assert tree.lead() == 2.0
    del tree.root.children[0]
    assert tree.lead() == 0.0  # others may still be added
