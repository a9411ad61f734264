"""The register: which passports went out, which came in, and what was erased. Local to the partner.

It is not the ledger: what stands in here follows from who is linked, so it is never sent, never hashed into the ledger's head and never
part of what an auditor is handed. The file belongs to its owner (0600), and what is deleted from it is overwritten.

Whoever was forgotten is remembered by a keyed mark alone (`client.suppression`). The marks are what keeps a forgotten user out of training
for good, so a register is restored from a copy, never thrown away.
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

from shared.errors import DataError, PassportError, StorageError

from .data.pseudonyms import load_or_create_key
from .passports import ImportedPassports
from .private_terms import keep_terms
from .register_schema import make_or_upgrade
from .settings import ClientSettings
from .suppression import Marker, Marks, Witness

FOREVER = 2**62
"""Later than any passport can be issued (`passports.Statement`)."""

EVERYONE = ""
"""No domain's name: an erasure that holds for passports of every source."""

_KEEP = (
    "Restore it from a copy: it holds the marks of forgotten users and the private draws. Where there never was either, move it away and "
    "import the passports again."
)


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
        epsilon: of private ones, of each person's one draw; None for exact ones.
        passports: how many.
        issued: unix seconds of the latest.
        expires: unix seconds at which the last of them expires.
    """

    direction: str
    partner: str
    space_version: str
    epsilon: float | None
    passports: int
    issued: int
    expires: int


class Register:
    """A partner's local register of passports and erasures.

    Args:
        path: the file; made where there is none.
        marker: makes and compares marks; without one nothing can be erased, nor taken in once something was.
    Raises:
        PassportError: the file is something else, damaged, or written by another version.
        DataError: its marks were made with another key.
        StorageError: no space left, or the folder cannot be written.
    """

    def __init__(self, path: Path, marker: Marker | None = None) -> None:
        self.path = Path(path)
        self._marker = marker
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(self.path, 0o600)
            self._database = sqlite3.connect(self.path, isolation_level=None, timeout=30.0)
            try:
                make_or_upgrade(self._database, marker, name=self.path.name)
            except BaseException:
                self._database.close()
                raise

    @classmethod
    def of(cls, settings: ClientSettings) -> Register:
        """A domain's register, with its key at hand."""
        key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
        return cls(settings.at_home("register.sqlite"), Marker(key))

    def __enter__(self) -> Register:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def record_export(
        self, *, target: str, link_ids: Sequence[str], space_version: str, issued: int, expires: int, epsilon: float | None = None
    ) -> None:
        """Notes passports that go out, before they do; ``epsilon`` is that of private ones.

        Where an exact one of the same link went out before, it stays exact: what was shown is not hidden by what comes later.
        """
        rows = [(target, link_id, space_version, issued, expires, epsilon) for link_id in link_ids]
        with self.transaction() as database:
            database.executemany(
                "INSERT INTO passports_out VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET space_version = excluded.space_version,"
                " issued = excluded.issued, expires = excluded.expires,"
                " epsilon = CASE WHEN passports_out.epsilon IS NULL THEN NULL ELSE excluded.epsilon END",
                rows,
            )

    def record_import(self, passports: ImportedPassports) -> int:
        """Takes in passports; the same file twice changes nothing, and an older passport never replaces a newer one.

        Links that were erased after the passports were issued stay erased; those of forgotten users always do.

        Returns:
            Number of passports that are new or renewed.
        """
        terms = passports.private
        terms_digest = "" if terms is None else terms.digest
        common = (passports.source, passports.space_version, passports.encoder_version, passports.issued, passports.expires, terms_digest)
        vectors = np.ascontiguousarray(passports.vectors, dtype="<f4")
        with self.transaction() as database:
            marks = self._marks_if_any_erased(database, passports.link_ids)
            rows = [
                (*common, link_id, vector.tobytes(), mark, passports.source, passports.issued)
                for link_id, vector, mark in zip(passports.link_ids, vectors, marks, strict=True)
            ]
            if terms is not None:
                keep_terms(database, passports.source, terms)
            before = database.total_changes
            database.executemany(
                "INSERT INTO passports_in (source, space_version, encoder_version, issued, expires, terms, link_id, vector)"
                " SELECT ?, ?, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS"
                " (SELECT 1 FROM erased_links WHERE mark = ? AND source IN ('', ?) AND issued_until >= ?)"
                " ON CONFLICT DO UPDATE SET space_version = excluded.space_version, encoder_version = excluded.encoder_version,"
                " issued = excluded.issued, expires = excluded.expires, terms = excluded.terms, vector = excluded.vector"
                " WHERE excluded.issued > passports_in.issued",
                rows,
            )
            return database.total_changes - before

    def imported(self, source: str, *, space_version: str, now: int) -> tuple[list[str], np.ndarray]:
        """The valid exact passports of one source, in one order whatever order they came in.

        Args:
            source: domain name.
            space_version: the interest space in use; passports of another one are left out.
            now: unix seconds; expired passports are left out.
        Returns:
            n link ids, sorted, and their vectors (n, d) float32; (0, 0) where there is none.
        """
        with self._errors():
            rows = self._database.execute(
                "SELECT link_id, vector FROM passports_in"
                " WHERE source = ? AND space_version = ? AND expires > ? AND terms = '' ORDER BY link_id",
                (source, space_version, now),
            ).fetchall()
        if not rows:
            return [], np.zeros((0, 0), dtype=np.float32)
        if len({len(vector) for _, vector in rows}) != 1 or len(rows[0][1]) % 4:
            raise PassportError("the register holds vectors of different lengths for one source", do=_KEEP)
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype="<f4").reshape(len(rows), -1)
        return [link_id for link_id, _ in rows], vectors.astype(np.float32)

    def sources(self) -> list[str]:
        """Domains whose passports are in the register, sorted."""
        with self._errors():
            return [row[0] for row in self._database.execute("SELECT DISTINCT source FROM passports_in ORDER BY source")]

    def overview(self) -> list[Summary]:
        """What went out and came in, by partner and interest space; for the partner's own eyes."""
        grouped = "count(*), max(issued), max(expires) FROM {} GROUP BY 2, 3, 4 ORDER BY 2, 6"
        received = "passports_in LEFT JOIN terms_in USING (source, terms)"
        with self._errors():
            rows = [
                *self._database.execute("SELECT 'out', target, space_version, epsilon, " + grouped.format("passports_out")),
                *self._database.execute(
                    "SELECT 'in', source, passports_in.space_version, epsilon, " + grouped.format(received),
                ),
            ]
        return [Summary(**dict(zip(Summary.__slots__, row, strict=True))) for row in rows]

    def exported(self, target: str) -> Issued:
        """What went out to one target, sorted by link id."""
        with self._errors():
            rows = self._database.execute(
                "SELECT link_id, issued, expires FROM passports_out WHERE target = ? ORDER BY link_id", (target,)
            ).fetchall()
        return Issued(link_ids=[r[0] for r in rows], issued=[r[1] for r in rows], expires=[r[2] for r in rows])

    def erase(self, link_ids: Sequence[str], *, at: int, source: str = EVERYONE) -> None:
        """Forgets everything about some links; passports issued until then are not taken in again.

        Args:
            link_ids: the links.
            at: unix seconds; `FOREVER` refuses them for good.
            source: only what came from this domain.
        """
        with self.transaction() as database:
            self._mark_links(database, link_ids, at=at, source=source)
            self._drop_erased(database)

    def mark(self, users: np.ndarray, link_ids: Sequence[str], *, at: int) -> None:
        """Marks users and their links as forgotten, for good, and notes that their traces are still to be removed.

        Args:
            users: (n, 16) marks.
            link_ids: their links with any partner.
            at: unix seconds.
        """
        with self.transaction() as database:
            rows = [(bytes(mark),) for mark in users]
            database.executemany("INSERT INTO forgotten_users VALUES (?) ON CONFLICT DO NOTHING", rows)
            self._mark_links(database, link_ids, at=FOREVER, source=EVERYONE)
            database.execute("INSERT INTO unfinished VALUES (?)", (at,))

    def begin_erasure(self, link_ids: Sequence[str], *, issued_until: int, source: str, at: int) -> None:
        """Marks links whose passports from one source are to go, and notes that this is unfinished."""
        with self.transaction() as database:
            self._mark_links(database, link_ids, at=issued_until, source=source)
            database.execute("INSERT INTO unfinished VALUES (?)", (at,))

    def drop_erased(self) -> None:
        """Deletes every passport that was erased; they are found by their marks, so a second call finishes what a first one began."""
        with self.transaction() as database:
            self._drop_erased(database)

    def finished(self) -> None:
        """Nothing is left to be removed."""
        with self.transaction() as database:
            database.execute("DELETE FROM unfinished")

    def is_unfinished(self) -> bool:
        """Whether something was marked whose traces may still be there."""
        with self._errors():
            return self._database.execute("SELECT 1 FROM unfinished LIMIT 1").fetchone() is not None

    def marks(self) -> Marks:
        """Users and links that are left out for good."""
        with self._errors():
            users = [row[0] for row in self._database.execute("SELECT mark FROM forgotten_users ORDER BY mark")]
            links = self._database.execute("SELECT mark FROM erased_links WHERE source = ? AND issued_until = ?", (EVERYONE, FOREVER))
            return Marks.of(users, [row[0] for row in links], self.marker) if users else Marks.nobody()

    def erased_out(self) -> dict[str, Issued]:
        """By target, the passports that went out and were erased since, as long as `drop_erased` has not been called."""
        with self._errors():
            return self._erased_out(self._database)

    def erased_among(self, link_ids: Sequence[str], *, source: str, issued: int) -> np.ndarray:
        """(n,) bool: which passports of a file are erased."""
        with self._errors():
            marks = self._marks_if_any_erased(self._database, link_ids)
            query = "SELECT 1 FROM erased_links WHERE mark = ? AND source IN ('', ?) AND issued_until >= ?"
            found = (self._database.execute(query, (mark, source, issued)).fetchone() is not None for mark in marks)
            return np.fromiter(found, dtype=bool, count=len(link_ids))

    @property
    def marker(self) -> Marker:
        """What makes this register's marks; raises DataError where it was opened without a key."""
        if self._marker is None:
            raise DataError(
                "the register holds marks, and the key they were made with is not at hand", do="Open it with the partner's key."
            )
        return self._marker

    def hold_to_key(self, database: sqlite3.Connection) -> None:
        """From now on the file opens with this key alone: with another one everybody it knows would be a stranger."""
        database.execute("INSERT INTO marked_with VALUES (?) ON CONFLICT DO NOTHING", (self.marker.check,))

    def _marks_if_any_erased(self, database: sqlite3.Connection, link_ids: Sequence[str]) -> Sequence[bytes]:
        """Marks to compare with; empty ones where nothing was ever erased, so that nobody needs a key."""
        if database.execute("SELECT 1 FROM erased_links LIMIT 1").fetchone() is None:
            return [b""] * len(link_ids)
        return self.marker.links(link_ids)

    def _mark_links(self, database: sqlite3.Connection, link_ids: Sequence[str], *, at: int, source: str) -> None:
        self.hold_to_key(database)
        database.executemany(
            "INSERT INTO erased_links VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET issued_until = max(issued_until, excluded.issued_until)",
            [(source, mark, at) for mark in self.marker.links(link_ids)],
        )

    def _erased_out(self, database: sqlite3.Connection) -> dict[str, Issued]:
        rows = database.execute("SELECT target, link_id, issued, expires FROM passports_out ORDER BY target, link_id").fetchall()
        erased = dict(database.execute("SELECT mark, issued_until FROM erased_links WHERE source = ?", (EVERYONE,)))
        found: dict[str, list[tuple[str, int, int]]] = {}
        marks = self.marker.links([row[1] for row in rows]) if rows and erased else [b""] * len(rows)
        for (target, link_id, issued, expires), mark in zip(rows, marks, strict=True):
            if issued <= erased.get(mark, -1):
                found.setdefault(target, []).append((link_id, issued, expires))
        return {
            target: Issued(link_ids=[r[0] for r in of], issued=[r[1] for r in of], expires=[r[2] for r in of])
            for target, of in found.items()
        }

    def _drop_erased(self, database: sqlite3.Connection) -> None:
        out = [(target, link_id) for target, gone in self._erased_out(database).items() for link_id in gone.link_ids]
        database.executemany("DELETE FROM passports_out WHERE target = ? AND link_id = ?", out)
        database.execute("UPDATE private_draws SET vector = NULL WHERE mark IN (SELECT mark FROM forgotten_users)")
        rows = database.execute("SELECT source, link_id, issued FROM passports_in").fetchall()
        marks = self._marks_if_any_erased(database, [row[1] for row in rows])
        erased = {(row[0], row[1]): row[2] for row in database.execute("SELECT source, mark, issued_until FROM erased_links")}
        gone = [
            (source, link_id)
            for (source, link_id, issued), mark in zip(rows, marks, strict=True)
            if issued <= max(erased.get((EVERYONE, mark), -1), erased.get((source, mark), -1))
        ]
        database.executemany("DELETE FROM passports_in WHERE source = ? AND link_id = ?", gone)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing of what the block writes; one at a time, among processes too. When it ends it is on the disk."""
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """For the tables that have modules of their own."""
        with self._errors():
            yield self._database

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
            raise PassportError(f"'{self.path.name}' is not a register, or is damaged", do=_KEEP) from None
        except OSError:
            raise StorageError(f"'{self.path.name}' cannot be written", do="Check the folder and who may write to it.") from None


def marks_of(settings: ClientSettings) -> Marks:
    """Who is left out of everything in a domain.

    Raises:
        StateError: the register holds fewer marks than were made: it is missing, or older than it was.
        DataError: its marks were made with another key.
    """
    marks = Marks.nobody()
    if settings.at_home("register.sqlite").is_file():
        with Register.of(settings) as register:
            marks = register.marks()
    witness_of(settings).check(marks)
    return marks


def witness_of(settings: ClientSettings) -> Witness:
    return Witness(settings.at_home("keys") / "forgotten.json")
