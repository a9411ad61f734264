"""Interest encoders: a user's history -> one interest vector. Private, trained with DP, never leave the client.

An encoder starts as the recency-weighted mean of the history, so before any training the system is the zero-shot text recommender. Each is
a file here and a name of ``model.encoder``; all of them pass one contract suite (`tests/contracts`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # commands that only need `recency` do without torch
    import torch
    from torch import Tensor, nn

    from shared.config import RunConfig


class InterestEncoder(Protocol):
    """What every encoder does."""

    def __call__(self, history: Tensor, mask: Tensor, items: Tensor | None = None) -> Tensor:
        """One interest vector for each user.

        Args:
            history: (batch, L, d) coordinates, latest item last.
            mask: (batch, L), 1 = an item.
            items: (batch, L) int64 positions in the catalogue, for encoders that read more of an item than its coordinates.
        Returns:
            (batch, d).
        """
        ...


def make_encoder(config: RunConfig, generator: torch.Generator) -> nn.Module:
    """The encoder that the configuration names, in its public initial state."""
    model = config.model
    if model.encoder == "transformer":
        from .transformer import TransformerEncoder

        return TransformerEncoder(model, config.training, generator)
    if model.encoder == "text-lora":
        from .text_lora import TextLoraEncoder

        return TextLoraEncoder(model, config.training, generator)
    from .attention import AttentionEncoder

    return AttentionEncoder(model.dimension, config.training.history_decay, generator)
