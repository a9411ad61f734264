"""The method `maml`: one step by hand, second derivatives against finite differences, who is support and who is query."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from client.model.methods import make_model
from client.model.methods.maml import MamlModel, divided
from client.model.objective import Batch
from shared.transfer_layer import initial_arrays
from tests.client.model.methods.tiny_batch import batch_of, config_of, without_history, without_passports
from tests.client.training.tiny_partner import examples_of, people


def model_of(*, offset: tuple[float, float] = (0.0, 0.0), gate: float = 0.0, **training: float | bool) -> MamlModel:
    config = config_of("maml", **training)
    model = make_model(config, seed=0)
    assert isinstance(model, MamlModel)
    model.load_shared(initial_arrays(config.model, 0))
    with torch.no_grad():
        model.start.offset.weight.copy_(torch.tensor(offset)[:, None])
        model.start.gate.weight.fill_(gate)
    return model.double()


def two_targets() -> Batch:
    """A user with nothing but a history (1, 0); the query (1, 0) and the support (0, 1), against one negative, (-1, 0)."""
    batch = batch_of(
        targets=torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]),
        target_mask=torch.ones(1, 2),
        hits=torch.zeros(1, 2),
        negatives=torch.tensor([[-1.0, 0.0]]),
    )
    return double(without_passports(batch))


def double(batch: Batch) -> Batch:
    changed = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
    numbers: dict[str, Any] = {n: v.double() for n, v in changed.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}
    return dataclasses.replace(batch, **numbers)


def before_and_after(before: float, after: float) -> float:
    """The query (1, 0) scores the first coordinate, the negative (-1, 0) minus that; half of the loss is about each interest."""
    return 0.5 * math.log(1 + math.exp(-2 * before)) + 0.5 * math.log(1 + math.exp(-2 * after))


def test_one_inner_step_is_the_step_that_a_hand_takes() -> None:
    # z = (1, 0). Support (0, 1) scores 0, the negative -1: p = e^-1 / (1 + e^-1) is wrongly on the negative.
    # d/db CE = p (n - x) = p (-1, -1), d/dg = <that, z> = -p; with rate 1/2: b = p/2 (1, 1), g = p/2.
    p = math.exp(-1) / (1 + math.exp(-1))
    adapted = ((1 + p / 2) * 1.0 + p / 2, p / 2)
    assert model_of(inner_rate=0.5)(two_targets()).item() == pytest.approx(before_and_after(1.0, adapted[0]))


def test_two_inner_steps_go_on_from_where_the_first_one_ended() -> None:
    b, g = np.zeros(2), 0.0
    for _ in range(2):
        z = (1 + g) * np.array([1.0, 0.0]) + b
        p = 1 / (1 + math.exp(z[1] - (-z[0])))
        slope = p * np.array([-1.0, -1.0])
        b, g = b - 0.5 * slope, g - 0.5 * slope[0]
    first = (1 + g) * 1.0 + b[0]
    assert model_of(inner_rate=0.5, inner_steps=2)(two_targets()).item() == pytest.approx(before_and_after(1.0, first))


def test_support_items_add_up_against_a_prior_and_the_scale_of_scores_does_not_lengthen_the_step() -> None:
    # scale 2, support (0, 1) twice: p = sigma(2 (-1 - 0)) is on the negative; each item moves b by rate p (1, 1), and g by rate p,
    # shortened to (m + 1) / (m + 2) = 4/5 with m = 3
    batch = double(without_passports(batch_of(
        targets=torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]]), target_mask=torch.tensor([[1.0, 1.0, 0.0, 1.0]]),
        hits=torch.zeros(1, 4), negatives=torch.tensor([[-1.0, 0.0]]),
    )))  # fmt: skip
    p = 1 / (1 + math.exp(2))
    first = 1 + 0.8 * (2 * 0.25 * p + 2 * 0.25 * p)
    assert model_of(inner_rate=0.25, temperature=2.0)(batch).item() == pytest.approx(before_and_after(2.0, 2 * first))


def test_a_user_with_one_target_is_met_at_the_start_and_not_adapted() -> None:
    batch = double(without_passports(batch_of()))  # target (1, 0), negative (0, 1)
    model = model_of(offset=(0.5, 0.25), gate=1.0)
    z = (2 * 1.0 + 0.5, 0.25)
    assert model(batch).item() == pytest.approx(math.log(1 + math.exp(z[1] - z[0])))


def outer_gradient(model: MamlModel, batch: Batch) -> np.ndarray:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(model(batch).sum(), parameters)])


def finite_differences(model: MamlModel, batch: Batch, h: float = 1e-6) -> np.ndarray:
    slopes = []
    for parameter in (p for p in model.parameters() if p.requires_grad):
        flat = parameter.data.view(-1)
        for i in range(flat.numel()):
            middle = flat[i].item()
            flat[i] = middle + h
            above = model(batch).sum().item()
            flat[i] = middle - h
            slopes.append((above - model(batch).sum().item()) / (2 * h))
            flat[i] = middle
    return np.array(slopes)


def crowded() -> Batch:
    """Three users with two passports, four targets and three negatives, in 64 bit."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    plain = batch_of(
        history=random(3, 2, 2), history_mask=torch.ones(3, 2), passports=random(3, 2, 2), passport_mask=torch.ones(3, 2),
        targets=random(3, 4, 2), target_mask=torch.ones(3, 4), hits=torch.zeros(3, 4), negatives=random(3, 2), negative_weight=2.0,
        descriptor=torch.ones(1),
    )  # fmt: skip
    return double(plain)


def moved(model: MamlModel) -> MamlModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("steps", [1, 3])
def test_the_outer_gradient_of_second_order_is_the_slope_of_the_loss(steps: int) -> None:
    model, batch = moved(model_of(inner_rate=0.4, inner_steps=steps)), crowded()
    np.testing.assert_allclose(outer_gradient(model, batch), finite_differences(model, batch), atol=1e-7)


def test_the_outer_gradient_of_first_order_leaves_the_inner_step_out() -> None:
    one, two, batch = moved(model_of(inner_rate=0.4, first_order=True)), moved(model_of(inner_rate=0.4)), crowded()
    assert one(batch).tolist() == two(batch).tolist()  # the same loss
    assert np.abs(outer_gradient(one, batch) - outer_gradient(two, batch)).max() > 1e-2
    # at the start of a user without support items there is no inner step, and both orders are one
    alone = dataclasses.replace(batch, target_mask=torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4).double())
    np.testing.assert_allclose(outer_gradient(one, alone), outer_gradient(two, alone), atol=1e-12)


def test_the_outer_gradient_reaches_the_start_through_the_query_alone_in_first_order() -> None:
    # dl/db_0 of first order is p' (n - x), half of it at the start and half at the adapted interest: p' = sigma(-2 z'), n - x = (-2, 0)
    model = model_of(inner_rate=0.5, first_order=True)
    p = math.exp(-1) / (1 + math.exp(-1))
    z = 1 + p / 2 + p / 2
    wanted = -1 / (1 + math.exp(2 * z)) - 1 / (1 + math.exp(2))
    (found,) = torch.autograd.grad(model(two_targets()).sum(), [model.start.offset.weight])
    assert found[:, 0].tolist() == pytest.approx([wanted, 0.0])


def test_support_and_query_are_every_other_target_and_the_first_is_a_query() -> None:
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    batch = batch_of(target_mask=mask, targets=torch.zeros(4, 4, 2), hits=torch.zeros(4, 4))
    support, query = divided(batch)
    assert support.target_mask.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert query.target_mask.tolist() == [[1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_the_division_does_not_change_with_the_others() -> None:
    crowd = people(17)
    alone = [divided(examples_of(crowd)(np.array([user]))) for user in range(17)]  # each draws the same number of the step
    together = divided(examples_of(crowd)(np.arange(17)))
    for user in range(17):
        for side in (0, 1):
            mine, ours = alone[user][side], together[side].part(user, user + 1)
            width = mine.target_mask.shape[1]
            assert torch.equal(ours.target_mask[:, :width], mine.target_mask)
            assert not ours.target_mask[:, width:].any()
            kept = mine.target_mask[0] > 0
            assert torch.equal(ours.targets[0, :width][kept], mine.targets[0][kept])


def test_somebody_with_no_interaction_here_gets_the_start_and_nothing_else() -> None:
    model = model_of(offset=(0.5, 0.25), gate=1.0)
    passports = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    assert model.transferred(passports, torch.zeros(1, dtype=torch.float64)).tolist() == [[[0.5, 2.25]]]


def test_a_user_without_history_or_passports_contributes_what_there_is() -> None:
    model = moved(model_of())
    batch = crowded()
    for lacking, names in ((without_passports(batch), ("transfer",)), (without_history(batch), ("encoder",))):
        model.zero_grad()
        model(lacking).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == (not name.startswith(names)), name
