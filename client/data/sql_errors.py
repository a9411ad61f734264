"""What a database says, in our words. Texts of drivers quote values, statements and addresses: none of them gets into an error."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shared.errors import DataError

Result = TypeVar("Result")
_TRY_LATER = "Nothing was changed here: try again when it answers."
_STATES = {
    "28": (
        "refused the user or the password",
        "Check user and database in 'data.url', and what 'data.password_env' or 'data.password_file' holds.",
    ),
    "3D000": ("does not exist", "Check the name of the database in 'data.url'."),
    "3F000": ("has no such schema", "Check the names of the tables in [data]."),
    "42P01": ("has no such table", "Check the names of the tables in [data]."),
    "42703": ("has no such column", "Check the names of the columns in [data]."),
    "42501": ("does not let this user read it", "Grant SELECT on the table (or on the columns that are read) to the user."),
    "42": ("does not understand the query", "Try the query in the database's own shell; it stands inside another SELECT, as a subquery."),
    "0A": ("does not admit the query", "Only what reads may be in it: no WITH that writes."),
    "25006": ("was asked to write, and refused", "Only what reads may be in a query."),
    "57014": ("took longer than 'data.statement_timeout_s'", "Raise the limit, or let the query need less; an index may help."),
    "57": ("is shutting down or starting", _TRY_LATER),
    "53300": ("has too many connections", _TRY_LATER),
    "53": ("has run out of memory, disk or connections", "Ask whoever looks after it."),
    "40": ("ended the transaction", "On a replica, let it wait longer for reading queries (max_standby_streaming_delay); then try again."),
    "22": ("met a value that the query cannot compute with", "Mend the query or the view: a cast or a division of it fails."),
    "25": ("ended the transaction", "Its idle_in_transaction_session_timeout may be too short."),
    "08": ("closed the connection", _TRY_LATER),
    "XX": ("is damaged, or has a defect", "Ask whoever looks after it."),
}
_DOWN = ("cannot be reached: is it running, and does it accept connections from here", "Check host and port in 'data.url'.")
_UNKNOWN_OPTION = ("cannot be asked: 'data.url' holds an option that libpq does not know", "Check what stands behind its '?'.")
_UNKNOWN_HOST = ("cannot be reached: its host name is unknown", "Check the host in 'data.url', and the name service of this machine.")
_REFUSED = ("refused the connection", "User, password or name of the database may be wrong, or it has too many connections.")
_TOO_LONG = (
    "did not answer in time",
    "It may be down or overloaded; the limits are 'data.connect_timeout_s' and 'data.statement_timeout_s'.",
)
_CLOSED = ("closed the connection before everything was read", _TRY_LATER)
_NO_UTF8 = ("holds text that is not UTF-8", "Mend the text, or leave the rows out by a query.")
_OTHER = ("cannot be read", "Try the query in the database's own shell.")
_WORDS = {
    "resolve host": _UNKNOWN_HOST,
    "translate host name": _UNKNOWN_HOST,
    "Name or service not known": _UNKNOWN_HOST,
    "timeout expired": _TOO_LONG,
    "invalid connection option": _UNKNOWN_OPTION,
    "authentication failed": _STATES["28"],
    "pg_hba.conf": _STATES["28"],
    "too many connections": _STATES["53300"],
    "too many clients": _STATES["53300"],
    "remaining connection slots": _STATES["53300"],
    "starting up": _STATES["57"],
    "shutting down": _STATES["57"],
    "certificate": ("shows a certificate that is not trusted, or asks for one", "Check the ssl options behind the '?' of 'data.url'."),
    'FATAL:  database "': _STATES["3D000"],
    'FATAL:  role "': _STATES["28"],
}
_SQLITE = {
    sqlite3.SQLITE_BUSY: ("is locked by another program", _TRY_LATER),
    sqlite3.SQLITE_LOCKED: ("is locked by another program", _TRY_LATER),
    sqlite3.SQLITE_INTERRUPT: _STATES["57014"],
    sqlite3.SQLITE_NOTADB: ("is no SQLite database", "Check 'data.url'."),
    sqlite3.SQLITE_CORRUPT: _STATES["XX"],
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened",
        "Check the path in 'data.url' and who may read it, and its folder where it is in WAL mode.",
    ),
    sqlite3.SQLITE_READONLY: ("needs a recovery that a reader cannot do", "Open it once with the program that writes it."),
    sqlite3.SQLITE_PERM: ("cannot be opened", "Check who may read it."),
    sqlite3.SQLITE_AUTH: ("cannot be opened", "Check who may read it."),
    sqlite3.SQLITE_IOERR: ("cannot be read from the disk", "Check the disk."),
    sqlite3.SQLITE_ERROR: _STATES["42"],
}


def in_our_words(where: str, work: Callable[[], Result], *, connecting: bool = False) -> Result:
    """Does some work, and turns every failure of a driver into a `DataError`, on which nothing of the driver's hangs.

    Args:
        where: table or query, and database; for the message.
        connecting: whether no connection stood yet.
    """
    try:
        return work()
    except DBAPIError as error:
        said = _of_driver(error.orig, connecting)
    except SQLAlchemyError:
        said = _OTHER
    except sqlite3.Error as error:
        said = _of_driver(error, connecting)
    except UnicodeDecodeError:
        said = _NO_UTF8
    except TimeoutError:
        said = _TOO_LONG
    except OSError:
        said = _DOWN if connecting else _CLOSED
    except Exception as error:  # psycopg's own kinds, without importing what may not be installed; all others go on as they are
        if type(error).__module__.partition(".")[0] != "psycopg":
            raise
        said = _of_driver(error, connecting)
    raise DataError(f"{where} {said[0]}", do=said[1])  # here, where no error of a driver is its context


def _of_driver(error: BaseException | None, connecting: bool) -> tuple[str, str]:
    if isinstance(error, UnicodeDecodeError):
        return _NO_UTF8
    if isinstance(error, sqlite3.Error):
        if "decode to UTF-8" in str(error):
            return _NO_UTF8
        return _SQLITE.get((getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF, _OTHER)
    state = getattr(error, "sqlstate", None) or ""
    known = _STATES.get(state) or _STATES.get(state[:2])
    if known is not None:
        return known
    if state:
        return _OTHER
    if type(error).__name__ == "ConnectionTimeout":
        return _TOO_LONG
    if connecting:
        return _while_connecting(error)
    return _CLOSED if type(error).__name__ in ("OperationalError", "InterfaceError") else _OTHER


def _while_connecting(error: BaseException | None) -> tuple[str, str]:
    """libpq gives no state here, and a server may speak any language: known words are looked for, then whether a password was used."""
    text = str(error)
    said = next((said for words, said in _WORDS.items() if words in text), None)
    if said is not None:
        return said
    connection = getattr(error, "pgconn", None)
    if connection is not None and connection.needs_password:
        return _STATES["28"]
    return _REFUSED if connection is not None and connection.used_password else _DOWN
