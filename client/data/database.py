"""Where a partner's database is: its URL, checked, and its password, which is never a part of the URL.

Nothing here needs SQLAlchemy: the settings are checked on every machine. No text of an error holds a URL.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from shared.errors import ConfigError

_DRIVERS: dict[str, Literal["postgresql", "sqlite"]] = {
    "postgresql": "postgresql",
    "postgresql+psycopg": "postgresql",
    "sqlite": "sqlite",
}
_FORMS = "Write postgresql+psycopg://user@host/database, or sqlite:///file for a file beside partner.toml."
_PRIVATE = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A database by its URL.

    Attributes:
        kind: which database.
        url: as SQLAlchemy wants it; without a password.
        place: what errors call it: never the whole URL.
    """

    kind: Literal["postgresql", "sqlite"]
    url: str
    place: str


def address_of(url: str, base: Path = Path()) -> Address:
    """Checks a URL.

    Args:
        base: what a path of an SQLite file is relative to.
    Raises:
        ConfigError: the URL holds a password, names a database of another kind, or is none; never quotes it.
    """
    scheme, found, rest = url.partition("://")
    kind = _DRIVERS.get(scheme.lower())
    if not found or kind is None:
        raise ConfigError("'data.url' names no database that isthmus reads", do=_FORMS)
    authority, _, query = rest.partition("?")
    if ":" in authority.rpartition("@")[0] or any("password" in part.lower() for part in query.split("&")):
        raise ConfigError(
            "'data.url' holds a password: settings are copied and shown, passwords are not",
            do="Take it out, and name an environment variable in 'data.password_env' or a file (0600) in 'data.password_file'.",
        )
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
        options = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError:
        raise ConfigError("'data.url' cannot be read as a URL", do=_FORMS) from None
    if kind == "sqlite":
        path = rest[1:]
        if authority != rest or parts.netloc or not path or path == ":memory:":
            raise ConfigError("'data.url' names no file of SQLite", do=_FORMS)
        return Address(kind=kind, url=str((base / path).absolute()), place=f"database {Path(path).name}")
    if not parts.path.strip("/"):
        raise ConfigError("'data.url' names no database on its server", do=_FORMS)
    hosts = [value for name, value in options if name == "host"] or [parts.netloc.rpartition("@")[2]]
    server = f" on {', '.join(hosts)}" if hosts[0] else ""
    return Address(kind=kind, url=f"postgresql+psycopg://{rest}", place=f"database {parts.path.strip('/')}{server}")


def password_of(variable: str, file: str, base: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """The password from an environment variable or a file; None where neither is named.

    Raises:
        ConfigError: the variable is not set, or the file is missing, empty, or open to other users; names them, never the password.
    """
    if variable:
        found = environment.get(variable)
        if not found:
            raise ConfigError(
                f"the environment variable {variable} of 'data.password_env' is not set", do="Set it where the client starts."
            )
        return found
    if not file:
        return None
    path = base / file
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(
            f"the password file {path.name} of 'data.password_file' cannot be read", do="Check the path and its owner."
        ) from None
    if mode & _PRIVATE:
        raise ConfigError(f"the password file {path.name} is open to other users of this machine", do=f"chmod 600 '{path}'")
    lines = text.splitlines()
    if len(lines) != 1 or not lines[0]:
        raise ConfigError(f"the password file {path.name} does not hold one line, the password", do="Write the password and nothing else.")
    return lines[0]


def check_settings(*, url: str, password_env: str, password_file: str, queries: Mapping[str, str]) -> None:
    """What can be wrong with the keys of a database before anybody connects.

    Raises:
        ConfigError: names the key.
    """
    if not url:
        lone = next(
            (name for name, value in {**queries, "password_env": password_env, "password_file": password_file}.items() if value), ""
        )
        if lone:
            raise ConfigError(f"'data.{lone}' is set, and 'data.url' names no database", do=_FORMS)
        return
    if address_of(url).kind == "sqlite" and (password_env or password_file):
        raise ConfigError("a file of SQLite has no password", do="Take 'data.password_env' and 'data.password_file' out.")
    if password_env and password_file:
        raise ConfigError("'data.password_env' and 'data.password_file' are both set", do="Keep one of them.")
    for name, query in queries.items():
        if query:
            check_query(f"data.{name}", query)


def check_query(key: str, query: str) -> str:
    """One SELECT (or WITH ... SELECT), without the semicolon that may end it.

    The database refuses to write all the same: the query runs inside another SELECT, in a transaction that is read-only.

    Raises:
        ConfigError: there is more than one statement, or another one.

    >>> check_query("data.items_query", "SELECT ';' AS item_id; -- all")
    "SELECT ';' AS item_id"
    """
    bare, at = _without_texts(query)
    end = len(bare.rstrip("; \t\r\n\f\v"))
    if ";" in bare[:end] or re.match(r"[\s(]*(select|with)\b", bare, re.IGNORECASE) is None:
        raise ConfigError(f"'{key}' is not one SELECT", do="Write one SELECT (or WITH ... SELECT) that gives the columns.")
    return query[: at[end]]


def _without_texts(query: str) -> tuple[str, list[int]]:
    """The query with a blank for each comment and a mark for each quoted text, and where each character came from."""
    bare, at, here = [], [], 0
    while here < len(query):
        end = _end_of_text(query, here)
        bare.append(query[here] if end == here else " " if query[here] in "-/" else "_")
        at.append(here)
        here = max(end, here + 1)
    return "".join(bare), [*at, len(query)]


def _end_of_text(query: str, here: int) -> int:
    """Where a comment or a quoted text that begins here ends; the same place where none begins."""
    if query.startswith("--", here):
        end = query.find("\n", here)
        return len(query) if end < 0 else end + 1
    if query.startswith("/*", here):
        return _end_of_comment(query, here)
    mark = query[here]
    if mark == "$":
        tag = query[here : query.find("$", here + 1) + 1]
        if len(tag) >= 2 and (tag == "$$" or tag[1:-1].isidentifier()):
            end = query.find(tag, here + len(tag))
            return len(query) if end < 0 else end + len(tag)
    if mark not in "'\"":
        return here
    escapes = mark == "'" and here > 0 and query[here - 1] in "eE"
    end = here + 1
    while end < len(query):
        if escapes and query[end] == "\\":
            end += 2
        elif query[end] == mark:
            return end + 1  # a doubled mark begins the next text, which is the same to us
        else:
            end += 1
    return len(query)


def _end_of_comment(query: str, here: int) -> int:
    """Comments nest in PostgreSQL."""
    depth, end = 1, here + 2
    while depth and end < len(query):
        step = query[end : end + 2]
        depth += (step == "/*") - (step == "*/")
        end += 2 if step in ("/*", "*/") else 1
    return end
