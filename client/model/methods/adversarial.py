r"""`adversarial`: interests from elsewhere shall look like interests of this domain, as far as a discriminator can tell.

Domain-adversarial training (DANN; Ganin and Lempitsky 2015, "Unsupervised domain adaptation by backpropagation"; Ganin et al. 2016,
"Domain-adversarial training of neural networks", JMLR 17, eq. 13 to 15). With :math:`z` the user's own interest, :math:`t_1..t_P` the
transferred interests from elsewhere, and a linear discriminator :math:`D(z) = \sigma(w^T z)` for "made of a history here",

.. math:: \ell_{dom} = -\tfrac12 \log D(z) - \tfrac12 \tfrac1P \sum_p \log(1 - D(t_p)),

the discriminator descends :math:`\lambda\,\ell_{dom}`, and encoder and transfer layer descend :math:`\ell_{task} - \lambda\,\ell_{dom}`:
the gradient is turned round between them. All of it is one gradient of one user, clipped and noised as a whole in one step; the
discriminator is a shared array, so that what it knows of other domains comes from their noisy averages and never from their users.

Both halves of :math:`\ell_{dom}` are there only as far as the user has them: without passports it is the first, without a history the
second, and nobody's half is weighed by how common it is among the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from client.model.objective import Batch, cross_entropy
from shared.config import RunConfig

from .residual import InterestModel
from .shares import mean_of_brought, per_user


class _Reversed(torch.autograd.Function):
    """The same value; the gradient with its sign turned."""

    @staticmethod
    def forward(ctx: Any, interest: Tensor) -> Tensor:
        return interest.view_as(interest)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def reversed_gradient(interest: Tensor) -> Tensor:
    """R(x) of the paper: R(x) = x, dR/dx = -1."""
    turned: Tensor = _Reversed.apply(interest)
    return turned


class AdversarialModel(InterestModel):
    """The residual model and a discriminator that it works against."""

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        self.weight = config.training.adversarial_weight
        self.discriminator = nn.Linear(config.model.dimension, 1, bias=False)
        nn.init.zeros_(self.discriminator.weight)  # the public start of the shared array

    def forward(self, batch: Batch) -> Tensor:
        """The loss of each user, (batch,): task, and discriminator seen through the reversed gradient."""
        own = self.encoder(batch.history, batch.history_mask, batch.history_items)  # (batch, d)
        elsewhere = self.transferred(batch.passports, batch.descriptor)  # (batch, P, d)
        interests = torch.cat([own[:, None], elsewhere], dim=1)  # (batch, 1 + P, d)
        task = per_user(cross_entropy(self.head(interests), batch), batch, self.own_history_weight)
        return task + self.weight * self._told_apart(interests, batch)

    def _told_apart(self, interests: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the discriminator, (batch,); 0 for a user who has nothing at all."""
        logit = self.discriminator(reversed_gradient(interests))[..., 0]  # (batch, 1 + P)
        here = nn.functional.softplus(-logit[:, 0]) * batch.history_mask.amax(dim=1)  # -log D
        return 0.5 * (here + mean_of_brought(nn.functional.softplus(logit[:, 1:]), batch))
