"""A partner small enough to train in milliseconds: `client.canary.synthetic` in sixteen dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np

from client.canary import synthetic
from client.canary.synthetic import ITEMS, SPACE, Partner, People, histories_of
from client.training.examples import Examples
from shared.config import ComputeConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig

__all__ = ["ITEMS", "SPACE", "D", "Partner", "People", "config_of", "coordinates", "examples_of", "histories_of", "people"]

D = 16
MODEL = ModelConfig(dimension=D, rank=4, descriptor_dimension=4, prototypes=8)
TRAINING = TrainingConfig(max_history_items=10, max_items_per_user=40, target_items=4, catalogue_negatives=64)


def config_of(*, training: TrainingConfig = TRAINING, model: ModelConfig = MODEL, seed: int = 0, **privacy: Any) -> RunConfig:
    """Everybody in every batch, one step a round, noise named by its key; ``privacy`` changes that."""
    defaults = {
        "noise": "seeded",
        "sampling_rate": 1.0,
        "noise_multiplier": 1.0,
        "expected_batch_users": 16,
        "rounds": 6,
        "steps_per_round": 1,
    }
    return RunConfig(
        seed=seed, privacy=PrivacyConfig(**{**defaults, **privacy}), model=model, training=training, compute=ComputeConfig(torch_threads=1)
    )


def people(count: int, seed: int = 3) -> People:
    """Users with 0 to 14 items; two of three brought passports."""
    return synthetic.people(count, D, seed)


def coordinates() -> np.ndarray:
    """(`ITEMS`, `D`) of the invented catalogue."""
    return synthetic.coordinates(D)


def examples_of(someone: People, training: TrainingConfig = TRAINING, seed: int = 1, kind: type[Examples] = Examples) -> Examples:
    """What makes the tensors of a step of these users."""
    data = someone.data("arts")
    return kind(
        histories=data.histories,
        coordinates=data.coordinates,
        passports=data.passports,
        descriptor=data.descriptor,
        config=training,
        generator=np.random.default_rng(seed),
        prototypes=data.prototypes,
    )
