"""What one user can change: every user of a data set taken out in turn, and the same driver on planted bugs, which it must catch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client import release_sums
from client.data.histories import Histories
from client.model.domain_head import popularity_head
from client.model.encoders.attention import AttentionEncoder
from client.model.head_likelihood import counts_by_group

ITEMS, MOST, DIMENSION, LENGTH, CUT = 40, 3, 6, 5, 10
Sums = Callable[[Histories], np.ndarray]


def histories_of(lists: list[list[int]]) -> Histories:
    lengths = [len(items) for items in lists]
    flat = np.array([item for items in lists for item in items], dtype=np.int32)
    times = np.concatenate([np.arange(n) for n in lengths]).astype(np.int64) if lists else np.zeros(0, dtype=np.int64)
    return Histories(offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items=flat, times=times)


def some(users: int, seed: int) -> Histories:
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(ITEMS, 0.5))
    return histories_of([generator.choice(ITEMS, size=generator.integers(0, 12), p=weights).tolist() for _ in range(users)])


def largest_move(sums: Sums, histories: Histories) -> float:
    """L2 distance to the farthest of all neighbours with one user less. Noise is the same on both sides, so it plays no part."""
    whole, furthest = sums(histories), 0.0
    for user in range(len(histories)):
        others = np.ones(len(histories), dtype=bool)
        others[user] = False
        furthest = max(furthest, float(np.linalg.norm(sums(histories.select(others)) - whole)))
    return furthest


def encoder() -> AttentionEncoder:
    torch.manual_seed(1)
    made = AttentionEncoder(DIMENSION, 0.8).eval()
    for layer in (made.recency, made.content, made.reduce, made.expand):
        torch.nn.init.normal_(layer.weight, std=0.5)
    return made


COORDINATES = np.random.default_rng(3).normal(size=(ITEMS, DIMENSION)).astype(np.float32)


def hits(histories: Histories) -> np.ndarray:
    return release_sums.hits(histories, COORDINATES, encoder(), length=LENGTH, cut=CUT)


def test_popularity_moves_by_no_more_than_the_root_of_its_bound() -> None:
    found = largest_move(lambda h: release_sums.popularity(h, ITEMS, MOST), some(60, 1))
    assert found == pytest.approx(math.sqrt(MOST))  # and somebody reaches it


def test_the_number_of_users_moves_by_one() -> None:
    assert largest_move(release_sums.count, some(20, 1)) == 1.0


def test_hits_move_by_no_more_than_one() -> None:
    assert largest_move(hits, some(60, 2)) == 1.0


@given(st.lists(st.lists(st.integers(0, 7), max_size=9), max_size=7), st.integers(1, 4))
def test_popularity_is_bounded_for_any_histories(lists: list[list[int]], most: int) -> None:
    histories = histories_of(lists)
    assert largest_move(lambda h: release_sums.popularity(h, 8, most), histories) <= math.sqrt(most) + 1e-12
    expected = np.zeros(8)
    for items in lists:
        for item in list(dict.fromkeys(reversed(items)))[:most]:
            expected[item] += 1
    np.testing.assert_array_equal(release_sums.popularity(histories, 8, most), expected)


def test_a_users_hit_does_not_hang_on_who_else_is_there() -> None:
    histories = some(300, 4)
    alone = [hits(histories.select(np.arange(300) == user))[0] for user in range(300)]
    assert 0 < sum(alone) < 300
    assert hits(histories)[0] == sum(alone)


def test_a_hit_is_the_latest_item_among_the_first_that_are_not_known_already() -> None:
    nearest = np.argsort(-(COORDINATES @ COORDINATES[0]), kind="stable")
    plain = AttentionEncoder(DIMENSION, 0.8).eval()
    torch.nn.init.zeros_(plain.expand.weight)
    others = [int(item) for item in nearest if item != 0]

    def hit(items: list[int], cut: int = 2) -> float:
        return float(release_sums.hits(histories_of([items]), COORDINATES, plain, length=1, cut=cut)[0])

    assert hit([0, others[0]]) == hit([0, others[1]]) == 1.0
    assert hit([0, others[2]]) == 0.0
    assert hit([others[0], 0, others[2]]) == 1.0  # what is known already takes no place in the list
    assert hit([0]) == 0.0
    assert hit([]) == 0.0


def test_a_faulty_encoder_makes_no_hits() -> None:
    faulty = encoder()
    torch.nn.init.constant_(faulty.reduce.weight, math.nan)
    assert release_sums.hits(some(20, 5), COORDINATES, faulty, length=LENGTH, cut=CUT)[0] == 0.0


# --- planted bugs: each through the driver above ---


def unbounded(histories: Histories) -> np.ndarray:
    return np.bincount(histories.items, minlength=ITEMS).astype(np.float64)


def latest_rows_instead_of_latest_items(histories: Histories) -> np.ndarray:
    """Bounds rows, and an item taken three times counts three times."""
    found = np.zeros(ITEMS)
    for user in range(len(histories)):
        np.add.at(found, histories.items[histories.offsets[user] : histories.offsets[user + 1]][-MOST:], 1)
    return found


def with_the_serving_head(histories: Histories) -> np.ndarray:
    """Ranks by the head's exact popularity beside the interest, as the serving state would."""
    head = popularity_head(counts_by_group([np.asarray(histories.items)], ITEMS), DIMENSION)
    total = 0.0
    for user in range(len(histories)):
        own = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        if len(own) > 1:
            score = head.scores(COORDINATES[own[:-1]].mean(axis=0)[None], COORDINATES)[0]
            score[own[:-1]] = -np.inf
            total += float(np.count_nonzero(score > score[own[-1]]) < CUT)
    return np.array([total])


def divided_by_the_private_number(histories: Histories) -> np.ndarray:
    return hits(histories) / max(len(histories), 1) * 50  # scaled to a public 50 users, by a private number


@pytest.mark.parametrize(
    ("planted", "bound"),
    [(unbounded, math.sqrt(MOST)), (latest_rows_instead_of_latest_items, math.sqrt(MOST)), (with_the_serving_head, 1.0)],
)
def test_a_planted_bug_moves_the_sum_too_far(planted: Sums, bound: float) -> None:
    assert largest_move(planted, some(60, 2)) > bound * 1.2


def test_division_by_the_private_number_moves_users_who_are_no_hit() -> None:
    histories = some(60, 2)
    none = next(user for user in range(60) if hits(histories.select(np.arange(60) == user))[0] == 0.0)
    others = np.arange(60) != none
    assert hits(histories)[0] == hits(histories.select(others))[0]
    assert divided_by_the_private_number(histories)[0] != divided_by_the_private_number(histories.select(others))[0]
