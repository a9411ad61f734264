"""A partner with nothing but settings, keys and a ledger, and the means to kill what works on them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import client
from client.key_rotation import own_keys
from client.ledger_life import create
from client.settings import ClientSettings
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt, receipts_text

ROUND = Mechanism(kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=2.0, clip_norm=0.5, grid=2.0**-21, dimension=1000, steps=5)
CONFIG, BUNDLE = "c" * 64, "b" * 64
CLIENT = str(Path(client.__file__).parent)
PRIVACY = str(Path(client.__file__).parent.parent / "shared" / "privacy")
ROOMS = (CLIENT, PRIVACY)


def settle(folder: Path) -> ClientSettings:
    """Settings, keys and a new ledger of a bookshop."""
    toml = 'domain = "books"\n\n[ceiling]\nepsilon = 8.0\ndelta = 1e-5\nset_by = "the bookshop"\n'
    (folder / "partner.toml").write_text(toml, encoding="utf-8")
    create(at(folder))
    return at(folder)


def at(folder: Path) -> ClientSettings:
    return ClientSettings.read(folder / "partner.toml")


def admit(settings: ClientSettings, run: str = "autumn") -> None:
    """Admits a run of 3 rounds and 1 in reserve."""
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        ledger.admit(run_id=run, config_hash=CONFIG, mechanism=ROUND, rounds=3, reserve=1)


def answer(settings: ClientSettings, round: int, run: str = "autumn") -> SignedReceipt:
    """Intent and commit of a round, and the receipt that the coordinator gets."""
    keys = own_keys(settings)
    with Ledger.open(settings.ledger_path, signer=keys) as ledger:
        what: dict[str, Any] = {"run_id": run, "round": round}
        attempt = ledger.intent(**what, mechanism=ROUND, config_hash=CONFIG, bundle_digest=BUNDLE, code_version="0")
        ledger.commit(**what, attempt=attempt, payload_sha256=f"{round:064x}")
        return SignedReceipt.signed(
            keys,
            domain=ledger.domain,
            count_of_intents=ledger.count_of_intents,
            head_hash=ledger.head_hash,
            payload_sha256=f"{round:064x}",
            mechanism=json.dumps(ROUND.to_record(), sort_keys=True, separators=(",", ":")),
            epsilon_spent=ledger.epsilon_spent(),
        )


def receipts_file(folder: Path, *receipts: SignedReceipt) -> Path:
    path = folder / "receipts.json"
    path.write_text(receipts_text(receipts), encoding="utf-8")
    return path


def files(ledger: Path) -> dict[str, bytes]:
    """A ledger with what stands beside it, to be put back."""
    return {path.name: path.read_bytes() for path in ledger.parent.glob(f"{ledger.name}*") if path.is_file()}


def put_back(ledger: Path, old: dict[str, bytes]) -> None:
    """The database and its write-ahead part as they were; the mark beside them stays, as it does with a backup of the ledger alone."""
    for path in (ledger, ledger.with_name(ledger.name + "-wal"), ledger.with_name(ledger.name + "-shm")):
        path.unlink(missing_ok=True)
        if path.name in old:
            path.write_bytes(old[path.name])


def old_format(path: Path) -> None:
    """Writes a ledger of format 1, as the version before wrote it: a genesis and a note, unsigned."""
    genesis = {
        "format": 1,
        "unit": "user",
        "domain": "books",
        "ceiling_epsilon": (8.0).hex(),
        "delta": (1e-5).hex(),
        "pld_interval": (1e-3).hex(),
        "set_by": "the bookshop",
        "private": True,
        "booked_epsilon": None,
        "booked_delta": None,
        "last_receipt": None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA application_id=1769174125")
    database.execute("PRAGMA user_version=1")
    database.execute(
        "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, time_utc TEXT NOT NULL, payload TEXT NOT NULL, "
        "prev_hash TEXT NOT NULL, hash TEXT NOT NULL, signature BLOB)"
    )
    for what, verb in (("changed", "UPDATE"), ("removed", "DELETE")):
        act = "BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
        database.execute(f"CREATE TRIGGER events_are_never_{what} BEFORE {verb} ON events {act}")
    previous, now = "0" * 64, "2026-01-01T00:00:00.000000Z"
    for seq, (kind, payload) in enumerate((("genesis", genesis), ("note", {"text": "of the old days"})), start=1):
        text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
        chained = json.dumps(["isthmus-ledger-1", seq, kind, now, text, previous], separators=(",", ":"))
        digest = hashlib.sha256(chained.encode()).hexdigest()
        database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, NULL)", (seq, kind, now, text, previous, digest))
        previous = digest
    database.close()


class Countdown:
    """Ends this process with SIGKILL at the n-th line of some rooms' code that it runs."""

    def __init__(self, at: int, rooms: tuple[str, ...]) -> None:
        self.at, self.rooms, self.passed = at, rooms, 0

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.rooms):
            return None
        if event == "line":
            self.passed += 1
            if self.passed == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def killed_at(step: Callable[[], object], tick: int, rooms: tuple[str, ...]) -> tuple[bool, int]:
    """Runs a step in a child that is killed at its ``tick``-th line: whether the step returned, and how many lines it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            countdown = Countdown(tick, rooms)
            sys.settrace(countdown.trace)
            step()
            sys.settrace(None)
            os.write(writing, f"{countdown.passed}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 64), b""))
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed on its own account"
    return bool(said), int(said or 0)


def killed_everywhere(
    at_rest: Path,
    place: Path,
    step: Callable[[Path], object],
    check: Callable[[Path, bool], None],
    *,
    stride: int,
    rooms: tuple[str, ...] = ROOMS,
) -> int:
    """Kills a step at every ``stride``-th line, each time in a fresh copy of ``at_rest``, and checks what is left. Returns how often."""
    tick = last = times = 0
    while tick <= last:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(at_rest, place)
        returned, lines = killed_at(lambda: step(place), tick, rooms)
        assert returned or tick
        check(place, returned)
        last, tick, times = (lines, 1, times) if tick == 0 else (last, tick + stride, times + 1)
    return times
