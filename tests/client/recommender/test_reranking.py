"""Maximal marginal relevance: numbers that can be checked by hand, and what must hold for any list."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.recommender.reranking import n_candidates, rerank

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]
COORDINATES = np.array([EAST, EAST, NORTH, [0.0, 0.0]], dtype=np.float32)


def chosen(items: list[int], scores: list[float], *, k: int, diversity: float) -> list[int]:
    found = rerank(np.array([items], dtype=np.int32), np.array([scores], dtype=np.float32), COORDINATES, k=k, diversity=diversity)
    return [items[at] for at in found[0]]


def test_a_different_item_passes_one_that_says_the_same_again() -> None:
    # relevance of items 0, 1, 2: 1, 0.9, 0; after item 0: 0.5 * 0.9 - 0.5 * 1 = -0.05 against 0.5 * 0 - 0.5 * 0 = 0
    assert chosen([0, 1, 2], [10.0, 9.0, 0.0], k=3, diversity=0.5) == [0, 2, 1]


def test_a_little_diversity_does_not_throw_away_a_much_better_item() -> None:
    # 0.8 * 0.9 - 0.2 * 1 = 0.52 against 0
    assert chosen([0, 1, 2], [10.0, 9.0, 0.0], k=3, diversity=0.2) == [0, 1, 2]


def test_without_diversity_the_list_is_the_one_by_score() -> None:
    assert chosen([2, 0, 1], [3.0, 2.0, 1.0], k=2, diversity=0.0) == [2, 0]


def test_with_nothing_but_diversity_an_item_without_text_is_like_nothing_and_comes_before_what_is_alike() -> None:
    assert chosen([0, 1, 3], [3.0, 2.0, 1.0], k=3, diversity=1.0) == [0, 3, 1]


def test_equal_scores_are_all_relevant_and_keep_their_order_among_what_is_equally_different() -> None:
    assert chosen([0, 1, 2], [5.0, 5.0, 5.0], k=3, diversity=0.5) == [0, 2, 1]


def test_a_place_for_which_nothing_is_left_stays_empty_and_last() -> None:
    items = np.array([[0, 1, -1], [2, -1, -1]], dtype=np.int32)
    scores = np.array([[2.0, 1.0, -np.inf], [1.0, -np.inf, -np.inf]], dtype=np.float32)

    found = np.take_along_axis(items, rerank(items, scores, COORDINATES, k=3, diversity=0.4), axis=1)

    assert found.tolist() == [[0, 1, -1], [2, -1, -1]]


def test_nobody_to_choose_for_is_no_error() -> None:
    assert rerank(np.zeros((0, 3), np.int32), np.zeros((0, 3), np.float32), COORDINATES, k=2, diversity=0.4).shape == (0, 2)


@pytest.mark.parametrize(
    ("k", "diversity", "n_items", "asked"), [(20, 0.0, 1000, 20), (20, 0.1, 1000, 100), (20, 0.1, 30, 30), (5, 0.0, 3, 3)]
)
def test_more_candidates_are_looked_at_only_where_there_is_a_choice(k: int, diversity: float, n_items: int, asked: int) -> None:
    assert n_candidates(k, diversity, n_items) == asked


@given(
    scores=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6), diversity=st.floats(0.0, 1.0), seed=st.integers(0, 2**32 - 1)
)
def test_the_choice_is_a_permutation_of_the_best_and_what_plain_code_says(scores: list[float], diversity: float, seed: int) -> None:
    coordinates = np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32)
    coordinates /= np.linalg.norm(coordinates, axis=1, keepdims=True)
    falling = np.sort(np.array([scores], dtype=np.float32))[:, ::-1]

    (found,) = rerank(np.arange(6, dtype=np.int32)[None], falling, coordinates, k=6, diversity=diversity).tolist()

    assert sorted(found) == list(range(6))
    width = falling[0, 0] - falling[0, -1]
    relevance = (falling[0] - falling[0, -1]) / width if width > 0 else np.ones(6)
    for place, at in enumerate(found):
        nearest = [max((float(coordinates[j] @ coordinates[i]) for i in found[:place]), default=0.0) for j in range(6)]
        worth = [(1 - diversity) * relevance[j] - diversity * nearest[j] for j in range(6)]
        assert worth[at] >= max(worth[j] for j in range(6) if j not in found[:place]) - 1e-5
