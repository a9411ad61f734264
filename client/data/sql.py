"""Tables and queries of a partner's database, read like files: only read, streamed in batches, and all of one moment.

A `Snapshot` is one connection with one transaction (``REPEATABLE READ READ ONLY`` in PostgreSQL, a file opened ``mode=ro`` in SQLite). Rows
come through a server-side cursor; each batch goes through the same checks as rows of a file and shrinks to codes before the next is
fetched, so that memory holds what a file would need and one batch. Values become text at the database where a file would have text, and
moments become seconds there, so that no setting of the session changes what is read.

Statements are ours: identifiers are quoted, and a partner's query stands as a subquery inside them, where a database admits one SELECT
only. They are run without parameters that hold values of the data.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlalchemy import Connection

from shared.errors import DataError

from .database import Address, check_query
from .sql_dialects import Dialect, PostgreSQL, SQLite, Stamp, quoted_column, quoted_name
from .sql_errors import in_our_words
from .tables import Column, Refine, check_distinct, check_type, shaped, those_there

BATCH_ROWS = 20_000
"""Rows that are fetched at a time."""
REFINED_BYTES = 1 << 24
"""Batches are refined together: looking up items costs something for the whole catalogue each time."""


class Snapshot:
    """A database at one moment. Connects when it is first asked; `close` may be called twice.

    Args:
        address: from `address_of`.
        password: None where the database asks for none (or libpq finds it by itself).
        connect_timeout_s: longest wait for a connection, or for a lock of SQLite.
        statement_timeout_s: longest wait for a statement, or for the next batch of its rows.
    """

    def __init__(
        self, address: Address, *, password: str | None = None, connect_timeout_s: float = 10.0, statement_timeout_s: float = 600.0
    ) -> None:
        self.place = address.place
        kind = PostgreSQL if address.kind == "postgresql" else SQLite
        self.dialect: Dialect = kind(address, password, connect_timeout_s)
        self._connect_timeout_s, self._statement_timeout_s = connect_timeout_s, statement_timeout_s
        self._connection: Connection | None = None
        self._raw: list[Any] = []

    def table(self, name: str) -> SqlTable:
        """A table or view, by its name or ``schema.name``."""
        return SqlTable(snapshot=self, name=name, rows=quoted_name(name), is_query=False)

    def query(self, key: str, query: str) -> SqlTable:
        """The rows of one SELECT.

        Args:
            key: the setting that holds it; errors call it so.
        """
        rows = f"(\n{check_query(key, query)}\n) AS the_rows"
        return SqlTable(snapshot=self, name=key.removeprefix("data."), rows=rows, is_query=True)

    def connection(self) -> Connection:
        """The connection of the snapshot, in its transaction.

        Raises:
            DataError: the database cannot be reached, or refuses.
        """
        if self._connection is None:
            self._connection = in_our_words(self.place, self._connect, connecting=True)
        return self._connection

    def _connect(self) -> Connection:
        with self.limited(3 * self._connect_timeout_s):  # to connect, and for the first few questions
            connection = self.dialect.engine(self._raw.append).connect()
            try:
                self.dialect.begin(connection, self._statement_timeout_s)
            except BaseException:
                _end(connection)
                raise
        return connection

    @contextlib.contextmanager
    def limited(self, limit_s: float | None = None) -> Iterator[None]:
        """Ends a wait that lasts too long, also where the database has stopped and its own limit with it."""
        limit_s = (self._statement_timeout_s if limit_s is None else limit_s) + self.dialect.grace_s
        late = threading.Event()

        def end() -> None:
            late.set()
            for raw in self._raw:
                self.dialect.abort(raw)

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception:  # a connection that was cut for being late fails in many ways; all others go on as they are
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()

    def batches(self, statement: str) -> Generator[list[Any], None, None]:
        """Rows of a statement, `BATCH_ROWS` at a time."""
        with self.limited():
            result = self.connection().exec_driver_sql(statement, execution_options={"stream_results": True, "no_parameters": True})
        try:
            while True:
                with self.limited():
                    rows = result.fetchmany(BATCH_ROWS)
                if not rows:
                    return
                yield list(rows)
        finally:
            with contextlib.suppress(Exception):  # of a connection that is gone
                result.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _end(connection)
        self._raw.clear()


def _end(connection: Connection) -> None:
    """Without a word to the database where it cannot be reached any more: nothing is to be committed."""
    with contextlib.suppress(Exception):
        connection.invalidate()
    with contextlib.suppress(Exception):
        connection.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlTable:
    """A table or a query of a snapshot: a source, like the path of a file.

    Attributes:
        name: what errors call it.
        rows: what stands behind FROM.
    """

    snapshot: Snapshot
    name: str
    rows: str
    is_query: bool

    def __str__(self) -> str:
        return f"{'query' if self.is_query else 'table'} '{self.name}'"

    @property
    def advice(self) -> str:
        """What row numbers mean."""
        return "Rows are counted as the database gives them: a query with ORDER BY makes the count firm."

    def read(self, columns: Sequence[Column], refine: Refine) -> pl.DataFrame:
        """Chosen columns, refined batch by batch.

        Raises:
            DataError: the database cannot be read, or a column is missing or of the wrong type.
        """
        return pl.concat(in_our_words(self._where, lambda: list(self._parts(columns, refine))))

    def _parts(self, columns: Sequence[Column], refine: Refine) -> Iterator[pl.DataFrame]:
        there, types, expressions = self._looked_up(columns)
        schema = {column.role: _held_as(column, dtype) for column, dtype in zip(there, types, strict=True)}
        held = [pl.DataFrame(schema=schema)]
        with contextlib.closing(self.snapshot.batches(f"SELECT {', '.join(expressions)} FROM {self.rows}")) as batches:
            for rows in batches:
                held.append(pl.DataFrame(self._by_column(there, rows), schema=schema))
                if sum(frame.estimated_size() for frame in held) > REFINED_BYTES:
                    yield _refined(held, there, schema, refine)
                    held = held[:1]
        yield _refined(held, there, schema, refine)

    def look(self, columns: Sequence[Column]) -> None:
        """Raises DataError where the table or one of its columns is missing or of the wrong type. Reads no row."""
        in_our_words(self._where, lambda: self._looked_up(columns))

    def stamp(self, columns: Sequence[Column]) -> Stamp:
        """What tells one state of these columns from another; stays here.

        Raises:
            DataError: as `read` does.
        """

        def ask() -> Stamp:
            _, _, expressions = self._looked_up(columns)
            with self.snapshot.limited():
                return self.snapshot.dialect.stamp(self.snapshot.connection(), self.rows, expressions)

        return in_our_words(self._where, ask)

    @property
    def _where(self) -> str:
        return f"{self} of {self.snapshot.place}"

    def _looked_up(self, columns: Sequence[Column]) -> tuple[list[Column], list[pl.DataType], list[str]]:
        """The columns that are there, the types a file would have, and the expressions that give them."""
        check_distinct(columns)
        connection, dialect = self.snapshot.connection(), self.snapshot.dialect
        with self.snapshot.limited():
            header = self._described("*")[0] if self.is_query else dialect.header(connection, self.name, self.rows)
            if not header:
                do = "Names are taken letter by letter, small and capital: 'table' or 'schema.table'. The user must be allowed to see it."
                raise DataError(f"{self.snapshot.place} has no {self}", do=do)
            there = those_there(self, header, columns)
            quoted = [quoted_column(column.name) for column in there]
            named = dialect.types(connection, self._described(", ".join(quoted))[1])
        types = []
        for column, (name, dtype) in zip(there, named, strict=True):
            check_type(self, column, dtype, name)
            types.append(dtype or pl.String())
        expressions = [dialect.expression(*each) for each in zip(quoted, there, types, strict=True)]
        return there, types, expressions

    def _described(self, what: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
        """Names and description of columns, by a statement that gives no row."""
        result = self.snapshot.connection().exec_driver_sql(
            f"SELECT {what} FROM {self.rows} LIMIT 0", execution_options={"no_parameters": True}
        )
        description: list[Sequence[Any]] = list(result.cursor.description or [])
        result.close()
        return [str(column[0]) for column in description], description

    def _by_column(self, columns: Sequence[Column], rows: list[Any]) -> dict[str, Sequence[Any]]:
        held: dict[str, Sequence[Any]] = dict(zip((column.role for column in columns), zip(*rows, strict=True), strict=True))
        for column in columns:
            stray = self.snapshot.dialect.stray(column, held[column.role])
            if stray:
                check_type(self, column, None, stray)
        return held


def _held_as(column: Column, dtype: pl.DataType) -> pl.DataType:
    """How the values of a column arrive, by what `Dialect.expression` makes of them."""
    return dtype if column.kind != "text" and (dtype.is_integer() or dtype.is_float()) else pl.String()


def _refined(held: list[pl.DataFrame], columns: Sequence[Column], schema: dict[str, pl.DataType], refine: Refine) -> pl.DataFrame:
    return refine(shaped(pl.concat(held).lazy(), columns, schema)).collect()
