"""Public tokens of the catalogue, for encoders that read items' texts anew in every step. A table, never a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from shared.errors import ConfigError
from shared.interest_space import InterestSpace

from .text_encoder import BUILTIN, TextEncoder, normalised

if TYPE_CHECKING:
    from torch import nn

LANGUAGE_MODEL = BUILTIN
"""The model that is adapted. All partners of a run adapt the same one, because what is clipped and priced is as long as its adaptors."""
NOTHING = -1
"""Where a text has ended."""
_TEXTS_AT_A_TIME = 16_384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemTokens:
    """What a language model reads of each item, and how its vectors become coordinates. All of it is public.

    Attributes:
        ids: (n_items, T) int32, special tokens included; `NOTHING` behind the end, and everywhere in a row without text.
        mean, basis, scale: (D,), (D, d) and (d,) float32 of the interest space.
    """

    ids: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, space: InterestSpace) -> ItemTokens:
        return cls(ids=ids, mean=space.mean, basis=space.basis, scale=space.scale)

    def read(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of items (n,), as wide as the longest of them: ids (n, W) int64 with 0 behind the end, and how many there are, (n,)."""
        ids = np.asarray(self.ids[items], dtype=np.int64)
        lengths = (ids != NOTHING).sum(axis=1)
        width = max(int(lengths.max(initial=0)), 1)
        return np.maximum(ids[:, :width], 0), lengths


@runtime_checkable
class ReadsTexts(Protocol):
    """An encoder that cannot do with coordinates."""

    def attach(self, tokens: ItemTokens | None) -> None:
        """Takes the table. Raises StateError where there is none, or one that does not fit."""
        ...


def attach(encoder: nn.Module, tokens: ItemTokens | None) -> None:
    """Hands the table to an encoder that reads texts; the others need none."""
    if isinstance(encoder, ReadsTexts):
        encoder.attach(tokens)


def tokens_of(texts: Sequence[str], *, text_model: str, most: int) -> np.ndarray:
    """Tokens of texts as `client.model.text_encoder` normalises them, for the language model that is adapted.

    Args:
        texts: of the catalogue.
        text_model: the model that the partner's item vectors are made with.
        most: tokens of a text that are read, special ones included.
    Returns:
        (n, most) int32, `NOTHING` behind the end.
    Raises:
        ConfigError: the partner's vectors are another model's, so that the adapted one would start somewhere else.
    """
    if text_model != LANGUAGE_MODEL:
        raise ConfigError(
            f"the encoder 'text-lora' adapts the text model '{LANGUAGE_MODEL}', but item vectors here are made with '{text_model}'",
            do="Set text_model in partner.toml to that model, or take part in runs with another encoder.",
        )
    ids = np.full((len(texts), most), NOTHING, dtype=np.int32)
    tokenizer = TextEncoder(LANGUAGE_MODEL, cache=None, max_tokens=most).tokenizer
    special = tokenizer.num_special_tokens_to_add()
    for start in range(0, len(texts), _TEXTS_AT_A_TIME):
        block = [normalised(text) for text in texts[start : start + _TEXTS_AT_A_TIME]]
        for row, found in enumerate(tokenizer(block, truncation=True, max_length=most, padding=False)["input_ids"], start=start):
            if len(found) > special:  # the others say nothing
                ids[row, : len(found)] = found
    return ids
