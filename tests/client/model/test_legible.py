"""What the built-in language model can read, and what it can only spell."""

from __future__ import annotations

import numpy as np
import pytest

from client.model.text_encoder import TextEncoder

READ = [
    "watercolour paint and brushes",
    "i like thrillers about spies",
    "Aquarellfarben und Pinsel",
    "Strickwolle, weiches Garn",
    "peinture aquarelle et pinceaux",
    "laine à tricoter",
    "a",
]
SPELT = [
    "акварельные краски и кисти",
    "пряжа для вязания",
    "水彩颜料和画笔",
    "编织毛线",
    "水彩絵の具と筆",
    "ألوان مائية وفرش",
    "जल रंग और ब्रश",
    "수채화 물감과 붓",
    "🙂🙂",
]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(cache=None, threads=1)


def test_latin_script_is_read_and_others_are_spelt(encoder: TextEncoder) -> None:
    found = encoder.legible([*READ, *SPELT])
    assert found.tolist() == [True] * len(READ) + [False] * len(SPELT)


def test_a_text_without_tokens_is_not_read(encoder: TextEncoder) -> None:
    assert encoder.legible(["", "   "]).tolist() == [False, False]


def test_a_foreign_word_among_others_does_not_matter(encoder: TextEncoder) -> None:
    assert encoder.legible(["watercolour brushes from Россия for painting landscapes and portraits in oil"]).tolist() == [True]


def test_what_is_decided_does_not_depend_on_the_other_texts(encoder: TextEncoder) -> None:
    texts = [*SPELT, *READ]
    together = encoder.legible(texts)
    assert np.array_equal(together, np.concatenate([encoder.legible([text]) for text in texts]))
