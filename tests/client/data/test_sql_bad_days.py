"""Every way in which a PostgreSQL server lets its reader down: a clear error, no word of a value, and nothing left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.data import sql
from client.data.database import address_of
from client.data.interactions import Interactions
from client.data.sql import Snapshot
from shared.errors import ConfigError, DataError
from tests.client.data import postgres
from tests.client.data.postgres import PASSWORD, Server
from tests.client.data.reading_sql import MARKER, read_rows, refusal, snapshot


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
    assert len(_once_the_first_is_gone(own_server)) == 200_000


def _once_the_first_is_gone(server: Server) -> Interactions:
    """The server counts a connection a moment longer than its client does."""
    until = time.monotonic() + 20.0
    while True:
        try:
            return read_rows(snapshot(server, user="reader").table("orders")).interactions
        except DataError as error:
            if "has too many connections" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.1)


class _Cut:
    """Does something to the server after some batches were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, what: Callable[[], object]) -> None:
        inner, self.batches = sql.SqlTable._by_column, 0

        def by_column(*given: Any) -> Any:
            self.batches += 1
            if self.batches == after:
                what()
            return inner(*given)

        monkeypatch.setattr(sql.SqlTable, "_by_column", by_column)
        monkeypatch.setattr(sql, "BATCH_ROWS", 1000)
        monkeypatch.setattr(sql, "REFINED_BYTES", 100_000)


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


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match="cannot read one") as refused:
        Snapshot(address_of("postgresql://db/shop"))
    assert "extra 'sql'" in str(refused.value)
