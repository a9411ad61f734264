r"""Interest encoders: a user's history -> one interest vector. Private, trained with DP, never leave the client.

An encoder starts as the recency-weighted mean of the history, so before any training the system is the zero-shot text recommender.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.config import RunConfig


class InterestEncoder(Protocol):
    """What every encoder does."""

    def __call__(self, history: Tensor, mask: Tensor) -> Tensor:
        """Args: history (batch, L, d) coordinates, latest item last; mask (batch, L), 1 = an item. Returns (batch, d)."""
        ...


def recency_weighted_mean(history: np.ndarray, mask: np.ndarray, decay: float) -> np.ndarray:
    """The public initial state of every encoder, without any parameter.

    Args:
        history: (n, L, d) coordinates, latest item last.
        mask: (n, L) true where there is an item.
        decay: weight of an item relative to the next later one.
    Returns:
        (n, d) float32; zero rows where a history is empty.
    """
    age = np.arange(history.shape[1] - 1, -1, -1, dtype=np.float32)
    weights = (decay**age)[None, :] * mask  # (n, L)
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return np.einsum("nl,nld->nd", weights, history).astype(np.float32)


class AttentionEncoder(nn.Module):
    r"""Attention over the last L items, with a learned recency bias and a learned content key.

    .. math:: a_l \propto \exp(\mathrm{age}_l \log\rho + u^T[\mathrm{age}_l, \log(1 + \mathrm{age}_l)]/10 + k^T x_l),\qquad
              z = m + E \tanh(D m),\; m = \sum_l a_l x_l

    with u = k = E = 0 at the start. The latest item has age 0; ages are positions, so no private time scale enters.
    """

    inner = 8

    def __init__(self, dimension: int, decay: float) -> None:
        super().__init__()
        self.log_decay = math.log(decay)
        self.recency = nn.Linear(2, 1, bias=False)
        self.content = nn.Linear(dimension, 1, bias=False)
        self.reduce = nn.Linear(dimension, self.inner, bias=False)
        self.expand = nn.Linear(self.inner, dimension, bias=False)
        for layer in (self.recency, self.content, self.expand):
            nn.init.zeros_(layer.weight)

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = history.shape
        age = torch.arange(length - 1, -1, -1, dtype=history.dtype)  # (L,)
        # expanded to (batch, L): a position table without a batch dimension gives silently wrong per-user gradients
        features = torch.stack([age, torch.log1p(age)], dim=-1).mul(0.1).expand(batch, length, 2)  # (batch, L, 2)
        score = age * self.log_decay + self.recency(features)[..., 0] + self.content(history)[..., 0]  # (batch, L)
        attention = torch.softmax(score.masked_fill(mask == 0, -1e9), dim=1) * mask  # (batch, L); zero where there is no history
        mean = torch.einsum("bl,bld->bd", attention, history)  # (batch, d)
        return mean + self.expand(torch.tanh(self.reduce(mean)))  # (batch, d)


def make_encoder(config: RunConfig, generator: torch.Generator) -> AttentionEncoder:
    """The encoder that the configuration names, in its public initial state."""
    encoder = AttentionEncoder(config.model.dimension, config.training.history_decay)
    nn.init.normal_(encoder.reduce.weight, std=1 / math.sqrt(encoder.inner), generator=generator)
    return encoder
