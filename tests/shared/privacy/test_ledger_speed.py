"""A long life does not make a round slower: an intent is one comparison and one row."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import event_message
from tests.shared.privacy.bookshop import KEYS

ROUNDS = 50_000


def rows(first: int, previous: str, mechanism: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for seq in range(first, first + 2 * (ROUNDS - 100)):
        kind = "intent" if (seq - first) % 2 == 0 else "commit"
        said: dict[str, Any] = {"run_id": "autumn", "round": (seq - first) // 2 + 1, "attempt": 1}
        if kind == "intent":
            said |= {"mechanism": mechanism, "config_hash": "c" * 64, "bundle_digest": "b" * 64, "code_version": "0.1.0"}
        else:
            said |= {"payload_sha256": "d" * 64}
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        now = "2031-01-01T00:00:00.000000Z"
        chained = json.dumps(["isthmus-ledger-1", seq, kind, now, text, previous], separators=(",", ":"))
        digest = hashlib.sha256(chained.encode()).hexdigest()
        yield seq, kind, now, text, previous, digest, KEYS.sign(event_message(digest))
        previous = digest


@pytest.mark.journey
def test_an_intent_takes_less_than_ten_milliseconds_after_a_hundred_thousand_events(
    new_ledger: Callable[..., Ledger],
    path: Path,
    admit: Callable[..., None],
    intend: Callable[..., int],
    gaussian: Callable[..., Mechanism],
) -> None:
    faint = gaussian(sampling_rate=1e-4, noise_multiplier=5.0)
    with new_ledger() as ledger:
        admit(ledger, rounds=ROUNDS, reserve=0, mechanism=faint)
        head = ledger.head_hash
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows(3, head, faint.to_record()))
    database.close()

    started = time.perf_counter()
    with Ledger.open(path, signer=KEYS) as ledger:
        opened = time.perf_counter() - started
        assert ledger.count_of_intents == ROUNDS - 100
        seconds = []
        for round in range(ROUNDS - 50, ROUNDS):
            started = time.perf_counter()
            intend(ledger, round, mechanism=faint)
            seconds.append(time.perf_counter() - started)
        ledger.epsilon_spent()
        started = time.perf_counter()
        ledger.epsilon_spent()
        asked_again = time.perf_counter() - started
    print(f"open {opened:.2f} s, intent {1e3 * statistics.median(seconds):.2f} ms, epsilon again {1e3 * asked_again:.3f} ms")
    assert statistics.median(seconds) < 0.010
    assert asked_again < 0.010
