r"""DP-SGD: per-user gradients by Opacus, everything else by the rules of this house.

One step over the joint vector of all p trainable parameters is

.. math:: S = round_g\Big(\sum_{u \in batch} clip_C(\nabla \ell_u)\Big) + N(0, (\sigma (C + g\sqrt p))^2 I), \qquad update = U(S / \bar B)

(Abadi et al. 2016). The batch is Poisson; rounding to the grid g moves the sum of a user more or less by at most C + g sqrt(p), and the
noise is scaled for that; the divisor is public. A user whose gradient is not finite contributes zero. An empty batch is a step like any
other, because skipping it would tell that it was empty.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from client.model.objective import Batch
from shared.privacy.mechanism import Mechanism

from .noise import NoiseSource
from .sampler import Sampler


class PerUserGradients(GradSampleModule):
    """Opacus' hooks, without the zeroed buffer that they add into: a layer that is used once in a pass needs none (a third of the cost)."""

    def capture_backprops_hook(
        self, module: Any, forward_input: Any, forward_output: Any, loss_reduction: str, batch_first: bool
    ) -> None:
        """Called for each layer in the backward pass; leaves (batch, ...) gradients in ``grad_sample`` of its parameters."""
        parameters = [p for p in module.parameters(recurse=False) if p.requires_grad]
        plain = type(module) is nn.Linear and loss_reduction == "sum" and batch_first and self.hooks_enabled
        if not plain or any(p._forward_counter != 1 or p.grad_sample is not None or hasattr(p, "_current_grad_sample") for p in parameters):
            super().capture_backprops_hook(module, forward_input, forward_output, loss_reduction, batch_first)
            return
        backprops = forward_output[0].detach()  # (batch, ..., out)
        for parameter, sample in self.GRAD_SAMPLERS[nn.Linear](module, module.activations.pop(), backprops).items():
            parameter.grad_sample = sample.contiguous()
            parameter._forward_counter -= 1


class PublicOptimizer(DPOptimizer):
    """Opacus' optimiser with our noise, our grid, a public divisor, and faulty users set to zero.

    Args:
        optimizer: what turns the noisy sum into an update; it never sees anything else.
        mechanism: what was paid for.
        divisor: public constant, in users.
        noise: standard normal source.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, mechanism: Mechanism, divisor: float, noise: NoiseSource) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self.mechanism = mechanism
        self.divisor = divisor
        self.noise = noise

    def clip_and_accumulate(self) -> None:
        """Zeroes users with a non-finite gradient, clips the joint vector of each other user, and adds up.

        In 64 bit: a float32 sum of hundreds of users is off by more than the grid that the noise is scaled for, and by another amount when
        one user is missing. The kind ``none`` does not clip. The norms tell who is faulty, so this costs no pass of its own.
        """
        samples = [parameter.grad_sample.flatten(1) for parameter in self.params]  # (batch, p_k) each
        # numpy turns float32 into float64 in the processor's cache, a piece at a time; float64 copies of all samples cost twice the time
        squares = [torch.from_numpy(np.einsum("bp,bp->b", sample.numpy(), sample.numpy(), dtype=np.float64)) for sample in samples]
        norms = torch.stack(squares).sum(dim=0).sqrt()  # (batch,) finite where every number is: float32 cannot overflow float64
        finite = norms.isfinite()
        bound = math.inf if self.mechanism.kind == "none" else self.mechanism.clip_norm
        factors = (bound / norms).clamp(max=1.0)  # (batch,)
        if not bool(finite.all()):
            factors[~finite] = 0.0
            for sample in samples:
                sample[~finite] = 0.0  # 0 * NaN would be NaN
        for parameter, sample in zip(self.params, samples, strict=True):
            clipped = torch.from_numpy(np.einsum("b,bp->p", factors.numpy(), sample.numpy()))  # (p_k,) float64
            parameter.summed_grad = clipped if parameter.summed_grad is None else parameter.summed_grad + clipped

    def add_noise(self) -> None:
        """Rounds the joint sum to the grid and adds noise, in 64 bit."""
        mechanism = self.mechanism
        clipped = torch.cat([parameter.summed_grad for parameter in self.params])  # (p,) private until noised
        if mechanism.kind == "none":
            noisy = clipped
        else:
            noisy = torch.round(clipped / mechanism.grid) * mechanism.grid
            noisy += torch.from_numpy(self.noise.normal(clipped.numel())) * mechanism.noise_scale
        del clipped
        start = 0
        for parameter in self.params:
            part = noisy[start : start + parameter.numel()] / self.divisor
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
            parameter.summed_grad = None
            start += parameter.numel()

    def scale_grad(self) -> None:
        """Nothing: the sum was divided by the public constant already."""


def joint_dimension(model: nn.Module) -> int:
    """Length p of the joint vector."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parts(batch: Batch, size: int) -> Iterator[Batch]:
    """The batch in pieces of at most ``size`` users; an empty batch is one empty piece."""
    for start in range(0, max(batch.users, 1), size):
        yield batch.part(start, min(start + size, batch.users))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    users: int,
    make_batch: Callable[[np.ndarray], Batch],
    mechanism: Mechanism,
    divisor: float,
    sampler: Sampler,
    noise: NoiseSource,
    micro_batch_users: int,
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Takes the steps that were paid for, in place. Nothing but the parameters and the optimiser's state remembers the data.

    Args:
        model: maps a `Batch` to the loss of each user; every parameter of it is in the joint vector.
        optimizer: over the parameters of ``model``.
        users: number of training users; private, used for sampling only.
        make_batch: positions of users -> their examples.
        mechanism: sampling rate, noise, clip norm, grid, dimension and number of steps.
        divisor: public expected batch size.
        sampler, noise: sources of randomness.
        micro_batch_users: users whose gradients are in memory at a time; changes speed and memory only.
        on_step: called after every step, for progress.
    Raises:
        ValueError: when the mechanism was paid for another number of parameters, or the optimiser holds others than the model.
    """
    if mechanism.dimension != joint_dimension(model):
        raise ValueError(f"paid for {mechanism.dimension} parameters, the model has {joint_dimension(model)}")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in model.parameters() if parameter.requires_grad}:
        raise ValueError("the optimiser does not hold exactly the model's parameters: what it leaves out would not be private")
    wrapped = PerUserGradients(model, loss_reduction="sum")
    private_optimizer = PublicOptimizer(optimizer, mechanism=mechanism, divisor=divisor, noise=noise)
    wrapped.train()
    try:
        with warnings.catch_warnings():
            # layers that read passports have inputs without gradients; the rule for their weights does not need them
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            for _ in range(mechanism.steps):
                step(wrapped, private_optimizer, make_batch(sampler.draw(users, mechanism.sampling_rate)), micro_batch_users)
                on_step()
    finally:
        private_optimizer.zero_grad(set_to_none=True)
        wrapped.to_standard_module()


def step(model: nn.Module, optimizer: PublicOptimizer, batch: Batch, micro_batch_users: int) -> None:
    pieces = list(parts(batch, micro_batch_users))
    for index, piece in enumerate(pieces):
        optimizer.signal_skip_step(do_skip=index < len(pieces) - 1)
        optimizer.zero_grad(set_to_none=True)
        model(piece).sum().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
