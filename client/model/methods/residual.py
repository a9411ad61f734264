r"""`residual`: a shared low-rank residual maps an interest to the target domain; what is domain-specific stays in a private one.

.. math:: z_{tgt} = z + W \tanh(U^T z) + B\,c_{tgt} + W_{loc} \tanh(U_{loc}^T z) + b_{loc}

The low-rank residual is the adaptor of Houlsby et al. 2019 ("Parameter-efficient transfer learning for NLP"), and as a map between domains
the one of EMCDR (Man et al. 2017, "Cross-domain recommendation: an embedding and mapping approach"). Which of these arrays are averaged
says ``model.sharing``. It is also the base of the other methods: they add to its loss, its arrays or both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from client.model.encoders import make_encoder
from client.model.objective import Batch, PrivateBias, PrivateResidual, TrainingHead, cross_entropy
from shared.config import ModelConfig, RunConfig
from shared.transfer_layer import TransferLayer, shared_shapes

from .shares import per_user


class InterestModel(nn.Module):
    """Every parameter that the training loss reads: their joint vector is what is clipped and noised."""

    def __init__(self, config: RunConfig, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        model = config.model
        self.own_history_weight = config.training.own_history_weight
        self.config = model
        self.encoder = make_encoder(config, generator)
        self.transfer = TransferLayer(model)
        for layer in (self.transfer.writer, self.transfer.descriptor):  # what is averaged is loaded over this; what stays begins here
            nn.init.zeros_(layer.weight)
        self.residual = private_part(model, generator)
        self.head = TrainingHead(config.training.temperature)

    def shared_parameters(self) -> dict[str, nn.Parameter]:
        """The arrays that the server averages, by the names that `shared.transfer_layer.shared_shapes` declares."""
        named = dict(self.named_parameters())
        return {name: named[f"{name}.weight"] for name in shared_shapes(self.config)}

    def shared_arrays(self) -> dict[str, np.ndarray]:
        """Copies of them, float32."""
        return {n: p.detach().cpu().numpy().astype(np.float32, copy=True) for n, p in self.shared_parameters().items()}

    def load_shared(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes over the weights. Shapes were checked at the border; a wrong one raises RuntimeError from torch."""
        with torch.no_grad():
            for name, parameter in self.shared_parameters().items():
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(arrays[name])))

    def transferred(self, passports: Tensor, descriptor: Tensor) -> Tensor:
        """Interest for this domain from interests elsewhere. Args: passports (batch, P, d), descriptor (d_c,). Returns (batch, P, d)."""
        moved = self.transfer(passports, descriptor.expand(*passports.shape[:-1], -1))
        return moved if self.residual is None else moved + self.residual(passports)

    def forward(self, batch: Batch) -> Tensor:
        """The loss of each user, (batch,)."""
        own = self.encoder(batch.history, batch.history_mask, batch.history_items)  # (batch, d)
        elsewhere = self.transferred(batch.passports, batch.descriptor)  # (batch, P, d)
        interests = self.head(torch.cat([own[:, None], elsewhere], dim=1))  # (batch, 1 + P, d)
        return per_user(cross_entropy(interests, batch), batch, self.own_history_weight)


def private_part(model: ModelConfig, generator: torch.Generator) -> PrivateResidual | PrivateBias | None:
    """What a target adds and keeps to itself under ``model.sharing``."""
    if model.sharing == "shared-private":
        residual = PrivateResidual(model.dimension, model.rank)
        nn.init.normal_(residual.reader.weight, std=1 / math.sqrt(model.rank), generator=generator)
        return residual
    return PrivateBias(model.dimension) if model.sharing in ("private-bias", "private-writer") else None
