"""The public initial state of every encoder as a layer of torch: weights by age, nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1e9
"""Added to the score of padding. Finite, so that a history of nothing else has a gradient (of zero)."""


def recency_weights(mask: Tensor, log_decay: float) -> Tensor:
    """Weights of the untrained encoder.

    Args:
        mask: (batch, L), 1 = an item; latest item last, and the place of the latest has age 0 even where it is padding.
        log_decay: logarithm of the weight of an item relative to the next later one.
    Returns:
        (batch, L): they add up to 1, or to 0 where there is no item.

    >>> thirds = 3 * recency_weights(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), log_decay=-0.6931472)  # half as much for each step
    >>> thirds.round().int().tolist()
    [[0, 1, 2], [0, 0, 0]]
    """
    age = torch.arange(mask.shape[1] - 1, -1, -1, dtype=mask.dtype, device=mask.device)  # (L,)
    score = (age * log_decay).expand_as(mask).masked_fill(mask == 0, NEVER)  # (batch, L)
    return torch.softmax(score, dim=1) * mask
