"""The division of people: the same everywhere, near its shares, and on the person alone."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from client.data.split import COLD, TRAIN, VALIDATION, role


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
