"""Variants on the same people, directions that count the same, and a choice that cold people have no part in."""

import numpy as np
import pytest

from simulations.bootstrap import bootstrap_intervals, mean_over_groups
from simulations.choices import choose, sure
from simulations.paired_rows import common, contrasts, rows_of
from simulations.ranks import RanksFile

WAY, BACK = ("books", "films"), ("films", "books")


def ranked(hits: dict[int, bool], *, order: list[int] | None = None) -> RanksFile:
    """One held-out item for each person, at rank 0 for a hit and 99 else; persons stand in the given order."""
    persons = order or list(hits)
    users = np.zeros((len(persons), 16), dtype=np.uint8)
    users[:, 0] = persons
    return RanksFile(
        offsets=np.arange(len(persons) + 1),
        users=users,
        popularity=np.ones(100, dtype=np.int64),
        ranks={"federated": np.array([0.0 if hits[person] else 99.0 for person in persons], dtype=np.float32)},
        top={"federated": np.zeros((len(persons), 20), dtype=np.int32)},
    )


def share(n: int, hits: int) -> dict[int, bool]:
    return {person: person < hits for person in range(n)}


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_people_are_paired_by_who_they_are_not_by_where_they_stand(generator):
    hits = {0: True, 1: False, 2: True, 3: False}
    a, b = rows_of({0: ranked(hits)}), rows_of({0: ranked(hits, order=[3, 1, 0, 2])})
    found = contrasts({WAY: [a, b]}, epsilon=8.0, generator=generator)
    assert [(c.difference.interval.mean, c.difference.interval.low, c.difference.interval.high) for c in found] == [(0, 0, 0)] * 4


def test_only_people_and_seeds_that_both_variants_measured_are_compared(generator):
    a = rows_of({seed: ranked(share(10, 5)) for seed in (0, 1, 2)})
    b = rows_of({1: ranked(share(8, 1)), 2: ranked(share(8, 1))})
    one, other = common([a, b])
    assert (len(one), len(other), one.n_seeds) == (16, 16, 2)
    np.testing.assert_array_equal(one.keys, other.keys)
    np.testing.assert_array_equal(one.persons, other.persons)
    [hits, _, mean, _] = contrasts({WAY: [a, b]}, epsilon=8.0, generator=generator)
    assert hits.difference.interval.mean == pytest.approx((1 - 5) / 8)  # the later variant minus the earlier one
    assert (hits.difference.a, hits.difference.b, hits.n_seeds, hits.difference.n_users) == ("1", "0", 2, 16)
    assert (mean.source, mean.target) == (None, None)


def test_variants_without_a_seed_in_common_are_not_compared(generator):
    a, b = rows_of({0: ranked(share(10, 5))}), rows_of({1: ranked(share(10, 5))})
    assert contrasts({WAY: [a, b]}, epsilon=8.0, generator=generator) == []
    assert choose({WAY: [a, b]}, epsilon=8.0, generator=generator) is None


def test_a_large_direction_does_not_drown_a_small_one(generator):
    large, small = (np.zeros((90, 1)), np.arange(90)), (np.ones((10, 1)), 100 + np.arange(10))
    [found] = mean_over_groups([large, small], generator=generator)
    assert found.mean == 0.5  # (0 + 1) / 2, where pooling the rows would say .1


def test_one_group_is_the_bootstrap_over_persons():
    values, persons = np.random.default_rng(1).normal(size=(60, 2)), np.repeat(np.arange(20), 3)
    alone = bootstrap_intervals(values, generator=np.random.default_rng(0), persons=persons)
    grouped = mean_over_groups([(values, persons)], generator=np.random.default_rng(0))
    for one, other in zip(alone, grouped, strict=True):
        assert [one.mean, one.low, one.high] == pytest.approx([other.mean, other.low, other.high])


def test_a_person_in_two_directions_is_drawn_once_with_both():
    """Where each person's rows cancel, only a bootstrap that draws the person sees that the mean cannot move."""
    up = np.random.default_rng(2).normal(size=(50, 1))
    persons = np.arange(50)
    [together] = mean_over_groups([(up, persons), (-up, persons)], generator=np.random.default_rng(0))
    [apart] = mean_over_groups([(up, persons), (-up, 50 + persons)], generator=np.random.default_rng(0))
    assert together.high - together.low < 1e-12
    assert apart.high - apart.low > 0.1


def test_an_empty_direction_has_no_mean(generator):
    [found] = mean_over_groups([(np.zeros((0, 1)), np.zeros(0)), (np.ones((3, 1)), np.arange(3))], generator=generator)
    assert np.isnan(found.mean)


def test_the_choice_is_the_highest_mean_over_directions(generator):
    weak, strong = rows_of({0: ranked(share(200, 80))}), rows_of({0: ranked(share(200, 140))})
    good, poor = rows_of({0: ranked(share(20, 12))}), rows_of({0: ranked(share(20, 10))})
    choice = choose({WAY: [weak, strong], BACK: [good, poor]}, epsilon=2.0, generator=generator)
    assert choice.chosen == 1
    assert [figures[0].mean for figures in choice.figures] == pytest.approx([(0.4 + 0.6) / 2, (0.7 + 0.5) / 2])
    assert choice.ahead[1] is None
    assert choice.ahead[0].interval.mean == pytest.approx(0.1)
    assert (choice.n_users, choice.n_seeds) == (220, 1)
    assert sure(choice)


def test_of_equals_the_earlier_one_is_chosen_and_nobody_calls_it_sure(generator):
    one, other = rows_of({0: ranked(share(50, 20))}), rows_of({0: ranked(share(50, 20))})
    choice = choose({WAY: [one, other]}, epsilon=2.0, generator=generator)
    assert choice.chosen == 0
    assert not sure(choice)


def test_a_choice_among_some_variants_keeps_their_places_in_the_comparison(generator):
    weak, strong = rows_of({0: ranked(share(50, 10))}), rows_of({0: ranked(share(50, 40))})
    choice = choose({WAY: [weak, strong]}, epsilon=2.0, generator=generator).renamed([2, 5])
    assert choice.positions[choice.chosen] == 5
    assert (choice.ahead[0].a, choice.ahead[0].b) == ("5", "2")
