"""Rounding is no mistake: what single precision cannot tell is asked in double precision, and a true mistake stays one there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from client.canary import gradients
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.privacy.conformance import GRADIENT_TOLERANCE


def test_rounding_that_looks_like_a_mistake_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(model=ModelConfig(dimension=8, rank=2, descriptor_dimension=2, prototypes=2), training=TrainingConfig())
    model, batch = gradients.moved_model(config, "arts"), gradients._four_users(config.model)
    exact, shifted = gradients.per_user_gradients, 1.0 + 10 * GRADIENT_TOLERANCE

    def coarse(model: torch.nn.Module, batch: object) -> np.ndarray:
        found = exact(model, batch)  # type: ignore[arg-type]
        return found * shifted if found.dtype == np.float32 else found

    monkeypatch.setattr(gradients, "per_user_gradients", coarse)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert gradients._gradient_error(model, batch) > GRADIENT_TOLERANCE
    assert gradients.gradient_error(model, batch) < 1e-12
    for one, was in zip(model.parameters(), before, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, was)

    monkeypatch.setattr(gradients, "per_user_gradients", lambda model, batch: exact(model, batch)[[1, 0, 2, 3]])
    assert gradients.gradient_error(model, batch) > GRADIENT_TOLERANCE


def test_a_language_model_keeps_the_answer_of_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    base = RunConfig()
    config = dataclasses.replace(base, model=dataclasses.replace(base.model, encoder="text-lora"))
    model, batch = gradients.moved_model(config, "arts"), gradients._four_users(config.model)
    exact = gradients.per_user_gradients
    monkeypatch.setattr(gradients, "per_user_gradients", lambda model, batch: 2.0 * exact(model, batch))
    assert gradients.gradient_error(model, batch) == pytest.approx(1.0, rel=0.01)
