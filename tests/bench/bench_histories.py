"""Histories: grouping ten million interactions, and a batch's cost whatever the number of users.

Ten thousand users fit into the processor's cache and ten million do not, so that every user of a batch then costs a few misses (some 0.2
microseconds); beyond that the cost stays what it is, which is what the aim says.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from client.data.histories import Histories, by_user
from client.data.interactions import Interactions
from client.data.pseudonyms import pseudonym

AIMS = {"padded(): ten million users against one million": ("<=", 1.5)}

_BATCH_USERS = 1000
_LENGTH = 50
_PER_USER = 10


def _names(n_users: int) -> np.ndarray:
    """(n_users, 16) sorted and distinct."""
    halves = np.zeros((n_users, 2), dtype=">u8")
    halves[:, 0] = np.arange(n_users)
    return halves.view(np.uint8)


def _interactions(n: int, n_users: int, generator: np.random.Generator) -> Interactions:
    return Interactions(
        users=generator.integers(0, n_users, n, dtype=np.int32),
        items=generator.integers(0, 100_000, n, dtype=np.int32),
        times=generator.integers(1_200_000_000, 1_600_000_000, n),
        ratings=None,
        pseudonyms=_names(n_users),
    )


def _histories(n_users: int) -> Histories:
    """Ten items each; the arrays alone matter here."""
    n = n_users * _PER_USER
    offsets = np.arange(0, n + 1, _PER_USER, dtype=np.int64)
    return Histories(offsets=offsets, items=np.arange(n, dtype=np.int32), times=np.broadcast_to(np.int64(0), (n,)))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _batch_seconds(histories: Histories, generator: np.random.Generator) -> float:
    """Median over batches of users who were never drawn before, so that no cache helps."""
    batches = generator.permutation(histories.n_users)[: _BATCH_USERS * 200]
    batches = batches.reshape(-1, min(_BATCH_USERS, len(batches)))
    return float(np.median([_seconds(lambda batch=batch: histories.padded(batch, _LENGTH)) for batch in batches]))


def run(quick: bool = True) -> dict[str, float]:
    generator = np.random.default_rng(0)
    scale = 10 if quick else 1
    rows = _interactions(10_000_000 // scale, 1_000_000 // scale, generator)
    ids = [f"u{number:08d}" for number in range(1_000_000 // scale)]
    grouping = _seconds(lambda: by_user(rows, 500))
    naming = _seconds(lambda: pseudonym(bytes(32), ids))
    small, middle, large = (_batch_seconds(_histories(n_users // scale), generator) for n_users in (10_000, 1_000_000, 10_000_000))
    return {
        f"by_user(): {len(rows):,} interactions, seconds": grouping,
        "pseudonym(): microseconds a user": naming / len(ids) * 1e6,
        "padded(): 1,000 users of ten million, milliseconds": large * 1e3,
        "padded(): ten million users against one million": large / middle,
        "padded(): ten million users against ten thousand": large / small,
    }
