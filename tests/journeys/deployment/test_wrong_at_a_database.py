"""All that a partner's real PostgreSQL does when it is down, slow, changed, or asked by the wrong person: said by `check` as people type
it, without a value of a row or a password, and green once it is mended."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.client.data import postgres
from tests.client.data.postgres import PASSWORD, Server
from tests.journeys.coordinated import coordinator
from tests.journeys.deployment.partner_desk import Desk

pytestmark = pytest.mark.slow

MARK = "anna-4711"
"""In every user's id, every item's id and every title."""
PLACE = "database shop on 127.0.0.1"
USERS = [f"{MARK}-{user}" for user in range(30) for _ in range(5)]
ITEMS = [f"{MARK}-item-{item}" for item in range(5)]
TABLES: dict[str, dict[str, tuple[str, Sequence[Any]]]] = {
    "items": {"item_id": ("text", ITEMS), "title": ("text", [f"{MARK} and the sea, {item}" for item in range(5)])},
    "interactions": {
        "user_id": ("text", USERS),
        "item_id": ("text", ITEMS * 30),
        "timestamp": ("bigint", [1_600_000_000 + at for at in range(150)]),
    },
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with a shop's two tables, and a reader who may only read."""
    found = postgres.find()
    if found is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(found) as running:
        running.run("CREATE DATABASE shop")
        for name, columns in TABLES.items():
            running.put(name, columns, database="shop")
        reader = f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'"
        running.run(reader, "GRANT SELECT ON items, interactions TO reader", database="shop")
        yield running


@pytest.fixture(scope="module")
def desk(server: Server, tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Desk:
    """The partner 'books', whose tables lie in the database."""
    folder = tmp_path_factory.mktemp("database")
    password = folder / "password"
    password.write_text(PASSWORD)
    password.chmod(0o600)
    own = {
        "data.items": "items",
        "data.interactions": "interactions",
        "data.text_columns": "title",
        "data.url": server.url("shop", "reader"),
        "data.password_file": str(password),
        "data.connect_timeout_s": 2.0,
        "data.statement_timeout_s": 20.0,
    }
    return Desk(
        coordinator(folder, repository, domains=("books",), agreed=own), "books", frozenset({MARK, PASSWORD, "psycopg", "SELECT *"})
    )


@pytest.fixture(autouse=True)
def _mended(desk: Desk) -> Iterator[None]:
    """Each wrong thing is mended by its test; then the same command is green, and counts."""
    yield
    assert "150 interactions of 30 users" in desk.typed("check", desk.toml, "--skip-server", code=0)


def wrong(desk: Desk, words: str) -> None:
    desk.wrong({"data": words}, "--skip-server")


def shop(server: Server, *statements: str) -> None:
    server.run(*statements, database="shop")


def test_it_is_down(desk: Desk, server: Server) -> None:
    server.stop()
    try:
        wrong(desk, f"{PLACE}:{server.port} cannot be reached: is it running")
    finally:
        server.start()


def test_it_was_killed(desk: Desk, server: Server) -> None:
    server.stop(signal.SIGKILL)
    try:
        wrong(desk, "cannot be reached")
    finally:
        server.start()


def test_it_stands_still(desk: Desk, server: Server) -> None:
    os.kill(server.pid, signal.SIGSTOP)  # it takes connections, and nobody speaks there
    try:
        wrong(desk, f"{PLACE}:{server.port} did not answer in time")
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextlib.contextmanager
def limited(desk: Desk) -> Iterator[None]:
    """A shorter patience."""
    with desk.spoiled("partner.toml"):
        desk.edit("statement_timeout_s = 20.0", "statement_timeout_s = 1.0")
        yield


def test_it_is_slow(desk: Desk, server: Server) -> None:
    slow = "CREATE VIEW interactions AS SELECT fast.* FROM fast, pg_sleep(60)"
    shop(server, "ALTER TABLE interactions RENAME TO fast", slow, "GRANT SELECT ON interactions TO reader")
    try:
        with limited(desk):
            wrong(desk, "took longer than 'data.statement_timeout_s'")
    finally:
        shop(server, "DROP VIEW interactions", "ALTER TABLE fast RENAME TO interactions")


def test_a_table_is_locked(desk: Desk, server: Server) -> None:
    with server.connect("shop") as other, other.transaction(force_rollback=True), limited(desk):
        other.execute("LOCK TABLE interactions")
        wrong(desk, f"of {PLACE}:{server.port} took longer than 'data.statement_timeout_s'")


@pytest.mark.parametrize(
    ("change", "back", "words"),
    [
        ("RENAME TO sales", "ALTER TABLE sales RENAME TO interactions", "has no table 'interactions'"),
        ("RENAME user_id TO who", "ALTER TABLE interactions RENAME who TO user_id", "'user_id'"),
        (
            "ALTER timestamp TYPE double precision",
            "ALTER TABLE interactions ALTER timestamp TYPE bigint",
            "",
        ),
        (
            "ALTER timestamp TYPE text",
            "ALTER TABLE interactions ALTER timestamp TYPE bigint USING timestamp::bigint",
            "",
        ),
        (
            "ALTER item_id TYPE jsonb USING to_jsonb(item_id)",
            "ALTER TABLE interactions ALTER item_id TYPE text USING item_id #>> '{}'",
            "column 'item_id' is of type jsonb",
        ),
    ],
    ids=["table renamed", "column renamed", "fractions of seconds", "times as text", "ids as documents"],
)
def test_its_schema_has_changed(desk: Desk, server: Server, change: str, back: str, words: str) -> None:
    shop(server, f"ALTER TABLE interactions {change}")
    try:
        if words:
            wrong(desk, words)
        else:  # it means the same, as in a file
            desk.right("--skip-server")
    finally:
        shop(server, back)


def test_rows_that_cannot_be_used(desk: Desk, server: Server) -> None:
    for row, words in (
        (f"('{MARK}-new', '{MARK}-gone', 7)", "item_id"),
        (f"('{MARK}-new', '{ITEMS[0]}', NULL)", "timestamp"),
        (f"(NULL, '{ITEMS[0]}', 7)", "user_id"),
    ):
        shop(server, f"INSERT INTO interactions VALUES {row}")
        try:
            wrong(desk, words)
        finally:
            shop(server, "DELETE FROM interactions WHERE user_id IS NULL OR user_id LIKE '%-new'")


def test_a_reader_who_may_not(desk: Desk, server: Server) -> None:
    shop(server, "REVOKE SELECT ON interactions FROM reader")
    try:
        wrong(desk, "does not let this user read it")
    finally:
        shop(server, "GRANT SELECT ON interactions TO reader")


def test_a_password_that_is_not_the_one(desk: Desk, tmp_path: Path) -> None:
    kept = desk.ours.home.root.parent / "password"
    for content, mode, words in (
        (f"{MARK} is my password", 0o600, f"{PLACE}:"),
        (PASSWORD, 0o644, "is open to other users of this machine"),
        (f"{PASSWORD}\n{PASSWORD}", 0o600, "does not hold one line"),
        (None, 0o600, "cannot be read"),
    ):
        other = tmp_path / "password"
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_text(content)
            other.chmod(mode)
        with desk.spoiled("partner.toml"):
            desk.edit(str(kept), str(other))
            wrong(desk, words)


def test_settings_that_name_another_database_or_user(desk: Desk, server: Server) -> None:
    url = server.url("shop", "reader")
    for other, words in (
        (server.url("shops", "reader"), "does not exist"),
        (server.url("shop", "nobody_here"), "refused the user or the password"),
        (server.url("shop", "reader", "nosuchhost.invalid"), "its host name is unknown"),
        (url.replace(str(server.port), str(postgres.free_port())), "cannot be reached"),
    ):
        with desk.spoiled("partner.toml"):
            desk.edit(url, other)
            wrong(desk, words)


def test_a_password_in_the_address_is_refused_and_not_repeated(desk: Desk, server: Server) -> None:
    with desk.spoiled("partner.toml"):
        desk.edit("reader@", f"reader:{MARK}@")
        desk.wrong({"settings": "'data.url' holds a password"}, "--skip-server")
        assert "data.password_file" in desk.typed("up", desk.toml, code=3)


def test_a_password_that_nobody_set(desk: Desk) -> None:
    with desk.spoiled("partner.toml"):
        kept = desk.ours.home.root.parent / "password"
        desk.edit('password_env = ""', 'password_env = "SHOP_PASSWORD"')
        desk.edit(str(kept), "")
        wrong(desk, "the environment variable SHOP_PASSWORD of 'data.password_env' is not set")
        desk.environment = {"SHOP_PASSWORD": PASSWORD}
        desk.right("--skip-server")
        desk.environment = {}
