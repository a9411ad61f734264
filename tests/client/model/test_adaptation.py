"""Adaptation at serving: the numbers of training, for users with 0, 1 and more interactions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client.model.adaptation import Start, adapt
from shared.config import ModelConfig, RunConfig, TrainingConfig

CONFIG = RunConfig(
    model=ModelConfig(dimension=2, rank=1, descriptor_dimension=1, method="maml"),
    training=TrainingConfig(temperature=1.0, inner_rate=0.5, inner_steps=1),
)
CATALOGUE = np.array([[0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)
PLAIN = Start.of({}, CONFIG)


def adapted(interests: list[list[float]], items: list[list[int]], start: Start = PLAIN) -> np.ndarray:
    """Users with the items given; -1 = none."""
    taken = np.array(items, dtype=np.int64).reshape(len(interests), -1)
    return adapt(np.array(interests, dtype=np.float32), taken, taken >= 0, CATALOGUE, start)


def test_one_interaction_moves_an_interest_by_the_step_that_a_hand_takes() -> None:
    # z = (1, 0); the item (0, 1) scores 0, the other one -1: p = e^-1 / (1 + e^-1); b = p/2 (1, 1), g = p/2
    p = math.exp(-1) / (1 + math.exp(-1))
    assert adapted([[1.0, 0.0]], [[0]])[0].tolist() == pytest.approx([1 + p, p / 2])


def test_the_same_item_five_times_moves_as_far_as_a_prior_of_three_lets_it_whatever_the_scale_of_scores() -> None:
    # seen from (0, 0) both items of the catalogue score 0: the slope of each observation is (n - x)/2 = (-1, -1)/2
    assert adapted([[0.0, 0.0]], [[0, -1, -1, -1, -1]])[0].tolist() == pytest.approx([0.25, 0.25])
    loud = Start(offset=np.zeros(2, dtype=np.float32), gate=0.0, scale=8.0, rate=0.5, steps=1, prior_items=3.0)
    assert adapted([[0.0, 0.0]], [[0] * 5], loud)[0].tolist() == pytest.approx([0.25 * 5 * 4 / 8] * 2)  # (m + 1) / (m + k) with m = 3


def test_with_no_interaction_the_start_is_what_remains() -> None:
    start = Start(offset=np.array([0.5, 0.25], dtype=np.float32), gate=1.0, scale=1.0, rate=0.5, steps=1, prior_items=3.0)
    begun = start.begin(np.array([[1.0, 0.0]], dtype=np.float32))
    assert begun.tolist() == [[2.5, 0.25]]
    assert adapted(begun.tolist(), [[-1]], start).tolist() == [[2.5, 0.25]]
    assert adapted(begun.tolist(), [[]], start).tolist() == [[2.5, 0.25]]
    nobody = adapt(np.zeros((0, 2), dtype=np.float32), np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3), dtype=bool), CATALOGUE, start)
    assert nobody.shape == (0, 2)


def test_a_start_changes_where_the_step_is_taken_from() -> None:
    start = Start(offset=np.array([0.0, 1.0], dtype=np.float32), gate=1.0, scale=1.0, rate=0.5, steps=1, prior_items=3.0)
    # z' = 2 (1, 0) + (0, 1) = (2, 1): the item scores 1, the other -2; the slope is p (-1, -1), and the gate moves with <slope, z>
    p = 1 / (1 + math.exp(3))
    assert adapted(start.begin(np.array([[1.0, 0.0]])).tolist(), [[0]], start)[0].tolist() == pytest.approx([2 + p, 1 + p / 2], abs=1e-6)


def test_nobody_is_adapted_by_what_others_took() -> None:
    generator = np.random.default_rng(0)
    interests = generator.normal(size=(300, 2)).astype(np.float32)
    items = generator.integers(-1, 2, size=(300, 5))
    together = adapt(interests, items, items >= 0, CATALOGUE, PLAIN)
    for user in (0, 7, 256, 299):
        alone = adapt(interests[[user]], items[[user]], items[[user]] >= 0, CATALOGUE, PLAIN)
        np.testing.assert_allclose(together[user], alone[0], atol=1e-6)


def test_more_interactions_with_a_subject_raise_its_items() -> None:
    generator = np.random.default_rng(1)
    catalogue = generator.normal(size=(60, 2)).astype(np.float32)
    catalogue /= np.linalg.norm(catalogue, axis=1, keepdims=True)
    liked = np.argsort(-catalogue[:, 0])[:20]
    interests = np.zeros((3, 2), dtype=np.float32)
    items = np.tile(liked, (3, 1))
    present = np.arange(20) < np.array([[0], [1], [20]])
    found = adapt(interests, items, present, catalogue, PLAIN)
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1:, 0].min() > 0.2


def test_the_start_is_read_from_the_delivered_layer() -> None:
    arrays = {"start.offset": np.array([[0.5], [0.25]], dtype=np.float32), "start.gate": np.array([[2.0]], dtype=np.float32)}
    start = Start.of(arrays, CONFIG, scale=3.0)
    assert (start.offset.tolist(), start.gate, start.scale, start.rate, start.steps) == ([0.5, 0.25], 2.0, 3.0, 0.5, 1)
    assert (PLAIN.offset.tolist(), PLAIN.gate, PLAIN.scale) == ([0.0, 0.0], 0.0, 1.0)  # a method that learns none; nothing trained here
    shut = Start(offset=np.zeros(2, dtype=np.float32), gate=-1.0, scale=1.0, rate=0.5, steps=1, prior_items=3.0)
    assert np.isfinite(adapted([[0.0, 0.0]], [[0]], shut)).all()
