r"""The per-user objective: one number per user, a function of that user's data and public data alone.

For a user with target items :math:`i_1..i_M`, own-history interest :math:`z` and passports :math:`z_1..z_P`,

.. math:: \ell = w\, CE(z) + (1 - w) \frac1P \sum_p CE(T_{shared}(z_p, c) + T_{private}(z_p)),

where CE is the softmax cross-entropy of the targets against items drawn uniformly from the public catalogue, corrected for that drawing
(log-q, Bengio & Senecal 2008): a negative stands for n/m items of the catalogue. A user with passports but no history has w = 0, one
without passports w = 1. The own history does not pass through the transfer layer, because it would pull the layer to the identity.
Negatives never come from the batch: one user's loss never sees another user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The examples of a Poisson batch; may hold zero users."""

    history: Tensor  # (batch, L, d) latest item last
    history_mask: Tensor  # (batch, L)
    passports: Tensor  # (batch, P, d), P >= 1
    passport_mask: Tensor  # (batch, P)
    targets: Tensor  # (batch, M, d)
    target_mask: Tensor  # (batch, M)
    negatives: Tensor  # (n, d) from the public catalogue, the same for all users
    hits: Tensor  # (batch, M) how many of the negatives are that very target
    negative_weight: float  # catalogue items that one negative stands for
    descriptor: Tensor  # (d_c,)
    history_items: Tensor | None = None  # (batch, L) int64 positions in the catalogue; None where no encoder asks for them
    target_ratings: Tensor | None = None  # (batch, M) as given; None where nobody rates
    prototypes: Tensor | None = None  # (K, d) of the interest space; None where no method asks for them

    @property
    def users(self) -> int:
        return self.history.shape[0]

    def part(self, start: int, stop: int) -> Batch:
        """The users from ``start`` to ``stop``, as a batch of its own."""
        rows = slice(start, stop)
        return Batch(
            history=self.history[rows],
            history_mask=self.history_mask[rows],
            passports=self.passports[rows],
            passport_mask=self.passport_mask[rows],
            targets=self.targets[rows],
            target_mask=self.target_mask[rows],
            hits=self.hits[rows],
            negatives=self.negatives,
            negative_weight=self.negative_weight,
            descriptor=self.descriptor,
            history_items=None if self.history_items is None else self.history_items[rows],
            target_ratings=None if self.target_ratings is None else self.target_ratings[rows],
            prototypes=self.prototypes,
        )


class PrivateResidual(nn.Module):
    r"""What a target keeps to itself: :math:`W_{loc} \tanh(U_{loc}^T z) + b_{loc}`; zero at the start."""

    def __init__(self, dimension: int, rank: int) -> None:
        super().__init__()
        self.reader = nn.Linear(dimension, rank, bias=False)
        self.writer = nn.Linear(rank, dimension, bias=False)
        self.offset = nn.Linear(1, dimension, bias=False)  # a bias, as a layer fed with ones: per-user gradients need a batch dimension
        nn.init.zeros_(self.writer.weight)
        nn.init.zeros_(self.offset.weight)

    def forward(self, interest: Tensor) -> Tensor:
        return self.writer(torch.tanh(self.reader(interest))) + self.offset(interest.new_ones(*interest.shape[:-1], 1))


class PrivateBias(nn.Module):
    """:math:`b_{loc}` alone: the least that a target can keep to itself; zero at the start."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.offset = nn.Linear(1, dimension, bias=False)
        nn.init.zeros_(self.offset.weight)

    def forward(self, interest: Tensor) -> Tensor:
        return self.offset(interest.new_ones(*interest.shape[:-1], 1))


class TrainingHead(nn.Module):
    """The domain head of training: one learned scale of scores. It never sees a popularity."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.log_scale.weight, math.log(temperature))

    def forward(self, interest: Tensor) -> Tensor:
        return interest * self.log_scale(interest.new_ones(*interest.shape[:-1], 1)).exp()


def cross_entropy(interests: Tensor, batch: Batch) -> Tensor:
    """Mean over a user's targets of the sampled-softmax cross-entropy.

    Args:
        interests: (batch, T, d) scaled interest vectors.
        batch: targets and negatives.
    Returns:
        (batch, T); 0 for a user without targets.
    """
    positive = torch.einsum("btd,bmd->btm", interests, batch.targets)  # (batch, T, M)
    negative = interests @ batch.negatives.T + math.log(batch.negative_weight)  # (batch, T, n)
    pool = torch.logsumexp(negative, dim=2)[:, :, None]  # (batch, T, 1)
    # a target is not its own negative: where it was drawn, its score (the same number) is taken out of the pool again
    # (its share is at most 1; one that was not drawn may score far above the pool, and 0 * infinity would make the whole user faulty)
    own_share = batch.hits[:, None] * torch.exp((positive + math.log(batch.negative_weight) - pool).clamp(max=0.0))  # (batch, T, M)
    pooled = pool + torch.log1p(-own_share.clamp(max=1.0 - 1e-6))  # (batch, T, M)
    loss = torch.nn.functional.softplus(pooled - positive)  # -log(e^p / (e^p + pool)), (batch, T, M)
    mask = batch.target_mask[:, None]  # (batch, 1, M)
    return (loss * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1.0)
