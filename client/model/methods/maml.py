r"""`maml`: every user is a task; what is learned is where to begin, so that a few interactions are enough.

Model-agnostic meta-learning (Finn, Abbeel and Levine 2017, ICML) with an inner loop over the last part of the model only (ANIL; Raghu et
al. 2020, "Rapid learning or feature reuse?", ICLR). For a user with interest :math:`z`, support items S and query items Q,

.. math:: z'(b, g) = (1 + g)\,z + b,\qquad
          (b', g') = (b_0, g_0) - \alpha\,\nabla\, \frac{m + 1}{m + |S|}\, \tfrac1s \sum_{j \in S} CE_j\big(s\,z'(b_0, g_0)\big),\qquad
          \ell = \tfrac12 CE_Q\big(s\,z'(b_0, g_0)\big) + \tfrac12 CE_Q\big(s\,z'(b', g')\big).

Half of the loss is about the query items before any adaptation (the loss of every step of MAML++; Antoniou, Edwards and Storkey 2019, "How
to train your MAML", ICLR): users with no interaction here are met at the start, and support items that give the answer away would leave
the transfer layer, which knows the other domains, without a gradient.

The outer gradient goes to the start :math:`(b_0, g_0)`, which is a shared array, and to encoder, transfer layer and scale of scores as
in `residual`; it goes through the inner step too, or, with ``training.first_order``, only around it. The user's whole outer gradient is
clipped as one. Support and query are every other target in the order in which `client.training.examples` draws them, which is a
function of the user's own items and a number of the step: no other user can move an item from one side to the other. The first is a
query, so a user with one target item teaches the start alone.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from client.model.adaptation import inner_loop, support_loss
from client.model.objective import Batch, cross_entropy
from shared.config import ModelConfig, RunConfig

from .residual import InterestModel
from .shares import per_user


class AdaptationStart(nn.Module):
    """b_0 and g_0, each a layer fed with ones: per-user gradients need a batch dimension. Zero at the start."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.offset = nn.Linear(1, model.dimension, bias=False)
        self.gate = nn.Linear(1, 1, bias=False)
        for layer in (self.offset, self.gate):
            nn.init.zeros_(layer.weight)

    def forward(self, interest: Tensor) -> tuple[Tensor, Tensor]:
        """Args: interest (batch, T, d). Returns b_0 (batch, 1, d) and g_0 (batch, 1, 1)."""
        ones = interest.new_ones(len(interest), 1, 1)
        return self.offset(ones), self.gate(ones)


class MamlModel(InterestModel):
    """The residual model, and a start from which each user is adapted."""

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.rate, self.steps = config.training.inner_rate, config.training.inner_steps
        self.second_order = not config.training.first_order
        self.prior_items = float(config.training.passport_min_items)
        self.start = AdaptationStart(config.model)

    def transferred(self, passports: Tensor, descriptor: Tensor) -> Tensor:
        """Interest here of somebody with no interaction here: the start is applied, and nothing is adapted."""
        moved = super().transferred(passports, descriptor)
        offset, gate = self.start(moved)
        return (1.0 + gate) * moved + offset

    def forward(self, batch: Batch) -> Tensor:
        """The loss of each user on the query items before and after adaptation to the support items, (batch,)."""
        own = self.encoder(batch.history, batch.history_mask, batch.history_items)  # (batch, d)
        elsewhere = super().transferred(batch.passports, batch.descriptor)  # (batch, P, d)
        interests = torch.cat([own[:, None], elsewhere], dim=1)  # (batch, 1 + P, d)
        scale = self.head(interests.new_ones(len(interests), 1, 1))  # (batch, 1, 1), once: it is used in both loops
        offset, gate = self.start(interests)
        support, query = divided(batch)
        adapted = inner_loop(
            interests,
            offset,
            gate,
            lambda some: support_loss(some, scale, support, self.prior_items),
            rate=self.rate,
            steps=self.steps,
            second_order=self.second_order,
        )
        begun = (1.0 + gate) * interests + offset  # (batch, 1 + P, d)
        loss = 0.5 * (cross_entropy(scale * begun, query) + cross_entropy(scale * adapted, query))  # (batch, 1 + P)
        return per_user(loss, batch, self.own_history_weight)


def divided(batch: Batch) -> tuple[Batch, Batch]:
    """The batch with the support items of each user as its targets, and with the query items."""
    odd = torch.arange(batch.target_mask.shape[1]) % 2  # (M,)
    support = dataclasses.replace(batch, target_mask=batch.target_mask * odd)
    return support, dataclasses.replace(batch, target_mask=batch.target_mask * (1 - odd))
