"""Conformance of per-user gradients: those that are clipped are the true ones, and each depends on its own user alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from client.canary import gradients
from client.model.methods import InterestModel
from client.model.objective import Batch
from shared.privacy import conformance as checks
from tests.client.training import planted_bugs as bugs
from tests.client.training.tiny_partner import MODEL, People, config_of, examples_of, people

CONFIG = config_of()


def trained_model(kind: type[InterestModel] = InterestModel, sharing: str = "shared-private") -> InterestModel:
    """Away from the initial zeros, where half of the gradients vanish."""
    torch.manual_seed(2)
    model = kind(dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, sharing=sharing)), seed=4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch_of(crowd: People, users: list[int] | None = None) -> Batch:
    return examples_of(crowd)(np.arange(len(crowd.items)) if users is None else np.array(users, dtype=np.int64))


def with_history_of(length: int, users: int) -> People:
    """Users of whom the longest has a history of ``length`` items beside its targets."""
    crowd = people(users)
    items = [np.arange(i, i + (length + 4 if i == 0 else 5)) for i in range(users)]
    return dataclasses.replace(crowd, items=items)


@pytest.mark.parametrize("sharing", ["shared-private", "shared"])
@pytest.mark.parametrize("users", [1, 4, 17])
def test_per_user_gradients_are_those_of_one_user_at_a_time(users: int, sharing: str) -> None:
    error = gradients.gradient_error(trained_model(sharing=sharing), batch_of(people(users)))
    print(f"gradients of {users} users, {sharing}: relative error {error:.2g}")
    assert error < checks.GRADIENT_TOLERANCE


def test_a_batch_as_large_as_its_longest_history_is_no_trap() -> None:
    batch = batch_of(with_history_of(8, users=8))
    if batch.history.shape[1] != batch.users:  # the first target may stand early, then the history is shorter
        batch = batch.part(0, batch.history.shape[1])
    assert batch.history.shape[:2] == (batch.users, batch.users)
    assert gradients.gradient_error(trained_model(), batch) < checks.GRADIENT_TOLERANCE


def test_a_position_table_without_a_batch_dimension_is_refused_where_it_is_silent() -> None:
    model = trained_model()
    encoder = bugs.PositionTableWithoutBatch(MODEL.dimension, CONFIG.training.history_decay)
    encoder.load_state_dict(model.encoder.state_dict())
    model.encoder = encoder
    batch = batch_of(people(17))
    assert gradients.gradient_error(model, batch.part(0, batch.history.shape[1])) > checks.GRADIENT_TOLERANCE


def test_a_users_gradient_does_not_change_with_the_others_in_the_batch() -> None:
    crowd, model = people(24), trained_model()
    worst = 0.0
    for others in ([], [9, 10, 11, 12], list(range(4, 24))):
        worst = max(worst, gradients.coupling(model, batch_of(crowd, [0, 1, 2, 3]), batch_of(crowd, [0, 1, 2, 3, *others])))
    print(f"coupling: {worst:.2g}")
    assert worst < 1e-5  # the order in which float32 adds up


@pytest.mark.parametrize("kind", ["features", "nan", "infinite", "overflow", "length"])
def test_not_even_with_a_loud_one(kind: str) -> None:
    crowd, model = people(8).with_loud(7, kind), trained_model()
    assert gradients.coupling(model, batch_of(crowd, [0, 1, 2]), batch_of(crowd, [0, 1, 2, 7])) < 1e-5


def test_in_batch_negatives_are_refused() -> None:
    crowd, model = people(24), trained_model(bugs.InBatchNegatives)
    assert gradients.coupling(model, batch_of(crowd, [0, 1, 2]), batch_of(crowd, [0, 1, 2, 9, 10])) > 1e-2


def test_a_user_without_targets_has_a_gradient_of_zero() -> None:
    crowd = dataclasses.replace(people(3), items=[np.zeros(0, dtype=np.int64)] * 3)
    assert not gradients.per_user_gradients(trained_model(), batch_of(crowd)).any()


def test_a_user_with_one_item_and_no_passport_has_nothing_to_predict_it_from() -> None:
    crowd = dataclasses.replace(people(3), items=[np.array([5])] * 3, brought=np.zeros((3, 2), dtype=bool))
    found = gradients.per_user_gradients(trained_model(), batch_of(crowd))
    assert found.shape[0] == 3
    assert not found.any()


def test_a_batch_of_nobody_has_no_gradients_and_says_how_many_parameters_there_are() -> None:
    assert gradients.per_user_gradients(trained_model(), batch_of(people(3), [])).shape == (
        0,
        sum(p.numel() for p in trained_model().parameters()),
    )
