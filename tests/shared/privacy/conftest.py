"""A ledger of a bookshop, and the plain tools of somebody who tampers with it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import SigningPair
from tests.shared.privacy.bookshop import KEYS, event_row

CONFIG, BUNDLE, BYTES = "c" * 64, "b" * 64, "d" * 64


@pytest.fixture
def gaussian() -> Callable[..., Mechanism]:
    """One round of 10 steps at q .05 and sigma 1, unless told otherwise."""

    def make(**changes: Any) -> Mechanism:
        values = {"kind": "poisson_gaussian", "sampling_rate": 0.05, "noise_multiplier": 1.0, "clip_norm": 0.5, "grid": 2.0**-21}
        return Mechanism(**{**values, "dimension": 1000, "steps": 10, **changes})

    return make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def new_ledger(path: Path) -> Callable[..., Ledger]:
    def make(**changes: Any) -> Ledger:
        return Ledger.create(
            path, **{"signer": KEYS, "domain": "books", "ceiling_epsilon": 8.0, "delta": 1e-5, "set_by": "the bookshop", **changes}
        )

    return make


@pytest.fixture
def admit(gaussian: Callable[..., Mechanism]) -> Callable[..., None]:
    """Admits 3 rounds and 1 in reserve, unless told otherwise."""

    def act(ledger: Ledger, **changes: Any) -> None:
        plan = {"run_id": "autumn", "config_hash": CONFIG, "mechanism": gaussian(), "rounds": 3, "reserve": 1}
        ledger.admit(**{**plan, **changes})

    return act


@pytest.fixture
def intend(gaussian: Callable[..., Mechanism]) -> Callable[..., int]:
    def act(ledger: Ledger, round: int = 1, **changes: Any) -> int:
        what = {"run_id": "autumn", "mechanism": gaussian(), "config_hash": CONFIG, "bundle_digest": BUNDLE, "code_version": "0.1.0"}
        return ledger.intent(round=round, **{**what, **changes})

    return act


@pytest.fixture
def do_round(intend: Callable[..., int]) -> Callable[..., None]:
    """Intent and commit."""

    def act(ledger: Ledger, round: int = 1, **changes: Any) -> None:
        attempt = intend(ledger, round, **changes)
        ledger.commit(run_id=changes.get("run_id", "autumn"), round=round, attempt=attempt, payload_sha256=BYTES)

    return act


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a closed ledger: genesis, schedule, intent, commit, intent."""
    folder = tmp_path_factory.mktemp("written")
    one = Mechanism(
        kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=1.0, clip_norm=0.5, grid=2.0**-21, dimension=1000, steps=10
    )
    what: dict[str, Any] = {"run_id": "autumn", "mechanism": one, "config_hash": CONFIG}
    begun = Ledger.create(folder / "ledger.sqlite", signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop")
    with begun as ledger:
        ledger.admit(rounds=3, reserve=1, **what)
        ledger.intent(round=1, bundle_digest=BUNDLE, code_version="0.1.0", **what)
        ledger.commit(run_id="autumn", round=1, attempt=1, payload_sha256=BYTES)
        ledger.intent(round=2, bundle_digest=BUNDLE, code_version="0.1.0", **what)
    return folder


@pytest.fixture
def written(written_once: Path, tmp_path: Path) -> Path:
    """A copy of that ledger, with its mark."""
    shutil.copytree(written_once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def old(path: Path) -> Path:
    """A ledger of format 1, with its mark: its rows are those that an older release wrote, to the byte."""
    with sqlite3.connect(path) as database:
        database.executescript(Path(__file__).with_name("ledger_format_1.sql").read_text(encoding="utf-8"))
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.close()
    with sqlite3.connect(path) as database:
        seq, digest = database.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    database.close()
    path.with_name(path.name + ".lock").write_text(f"{seq:020d} {digest}\n")  # its mark
    return path


@pytest.fixture
def forge() -> Callable[..., None]:
    """Appends an event with a right hash and signature, as the owner of the key can: only its content may be wrong."""

    def act(path: Path, kind: str, payload: dict[str, Any], signer: SigningPair = KEYS) -> None:
        with sqlite3.connect(path) as database:
            seq, previous = database.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
            row = event_row(seq + 1, kind, payload, previous, signer, "2031-01-01T00:00:00.000000Z")
            database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        database.close()

    return act
