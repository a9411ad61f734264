"""The collaborative part: EASE against its definition and by hand, both ways to it, factors, and domains with next to nothing in them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from client.data.histories import Histories
from client.model import collaborative
from client.model.collaborative import (
    ItemFactors,
    ItemWeights,
    Limits,
    ease_by_items,
    ease_by_users,
    fit,
    from_arrays,
    interactions,
    nothing,
    recency_weights,
)
from shared.errors import StateError

BY_ITEMS = Limits(users_squared=0)
FACTORS = Limits(users_squared=0, items_squared=0, factors=2)


def histories(*lists: list[int]) -> Histories:
    items = np.array([item for one in lists for item in one], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Histories(offsets=offsets, items=items, times=np.arange(len(items), dtype=np.int64))


def some_histories(users: int, items: int, seed: int = 0) -> Histories:
    generator = np.random.default_rng(seed)
    return histories(*(generator.choice(items, size=generator.integers(2, 7), replace=False).tolist() for _ in range(users)))


def whole(blocks, n_items: int) -> np.ndarray:
    found = np.full((n_items, n_items), np.nan, dtype=np.float32)
    for block, columns in blocks:
        found[:, block] = columns
    return found


@pytest.mark.parametrize("ease", [ease_by_items, ease_by_users])
def test_ease_of_three_items_by_hand(ease) -> None:
    taken = interactions(histories([0, 1], [0, 1], [1, 2]), np.arange(3), 3)

    found = whole(ease(taken, 1.0), 3)

    # X^T X + I = [[3, 2, 0], [2, 4, 1], [0, 1, 2]], determinant 13; its inverse is [[7, -4, 2], [-4, 6, -3], [2, -3, 8]] / 13
    # B_ij = -P_ij / P_jj
    expected = [[0, 4 / 6, -2 / 8], [4 / 7, 0, 3 / 8], [-2 / 7, 3 / 6, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("ease", [ease_by_items, ease_by_users])
@pytest.mark.parametrize("block_bytes", [200, 2**20])
def test_each_column_of_ease_is_the_ridge_regression_of_an_item_on_all_others(ease, block_bytes: int, monkeypatch) -> None:
    monkeypatch.setattr(collaborative, "_BLOCK_BYTES", block_bytes)  # one column at a time, and all of them at once
    taken = interactions(some_histories(15, 20), np.arange(15), 20)
    dense = taken.toarray()

    found = whole(ease(taken, 3.0), 20)

    for item in range(20):
        others = np.delete(np.arange(20), item)
        left = dense[:, others].T @ dense[:, others] + 3.0 * np.eye(19)
        np.testing.assert_allclose(found[others, item], np.linalg.solve(left, dense[:, others].T @ dense[:, item]), atol=1e-5)
        assert found[item, item] == 0


def test_items_that_few_took_have_no_part_and_the_others_keep_their_places() -> None:
    taken = histories([1, 4], [1, 4], [1, 4, 2], [4, 1])  # 0 and 3 nobody, 2 one person

    weights = fit(taken, 5, generator=np.random.default_rng(0)).weights.toarray()

    both = {(1, 4), (4, 1)}
    assert {tuple(pair) for pair in np.argwhere(weights).tolist()} == both
    # four people took both: P = [[104, 4], [4, 104]]^-1, so B = 4 / 104
    assert weights[1, 4] == pytest.approx(4 / 104, abs=1e-6)


@pytest.mark.parametrize("limits", [Limits(kept=2), Limits(kept=2, users_squared=0)])
def test_a_column_keeps_its_largest_entries(limits: Limits) -> None:
    people = some_histories(30, 12)
    full = fit(people, 12, generator=np.random.default_rng(0)).weights.toarray()

    kept = fit(people, 12, generator=np.random.default_rng(0), limits=limits).weights.toarray()

    for column in range(12):
        largest = np.sort(np.argsort(-np.abs(full[:, column]), kind="stable")[:2])
        at = np.flatnonzero(kept[:, column])
        assert set(largest) <= set(at)  # equal entries stay together
        np.testing.assert_allclose(kept[at, column], full[at, column], atol=1e-6)
        assert np.abs(kept[at, column]).min() >= np.sort(np.abs(full[:, column]))[-2] - 1e-6


def test_the_size_of_the_domain_chooses_the_part() -> None:
    people, generator = some_histories(30, 12), np.random.default_rng(0)

    assert isinstance(fit(people, 12, generator=generator, limits=BY_ITEMS), ItemWeights)
    assert isinstance(fit(people, 12, generator=generator, limits=FACTORS), ItemFactors)
    assert isinstance(fit(some_histories(8, 12), 12, generator=generator, limits=Limits(items_squared=0)), ItemWeights)  # users squared


def test_factors_are_singular_vectors_of_the_scaled_interactions() -> None:
    taken = interactions(histories([0, 1], [0, 1], [2, 3], [2, 3], [2, 3]), np.arange(5), 4)

    vectors = collaborative.item_factors(taken, 2, np.random.default_rng(0))

    np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-5)
    # two groups of items that nobody mixes: half of an item's projection is itself, half its fellow
    np.testing.assert_allclose(vectors @ vectors.T, np.kron(np.eye(2), np.full((2, 2), 0.5)), atol=1e-5)


def test_factors_are_named_by_the_seed_and_score_as_inner_products() -> None:
    people = some_histories(40, 12)
    first, again = (fit(people, 12, generator=np.random.default_rng(7), limits=FACTORS) for _ in range(2))
    history = recency_weights(np.array([[0, 5], [3, 3]]), np.ones((2, 2)), 0.5, 12)

    np.testing.assert_array_equal(first.vectors, again.vectors)
    np.testing.assert_allclose(first.scores(history), history.toarray() @ first.vectors @ first.vectors.T, atol=1e-6)


def test_scores_are_the_weighted_sum_of_the_rows_of_what_was_taken() -> None:
    weights = np.array([[0, 2, 0], [1, 0, 4], [0, 8, 0]], dtype=np.float32)
    part = ItemWeights(weights=scipy.sparse.csr_array(weights))
    history = recency_weights(np.array([[0, 1], [0, 0]]), np.array([[True, True], [False, False]]), 0.5, 3)

    assert part.scores(history).tolist() == [[1, 1, 4], [0, 0, 0]]  # 0.5 * row 0 + row 1; nothing was taken
    assert part.added(history).toarray().tolist() == part.scores(history).tolist()


def test_an_item_counts_as_its_latest_and_a_disliked_one_against() -> None:
    items, mask = np.array([[2, 1, 2, 0]]), np.array([[1, 1, 1, -1]])

    assert recency_weights(items, mask, 0.5, 3).toarray().tolist() == [[-1.0, 0.25, 0.5]]
    assert recency_weights(items, mask, 1.0, 3).toarray().tolist() == [[-1.0, 1.0, 1.0]]
    assert recency_weights(items[:, :0], mask[:, :0], 0.5, 3).toarray().tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("limits", [Limits(), BY_ITEMS, FACTORS])
@pytest.mark.parametrize(
    "people",
    [histories(), histories([]), histories([0, 1, 2]), histories([0], [0], [0]), histories([0, 0], [0, 0]), histories([0], [1], [2])],
    ids=["nobody", "no-history", "one-user", "one-item", "twice-the-same", "one-item-each"],
)
def test_where_items_say_nothing_about_one_another_the_part_is_empty(people: Histories, limits: Limits) -> None:
    part = fit(people, 3, generator=np.random.default_rng(0), limits=limits)

    assert part.scores(recency_weights(np.array([[0, 1, 2]]), np.ones((1, 3)), 0.9, 3)).tolist() == [[0, 0, 0]]


def test_a_catalogue_of_one_item_is_no_error() -> None:
    part = fit(histories([0], [0]), 1, generator=np.random.default_rng(0))

    assert part.scores(recency_weights(np.array([[0]]), np.ones((1, 1)), 0.9, 1)).tolist() == [[0]]


def test_no_more_users_are_read_than_the_limit_says() -> None:
    people = histories(*[[0, 1]] * 500)

    weights = fit(people, 2, generator=np.random.default_rng(0), limits=Limits(users=50)).weights.toarray()

    assert weights[0, 1] == pytest.approx(50 / 150, abs=1e-6)  # n / (n + lambda): all 500 would give 500 / 600


def test_only_the_most_taken_items_have_a_part_above_the_bound() -> None:
    people = histories(*[[0, 1, 2]] * 3, *[[2, 3]] * 4)

    weights = fit(people, 4, generator=np.random.default_rng(0), limits=Limits(items=2)).weights

    assert set(weights.nonzero()[0].tolist()) == {2, 3}  # taken by seven and by four


@pytest.mark.parametrize("limits", [Limits(), FACTORS])
def test_what_was_kept_is_what_comes_back(limits: Limits) -> None:
    part = fit(some_histories(40, 12), 12, generator=np.random.default_rng(0), limits=limits)
    history = recency_weights(np.array([[0, 5, 7]]), np.ones((1, 3)), 0.7, 12)

    np.testing.assert_array_equal(from_arrays(part.to_arrays()).scores(history), part.scores(history))


@pytest.mark.parametrize("missing", ["weights/data", "weights/indices", "weights/indptr"])
def test_a_damaged_part_is_refused(missing: str) -> None:
    arrays = nothing(3).to_arrays()
    del arrays[missing]
    with pytest.raises(StateError, match="collaborative part that is damaged"):
        from_arrays(arrays)
