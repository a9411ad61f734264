"""Baselines for warm users, by hand on tiny problems; and that their settings come from validation people."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from client.data.histories import Histories
from client.preparation import COLD, TRAIN, VALIDATION
from simulations import warm_baselines
from simulations.warm_baselines import WarmPeople, ease, item_knn, similarities, text, validation_people

# three people took 0 and 1, one of them 2 as well, another person 2 alone
TRAIN_ROWS = scipy.sparse.csr_array(np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=np.float32))


def people(items: list[list[int]], truth: list[int], n_items: int = 3) -> WarmPeople:
    found = np.array(items)
    sparse = scipy.sparse.csr_array((np.ones(len(truth), np.float32), (np.arange(len(truth)), truth)), shape=(len(truth), n_items))
    return WarmPeople(items=np.maximum(found, 0), mask=found >= 0, truth=sparse)


def test_similarities_are_shrunk_cosines_without_the_item_itself() -> None:
    found = similarities(TRAIN_ROWS, 10, 2.0).toarray()

    # n_01 = 3 of 3 and 3; n_02 = n_12 = 1 of 3 and 2
    other = 1 / (math.sqrt(6) + 2)
    np.testing.assert_allclose(found, [[0, 3 / 5, other], [3 / 5, 0, other], [other, other, 0]], rtol=1e-6)


def test_each_item_keeps_its_nearest_neighbours() -> None:
    found = similarities(TRAIN_ROWS, 1, 0.0).toarray()

    # 0 and 1 keep each other; 2 is as near to 0 as to 1, and of equals the first stays
    np.testing.assert_allclose(found, [[0, 1, 1 / math.sqrt(6)], [1, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_item_knn_adds_up_what_the_history_is_near_to() -> None:
    scores = item_knn(TRAIN_ROWS, people([[0, 1], [-1, 2]], [2, 0]), 10, 0.0)

    near = 1 / math.sqrt(6)
    np.testing.assert_allclose(scores(0, 2), [[1, 1, 2 * near], [near, near, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores(1, 2), scores(0, 2)[1:])


@pytest.mark.parametrize("users", [4, 2], ids=["more-users-than-items", "fewer"])
def test_ease_is_that_of_the_paper(users: int) -> None:
    train = TRAIN_ROWS[:users]
    dense = train.toarray()
    inverse = np.linalg.inv(dense.T @ dense + 2.0 * np.eye(3))
    weights = -inverse / np.diagonal(inverse)
    np.fill_diagonal(weights, 0)

    found = ease(train, people([[0, 1], [-1, 2]], [2, 0]), 2.0)

    np.testing.assert_allclose(found, [weights[0] + weights[1], weights[2]], atol=1e-6)


def test_text_reads_the_latest_most() -> None:
    plane = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)

    scores = text(people([[0, 1]], [2]), plane, 0.5)(0, 1)

    np.testing.assert_allclose(scores, [[1 / 3, 2 / 3, 1 / 3]], rtol=1e-6)


def test_a_held_out_item_counts_even_if_it_was_taken_before_and_what_was_had_does_not() -> None:
    again = people([[0, 2]], [2])  # two was taken before, and is taken once more
    assert again.history().toarray().tolist() == [[1, 0, 0]]

    scores = np.array([[9.0, 5.0, 7.0]], dtype=np.float32)
    assert again.hits(scores) == 1.0
    assert scores.tolist() == [[-math.inf, 5.0, 7.0]]


def world() -> SimpleNamespace:
    items = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3], dtype=np.int32)
    everyone = Histories(offsets=np.array([0, 3, 6, 8, 10]), items=items, times=np.arange(10))
    return SimpleNamespace(everyone=everyone, roles=np.array([TRAIN, VALIDATION, VALIDATION, COLD], dtype=np.int8))


def test_validation_people_are_asked_about_their_latest_item() -> None:
    known = validation_people(world(), 6, 500)

    assert known.truth.toarray().tolist() == [[0, 0, 0, 0, 0, 1]]  # the one with three items; two are too few, the others another role
    assert known.items[known.mask].tolist() == [3, 4]


def test_nobody_to_validate_with_is_no_error() -> None:
    nobody = world()
    nobody.roles[:] = TRAIN
    known = validation_people(nobody, 6, 500)

    assert known.truth.shape == (0, 6)
    assert warm_baselines._neighbourhood(TRAIN_ROWS, dataclasses.replace(known, truth=known.truth[:, :3])) == (50, 0.0)
    assert warm_baselines._ease_settings(TRAIN_ROWS, dataclasses.replace(known, truth=known.truth[:, :3]), np.eye(3), 0.5)[0] == 1000.0


def test_settings_are_those_that_serve_validation_people_best() -> None:
    generator = np.random.default_rng(0)
    coordinates = generator.standard_normal((400, 8)).astype(np.float32)
    coordinates /= np.linalg.norm(coordinates, axis=1, keepdims=True)
    coordinates[200:] = coordinates[:200]  # each item has a twin by its words
    histories = np.stack([generator.choice(200, size=20, replace=False) for _ in range(50)])
    known = people(histories.tolist(), (histories[:, -1] + 200).tolist(), 400)  # the latest item's twin comes next
    unrelated = scipy.sparse.csr_array((generator.random((60, 400)) < 0.05).astype(np.float32))

    decay = warm_baselines._text_decay(known, coordinates)
    ridge, weight = warm_baselines._ease_settings(unrelated, known, coordinates, decay)

    hits = {one: known.hits(text(known, coordinates, one)(0, 50).copy()) for one in warm_baselines.TEXT_DECAYS}
    assert hits[decay] == max(hits.values()) > hits[0.9]
    assert weight > 0
    alone = ease(unrelated, known, ridge)
    both = alone + np.float32(weight) * text(known, coordinates, decay)(0, 50)
    assert known.hits(both) > known.hits(alone)
