"""Histories: the same users, items and order as the interactions, whatever way they are laid out."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.histories import Histories, by_user
from client.data.interactions import Interactions, time_order
from shared.errors import DataError, InvalidInteraction, StorageError


def names(n_users: int) -> np.ndarray:
    pseudonyms = np.zeros((n_users, 16), dtype=np.uint8)
    pseudonyms[:, 14], pseudonyms[:, 15] = np.divmod(np.arange(n_users), 256)
    return pseudonyms


def interactions(rows: list[tuple[int, int, int]], n_users: int) -> Interactions:
    """From (user, time, item)."""
    users, times, items = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Interactions(users=users.astype(np.int32), items=items.astype(np.int32), times=times, ratings=None, pseudonyms=names(n_users))


def lists(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])] if histories.n_users else []


ROWS = [(2, 5, 10), (0, 7, 11), (2, 1, 12), (2, 5, 13), (0, 6, 14)]  # user 1 has none
many = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3), st.integers(0, 99)), max_size=60)


def test_items_stand_by_user_and_time_and_equal_times_keep_their_order() -> None:
    histories = by_user(interactions(ROWS, 3))
    assert lists(histories) == [[14, 11], [], [12, 10, 13]]
    assert histories.lengths.tolist() == [2, 0, 3]
    assert histories.times.tolist() == [6, 7, 1, 5, 5]


@given(rows=many)
def test_grouping_agrees_with_a_plain_loop(rows: list[tuple[int, int, int]]) -> None:
    histories = by_user(interactions(rows, 7))
    expected = [[item for _, _, item in sorted((r for r in rows if r[0] == user), key=lambda r: r[1])] for user in range(7)]
    assert lists(histories) == expected
    assert lists(by_user(interactions(rows, 7), max_items_per_user=3)) == [items[-3:] for items in expected]


@given(rows=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 2)), max_size=30))
def test_rows_are_ordered_by_user_and_time_however_large_the_numbers(rows: list[tuple[int, int]]) -> None:
    users = np.array([user for user, _ in rows], dtype=np.int32)
    times = np.array([time for _, time in rows], dtype=np.int64)
    assert time_order(users, times).tolist() == sorted(range(len(rows)), key=lambda row: rows[row])


@given(rows=many, users=st.lists(st.integers(0, 6), max_size=9), length=st.integers(0, 8))
def test_a_padded_batch_holds_the_latest_items_last(rows: list[tuple[int, int, int]], users: list[int], length: int) -> None:
    histories = by_user(interactions(rows, 7))
    held = lists(histories)
    items, mask = histories.padded(np.array(users, dtype=np.int64), length)
    assert items.shape == mask.shape == (len(users), length)
    assert items.dtype == np.int32
    for row, user in enumerate(users):
        latest = held[user][max(0, len(held[user]) - length) :]
        assert items[row, mask[row]].tolist() == latest
        assert mask[row].tolist() == [False] * (length - len(latest)) + [True] * len(latest)
        assert not items[row, ~mask[row]].any()


def test_a_batch_may_be_trimmed_to_its_longest_history() -> None:
    histories = by_user(interactions(ROWS, 3))
    assert histories.padded(np.array([0, 1]), 500, trim=True)[0].tolist() == [[14, 11], [0, 0]]
    assert histories.padded(np.array([1]), 500, trim=True)[0].shape == (1, 0)


@pytest.mark.parametrize("user", [-1, 3])
def test_a_user_who_is_not_there_is_refused(user: int) -> None:
    with pytest.raises(IndexError):
        by_user(interactions(ROWS, 3)).padded(np.array([user]), 2)


@given(rows=many, wanted=st.lists(st.booleans(), min_size=7, max_size=7))
def test_selected_users_keep_their_histories_and_names(rows: list[tuple[int, int, int]], wanted: list[bool]) -> None:
    histories = by_user(interactions(rows, 7))
    mask = np.array(wanted)
    chosen = histories.select(mask)
    assert lists(chosen) == [items for items, keep in zip(lists(histories), wanted, strict=True) if keep]
    assert chosen.pseudonyms.tolist() == histories.pseudonyms[mask].tolist()


def test_selecting_needs_one_truth_value_for_each_user() -> None:
    histories = by_user(interactions(ROWS, 3))
    for wrong in (np.array([0, 2]), np.array([True, False])):
        with pytest.raises(DataError):
            histories.select(wrong)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("rows", [ROWS, []])
def test_what_was_saved_is_read_back(tmp_path: Path, mmap: bool, rows: list[tuple[int, int, int]]) -> None:
    histories = by_user(interactions(rows, 3))
    histories.save(tmp_path / "histories")
    again = Histories.open(tmp_path / "histories", mmap=mmap)
    for name in ("offsets", "items", "times", "pseudonyms"):
        assert getattr(again, name).tolist() == getattr(histories, name).tolist()
        assert getattr(again, name).dtype == getattr(histories, name).dtype
    assert again.padded(np.arange(3), 2)[0].tolist() == histories.padded(np.arange(3), 2)[0].tolist()


def test_saved_histories_are_private_and_replaced_under_a_running_reader(tmp_path: Path) -> None:
    folder = tmp_path / "histories"
    by_user(interactions(ROWS, 3)).save(folder)
    mapped = Histories.open(folder)
    by_user(interactions(ROWS[:1], 3)).save(folder)
    assert lists(mapped) == [[14, 11], [], [12, 10, 13]]
    assert lists(Histories.open(folder)) == [[], [], [10]]
    assert [path.name for path in tmp_path.iterdir()] == ["histories"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write the histories in 'histories'"):
        by_user(interactions(ROWS, 3)).save(tmp_path / "file" / "histories")


def test_a_missing_cut_or_foreign_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "histories"
    with pytest.raises(DataError, match="missing or damaged"):
        Histories.open(folder)
    by_user(interactions(ROWS, 3)).save(folder)
    items = folder / "items.npy"
    items.write_bytes(items.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"items\.npy is missing or damaged"):
        Histories.open(folder)
    np.save(items, np.zeros(4, dtype=np.int32))
    with pytest.raises(DataError, match="do not divide the items"):
        Histories.open(folder)
    np.save(items, np.zeros(5, dtype=np.float64))
    with pytest.raises(DataError, match="'items' is not int32"):
        Histories.open(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"users": np.zeros(2, dtype=np.int64)}, "'users'"),
        ({"items": np.zeros(1, dtype=np.int32)}, "'items'"),
        ({"ratings": np.array([1.0, np.nan], dtype=np.float32)}, "'ratings' holds a value that is not finite"),
        ({"users": np.array([0, 2], dtype=np.int32)}, "points outside"),
        ({"users": np.array([-1, 0], dtype=np.int32)}, "points outside"),
        ({"items": np.array([0, -1], dtype=np.int32)}, "negative"),
        ({"pseudonyms": names(2)[::-1]}, "not sorted"),
        ({"pseudonyms": np.zeros((2, 16), dtype=np.uint8)}, "not sorted and distinct"),
        ({"pseudonyms": np.zeros((2, 8), dtype=np.uint8)}, "16 bytes"),
    ],
)
def test_interactions_that_contradict_themselves_cannot_be_made(changes: dict[str, np.ndarray], said: str) -> None:
    two = np.zeros(2, dtype=np.int32)
    sound = {"users": two, "items": two, "times": np.zeros(2, dtype=np.int64), "ratings": None, "pseudonyms": names(2)}
    Interactions(**sound)  # type: ignore[arg-type]
    with pytest.raises(InvalidInteraction, match=said):
        Interactions(**{**sound, **changes})  # type: ignore[arg-type]
