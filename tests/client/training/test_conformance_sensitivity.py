"""Conformance of sensitivity: under the same noise, neighbouring data sets release joint vectors no further apart than was paid for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.canary.neighbours import rest_of_message
from client.training import dp_sgd, local_round
from shared.privacy import conformance as checks
from tests.client.training import planted_bugs as bugs
from tests.client.training.tiny_partner import Partner, People, config_of, people

COUPLED = config_of()
MECHANISM = local_round.round_mechanism(COUPLED)
LOUD = ["features", "nan", "infinite", "overflow", "length"]
WHO, USERS = 9, 24  # in the middle, so that users come after


def neighbours(kind: str, users: int = USERS) -> tuple[People, People]:
    crowd = people(users).with_loud(min(WHO, users - 1), kind)
    return crowd, crowd.without(min(WHO, users - 1))


def distance(tmp_path: Path, kind: str = "features", users: int = USERS, round_: int = 2) -> float:
    """Share of the bound by which two neighbours differ in a later round, both starting from the same state."""
    releases = []
    for name, crowd in zip(("with", "without"), neighbours(kind, users), strict=True):
        partner = Partner(home=tmp_path / name, config=COUPLED, data=people(0).data("arts"))
        for number in range(1, round_):
            partner.update(number)  # on nobody, so that every layer has left its initial zeros
        partner.data = crowd.data("arts")
        releases.append(partner.joint_release(round_))
    return checks.sensitivity(releases[0], releases[1], MECHANISM)


@pytest.mark.parametrize("kind", LOUD)
def test_one_loud_user_moves_the_joint_vector_no_further_than_the_bound(tmp_path: Path, kind: str) -> None:
    share = distance(tmp_path, kind)
    print(f"sensitivity, {kind}: {share:.6f} of the bound")
    assert share <= 1 + checks.ROUNDING


def test_a_loud_user_is_heard_so_the_check_is_not_empty(tmp_path: Path) -> None:
    assert distance(tmp_path, "features") > 0.9


@pytest.mark.parametrize("kind", ["nan", "infinite"])
def test_a_faulty_user_contributes_nothing(tmp_path: Path, kind: str) -> None:
    assert distance(tmp_path, kind) < 1e-3  # what is left is the grid


def test_micro_batches_change_nothing_but_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = people(USERS).with_loud(WHO, "nan").data("arts")
    whole = Partner(home=tmp_path / "whole", config=COUPLED, data=crowd).joint_release()
    real = dp_sgd.train
    monkeypatch.setattr(local_round, "train", lambda *a, **k: real(*a, **{**k, "micro_batch_users": 5}))
    pieces = Partner(home=tmp_path / "pieces", config=COUPLED, data=crowd).joint_release()
    assert checks.sensitivity(whole, pieces, MECHANISM) < 1e-3


@pytest.mark.parametrize("kind", LOUD)
def test_every_other_byte_of_the_reply_is_the_same_whoever_is_in_the_data(tmp_path: Path, kind: str) -> None:
    replies = [
        Partner(home=tmp_path / name, config=COUPLED, data=crowd.data("arts")).update()
        for name, crowd in zip(("with", "without"), neighbours(kind), strict=True)
    ]
    first, second = (rest_of_message(reply) for reply in replies)
    assert first == second
    assert [a.dtype for a in replies[0].arrays.values()] == [a.dtype for a in replies[1].arrays.values()]


@pytest.mark.parametrize(
    ("where", "name", "bug"),
    [
        (dp_sgd, "PublicOptimizer", bugs.NoClip),
        (dp_sgd, "PublicOptimizer", bugs.ClipPerTensor),
        (local_round, "make_model", bugs.EncoderTrainedWithoutPrivacy),
        (local_round, "make_model", bugs.InBatchNegatives),
        (local_round, "Examples", bugs.PopularNegatives),
        (local_round, "Examples", bugs.OneStreamForAllUsers),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_whatever_lets_one_user_move_more_than_the_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, bug: type
) -> None:
    monkeypatch.setattr(where, name, bug)
    kind = "features" if bug in (bugs.NoClip, bugs.ClipPerTensor) else "length"
    users = 4 if bug is bugs.InBatchNegatives else USERS  # few negatives, so that each matters
    share = distance(tmp_path, kind, users)
    print(f"{bug.__name__}: {share:.3g} of the bound")
    assert share > 1.05


def test_a_division_by_the_private_number_of_users_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "PublicOptimizer", bugs.DividedByThisBatch)
    assert distance(tmp_path, users=4) > 1.2


def test_a_faulty_gradient_that_is_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "PublicOptimizer", bugs.NonFiniteKept)
    assert not distance(tmp_path, "nan") <= 1 + checks.ROUNDING  # not a number at all


def test_an_optimiser_that_leaves_out_the_encoder_is_refused_before_the_first_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: adam(list(parameters)[4:], lr=lr))
    with pytest.raises(ValueError, match="would not be private"):
        Partner(home=tmp_path / "arts", config=COUPLED, data=people(3).data("arts")).update()


def test_the_joint_vector_is_every_parameter_that_a_loss_reads() -> None:
    model = local_round.initial_model(COUPLED, "arts")
    assert sum(p.numel() for p in model.parameters()) == MECHANISM.dimension
    assert not list(model.buffers())
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_is_rounded_or_clipped_at_epsilon_infinity(tmp_path: Path) -> None:
    free = config_of(epsilon=float("inf"), noise="none", noise_multiplier=0.0)
    crowd, rest = neighbours("features")
    with_user, without = (
        Partner(home=tmp_path / name, config=free, data=data.data("arts")).joint_release()
        for name, data in (("with", crowd), ("without", rest))
    )
    assert np.linalg.norm(without) > 0  # it learns
    assert np.linalg.norm(with_user - without) > 10 * COUPLED.privacy.clip_norm  # and nobody is clipped
