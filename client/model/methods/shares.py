"""What of a user's loss is about the own history, and what about the passports: everybody contributes what they have."""

from __future__ import annotations

import torch
from torch import Tensor

from client.model.objective import Batch


def shares(batch: Batch, own_history_weight: float) -> tuple[Tensor, Tensor]:
    """Weights of the own history and of the passports, (batch,) each.

    A user with both has ``own_history_weight`` and the rest of 1; one with one of them has 1 for it; one with neither has 0 for both.
    """
    has_own = batch.history_mask.amax(dim=1)  # (batch,)
    has_passport = batch.passport_mask.amax(dim=1)  # (batch,)
    own = has_own * torch.where(has_passport > 0, own_history_weight, 1.0)
    return own, has_passport * torch.where(has_own > 0, 1.0 - own_history_weight, 1.0)


def mean_of_brought(values: Tensor, batch: Batch) -> Tensor:
    """Mean over the passports that a user brought. Args: values (batch, P). Returns (batch,), 0 where there is none."""
    return (values * batch.passport_mask).sum(dim=1) / batch.passport_mask.sum(dim=1).clamp(min=1.0)


def per_user(values: Tensor, batch: Batch, own_history_weight: float) -> Tensor:
    """One number for each user.

    Args:
        values: (batch, 1 + P), the own history first.
    Returns:
        (batch,).
    """
    own, brought = shares(batch, own_history_weight)
    return own * values[:, 0] + brought * mean_of_brought(values[:, 1:], batch)
