"""The per-user objective, by numbers that can be checked by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from client.model.methods import InterestModel
from client.model.objective import Batch, cross_entropy
from shared.config import ModelConfig, RunConfig, TrainingConfig
from shared.transfer_layer import shared_shapes

CONFIG = RunConfig(model=ModelConfig(dimension=4, rank=2, descriptor_dimension=2), training=TrainingConfig(own_history_weight=0.25))


def batch_of(users: int = 2, passports: int = 1, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Batch(
        history=random(users, 3, 4),
        history_mask=torch.ones(users, 3),
        passports=random(users, passports, 4),
        passport_mask=torch.ones(users, passports),
        targets=random(users, 2, 4),
        target_mask=torch.ones(users, 2),
        negatives=random(5, 4),
        hits=torch.zeros(users, 2),
        negative_weight=3.0,
        descriptor=random(2),
    )


def losses(batch: Batch) -> list[float]:
    model = InterestModel(CONFIG, seed=0)
    generator = np.random.default_rng(0)
    model.load_shared({name: generator.normal(size=shape).astype(np.float32) for name, shape in shared_shapes(CONFIG.model).items()})
    values: list[float] = model(batch).tolist()
    return values


def test_the_cross_entropy_is_the_sampled_softmax_with_the_correction_for_drawing() -> None:
    batch = dataclasses.replace(
        batch_of(1),
        targets=torch.tensor([[[1.0, 0, 0, 0], [0, 1.0, 0, 0]]]),
        negatives=torch.tensor([[0, 0, 1.0, 0], [0, 0, 0, 1.0]]),
        negative_weight=10.0,
    )
    interest = torch.tensor([[[2.0, 1.0, 0.0, 0.0]]])
    # each negative scores 0 and stands for 10 items: pool = 20; -ln(e^2 / (e^2 + 20)) and -ln(e / (e + 20))
    by_hand = (math.log(1 + 20 * math.exp(-2)) + math.log(1 + 20 * math.exp(-1))) / 2
    assert cross_entropy(interest, batch).item() == pytest.approx(by_hand)


def test_a_target_is_not_its_own_negative() -> None:
    item = torch.tensor([1.0, 0, 0, 0])
    drawn = dataclasses.replace(
        batch_of(1), targets=item.expand(1, 2, 4), negatives=torch.stack([item, torch.zeros(4)]), hits=torch.ones(1, 2), negative_weight=5.0
    )
    missed = dataclasses.replace(drawn, negatives=torch.zeros(1, 4), hits=torch.zeros(1, 2))
    interest = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]])
    assert cross_entropy(interest, drawn).item() == pytest.approx(cross_entropy(interest, missed).item(), rel=1e-5)


def test_a_target_far_above_every_negative_stays_finite() -> None:
    batch = dataclasses.replace(batch_of(1), targets=torch.full((1, 2, 4), 100.0), negatives=torch.full((5, 4), -100.0))
    interest = torch.ones(1, 1, 4, requires_grad=True)
    loss = cross_entropy(interest, batch)
    loss.sum().backward()
    assert loss.item() == 0.0
    assert interest.grad is not None
    assert bool(interest.grad.isfinite().all())


def test_a_masked_target_does_not_count() -> None:
    batch = batch_of(1)
    one = dataclasses.replace(batch, target_mask=torch.tensor([[1.0, 0.0]]))
    other = dataclasses.replace(one, targets=torch.stack([batch.targets[:, 0], torch.full((1, 4), 77.0)], dim=1))
    assert losses(one) == losses(other)


def test_a_user_without_targets_has_no_loss() -> None:
    assert losses(dataclasses.replace(batch_of(), target_mask=torch.zeros(2, 2))) == [0.0, 0.0]


def test_own_history_and_passports_are_weighed_as_configured_and_missing_terms_leave_their_weight_to_the_other() -> None:
    whole = batch_of(1)
    own = losses(dataclasses.replace(whole, passport_mask=torch.zeros(1, 1)))[0]
    brought = losses(dataclasses.replace(whole, history_mask=torch.zeros(1, 3)))[0]
    assert losses(whole)[0] == pytest.approx(0.25 * own + 0.75 * brought, rel=1e-5)
    assert losses(dataclasses.replace(whole, passport_mask=torch.zeros(1, 1), history_mask=torch.zeros(1, 3))) == [0.0]


def test_passports_average() -> None:
    both = dataclasses.replace(batch_of(1, passports=2), history_mask=torch.zeros(1, 3))
    one, other = (losses(dataclasses.replace(both, passport_mask=torch.tensor([mask])))[0] for mask in ([1.0, 0.0], [0.0, 1.0]))
    assert losses(both)[0] == pytest.approx((one + other) / 2, rel=1e-5)


def test_the_loss_of_a_user_does_not_see_the_others() -> None:
    batch = batch_of(3)
    assert losses(batch.part(0, 2)) == pytest.approx(losses(batch)[:2])
    spoiled = dataclasses.replace(batch, passports=torch.cat([batch.passports[:2], torch.full((1, 1, 4), math.nan)]))
    assert losses(spoiled)[:2] == pytest.approx(losses(batch)[:2])
    assert math.isnan(losses(spoiled)[2])


def test_before_training_the_interest_is_the_passport_itself_and_shared_weights_of_zero_are_the_identity() -> None:
    model = InterestModel(CONFIG, seed=0)
    for weight in (model.transfer.writer.weight, model.transfer.descriptor.weight):
        torch.nn.init.zeros_(weight)
    passports = batch_of().passports
    assert torch.equal(model.transferred(passports, torch.ones(2)), passports)


def test_what_is_shared_is_not_private_and_without_a_private_part_everything_but_encoder_and_head_is_shared() -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, sharing="shared"))
    names = [name for name, _ in InterestModel(config, seed=0).named_parameters()]
    assert {name.split(".")[0] for name in names} == {"encoder", "transfer", "head"}


def test_equal_seeds_give_equal_models() -> None:
    first, second, other = (InterestModel(CONFIG, seed=seed).encoder.reduce.weight.detach().numpy() for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
