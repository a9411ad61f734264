"""The method `adversarial`, by numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from client.model.methods import make_model
from client.model.methods.adversarial import AdversarialModel, reversed_gradient
from client.model.objective import Batch
from shared.transfer_layer import initial_arrays
from tests.client.model.methods.tiny_batch import batch_of, config_of, without_history, without_passports

LAMBDA = 0.5


def model_of(weight: tuple[float, float] = (0.0, 0.0), strength: float = LAMBDA) -> AdversarialModel:
    config = config_of("adversarial", adversarial_weight=strength)
    model = make_model(config, seed=0)
    assert isinstance(model, AdversarialModel)
    model.load_shared(initial_arrays(config.model, 0))
    with torch.no_grad():
        model.discriminator.weight.copy_(torch.tensor([weight]))
    return model


def discriminator_gradient(model: AdversarialModel, batch: Batch) -> list[float]:
    (found,) = torch.autograd.grad(model(batch).sum(), [model.discriminator.weight])
    return [round(number, 6) for number in found[0].tolist()]


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_the_gradient_is_turned_round_and_the_value_is_not() -> None:
    interest = torch.tensor([3.0, -1.0], requires_grad=True)
    turned = reversed_gradient(interest)
    assert turned.tolist() == [3.0, -1.0]
    (turned * torch.tensor([2.0, 5.0])).sum().backward()
    assert interest.grad is not None
    assert interest.grad.tolist() == [-2.0, -5.0]


def test_the_loss_is_the_task_and_the_discriminators_cross_entropy() -> None:
    # own interest (1, 0): logit 2, is here. The passport (0, 1): logit -1, is not.
    task = 0.25 * softplus(0.0 - 1.0) + 0.75 * softplus(1.0 - 0.0)
    told_apart = 0.5 * softplus(-2.0) + 0.5 * softplus(-1.0)
    assert model_of((2.0, -1.0))(batch_of()).item() == pytest.approx(task + LAMBDA * told_apart)


def test_the_discriminator_learns_to_tell_and_the_interests_learn_not_to_be_told() -> None:
    # d/dw of lambda (softplus(-w.z)/2 + softplus(w.t)/2) at w = 0 is lambda/2 (-z/2 + t/2), z = (1, 0), t = (0, 1)
    assert discriminator_gradient(model_of(), batch_of()) == [-LAMBDA / 4, LAMBDA / 4]
    # a passport is scored as "from here" with sigma(w.t), t = (0, 1): the plain gradient of told_apart by t is w sigma(w.t)/2, turned round
    model, weight = model_of((2.0, -1.0)), torch.tensor([2.0, -1.0])
    interests = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    (by_interest,) = torch.autograd.grad(model._told_apart(interests, batch_of()).sum(), [interests])
    sigma = 1 / (1 + math.exp(1.0))
    assert by_interest[0, 1].tolist() == pytest.approx((-0.5 * sigma * weight).tolist())
    assert by_interest[0, 0].tolist() == pytest.approx((0.5 * (1 - 1 / (1 + math.exp(-2.0))) * weight).tolist())


def test_who_has_only_one_side_contributes_that_side() -> None:
    model = model_of()
    assert discriminator_gradient(model, without_passports(batch_of())) == [-LAMBDA / 4, 0.0]
    assert discriminator_gradient(model, without_history(batch_of())) == [0.0, LAMBDA / 4]
    assert discriminator_gradient(model, without_history(without_passports(batch_of()))) == [0.0, 0.0]


def test_two_passports_weigh_as_much_as_one() -> None:
    two = batch_of(passports=torch.tensor([[[0.0, 1.0], [0.0, 3.0]]]), passport_mask=torch.ones(1, 2))
    assert discriminator_gradient(model_of(), two) == [-LAMBDA / 4, LAMBDA / 4 * 2]  # the mean of 1 and 3 is 2


def test_with_weight_zero_it_is_the_residual_model() -> None:
    residual = make_model(config_of("residual"), seed=0)
    residual.load_shared(initial_arrays(residual.config, 0))
    model = model_of((2.0, -1.0), strength=0.0)
    assert model(batch_of()).item() == residual(batch_of()).item()
    assert discriminator_gradient(model, batch_of()) == [0.0, 0.0]
