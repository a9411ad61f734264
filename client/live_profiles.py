"""What was observed of users since their data were prepared: interactions, feedback, and links that a service was told of.

A service writes one line for each observation, and the next answer reads it: nothing is trained, and training never reads it. Lines are
only ever added; what is beyond the bounds goes, the oldest first. Users stand under their keyed pseudonyms, items under the partner's own
ids, because positions in a catalogue change when it is prepared again.

An observation that was acknowledged is on the disk: it survives the end of the process and of the machine. Any number of processes may
write and read at once (SQLite, write-ahead log, 0600). Forgotten users are looked up in the register inside the transaction that writes,
and `forget` waits for that transaction, so nothing of theirs can slip in behind an erasure; what is deleted is overwritten.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from shared.errors import StateError, StorageError, UsageError

from .data.pseudonyms import PSEUDONYM_BYTES, load_or_create_key, pseudonym
from .keys import check_partner_name
from .settings import ClientSettings

FILE = "live.sqlite"
INTERACTION, LIKED, DISMISSED = "interaction", "liked", "dismissed"
SIGNS = {INTERACTION: 1, LIKED: 1, DISMISSED: -1}
"""What can be observed, and the sign of its evidence."""

MOST_OF_A_USER = 500
MOST = 2_000_000
"""Observations that are kept: of one user, and among the latest so many of all."""

MOST_LINKS = 2_000_000
MOST_ID_BYTES = 512
CLOCK_SKEW_S = 3600

_VERSION = 1
_PATIENCE_S = 30.0
_KINDS = list(SIGNS)
_LINK = re.compile(r"[A-Za-z0-9_.:~+/=\-]{1,64}")
_SCHEMA = """
CREATE TABLE observations (
    number INTEGER PRIMARY KEY, user BLOB NOT NULL, item TEXT NOT NULL, kind INTEGER NOT NULL, at INTEGER NOT NULL,
    UNIQUE (user, item, kind, at));
CREATE TABLE links (
    user BLOB NOT NULL, partner TEXT NOT NULL, link_id TEXT NOT NULL, PRIMARY KEY (user, partner), UNIQUE (partner, link_id)) WITHOUT ROWID;
"""


class ForgottenUser(UsageError):
    """The user was forgotten here: nothing of theirs is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was observed of one user, earliest first: n items, what happened to each, and when.

    Attributes:
        items: the partner's own item ids; one may occur more than once.
        kinds: keys of `SIGNS`.
        times: unix seconds.
    """

    items: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    times: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def signs(self) -> np.ndarray:
        """(n,) int8: 1 or -1."""
        return np.array([SIGNS[kind] for kind in self.kinds], dtype=np.int8)


NOTHING = Observed()


@dataclass(slots=True, kw_only=True)
class _Line:
    """A connection, and who may use it now."""

    database: sqlite3.Connection | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class LiveProfiles:
    """One domain's observations. Nothing is opened before it is needed, and no file is made by reading; any thread may call.

    Args:
        path: the file; made by the first observation.
        key: the partner's pseudonym key.
        register: the partner's register, which knows who was forgotten; it need not be there.
    """

    def __init__(self, path: Path, *, key: bytes, register: Path) -> None:
        self._path, self._key, self._register = Path(path), key, Path(register)
        self._reader, self._writer = _Line(), _Line()  # whoever reads does not wait for a disk

    @classmethod
    def of(cls, settings: ClientSettings) -> Self:
        """Raises DataError where the partner's pseudonym key cannot be read."""
        key = load_or_create_key(settings.at_home("keys") / "pseudonyms.key")
        return cls(settings.at_home(FILE), key=key, register=settings.at_home("register.sqlite"))

    def close(self) -> None:
        """A later call opens the file again."""
        for line in (self._reader, self._writer):
            with line.lock:
                if line.database is not None:
                    line.database.close()
                line.database = None

    def observe(self, user: str, item: str, kind: str, *, at: int | None = None) -> bool:
        """Keeps an observation. It is on the disk when this returns.

        Args:
            user, item: the partner's own ids.
            kind: a key of `SIGNS`.
            at: unix seconds; now when left out. The same observation of the same second changes nothing, so a call may be repeated.
        Returns:
            Whether it is new.
        Raises:
            UsageError: naming the field that cannot be.
            ForgottenUser: nothing is kept of this user.
            StorageError: it could not be written; nothing was kept.
            StateError: the file is damaged.
        """
        who, now = self._name("user", user), int(time.time())
        _check_id("item", item)
        if kind not in SIGNS:
            raise UsageError("'kind' is no kind of observation", do=f"It is one of: {', '.join(SIGNS)}.")
        at = now if at is None else at
        if not 0 <= at <= now + CLOCK_SKEW_S:
            raise UsageError("'at' is not in the past", do="Give unix seconds, or leave it out.")
        with self._writing(who) as database:
            new = database.execute(
                "INSERT INTO observations (user, item, kind, at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (who, item, _KINDS.index(kind), at),
            ).rowcount
            if new:
                _prune(database, who)
        return bool(new)

    def link(self, user: str, partner: str, link_id: str) -> bool:
        """Keeps the token that a user here and one at a partner share, until the partner's file of links has it too.

        Returns:
            Whether it is new.
        Raises:
            UsageError, ForgottenUser, StorageError, StateError: as `observe`.
        """
        return self._link(user, partner, link_id, keep=True)

    def check_link(self, user: str, partner: str, link_id: str) -> None:
        """Raises what `link` would raise, and keeps nothing."""
        self._link(user, partner, link_id, keep=False)

    def _link(self, user: str, partner: str, link_id: str, *, keep: bool) -> bool:
        who = self._name("user", user)
        check_partner_name(partner)
        if _LINK.fullmatch(link_id) is None:
            raise UsageError("'link_id' is not a token of at most 64 letters, digits and -_.:~+/=")
        with self._writing(who) as database:
            found = database.execute("SELECT user FROM links WHERE partner = ? AND link_id = ?", (partner, link_id)).fetchone()
            if found is not None and found[0] != who:
                raise UsageError("'link_id' is another user's", do="A link belongs to one user.")
            if found is None and database.execute("SELECT count(*) FROM links").fetchone()[0] >= MOST_LINKS:
                raise StorageError(f"'{FILE}' holds as many links as it may", do="Put the links into your file of links, then delete it.")
            if found is None and keep:
                database.execute(
                    "INSERT INTO links VALUES (?, ?, ?) ON CONFLICT (user, partner) DO UPDATE SET link_id = excluded.link_id",
                    (who, partner, link_id),
                )
        return found is None

    def of_user(self, user: str) -> Observed:
        """What was observed of one user, by the partner's own id."""
        return self.of_pseudonyms(pseudonym(self._key, [user]))[0]

    def of_pseudonyms(self, users: np.ndarray) -> list[Observed]:
        """What was observed of each of (n, 16) users, in the order given.

        Raises:
            StorageError: the file cannot be read now.
            StateError: it is damaged.
        """
        with self._reading() as database:
            if database is None:
                return [NOTHING] * len(users)
            query = "SELECT item, kind, at FROM observations WHERE user = ? ORDER BY at, number"
            found = [database.execute(query, (bytes(who),)).fetchall() for who in users]
        return [_observed(rows) if rows else NOTHING for rows in found]

    def links_of(self, user: str) -> dict[str, str]:
        """Partner -> link id of one user, by the partner's own id."""
        return self.links_of_pseudonyms(pseudonym(self._key, [user]))[0]

    def links_of_pseudonyms(self, users: np.ndarray) -> list[dict[str, str]]:
        """Partner -> link id of each of (n, 16) users, in the order given."""
        with self._reading() as database:
            if database is None:
                return [{} for _ in users]
            query = "SELECT partner, link_id FROM links WHERE user = ? ORDER BY partner"
            return [dict(database.execute(query, (bytes(who),)).fetchall()) for who in users]

    def forgotten(self, users: Sequence[str]) -> list[bool]:
        """Which users, by the partner's own ids, were forgotten here, as the register has it at this moment.

        Raises:
            StorageError, StateError: it cannot be read.
        """
        with self._errors():
            return self._are_forgotten([bytes(who) for who in pseudonym(self._key, users)])

    def pseudonyms(self) -> np.ndarray:
        """(n, 16) uint8: everybody of whom something is kept, sorted."""
        with self._reading() as database:
            if database is None:
                return np.zeros((0, PSEUDONYM_BYTES), dtype=np.uint8)
            rows = database.execute("SELECT user FROM observations UNION SELECT user FROM links ORDER BY 1").fetchall()
        return np.frombuffer(b"".join(row[0] for row in rows), dtype=np.uint8).reshape(-1, PSEUDONYM_BYTES)

    def forget(self, users: np.ndarray) -> None:
        """Deletes and overwrites everything of (n, 16) users. They have to be marked in the register before.

        Raises:
            StorageError: it could not be done; call again.
        """
        if not self._path.is_file():
            return
        with self._writing(None) as database:
            for table in ("observations", "links"):
                database.executemany(f"DELETE FROM {table} WHERE user = ?", [(bytes(who),) for who in users])
        with self._writer.lock, self._errors():
            until = time.monotonic() + _PATIENCE_S
            # the log still holds what was deleted: it is emptied too, once nobody reads from it
            while self._open(self._writer).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                if time.monotonic() > until:
                    raise StorageError(f"the log of '{FILE}' cannot be emptied now", do="Another process reads it: call again.")
                time.sleep(0.05)

    def _name(self, what: str, user: str) -> bytes:
        _check_id(what, user)
        return bytes(pseudonym(self._key, [user])[0])

    @contextlib.contextmanager
    def _writing(self, who: bytes | None) -> Iterator[sqlite3.Connection]:
        """A transaction; refused for a user who was forgotten."""
        with self._writer.lock, self._errors():
            database = self._open(self._writer)
            database.execute("BEGIN IMMEDIATE")
            try:
                if who is not None and self._are_forgotten([who])[0]:
                    raise ForgottenUser("the user was forgotten here: nothing is kept", do="Take the user out of your files and callers.")
                yield database
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """None where there is no file."""
        with self._reader.lock, self._errors():
            yield self._open(self._reader) if self._reader.database is not None or self._path.is_file() else None

    def _are_forgotten(self, users: Sequence[bytes]) -> list[bool]:
        """Asked of the register itself, each time: an erasure by another process counts from its first step on."""
        if not self._register.is_file():
            return [False] * len(users)
        register = sqlite3.connect(f"{self._register.absolute().as_uri()}?mode=ro", uri=True, timeout=_PATIENCE_S)
        try:
            query = "SELECT 1 FROM forgotten_users WHERE mark = ?"
            return [register.execute(query, (who,)).fetchone() is not None for who in users]
        finally:
            register.close()

    def _open(self, line: _Line) -> sqlite3.Connection:
        if line.database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(self._path, 0o600)  # before there is anything in it: log and index beside it get the same mode
            database = sqlite3.connect(self._path, isolation_level=None, timeout=_PATIENCE_S, check_same_thread=False)
            try:
                _make(database)
            except BaseException:
                database.close()
                raise
            line.database = database
        return line.database

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            full = error.sqlite_errorname in {"SQLITE_FULL", "SQLITE_IOERR_WRITE"}
            what = f"no space left while writing '{FILE}'" if full else f"'{FILE}' cannot be used now"
            raise StorageError(what, do="Free some space, check who may write to it, then try again.") from None
        except sqlite3.DatabaseError:
            do = "Move it away: what was observed since the last preparation is lost with it, and nothing else."
            raise StateError(f"'{FILE}' is damaged, or is something else", do=do) from None
        except OSError:
            raise StorageError(f"'{FILE}' cannot be written", do="Check the folder and who may write to it.") from None


def _make(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA secure_delete = ON")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("BEGIN IMMEDIATE")  # asked inside it: another process may be making the file at this moment
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION and (version != 0 or database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
            raise StateError(f"'{FILE}' was written by another version", do="Use that version, or move the file away.")
        if version == 0:
            for statement in _SCHEMA.split(";")[:-1]:
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")
        database.execute("COMMIT")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    until = time.monotonic() + _PATIENCE_S
    while database.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            database.execute("PRAGMA journal_mode = WAL")  # kept in the file; nobody else may be writing at that moment
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _prune(database: sqlite3.Connection, who: bytes) -> None:
    """Numbers only grow, so that the window over all of them costs no counting."""
    database.execute("DELETE FROM observations WHERE number <= (SELECT max(number) FROM observations) - ?", (MOST,))
    database.execute(
        "DELETE FROM observations WHERE number IN (SELECT number FROM observations WHERE user = ? ORDER BY number DESC LIMIT -1 OFFSET ?)",
        (who, MOST_OF_A_USER),
    )


def _observed(rows: list[tuple[str, int, int]]) -> Observed:
    return Observed(items=tuple(r[0] for r in rows), kinds=tuple(_KINDS[r[1]] for r in rows), times=tuple(r[2] for r in rows))


def _check_id(what: str, value: str) -> None:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0
    if not value.strip() or not 0 < size <= MOST_ID_BYTES or "\0" in value:
        raise UsageError(f"'{what}' is empty, no text, or longer than {MOST_ID_BYTES} bytes", do="Give the id as it stands in your files.")
