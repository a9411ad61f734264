r"""LoRA on the language model itself: the texts of a user's items are read anew inside the step, by a model that learns what matters here.

.. math:: x_j' = x_j + f_{W + BA}(t_j) - f_W(t_j),\qquad z = \sum_l a_l x'_{j_l}

f is the frozen language model on the public tokens t_j, mean over tokens, unit norm, projected into the interest space; each query and
value matrix W of it is joined by a product of rank r (Hu et al. 2022, "LoRA: low-rank adaptation of large language models"), with B = 0 at
the start. The difference makes z the weighted mean of the public coordinates then, bit for bit, however those were made (longer texts,
other numerics). The weights :math:`a_l` are those of every untrained encoder: only A and B are trained, and they are what is clipped.

Every text of every user is a row of its own, though two users read the same item: shared rows would mix their gradients. For partners with
a GPU; a step of 512 users is more than a minute of a processor core.
"""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from client.model import item_tokens
from client.model.item_tokens import ItemTokens
from client.model.text_encoder import TextEncoder
from shared.config import ModelConfig, TrainingConfig
from shared.errors import ConfigError, StateError
from shared.interest_space import SMALLEST_NORM

from .recency_weights import NEVER, recency_weights

_TARGETS = ("query", "value")
_TOKENS_AT_A_TIME = 8192
"""Padded tokens whose activations are in memory at a time: about a gigabyte and a half for the built-in model."""


class _Rows(threading.local):
    """What the adaptors need to know of the pass in hand: whose texts they read, and whether they take part.

    Each thread has a pass of its own: a service answers several people at a time.
    """

    users = 1
    silent = False


class _OfUsers(nn.Module):
    """A linear layer that is fed one row for each text, (users * L, T, in), and works on one for each user, (users, L * T, in).

    The rules for per-user gradients take the first dimension for that of the users.
    """

    def __init__(self, linear: nn.Linear, rows: _Rows) -> None:
        super().__init__()
        self.linear = linear
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """peft asks for its type."""
        return self.linear.weight

    def forward(self, texts: Tensor) -> Tensor:
        count, width, size = texts.shape
        if self.rows.silent:
            return texts.new_zeros(count, width, self.linear.out_features)
        users = self.rows.users
        of_users = texts.reshape(users, count // users * width, size)
        return self.linear(of_users).reshape(count, width, self.linear.out_features)


class TextLoraEncoder(nn.Module):
    """Needs the table of `client.model.item_tokens` before it is asked for anything but its parameters.

    Args:
        model: dimension, rank of the adaptors, tokens that are read.
        training: decay of histories and their length.
        generator: names the public initial state.
    Raises:
        ConfigError: peft is not installed.
    """

    def __init__(self, model: ModelConfig, training: TrainingConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.log_decay = math.log(training.history_decay)
        self.dimension = model.dimension
        self.most_users = max(1, _TOKENS_AT_A_TIME // (training.max_history_items * model.lora_tokens))
        self._rows = _Rows()
        language, layers = _adapted(model.lora_rank, self._rows)
        # In a list, out of the sight of parameters(), state_dict() and train(): frozen weights are public and come from their own file.
        self._language = [language]
        self.adaptors = nn.ModuleList(layers)
        for reader, writer in zip(layers[::2], layers[1::2], strict=True):
            nn.init.normal_(reader.weight, std=1 / math.sqrt(reader.in_features), generator=generator)
            nn.init.zeros_(writer.weight)
        self._tokens: ItemTokens | None = None
        self._whitening: tuple[Tensor, Tensor] | None = None

    def attach(self, tokens: ItemTokens | None) -> None:
        """Takes the public table, and moves the language model to the GPU if there is one.

        Raises:
            StateError: there is none, or it belongs to another language model or interest space.
        """
        if tokens is None:
            raise StateError(
                "the encoder 'text-lora' reads texts, but none were prepared here", do="Prepare the files of this domain for this run."
            )
        settings = self._language[0].config
        if tokens.basis.shape != (settings.hidden_size, self.dimension) or int(tokens.ids.max(initial=0)) >= settings.vocab_size:
            raise StateError("the tokens that were prepared here belong to another language model or interest space than the run's")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._language[0].to(device)
        basis, scale = np.asarray(tokens.basis), np.asarray(tokens.scale)
        self._whitening = (torch.tensor(np.asarray(tokens.mean), device=device), torch.tensor(basis / scale, device=device))
        self._tokens = tokens

    def forward(self, history: Tensor, mask: Tensor, items: Tensor | None = None) -> Tensor:
        if len(history) == 0:
            return history.new_zeros(0, self.dimension)
        if items is None or self._tokens is None or self._whitening is None:
            raise StateError("the encoder 'text-lora' reads the texts of items, and was not given them")
        attention = recency_weights(mask, self.log_decay)  # (batch, L)
        width = max(int(mask.any(dim=0).sum()), 1)  # columns of nothing but padding stand on the left
        there = torch.where(mask > 0, items, 0)[:, -width:].cpu().numpy()  # (batch, W)
        tokens = self._tokens
        learned = self._learned(tokens, there) if torch.is_grad_enabled() else self._looked_up(tokens, there)  # (batch, W, d)
        learned = learned.to(history.device, history.dtype)
        return torch.einsum("bl,bld->bd", attention, history) + torch.einsum("bl,bld->bd", attention[:, -width:], learned)

    def _learned(self, tokens: ItemTokens, items: np.ndarray) -> Tensor:
        """How far each item of each user is from where it stood before training: items (batch, W) -> (batch, W, d)."""
        ids, lengths = tokens.read(items.reshape(-1))
        self._rows.users = len(items)
        moved = self._coordinates(ids, lengths)  # (batch * W, d)
        self._rows.silent = True
        try:
            with torch.no_grad():
                before = self._coordinates(ids, lengths)
        finally:
            self._rows.silent = False
        return (moved - before).reshape(*items.shape, -1)

    def _looked_up(self, tokens: ItemTokens, items: np.ndarray) -> Tensor:
        """The same without gradients: every item once, texts of about one length together."""
        distinct, where = np.unique(items, return_inverse=True)
        _, lengths = tokens.read(distinct)
        table = torch.zeros(len(distinct), self.dimension)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            rows = order[start : start + max(1, _TOKENS_AT_A_TIME // max(int(lengths[order[start]]), 1))]
            table[torch.from_numpy(rows)] = self._learned(tokens, distinct[rows][:, None])[:, 0].float().cpu()
            start += len(rows)
        return table[torch.from_numpy(where.reshape(items.shape))]

    def _coordinates(self, ids: np.ndarray, lengths: np.ndarray) -> Tensor:
        """Coordinates of texts as `shared.interest_space` makes them: (n, W) ids -> (n, d); zeros for a text without tokens."""
        assert self._whitening is not None
        mean, whitening = self._whitening
        there = torch.from_numpy(np.arange(ids.shape[1])[None, :] < np.maximum(lengths, 1)[:, None]).to(mean.device, mean.dtype)
        mask = ((1.0 - there) * NEVER)[:, None, None, :]  # (n, 1, 1, W): given whole, so that nobody's padding chooses the kernel
        hidden = self._language[0](input_ids=torch.from_numpy(ids).to(mean.device), attention_mask=mask).last_hidden_state
        vector = (hidden * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True)  # (n, D)
        vector = torch.nn.functional.normalize(vector, dim=1)
        whitened = (vector - mean) @ whitening  # (n, d)
        unit = whitened / torch.linalg.vector_norm(whitened, dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
        return unit * torch.from_numpy(lengths > 0).to(mean.device)[:, None]


def _adapted(rank: int, rows: _Rows) -> tuple[Any, list[nn.Linear]]:
    """The frozen language model with adaptors in place, and their layers: reader and writer in turn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries deprecate among themselves is not the reader's business
        try:
            from peft import LoraConfig, inject_adapter_in_model
            from peft.tuners.lora import LoraLayer
        except ImportError:
            raise ConfigError(
                "the encoder 'text-lora' needs peft, which is not installed", do="Install isthmus[lora], or choose another encoder."
            ) from None
        language = TextEncoder(item_tokens.LANGUAGE_MODEL, cache=None).language_model
        settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(_TARGETS), bias="none")
        language = inject_adapter_in_model(settings, language)
    layers: list[nn.Linear] = []
    for module in language.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, LoraLayer):
            for table in (module.lora_A, module.lora_B):
                ((name, layer),) = table.items()
                assert isinstance(layer, nn.Linear)
                layers.append(layer)
                table[name] = _OfUsers(layer, rows)
    language.eval()
    return language, layers
