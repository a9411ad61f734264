"""The noisy sums of a round, step by step, as the optimiser is handed them.

A training state remembers one mixture of a round's steps (Adam's first moment), in which a faulty step can hide behind a sound one. Every
step reaches the optimiser as a gradient, which is the noisy sum over the public divisor; PyTorch tells before each step of an optimiser, so
nothing of the training code is replaced. T5 holds these sums against the state that is kept and sent: they account for all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

STEPS = 3
"""Steps in each round of a check: code that is right in the first step only, or in pairs, is not taken for sound."""


@contextlib.contextmanager
def listening(*, held: bool = False) -> Iterator[list[np.ndarray]]:
    """Collects the gradient of each step that an optimiser takes meanwhile, in the order of its parameters.

    Args:
        held: the parameters stay where they are (a learning rate of 0), so that two rounds can be compared step by step: what one user
            moves in a step is bounded for equal parameters only.
    Yields:
        (p,) float64 each, filled while the block runs.
    """
    heard: list[np.ndarray] = []

    def before(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
        heard.append(np.concatenate([gradient.detach().double().numpy().ravel() for gradient in gradients]))
        if held:
            for group in optimizer.param_groups:
                group["lr"] = 0.0

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield heard
    finally:
        handle.remove()
