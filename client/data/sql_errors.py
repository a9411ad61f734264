"""What a database says, in our words. Texts of drivers quote values, statements and addresses: none of them gets into an error."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shared.errors import ConfigError, DataError

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
_UNKNOWN_HOST = ("cannot be reached: its host name is unknown", "Check the host in 'data.url', and the name service of this machine.")
_TOO_LONG = (
    "did not answer in time",
    "It may be down or overloaded; the limits are 'data.connect_timeout_s' and 'data.statement_timeout_s'.",
)
_CLOSED = ("closed the connection before everything was read", _TRY_LATER)
_NO_UTF8 = ("holds text that is not UTF-8", "Mend the text, or leave the rows out by a query.")
_OTHER = ("cannot be read", "Try the query in the database's own shell.")
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


@contextlib.contextmanager
def in_our_words(where: str, *, connecting: bool = False) -> Iterator[None]:
    """Turns every failure of a driver into a `DataError`.

    Args:
        where: table or query, and database; for the message.
        connecting: whether no connection stood yet.
    """
    said: tuple[str, str] | None = None
    try:
        yield
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
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "psycopg":
            raise
        said = _of_driver(error, connecting)
    if said is not None:  # raised here, so that no text of a driver hangs on it
        raise DataError(f"{where} {said[0]}", do=said[1])


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
    """libpq gives no state here. The connection says whether a password was asked for; of the text only known words are looked for."""
    connection = getattr(error, "pgconn", None)
    text = str(error)
    if any(words in text for words in ("resolve host", "translate host name", "Name or service not known")):
        return _UNKNOWN_HOST
    if 'FATAL:  database "' in text and "does not exist" in text:
        return _STATES["3D000"]
    if connection is not None and (connection.needs_password or connection.used_password):
        return _STATES["28"]
    if "FATAL:  role" in text or "pg_hba.conf" in text or "authentication failed" in text:
        return _STATES["28"]
    if "timeout expired" in text:
        return _TOO_LONG
    if "invalid connection option" in text:
        raise ConfigError("'data.url' holds an option that PostgreSQL's client does not know", do="Check what stands behind its '?'.")
    return _DOWN
