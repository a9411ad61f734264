r"""`knowledge-mf`: matrix factorisation of ratings with an attention knowledge term.

.. math:: \ell = \tfrac12 \sum_j w_j \big(r_j - \hat r_j + \alpha K_j\big)^2 + \tfrac\beta2 \sum_t \lVert k_t \rVert^2,\qquad
          \hat r_j = \sigma(s \langle z, x_j \rangle + b),\qquad
          k = \mathrm{softmax}(\kappa\, C z),\qquad K_j = -\langle C^T k,\, x_j \rangle

with :math:`z` the user's interest, :math:`x_j` the public factor of item j (its coordinates), C the (K, d) prototypes of the space.
:math:`k` is what this user is known to care for: attention of the own interest over public prototypes, so it is made of that user's data
and public data alone. K is written as a lack (the minus), so what is predicted is :math:`\hat r_j - \alpha K_j`, as the residual says.

The nearest in the literature: matrix factorisation by squared loss with a ridge (Salakhutdinov and Mnih 2008, "Probabilistic matrix
factorization"), plus an attention over memory slots whose read-out enters the score (Ebesu, Shen and Fang 2018, "Collaborative memory
network for recommendation systems", SIGIR), here over public prototypes instead of other users; that a user's other actions move the
prediction is SVD++ (Koren 2008). None of them states this very sum.

Explicit ratings are scaled to r = (rating - low) / span and the sum is the mean over the user's rated targets. Without ratings a target
has r = 1 and a negative of the public catalogue r = 0, each side with half of the weight (one-class collaborative filtering; Pan et al.
2008, ICDM), and a target that was drawn as a negative is not held against itself.

The residual is bounded: r and r_hat lie in [0, 1] and \|K\| is at most 1, so no rating and no passport, however large, moves a loss beyond
(1 + alpha)^2 / 2, before anything is clipped.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from client.interest_distribution import SHARPNESS
from client.model.objective import Batch
from shared.config import RunConfig
from shared.errors import StateError

from .residual import InterestModel
from .shares import per_user

_SLOPE = 0.25
"""Of the logistic function at 0: how far r_hat moves with its argument."""


@runtime_checkable
class ReadsPrototypes(Protocol):
    """A method whose carried-over interests read the prototypes of the interest space; who serves hands them in."""

    def read_with(self, prototypes: Tensor) -> None: ...


class KnowledgeModel(InterestModel):
    """The residual model with a squared loss and a knowledge term; log(alpha / its start) is shared, the level b of ratings stays."""

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        super().__init__(config, seed=seed)
        training = config.training
        self.first_weight, self.decay = training.knowledge_weight, training.knowledge_decay
        self.low, self.span = training.rating_low, training.rating_span
        self.knowledge = nn.Linear(1, 1, bias=False)
        self.level = nn.Linear(1, 1, bias=False)
        for layer in (self.knowledge, self.level):
            nn.init.zeros_(layer.weight)
        self._prototypes: Tensor | None = None  # public; of serving, for a batch brings its own

    def read_with(self, prototypes: Tensor) -> None:
        """From here on `transferred` adds what is known of a user. Args: prototypes (K, d) of the interest space."""
        self._prototypes = prototypes

    def transferred(self, passports: Tensor, descriptor: Tensor) -> Tensor:
        """Interest here, and where prototypes were given also the knowledge read-out, as the part of an interest that scores alike.

        At r_hat near 1/2 an interest larger by v moves it by s <v, x> / 4, so alpha C^T k is worth 4 alpha / s of it.
        """
        moved = super().transferred(passports, descriptor)
        if self._prototypes is None:
            return moved
        scale = self.head(moved.new_ones(1, 1))
        alpha = self._alpha(moved.new_ones(1, 1))
        return moved + alpha / (_SLOPE * scale) * (known(moved, self._prototypes) @ self._prototypes)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of each user, (batch,)."""
        if batch.prototypes is None:
            raise StateError("the method 'knowledge-mf' reads prototypes, and the training data hold none")
        own = self.encoder(batch.history, batch.history_mask, batch.history_items)  # (batch, d)
        elsewhere = super().transferred(batch.passports, batch.descriptor)  # (batch, P, d)
        interests = torch.cat([own[:, None], elsewhere], dim=1)  # (batch, 1 + P, d)
        knowledge = known(interests, batch.prototypes)  # (batch, 1 + P, K)
        ones = interests.new_ones(len(interests), 1, 1)
        read = self._alpha(ones) * (knowledge @ batch.prototypes)  # (batch, 1 + P, d): alpha C^T k
        scaled, level = self.head(ones) * interests, self.level(ones)

        def predicted(items: Tensor) -> Tensor:
            """Args: items (batch or 1, d, M). Returns r_hat - alpha K, (batch, 1 + P, M)."""
            return torch.sigmoid(scaled @ items + level) + read @ items

        at_targets = predicted(batch.targets.transpose(1, 2))  # (batch, 1 + P, M)
        if batch.target_ratings is None:
            squared = one_class(at_targets, predicted(batch.negatives.T), batch)  # (batch, 1 + P)
        else:
            squared = explicit(at_targets, ((batch.target_ratings - self.low) / self.span).clamp(0.0, 1.0), batch)
        ridge = 0.5 * self.decay * knowledge.square().sum(dim=-1)  # (batch, 1 + P)
        has_targets = batch.target_mask.amax(dim=1, keepdim=True)  # (batch, 1): nothing is said about a user of whom nothing is known
        return per_user(squared + ridge * has_targets, batch, self.own_history_weight)

    def _alpha(self, ones: Tensor) -> Tensor:
        """alpha, above 0, of the shape of ``ones`` (..., 1)."""
        grown: Tensor = self.knowledge(ones).exp()
        return self.first_weight * grown


def known(interests: Tensor, prototypes: Tensor) -> Tensor:
    """k: attention of interests (..., d) over prototypes (K, d); (..., K), rows that sum to 1."""
    return torch.softmax(SHARPNESS * interests @ prototypes.T, dim=-1)


def explicit(predicted: Tensor, ratings: Tensor, batch: Batch) -> Tensor:
    """Half the mean squared residual of rated targets. Args: predicted (batch, T, M), ratings (batch, M) in [0, 1]. Returns (batch, T)."""
    mask = batch.target_mask[:, None]  # (batch, 1, M)
    return 0.5 * ((ratings[:, None] - predicted).square() * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1.0)


def one_class(at_targets: Tensor, at_negatives: Tensor, batch: Batch) -> Tensor:
    """Targets are 1 and negatives are 0, and each side weighs a half.

    Args:
        at_targets: (batch, T, M) predictions.
        at_negatives: (batch, T, n).
    Returns:
        (batch, T); 0 for a user without targets.
    """
    mask = batch.target_mask[:, None]  # (batch, 1, M)
    same = (batch.targets[:, :, None] == batch.targets[:, None]).all(dim=3) * batch.target_mask[:, None]  # (batch, M, M)
    # a user's target among the negatives is taken out of them again, once however often it was taken: it is the same number
    own = (batch.hits * batch.target_mask / same.sum(dim=2).clamp(min=1.0))[:, None]  # (batch, 1, M)
    ones = ((1.0 - at_targets).square() * mask).sum(dim=2) / mask.sum(dim=2).clamp(min=1.0)
    left = (at_negatives.shape[2] - own.sum(dim=2)).clamp(min=1.0)
    zeros = (at_negatives.square().sum(dim=2) - (own * at_targets.square()).sum(dim=2)) / left
    return 0.25 * (ones + zeros * mask.amax(dim=2))
