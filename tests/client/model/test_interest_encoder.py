"""The interest encoder: before training it is the recency-weighted mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.model.encoders import make_encoder
from client.model.encoders.attention import AttentionEncoder
from client.model.encoders.recency import recency_weighted_mean
from shared.config import ModelConfig, RunConfig, TrainingConfig

CONFIG = RunConfig(model=ModelConfig(dimension=6, rank=2, descriptor_dimension=2), training=TrainingConfig(history_decay=0.5))


def untrained() -> AttentionEncoder:
    return make_encoder(CONFIG, torch.Generator().manual_seed(0))


def histories(users: int = 5, length: int = 4) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    mask = np.arange(length)[None, :] >= generator.integers(0, length + 1, size=users)[:, None]  # latest last
    return generator.normal(size=(users, length, 6)).astype(np.float32), mask


def test_the_mean_weighs_the_latest_item_most() -> None:
    history = np.eye(3, dtype=np.float32)[None]
    # weights 1/4, 1/2, 1 over 7/4
    assert recency_weighted_mean(history, np.ones((1, 3), dtype=bool), 0.5)[0] == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def test_the_untrained_encoder_is_that_mean() -> None:
    history, mask = histories()
    found = untrained()(torch.from_numpy(history), torch.from_numpy(mask.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(found, recency_weighted_mean(history, mask, 0.5), atol=1e-6)


def test_a_history_without_items_is_the_zero_vector_with_a_gradient_of_zero() -> None:
    encoder = untrained()
    history = torch.randn(2, 3, 6, requires_grad=True)
    interest = encoder(history, torch.zeros(2, 3))
    assert not interest.any()
    interest.sum().backward()
    assert history.grad is not None
    assert not history.grad.any()
    assert all(p.grad is None or not p.grad.any() for p in encoder.parameters())


def test_padding_changes_nothing() -> None:
    encoder = untrained()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    history = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([torch.full((1, 4, 6), 9.0), history], dim=1)
    mask = torch.cat([torch.zeros(1, 4), torch.ones(1, 3)], dim=1)
    np.testing.assert_allclose(encoder(padded, mask).detach(), encoder(history, torch.ones(1, 3)).detach(), atol=1e-6)


def test_the_order_of_items_matters() -> None:
    history = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(untrained()(history, torch.ones(1, 3)), untrained()(history.flip(1), torch.ones(1, 3)))


def test_an_empty_batch_has_no_interests() -> None:
    assert untrained()(torch.zeros(0, 1, 6), torch.zeros(0, 1)).shape == (0, 6)
    assert recency_weighted_mean(np.zeros((0, 1, 6), np.float32), np.zeros((0, 1), bool), 0.5).shape == (0, 6)
