"""A real PostgreSQL server and real files of SQLite: types, orders, rights, and every way in which a database lets its reader down."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from client.data import sql
from client.data.catalogue import Catalogue, CatalogueColumns, read_catalogue
from client.data.database import address_of
from client.data.links import read_links
from client.data.sources import ColumnNames, ReadResult, TimeMeaning, read
from client.data.sql import Snapshot, SqlTable
from shared.errors import ConfigError, DataError, InvalidItem
from tests.client.data import postgres
from tests.client.data.postgres import PASSWORD, Server

CATALOGUE = Catalogue(item_ids=["7", "12"], texts=["A", "B"])
NOON = datetime(2011, 3, 13, 12, tzinfo=UTC)
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


@pytest.fixture
def orders(postgresql: Server) -> Iterator[Server]:
    """A server with a sound table `orders`."""
    postgresql.put("orders", SOUND)
    yield postgresql
    postgresql.run("DROP TABLE IF EXISTS orders CASCADE")


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that the test may stop or kill."""
    found = postgres.find()
    if found is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(found) as server:
        server.run("CREATE TABLE orders AS SELECT 'u' || n AS user_id, '7' AS item_id, n AS timestamp FROM generate_series(1, 200000) AS n")
        yield server


# -- types of PostgreSQL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smallint", "integer", "bigint", "numeric(10,0)", "varchar(20)", "char(5)", "citext", "number_or_name"])
def test_ids_of_any_whole_or_text_type_become_text(postgresql: Server, kind: str) -> None:
    with contextlib.suppress(Exception):
        postgresql.run("CREATE EXTENSION IF NOT EXISTS citext")
    postgresql.run("DROP TABLE IF EXISTS typed", "DROP TYPE IF EXISTS number_or_name", "CREATE TYPE number_or_name AS ENUM ('7', '12')")
    postgresql.put("typed", {**SOUND, "user_id": (kind, ["7", "12"]), "item_id": (kind, ["7", "12"])})
    result = read_rows(snapshot(postgresql).table("typed"))
    assert sorted(result.external_ids) == ["12", "7"]
    assert sorted(result.interactions.items.tolist()) == [0, 1]


def test_uuids_become_text(postgresql: Server) -> None:
    named = ["11111111-2222-3333-4444-555555555555", "11111111-2222-3333-4444-666666666666"]
    postgresql.put("typed", {**SOUND, "user_id": ("uuid", named)})
    assert sorted(read_rows(snapshot(postgresql).table("typed")).external_ids) == named


@pytest.mark.parametrize(
    ("kind", "value", "called"),
    [
        ("double precision", 1.0, "float8"),
        ("numeric(10,2)", 1, "numeric"),
        ("numeric", 1, "numeric"),
        ("bytea", b"x", "bytea"),
        ("boolean", True, "bool"),
        ("jsonb", '{"a": 1}', "jsonb"),
        ("text[]", ["a"], "_text"),
        ("date", date(2011, 1, 1), "date"),
    ],
)
def test_ids_of_another_type_are_refused_by_column_and_type(postgresql: Server, kind: str, value: Any, called: str) -> None:
    postgresql.put("typed", {**SOUND, "user_id": (kind, [value] * 2)})
    assert f"table 'typed': column 'user_id' is of type {called}, not text" in refusal(snapshot(postgresql).table("typed"))


@pytest.mark.parametrize(
    ("kind", "value", "seconds"),
    [
        ("timestamp", NOON.replace(tzinfo=None), int(NOON.timestamp())),
        ("timestamptz", NOON, int(NOON.timestamp())),
        ("date", date(1970, 1, 2), 86_400),
        ("integer", 5, 5),
        ("numeric", "5.000", 5),
        ("real", 5.0, 5),
        ("varchar", " 5 ", 5),
    ],
)
def test_moments_of_any_type_become_seconds(postgresql: Server, kind: str, value: Any, seconds: int) -> None:
    postgresql.put("typed", {**SOUND, "timestamp": (kind, [value] * 2)})
    postgresql.run("ALTER ROLE postgres SET timezone = 'Asia/Tokyo'", "ALTER ROLE postgres SET datestyle = 'German'")
    try:
        assert read_rows(snapshot(postgresql).table("typed")).interactions.times.tolist() == [seconds] * 2
    finally:
        postgresql.run("ALTER ROLE postgres RESET ALL")


def test_a_moment_that_only_orders_keeps_its_microseconds(postgresql: Server) -> None:
    values = [NOON.replace(microsecond=250), NOON.replace(microsecond=3)]
    postgresql.put("typed", {**SOUND, "timestamp": ("timestamptz", values)})
    times = read_rows(snapshot(postgresql).table("typed"), "order").interactions.times
    assert sorted(times.tolist()) == [int(NOON.timestamp()) * 10**6 + 3, int(NOON.timestamp()) * 10**6 + 250]


def test_a_moment_without_end_is_a_bad_row(postgresql: Server) -> None:
    postgresql.put("typed", {**SOUND, "timestamp": ("timestamp", ["2011-01-01", "infinity"])})
    assert "row 2: 'timestamp' is not a whole number of seconds" in refusal(snapshot(postgresql).table("typed"))


@pytest.mark.parametrize("kind", ["real", "numeric(3,1)", "smallint", "text"])
def test_ratings_of_any_number_are_read(postgresql: Server, kind: str) -> None:
    postgresql.put("typed", {**SOUND, "rating": (kind, [4, 5])})
    ratings = read_rows(snapshot(postgresql).table("typed")).interactions.ratings
    assert ratings is not None
    assert sorted(ratings.tolist()) == [4.0, 5.0]


# -- tables, views, queries ------------------------------------------------------------------------------------------------------------


def test_a_schema_a_view_and_awkward_names_are_read_and_nothing_in_a_name_is_run(postgresql: Server) -> None:
    postgresql.run('CREATE SCHEMA IF NOT EXISTS "my shop"', "DROP TABLE IF EXISTS precious", "CREATE TABLE precious (a int)")
    name = 'my shop.Or"ders; DROP TABLE precious; --%s'
    column = "who%(x)s :y; DROP TABLE precious"
    columns = {column: ("text", ["ann", "ben"]), "item_id": SOUND["item_id"], "timestamp": SOUND["timestamp"]}
    postgresql.put(name, columns)
    postgresql.run('CREATE OR REPLACE VIEW "my shop".seen AS SELECT * FROM ' + sql.quoted_name(name))
    for table in (name, "my shop.seen"):
        read_from = snapshot(postgresql).table(table)
        assert sorted(read_rows(read_from, columns=ColumnNames(user=column, rating=None)).external_ids) == ["ann", "ben"]
    postgresql.run("SELECT a FROM precious")


@pytest.mark.parametrize("name", ["nothing", "shop.orders", "Orders", "a.b.c.d", 'x" WHERE false; --', ""])
def test_a_table_that_is_not_there_is_named(orders: Server, name: str) -> None:
    text = refusal(snapshot(orders).table(name))
    assert f"'{name}'" in text


def test_a_missing_column_is_named_with_its_nearest(postgresql: Server) -> None:
    postgresql.put("orders", {**SOUND, "timestamp": ("bigint", [1, 2]), "userid": SOUND["user_id"]} | {"user_id": ("text", ["a", "b"])})
    postgresql.run("ALTER TABLE orders DROP COLUMN user_id")
    text = refusal(snapshot(postgresql).table("orders"))
    assert "table 'orders': no column 'user_id'" in text
    assert "'userid'" in text


def test_a_query_gives_the_rows_and_its_order_is_the_order_of_the_rows(orders: Server) -> None:
    query = "SELECT user_id, item_id, 60 * timestamp AS timestamp FROM orders WHERE user_id LIKE 'b%' -- one; of them"
    result = read_rows(snapshot(orders).query("data.interactions_query", query))
    assert result.external_ids.to_list() == ["ben"]
    assert result.interactions.times.tolist() == [12_000]

    orders.put("numbers", {"n": ("integer", [3, 1, 2])})
    query = "SELECT 'u' || n AS user_id, CASE n WHEN 3 THEN 'none' ELSE '7' END AS item_id, n AS timestamp FROM numbers ORDER BY n"
    text = refusal(snapshot(orders).query("data.interactions_query", query))
    assert "query 'interactions_query': row 3: 'item_id' is not in the catalogue" in text
    assert "Rows are counted as the database gives them" in text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT user_id, user_id, item_id, timestamp FROM orders", "column 'user_id' occurs 2 times"),
        ("SELECT user_id, item_id, timestamp FROM nowhere", "query 'interactions_query' of database postgres on 127.0.0.1"),
        ("SELECT user_id, item_id, secret AS timestamp FROM orders", "has no such column"),
        ("SELECT user_id item_id timestamp FROM orders", "does not understand the query"),
        ("SELECT user_id, item_id, 1 / (timestamp - 100) AS timestamp FROM orders", "cannot compute with"),
        ("SELECT user_id, item_id, CAST(user_id AS int) AS timestamp FROM orders", "cannot compute with"),
        ("WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone", "does not admit the query"),
        ("SELECT * FROM orders FOR UPDATE", "refused"),
        ("SELECT user_id, item_id, nextval('counter') AS timestamp FROM orders", "refused"),
        ("SELECT 1) AS a; DROP TABLE orders; SELECT * FROM (SELECT 1", "is not one SELECT"),
    ],
)
def test_a_query_that_fails_or_writes_is_refused_and_changes_nothing(orders: Server, query: str, says: str) -> None:
    orders.run("CREATE SEQUENCE IF NOT EXISTS counter")
    with pytest.raises((DataError, ConfigError), match=says.replace("(", r"\(")):
        read_rows(snapshot(orders).query("data.interactions_query", query))
    assert sorted(read_rows(snapshot(orders).table("orders")).external_ids) == ["ann", "ben"]


def test_the_session_itself_is_read_only(orders: Server) -> None:
    with contextlib.closing(snapshot(orders)) as opened:
        (state,) = opened.connection().exec_driver_sql("SHOW transaction_read_only").one()
        (level,) = opened.connection().exec_driver_sql("SHOW transaction_isolation").one()
    assert (state, level) == ("on", "repeatable read")


def test_rights_to_the_columns_that_are_read_are_enough_and_others_are_missed_by_name(orders: Server) -> None:
    orders.run(
        "ALTER TABLE orders ADD COLUMN phone text",
        "DROP ROLE IF EXISTS reader",
        f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'",
        "GRANT SELECT (user_id, item_id, timestamp) ON orders TO reader",
    )
    try:
        assert len(read_rows(snapshot(orders, user="reader").table("orders")).interactions) == 2
        orders.run("REVOKE SELECT (item_id) ON orders FROM reader")
        assert "table 'orders' of database postgres" in (said := refusal(snapshot(orders, user="reader").table("orders")))
        assert "does not let this user read it" in said
    finally:
        orders.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_catalogue_and_links_come_from_tables_too(postgresql: Server) -> None:
    postgresql.put("products", {"sku": ("integer", [7, 12]), "title": ("text", ["Tea", None]), "kind": ("varchar", ["Hot", "Cold"])})
    postgresql.put(
        "links", {"user_id": ("int", [1, 2]), "partner": ("text", ["films"] * 2), "link_id": ("uuid", [f"{n:032x}" for n in (1, 2)])}
    )
    with contextlib.closing(snapshot(postgresql)) as opened:
        found = read_catalogue(opened.table("products"), columns=CatalogueColumns(item="sku", texts=("title", "kind")))
        links = read_links(opened.table("links"), pseudonym_key=bytes(32))
    assert (found.item_ids, found.texts) == (["7", "12"], ["Tea. Hot", "Cold"])
    assert len(links.with_partner("films")) == 2

    postgresql.put("products", {"sku": ("integer", [7, 7]), "title": ("text", [MARKER, "x"])})
    with contextlib.closing(snapshot(postgresql)) as opened, pytest.raises(InvalidItem, match="row 2: 'sku' names an item") as refused:
        read_catalogue(opened.table("products"), columns=CatalogueColumns(item="sku", texts=("title",)))
    assert MARKER not in str(refused.value)


def test_all_that_one_snapshot_reads_is_of_one_moment(orders: Server) -> None:
    opened = snapshot(orders)
    before = opened.table("orders").stamp(ColumnNames().wanted("unix_s"))
    orders.run("INSERT INTO orders VALUES ('cid', '7', 300)")
    assert len(read_rows(opened.table("orders")).interactions) == 2  # closes the snapshot
    with contextlib.closing(snapshot(orders)) as later:
        assert later.table("orders").stamp(ColumnNames().wanted("unix_s")) != before


def test_a_stamp_changes_with_every_change_of_a_value_and_with_nothing_else(orders: Server) -> None:
    def stamp() -> list[Any]:
        with contextlib.closing(snapshot(orders)) as opened:
            return opened.table("orders").stamp(ColumnNames().wanted("unix_s"))

    stamps = [stamp()]
    for change in (
        "UPDATE orders SET item_id = '7' WHERE user_id = 'ben'",
        "UPDATE orders SET user_id = 'cid' WHERE user_id = 'ben'",
        "UPDATE orders SET timestamp = timestamp + 1",
        "INSERT INTO orders SELECT * FROM orders",
        "DELETE FROM orders WHERE user_id = 'cid'",
        "ALTER TABLE orders ADD COLUMN rating int DEFAULT 3",
        "UPDATE orders SET rating = NULL",
    ):
        orders.run(change)
        stamps.append(stamp())
    assert len({str(found) for found in stamps}) == len(stamps)

    orders.run("ALTER TABLE orders ADD COLUMN note text DEFAULT 'x'", "UPDATE orders SET note = 'y'", "VACUUM FULL orders")
    assert stamp() == stamps[-1]


def test_rows_come_in_batches_through_a_cursor_of_the_server(orders: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "BATCH_ROWS", 100)
    orders.run("TRUNCATE orders", "INSERT INTO orders SELECT 'u' || n, '7', n FROM generate_series(1, 1000) AS n")
    with contextlib.closing(snapshot(orders)) as opened:
        rows = opened.batches("SELECT user_id FROM orders")
        first = next(rows)
        (cursors,) = opened.connection().exec_driver_sql("SELECT count(*) FROM pg_cursors WHERE statement LIKE '%%orders%%'").one()
        rest = list(rows)
    assert (len(first), cursors, [len(part) for part in rest]) == (100, 1, [100] * 9)
    orders.run("UPDATE orders SET item_id = 'none' WHERE user_id IN ('u150', 'u990')")
    assert "and" in (said := refusal(snapshot(orders).table("orders")))
    assert "'item_id' is not in the catalogue" in said


# -- bad days of PostgreSQL ------------------------------------------------------------------------------------------------------------


def test_a_wrong_password_an_unknown_user_and_a_missing_one_are_refused(orders: Server) -> None:
    for opened in (snapshot(orders, password=MARKER), snapshot(orders, user="nobody_here"), snapshot(orders, password=None)):
        text = refusal(opened.table("orders"))
        assert f"database postgres on 127.0.0.1:{orders.port} refused the user or the password" in text
        assert "'data.password_env'" in text


def test_a_database_that_is_not_there_is_named(orders: Server) -> None:
    assert "database shop on 127.0.0.1" in (text := refusal(snapshot(orders, database="shop").table("orders")))
    assert "does not exist" in text


def test_an_unknown_host_and_a_closed_port_are_told_apart(postgresql: Server) -> None:
    assert "its host name is unknown" in refusal(snapshot(postgresql, host="nosuchhost.invalid").table("orders"))
    closed = Snapshot(address_of(f"postgresql://postgres@127.0.0.1:{postgres.free_port()}/postgres"))
    assert "cannot be reached: is it running" in refusal(closed.table("orders"))


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = address_of(f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres")
        start = time.monotonic()
        assert "did not answer in time" in refusal(Snapshot(address, connect_timeout_s=2.0).table("orders"))
    assert time.monotonic() - start < 30


def test_an_option_that_nobody_knows_is_refused(postgresql: Server) -> None:
    address = address_of(f"{postgresql.url()}?nonsense={MARKER}")
    assert "'data.url' holds an option" in refusal(Snapshot(address, password=PASSWORD).table("orders"))


def test_a_query_that_takes_too_long_is_ended_by_the_server(orders: Server) -> None:
    query = "SELECT user_id, item_id, timestamp FROM orders, pg_sleep(60)"
    start = time.monotonic()
    text = refusal(snapshot(orders, statement_timeout_s=0.5).query("data.interactions_query", query))
    assert "query 'interactions_query' of database postgres" in text
    assert "took longer than 'data.statement_timeout_s'" in text
    assert time.monotonic() - start < 30


def test_a_table_that_is_locked_is_waited_for_no_longer_than_agreed(orders: Server) -> None:
    with orders.connect() as other, other.transaction():
        other.execute("ALTER TABLE orders ADD COLUMN more int")
        assert "took longer than" in refusal(snapshot(orders, statement_timeout_s=0.5).table("orders"))


def test_too_many_connections_are_said(own_server: Server) -> None:
    own_server.run(f"CREATE ROLE reader LOGIN CONNECTION LIMIT 1 PASSWORD '{PASSWORD}'", "GRANT SELECT ON orders TO reader")
    with contextlib.closing(snapshot(own_server, user="reader")) as first:
        first.connection()
        assert "has too many connections" in refusal(snapshot(own_server, user="reader").table("orders"))
    assert len(read_rows(snapshot(own_server, user="reader").table("orders")).interactions) == 200_000


class _Cut:
    """Does something to the server after some batches were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, what: Any) -> None:
        inner, self.batches = sql._refined, 0

        def refined(*given: Any) -> Any:
            self.batches += 1
            if self.batches == after:
                what()
            return inner(*given)

        monkeypatch.setattr(sql, "_refined", refined)
        monkeypatch.setattr(sql, "BATCH_ROWS", 1000)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "shut down"])
def test_a_server_that_goes_while_rows_are_read_is_told_and_the_next_read_is_whole(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    with monkeypatch.context() as patched:
        _Cut(patched, 20, lambda: own_server.stop(how))
        text = refusal(snapshot(own_server).table("orders"))
    assert "table 'orders' of database postgres" in text
    assert "closed the connection before everything was read" in text or "is shutting down or starting" in text
    assert "cannot be reached" in refusal(snapshot(own_server).table("orders"))

    own_server.start()
    assert len(read_rows(snapshot(own_server).table("orders")).interactions) == 200_000


def test_a_session_that_is_ended_by_its_owner_is_told(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'isthmus'"
    _Cut(monkeypatch, 20, lambda: own_server.run(end))
    assert "is shutting down or starting" in refusal(snapshot(own_server).table("orders"))


def test_a_server_that_stands_still_is_given_up(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        with own_server.connect() as other:
            found = other.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'isthmus'").fetchone()
            assert found is not None
            os.kill(found[0], signal.SIGSTOP)
        stopped.append(found[0])

    stopped: list[int] = []
    monkeypatch.setattr("client.data.sql_dialects.PostgreSQL.grace_s", 0.5)
    _Cut(monkeypatch, 20, stop)
    start = time.monotonic()
    try:
        assert "did not answer in time" in refusal(snapshot(own_server, statement_timeout_s=1.0).table("orders"))
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    assert time.monotonic() - start < 30


def test_a_table_keeps_its_columns_while_it_is_read(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def change() -> None:
        with own_server.connect() as other:
            other.execute("SET lock_timeout = '200ms'")
            with pytest.raises(Exception, match="lock timeout"):
                other.execute("ALTER TABLE orders DROP COLUMN item_id")
            other.execute("DELETE FROM orders WHERE timestamp > 1000")

    _Cut(monkeypatch, 20, change)
    assert len(read_rows(snapshot(own_server).table("orders")).interactions) == 200_000


def test_a_changed_type_is_named(orders: Server) -> None:
    orders.run("ALTER TABLE orders ALTER COLUMN item_id TYPE double precision USING item_id::double precision")
    assert "table 'orders': column 'item_id' is of type float8, not text or whole numbers" in refusal(snapshot(orders).table("orders"))


def test_text_that_is_not_utf8_is_refused_without_it(own_server: Server) -> None:
    own_server.run("CREATE DATABASE old ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with own_server.connect("old") as other:
        other.execute("CREATE TABLE orders AS SELECT convert_from('\\xe9'::bytea, 'SQL_ASCII') AS user_id, '7' AS item_id, 1 AS timestamp")
    text = refusal(snapshot(own_server, database="old").table("orders"))
    assert "is not UTF-8" in text or "cannot compute with" in text


def test_neither_values_nor_passwords_are_logged(orders: Server, caplog: pytest.LogCaptureFixture) -> None:
    orders.run(f"INSERT INTO orders VALUES ('{MARKER}', 'none', 1)")
    with caplog.at_level(logging.DEBUG):
        refusal(snapshot(orders).table("orders"))
        refusal(snapshot(orders, password=MARKER).table("orders"))
    said = "\n".join(record.getMessage() + str(record.exc_info or "") for record in caplog.records)
    assert MARKER not in said
    assert PASSWORD not in said


def test_no_connection_and_no_thread_stays_behind(orders: Server) -> None:
    before = threading.active_count()
    read_rows(snapshot(orders).table("orders"))
    refusal(snapshot(orders).table("nothing"))
    with orders.connect() as other:
        end = time.monotonic() + 10
        while other.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'isthmus'").fetchone() != (0,):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert threading.active_count() <= before


# -- SQLite ----------------------------------------------------------------------------------------------------------------------------


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


# -- without the extra -----------------------------------------------------------------------------------------------------------------


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="cannot read one") as refused:
        Snapshot(address_of("postgresql://db/shop"))
    assert "extra 'sql'" in str(refused.value)
