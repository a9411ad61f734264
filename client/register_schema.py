"""The tables of the register, and how a file of an earlier version becomes one of this."""

from __future__ import annotations

import contextlib
import sqlite3

from shared.errors import DataError, PassportError

from .suppression import Marker

VERSION = 3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS passports_out (
    target TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL, issued INTEGER NOT NULL, expires INTEGER NOT NULL,
    epsilon REAL, PRIMARY KEY (target, link_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS passports_in (
    source TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL, encoder_version TEXT NOT NULL,
    issued INTEGER NOT NULL, expires INTEGER NOT NULL, vector BLOB NOT NULL, terms TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, link_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS terms_in (
    source TEXT NOT NULL, terms TEXT NOT NULL, epsilon REAL NOT NULL, space_version TEXT NOT NULL,
    text_dimension INTEGER NOT NULL, dimension INTEGER NOT NULL, arrays BLOB NOT NULL, PRIMARY KEY (source, terms)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS private_terms (
    one INTEGER PRIMARY KEY CHECK (one = 1), epsilon REAL NOT NULL, space_version TEXT NOT NULL,
    text_dimension INTEGER NOT NULL, dimension INTEGER NOT NULL, arrays BLOB NOT NULL, asked INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS private_draws (mark BLOB PRIMARY KEY, vector BLOB, drawn INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forgotten_users (mark BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased_links (
    source TEXT NOT NULL, mark BLOB NOT NULL, issued_until INTEGER NOT NULL, PRIMARY KEY (source, mark)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marked_with (key_check BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unfinished (at INTEGER NOT NULL);
"""
_ADDED = (("passports_out", "epsilon", "REAL"), ("passports_in", "terms", "TEXT NOT NULL DEFAULT ''"))
"""Columns that tables of version 2 lack."""


def make_or_upgrade(database: sqlite3.Connection, marker: Marker | None, *, name: str) -> None:
    """Gives an empty file the tables, and a file of version 1 or 2 what it lacks; anything else is refused.

    Raises:
        PassportError: it is the file of something else, or of another version.
        DataError: its marks were made with another key, or it is of version 1 and the key for its erasures is not at hand.
    """
    database.execute("PRAGMA secure_delete = ON")
    database.execute("PRAGMA synchronous = EXTRA")  # a draw that was sent has to be there after a power cut, its folder's entry included
    if _version(database) != VERSION:
        _upgrade(database, marker, name)
    if marker is not None:
        made_with = database.execute("SELECT key_check FROM marked_with").fetchall()
        if made_with and made_with != [(marker.check,)]:
            raise DataError(
                "the register knows users by another pseudonym key: who was forgotten, and whose private passports were drawn",
                do="Restore home/keys and home/register.sqlite from one copy, the newest.",
            )


def _upgrade(database: sqlite3.Connection, marker: Marker | None, name: str) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = _version(database)  # asked again: another process may have been first
        if version not in (0, 1, 2, VERSION) or (version == 0 and tables) or (version in (1, 2) and "passports_in" not in tables):
            raise PassportError(
                f"'{name}' is not a register of this version", do="Give the path of the register, or use the version that wrote it."
            )
        for statement in _SCHEMA.split(";")[:-1]:
            database.execute(statement)
        for table, column, kind in _ADDED:
            if column not in {row[1] for row in database.execute(f"PRAGMA table_info({table})")}:
                database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        if "erasures" in tables:  # of version 1: link ids in clear
            _take_over(database, marker)
        database.execute(f"PRAGMA user_version = {VERSION}")
        database.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _take_over(database: sqlite3.Connection, marker: Marker | None) -> None:
    rows = database.execute("SELECT link_id, erased FROM erasures").fetchall()
    if rows:
        if marker is None:
            raise DataError("the register is of an earlier version, and holds erasures", do="Open it with the partner's key.")
        database.execute("INSERT INTO marked_with VALUES (?)", (marker.check,))
        marks = zip(marker.links([row[0] for row in rows]), rows, strict=True)
        database.executemany("INSERT INTO erased_links VALUES ('', ?, ?)", [(mark, erased) for mark, (_, erased) in marks])
    database.execute("DROP TABLE erasures")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])
