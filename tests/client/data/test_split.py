"""The division of people: the same everywhere, near its shares, and on the person alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.histories import Histories
from client.data.split import COLD, TRAIN, VALIDATION, divide, kept, role
from shared.errors import DataError


@given(link_ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20), split_seed=st.integers(0, 2**31 - 1))
def test_the_part_follows_from_the_hash_of_seed_and_link(link_ids: list[str], split_seed: int) -> None:
    def expected(link_id: str) -> int:
        u = int(hashlib.sha256(f"{split_seed}:{link_id}".encode()).hexdigest(), 16) / 2**256
        return COLD if u < 0.30 else VALIDATION if u < 0.40 else TRAIN

    roles = role(link_ids, split_seed)
    assert roles.dtype == np.int8
    assert roles.tolist() == [expected(link_id) for link_id in link_ids]


def test_shares_are_thirty_ten_and_sixty_per_cent() -> None:
    roles = role([f"u{n:06d}" for n in range(20_000)], split_seed=1)
    shares = np.bincount(roles, minlength=3) / len(roles)
    # five standard errors of a share of .3 in 20,000 are .016
    assert np.abs(shares[[COLD, VALIDATION, TRAIN]] - [0.3, 0.1, 0.6]).max() < 0.016


def test_a_person_keeps_the_part_in_any_company_and_another_seed_divides_anew() -> None:
    people = [f"u{n}" for n in range(1000)]
    assert role(people[500:], 3).tolist() == role(people, 3)[500:].tolist()
    assert (role(people, 3) != role(people, 4)).mean() > 0.3


def test_nobody_is_divided_into_nothing() -> None:
    assert role([], 0).shape == (0,)


# four users with the times of their items: 1 2 3, 2 9, 8 9, and 1 5
PAST = Histories(
    offsets=np.array([0, 3, 5, 7, 9]),
    items=np.array([10, 11, 12, 20, 21, 30, 31, 40, 41], dtype=np.int32),
    times=np.array([1, 2, 3, 2, 9, 8, 9, 1, 5]),
)


def lists(histories: Histories | None) -> list[list[int]]:
    assert histories is not None
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def test_before_and_after_a_cut_are_apart_and_together_all_there_is() -> None:
    found = divide(PAST, np.array([TRAIN, TRAIN, TRAIN, COLD], dtype=np.int8), cut_s=5)

    assert lists(found.everyone) == [[10, 11, 12], [20], [], [40]]
    assert lists(found.later) == [[], [21], [30, 31], [41]]  # what happens at the cut is later
    assert found.everyone.times.max() < 5 <= found.later.times.min()  # type: ignore[union-attr]


def test_who_took_nothing_before_the_cut_is_cold_and_trains_nothing() -> None:
    found = divide(PAST, np.array([TRAIN, TRAIN, TRAIN, VALIDATION], dtype=np.int8), cut_s=5)

    assert found.roles.tolist() == [TRAIN, TRAIN, COLD, VALIDATION]
    assert found.training_rows.tolist() == [0, 1]
    assert lists(found.training) == [[10, 11, 12], [20]]


def test_without_a_cut_nothing_is_later_and_only_the_latest_item_is_kept_back() -> None:
    roles = np.array([TRAIN, TRAIN, COLD, TRAIN], dtype=np.int8)
    found = divide(PAST, roles, hold_out_last=True)

    assert found.later is None
    assert found.said(50) == []
    assert lists(found.everyone) == lists(PAST)
    assert lists(found.training) == [[10, 11], [20, 21], [40, 41]]  # of two items none goes
    assert found.roles.tolist() == roles.tolist()


def test_what_is_said_of_a_cut_counts_items_that_nobody_took_before() -> None:
    again = Histories(offsets=np.array([0, 2, 4]), items=np.array([1, 2, 1, 1], dtype=np.int32), times=np.array([1, 7, 8, 9]))

    found = divide(again, np.array([TRAIN, TRAIN], dtype=np.int8), cut_s=5)

    assert found.said(3) == ["3 interactions after the cut; of items that nobody took before it: 1"]


def test_a_cut_before_everything_leaves_nobody_to_train_on() -> None:
    with pytest.raises(DataError, match="leaves nobody to train on"):
        divide(PAST, np.zeros(4, dtype=np.int8), cut_s=1)


def test_ratings_and_times_stay_with_their_items() -> None:
    rated = Histories(offsets=PAST.offsets, items=PAST.items, times=PAST.times, ratings=np.arange(9, dtype=np.float32))

    some = kept(rated, rated.items % 2 == 1)

    assert some.items.tolist() == [11, 21, 31, 41]
    assert some.times.tolist() == [2, 9, 9, 5]
    assert some.ratings is not None
    assert some.ratings.tolist() == [1, 4, 6, 8]
    assert some.offsets.tolist() == [0, 1, 2, 3, 4]
