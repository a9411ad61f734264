r"""The transfer layer: the only thing that the server averages.

It maps an interest vector of a source domain to one of the target domain,

.. math:: z_{tgt} = z + W \tanh(U^T z) + B\,c_{tgt},

a low-rank residual (the adaptor of Houlsby et al. 2019, with a term for the target domain). :math:`W` and :math:`B` start at zero, so the
untrained layer is the identity and the untrained system a zero-shot text recommender. Every weight sits in an ``nn.Linear``, because Opacus
then computes per-user gradients by its fastest and best-tested rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from shared.config import ModelConfig

READER, WRITER, DESCRIPTOR = "transfer.reader", "transfer.writer", "transfer.descriptor"


def shared_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array that leaves a client and is averaged; all are float32."""
    return {
        READER: (model.rank, model.dimension),  # U^T
        WRITER: (model.dimension, model.rank),  # W
        DESCRIPTOR: (model.dimension, model.descriptor_dimension),  # B
    }


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

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Copies of the weights by their shared names, float32."""
        weights = {READER: self.reader.weight, WRITER: self.writer.weight, DESCRIPTOR: self.descriptor.weight}
        return {name: weight.detach().cpu().numpy().astype(np.float32, copy=True) for name, weight in weights.items()}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over the weights. Shapes were checked at the border; a wrong one raises RuntimeError from torch."""
        with torch.no_grad():
            for name, weight in ((READER, self.reader.weight), (WRITER, self.writer.weight), (DESCRIPTOR, self.descriptor.weight)):
                weight.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))
