"""T6: the gradients that are clipped are the true ones, each of its own user alone; and a small self-test before the rounds of a process.

Per-user gradients come from hooks on layers. A layer that those hooks misread, in a new version of a library or of the model, would be
clipped at the wrong place without any error; plain autograd on one user at a time is the truth to compare with.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch

from client.model.item_tokens import attach
from client.model.methods import InterestModel
from client.model.objective import Batch
from client.training import dp_sgd, local_round
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.errors import StateError
from shared.privacy.conformance import GRADIENT_TOLERANCE, relative_error

from .texts import ITEMS, invented

_USERS, _ITEMS, _SPREAD = 4, 3, 0.3


def per_user_gradients(model: InterestModel, batch: Batch) -> np.ndarray:
    """(batch, p) gradients as training computes them; NaN where they are not one for each user."""
    wrapped = dp_sgd.PerUserGradients(model, loss_reduction="sum")
    wrapped.train()
    try:
        wrapped(batch).sum().backward()
        samples = [_sample(p).flatten(1).cpu().numpy() for p in model.parameters() if p.requires_grad]
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
    """Largest relative error of a user's gradient against plain autograd on that user alone.

    Where it is too large, it is asked again in double precision: rounding vanishes there, a gradient that is another user's does not.
    """
    error = _gradient_error(model, batch)
    if error <= GRADIENT_TOLERANCE:
        return error
    try:
        return _gradient_error(model.double(), _double(batch))
    except RuntimeError:  # a language model's frozen rows stay in single precision
        return error
    finally:
        model.float()


def _double(batch: Batch) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{name: value.double() for name, value in values.items() if _is_single(value)})


def _is_single(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _gradient_error(model: InterestModel, batch: Batch) -> float:
    errors = []
    for position, mine in enumerate(per_user_gradients(model, batch)):
        loss = model(batch.part(position, position + 1)).sum()
        parts = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        truth = np.concatenate([part.flatten().cpu().numpy() for part in parts])
        errors.append(relative_error(mine, truth))
    return _worst(errors)


def coupling(model: InterestModel, alone: Batch, together: Batch) -> float:
    """Largest relative change of the gradients of the first users of ``together`` against those of the batch ``alone``."""
    pairs = zip(per_user_gradients(model, alone), per_user_gradients(model, together), strict=False)
    return _worst([relative_error(b, a) for a, b in pairs])


def _worst(errors: list[float]) -> float:
    return float(np.max(np.nan_to_num(errors, nan=np.inf)))


def moved_model(config: RunConfig, domain: str, seed: int = 2) -> InterestModel:
    """The model of a domain, away from its initial zeros, where half of the gradients vanish; it reads the texts of `invented`."""
    model = local_round.initial_model(config, domain)
    attach(model.encoder, invented(config.model, ITEMS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(_SPREAD * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return model


def self_test(config: RunConfig) -> None:
    """Compares the gradients of four synthetic users with those of one user at a time; once in a process for each model.

    It reads no data and costs a few milliseconds. Call it before the first round.

    Raises:
        StateError: they differ, so that training would clip something else than a user's gradient.
    """
    # another learning rate is no other model
    error = _error_of(config.model, dataclasses.replace(config.training, learning_rate=TrainingConfig().learning_rate))
    if not error <= GRADIENT_TOLERANCE:
        raise StateError(
            f"per-user gradients are off by {error:.2g} in this installation: what is clipped would not be a user's gradient",
            do="Install the versions that constraints.txt names, then run: isthmus-client canary PARTNER_TOML",
        )


@functools.lru_cache(maxsize=8)
def _error_of(model: ModelConfig, training: TrainingConfig) -> float:
    config = RunConfig(model=model, training=training)
    state = torch.random.get_rng_state()
    try:
        # as many users as history items: where the two are confused, nothing but the numbers is wrong
        users = _four_users(config.model)
        batches = [users]
        if model.method == "knowledge-mf":  # explicit ratings have a loss of their own
            ratings = torch.linspace(training.rating_low, training.rating_low + training.rating_span, _USERS * _ITEMS)
            batches.append(dataclasses.replace(users, target_ratings=ratings.view(_USERS, _ITEMS)))
        moved = moved_model(config, "self-test")
        return _worst([gradient_error(moved, batch) for batch in batches])
    finally:
        torch.random.set_rng_state(state)


def _four_users(model: ModelConfig) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def vectors(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, model.dimension, generator=generator), dim=-1)

    mask = torch.ones(_USERS, _USERS)
    mask[0, :2] = 0.0
    brought = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    negatives, targets, drawn = vectors(16), vectors(_USERS, _ITEMS), torch.zeros(_USERS, _ITEMS)
    targets[1, 0], targets[3, 2] = negatives[4], negatives[9]
    drawn[1, 0] = drawn[3, 2] = 1.0
    return Batch(
        history=vectors(_USERS, _USERS) * mask[..., None],
        history_mask=mask,
        passports=vectors(_USERS, 2) * brought[..., None],
        passport_mask=brought,
        targets=targets,
        target_mask=torch.ones(_USERS, _ITEMS),
        negatives=negatives,
        hits=drawn,
        negative_weight=4.0,
        descriptor=vectors()[: model.descriptor_dimension],
        history_items=torch.randint(ITEMS, (_USERS, _USERS), generator=generator),
        prototypes=vectors(5),
    )
