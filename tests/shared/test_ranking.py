from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shared.ranking
from shared.errors import UsageError
from shared.ranking import (
    coverage_at_k,
    f1_at_k,
    gini_at_k,
    hit_rate_at_k,
    intra_list_diversity_at_k,
    mrr,
    ndcg_at_k,
    novelty_at_k,
    precision_at_k,
    ranks_of,
    recall_at_k,
)

NOTHING = np.zeros(0, dtype=np.int64)


def offsets_of(parts: list[list[int]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)


def flat(parts: list[list[int]]) -> np.ndarray:
    return np.array([item for part in parts for item in part], dtype=np.int32)


@st.composite
def ranking_problems(draw):
    """Scores with many ties, and disjoint held-out and seen items for each user."""
    n_items = draw(st.integers(2, 40))
    users = []
    for _ in range(draw(st.integers(1, 5))):
        order = draw(st.permutations(range(n_items)))
        held_out = draw(st.integers(1, n_items))
        seen = draw(st.integers(0, n_items - held_out))
        scores = draw(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 0.25, 3.0]), min_size=n_items, max_size=n_items))
        users.append((scores, list(order[:held_out]), list(order[held_out : held_out + seen])))
    k = draw(st.integers(1, n_items))
    return users, k


def slow_ranks(scores: list[float], held_out: list[int], seen: list[int]) -> list[float]:
    """The definition: sort the unseen items; an item's rank is the mean position of all that score the same."""
    unseen = sorted((i for i in range(len(scores)) if i not in seen), key=lambda i: -scores[i])
    positions = {i: [p for p, j in enumerate(unseen) if scores[j] == scores[i]] for i in held_out}
    return [sum(positions[i]) / len(positions[i]) for i in held_out]


@settings(max_examples=150, deadline=None)
@given(ranking_problems(), st.integers(1, 60), st.booleans())
def test_ranks_and_lists_equal_the_slow_definition(problem, scores_at_a_time, few):
    users, k = problem
    scores = np.array([u[0] for u in users], dtype=np.float32)
    truth, seen = [u[1] for u in users], [u[2] for u in users]
    with pytest.MonkeyPatch.context() as patch:  # small chunks, and both ways to count
        patch.setattr(shared.ranking, "SCORES_AT_A_TIME", scores_at_a_time)
        patch.setattr(shared.ranking, "FEW_ITEMS", 100 if few else 0)
        found = ranks_of(scores, flat(truth), offsets_of(truth), flat(seen), offsets_of(seen), k=k)
    assert found.ranks.tolist() == [rank for u in users for rank in slow_ranks(*u)]
    for user, (row, _, masked) in enumerate(users):
        best = sorted((i for i in range(len(row)) if i not in masked), key=lambda i: (-row[i], i))[:k]
        assert found.top[user].tolist() == best + [-1] * (k - len(best))


@settings(max_examples=100, deadline=None)
@given(ranking_problems())
def test_every_metric_of_a_ranking_lies_between_nothing_and_all(problem):
    users, k = problem
    scores = np.array([u[0] for u in users], dtype=np.float32)
    truth, seen = [u[1] for u in users], [u[2] for u in users]
    offsets = offsets_of(truth)
    ranks = ranks_of(scores, flat(truth), offsets, flat(seen), offsets_of(seen), k=k).ranks
    for metric in (hit_rate_at_k, recall_at_k, precision_at_k, f1_at_k, ndcg_at_k):
        values = metric(ranks, offsets, k)
        assert values.shape == (len(users),)
        assert ((values >= 0) & (values <= 1)).all()
    assert ((mrr(ranks, offsets) > 0) & (mrr(ranks, offsets) <= 1)).all()


def test_scores_that_come_row_by_row_give_the_same_ranks():
    scores = np.random.default_rng(0).normal(size=(7, 30)).astype(np.float32)
    truth, offsets = np.arange(7), np.arange(8)
    whole = ranks_of(scores, truth, offsets, NOTHING, np.zeros(8, dtype=np.int64), k=5)
    parts = ranks_of(lambda start, stop: scores[start:stop], truth, offsets, NOTHING, np.zeros(8, dtype=np.int64), k=5, n_items=30)
    assert whole.ranks.tolist() == parts.ranks.tolist()
    assert whole.top.tolist() == parts.top.tolist()


def test_scores_given_are_left_as_they_were():
    scores = np.ones((1, 3), dtype=np.float32)
    ranks_of(scores, np.array([0]), np.array([0, 1]), np.array([1]), np.array([0, 1]), k=1)
    assert scores.tolist() == [[1.0, 1.0, 1.0]]


def test_memory_does_not_grow_with_the_number_of_users():
    def peak(n_users: int) -> int:
        scores = np.random.default_rng(0).random((n_users, 20_000), dtype=np.float32)
        offsets = np.arange(n_users + 1)
        tracemalloc.start()
        ranks_of(scores, np.arange(n_users), offsets, NOTHING, np.zeros(n_users + 1, dtype=np.int64), k=20)
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_

    assert peak(800) < 1.2 * peak(400) < 100e6  # 800 users in int64 would be 128 MB


def test_a_constant_score_puts_every_item_in_the_middle():
    found = ranks_of(np.zeros((1, 11), dtype=np.float32), np.array([0, 10]), np.array([0, 2]), NOTHING, np.array([0, 0]), k=1)
    assert found.ranks.tolist() == [5.0, 5.0]


def test_more_than_the_catalogue_holds_is_refused():
    with pytest.raises(UsageError, match="lists of 11 items cannot be made from a catalogue of 10"):
        ranks_of(np.zeros((1, 10), dtype=np.float32), np.array([0]), np.array([0, 1]), NOTHING, np.array([0, 0]), k=11)


def test_a_held_out_item_that_was_seen_is_refused():
    with pytest.raises(UsageError, match="among the seen items"):
        ranks_of(np.zeros((1, 3), dtype=np.float32), np.array([2]), np.array([0, 1]), np.array([2]), np.array([0, 1]), k=1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    scores = np.array([[0.0, bad]], dtype=np.float32)
    with pytest.raises(UsageError, match="not finite"):
        ranks_of(scores, np.array([0]), np.array([0, 1]), NOTHING, np.array([0, 0]), k=1)


@pytest.mark.parametrize(("truth", "offsets"), [([3], [0, 1]), ([-1], [0, 1]), ([0], [0, 2]), ([0], [1, 1]), ([0, 1], [0, 2, 1])])
def test_held_out_items_that_do_not_fit_are_refused(truth, offsets):
    scores = np.zeros((len(offsets) - 1, 3), dtype=np.float32)
    with pytest.raises(UsageError, match="held-out"):
        ranks_of(scores, np.array(truth), np.array(offsets), NOTHING, np.zeros(len(offsets), dtype=np.int64), k=1)


def test_scores_of_the_wrong_shape_are_refused():
    with pytest.raises(UsageError, match="One row per user"):
        ranks_of(
            lambda start, stop: np.zeros((stop - start, 2), dtype=np.float32),
            NOTHING,
            np.array([0, 0]),
            NOTHING,
            np.array([0, 0]),
            k=1,
            n_items=3,
        )


def test_a_user_without_held_out_items_is_refused_instead_of_counted_as_a_miss():
    for metric in (hit_rate_at_k, recall_at_k, precision_at_k, f1_at_k, ndcg_at_k):
        with pytest.raises(UsageError, match="no held-out item"):
            metric(np.array([0.0]), np.array([0, 1, 1]), 5)
    with pytest.raises(UsageError, match="no held-out item"):
        mrr(np.array([0.0]), np.array([0, 1, 1]))


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_a_rank_that_is_no_place_is_refused(bad):
    with pytest.raises(UsageError, match="rank"):
        hit_rate_at_k(np.array([bad]), np.array([0, 1]), 5)


def test_no_users_give_no_values():
    nobody, none = np.zeros(0, dtype=np.float32), np.array([0])
    assert [len(metric(nobody, none, 5)) for metric in (hit_rate_at_k, recall_at_k, precision_at_k, f1_at_k, ndcg_at_k)] == [0] * 5
    assert len(mrr(nobody, none)) == 0
    found = ranks_of(np.zeros((0, 5), dtype=np.float32), NOTHING, none, NOTHING, none, k=5)
    assert found.top.shape == (0, 5)


def test_the_ideal_list_holds_no_more_items_than_fit():
    ranks, offsets = np.arange(8, dtype=np.float32), np.array([0, 8])
    assert ndcg_at_k(ranks, offsets, 5).tolist() == [1.0]  # five of eight fit, and all five are hits
    assert recall_at_k(ranks, offsets, 5).tolist() == [5 / 8]


def test_items_that_tie_across_the_cut_off_count_at_most_as_a_full_list():
    ranks, offsets = np.array([0.5, 0.5]), np.array([0, 2])  # both score the same: positions 0 and 1
    assert precision_at_k(ranks, offsets, 1).tolist() == [1.0]
    assert ndcg_at_k(ranks, offsets, 1).tolist() == [1.0]


def test_a_place_too_short_in_a_list_counts_for_nothing():
    top = np.array([[0, 1, -1], [-1, -1, -1]])
    assert coverage_at_k(top, n_items=4) == 0.5
    assert novelty_at_k(top, np.array([0, 0, 0, 0])).tolist() == [2.0, 0.0]  # -log2(1/4)
    assert intra_list_diversity_at_k(top, np.eye(4, dtype=np.float32)).tolist() == [1.0, 0.0]
    assert gini_at_k(top, n_items=2) == 0.0
    assert gini_at_k(top[1:], n_items=2) == 0.0


def test_only_the_head_of_a_list_counts_when_k_is_given():
    top = np.array([[0, 1], [0, 2]])
    assert coverage_at_k(top, n_items=4, k=1) == 0.25
    assert gini_at_k(top, n_items=2 + 1, k=1) == pytest.approx(2 / 3)  # (-2*0 + 0*0 + 2*2) / (3 * 2)
    with pytest.raises(UsageError, match="no top 3"):
        coverage_at_k(top, n_items=4, k=3)


@pytest.mark.parametrize("item", [4, -2])
def test_a_list_with_an_unknown_item_is_refused(item):
    with pytest.raises(UsageError, match="not in the catalogue"):
        coverage_at_k(np.array([[item]]), n_items=4)
    with pytest.raises(UsageError, match="not in the catalogue"):
        novelty_at_k(np.array([[item]]), np.zeros(4))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_diversity_equals_the_mean_over_pairs(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(9, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    top = rng.permutation(9)[None, :4]
    slow = np.mean([1 - rows[a] @ rows[b] for a in top[0] for b in top[0] if a != b])
    assert intra_list_diversity_at_k(top, rows)[0] == pytest.approx(slow, abs=1e-5)


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(shared.ranking).failed == 0
