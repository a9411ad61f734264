"""The register: which passports went out, which came in, and what was erased. Local to the partner.

It is not the ledger: what stands in here follows from who is linked, so it is never sent, never hashed into the ledger's head and never
part of what an auditor is handed. The file belongs to its owner (0600), and what is deleted from it is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from shared.errors import PassportError, StorageError

from .passports import ImportedPassports

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS passports_out (
    target TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL, issued INTEGER NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY (target, link_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS passports_in (
    source TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL, encoder_version TEXT NOT NULL,
    issued INTEGER NOT NULL, expires INTEGER NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (source, link_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (link_id TEXT PRIMARY KEY, erased INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """Passports that went out to one target: parallel lists."""

    link_ids: list[str]
    issued: list[int]
    expires: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Passports of one direction, partner and interest space.

    Attributes:
        direction: "out" or "in".
        partner: the other domain.
        space_version: the interest space they belong to.
        passports: how many.
        issued: unix seconds of the latest.
        expires: unix seconds at which the last of them expires.
    """

    direction: str
    partner: str
    space_version: str
    passports: int
    issued: int
    expires: int


class Register:
    """A partner's local register of passports and erasures.

    Args:
        path: the file; made where there is none.
    Raises:
        PassportError: the file is something else, damaged, or written by another version.
        StorageError: no space left, or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(self.path, 0o600)
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Register:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def record_export(self, *, target: str, link_ids: Sequence[str], space_version: str, issued: int, expires: int) -> None:
        """Notes passports that go out, before they do."""
        rows = [(target, link_id, space_version, issued, expires) for link_id in link_ids]
        with self._transaction() as database:
            database.executemany(
                "INSERT INTO passports_out VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " space_version = excluded.space_version, issued = excluded.issued, expires = excluded.expires",
                rows,
            )

    def record_import(self, passports: ImportedPassports) -> int:
        """Takes in passports; the same file twice changes nothing, and an older passport never replaces a newer one.

        Links that were erased after the passports were issued stay erased.

        Returns:
            Number of passports that are new or renewed.
        """
        common = (passports.source, passports.space_version, passports.encoder_version, passports.issued, passports.expires)
        vectors = np.ascontiguousarray(passports.vectors, dtype="<f4")
        rows = [
            (*common, link_id, vector.tobytes(), link_id, passports.issued)
            for link_id, vector in zip(passports.link_ids, vectors, strict=True)
        ]
        with self._transaction() as database:
            before = database.total_changes
            database.executemany(
                "INSERT INTO passports_in (source, space_version, encoder_version, issued, expires, link_id, vector)"
                " SELECT ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM erasures WHERE link_id = ? AND erased >= ?)"
                " ON CONFLICT DO UPDATE SET space_version = excluded.space_version, encoder_version = excluded.encoder_version,"
                " issued = excluded.issued, expires = excluded.expires, vector = excluded.vector"
                " WHERE excluded.issued > passports_in.issued",
                rows,
            )
            return database.total_changes - before

    def imported(self, source: str, *, space_version: str, now: int) -> tuple[list[str], np.ndarray]:
        """The valid passports of one source, in one order whatever order they came in.

        Args:
            source: domain name.
            space_version: the interest space in use; passports of another one are left out.
            now: unix seconds; expired passports are left out.
        Returns:
            n link ids, sorted, and their vectors (n, d) float32; (0, 0) where there is none.
        """
        with self._errors():
            rows = self._database.execute(
                "SELECT link_id, vector FROM passports_in WHERE source = ? AND space_version = ? AND expires > ? ORDER BY link_id",
                (source, space_version, now),
            ).fetchall()
        if not rows:
            return [], np.zeros((0, 0), dtype=np.float32)
        if len({len(vector) for _, vector in rows}) != 1 or len(rows[0][1]) % 4:
            raise PassportError(
                "the register holds vectors of different lengths for one source", do="Remove the register and import the passports again."
            )
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4").reshape(len(rows), -1)
        return [link_id for link_id, _ in rows], vectors.astype(np.float32)

    def sources(self) -> list[str]:
        """Domains whose passports are in the register, sorted."""
        with self._errors():
            return [row[0] for row in self._database.execute("SELECT DISTINCT source FROM passports_in ORDER BY source")]

    def overview(self) -> list[Summary]:
        """What went out and came in, by partner and interest space; for the partner's own eyes."""
        query = (
            "SELECT ?, {0}, space_version, count(*), max(issued), max(expires) FROM passports_{1} GROUP BY {0}, space_version ORDER BY 2, 5"
        )
        with self._errors():
            rows = [
                row
                for name, direction in (("target", "out"), ("source", "in"))
                for row in self._database.execute(query.format(name, direction), (direction,)).fetchall()
            ]
        return [
            Summary(direction=direction, partner=partner, space_version=space, passports=count, issued=issued, expires=expires)
            for direction, partner, space, count, issued, expires in rows
        ]

    def exported(self, target: str) -> Issued:
        """What went out to one target, sorted by link id."""
        with self._errors():
            rows = self._database.execute(
                "SELECT link_id, issued, expires FROM passports_out WHERE target = ? ORDER BY link_id", (target,)
            ).fetchall()
        return Issued(link_ids=[r[0] for r in rows], issued=[r[1] for r in rows], expires=[r[2] for r in rows])

    def erase(self, link_ids: Sequence[str], *, at: int) -> None:
        """Forgets everything about some links; passports issued until then are not taken in again.

        Args:
            link_ids: the links.
            at: unix seconds.
        """
        keys = [(link_id,) for link_id in link_ids]
        with self._transaction() as database:
            database.executemany("DELETE FROM passports_in WHERE link_id = ?", keys)
            database.executemany("DELETE FROM passports_out WHERE link_id = ?", keys)
            database.executemany(
                "INSERT INTO erasures VALUES (?, ?) ON CONFLICT DO UPDATE SET erased = max(erased, excluded.erased)",
                [(link_id, at) for link_id in link_ids],
            )

    def _prepare(self) -> None:
        self._database.execute("PRAGMA secure_delete = ON")
        self._database.execute("PRAGMA synchronous = FULL")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not self._database.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise PassportError(
                f"'{self.path.name}' is not a register of this version",
                do="Give the path of the register, or use the version that wrote it.",
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorname in {"SQLITE_FULL", "SQLITE_IOERR_WRITE"}
            what = "no space left while writing the register" if full else "the register cannot be used now"
            raise StorageError(
                what, do="Free some space, check who may write to it and that no other process holds it, then start again."
            ) from None
        except sqlite3.DatabaseError:
            raise PassportError(
                f"'{self.path.name}' is not a register, or is damaged", do="Move it away and import the passports again."
            ) from None
        except OSError:
            raise StorageError(f"'{self.path.name}' cannot be written", do="Check the folder and who may write to it.") from None
