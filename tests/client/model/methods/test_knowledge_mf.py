"""The method `knowledge-mf`, by numbers that can be checked by hand: explicit ratings, implicit ones, the knowledge term, its bound."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from client.interest_distribution import SHARPNESS
from client.model.methods import make_model
from client.model.methods.knowledge_mf import KnowledgeModel, known
from client.model.objective import Batch
from shared.errors import StateError
from shared.transfer_layer import initial_arrays
from tests.client.model.methods.tiny_batch import batch_of, config_of, without_history, without_passports

PROTOTYPES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])


def model_of(**training: float) -> KnowledgeModel:
    config = config_of("knowledge-mf", **training)
    model = make_model(config, seed=0)
    assert isinstance(model, KnowledgeModel)
    model.load_shared(initial_arrays(config.model, 0))
    return model


def own_only(**changes: torch.Tensor) -> Batch:
    """A user with the history (1, 0) and no passport; the target is (1, 0), the negative (0, 1)."""
    return without_passports(batch_of(prototypes=PROTOTYPES, **changes))


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


SHARE = math.exp(SHARPNESS) / (math.exp(SHARPNESS) + 1)
"""How much of (1, 0) is the first prototype: k = (SHARE, 1 - SHARE)."""

RIDGE = SHARE**2 + (1 - SHARE) ** 2


def test_an_explicit_rating_is_half_the_squared_residual_and_half_the_ridge() -> None:
    model = model_of(knowledge_weight=0.5, knowledge_decay=0.2, rating_low=1.0, rating_span=4.0)
    batch = own_only(target_ratings=torch.tensor([[4.0]]))
    # r = (4 - 1) / 4; r_hat = sigma(<z, x>) = sigma(1); K = -<C^T k, x> = -SHARE
    residual = 0.75 - logistic(1.0) + 0.5 * -SHARE
    assert model(batch).item() == pytest.approx(0.5 * residual**2 + 0.5 * 0.2 * RIDGE)


def test_several_ratings_are_averaged_and_empty_places_are_not_read() -> None:
    model = model_of(knowledge_weight=0.0, knowledge_decay=0.0)
    batch = own_only(
        targets=torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]]),
        target_mask=torch.tensor([[1.0, 1.0, 0.0]]),
        hits=torch.zeros(1, 3),
        target_ratings=torch.tensor([[5.0, 1.0, 3.0]]),
    )
    by_hand = 0.5 * ((1 - logistic(1.0)) ** 2 + (0 - logistic(0.0)) ** 2) / 2
    assert model(batch).item() == pytest.approx(by_hand)


def test_without_ratings_targets_are_one_and_negatives_are_zero_with_half_the_weight_each() -> None:
    model = model_of(knowledge_weight=0.5, knowledge_decay=0.0)
    target = 1 - logistic(1.0) - 0.5 * SHARE
    negative = 0 - logistic(0.0) - 0.5 * (1 - SHARE)
    assert model(own_only()).item() == pytest.approx(0.25 * (target**2 + negative**2))


def test_a_target_that_was_drawn_as_a_negative_is_not_held_against_itself() -> None:
    drawn = own_only(negatives=torch.tensor([[0.0, 1.0], [1.0, 0.0]]), hits=torch.ones(1, 1))
    assert model_of()(drawn).item() == pytest.approx(model_of()(own_only()).item())
    twice = own_only(
        negatives=drawn.negatives, targets=torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), target_mask=torch.ones(1, 2), hits=torch.ones(1, 2)
    )
    assert model_of()(twice).item() == pytest.approx(model_of()(own_only()).item())  # taken twice, drawn once


def test_a_passport_and_the_own_history_are_weighed_as_everywhere() -> None:
    model, batch = model_of(), batch_of(prototypes=PROTOTYPES)
    own, brought = model(without_passports(batch)).item(), model(without_history(batch)).item()
    assert model(batch).item() == pytest.approx(0.25 * own + 0.75 * brought)


@pytest.mark.parametrize("shout", [1.0, 1e3, 1e30])
@pytest.mark.parametrize("rating", [-1e30, 3.0, 1e30])
def test_no_rating_and_no_passport_moves_a_loss_beyond_its_bound(shout: float, rating: float) -> None:
    model = model_of(knowledge_weight=0.5, knowledge_decay=0.05)
    loud = batch_of(prototypes=PROTOTYPES, passports=torch.tensor([[[-shout, shout]]]), target_ratings=torch.tensor([[rating]]))
    assert 0.0 <= model(loud).item() <= 0.5 * (1 + 0.5) ** 2 + 0.5 * 0.05


def test_who_rates_what_they_care_for_raises_the_weight_of_knowledge() -> None:
    # r = 1, the prediction is below it, and K speaks for the item: a larger alpha would lower the loss
    model = model_of(knowledge_weight=0.1)
    (found,) = torch.autograd.grad(model(own_only(target_ratings=torch.tensor([[5.0]]))).sum(), [model.knowledge.weight])
    residual = 1.0 - logistic(1.0) - 0.1 * SHARE
    assert found.item() == pytest.approx(-residual * 0.1 * SHARE, rel=1e-4)  # d alpha / d log alpha = alpha


def test_knowledge_is_attention_over_prototypes() -> None:
    found = known(torch.tensor([[0.0, 0.0], [0.1, 0.0]]), PROTOTYPES)
    assert found[0].tolist() == [0.5, 0.5]
    assert found[1, 0].item() == pytest.approx(logistic(SHARPNESS * 0.1))


def test_serving_reads_the_knowledge_where_prototypes_are_handed_in() -> None:
    model = model_of(knowledge_weight=0.5)
    passports = torch.tensor([[[1.0, 0.0]]])
    assert torch.equal(model.transferred(passports, torch.zeros(1)), passports)
    model.read_with(PROTOTYPES)
    # alpha C^T k is worth 4 alpha / s of an interest, because sigma has slope 1/4 at 0; s = 1
    assert model.transferred(passports, torch.zeros(1))[0, 0].tolist() == pytest.approx([1 + 2 * SHARE, 2 * (1 - SHARE)])
    batch = own_only(target_ratings=torch.tensor([[4.0]]))
    assert model(batch).item() == pytest.approx(model_of(knowledge_weight=0.5)(batch).item())  # training is what it was


def test_without_prototypes_there_is_nothing_to_train_on() -> None:
    with pytest.raises(StateError, match="prototypes"):
        model_of()(dataclasses.replace(own_only(), prototypes=None))
