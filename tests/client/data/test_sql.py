"""Tables, views and queries of a real PostgreSQL server: types, names, rights, order, one moment, and nothing that writes."""

from __future__ import annotations

import contextlib
from datetime import UTC, date, datetime
from typing import Any

import pytest

from client.data import sql
from client.data.catalogue import CatalogueColumns, read_catalogue
from client.data.links import read_links
from client.data.sources import ColumnNames
from shared.errors import ConfigError, DataError, InvalidItem
from tests.client.data.postgres import PASSWORD, Server
from tests.client.data.reading_sql import MARKER, SOUND, read_rows, refusal, snapshot

NOON = datetime(2011, 3, 13, 12, tzinfo=UTC)


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
