import numpy as np
import pytest
import scipy.sparse

from simulations.baselines import (
    PooledRidge,
    TextPopularityWeights,
    hits_at_k,
    item_counts,
    popularity,
    text,
    text_popularity,
    tune_text_popularity,
    unit_rows,
)


def rows(*users: list[int]) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array(np.array(users, dtype=np.float32))


def two_tastes(n_each: int, generator: np.random.Generator) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """Users of taste A read source items 0-4 and target items 0-14, users of taste B the others."""
    source, target = np.zeros((2 * n_each, 10), np.float32), np.zeros((2 * n_each, 30), np.float32)
    for user in range(2 * n_each):
        taste = user // n_each
        source[user, 5 * taste + generator.choice(5, 3, replace=False)] = 1
        target[user, 15 * taste + generator.choice(15, 4, replace=False)] = 1
    return scipy.sparse.csr_array(source), scipy.sparse.csr_array(target)


def test_popularity_counts_a_user_once_for_each_item():
    assert popularity(rows([1, 0, 5], [1, 0, 0]))(0, 2).tolist() == [[2, 0, 1], [2, 0, 1]]


def test_popularity_among_linked_users_is_popularity_of_their_rows_alone():
    train, linked = rows([1, 0], [1, 0], [0, 1]), [2]
    assert popularity(train)(0, 1).argmax() == 0
    assert popularity(train[linked])(0, 1).argmax() == 1


def test_text_scores_are_cosines_and_an_empty_interest_scores_nothing():
    scores = text(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 7.0]]))
    assert scores(0, 2) == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))  # 3/5 and 4/5


def test_text_and_popularity_add_up_with_their_weights():
    weights = TextPopularityWeights(beta=2.0, gamma=0.5)
    scores = text_popularity(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), weights)
    assert scores(0, 1) == pytest.approx(np.array([[2.0, 0.3466]]), abs=1e-4)  # 2 * 1 + .5 * log 1;  2 * 0 + .5 * log 2


def test_tuning_keeps_popularity_out_where_the_text_alone_is_right():
    items = np.eye(30)
    counts = np.arange(30)
    truth = scipy.sparse.csr_array(np.eye(30, dtype=np.float32))
    assert tune_text_popularity(items, items, counts, truth) == TextPopularityWeights(beta=1.0, gamma=0.0)


def test_tuning_leaves_the_text_out_where_it_misleads():
    items = np.eye(30)
    counts = np.r_[np.full(5, 100), np.zeros(25)]
    truth = np.zeros((20, 30), np.float32)
    truth[:, :5] = 1
    misleading = np.zeros((20, 30)) - items[:5].sum(axis=0)
    chosen = tune_text_popularity(misleading, items, counts, scipy.sparse.csr_array(truth))
    assert chosen.gamma > 0


def test_a_hit_is_one_user_not_one_item_and_ties_stand_at_their_average_rank():
    scores = np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    assert hits_at_k(scores, rows([1, 1, 0], [0, 1, 0]), k=1) == 1.0  # the second user's item is at rank (0 + 2) / 2 = 1
    assert hits_at_k(scores, rows([1, 1, 0], [0, 1, 0]), k=2) == 2.0


def test_users_without_items_are_no_hit_and_no_error():
    assert hits_at_k(np.zeros((2, 3), np.float32), rows([0, 0, 0], [0, 0, 0]), k=1) == 0.0


def test_unit_rows_have_length_one_and_empty_rows_stay_empty():
    assert unit_rows(rows([7, 0, 1], [0, 0, 0])).toarray() == pytest.approx(
        np.array([[0.7071, 0, 0.7071], [0, 0, 0]]), abs=1e-4
    )  # 1/sqrt(2)


def test_ridge_scores_are_the_formula_by_hand():
    model = PooledRidge.fitted(rows([1, 0], [0, 1]), rows([1, 0, 0], [0, 1, 1]), ridge=1.0, popularity_weight=0.0)
    scores = model.scores(rows([1, 0], [1, 1]))(0, 2)
    np.testing.assert_allclose(scores, [[0.5, 0, 0], [0.3536, 0.3536, 0.3536]], atol=1e-4)  # K = I: k / (1 + 1);  1 / (2 sqrt 2)


def test_ridge_adds_the_popularity_it_was_asked_for():
    model = PooledRidge.fitted(rows([1, 0], [0, 1]), rows([1, 0], [1, 0]), ridge=1.0, popularity_weight=1.0)
    assert model.scores(rows([0, 0]))(0, 1) == pytest.approx(np.array([[1.0986, 0.0]]), abs=1e-4)  # log 3 for two users, log 1 for none


def test_ridge_finds_the_taste_of_a_new_user_and_popularity_does_not():
    generator = np.random.default_rng(0)
    source, target = two_tastes(40, generator)
    validation_source, validation_truth = two_tastes(10, generator)
    cold_source, cold_truth = two_tastes(20, generator)
    model = PooledRidge.tuned(source, target, validation_source=validation_source, validation_truth=validation_truth)
    scores = model.scores(cold_source)(0, 40)
    own = np.r_[scores[:20, :15].mean() - scores[:20, 15:].mean(), scores[20:, 15:].mean() - scores[20:, :15].mean()]
    assert (own > 0).all()
    assert hits_at_k(scores, cold_truth, k=5) > hits_at_k(popularity(target)(0, 40), cold_truth, k=5)


def test_chunks_give_the_same_scores_as_one_piece():
    generator = np.random.default_rng(1)
    source, target = two_tastes(10, generator)
    scores = PooledRidge.fitted(source, target, ridge=1.0, popularity_weight=0.1).scores(source)
    np.testing.assert_array_equal(np.concatenate([scores(0, 7), scores(7, 20)]), scores(0, 20))


def test_tuning_without_a_candidate_is_refused():
    with pytest.raises(ValueError, match="no ridge"):
        PooledRidge.tuned(rows([1]), rows([1]), validation_source=rows([1]), validation_truth=rows([1]), ridges=())


def test_item_counts_ignore_stored_zeros():
    stored = scipy.sparse.csr_array((np.array([1.0, 0.0]), np.array([0, 1]), np.array([0, 2])), shape=(1, 3))
    assert item_counts(stored).tolist() == [1, 0, 0]
