"""Poisson sampling: the cost of a batch does not know how many users there are.

The same expected batch, 512 users, drawn from ten thousand and from ten million, in turns.
"""

from __future__ import annotations

import time

import numpy as np

from client.training.sampler import PoissonSampler

RATIO = "ten million users against ten thousand"
AIMS = {RATIO: ("<=", 1.2)}

_BATCH_USERS, _FEW, _MANY = 512, 10_000, 10_000_000


def _draw_seconds(sampler: PoissonSampler, users: int) -> float:
    start = time.perf_counter()
    sampler.draw(users, _BATCH_USERS / users)
    return time.perf_counter() - start


def run(quick: bool = True) -> dict[str, float]:
    sampler = PoissonSampler()
    pairs = [(_draw_seconds(sampler, _FEW), _draw_seconds(sampler, _MANY)) for _ in range(200 if quick else 2000)]
    few, many = np.array(pairs[20:]).T
    return {
        RATIO: float(np.median(many / few)),
        "512 users of ten million, microseconds": float(np.median(many)) * 1e6,
    }
