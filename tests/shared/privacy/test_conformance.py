"""The statistics of tier 1: what has the claimed law passes as often as it should, and what has another does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from shared.privacy import conformance as checks
from shared.privacy.conformance import THRESHOLD, Check
from shared.privacy.mechanism import Mechanism

PAID = Mechanism(kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=2.0, clip_norm=0.5, grid=0.25, dimension=4, steps=1)
# standard deviation 2 (0.5 + 0.25 * 2) = 2


def normal(seed: int, count: int = 2000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


def poisson(seed: int, steps: int = 80, users: int = 400, rate: float = 0.1) -> list[np.ndarray]:
    coins = np.random.default_rng(seed).random((steps, users)) < rate
    return [np.flatnonzero(row) for row in coins]


@pytest.mark.parametrize(
    "p_value",
    [
        lambda seed: checks.noise_scale(2.0 * normal(seed), PAID),
        lambda seed: checks.noise_correlation([normal(3 * seed + i, 500) for i in range(3)]),
        lambda seed: checks.noise_repeats(normal(seed, 501)),
        lambda seed: checks.noise_repeats(normal(seed, 500)),
        lambda seed: checks.batch_sizes(poisson(seed), 400, 0.1),
        lambda seed: checks.inclusion(poisson(seed), 400, 0.1),
        lambda seed: checks.inclusion(poisson(seed, 100, users=100, rate=0.3), 100, 0.3),
    ],
    ids=["noise", "two noises", "one noise", "one noise, even", "sizes", "inclusion", "inclusion of many"],
)
def test_what_has_the_claimed_law_is_suspected_no_more_often_than_the_p_value_says(p_value: Callable[[int], float]) -> None:
    p = np.array([p_value(seed) for seed in range(400)])
    assert (p < 0.05).mean() < 0.09  # 5 % expected at most; 400 draws have a standard deviation of 1.1 %
    assert p.min() > 1e-5  # 400 draws go below it with a chance of 0.4 %, and the seeds are fixed


def test_noise_of_another_scale_or_law_or_no_number_is_refused() -> None:
    x = normal(0)
    assert checks.noise_scale(2.0 * x, PAID) > 1e-3
    for wrong in (x, 4.0 * x, 2.0 * np.sign(x), 2.0 * x + 0.5, np.zeros(2000), np.append(2.0 * x, np.nan)):
        assert checks.noise_scale(wrong, PAID) < THRESHOLD


def test_five_percent_less_noise_is_found_in_a_release_of_usual_size() -> None:
    assert checks.noise_scale(0.95 * 2.0 * normal(1, 13_000), PAID) < THRESHOLD  # relative error of the scale: 1 / sqrt(2 n) = 0.6 %


def test_the_same_numbers_are_found_wherever_the_second_use_of_them_begins() -> None:
    stream = normal(2, 3000)
    first, later = stream[:2000], stream[1000:]  # half of each is common
    assert checks.noise_correlation([first, first]) < THRESHOLD
    assert checks.noise_correlation([first, later]) < THRESHOLD
    assert checks.noise_correlation([normal(3), first, 0.5 * normal(3) + 0.1 * normal(4)]) < THRESHOLD


def test_two_tensors_with_the_same_numbers_are_found_also_half_a_turn_apart() -> None:
    half = normal(5, 1000)
    assert checks.noise_repeats(np.concatenate([half, half])) < THRESHOLD
    assert checks.noise_repeats(np.concatenate([half, normal(6, 700), half[:300]])) < THRESHOLD


def test_no_noise_at_all_is_the_same_noise_every_time() -> None:
    assert checks.noise_correlation([np.zeros(100), np.zeros(100)]) == 0.0
    assert checks.noise_repeats(np.ones(100)) == 0.0
    assert checks.noise_correlation([np.full(100, np.inf), normal(0, 100)]) == 0.0


def test_one_noise_alone_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="nothing to be compared with"):
        checks.noise_correlation([normal(0)])


def test_batches_of_another_law_are_refused() -> None:
    users, rate = 400, 0.1
    blocks = [(np.arange(40) + 40 * step) % users for step in range(80)]  # everybody in turn, always forty
    assert checks.batch_sizes(blocks, users, rate) < THRESHOLD
    assert checks.inclusion(blocks, users, rate) < THRESHOLD
    assert checks.batch_sizes(poisson(0, rate=0.15), users, rate) < THRESHOLD
    favourites = [np.union1d(batch, [0, 1, 2]) for batch in poisson(1)]
    assert checks.inclusion(favourites, users, rate) < THRESHOLD
    twice = [np.append(batch, batch[:1]) for batch in poisson(2)]
    assert checks.inclusion(twice, users, rate) == 0.0


def test_the_distance_of_neighbours_is_a_share_of_what_was_paid_for() -> None:
    # C + g sqrt(p) = 0.5 + 0.25 * 2 = 1
    assert checks.sensitivity(np.array([1.0, 0.0, 0.0, 0.0]), np.zeros(4), PAID) == 1.0
    assert math.isnan(checks.sensitivity(np.full(4, np.nan), np.zeros(4), PAID))


@pytest.mark.parametrize(
    ("made", "passed"),
    [
        (Check.of_law("T", "", 1e-5), True),
        (Check.of_law("T", "", 1e-7), False),
        (Check.of_law("T", "", math.nan), False),
        (Check.of_size("T", "", 1.0, 1.0), True),
        (Check.of_size("T", "", 1.1, 1.0), False),
        (Check.of_size("T", "", math.nan, 1.0), False),
        (Check.of_fact("T", "", 0), True),
        (Check.of_fact("T", "", 1), False),
    ],
)
def test_a_check_is_passed_only_by_a_number_that_says_so(made: Check, passed: bool) -> None:
    assert made.passed is passed
