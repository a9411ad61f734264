"""Items of several users in flat arrays do what lists of lists would do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.recommender.ragged import Ragged

Lists = list[list[int]]
SOME = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=5)


def lists(ragged: Ragged) -> Lists:
    return [ragged.items[start:stop].tolist() for start, stop in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)]


def alike(one: Lists, other: Lists) -> tuple[Lists, Lists]:
    """The same number of users for both."""
    n = min(len(one), len(other))
    return one[:n], other[:n]


@given(SOME)
def test_lists_come_back_as_they_went_in(some: Lists) -> None:
    assert lists(Ragged.of_lists(some)) == some


@given(SOME, SOME)
def test_what_came_later_stands_after_what_was_there(one: Lists, other: Lists) -> None:
    one, other = alike(one, other)
    joined = Ragged.of_lists(one).then(Ragged.of_lists(other))
    assert lists(joined) == [a + b for a, b in zip(one, other, strict=True)]


@given(SOME, SOME)
def test_what_another_array_names_is_taken_out_of_the_same_user_only(one: Lists, other: Lists) -> None:
    one, other = alike(one, other)
    left = Ragged.of_lists(one).without(Ragged.of_lists(other))
    assert lists(left) == [[item for item in a if item not in b] for a, b in zip(one, other, strict=True)]


@given(SOME)
def test_an_item_stands_once_at_its_last_place(some: Lists) -> None:
    wanted = [[item for at, item in enumerate(one) if item not in one[at + 1 :]] for one in some]
    assert lists(Ragged.of_lists(some).distinct()) == wanted


@given(SOME, st.integers(1, 8))
def test_the_latest_items_are_padded_at_the_left(some: Lists, length: int) -> None:
    items, mask = Ragged.of_lists(some).padded(length)
    assert [row[there].tolist() for row, there in zip(items, mask, strict=True)] == [one[-length:] for one in some]
    assert items.shape[1] == min(length, max(map(len, some)))
    assert all(mask[row].tolist() == sorted(mask[row].tolist()) for row in range(len(some)))


@given(SOME, st.data())
def test_rows_of_larger_arrays_are_taken_and_strangers_have_nothing(some: Lists, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(-1, len(some) - 1), max_size=6))
    whole = Ragged.of_lists(some)
    taken = Ragged.taken(whole.offsets, whole.items.astype(np.int32), np.array(rows, dtype=np.int64))
    assert lists(taken) == [some[row] if row >= 0 else [] for row in rows]


def test_the_mean_of_nothing_is_zero() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert Ragged.of_lists([[0, 1, 1], []]).mean_of(vectors).tolist() == [[pytest.approx(1 / 3), pytest.approx(2 / 3)], [0.0, 0.0]]
