import math

import numpy as np
import pytest

from simulations.bootstrap import Difference, Interval, bootstrap_intervals, coverage_interval, paired_difference


def difference(mean: float, low: float, high: float) -> Difference:
    return Difference(a="a", b="b", interval=Interval(mean=mean, low=low, high=high), n_users=10)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=4000)
    [found] = bootstrap_intervals(values, generator=np.random.default_rng(1))
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(4000), rel=0.1)  # 2 * 1.96 sigma / sqrt(n)


def test_intervals_hold_the_truth_about_as_often_as_they_claim():
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        [found] = bootstrap_intervals((generator.random(80) < 0.3).astype(float), generator=generator, resamples=300)
        held += found.low <= 0.3 <= found.high
    assert 0.89 <= held / 300 <= 0.98


def test_rows_of_one_person_do_not_count_as_many_people():
    values = np.repeat(np.random.default_rng(3).normal(size=200), 5)
    persons = np.repeat(np.arange(200, dtype=np.uint8), 5)
    [naive] = bootstrap_intervals(values, generator=np.random.default_rng(0))
    [honest] = bootstrap_intervals(values, generator=np.random.default_rng(0), persons=persons)
    assert (honest.high - honest.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(5), rel=0.15)


def test_keys_of_several_bytes_name_persons_too():
    keys = np.zeros((6, 16), dtype=np.uint8)
    keys[:, 15] = [0, 0, 1, 1, 2, 2]
    by_bytes = bootstrap_intervals(np.arange(6.0), generator=np.random.default_rng(0), persons=keys)
    assert by_bytes == bootstrap_intervals(np.arange(6.0), generator=np.random.default_rng(0), persons=np.array([0, 0, 1, 1, 2, 2]))


def test_the_same_generator_gives_the_same_interval_and_columns_share_resamples():
    values = np.random.default_rng(4).normal(size=50)
    both = bootstrap_intervals(np.stack([values, values], axis=1), generator=np.random.default_rng(0))
    [alone] = bootstrap_intervals(values, generator=np.random.default_rng(0))
    for found in both:
        assert [found.mean, found.low, found.high] == pytest.approx([alone.mean, alone.low, alone.high])


def test_one_user_has_a_mean_but_no_interval():
    [found] = bootstrap_intervals(np.array([0.5]), generator=np.random.default_rng(0))
    assert found.to_json() == {"mean": 0.5, "low": None, "high": None}


def test_no_user_has_neither():
    [found] = bootstrap_intervals(np.zeros(0), generator=np.random.default_rng(0))
    assert found.to_json() == {"mean": None, "low": None, "high": None}


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        bootstrap_intervals(np.array([1.0, np.nan]), generator=np.random.default_rng(0))


def test_pairing_finds_a_difference_that_unpaired_intervals_hide():
    generator = np.random.default_rng(5)
    hard = generator.normal(size=300)
    a, b = hard + 0.05, hard + 0.02 * generator.normal(size=300)
    found = paired_difference(("a", a), ("b", b), generator=generator)
    assert found.beats
    assert found.interval.mean == pytest.approx((a - b).mean())


def test_methods_measured_on_different_users_are_not_compared():
    with pytest.raises(ValueError, match="same users"):
        paired_difference(("a", np.zeros(3)), ("b", np.zeros(4)), generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("mean", "low", "high", "beats", "does_not", "non_inferior"),
    [
        (0.02, 0.001, 0.04, True, False, True),
        (0.02, -0.001, 0.04, False, True, True),
        (0.008, 0.001, 0.015, True, True, True),  # surely above, but by no more than .01
        (-0.002, -0.005, 0.001, False, True, True),
        (-0.002, -0.0051, 0.001, False, True, False),
        (-0.03, -0.05, -0.01, False, True, False),
        (0.02, math.nan, math.nan, False, False, False),
    ],
)
def test_verdicts_are_those_of_the_contract(mean, low, high, beats, does_not, non_inferior):
    found = difference(mean, low, high)
    assert (found.beats, found.does_not_beat, found.non_inferior) == (beats, does_not, non_inferior)


def test_coverage_is_a_share_of_the_catalogue_and_empty_places_do_not_count():
    lists = [np.array([[0, 1], [1, -1]])]
    found = coverage_interval(lists, 8, generator=np.random.default_rng(0))
    assert found.mean == 0.25
    assert 0.0 <= found.low <= found.mean <= found.high <= 1.0


def test_everybody_with_the_same_list_has_a_coverage_without_doubt():
    lists = [np.tile(np.arange(10), (50, 1))]
    found = coverage_interval(lists, 100, generator=np.random.default_rng(0))
    assert (found.mean, found.low, found.high) == (0.1, 0.1, 0.1)


def test_coverage_of_seeds_is_their_mean_not_their_union():
    found = coverage_interval([np.array([[0], [1]]), np.array([[2], [3]])], 4, generator=np.random.default_rng(0))
    assert found.mean == 0.5


def test_nobody_covers_nothing_that_could_be_told():
    assert math.isnan(coverage_interval([np.zeros((0, 10), dtype=int)], 5, generator=np.random.default_rng(0)).mean)
