"""PrivUnit: its law by hand in three dimensions, its bound, its expectation; and that a wrong law is refused by the same checks."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, stats

from client.privunit import PrivUnit
from client.training.noise import SeededNoise, SystemNoise
from shared.privacy.conformance import THRESHOLD

MANY = 60_000
NORTH = np.array([0.0, 0.0, 1.0])


def releases(law: PrivUnit, direction: np.ndarray, count: int = MANY) -> np.ndarray:
    """(count, k) unit vectors: releases without their scale."""
    return law.release(np.tile(direction, (count, 1)), SystemNoise()).astype(np.float64) * law.mean


def cosine_law(law: PrivUnit, x: np.ndarray) -> np.ndarray:
    """P(<V, u> <= x) in three dimensions, where the cosine of a uniform point is uniform on [-1, 1] (Archimedes)."""
    gamma, p = law.threshold, 1.0 - law.outside
    below = (1.0 - p) * (np.minimum(x, gamma) + 1.0) / (gamma + 1.0)
    return np.asarray(below + p * np.maximum(x - gamma, 0.0) / (1.0 - gamma))


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_in_three_dimensions_the_cosine_has_the_law_that_can_be_written_down(epsilon: float) -> None:
    law = PrivUnit.of(3, epsilon)
    direction = np.array([2.0, -1.0, 2.0]) / 3.0
    found = releases(law, direction) @ direction
    assert law.cap == pytest.approx((1.0 - law.threshold) / 2.0)  # the share of the sphere above a height
    assert stats.kstest(found, lambda x: cosine_law(law, x)).pvalue > THRESHOLD


@pytest.mark.parametrize("wrong", [1.6, 2.5])
def test_the_law_of_another_epsilon_is_refused(wrong: float) -> None:
    found = releases(PrivUnit.of(3, wrong), NORTH) @ NORTH
    assert stats.kstest(found, lambda x: cosine_law(PrivUnit.of(3, 2.0), x)).pvalue < THRESHOLD


def test_around_the_direction_every_side_is_as_likely() -> None:
    drawn = releases(PrivUnit.of(3, 4.0), NORTH)
    angle = np.arctan2(drawn[:, 1], drawn[:, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > THRESHOLD


@pytest.mark.parametrize("dimension", [2, 7, 16, 32])
def test_in_more_dimensions_as_many_releases_lie_in_the_cap_as_p_says(dimension: int) -> None:
    law = PrivUnit.of(dimension, 3.0)
    direction = np.eye(dimension)[0]
    cosine = releases(law, direction) @ direction
    inside = int((cosine >= law.threshold).sum())
    assert stats.binomtest(inside, MANY, 1.0 - law.outside).pvalue > THRESHOLD
    assert stats.binomtest(inside, MANY, 1.0 - 1.1 * law.outside).pvalue < THRESHOLD
    uniform = stats.beta((dimension - 1) / 2, (dimension - 1) / 2, loc=-1, scale=2)  # of the cosine of a uniform point
    within, without = cosine[cosine >= law.threshold], cosine[cosine < law.threshold]
    assert stats.kstest(within, lambda x: 1 - uniform.sf(x) / law.cap).pvalue > THRESHOLD
    assert stats.kstest(without, lambda x: uniform.cdf(x) / (1 - law.cap)).pvalue > THRESHOLD


@given(st.integers(2, 32), st.floats(0.01, 32.0), st.floats(-0.9, 0.9))
def test_no_two_directions_differ_by_more_than_e_to_the_epsilon_whatever_the_cap(dimension: int, epsilon: float, threshold: float) -> None:
    chosen = PrivUnit.with_threshold(dimension, epsilon, threshold)
    assume(chosen.cap > 1e-8)  # of a smaller one the double 1 - p has too few digits left to be compared with six of e^epsilon
    for law in (chosen, PrivUnit.of(dimension, epsilon)):
        assert law.density_ratio() == pytest.approx(math.exp(epsilon), rel=1e-6)
        assert 0.0 < law.outside < 1.0
        assert (1.0 - law.outside) / law.cap >= 1.0 >= law.outside / (1.0 - law.cap)  # so a uniform release is within the bound too


def log_ratio_bounds(law: PrivUnit, one: np.ndarray, other: np.ndarray, arcs: int = 36) -> tuple[float, float]:
    """Largest log ratio of how often two directions end in an arc of the circle: what is surely reached, and what is seen."""
    counts = []
    for direction in (one, other):
        drawn = releases(law, direction)
        place = ((np.arctan2(drawn[:, 1], drawn[:, 0]) / (2 * np.pi)) % 1.0 * arcs).astype(int)
        counts.append(np.bincount(place, minlength=arcs).astype(float))
    ratio = np.log(counts[0] / counts[1])
    error = np.sqrt(1.0 / counts[0] + 1.0 / counts[1])
    return float(np.max(ratio - 6.0 * error)), float(np.max(ratio))


@pytest.mark.parametrize("apart", [0.2, 1.0, np.pi])
def test_counting_releases_shows_no_more_than_epsilon_between_two_directions(apart: float) -> None:
    law = PrivUnit.of(2, 1.5)
    one, other = np.array([1.0, 0.0]), np.array([np.cos(apart), np.sin(apart)])
    surely, _ = log_ratio_bounds(law, one, other)
    assert surely <= 1.5


def test_the_bound_is_reached_and_the_count_finds_a_law_that_breaks_it() -> None:
    one, other = np.array([1.0, 0.0]), np.array([-1.0, 0.0])
    _, seen = log_ratio_bounds(PrivUnit.of(2, 1.5), one, other)
    surely, _ = log_ratio_bounds(PrivUnit.of(2, 2.0), one, other)
    assert seen > 1.4  # nothing is given away for nothing
    assert surely > 1.5  # half an epsilon more is told from it


def misses(mean: np.ndarray, scatter: np.ndarray, count: int, truth: np.ndarray) -> float:
    """Largest distance of a mean from the truth, in standard errors."""
    return float(np.max(np.abs(mean - truth) / (scatter / np.sqrt(count))))


@pytest.mark.parametrize(("dimension", "epsilon"), [(2, 0.5), (3, 2.0), (16, 4.0), (32, 8.0)])
def test_the_expectation_is_the_true_direction(dimension: int, epsilon: float) -> None:
    direction = np.arange(1, dimension + 1, dtype=float)
    direction /= np.linalg.norm(direction)
    law = PrivUnit.of(dimension, epsilon)
    drawn = law.release(np.tile(7.0 * direction, (MANY, 1)), SystemNoise()).astype(np.float64)
    assert misses(drawn.mean(axis=0), drawn.std(axis=0), MANY, direction) < 6.0
    if law.mean < 0.9:  # the same without the scale, and with that of another epsilon
        assert misses(law.mean * drawn.mean(axis=0), law.mean * drawn.std(axis=0), MANY, direction) > 6.0
        wrong = law.mean / PrivUnit.of(dimension, 1.2 * epsilon).mean
        assert misses(wrong * drawn.mean(axis=0), wrong * drawn.std(axis=0), MANY, direction) > 6.0


def test_the_mean_is_the_integral_of_the_two_densities() -> None:
    law = PrivUnit.of(5, 2.0)

    def moment(low: float, high: float) -> float:  # f(t) = 3/4 (1 - t^2) in five dimensions
        return float(integrate.quad(lambda t: t * 0.75 * (1 - t * t), low, high)[0])

    inside, outside = (1 - law.outside) / law.cap, law.outside / (1 - law.cap)
    assert law.mean == pytest.approx(inside * moment(law.threshold, 1.0) + outside * moment(-1.0, law.threshold))


@pytest.mark.parametrize(
    ("dimension", "cosines"),
    [(16, (0.10, 0.20, 0.37, 0.62, 0.86)), (32, (0.07, 0.14, 0.27, 0.46, 0.70)), (64, (0.05, 0.10, 0.19, 0.33, 0.53))],
)
def test_the_expected_cosines_are_those_of_the_literature(dimension: int, cosines: tuple[float, ...]) -> None:
    found = [PrivUnit.of(dimension, epsilon).mean for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0)]
    np.testing.assert_allclose(found, cosines, atol=0.006)


@given(st.integers(2, 32), st.floats(0.1, 16.0), st.floats(-0.95, 0.95))
def test_no_other_cap_tells_more_at_the_same_epsilon(dimension: int, epsilon: float, threshold: float) -> None:
    best = PrivUnit.of(dimension, epsilon)
    assert best.mean >= PrivUnit.with_threshold(dimension, epsilon, threshold).mean - 1e-9


@given(st.integers(3, 32), st.floats(0.1, 16.0))
def test_at_the_best_cap_its_height_is_the_mean(dimension: int, epsilon: float) -> None:
    # m = (e^eps - 1) A / (1 - a + e^eps a) with A' = -gamma f and a' = -f, so m' = 0 where gamma = m
    law = PrivUnit.of(dimension, epsilon)
    assert law.threshold == pytest.approx(law.mean, abs=1e-4)


def test_the_shrunken_release_is_the_guess_with_the_least_error() -> None:
    law = PrivUnit.of(8, 4.0)
    true = np.random.default_rng(3).normal(size=(MANY, 8))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    drawn = law.release(true, SystemNoise()).astype(np.float64)
    errors = {factor: ((factor * law.shrinkage * drawn - true) ** 2).sum(axis=1).mean() for factor in (0.8, 1.0, 1.2)}
    assert errors[1.0] == pytest.approx(1.0 - law.mean**2, abs=0.01)  # |u|^2 - |E[u | V]|^2
    assert min(errors, key=errors.__getitem__) == 1.0


def test_every_release_has_the_one_public_length() -> None:
    law = PrivUnit.of(16, 4.0)
    vectors = np.random.default_rng(0).normal(size=(500, 16)) * np.geomspace(1e-6, 1e6, 500)[:, None]
    drawn = law.release(vectors, SystemNoise())
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), law.length, rtol=1e-5)


@pytest.mark.parametrize("nothing", [0.0, np.nan, np.inf])
def test_who_has_no_direction_gets_a_uniform_one(nothing: float) -> None:
    law = PrivUnit.of(3, 8.0)
    drawn = law.release(np.full((MANY, 3), nothing), SystemNoise()) * law.mean
    for axis in range(3):
        assert stats.kstest(drawn[:, axis], stats.uniform(-1, 2).cdf).pvalue > THRESHOLD
    spoilt = releases(law, NORTH)
    assert stats.kstest(spoilt[:, 2], stats.uniform(-1, 2).cdf).pvalue < THRESHOLD


def test_only_the_direction_counts_and_equal_noise_gives_equal_bytes() -> None:
    law = PrivUnit.of(8, 4.0)
    vectors = np.random.default_rng(1).normal(size=(50, 8))
    once = law.release(vectors, SeededNoise("a"))
    assert law.release(4.0 * vectors, SeededNoise("a")).tobytes() == once.tobytes()
    assert law.release(vectors, SeededNoise("b")).tobytes() != once.tobytes()


def test_all_randomness_is_the_operating_systems_and_as_much_is_asked_for_whatever_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom

    def listening(count: int) -> bytes:
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", listening)
    law, sums = PrivUnit.of(16, 4.0), []
    for vectors in (np.zeros((10, 16)), np.ones((10, 16)), np.eye(16)[:10]):
        before = len(asked)
        np.random.seed(0)
        law.release(vectors, SystemNoise())
        sums.append(sum(asked[before:]))
    assert len(set(sums)) == 1
    assert sums[0] >= 8 * 10 * (16 + 2)  # 64 bits for each number


@pytest.mark.parametrize(("dimension", "epsilon"), [(1, 2.0), (16, 0.0), (16, -1.0), (16, math.inf), (16, math.nan)])
def test_there_is_no_law_for_one_dimension_or_no_epsilon(dimension: int, epsilon: float) -> None:
    with pytest.raises(ValueError, match="PrivUnit needs"):
        PrivUnit.of(dimension, epsilon)


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, 16\)"):
        PrivUnit.of(16, 2.0).release(np.zeros((2, 8)), SystemNoise())
