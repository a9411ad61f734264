r"""The transfer layer: the only thing that the server averages.

It maps an interest vector of a source domain to one of the target domain,

.. math:: z_{tgt} = z + W \tanh(U^T z) + B\,c_{tgt},

a low-rank residual (the adaptor of Houlsby et al. 2019, with a term for the target domain). :math:`W` and :math:`B` start at zero, so the
untrained layer is the identity and the untrained system a zero-shot text recommender. Every weight sits in an ``nn.Linear``, because Opacus
then computes per-user gradients by its fastest and best-tested rule.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shared.config import ModelConfig

READER, WRITER, DESCRIPTOR = "transfer.reader", "transfer.writer", "transfer.descriptor"


def shared_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array that leaves a client and is averaged; all are float32.

    This is the declaration of each method and of each way of sharing: the message schema follows from it, and a model's parameter of that
    name (with ``.weight`` behind it) is what travels.
    """
    layer: dict[str, tuple[int, ...]] = {
        READER: (model.rank, model.dimension),  # U^T
        WRITER: (model.dimension, model.rank),  # W
        DESCRIPTOR: (model.dimension, model.descriptor_dimension),  # B
    }
    shared = {READER: layer[READER]} if model.sharing == "private-writer" else layer
    return shared | _method_shapes(model)


def _method_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What a method averages beyond the layer itself."""
    if model.method == "adversarial":
        return {"discriminator": (1, model.dimension)}
    if model.method == "maml":
        return {"start.offset": (model.dimension, 1), "start.gate": (1, 1)}  # where every user's adaptation begins
    if model.method == "knowledge-mf":
        return {"knowledge": (1, 1)}  # log alpha
    return {}


def initial_arrays(model: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """The public starting point: a seeded reader U, and W = B = 0 (the identity)."""
    shapes = shared_shapes(model)
    reader = np.random.default_rng(seed).normal(size=shapes[READER]) / np.sqrt(model.rank)
    return {name: (reader if name == READER else np.zeros(shape)).astype(np.float32) for name, shape in shapes.items()}


class TransferLayer(nn.Module):
    """Interest vector of the source, descriptor of the target -> interest vector for the target."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.reader = nn.Linear(model.dimension, model.rank, bias=False)
        self.writer = nn.Linear(model.rank, model.dimension, bias=False)
        self.descriptor = nn.Linear(model.descriptor_dimension, model.dimension, bias=False)

    def forward(self, interest: Tensor, descriptor: Tensor) -> Tensor:
        """Args: interest (batch, ..., d); descriptor (batch, ..., d_c). Returns (batch, ..., d)."""
        moved = self.writer(torch.tanh(self.reader(interest)))  # (batch, ..., d)
        return interest + moved + self.descriptor(descriptor)  # (batch, ..., d)
