r"""DP-SGD: per-user gradients by Opacus, everything else by the rules of this house.

One step over the joint vector of all p trainable parameters is

.. math:: S = round_g\Big(\sum_{u \in batch} clip_C(\nabla \ell_u)\Big) + N(0, (\sigma (C + g\sqrt p))^2 I), \qquad update = U(S / \bar B)

(Abadi et al. 2016). The batch is Poisson; rounding to the grid g moves the sum of a user more or less by at most C + g sqrt(p), and the
noise is scaled for that; the divisor is public. A user whose gradient is not finite contributes zero. An empty batch is a step like any
other, because skipping it would tell that it was empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.model.objective import Batch
from shared.privacy.mechanism import Mechanism

from .noise import NoiseSource
from .sampler import Sampler

_ROWS = 32
"""Users whose gradients are in 64 bit at a time: few enough for the processor's cache."""


_RULES = (nn.Linear, nn.LayerNorm, nn.Embedding)
"""Layers of one call in a pass, whose rule needs their input and the gradient of their output and nothing else."""


class PerUserGradients(GradSampleModule):
    """Opacus' rules for the layers of `_RULES` without its full backward hooks and buffers, which cost a third of a step.

    They are only needed for other kinds of layers; a model that has one is left to Opacus altogether. A batch of nobody asks no layer at
    all, because layers of libraries refuse one: its gradients are none for each parameter, and the step goes on like any other.
    """

    def forward(self, batch: Batch) -> Tensor:
        """The loss of each user, (batch,)."""
        if batch.users > 0 or not self.hooks_enabled:
            return super().forward(batch)
        for parameter in self._module.parameters():
            if parameter.requires_grad:
                parameter.grad_sample = parameter.new_zeros(0, *parameter.shape)
        return torch.zeros(0, requires_grad=True)

    def add_hooks(self, *, loss_reduction: str = "mean", batch_first: bool = True, force_functorch: bool = False) -> None:
        """Called by Opacus once, for the whole model."""
        layers = list(self.iterate_submodules(self._module))
        if loss_reduction != "sum" or not batch_first or force_functorch or any(type(layer) not in _RULES for layer in layers):
            super().add_hooks(loss_reduction=loss_reduction, batch_first=batch_first, force_functorch=force_functorch)
            return
        self._module.autograd_grad_sample_hooks = [layer.register_forward_hook(self._wait_for_gradient) for layer in layers]
        self.autograd_grad_sample_hooks = self._module.autograd_grad_sample_hooks
        self.enable_hooks()

    def _wait_for_gradient(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """As soon as the gradient of a layer's output (batch, ..., out) is known, leaves (batch, ...) gradients in ``grad_sample``."""
        if not (self.hooks_enabled and layer.training and output.requires_grad):
            return
        activations = [one.detach() for one in inputs]

        def take(backprops: Tensor) -> None:
            if not self.hooks_enabled:
                return
            for parameter, sample in self.GRAD_SAMPLERS[type(layer)](layer, activations, backprops.detach()).items():
                if parameter.grad_sample is not None:
                    raise RuntimeError("a layer was used twice, or the gradients of the last pass were not cleared")
                parameter.grad_sample = sample

        output.register_hook(take)


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
        sizes = [sample.shape[1] for sample in samples]
        bound = math.inf if self.mechanism.kind == "none" else self.mechanism.clip_norm
        total = torch.zeros(sum(sizes), dtype=torch.float64)
        buffer = torch.empty(_ROWS, len(total), dtype=torch.float64)
        for pieces in zip(*(sample.split(_ROWS) for sample in samples), strict=True):
            rows = buffer[: len(pieces[0])]  # (rows, p) the joint gradient of each user
            for part, piece in zip(rows.split(sizes, dim=1), pieces, strict=True):
                part.copy_(piece)
            norms = torch.linalg.vector_norm(rows, dim=1)  # (rows,) finite where every number is: float32 cannot overflow float64
            factors = (bound / norms).clamp(max=1.0)  # (rows,)
            finite = norms.isfinite()
            if not bool(finite.all()):
                factors[~finite] = 0.0
                rows[~finite] = 0.0  # 0 * NaN would be NaN
            total += factors @ rows
        for parameter, clipped in zip(self.params, total.split(sizes), strict=True):
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
            parameter.grad = part.view_as(parameter).to(parameter)  # its type, and its device
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
