"""A real PostgreSQL server of a test's own: in a temporary folder, on a free port, with passwords; ended with everything it started.

The server refuses to run as root. Where the tests do, it runs as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

NEEDED = ("initdb", "postgres")
MISSING = "no PostgreSQL server on this machine (initdb and postgres, of the package 'postgresql'): databases were not read from one"
PASSWORD = "correct horse 7%@:/"
_LIMIT_S = 60.0


def find() -> Path | None:
    """The folder of the server's programs; None where there is none."""
    folders = [Path(found).parent for name in NEEDED if (found := shutil.which(name))]
    if tool := shutil.which("pg_config"):
        folders.append(Path(subprocess.run([tool, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()))
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return next((folder for folder in folders if all((folder / name).is_file() for name in NEEDED)), None)


def _other_user() -> dict[str, Any]:
    """What starts a process as somebody else than root; nothing where we are nobody special."""
    if os.geteuid() != 0:
        return {}
    names = {user.pw_name: user for user in pwd.getpwall()}
    user = names.get("postgres") or names["nobody"]
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@dataclass(kw_only=True)
class Server:
    """A running server. Its only user is ``postgres``, with `PASSWORD`, until a test makes others."""

    programs: Path
    folder: Path
    port: int
    options: Sequence[str] = ()
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def url(self, database: str = "postgres", user: str = "postgres", host: str = "127.0.0.1") -> str:
        return f"postgresql+psycopg://{user}@{host}:{self.port}/{database}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "shared_buffers": "128MB",
            "max_wal_size": "4GB",
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", *flags, *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **_other_user(),
            )
        end = time.monotonic() + _LIMIT_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, "the server did not answer"
                time.sleep(0.05)

    def stop(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends sessions in order; SIGKILL ends the server and all its processes like a power cut."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if with_signal == signal.SIGKILL:
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGCONT)
                self._process.send_signal(with_signal)
        self._process.wait(_LIMIT_S)
        self._process = None

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection that may write, for the test itself."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname=database, autocommit=True, connect_timeout=10
        )

    def run(self, *statements: str, database: str = "postgres") -> None:
        with self.connect(database) as connection:
            for statement in statements:
                connection.execute(statement)  # type: ignore[arg-type]

    def put(self, name: str, columns: dict[str, tuple[str, Sequence[Any]]], database: str = "postgres") -> None:
        """Makes a table anew: name of a column -> its type and values."""
        table = sql.Identifier(*name.split("."))
        declared = sql.SQL(", ").join(sql.SQL("{} " + kind).format(sql.Identifier(column)) for column, (kind, _) in columns.items())  # type: ignore[arg-type]
        with self.connect(database) as connection:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
            connection.execute(sql.SQL("CREATE TABLE {} ({})").format(table, declared))
            with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {} FROM STDIN").format(table)) as copy:
                for row in zip(*(values for _, values in columns.values()), strict=True):
                    copy.write_row(row)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(programs: Path, *options: str) -> Iterator[Server]:
    """A new, empty server."""
    folder = Path(tempfile.mkdtemp(prefix="isthmus-pg-"))  # a short path: it holds a socket
    other = _other_user()
    try:
        (folder / "password").write_text(PASSWORD)
        for path in (folder, folder / "password"):
            os.chown(path, other.get("user", -1), other.get("group", -1))
        flags = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(
            [programs / "initdb", "-D", folder / "data", *flags],
            capture_output=True,
            text=True,
            cwd=folder,
            **other,
        )
        assert made.returncode == 0, made.stderr
        server = Server(programs=programs, folder=folder, port=free_port(), options=options)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGKILL)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
