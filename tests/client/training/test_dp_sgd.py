"""DP-SGD by hand: clipping, grid, divisor and empty batches on numbers that can be checked on paper."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from client.model.objective import Batch
from client.training import dp_sgd
from client.training.noise import NoNoise
from shared.privacy.mechanism import Mechanism
from tests.client.training.tiny_partner import config_of, examples_of, people


class Gradients(nn.Module):
    """A model whose gradient for a user is that user's first history item; two tensors, of two numbers each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(2, 1, bias=False) for _ in range(2))
        for layer in (self.left, self.right):
            nn.init.zeros_(layer.weight)

    def forward(self, batch: Batch) -> torch.Tensor:
        rows = batch.history[:, 0]
        loss: torch.Tensor = self.left(rows[:, :2]) + self.right(rows[:, 2:])
        return loss[:, 0]


def batch_of(rows: Sequence[Sequence[float]]) -> Batch:
    history = torch.tensor(rows, dtype=torch.float32).reshape(-1, 1, 4)
    nobody = torch.zeros(len(history), 1)
    return Batch(
        history=history, history_mask=nobody, passports=nobody[:, None], passport_mask=nobody, targets=nobody[:, None], target_mask=nobody,
        negatives=torch.zeros(1, 1), hits=nobody, negative_weight=1.0, descriptor=torch.zeros(1),
    )  # fmt: skip


class Everybody:
    def draw(self, users: int, rate: float) -> np.ndarray:
        del rate
        return np.arange(users)


def step(rows: Sequence[Sequence[float]], *, pieces: int = 100, divisor: float = 1.0, **changes: float | str) -> list[float]:
    """The update of one step without noise: minus S / divisor."""
    values = {"kind": "poisson_gaussian", "sampling_rate": 1.0, "noise_multiplier": 1.0, "clip_norm": 1.0, "grid": 2.0**-20, **changes}
    model = Gradients()
    dp_sgd.train(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        users=len(rows),
        make_batch=lambda users: batch_of([rows[user] for user in users]),
        mechanism=Mechanism(dimension=4, steps=1, **values),  # type: ignore[arg-type]
        divisor=divisor,
        sampler=Everybody(),
        noise=NoNoise(),
        micro_batch_users=pieces,
    )
    return torch.cat([-model.left.weight.detach(), -model.right.weight.detach()], dim=1)[0].tolist()


def test_a_small_gradient_passes_as_it_is_and_a_large_one_is_clipped_over_both_tensors() -> None:
    assert step([[0.5, 0.0, 0.25, 0.0]]) == [0.5, 0.0, 0.25, 0.0]
    assert step([[3.0, 0.0, 4.0, 0.0]]) == pytest.approx([0.6, 0.0, 0.8, 0.0], abs=1e-6)  # norm 5 -> 1; clipped per tensor it were 1, 1


def test_clipping_is_for_each_user_and_the_sum_is_not_clipped() -> None:
    assert step([[10.0, 0.0, 0.0, 0.0]] * 7) == pytest.approx([7.0, 0.0, 0.0, 0.0], abs=1e-5)


def test_the_sum_is_divided_by_the_public_number_and_not_by_the_number_of_users() -> None:
    assert step([[0.5, 0.0, 0.0, 0.0]] * 2, divisor=8.0)[0] == pytest.approx(0.125)  # 2 * 0.5 / 8


def test_the_sum_is_rounded_to_the_grid_once() -> None:
    assert step([[0.1, 0.0, 0.0, 0.0]] * 3, grid=0.25)[0] == 0.25  # 0.3 -> 0.25; each by itself would be 0


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_user_whose_gradient_is_not_finite_counts_as_zero_and_the_others_count(fault: float) -> None:
    rows = [[0.5, 0.0, 0.0, 0.0], [fault, 0.0, 0.25, 0.0], [0.0, 0.0, 0.25, 0.0]]
    assert step(rows) == [0.5, 0.0, 0.25, 0.0]
    assert step(rows, pieces=1) == [0.5, 0.0, 0.25, 0.0]


def test_a_gradient_at_the_end_of_float32_is_clipped_like_any_other() -> None:
    assert step([[3e38, 0.0, 3e38, 0.0]]) == pytest.approx([math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0], abs=1e-6)


def test_nobody_in_the_batch_is_a_step_all_the_same() -> None:
    assert step([]) == [0.0, 0.0, 0.0, 0.0]  # and with noise it is noise: see test_conformance


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 7])
def test_micro_batches_add_up_to_the_same_step(pieces: int) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4)).tolist()
    assert step(rows, pieces=pieces) == pytest.approx(step(rows), abs=2.0**-20)


def test_clipped_sums_are_exact_far_below_the_grid() -> None:
    """One user more moves a sum of thousands by at most C + g sqrt(p); float32 would lose more than g on the way."""
    parameter = nn.Parameter(torch.zeros(4))
    samples = torch.from_numpy(np.random.default_rng(1).normal(2.0, 1.0, size=(5000, 4)).astype(np.float32))
    parameter.grad_sample = samples.clone()  # type: ignore[attr-defined]  # as Opacus leaves it
    paid = Mechanism(kind="poisson_gaussian", sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, grid=2.0**-20, dimension=4, steps=1)
    optimizer = dp_sgd.PublicOptimizer(torch.optim.SGD([parameter], lr=1.0), mechanism=paid, divisor=1.0, noise=NoNoise())
    optimizer.clip_and_accumulate()
    rows = samples.numpy().astype(np.float64)
    clipped = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    truth = [math.fsum(column) for column in clipped.T]
    assert np.abs(parameter.summed_grad.numpy() - truth).max() < 2.0**-32  # type: ignore[attr-defined]
    in_float32 = clipped.astype(np.float32).cumsum(axis=0, dtype=np.float32)[-1]
    assert np.abs(in_float32 - truth).max() > paid.grid


def test_epsilon_infinity_clips_nothing() -> None:
    assert step([[30.0, 0.0, 40.0, 0.0]], kind="none", noise_multiplier=0.0, clip_norm=0.0, grid=0.0) == [30.0, 0.0, 40.0, 0.0]


def test_a_step_paid_for_another_number_of_parameters_is_refused() -> None:
    model = Gradients()
    paid = Mechanism(kind="poisson_gaussian", sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, grid=0.0, dimension=5, steps=1)
    with pytest.raises(ValueError, match="paid for 5 parameters, the model has 4"):
        train_with(model, list(model.parameters()), paid)


@pytest.mark.parametrize("held", [slice(1), slice(1, 2)])
def test_an_optimiser_that_holds_only_part_of_the_model_is_refused(held: slice) -> None:
    model = Gradients()
    paid = Mechanism(kind="poisson_gaussian", sampling_rate=1.0, noise_multiplier=1.0, clip_norm=1.0, grid=0.0, dimension=4, steps=1)
    with pytest.raises(ValueError, match="would not be private"):
        train_with(model, list(model.parameters())[held], paid)


def train_with(model: nn.Module, held: list[nn.Parameter], paid: Mechanism) -> None:
    dp_sgd.train(
        model, torch.optim.SGD(held, lr=1.0), users=0, make_batch=lambda users: batch_of([]), mechanism=paid, divisor=1.0,
        sampler=Everybody(), noise=NoNoise(), micro_batch_users=1,
    )  # fmt: skip


def test_training_leaves_no_hook_and_no_gradient_behind() -> None:
    config, someone = config_of(), people(6)
    from client.training.local_round import initial_model, round_mechanism

    model = initial_model(config, "arts")
    dp_sgd.train(
        model, torch.optim.SGD(model.parameters(), lr=0.1), users=6, make_batch=examples_of(someone), mechanism=round_mechanism(config),
        divisor=16.0, sampler=Everybody(), noise=NoNoise(), micro_batch_users=4,
    )  # fmt: skip
    assert all(p.grad is None and getattr(p, "grad_sample", None) is None for p in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
