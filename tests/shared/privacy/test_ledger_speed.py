"""A long life does not make a round slower, nor reading need more memory: an intent is one comparison and one row."""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS, event_row

ROUNDS = 50_000


def rows(first: int, previous: str, mechanism: dict[str, Any], rounds: int) -> Iterator[tuple[Any, ...]]:
    for seq in range(first, first + 2 * rounds):
        kind = "intent" if (seq - first) % 2 == 0 else "commit"
        said: dict[str, Any] = {"run_id": "autumn", "round": (seq - first) // 2 + 1, "attempt": 1}
        if kind == "intent":
            said |= {"mechanism": mechanism, "config_hash": "c" * 64, "bundle_digest": "b" * 64, "code_version": "0.1.0"}
        else:
            said |= {"payload_sha256": "d" * 64}
        row = event_row(seq, kind, said, previous, KEYS, "2031-01-01T00:00:00.000000Z")
        yield row
        previous = row[5]


def faint() -> Mechanism:
    return Mechanism(kind="poisson_gaussian", sampling_rate=1e-4, noise_multiplier=5.0, clip_norm=0.5, grid=0.0, dimension=1000, steps=10)


def lived(path: Path, rounds: int) -> Path:
    """A ledger after so many rounds."""
    with Ledger.create(path, signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop") as ledger:
        ledger.admit(run_id="autumn", config_hash="c" * 64, mechanism=faint(), rounds=ROUNDS, reserve=0)
        head = ledger.head_hash
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows(3, head, faint().to_record(), rounds))
    database.close()
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred thousand events."""
    return lived(tmp_path_factory.mktemp("long") / "ledger.sqlite", ROUNDS - 100)


@pytest.mark.journey
def test_an_intent_takes_less_than_ten_milliseconds_after_a_hundred_thousand_events(
    long: Path, path: Path, intend: Callable[..., int]
) -> None:
    shutil.copy(long, path)
    started = time.perf_counter()
    with Ledger.open(path, signer=KEYS) as ledger:
        opened = time.perf_counter() - started
        assert ledger.count_of_intents == ROUNDS - 100
        seconds = []
        for round in range(ROUNDS - 50, ROUNDS):
            started = time.perf_counter()
            intend(ledger, round, mechanism=faint())
            seconds.append(time.perf_counter() - started)
        ledger.epsilon_spent()
        started = time.perf_counter()
        ledger.epsilon_spent()
        asked_again = time.perf_counter() - started
    print(f"open {opened:.2f} s, intent {1e3 * statistics.median(seconds):.2f} ms, epsilon again {1e3 * asked_again:.3f} ms")
    assert statistics.median(seconds) < 0.010
    assert asked_again < 0.010


READER = """
import resource, sys
from pathlib import Path
from shared.privacy.ledger_beginning import replay
from shared.privacy.ledger_file import LedgerFile
file = LedgerFile.examine(Path(sys.argv[1]))
if sys.argv[2] == "events":
    for event in file.load():
        pass
else:
    replay(file)
print(file.head_seq, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def most_memory(path: Path, what: str, repository: Path) -> tuple[int, float]:
    """How many events a process of its own read, and the most memory it had, in MiB."""
    # a shell in between forks it: a child of this process would begin with this process's most memory as its own
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", READER, str(path), what]
    said = subprocess.run(command, capture_output=True, text=True, cwd=repository, check=True).stdout.split()
    return int(said[0]), int(said[1]) / 1024


@pytest.mark.journey
@pytest.mark.parametrize(("what", "most"), [("events", 12.0), ("state", 32.0)])
def test_reading_a_long_life_needs_no_more_memory_than_a_short_one(
    long: Path, tmp_path: Path, repository: Path, what: str, most: float
) -> None:
    """Events are read some at a time; the state keeps a few hundred bytes for each round, and the events themselves would be 100 MiB."""
    short, before = most_memory(lived(tmp_path / "short.sqlite", 500), what, repository)
    events, after = most_memory(long, what, repository)
    print(f"{what}: {short} events {before:.1f} MiB, {events} events {after:.1f} MiB")
    assert (short, events) == (1002, 2 * (ROUNDS - 100) + 2)
    assert after - before < most
