r"""Attention over the latest items: the smallest encoder, a thousand parameters or two."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AttentionEncoder(nn.Module):
    r"""Attention over the last L items, with a learned recency bias and a learned content key.

    .. math:: a_l \propto \exp(\mathrm{age}_l \log\rho + u^T[\mathrm{age}_l, \log(1 + \mathrm{age}_l)]/10 + k^T x_l),\qquad
              z = m + E \tanh(D m),\; m = \sum_l a_l x_l

    with u = k = E = 0 at the start. The latest item has age 0; ages are positions, so no private time scale enters.
    """

    inner = 8

    def __init__(self, dimension: int, decay: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.log_decay = math.log(decay)
        self.recency = nn.Linear(2, 1, bias=False)
        self.content = nn.Linear(dimension, 1, bias=False)
        self.reduce = nn.Linear(dimension, self.inner, bias=False)
        self.expand = nn.Linear(self.inner, dimension, bias=False)
        for layer in (self.recency, self.content, self.expand):
            nn.init.zeros_(layer.weight)
        nn.init.normal_(self.reduce.weight, std=1 / math.sqrt(self.inner), generator=generator)

    def forward(self, history: Tensor, mask: Tensor, items: Tensor | None = None) -> Tensor:
        del items
        batch, length, _ = history.shape
        age = torch.arange(length - 1, -1, -1, dtype=history.dtype)  # (L,)
        # expanded to (batch, L): a position table without a batch dimension gives silently wrong per-user gradients
        features = torch.stack([age, torch.log1p(age)], dim=-1).mul(0.1).expand(batch, length, 2)  # (batch, L, 2)
        score = age * self.log_decay + self.recency(features)[..., 0] + self.content(history)[..., 0]  # (batch, L)
        attention = torch.softmax(score.masked_fill(mask == 0, -1e9), dim=1) * mask  # (batch, L); zero where there is no history
        mean = torch.einsum("bl,bld->bd", attention, history)  # (batch, d)
        return mean + self.expand(torch.tanh(self.reduce(mean)))  # (batch, d)
