"""Tokens for the canary's invented catalogue, for encoders that read texts: any will do, because the checks are about users, not words."""

from __future__ import annotations

import numpy as np

from client.model.item_tokens import NOTHING, ItemTokens
from shared.config import ModelConfig

ITEMS = 300
"""Size of the invented catalogue."""
_VECTOR = 384
"""Length of the built-in language model's vectors."""
_FIRST_WORD, _WORDS = 2000, 20_000
_START, _END = 101, 102


def invented(model: ModelConfig, items: int, text_dimension: int = _VECTOR) -> ItemTokens | None:
    """Tokens of ``items`` invented texts of different lengths, one in twenty without text; None where no encoder asks for them.

    The space is one that nobody's catalogue made: an orthonormal basis, a mean of zero, a scale of one.
    """
    if model.encoder != "text-lora":
        return None
    generator = np.random.default_rng(11)
    ids = generator.integers(_FIRST_WORD, _WORDS, size=(items, model.lora_tokens), dtype=np.int32)
    lengths = generator.integers(3, model.lora_tokens + 1, size=items)
    ids[:, 0] = _START
    ids[np.arange(items), lengths - 1] = _END
    ids[np.arange(model.lora_tokens)[None, :] >= lengths[:, None]] = NOTHING
    ids[generator.random(items) < 0.05] = NOTHING
    basis, _ = np.linalg.qr(generator.normal(size=(text_dimension, model.dimension)))
    return ItemTokens(
        ids=ids,
        mean=np.zeros(text_dimension, dtype=np.float32),
        basis=basis.astype(np.float32),
        scale=np.ones(model.dimension, dtype=np.float32),
    )
