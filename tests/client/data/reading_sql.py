"""What the tests of databases share: a small table, how it is read, and what a refusal may not say."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from client.data.catalogue import Catalogue
from client.data.database import address_of
from client.data.sources import ReadResult, TimeMeaning, read
from client.data.sql import Snapshot, SqlTable
from client.data.sql_dialects import quoted_column
from shared.errors import DataError
from tests.client.data.postgres import PASSWORD, Server

Table = dict[str, list[Any]]

CATALOGUE = Catalogue(item_ids=["7", "12"], texts=["A", "B"])
MARKER = "secret-value-93"
SOUND: dict[str, tuple[str, list[Any]]] = {
    "user_id": ("text", ["ann", "ben"]),
    "item_id": ("text", ["7", "12"]),
    "timestamp": ("bigint", [100, 200]),
}


def snapshot(server: Server, *, database: str = "postgres", user: str = "postgres", host: str = "127.0.0.1", **limits: Any) -> Snapshot:
    return Snapshot(address_of(server.url(database, user, host)), **{"password": PASSWORD, **limits})


def read_rows(source: SqlTable, time: TimeMeaning = "unix_s", **options: Any) -> ReadResult:
    with contextlib.closing(source.snapshot):
        return read(source, catalogue=CATALOGUE, pseudonym_key=bytes(32), time=time, **options)


def refusal(source: SqlTable, error: type[Exception] = DataError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        read_rows(source, **options)
    text = str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None  # no text of a driver hangs on it
    for word in (MARKER, PASSWORD, "postgresql+psycopg", "psycopg", "sqlite3", "SELECT *"):
        assert word not in text
    return text


def columns_of(table: Table, types: dict[Any, str]) -> dict[str, tuple[str, list[Any]]]:
    """Name -> type and values, with the types of a database that hold what Polars makes of the values."""
    frame = pl.DataFrame(table, strict=False)
    return {name: (types[frame.schema[name]], frame[name].to_list()) for name in frame.columns}


def write_sqlite(folder: Path, table: Table) -> SqlTable:
    path = folder / f"shop-{len(list(folder.iterdir()))}.db"
    columns = columns_of(table, {pl.String: "TEXT", pl.Int64: "INTEGER", pl.Float64: "REAL", pl.Null: "TEXT"})
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute(f"CREATE TABLE interactions ({', '.join(f'{quoted_column(name)} {kind}' for name, (kind, _) in columns.items())})")
        rows = zip(*(values for _, values in columns.values()), strict=True)
        made.executemany(f"INSERT INTO interactions VALUES ({', '.join('?' * len(columns))})", list(rows))
        made.commit()
    return Snapshot(address_of(f"sqlite:///{path}")).table("interactions")


def write_postgresql(server: Server, folder: Path, table: Table) -> SqlTable:
    types = {pl.String: "text", pl.Int64: "bigint", pl.Float64: "double precision", pl.Null: "text"}
    server.put("interactions", columns_of(table, types))
    return Snapshot(address_of(server.url()), password=PASSWORD).table("interactions")
