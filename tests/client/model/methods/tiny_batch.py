"""Batches of a few numbers, so that losses and gradients can be checked by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from client.model.objective import Batch
from shared.config import ModelConfig, RunConfig, TrainingConfig

D = 2


def config_of(method: str, **training: Any) -> RunConfig:
    """Two coordinates; scores are plain inner products (temperature 1) unless said otherwise."""
    constants: dict[str, Any] = {"temperature": 1.0, "own_history_weight": 0.25, **training}
    model = ModelConfig(dimension=D, rank=1, descriptor_dimension=1, prototypes=2, method=method, sharing="shared")
    return RunConfig(model=model, training=TrainingConfig(**constants))


def batch_of(**changes: torch.Tensor | float | None) -> Batch:
    """One user: one item in the history, (1, 0); one passport, (0, 1); one target, (1, 0); one negative, (0, 1), that stands for itself."""
    plain = Batch(
        history=torch.tensor([[[1.0, 0.0]]]),
        history_mask=torch.ones(1, 1),
        passports=torch.tensor([[[0.0, 1.0]]]),
        passport_mask=torch.ones(1, 1),
        targets=torch.tensor([[[1.0, 0.0]]]),
        target_mask=torch.ones(1, 1),
        negatives=torch.tensor([[0.0, 1.0]]),
        hits=torch.zeros(1, 1),
        negative_weight=1.0,
        descriptor=torch.zeros(1),
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]  # tensors, but for one number


def without_passports(batch: Batch) -> Batch:
    return dataclasses.replace(batch, passports=torch.zeros_like(batch.passports), passport_mask=torch.zeros_like(batch.passport_mask))


def without_history(batch: Batch) -> Batch:
    return dataclasses.replace(batch, history=torch.zeros_like(batch.history), history_mask=torch.zeros_like(batch.history_mask))
