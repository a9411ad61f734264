r"""A small BERT over the latest items, for partners with long histories: tens of thousands of parameters instead of a thousand.

.. math:: h = BERT(x + position(age)),\qquad z = m + E \sum_l a_l h_l / \sqrt d,\quad m = \sum_l a_l x_l

The layers are those of Devlin et al. 2019 ("BERT"), read as a recommender in the way of Sun et al. 2019 ("BERT4Rec": attention in both
directions, learned positions), with the weights :math:`a_l \propto \rho^{age_l}` of the untrained encoder and E = 0 at the start. Hidden
vectors have length sqrt(d); divided by it, a step of E moves z about as far as one of the small encoder does.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from shared.config import ModelConfig, TrainingConfig

from .recency_weights import NEVER, recency_weights

_BERT_SPREAD, _BERT_WIDTH = 0.02, 768
"""Standard deviation of BERT's initial weights, and the width that it was chosen for."""


class TransformerEncoder(nn.Module):
    """Weights are drawn anew from the generator alone, so that they are the same in every process.

    Args:
        model: dimension, layers and heads.
        training: length of histories and their decay.
        generator: names the public initial state; None draws from torch's own.
    """

    def __init__(self, model: ModelConfig, training: TrainingConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.log_decay = math.log(training.history_decay)
        self.bert = _bert(model, training.max_history_items)
        self.expand = nn.Linear(model.dimension, model.dimension, bias=False)
        nn.init.zeros_(self.expand.weight)
        _draw(self.bert, _BERT_SPREAD * math.sqrt(_BERT_WIDTH / model.dimension), generator)

    def forward(self, history: Tensor, mask: Tensor, items: Tensor | None = None) -> Tensor:
        del items
        batch, length, dimension = history.shape
        if batch == 0:
            return history.new_zeros(0, dimension)  # BERT cannot divide nobody among its heads
        age = torch.arange(length - 1, -1, -1, device=history.device)  # (L,)
        attention = recency_weights(mask, self.log_decay)  # (batch, L)
        mean = torch.einsum("bl,bld->bd", attention, history)  # (batch, d)
        hidden = self.bert(
            inputs_embeds=history,
            attention_mask=((1.0 - mask) * NEVER)[:, None, None, :],  # (batch, 1, 1, L)
            # (batch, L), repeated on purpose: a position table that is fed (L,) gives silently wrong per-user gradients
            position_ids=age.clamp(max=self.bert.config.max_position_embeddings - 1).repeat(batch, 1),
            token_type_ids=torch.zeros(batch, length, dtype=torch.long, device=history.device),
        ).last_hidden_state  # (batch, L, d)
        pooled = torch.einsum("bl,bld->bd", attention, hidden) / math.sqrt(dimension)  # (batch, d)
        return mean + self.expand(pooled)  # (batch, d)


def _bert(model: ModelConfig, length: int) -> Any:
    """BERT without vocabulary, pooler, dropout and token types: what it reads are item vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries deprecate among themselves is not the reader's business
        from transformers import BertConfig, BertModel

        shape: dict[str, Any] = {
            "vocab_size": 1,
            "type_vocab_size": 1,
            "hidden_size": model.dimension,
            "intermediate_size": model.dimension,
            "num_hidden_layers": model.transformer_layers,
            "num_attention_heads": model.transformer_heads,
            "max_position_embeddings": length,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "attn_implementation": "eager",  # the others have each their own opinion of a row that is masked altogether
        }
        bert: Any = BertModel(BertConfig(**shape), add_pooling_layer=False)
    bert.embeddings.word_embeddings = None  # never read; a parameter without a gradient is none of a user's
    types = bert.embeddings.token_type_embeddings
    nn.init.zeros_(types.weight)
    types.weight.requires_grad_(False)  # one row, added everywhere: the positions say it already
    return bert


def _draw(module: nn.Module, spread: float, generator: torch.Generator | None) -> None:
    """Weights normal with this spread, biases zero, layer norms the identity; in the order of their names."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if "LayerNorm" in name:
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=spread, generator=generator)
