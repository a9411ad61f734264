"""The partner's lists: what is blocked, for everybody or for one user, and what is in stock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from client.data.pseudonyms import locate, pseudonym
from client.recommender.filters import Filters, read_filters
from client.settings import DataSettings
from shared.errors import DataError, UsageError

KEY = bytes(range(32))
CATALOGUE = ["a", "b", "c"]


def filters(*, blocked: Path | None = None, in_stock: Path | None = None) -> Filters:
    return read_filters(blocked=blocked, in_stock=in_stock, item_ids=CATALOGUE, data=DataSettings(), pseudonym_key=KEY)


def file(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_blocked_item_is_kept_from_everybody(tmp_path: Path) -> None:
    found = filters(blocked=file(tmp_path, "blocked.txt", "b\n\n"))
    assert found.everywhere.tolist() == [False, True, False]
    assert found.unknown == 0


def test_a_table_with_users_blocks_for_these_alone(tmp_path: Path) -> None:
    table = file(tmp_path, "blocked.csv", "user_id,item_id\nann,c\nben,a\nann,a\n")

    found = filters(blocked=table)

    assert not found.everywhere.any()
    rows = locate(found.users, pseudonym(KEY, ["ann", "ben", "cyd"]))
    of = [sorted(found.blocked.items[found.blocked.offsets[row] : found.blocked.offsets[row + 1]].tolist()) for row in rows[:2]]
    assert of == [[0, 2], [0]]
    assert rows[2] == -1


def test_what_is_not_in_stock_is_kept_from_everybody_and_both_lists_count(tmp_path: Path) -> None:
    stock = tmp_path / "stock.parquet"
    pl.DataFrame({"item_id": ["a", "b", "discontinued"]}).write_parquet(stock)

    found = filters(blocked=file(tmp_path, "b.txt", "b"), in_stock=stock)

    assert found.everywhere.tolist() == [False, True, True]
    assert found.unknown == 1


def test_a_row_of_an_unknown_item_blocks_nobody_elses(tmp_path: Path) -> None:
    found = filters(blocked=file(tmp_path, "blocked.csv", "user_id,item_id\nann,nothing\nben,b\n"))
    assert found.unknown == 1
    assert np.array_equal(found.users, pseudonym(KEY, ["ben"]))


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("none.txt", "", UsageError, "is empty"),
        ("binary.txt", "\udcff", UsageError, "is not text"),
        ("other.txt", "x\ny\n", UsageError, "names no item of the catalogue"),
        ("empty.csv", "item_id\n", UsageError, "is empty"),
        ("column.csv", "sku\nb\n", DataError, "no column 'item_id'"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(tmp_path: Path, name: str, text: str, error: type[Exception], said: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=said) as caught:
        filters(blocked=path)
    assert "sku\nb" not in str(caught.value)


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        filters(in_stock=tmp_path / "nowhere.csv")


def test_lists_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no item may be recommended"):
        filters(blocked=file(tmp_path, "all.txt", "a\nb\nc\n"))
