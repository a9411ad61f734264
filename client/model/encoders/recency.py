"""The public initial state of every encoder, without any parameter and without torch."""

from __future__ import annotations

import numpy as np


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
