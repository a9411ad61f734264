"""URLs, passwords and queries, before anybody connects: what is refused, by which key, and never quoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.data.database import address_of, check_query, check_settings, password_of
from client.settings import ClientSettings
from shared.errors import ConfigError

SECRET = "s3cret-93"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql+psycopg://shop@db.example:5432/books", "database books on db.example:5432"),
        ("postgresql://db.example/books?sslmode=verify-full", "database books on db.example"),
        ("postgresql+psycopg://shop@/books?host=/run/postgresql", "database books on /run/postgresql"),
        ("postgresql+psycopg://shop@[::1]:5433/books", "database books on [::1]:5433"),
        ("postgresql+psycopg:///books", "database books"),
        ("sqlite:///shop.db", "database shop.db"),
    ],
)
def test_a_database_is_named_by_its_place_never_by_its_url(url: str, place: str) -> None:
    assert address_of(url).place == place


def test_a_file_of_sqlite_lies_beside_the_settings_unless_its_path_is_absolute(tmp_path: Path) -> None:
    assert address_of("sqlite:///shop.db", tmp_path).url == str(tmp_path / "shop.db")
    assert address_of("sqlite:////var/shop.db", tmp_path).url == "/var/shop.db"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://shop:{SECRET}@db/books",
        f"postgresql+psycopg://shop:{SECRET}/x@db/books",
        f"postgresql://shop:a@{SECRET}@db/books",
        f"postgresql://shop@db/books?password={SECRET}",
        f"postgresql://shop@db/books?sslmode=require&sslPassword={SECRET}",
    ],
)
def test_a_password_in_the_url_is_refused_with_the_keys_that_take_it(url: str) -> None:
    with pytest.raises(ConfigError, match=r"'data.url' holds a password") as refused:
        address_of(url)
    assert "'data.password_env'" in str(refused.value)
    assert "'data.password_file'" in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://shop@db/{SECRET}",
        f"postgresql+psycopg2://shop@db/{SECRET}",
        f"postgresql://shop@db:{SECRET}/books",
        f"postgresql://shop@db/books?{SECRET}",
        f"postgresql://[{SECRET}/books",
        f"postgresql://{SECRET}",
        f"sqlite://{SECRET}",
        f"sqlite:///shop.db?mode={SECRET}",
        "sqlite:///:memory:",
        "sqlite://",
        SECRET,
    ],
)
def test_a_url_of_nothing_that_can_be_read_is_refused_unquoted(url: str) -> None:
    with pytest.raises(ConfigError, match=r"'data.url'") as refused:
        address_of(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT a, b FROM t",
        "  select ';' from t -- ; one\n",
        "WITH x AS (SELECT 1) SELECT * FROM x;",
        "/* ; /* nested ; */ */ SELECT $$ ; $$, $tag$ ; $tag$ FROM t ; ; ",
        "(SELECT 1) UNION ALL (SELECT 2)",
        r"SELECT E'\';', \";\" FROM t".replace('\\"', '"'),
        "SELECT a FROM t WHERE note = 'it''s; fine'",
        "SELECT price * 5 FROM t WHERE id = $1 OR a > b",
    ],
)
def test_one_select_is_taken(query: str) -> None:
    assert check_query("data.items_query", query) in query


@pytest.mark.parametrize(
    "query",
    [
        "",
        "-- nothing",
        "DELETE FROM t",
        "INSERT INTO t SELECT 1",
        "SELECT 1; DROP TABLE t",
        "SELECT 1 ; SELECT 2",
        "SELECT 'a' ; -- b\n COMMIT",
        "selection",
        "TRUNCATE t",
        "'SELECT 1'",
        "SELECT $$ $$ ; DROP TABLE t; SELECT $$ $$",
    ],
)
def test_anything_else_is_refused_by_its_key(query: str) -> None:
    with pytest.raises(ConfigError, match=r"'data.items_query' is not one SELECT"):
        check_query("data.items_query", query)


def test_a_query_that_ends_in_a_comment_or_a_quoted_name_stays_whole() -> None:
    assert check_query("k", 'SELECT a FROM "t";') == 'SELECT a FROM "t"'
    assert check_query("k", "SELECT a FROM t -- all of them") == "SELECT a FROM t"


def test_the_password_is_taken_from_the_environment_or_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)

    assert password_of("SHOP_PASSWORD", "", tmp_path, {"SHOP_PASSWORD": SECRET}) == SECRET
    assert password_of("", "password", tmp_path, {}) == SECRET
    assert password_of("", "", tmp_path, {}) is None


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [(SECRET, 0o640, "is open to other users"), ("", 0o600, "does not hold one line"), (f"{SECRET}\nx", 0o600, "does not hold one line")],
)
def test_a_password_file_that_others_read_or_that_holds_no_password_is_refused(tmp_path: Path, text: str, mode: int, says: str) -> None:
    (tmp_path / "password").write_text(text)
    (tmp_path / "password").chmod(mode)

    with pytest.raises(ConfigError, match=says) as refused:
        password_of("", "password", tmp_path, {})
    assert SECRET not in str(refused.value)


def test_a_missing_variable_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="environment variable SHOP_PASSWORD"):
        password_of("SHOP_PASSWORD", "", tmp_path, {"SHOP_PASSWORD": ""})
    with pytest.raises(ConfigError, match="password file none"):
        password_of("", "none", tmp_path, {})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"url = 'postgresql://shop:{SECRET}@db/books'", "'data.url' holds a password"),
        (f"password = '{SECRET}'", "Did you mean 'data.password_"),
        ("url = 5", "'data.url' is a int, not a str"),
        ("items_query = 'SELECT 1'", "'data.items_query' is set, and 'data.url' names no database"),
        ("url = 'postgresql://db/books'\nlinks_query = 'DROP TABLE x'", "'data.links_query' is not one SELECT"),
        ("url = 'postgresql://db/books'\npassword_env = 'A'\npassword_file = 'b'", "are both set"),
        ("url = 'sqlite:///shop.db'\npassword_env = 'A'", "SQLite has no password"),
        ("statement_timeout_s = 0", "'data.statement_timeout_s' is outside"),
    ],
)
def test_what_is_wrong_with_the_settings_is_said_when_they_are_read(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "partner.toml"
    path.write_text(f"domain = 'books'\n[data]\n{text}\n")

    with pytest.raises(ConfigError) as refused:
        ClientSettings.read(path)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)


def test_settings_without_a_database_are_fine() -> None:
    check_settings(url="", password_env="", password_file="", queries={"items_query": ""})
