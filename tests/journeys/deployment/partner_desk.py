"""A partner who types commands, and what holds for every answer, whatever is wrong: what, where and what to do; no value of a row, no
traceback, and not a byte of the ledger."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client import node
from client.settings import ClientSettings
from shared.process_lock import running
from tests.journeys.coordinated import COMMAND, Coordinated

CLIENT = [sys.executable, "-P", "-m", "client.cli"]
NOT_READY = 36
_LIMIT_S = 400.0
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, t);
  if (!code && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += atol(getenv("CLOCK_AHEAD_S"));
  return code;
}
time_t time(time_t *out) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); if (out) *out = t.tv_sec; return t.tv_sec; }
int gettimeofday(struct timeval *v, void *zone) {
  struct timespec t; (void)zone; clock_gettime(CLOCK_REALTIME, &t); v->tv_sec = t.tv_sec; v->tv_usec = t.tv_nsec / 1000; return 0;
}
"""


def another_clock(folder: Path) -> Callable[[int], dict[str, str]]:
    """Environments of programs whose clock is so many seconds ahead: all of a process, OpenSSL's and Flower's part of it too."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc): a clock of another day cannot be given to a process")
    library = folder / "clock.so"
    (folder / "clock.c").write_text(_CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, folder / "clock.c", "-ldl"], check=True, timeout=60)
    return lambda ahead_s: {"LD_PRELOAD": str(library), "CLOCK_AHEAD_S": str(ahead_s)}


def values_of_rows(settings: ClientSettings) -> frozenset[str]:
    """Every id and text of a partner's files: none of them belongs into an answer."""
    found = set()
    for name, columns in ((settings.data.items, ("item_id", "title")), (settings.data.interactions, ("user_id",))):
        with open(settings.path(name), newline="") as file:
            found |= {row[column] for row in csv.DictReader(file) for column in columns}
    return frozenset(found)


@dataclass
class Desk:
    """One partner's place.

    Args:
        ours: what runs at the coordinator.
        domain: whose folder lies beside the coordinator's home.
        secret: what no answer may hold.
    """

    ours: Coordinated
    domain: str
    secret: frozenset[str] = frozenset()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.ours.home.root.parent / self.domain

    @property
    def toml(self) -> Path:
        return self.folder / "partner.toml"

    def typed(self, *words: str | Path, code: int, **environment: str) -> str:
        """Types an `isthmus-client` command, and holds its answer to the rules.

        Returns:
            What it said, on both ways.
        """
        return self._held_to_the_rules([*CLIENT, *map(str, words)], code, environment)

    def at_the_coordinator(self, *words: str | Path, code: int) -> str:
        """The same for `isthmus-server`."""
        return self._held_to_the_rules([*COMMAND, *map(str, words)], code, {})

    def _held_to_the_rules(self, command: list[str], code: int, environment: Mapping[str, str]) -> str:
        before = self.ledger()
        done = subprocess.run(
            command,
            env={**self.ours.environment, **self.environment, **environment},
            cwd=self.folder.parent,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        text = done.stdout + done.stderr
        assert done.returncode == code, f"{done.returncode}, not {code}: {' '.join(command[4:])}\n{text}"
        self.check_words(text)
        assert self.ledger() == before, "the ledger was written to"
        if code not in (0, NOT_READY):  # an error of ours: its kind and what is wrong, then what to do
            assert re.search(r"^[A-Z]\w+: .{10,}\n  .{10,}", done.stderr, re.MULTILINE), f"what is wrong, and what to do: {text}"
        return text

    def check_words(self, text: str) -> None:
        assert "Traceback" not in text, text
        assert "fault of isthmus" not in text, text
        assert [value for value in self.secret if value in text] == []

    def ledger(self) -> str:
        """The ledger's bytes, those of its write-ahead part included."""
        parts = [self.folder / "home" / name for name in ("ledger.sqlite", "ledger.sqlite-wal")]
        return hashlib.sha256(b"|".join(path.read_bytes() if path.exists() else b"" for path in parts)).hexdigest()

    def wrong(self, red: Mapping[str, str], *options: str, **environment: str) -> dict[str, str]:
        """`check` shows exactly these lines red, each with what is wrong and with what to do; nothing is written, unless a node runs.

        Args:
            red: name of a line -> words in it.
        Returns:
            Name -> what to do.
        """
        quiet = running(self.folder / "home") is None
        before = self._files()
        document = json.loads(self.typed("check", self.toml, "--json", *options, code=NOT_READY, **environment).partition("\n}")[0] + "\n}")
        lines = {line["name"]: line for line in document["lines"] if not line["ok"]}
        assert {name: line["what"] for name, line in lines.items()}.keys() == red.keys(), lines
        for name, words in red.items():
            assert words in lines[name]["what"], lines[name]
            assert len(lines[name]["do"]) > 10, lines[name]
        assert not quiet or self._files() == before
        return {name: line["do"] for name, line in lines.items()}

    def right(self, *options: str) -> None:
        """The same command is green."""
        assert "0 red: ready" in self.typed("check", self.toml, *options, code=0)

    def _files(self) -> dict[str, bytes]:
        logs = self.folder / "home" / "logs"
        found = (path for path in self.folder.rglob("*") if path.is_file() and logs not in path.parents)
        return {str(path): path.read_bytes() for path in found if not path.name.endswith(("-shm", "up.json"))}

    @contextlib.contextmanager
    def spoiled(self, *names: str) -> Iterator[list[Path]]:
        """Some files that the block may change; they are as they were afterwards, with their permissions."""
        paths = [self.folder / name for name in names]
        kept = {path: (path.read_bytes() if path.is_file() else None, path.stat().st_mode) for path in paths}
        try:
            yield paths
        finally:
            for path, (data, mode) in kept.items():
                if data is not None:
                    path.write_bytes(data)
                path.chmod(mode)

    def edit(self, old: str, new: str) -> None:
        """Changes a line of partner.toml."""
        text = self.toml.read_text()
        assert text.count(old) == 1, f"{text.count(old)} times: {old}"
        self.toml.write_text(text.replace(old, new))

    @contextlib.contextmanager
    def up(self, **environment: str) -> Iterator[Up]:
        """`isthmus-client up`, until the block ends; then it leaves nothing behind."""
        name = f"up-{self.domain}"
        log = self.ours.home.root.parent / f"{name}.log"
        log.unlink(missing_ok=True)
        process = self.ours.start(name, [*CLIENT, "up", str(self.toml)], **self.environment, **environment)
        try:
            self.ours.wait(lambda: running(self.folder / "home") is not None, "it did not begin")
            yield Up(self, process, log)
            self.check_words(log.read_text())
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(120)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Up:
    """A node that is kept up."""

    desk: Desk
    process: subprocess.Popen[bytes]
    log: Path

    def says(self, *words: str) -> None:
        """It goes on trying, and what it said last names the reason; `status` repeats it and ends well."""
        self.desk.ours.wait(
            lambda: all(word in self.log.read_text() for word in words), f"it does not say {words}: {self.log.read_text()}", 240
        )
        assert self.process.poll() is None
        settings = ClientSettings.read(self.desk.toml)
        self.desk.ours.wait(lambda: (node.status(settings).node or {}).get("starts", 0) >= 2, "it was not started again", 240)
        said = self.desk.typed("status", self.desk.toml, code=0)
        assert all(word in said for word in words), said
        assert "SuperNode connected" not in said

    def connects(self) -> None:
        """By itself: nobody starts it again."""
        settings = ClientSettings.read(self.desk.toml)
        self.desk.ours.wait(lambda: node.status(settings).connected, f"it did not connect: {self.log.read_text()}", 240)
        assert self.process.poll() is None
        assert "SuperNode connected" in self.desk.typed("status", self.desk.toml, code=0)
