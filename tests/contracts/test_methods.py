"""What every method of moving interests between domains keeps, whatever it adds to the loss."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.canary import conformance, gradients, synthetic
from client.canary.steps import listening
from client.model.encoders.recency import recency_weighted_mean
from client.model.methods import InterestModel, make_model
from client.model.objective import Batch
from client.training.dp_sgd import joint_dimension, train
from client.training.local_round import round_mechanism
from client.training.noise import SeededNoise
from client.training.sampler import PoissonSampler
from shared.config import RunConfig
from shared.privacy.conformance import GRADIENT_TOLERANCE
from shared.transfer_layer import initial_arrays, shared_shapes
from tests.client.training.tiny_partner import MODEL, TRAINING, D, config_of, examples_of, people

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("residual", {}),
    "adversarial": ("adversarial", {}),
    "maml, second order": ("maml", {"first_order": False}),
    "maml, first order, three steps": ("maml", {"first_order": True, "inner_steps": 3}),
    "maml, second order, two steps": ("maml", {"first_order": False, "inner_steps": 2}),
    "knowledge-mf": ("knowledge-mf", {}),
}
RATED = "knowledge-mf, explicit ratings"


@pytest.fixture(params=[*METHODS, RATED])
def joined(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def config(joined: str) -> RunConfig:
    method, constants = METHODS["knowledge-mf" if joined == RATED else joined]
    return config_of(model=dataclasses.replace(MODEL, method=method), training=dataclasses.replace(TRAINING, **constants))


@pytest.fixture
def model(config: RunConfig) -> InterestModel:
    """Away from its initial zeros, where half of the gradients vanish."""
    return gradients.moved_model(config, "arts")


@pytest.fixture
def batch(joined: str) -> Batch:
    """Seventeen users, some of them without passports, some without a history."""
    return rated(joined, examples_of(people(17))(np.arange(17)))


def rated(joined: str, batch: Batch) -> Batch:
    if joined != RATED:
        return batch
    ratings = torch.randint(1, 6, tuple(batch.target_mask.shape), generator=torch.Generator().manual_seed(3))
    return dataclasses.replace(batch, target_ratings=ratings.float())


def gradients_of(model: InterestModel, batch: Batch) -> np.ndarray:
    return gradients.per_user_gradients(model, batch)


def only(model: InterestModel, prefix: str, found: np.ndarray) -> np.ndarray:
    """The columns of the joint gradients that belong to parameters of this name."""
    names = np.concatenate([np.full(p.numel(), name.startswith(prefix)) for name, p in model.named_parameters()])
    return found[:, names]


def test_what_is_declared_is_what_travels_and_all_else_stays(config: RunConfig, model: InterestModel) -> None:
    shapes = shared_shapes(config.model)
    assert {name: tuple(p.shape) for name, p in model.shared_parameters().items()} == shapes
    assert {name: array.shape for name, array in initial_arrays(config.model, 0).items()} == shapes
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in model.shared_parameters().values()} < trained  # what travels is clipped and noised, and is not everything


def test_before_any_training_it_is_the_zero_shot_text_recommender(config: RunConfig, batch: Batch) -> None:
    model = make_model(config, seed=5)
    model.load_shared(initial_arrays(config.model, 7))
    with torch.no_grad():
        assert torch.equal(model.transferred(batch.passports, batch.descriptor), batch.passports)
        read = model.encoder(batch.history, batch.history_mask, batch.history_items).numpy()
    mean = recency_weighted_mean(batch.history.numpy(), batch.history_mask.numpy(), config.training.history_decay)
    np.testing.assert_allclose(read, mean, atol=1e-6)


def test_per_user_gradients_are_those_of_one_user_at_a_time(model: InterestModel, batch: Batch) -> None:
    assert gradients.gradient_error(model, batch) < GRADIENT_TOLERANCE
    square = batch.part(0, min(batch.users, batch.history.shape[1]))  # as many users as items: where axes are confused, only numbers tell
    assert gradients.gradient_error(model, square) < GRADIENT_TOLERANCE


def test_every_parameter_is_moved_by_somebody(model: InterestModel, batch: Batch) -> None:
    moved = np.abs(gradients_of(model, batch)).max(axis=0)
    start = 0
    for name, parameter in model.named_parameters():
        assert moved[start : start + parameter.numel()].any(), name
        start += parameter.numel()


def test_nobody_is_moved_by_who_else_is_there(joined: str, model: InterestModel, batch: Batch) -> None:
    alone = batch.part(0, 4)
    assert gradients.coupling(model, alone, batch) < GRADIENT_TOLERANCE
    for kind in synthetic.LOUD:
        loud = rated(joined, examples_of(people(17).with_loud(9, kind))(np.arange(17)))
        before = gradients_of(model, rated(joined, examples_of(people(17))(np.arange(17))))
        after = gradients_of(model, loud)
        others = np.arange(17) != 9
        assert np.abs(after[others] - before[others]).max() < 1e-4, kind


def test_a_batch_of_nobody_has_gradients_of_nobody(model: InterestModel, batch: Batch) -> None:
    assert model(batch.part(0, 0)).shape == (0,)
    assert gradients_of(model, batch.part(0, 0)).shape == (0, joint_dimension(model))


def test_a_user_without_passports_says_nothing_about_the_transfer_layer(model: InterestModel, batch: Batch) -> None:
    without = dataclasses.replace(batch, passports=torch.zeros_like(batch.passports), passport_mask=torch.zeros_like(batch.passport_mask))
    found = gradients_of(model, without)
    assert np.isfinite(found).all()
    assert not only(model, "transfer.", found).any()
    has_history = batch.history_mask.amax(dim=1).numpy() > 0
    assert only(model, "encoder.", found)[has_history].any(axis=1).all()


def test_a_user_without_a_history_says_nothing_about_the_encoder(model: InterestModel, batch: Batch) -> None:
    without = dataclasses.replace(batch, history=torch.zeros_like(batch.history), history_mask=torch.zeros_like(batch.history_mask))
    found = gradients_of(model, without)
    assert np.isfinite(found).all()
    assert not only(model, "encoder.", found).any()
    said = (batch.passport_mask.amax(dim=1) * batch.target_mask.amax(dim=1)).numpy() > 0
    assert said.any()
    assert only(model, "transfer.", found)[said].any(axis=1).all()


def test_a_user_with_nothing_at_all_has_no_gradient(model: InterestModel, batch: Batch) -> None:
    nothing = dataclasses.replace(
        batch,
        history=torch.zeros_like(batch.history),
        history_mask=torch.zeros_like(batch.history_mask),
        passports=torch.zeros_like(batch.passports),
        passport_mask=torch.zeros_like(batch.passport_mask),
        target_mask=torch.zeros_like(batch.target_mask),
    )
    assert model(nothing).abs().max() == 0.0
    assert np.abs(gradients_of(model, nothing)).max() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e37])
def test_a_user_whose_numbers_are_none_contributes_zero(
    joined: str, config: RunConfig, model: InterestModel, batch: Batch, value: float
) -> None:
    passports, mask = batch.passports.clone(), batch.passport_mask.clone()
    passports[2], mask[2] = value, 1.0
    spoilt = dataclasses.replace(batch, passports=passports, passport_mask=mask)
    others = np.flatnonzero(np.arange(batch.users) != 2)
    found = gradients_of(model, spoilt)
    assert np.isfinite(found[others]).all()
    finite = bool(np.isfinite(found[2]).all())
    assert not (finite and np.isnan(value))
    with_user, without_user = copy.deepcopy(model), copy.deepcopy(model)
    take_a_step(with_user, config, spoilt)
    take_a_step(without_user, config, pick(spoilt, others))
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(with_user.parameters(), without_user.parameters(), strict=True))
    assert moved <= config.privacy.clip_norm + 1e-4
    assert finite or moved < 1e-5  # with that user or without: the same step


def pick(batch: Batch, users: np.ndarray) -> Batch:
    rows = torch.from_numpy(users)
    of_users = (
        "history",
        "history_mask",
        "passports",
        "passport_mask",
        "targets",
        "target_mask",
        "hits",
        "history_items",
        "target_ratings",
    )
    given: dict[str, Any] = {name: getattr(batch, name) for name in of_users}
    chosen: dict[str, Any] = {name: None if array is None else array[rows] for name, array in given.items()}
    return dataclasses.replace(batch, **chosen)


def take_a_step(model: InterestModel, config: RunConfig, batch: Batch) -> None:
    """A step of the DP optimiser with all but no noise, in micro-batches of eight."""
    train(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        users=batch.users,
        make_batch=lambda _: batch,
        mechanism=dataclasses.replace(round_mechanism(config), noise_multiplier=1e-9),
        divisor=1.0,
        sampler=PoissonSampler(0),
        noise=SeededNoise(0),
        micro_batch_users=8,
    )


def test_a_step_moves_the_parameters_by_the_sum_of_clipped_gradients(config: RunConfig, model: InterestModel, batch: Batch) -> None:
    bound = config.privacy.clip_norm
    each = gradients_of(model, batch).astype(np.float64)
    norms = np.linalg.norm(each, axis=1, keepdims=True)
    wanted = (each * np.minimum(1.0, bound / np.maximum(norms, 1e-12))).sum(axis=0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy()
    take_a_step(model, config, batch)
    after = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    np.testing.assert_allclose(before - after, wanted, atol=1e-4 * max(1.0, np.abs(wanted).max()))


def test_real_local_rounds_send_what_is_declared_and_go_on_from_their_state(config: RunConfig, tmp_path: Path) -> None:
    partner = synthetic.partner(tmp_path / "shop", config, people(40))
    with listening() as heard:
        first = partner.update(1)
        second = partner.update(2)
    assert len(heard) == 2
    assert all(np.abs(step).max() > 0 for step in heard)
    assert {name: array.shape for name, array in first.arrays.items()} == shared_shapes(config.model)
    assert all(np.isfinite(array).all() for array in second.arrays.values())
    moved = [name for name, array in first.arrays.items() if not np.array_equal(array, partner.layer[name])]
    assert sorted(moved) == sorted(shared_shapes(config.model))  # noise alone moves every array
    assert partner.update(2).arrays.keys() == second.arrays.keys()


@pytest.mark.journey
@pytest.mark.parametrize("joined", [name for name in METHODS if name != "residual"], indirect=True)
def test_the_code_of_a_release_passes_the_checks_of_tier_1(config: RunConfig, tmp_path: Path) -> None:
    found = conformance.check(config, tmp_path, processes=False)
    assert len(found) > 15
    assert [one.name for one in found if not one.passed] == []


def test_the_self_test_before_a_round_knows_the_method(config: RunConfig) -> None:
    gradients._error_of.cache_clear()
    gradients.self_test(config)
    assert gradients._error_of.cache_info().currsize == 1
    assert config.model.dimension == D
