"""What alike people took: kernel ridge regression on landmarks, by hand where that is possible."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse

from client.model import domain_head, neighbours
from client.model.domain_head import ServingHead
from client.model.head_likelihood import FittingData, counts_by_group

EAST, NORTH = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32)


def test_with_every_person_a_landmark_it_is_kernel_ridge_regression() -> None:
    generator = np.random.default_rng(0)
    people = generator.normal(size=(30, 4)).astype(np.float32)
    taken = scipy.sparse.csr_array((generator.random((30, 7)) < 0.3).astype(np.float32))
    found = neighbours.fit(people, taken, ridge=2.0, generator=generator)
    unit = people / np.linalg.norm(people, axis=1, keepdims=True)
    kernel = np.exp(unit @ unit.T - 1.0)
    by_hand = kernel @ np.linalg.solve(kernel + 2.0 * np.eye(30), taken.toarray())  # k (K + lambda I)^-1 Y
    np.testing.assert_allclose(found.features(people) @ found.factors, by_hand, atol=2e-3)


def test_one_person_by_hand() -> None:
    taken = scipy.sparse.csr_array(np.array([[1.0, 0.0]], np.float32))
    found = neighbours.fit(3 * EAST, taken, ridge=1.0, generator=np.random.default_rng(0))
    assert found.landmarks.tolist() == [[1.0, 0.0]]  # the direction only
    assert found.features(EAST).tolist() == [[1.0]]  # exp(1 - 1)
    assert found.features(NORTH)[0, 0] == pytest.approx(np.exp(-1.0))  # exp(0 - 1)
    assert (found.features(EAST) @ found.factors)[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-5)  # 1 / (1 + lambda)


def test_a_person_without_interest_breaks_nothing() -> None:
    taken = scipy.sparse.csr_array(np.eye(3, dtype=np.float32))
    found = neighbours.fit(np.zeros((3, 2), np.float32), taken, ridge=1.0, generator=np.random.default_rng(0))
    assert np.isfinite(found.features(np.zeros((1, 2), np.float32)) @ found.factors).all()


def test_large_catalogues_get_fewer_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_MOST_FACTORS", 20)
    taken = scipy.sparse.csr_array(np.eye(8, 5, dtype=np.float32))
    found = neighbours.fit(np.eye(8, dtype=np.float32), taken, ridge=1.0, generator=np.random.default_rng(0))
    assert found.factors.shape == (4, 5)  # 20 / 5


def two_tribes(users: int = 300) -> FittingData:
    """One half takes items 0 to 9, the other 10 to 19, at random; what tells them apart is not the direction of the items."""
    generator = np.random.default_rng(3)
    tribe = np.arange(users) % 2
    interests = generator.normal(size=(users, 4)).astype(np.float32) * 0.3
    interests[:, 0] += np.where(tribe == 0, 1.0, -1.0)
    items = (np.stack([generator.choice(10, size=3, replace=False) for _ in range(users)]) + 10 * tribe[:, None]).ravel()
    return FittingData(
        interests=np.zeros_like(interests),  # what was transferred says nothing; what was brought does
        offsets=np.arange(users + 1) * 3,
        items=items.astype(np.int32),
        counts=counts_by_group([items], 40),
        passports=interests,
    )


def test_the_head_hears_neighbours_where_texts_say_nothing() -> None:
    data, generator = two_tribes(), np.random.default_rng(0)
    coordinates = generator.normal(size=(40, 4)).astype(np.float32) * 0.01  # no direction of interest tells an item
    head = domain_head.fit(data, coordinates, generator=generator)
    assert head.neighbours is not None
    of_both = np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]], np.float32)
    scores = head.scores(np.zeros_like(of_both), coordinates, of_both)
    assert set(np.argsort(-scores[0])[:8]) <= set(range(10))
    assert set(np.argsort(-scores[1])[:8]) <= set(range(10, 20))
    assert (head.muted.scores(np.zeros_like(of_both), coordinates, of_both) == head.muted.scores(np.zeros_like(of_both), coordinates)).all()
    deaf = domain_head.fit(dataclasses.replace(data, passports=None), coordinates, generator=np.random.default_rng(0))
    assert deaf.neighbours is None


def test_the_gate_keeps_neighbours_out_where_interests_are_noise() -> None:
    data = two_tribes()
    strangers = np.random.default_rng(5).normal(size=data.interests.shape).astype(np.float32)
    noise = dataclasses.replace(data, passports=strangers)
    kept = [domain_head.fit(noise, np.zeros((40, 4), np.float32), generator=np.random.default_rng(seed)).neighbours for seed in range(3)]
    assert sum(one is not None for one in kept) <= 1


def test_a_head_with_neighbours_comes_back_and_searches_as_one_inner_product() -> None:
    data, generator = two_tribes(), np.random.default_rng(0)
    coordinates = generator.normal(size=(40, 4)).astype(np.float32)
    assert data.passports is not None
    beside = neighbours.fit(data.passports, scipy.sparse.csr_array(np.eye(300, 40, dtype=np.float32)), ridge=5.0, generator=generator)
    head = ServingHead(
        scale=1.5,
        offset=np.full(4, 0.1, np.float32),
        weights=np.array([0.7], np.float32),
        log_counts=np.log1p(data.counts).astype(np.float32),
        loudness=30.0,
        neighbours=beside,
    )
    again = ServingHead.from_arrays(head.to_arrays())
    interests, passports = generator.normal(size=(5, 4)).astype(np.float32), data.passports[:5]
    scores = head.scores(interests, coordinates, passports)
    np.testing.assert_array_equal(again.scores(interests, coordinates, passports), scores)
    np.testing.assert_allclose(head.queries(interests, passports) @ head.item_vectors(coordinates).T, scores, rtol=1e-4, atol=1e-5)
