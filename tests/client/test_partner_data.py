"""A domain whose tables lie in a database: the same as from files, of one moment, fixed for a run, and forgotten like any other."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import queries
from client.data import sql
from client.forgetting import forget
from client.partner_data import partner_data
from client.preparation import prepare
from client.register import Register
from client.releases import COUNT, Ask, plan
from client.settings import ClientSettings
from shared import wire
from shared.errors import ConfigError, DataError, UsageError
from tests.client.data.postgres import PASSWORD, Server
from tests.client.partner_world import CONFIG, RUN, World, people

Run = Callable[[str], None]
FILES = {"items": "items.csv", "interactions": "interactions.csv", "links": "links.csv"}
NEWCOMER = "INSERT INTO shop_interactions VALUES ('newcomer', 'b01', 1600000000), ('newcomer', 'b02', 1600000001)"


@dataclasses.dataclass(frozen=True)
class Shop:
    """The domain 'books' with its tables in a database instead of files."""

    settings: ClientSettings
    files: ClientSettings
    run: Run
    stop: Callable[[], None]


def rows_of(settings: ClientSettings, name: str) -> tuple[list[str], list[list[str]]]:
    with settings.path(FILES[name]).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, rows


def in_database(settings: ClientSettings, **keys: Any) -> ClientSettings:
    names = {"items": "shop_items", "interactions": "shop_interactions", "links": "shop_links"}
    changed = dataclasses.replace(settings, data=dataclasses.replace(settings.data, **{**names, **keys}))
    changed.write(settings.path("partner.toml"))
    return ClientSettings.read(settings.path("partner.toml"))


def types(name: str, column: str) -> str:
    return "bigint" if column == "timestamp" else "text"


@contextlib.contextmanager
def on_sqlite(settings: ClientSettings) -> Iterator[Shop]:
    path = settings.path("shop.db")

    def run(statement: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as opened, opened:
            opened.execute(statement)

    for name in FILES:
        header, rows = rows_of(settings, name)
        run(f"CREATE TABLE shop_{name} ({', '.join(f'{column} {types(name, column)}' for column in header)})")
        with contextlib.closing(sqlite3.connect(path)) as opened, opened:
            opened.executemany(f"INSERT INTO shop_{name} VALUES ({', '.join('?' * len(header))})", rows)
    yield Shop(in_database(settings, url="sqlite:///shop.db"), settings, run, path.unlink)


@contextlib.contextmanager
def on_postgresql(settings: ClientSettings, server: Server) -> Iterator[Shop]:
    for name in FILES:
        header, rows = rows_of(settings, name)
        columns = zip(*rows, strict=True)
        server.put(f"shop_{name}", {column: (types(name, column), list(held)) for column, held in zip(header, columns, strict=True)})
    password = settings.path("password")
    password.write_text(PASSWORD)
    password.chmod(0o600)
    yield Shop(in_database(settings, url=server.url(), password_file="password"), settings, lambda text: server.run(text), password.unlink)
    server.run("DROP TABLE IF EXISTS shop_items, shop_interactions, shop_links")


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest, world: World) -> Iterator[Shop]:
    server = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    with on_sqlite(world["books"]) if server is None else on_postgresql(world["books"], server) as made:
        yield made


def another_run(settings: ClientSettings, name: str = "run-2") -> None:
    queries.CurrentRun(settings).begin(name, CONFIG)


def connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every connection that is opened from here on."""
    opened: list[str] = []
    inner = sql.Snapshot._connect

    def connect(snapshot: sql.Snapshot) -> Any:
        opened.append(snapshot.place)
        return inner(snapshot)

    monkeypatch.setattr(sql.Snapshot, "_connect", connect)
    return opened


def test_what_is_prepared_from_tables_is_what_is_prepared_from_files(shop: Shop) -> None:
    files, tables = prepare(shop.files, CONFIG), prepare(shop.settings, CONFIG)

    assert files.folder != tables.folder
    assert files.said() == tables.said()
    for name in ("everyone", "training"):
        one, other = getattr(files, name), getattr(tables, name)
        assert one.offsets.tolist() == other.offsets.tolist()
        assert one.items.tolist() == other.items.tolist()
        assert one.times.tolist() == other.times.tolist()
        assert np.array_equal(one.pseudonyms, other.pseudonyms)
    assert files.links["films"].link_ids.tolist() == tables.links["films"].link_ids.tolist()
    assert files.catalogue_hash == tables.catalogue_hash


def test_a_run_looks_at_the_database_once_and_the_next_run_sees_what_changed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(shop.settings, CONFIG)
    opened = connections(monkeypatch)
    shop.run(NEWCOMER)
    same = prepare(shop.settings, CONFIG)
    assert (same.folder, opened) == (before.folder, [])

    another_run(shop.settings)
    after = prepare(shop.settings, CONFIG)
    assert len(after.everyone) == len(before.everyone) + 1
    assert len(opened) == 1
    assert prepare(shop.settings, CONFIG).folder == after.folder
    assert len(opened) == 1


def test_a_greeting_repeated_in_the_same_run_does_not_look_again(shop: Shop) -> None:
    before = prepare(shop.settings, CONFIG)
    shop.run(NEWCOMER)
    queries.hello(shop.settings, wire.Hello(run_id=RUN, config_toml=CONFIG.to_toml()))

    assert prepare(shop.settings, CONFIG).folder == before.folder


def test_an_unchanged_table_is_not_prepared_again_by_the_next_run(shop: Shop) -> None:
    before = prepare(shop.settings, CONFIG)
    another_run(shop.settings)
    assert prepare(shop.settings, CONFIG).folder == before.folder


def test_a_run_goes_on_while_its_database_is_away_and_the_next_one_says_so(shop: Shop) -> None:
    before = prepare(shop.settings, CONFIG)
    shop.stop()
    assert prepare(shop.settings, CONFIG).folder == before.folder

    another_run(shop.settings)
    with pytest.raises((DataError, ConfigError)):
        prepare(shop.settings, CONFIG)


def test_other_tables_are_looked_at_even_in_the_middle_of_a_run(shop: Shop) -> None:
    before = prepare(shop.settings, CONFIG)
    shop.run("CREATE VIEW shop_early AS SELECT * FROM shop_interactions WHERE timestamp < 1600004000")
    try:
        after = prepare(in_database(shop.settings, interactions="shop_early"), CONFIG)
        asked = prepare(in_database(shop.settings, interactions_query="SELECT * FROM shop_early"), CONFIG)
    finally:
        shop.run("DROP VIEW shop_early")

    assert len(after.everyone.items) < len(before.everyone.items)
    assert after.everyone.items.tolist() == asked.everyone.items.tolist()


def test_a_forgotten_user_stays_out_although_the_table_still_holds_them(shop: Shop) -> None:
    before = prepare(shop.settings, CONFIG)
    person = people("books")[0]
    forgotten = forget(shop.settings, [person])
    after = prepare(shop.settings, CONFIG)

    assert (forgotten.users, forgotten.new) == (1, 1)
    assert len(after.everyone) == len(before.everyone) - 1
    assert not before.folder.exists()


def test_somebody_whom_only_the_table_knows_can_be_forgotten_and_a_stranger_not(shop: Shop) -> None:
    prepare(shop.settings, CONFIG)
    shop.run(NEWCOMER)
    with pytest.raises(UsageError, match="is not known here"):
        forget(shop.settings, ["stranger"])
    assert forget(shop.settings, ["newcomer"]).new == 1


def test_nobody_is_forgotten_half_where_the_database_is_away(shop: Shop) -> None:
    prepare(shop.settings, CONFIG)
    shop.stop()
    with pytest.raises((DataError, ConfigError)):
        forget(shop.settings, [people("books")[0]])
    with Register.of(shop.settings) as register:
        assert len(register.marks()) == 0


def test_a_connection_that_breaks_while_a_domain_is_prepared_leaves_nothing_behind(
    world: World, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(snapshot: sql.Snapshot, statement: str) -> Iterator[list[Any]]:
        for rows in inner(snapshot, statement):
            if "shop_links" in statement:  # after catalogue and interactions were read
                snapshot.dialect.abort(snapshot._raw[0])
            yield rows

    inner = sql.Snapshot.batches
    with on_postgresql(world["books"], postgresql) as shop:
        folder = shop.settings.at_home("prepared")
        before = sorted(folder.iterdir())
        with monkeypatch.context() as patched:
            patched.setattr(sql.Snapshot, "batches", cut)
            with pytest.raises(DataError, match=r"table 'shop_links' of database postgres .* closed the connection"):
                prepare(shop.settings, CONFIG)
        assert sorted(folder.iterdir()) == before
        assert not (shop.settings.at_home("run") / "database.json").exists()
        assert len(prepare(shop.settings, CONFIG).everyone) == len(people("books"))


def test_what_is_kept_of_a_version_is_no_row_and_for_its_owner_alone(shop: Shop) -> None:
    prepare(shop.settings, CONFIG)
    kept = shop.settings.at_home("run") / "database.json"
    assert set(json.loads(kept.read_bytes())) == {"run", "of", "version"}
    assert os.stat(kept).st_mode & 0o077 == 0

    kept.write_text("{half")
    assert len(prepare(shop.settings, CONFIG).everyone) == len(people("books"))


def test_bad_rows_of_a_table_are_named_by_table_row_and_column(shop: Shop) -> None:
    shop.run("UPDATE shop_interactions SET item_id = 'secret-value-93' WHERE user_id = 'p001'")
    with pytest.raises(DataError, match=r"table 'shop_interactions': rows? .*: 'item_id' is not in the catalogue") as refused:
        prepare(shop.settings, CONFIG)
    assert "secret-value-93" not in str(refused.value)


def test_a_release_is_not_planned_without_the_tables_it_is_made_from(shop: Shop) -> None:
    ask = Ask(purpose=COUNT, noise_multiplier=5.0)
    assert plan(shop.settings, ask).purpose == COUNT
    shop.run("ALTER TABLE shop_interactions RENAME TO shop_gone")
    try:
        with pytest.raises(DataError, match="has no table 'shop_interactions'"):
            plan(shop.settings, ask)
    finally:
        shop.run("ALTER TABLE shop_gone RENAME TO shop_interactions")


def test_what_the_partner_is_told_on_its_own_machine_names_no_place_of_the_database(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    another_run(shop.settings)
    shop.run(NEWCOMER)
    with caplog.at_level(logging.DEBUG):
        prepare(shop.settings, CONFIG)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{len(people('books')) + 1} users" in said
    assert PASSWORD not in said


def test_a_domain_without_links_needs_no_table_of_them(shop: Shop) -> None:
    with partner_data(in_database(shop.settings, links="")) as data:
        assert data.links(bytes(32)) is None
        assert data.version()[2] is None
        data.require()


def test_importing_the_client_loads_no_database_driver() -> None:
    script = "import client.preparation, client.cli, sys; print([m for m in ('sqlalchemy', 'psycopg') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]"
