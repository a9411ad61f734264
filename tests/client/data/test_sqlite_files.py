"""Files of SQLite, whose types belong to values: what is read, what is refused, and that nothing is written."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from client.data.database import address_of
from client.data.sources import ColumnNames
from client.data.sql import Snapshot
from tests.client.data.reading_sql import read_rows, refusal


def shop(folder: Path, *statements: str) -> Path:
    path = folder / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        for statement in statements:
            made.execute(statement)
        made.commit()
    return path


def sqlite_shop(path: Path, **limits: Any) -> Snapshot:
    return Snapshot(address_of(f"sqlite:///{path}"), **limits)


MADE = "CREATE TABLE orders AS SELECT 'ann' AS user_id, 7 AS item_id, 100 AS timestamp UNION ALL SELECT 2, '12', 200.0"


def test_values_of_whole_and_text_types_may_stand_in_one_column_of_sqlite(tmp_path: Path) -> None:
    result = read_rows(sqlite_shop(shop(tmp_path, MADE)).table("orders"))
    assert sorted(result.external_ids) == ["2", "ann"]
    assert sorted(result.interactions.items.tolist()) == [0, 1]
    assert sorted(result.interactions.times.tolist()) == [100, 200]


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("user_id", "1.5", "of type REAL, not text"),
        ("item_id", "x'00'", "of type BLOB, not text"),
        ("timestamp", "x'00'", "of type BLOB, not"),
    ],
)
def test_a_value_of_another_type_is_refused_by_column_and_type(tmp_path: Path, column: str, value: str, says: str) -> None:
    path = shop(tmp_path, MADE, f"UPDATE orders SET {column} = {value} WHERE user_id = 'ann'")
    assert f"table 'orders': column '{column}' is {says}" in refusal(sqlite_shop(path).table("orders"))


def test_a_query_of_sqlite_reads_and_cannot_write(tmp_path: Path) -> None:
    path = shop(tmp_path, MADE)
    query = "SELECT user_id, item_id, timestamp FROM main.orders ORDER BY timestamp DESC"
    assert len(read_rows(sqlite_shop(path).query("data.interactions_query", query)).interactions) == 2
    with contextlib.closing(sqlite_shop(path)) as opened, pytest.raises(Exception, match=r"readonly|attempt to write"):
        opened.connection().exec_driver_sql("DELETE FROM orders")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:50_000]), "database shop.db is damaged"),
        (lambda path: path.unlink(), "database shop.db cannot be opened"),
        (lambda path: path.write_bytes(b"no database at all, but long enough to be read as a header of one" * 20), "is no SQLite database"),
        (lambda path: path.write_bytes(b""), "has no table 'orders'"),
    ],
    ids=["cut off", "missing", "another file", "empty"],
)
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, make: Any, says: str) -> None:
    path = shop(tmp_path, MADE, *["INSERT INTO orders SELECT * FROM orders"] * 14)
    make(path)
    assert says in refusal(sqlite_shop(path).table("orders"))
    assert sorted(found.name for found in tmp_path.iterdir()) == sorted(["shop.db"] if path.exists() else [])


def test_a_locked_file_is_waited_for_no_longer_than_agreed(tmp_path: Path) -> None:
    path = shop(tmp_path, MADE)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked by another program" in refusal(sqlite_shop(path, connect_timeout_s=0.2).table("orders"))


def test_a_query_of_sqlite_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    endless = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT 'a' AS user_id, 7 AS item_id, max(x) AS timestamp FROM n"
    )
    start = time.monotonic()
    said = refusal(sqlite_shop(shop(tmp_path, MADE), statement_timeout_s=0.5).query("data.interactions_query", endless))
    assert "did not answer in time" in said
    assert time.monotonic() - start < 30


def test_text_of_sqlite_that_is_not_utf8_is_refused_without_it(tmp_path: Path) -> None:
    path = shop(tmp_path, MADE, "UPDATE orders SET user_id = CAST(x'e97365637265742d76616c75652d3933' AS TEXT) WHERE user_id = 'ann'")
    assert "holds text that is not UTF-8" in refusal(sqlite_shop(path).table("orders"))


def test_a_database_in_wal_mode_is_read_while_it_is_written_and_its_version_is_that_of_its_parts(tmp_path: Path) -> None:
    def stamp() -> list[Any]:
        with contextlib.closing(sqlite_shop(path)) as opened:
            return opened.table("orders").stamp(ColumnNames().wanted("unix_s"))

    path = shop(tmp_path, "PRAGMA journal_mode = WAL", MADE)
    stamps = [stamp(), stamp()]
    assert stamps[0] == stamps[1]  # reading changes no version
    with contextlib.closing(sqlite3.connect(path)) as other:
        opened = sqlite_shop(path)
        before = opened.table("orders").stamp(ColumnNames().wanted("unix_s"))
        other.execute("INSERT INTO orders VALUES ('cid', 7, 300)")
        other.commit()
        assert len(read_rows(opened.table("orders")).interactions) == 2
        assert stamp() != before
        assert len(read_rows(sqlite_shop(path).table("orders")).interactions) == 3
