"""A PostgreSQL server of the deployment demo's own: one partner's tables, a password, and a user who may only read."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from shared.errors import FederationError

INSTALL = (
    "PostgreSQL is not installed (initdb and postgres): install it with your system's packages "
    "(Debian: apt-get install postgresql; Fedora: dnf install postgresql-server)"
)
READER = "isthmus"
_NEEDED = ("initdb", "postgres")
_LIMIT_S = 60.0
_KINDS = {pl.String: "text", pl.Int64: "bigint", pl.Float64: "double precision"}
# PostgreSQL refuses to run as root: this becomes somebody else, then the program.
_AS = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[2])); os.execv(sys.argv[3], sys.argv[3:])"


def find_postgres() -> Path | None:
    """The folder of the server's programs; None where there is none."""
    folders = [Path(found).parent for name in _NEEDED if (found := shutil.which(name))]
    if tool := shutil.which("pg_config"):
        folders.append(Path(subprocess.run([tool, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()))
    places = [path for top in (Path("/usr/lib/postgresql"), Path("/usr/local/opt")) for path in top.glob("*/bin")]
    folders += sorted(places, key=lambda path: path.parent.name, reverse=True)
    return next((folder for folder in folders if all((folder / name).is_file() for name in _NEEDED)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A server that runs.

    Args:
        url: for partner.toml, without the password.
        password: of the user who may only read.
        process: ends with the block of `running`.
    """

    url: str
    password: str
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def running(
    programs: Path, folder: Path, port: int, tables: dict[str, pl.DataFrame], inside: Callable[[Sequence[str]], list[str]]
) -> Iterator[Database]:
    """Makes a server with these tables in a folder and keeps it running until the block ends.

    Args:
        folder: for its files; elsewhere where the other user that the server has to run as cannot get there.
        port: on the loopback of its place.
        inside: puts a command line into its place.
    Raises:
        FederationError: it could not be made or started.
    """
    with contextlib.ExitStack() as stack:
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-pg-")))  # a socket's path is short
        user = _other_user()
        files = folder if user is None or _passable(folder) else short / "files"
        files.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner, reader = secrets.token_hex(16), secrets.token_hex(16)
        (short / "password").write_text(owner)
        if user is not None:
            for path in (files, short, short / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        _make(programs, files, short, user)
        process = _start(programs, files, short, port, user, inside)
        stack.callback(_stop, process)
        _fill(short, port, owner, reader, tables, process, files / "log")
        yield Database(url=f"postgresql+psycopg://{READER}@127.0.0.1:{port}/postgres", password=reader, process=process)


def _make(programs: Path, files: Path, short: Path, user: pwd.struct_passwd | None) -> None:
    flags = ["-U", "owner", "-A", "scram-sha-256", f"--pwfile={short / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"]
    words = _as(user, [str(programs / "initdb"), "-D", str(files / "data"), *flags])
    made = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
    if made.returncode != 0:
        raise FederationError(f"initdb: {made.stderr.strip()[-300:]}", do="See what it says.")


def _start(
    programs: Path, files: Path, short: Path, port: int, user: pwd.struct_passwd | None, inside: Callable[[Sequence[str]], list[str]]
) -> subprocess.Popen[bytes]:
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": short, "fsync": "off"}
    flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    words = inside(_as(user, [str(programs / "postgres"), "-D", str(files / "data"), *flags]))
    with (files / "log").open("ab") as log:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT ends its sessions in order."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _fill(
    short: Path, port: int, owner: str, reader: str, tables: dict[str, pl.DataFrame], process: subprocess.Popen[bytes], log: Path
) -> None:
    import psycopg
    from psycopg import sql

    until = time.monotonic() + _LIMIT_S
    while True:
        try:
            connection = psycopg.connect(host=str(short), port=port, user="owner", password=owner, dbname="postgres", autocommit=True)
            break
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace")[-300:]
                raise FederationError(f"PostgreSQL does not answer: {said}", do="See what it says.") from None
            time.sleep(0.1)
    with connection:
        for name, table in tables.items():
            place = sql.Identifier(name)
            columns = [sql.SQL("{} " + _KINDS[type(kind)]).format(sql.Identifier(column)) for column, kind in table.schema.items()]
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(place, sql.SQL(", ").join(columns)))
            with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(place)) as copy:
                for row in table.iter_rows():
                    copy.write_row(row)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(READER), sql.Literal(reader)))
        connection.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {}").format(sql.Identifier(READER)))


def _other_user() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {user.pw_name: user for user in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _as(user: pwd.struct_passwd | None, command: Sequence[str]) -> list[str]:
    words = list(command)
    return words if user is None else [sys.executable, "-I", "-c", _AS, str(user.pw_gid), str(user.pw_uid), *words]


def _passable(folder: Path) -> bool:
    """Whether somebody else gets as far as this folder."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in folder.resolve().parents)
