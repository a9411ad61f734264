"""A private step with each encoder, against one with the smallest: the same users, the same draws, the same optimiser.

Sizes are those of `bench_dp_step`: 64 coordinates, 512 users in a batch with 5 to 30 items. Seconds are of the processor, because a busy
machine stretches the clock of a long step more than that of a short one. The adapted language model takes its step with few users, who are
read one after the other anyway, and its figure is for each user.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from client.canary.texts import invented  # noqa: E402
from client.model.item_tokens import attach  # noqa: E402
from client.model.methods import make_model  # noqa: E402
from client.model.objective import Batch  # noqa: E402
from client.training.dp_sgd import PerUserGradients, PublicOptimizer, joint_dimension, step  # noqa: E402
from client.training.noise import SystemNoise  # noqa: E402
from shared.config import ModelConfig, RunConfig  # noqa: E402
from shared.privacy.mechanism import Mechanism  # noqa: E402
from tests.bench.bench_dp_step import domain  # noqa: E402

RATIO = "step with the transformer against one with attention"
AIMS: dict[str, tuple[str, float]] = {}

_USERS, _ITEMS, _BATCH_USERS, _READERS = 8_000, 18_000, 512, 16


def private_step(config: RunConfig) -> tuple[Callable[[Batch], None], int]:
    """A private step on a model of its own, and how long its joint vector is."""
    model = make_model(config, seed=1)
    attach(model.encoder, invented(config.model, _ITEMS))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    mechanism = Mechanism(
        kind="poisson_gaussian",
        sampling_rate=0.1,
        noise_multiplier=1.0,
        clip_norm=config.privacy.clip_norm,
        grid=config.privacy.grid,
        dimension=joint_dimension(model),
        steps=1,
    )
    adam = torch.optim.Adam(trained, lr=config.training.learning_rate)
    optimizer = PublicOptimizer(adam, mechanism=mechanism, divisor=float(_BATCH_USERS), noise=SystemNoise())
    wrapped = PerUserGradients(model, loss_reduction="sum")
    wrapped.train()
    at_once = min(config.compute.micro_batch_users, getattr(model.encoder, "most_users", _BATCH_USERS))
    return lambda batch: step(wrapped, optimizer, batch, at_once), mechanism.dimension


def _seconds(work: Callable[[Batch], None], batch: Batch) -> float:
    start = time.process_time()
    work(batch)
    return time.process_time() - start


def run(quick: bool = True) -> dict[str, float]:
    torch.set_num_threads(1)
    configs = {name: RunConfig(model=ModelConfig(encoder=name)) for name in ("attention", "transformer", "text-lora")}
    small, large, reader = (private_step(config) for config in configs.values())
    make_batch, generator = domain(configs["attention"], _USERS, _ITEMS), np.random.default_rng(7)
    times = []
    for _ in range(6 if quick else 30):
        batch = make_batch(generator.choice(_USERS, size=_BATCH_USERS, replace=False))
        times.append((_seconds(small[0], batch), _seconds(large[0], batch)))
    attention, transformer = np.array(times[1:]).T  # the first turn warms up
    few = make_batch(generator.choice(_USERS, size=_READERS, replace=False))
    _seconds(reader[0], few.part(0, 2))
    reading = _seconds(reader[0], few)
    return {
        RATIO: float(np.median(transformer / attention)),
        "step of 512 users with attention, milliseconds": float(np.median(attention)) * 1e3,
        "step of 512 users with the transformer, milliseconds": float(np.median(transformer)) * 1e3,
        "numbers that are clipped, attention": small[1],
        "numbers that are clipped, transformer": large[1],
        "numbers that are clipped, text-lora": reader[1],
        "text-lora, milliseconds for each user": reading / _READERS * 1e3,
        "text-lora against attention, for each user": reading / _READERS / (float(np.median(attention)) / _BATCH_USERS),
        "memory at its peak, megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{value:12,.1f}  {name}")
