"""A private step against a plain one: the same model, the same batch, the same optimiser.

Sizes are those of the scenario `arts_office`: 64 coordinates, 18,000 items, 512 users in a batch, passports from one partner. The two kinds
of step take turns on one model each, and a ratio is the median over the pairs, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from client.data.histories import Histories
from client.model.methods import InterestModel
from client.model.objective import Batch
from client.training.dp_sgd import PerUserGradients, PublicOptimizer, joint_dimension, step
from client.training.examples import Examples, Passports
from client.training.noise import SystemNoise
from shared.config import RunConfig
from shared.privacy.mechanism import Mechanism

PRIVATE, DRAWN = "private step against a plain one", "the same, drawing the batch included"
AIMS = {PRIVATE: ("<=", 1.5)}

_ITEMS, _USERS, _BATCH_USERS = 18_000, 8_000, 512


def domain(config: RunConfig, users: int = _USERS, items: int = _ITEMS, seed: int = 0) -> Examples:
    """A domain of random users with 5 to 30 items, 9 in the mean; every third of them brought a passport."""
    generator = np.random.default_rng(seed)
    lengths = np.minimum(4 + generator.geometric(0.18, size=users), 30)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = int(offsets[-1])
    histories = Histories(offsets=offsets, items=generator.integers(0, items, size=n, dtype=np.int32), times=np.arange(n, dtype=np.int64))
    coordinates = _unit(generator.normal(size=(items, config.model.dimension)))
    linked = np.flatnonzero(generator.random(users) < 1 / 3)
    rows = np.full((users, 1), -1, dtype=np.int32)
    rows[linked, 0] = np.arange(len(linked))
    return Examples(
        histories=histories,
        coordinates=coordinates,
        passports=Passports(vectors=_unit(generator.normal(size=(len(linked), config.model.dimension))), rows=rows),
        descriptor=coordinates[:, : config.model.descriptor_dimension].mean(axis=0),
        config=config.training,
        generator=generator,
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def plain_step(model: InterestModel, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad(set_to_none=True)
    (model(batch).sum() / _BATCH_USERS).backward()
    optimizer.step()


def steps(config: RunConfig) -> tuple[Callable[[Batch], None], Callable[[Batch], None]]:
    """A plain and a private step, each on a model of its own."""
    plain, secret = InterestModel(config, seed=1), InterestModel(config, seed=1)
    plain_adam = torch.optim.Adam(plain.parameters(), lr=config.training.learning_rate)
    mechanism = Mechanism(
        kind="poisson_gaussian",
        sampling_rate=0.1,
        noise_multiplier=1.0,
        clip_norm=config.privacy.clip_norm,
        grid=config.privacy.grid,
        dimension=joint_dimension(secret),
        steps=1,
    )
    secret_adam = torch.optim.Adam(secret.parameters(), lr=config.training.learning_rate)
    private_optimizer = PublicOptimizer(secret_adam, mechanism=mechanism, divisor=float(_BATCH_USERS), noise=SystemNoise())
    wrapped = PerUserGradients(secret, loss_reduction="sum")
    wrapped.train()

    def one_plain(batch: Batch) -> None:
        plain_step(plain, plain_adam, batch)

    def one_private(batch: Batch) -> None:
        step(wrapped, private_optimizer, batch, config.compute.micro_batch_users)

    return one_plain, one_private


def _seconds(work: Callable[[Batch], None], batch: Batch) -> float:
    start = time.perf_counter()
    work(batch)
    return time.perf_counter() - start


def run(quick: bool = True) -> dict[str, float]:
    config = RunConfig()
    torch.set_num_threads(1)  # a second one waits for a core on a busy machine, and the ratio then tells of that
    make_batch = domain(config)
    generator = np.random.default_rng(7)
    plain, private = steps(config)
    times = []
    for turn in range(25 if quick else 150):
        started = time.perf_counter()
        batch = make_batch(generator.choice(_USERS, size=_BATCH_USERS, replace=False))
        drawing = time.perf_counter() - started
        first, second = (plain, private) if turn % 2 else (private, plain)
        one, two = _seconds(first, batch), _seconds(second, batch)
        times.append((drawing, *((one, two) if turn % 2 else (two, one))))
    drawing_s, plain_s, private_s = np.array(times[5:]).T  # the first turns warm up
    return {
        PRIVATE: float(np.median(private_s / plain_s)),
        DRAWN: float(np.median((private_s + drawing_s) / (plain_s + drawing_s))),
        "private step of 512 users, milliseconds": float(np.median(private_s)) * 1e3,
        "drawing the batch, milliseconds": float(np.median(drawing_s)) * 1e3,
    }
