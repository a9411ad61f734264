"""Memory of a partner whose table is large: `isthmus-client check`, and the first round of a real run.

A coordinator and two partners with their own processes on the loopback. One partner's interactions are rows of PostgreSQL: one user in
ten rows, 100,000 items with a text each, all times distinct; the other's are a few. The most memory of every process of the large partner
is what the system counts as its resident high-water mark, looked at five times a second; together, they had resident what the system counts
as their proportional share, in which a page of several processes counts once. The texts are encoded for the first time, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shared.config import RunConfig  # noqa: E402
from tests.client.data import postgres  # noqa: E402
from tests.journeys.coordinated import Coordinated, coordinator, tiny_run  # noqa: E402

LARGE = "books"
LIMIT_MIB = 2048.0
POSTGRESQL = postgres.find()
AIMS = (
    {
        "check: most memory in MiB": ("<=", LIMIT_MIB),
        "first round: most memory of one process in MiB": ("<=", LIMIT_MIB),
        "first round: most memory of the app and its node in MiB": ("<=", LIMIT_MIB),
    }
    if POSTGRESQL
    else {}
)


@dataclass
class Watch:
    """The most memory of processes whose command line names a folder, each alone and together, until it is ended."""

    folder: Path
    each: dict[int, int] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)
    together: int = 0
    _end: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        now = 0
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if str(self.folder) not in line:
                    continue
                fields = dict(row.split(":", 1) for row in (place / "status").read_text().splitlines() if ":" in row)
                pid = int(place.name)
                self.each[pid] = max(self.each.get(pid, 0), int(fields["VmHWM"].split()[0]) * 1024)
                self.words[pid] = line
                shares = dict(row.split(":", 1) for row in (place / "smaps_rollup").read_text().splitlines()[1:])
                now += int(shares["Pss"].split()[0]) * 1024
        self.together = max(self.together, now)

    def start(self) -> None:
        def often() -> None:
            while not self._end.wait(0.2):
                self.look()

        threading.Thread(target=often, daemon=True).start()

    def end(self) -> None:
        self._end.set()

    def named(self, word: str) -> float:
        """MiB of the largest process whose command line holds a word."""
        return max((most / 2**20 for pid, most in self.each.items() if word in self.words[pid]), default=0.0)


@contextlib.contextmanager
def database(rows: int, items: int) -> Iterator[postgres.Server]:
    assert POSTGRESQL is not None
    with postgres.running(POSTGRESQL) as server:
        server.run(
            f"CREATE TABLE items AS SELECT 'i' || n AS item_id, 'A book about subject ' || (n % 997) || ' and matter ' || n AS title"
            f" FROM generate_series(0, {items - 1}) AS n",
            f"CREATE TABLE interactions AS SELECT 'user-' || (n * 7919 % {max(rows // 10, 1)}) AS user_id,"
            f" 'i' || (n * 104729 % {items}) AS item_id, 1200000000 + n AS timestamp"
            f" FROM (SELECT CAST(n AS bigint) AS n FROM generate_series(0, {rows - 1}) AS n) AS numbers",
            "VACUUM ANALYZE interactions",
        )
        yield server


def federated(folder: Path, server: postgres.Server) -> Coordinated:
    """The coordinator and its partners; nothing runs yet."""
    secret = folder / "password"
    secret.touch(mode=0o600)
    secret.write_text(postgres.PASSWORD)
    large = {
        "data.url": server.url(),
        "data.password_file": str(secret),
        "data.items": "items",
        "data.interactions": "interactions",
        "data.text_columns": "title",
        "data.rating_column": "",
    }
    return coordinator(folder, ROOT, own={LARGE: large})


def checked(ours: Coordinated) -> tuple[float, float]:
    """Seconds and MiB of `isthmus-client check`; its lines may be red, because nothing of the coordinator runs."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "client.cli", "check", str(ours.toml(LARGE))], env=ours.environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, _, used = os.wait4(process.pid, 0)
    assert "interactions" in said, said
    return time.perf_counter() - begun, used.ru_maxrss / 1024


def first_round(ours: Coordinated, folder: Path) -> tuple[float, Watch]:
    """Seconds from submission to the end of a run of one round, and who used what memory."""
    config = tiny_run(rounds=1, sampling_rate=0.001, expected_batch_users=100, steps_per_round=10)
    long = config.to_toml().replace("wait_s = 60.0", "wait_s = 120.0").replace("round_timeout_s = 240.0", "round_timeout_s = 3000.0")
    (folder / "run.toml").write_text(RunConfig.from_toml(long).to_toml())
    watch = Watch(folder / LARGE)
    ours.command("up", ours.home.root, "--detach")
    for domain in ours.partners:
        ours.start_node(domain)
    ours.wait(lambda: {one["node"] for one in ours.status()["partners"]} == {"online"}, "not every node connected")
    watch.start()
    begun = time.perf_counter()
    try:
        ours.command("run", ours.home.root, folder / "run.toml", "--wait-for", "all", timeout=3600)
    finally:
        watch.end()
    return time.perf_counter() - begun, watch


def run(quick: bool = True) -> dict[str, float]:
    if POSTGRESQL is None:
        return {}
    rows, items = (200_000, 2_000) if quick else (10_000_000, 100_000)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the bench ends what it started
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name, database(rows, items) as server:
        folder = Path(name)
        ours = federated(folder, server)
        try:
            check_seconds, check_mib = checked(ours)
            seconds, watch = first_round(ours, folder)
        finally:
            ours.end()
    return {
        f"check: {rows:,} rows, seconds": check_seconds,
        "check: most memory in MiB": check_mib,
        f"first round: {rows:,} rows, seconds": seconds,
        "first round: most memory of one process in MiB": max(watch.each.values()) / 2**20,
        "first round: most memory of the app and its node in MiB": watch.together / 2**20,
        "first round: most memory of an app process in MiB": watch.named("app_process app"),
        "first round: most memory of the SuperNode in MiB": watch.named("bundle_guard"),
    }
