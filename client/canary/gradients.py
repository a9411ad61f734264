"""T6: the gradients that are clipped are the true ones, each of its own user alone; and a small self-test before the rounds of a process.

Per-user gradients come from hooks on layers. A layer that those hooks misread, in a new version of a library or of the model, would be
clipped at the wrong place without any error; plain autograd on one user at a time is the truth to compare with.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch

from client.model.methods import InterestModel
from client.model.objective import Batch
from client.training import dp_sgd, local_round
from shared.config import ModelConfig, RunConfig
from shared.errors import StateError
from shared.privacy.conformance import GRADIENT_TOLERANCE, relative_error

_USERS, _ITEMS, _SPREAD = 4, 3, 0.3


def per_user_gradients(model: InterestModel, batch: Batch) -> np.ndarray:
    """(batch, p) gradients as training computes them; NaN where they are not one for each user."""
    wrapped = dp_sgd.PerUserGradients(model, loss_reduction="sum")
    wrapped.train()
    try:
        wrapped(batch).sum().backward()
        samples = [_sample(p).flatten(1).numpy() for p in model.parameters() if p.requires_grad]
        if any(len(sample) != batch.users for sample in samples):
            return np.full((batch.users, sum(sample.shape[1] for sample in samples)), np.nan)
        return np.concatenate(samples, axis=1)
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.to_standard_module()


def _sample(parameter: torch.nn.Parameter) -> torch.Tensor:
    sample: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]  # Opacus hangs it on
    return sample


def gradient_error(model: InterestModel, batch: Batch) -> float:
    """Largest relative error of a user's gradient against plain autograd on that user alone."""
    errors = []
    for position, mine in enumerate(per_user_gradients(model, batch)):
        loss = model(batch.part(position, position + 1)).sum()
        truth = np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])])
        errors.append(relative_error(mine, truth))
    return _worst(errors)


def coupling(model: InterestModel, alone: Batch, together: Batch) -> float:
    """Largest relative change of the gradients of the first users of ``together`` against those of the batch ``alone``."""
    pairs = zip(per_user_gradients(model, alone), per_user_gradients(model, together), strict=False)
    return _worst([relative_error(b, a) for a, b in pairs])


def _worst(errors: list[float]) -> float:
    return float(np.max(np.nan_to_num(errors, nan=np.inf)))


def moved_model(config: RunConfig, domain: str, seed: int = 2) -> InterestModel:
    """The model of a domain, away from its initial zeros, where half of the gradients vanish."""
    model = local_round.initial_model(config, domain)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(_SPREAD * torch.randn(parameter.shape, generator=generator))
    return model


def self_test(config: RunConfig) -> None:
    """Compares the gradients of four synthetic users with those of one user at a time; once in a process for each model.

    It reads no data and costs a few milliseconds. Call it before the first round.

    Raises:
        StateError: they differ, so that training would clip something else than a user's gradient.
    """
    error = _error_of(config.model, config.training.history_decay, config.training.own_history_weight, config.training.temperature)
    if not error <= GRADIENT_TOLERANCE:
        raise StateError(
            f"per-user gradients are off by {error:.2g} in this installation: what is clipped would not be a user's gradient",
            do="Install the versions that constraints.txt names, then run: isthmus-client canary PARTNER_TOML",
        )


@functools.lru_cache(maxsize=8)
def _error_of(model: ModelConfig, history_decay: float, own_history_weight: float, temperature: float) -> float:
    """Only what shapes the model, so that another learning rate is no other model."""
    config = RunConfig(model=model)
    training = dataclasses.replace(
        config.training, history_decay=history_decay, own_history_weight=own_history_weight, temperature=temperature
    )
    config = dataclasses.replace(config, training=training)
    state = torch.random.get_rng_state()
    try:
        # as many users as history items: where the two are confused, nothing but the numbers is wrong
        return gradient_error(moved_model(config, "self-test"), _four_users(config.model))
    finally:
        torch.random.set_rng_state(state)


def _four_users(model: ModelConfig) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def vectors(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, model.dimension, generator=generator), dim=-1)

    mask = torch.ones(_USERS, _USERS)
    mask[0, :2] = 0.0
    brought = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    return Batch(
        history=vectors(_USERS, _USERS) * mask[..., None],
        history_mask=mask,
        passports=vectors(_USERS, 2) * brought[..., None],
        passport_mask=brought,
        targets=vectors(_USERS, _ITEMS),
        target_mask=torch.ones(_USERS, _ITEMS),
        negatives=vectors(16),
        hits=torch.zeros(_USERS, _ITEMS),
        negative_weight=4.0,
        descriptor=vectors()[: model.descriptor_dimension],
    )
