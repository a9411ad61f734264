"""What PostgreSQL and SQLite do differently: how a read-only snapshot begins, what types their columns have, how a value becomes text."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import polars as pl
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.pool import NullPool

from shared.errors import ConfigError

from .database import Address
from .tables import Column

_KEEP_ALIVE = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 10, "keepalives_count": 3}
_QUIET = {"echo": False, "hide_parameters": True, "poolclass": NullPool, "pool_reset_on_return": None}

Stamp = list[Any]


class Dialect(Protocol):
    """One kind of database.

    Attributes:
        grace_s: how much later than the database itself the client gives up waiting.
    """

    grace_s: float

    def engine(self, keep: Any) -> Engine:
        """An engine without a pool that opens read-only connections; ``keep`` is called with each raw one before it is used."""

    def begin(self, connection: Connection, statement_timeout_s: float) -> None:
        """Begins the one transaction of a snapshot."""

    def abort(self, raw: Any) -> None:
        """Ends what a connection waits for; called from another thread."""

    def header(self, connection: Connection, table: str, quoted: str) -> list[str]:
        """Names of a table's columns; empty where there is no such table."""

    def types(self, connection: Connection, description: Sequence[Sequence[Any]]) -> list[tuple[str, pl.DataType | None]]:
        """Name of each column's type, and what it would be in a file; None where nothing in a file is like it."""

    def expression(self, quoted: str, column: Column, dtype: pl.DataType | None) -> str:
        """SQL that gives a column's values in a form that `read` understands."""

    def stray(self, column: Column, values: Sequence[Any]) -> str:
        """The type of a value that the column's kind cannot hold, where types belong to values; else empty."""

    def stamp(self, connection: Connection, rows: str, expressions: Sequence[str]) -> Stamp:
        """Changes whenever the rows of a table change."""


class PostgreSQL:
    """PostgreSQL 11 or later through psycopg 3."""

    grace_s = 5.0

    def __init__(self, address: Address, password: str | None, connect_timeout_s: float) -> None:
        try:
            import psycopg
        except ImportError:  # psycopg itself, or the library it stands on
            raise missing_extra() from None
        self._isolation = psycopg.IsolationLevel.REPEATABLE_READ
        self._url = make_url(address.url).set(password=password)
        self._timeout_s = connect_timeout_s

    def engine(self, keep: Any) -> Engine:
        options = {
            "connect_timeout": max(2, round(self._timeout_s)),
            "client_encoding": "utf8",
            "application_name": "isthmus",
            "prepare_threshold": None,  # a pooler between us keeps none
            **_KEEP_ALIVE,
        }
        engine = create_engine(self._url, connect_args=options, use_native_hstore=False, **_QUIET)

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
            raw = dialect.connect(*arguments, **options)
            raw.read_only, raw.isolation_level = True, self._isolation
            keep(raw)
            return raw

        return engine

    def begin(self, connection: Connection, statement_timeout_s: float) -> None:
        for setting in (
            f"statement_timeout = {max(1, round(statement_timeout_s * 1000))}",
            "synchronize_seqscans = off",  # rows come in the same order as long as nobody writes: they are counted in errors
            "max_parallel_workers_per_gather = 0",
            "cursor_tuple_fraction = 1.0",  # all rows are wanted
        ):
            connection.exec_driver_sql(f"SET LOCAL {setting}")

    def abort(self, raw: Any) -> None:
        with contextlib.suppress(Exception), socket.socket(fileno=os.dup(raw.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)

    def header(self, connection: Connection, table: str, quoted: str) -> list[str]:
        found = connection.exec_driver_sql(
            "SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
            " ORDER BY attnum",
            (quoted,),
        )
        return [str(name) for (name,) in found]

    def types(self, connection: Connection, description: Sequence[Sequence[Any]]) -> list[tuple[str, pl.DataType | None]]:
        known = {
            oid: (str(name), str(category))
            for oid, name, category in connection.exec_driver_sql(
                "SELECT oid, typname, typcategory FROM pg_catalog.pg_type WHERE oid = ANY(%s)", ([column[1] for column in description],)
            )
        }
        return [(known[column[1]][0], _of_postgresql(*known[column[1]], scale=column[5])) for column in description]

    def expression(self, quoted: str, column: Column, dtype: pl.DataType | None) -> str:
        if column.kind != "text" and dtype is not None:
            if dtype.is_integer() or dtype.is_float():
                return quoted
            if isinstance(dtype, pl.Datetime):
                fine = " * 1000000" if column.kind == "order" else ""
                return f"CAST(floor(extract(epoch FROM {quoted}){fine}) AS text)"
        return f"CAST({quoted} AS text)"

    def stray(self, column: Column, values: Sequence[Any]) -> str:
        return ""  # types belong to columns

    def stamp(self, connection: Connection, rows: str, expressions: Sequence[str]) -> Stamp:
        """Number of rows, and a sum over their hashes: one pass at the server, whatever the order of the rows."""
        found = connection.exec_driver_sql(
            f"SELECT count(*), CAST(sum(hashtextextended(CAST(ROW({', '.join(expressions)}) AS text), 0)) AS text) FROM {rows}",
            execution_options={"no_parameters": True},
        ).one()
        return [int(found[0]), found[1]]


def _of_postgresql(name: str, category: str, *, scale: int | None) -> pl.DataType | None:
    if name in ("int2", "int4", "int8"):
        return pl.Int64()
    if name in ("float4", "float8"):
        return pl.Float64()
    if name == "numeric":
        return pl.Decimal(38, 0 if scale == 0 else 9)
    if name in ("timestamp", "timestamptz", "date"):
        return pl.Datetime("us")
    return pl.String() if category in "SE" or name == "uuid" else None


class SQLite:
    """A file of SQLite, opened ``mode=ro``. Its types belong to values, so that each value is looked at."""

    grace_s = 0.0

    def __init__(self, address: Address, password: str | None, connect_timeout_s: float) -> None:
        self._path = Path(address.url)
        self._timeout_s = connect_timeout_s
        self._stamp: Stamp = []

    def engine(self, keep: Any) -> Engine:
        def connect() -> sqlite3.Connection:
            # Before the snapshot: what is written between the two is read now and noticed the next time.
            self._stamp = [_file_stamp(self._path), _file_stamp(self._path.with_name(f"{self._path.name}-wal"))]
            raw = sqlite3.connect(
                f"file:{quote(str(self._path))}?mode=ro", uri=True, timeout=self._timeout_s, check_same_thread=False, isolation_level=None
            )
            keep(raw)
            return raw

        return create_engine("sqlite+pysqlite://", creator=connect, **_QUIET)

    def begin(self, connection: Connection, statement_timeout_s: float) -> None:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()  # the snapshot begins with the first read

    def abort(self, raw: Any) -> None:
        with contextlib.suppress(sqlite3.Error):
            raw.interrupt()

    def header(self, connection: Connection, table: str, quoted: str) -> list[str]:
        schema, _, name = table.rpartition(".")
        found = connection.exec_driver_sql("SELECT name FROM pragma_table_info(?, ?)", (name, schema or "main"))
        return [str(column) for (column,) in found]

    def types(self, connection: Connection, description: Sequence[Sequence[Any]]) -> list[tuple[str, pl.DataType | None]]:
        return [("TEXT", pl.String())] * len(description)

    def expression(self, quoted: str, column: Column, dtype: pl.DataType | None) -> str:
        strays = "('real', 'blob')" if column.kind == "text" else "('blob')"
        return f"CASE WHEN typeof({quoted}) IN {strays} THEN {quoted} ELSE CAST({quoted} AS TEXT) END"

    def stray(self, column: Column, values: Sequence[Any]) -> str:
        kinds = set(map(type, values)) - {str, type(None)}
        return "" if not kinds else "BLOB" if bytes in kinds else "REAL"

    def stamp(self, connection: Connection, rows: str, expressions: Sequence[str]) -> Stamp:
        """Size and time of the file and of its write-ahead part, and what is read from them: the file is the version."""
        return [*self._stamp, rows]


def _file_stamp(path: Path) -> list[int] | None:
    """Size and time of change; None where there is nothing. (A reader of a database in WAL mode may make an empty part beside it.)"""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns] if found.st_size else None


def missing_extra() -> ConfigError:
    return ConfigError(
        "'data.url' names a database, and this installation cannot read one",
        do="Install isthmus with its extra 'sql': pip install -c constraints.txt -e '.[sql]'",
    )


def quoted_name(table: str) -> str:
    """A table's name, with its schema where there is one, for a statement. Taken letter by letter.

    >>> quoted_name('shop.Or"ders')
    '"shop"."Or""ders"'
    """
    return ".".join(quoted_column(part) for part in table.split("."))


def quoted_column(name: str) -> str:
    return '"' + re.sub('"', '""', name) + '"'
