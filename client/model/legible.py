"""Which texts a language model can read: what it has to spell letter by letter, as another script, has a vector that says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_SPELT = 0.5
"""Share of a text's tokens that may be unknown or lone letters. Measured with the built-in model: English, German and French 0 to .33;
Russian, Chinese, Japanese, Korean, Arabic and Hindi .57 to 1."""
_INSIDE = "##"
"""How WordPiece (Schuster & Nakajima 2012) marks a piece inside a word; vocabularies of other kinds are judged by unknown tokens alone."""


def legible(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> NDArray[np.bool_]:
    """(n,) whether the vocabulary has words or syllables for most of each text; an empty text has none.

    Args:
        tokenizer: of `transformers`.
        max_tokens: tokens that the model reads.
    """
    read = tokenizer(list(texts), truncation=True, max_length=max_tokens, padding=False, add_special_tokens=False)["input_ids"]
    return np.array([_legible(tokenizer.convert_ids_to_tokens(ids), tokenizer.unk_token) for ids in read], dtype=bool)


def _legible(tokens: list[str], unknown: str | None) -> bool:
    spelt = sum(token == unknown or _lone_letter(tokens, at) for at, token in enumerate(tokens))
    return spelt <= MOST_SPELT * len(tokens) and len(tokens) > 0


def _lone_letter(tokens: list[str], at: int) -> bool:
    """Whether this token is one letter of a word that is longer."""
    token = tokens[at]
    if token.startswith(_INSIDE):
        return len(token) == len(_INSIDE) + 1
    return len(token) == 1 and at + 1 < len(tokens) and tokens[at + 1].startswith(_INSIDE)
