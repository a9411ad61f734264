"""How fast texts become vectors, beside sentence-transformers with the same weights, the same threads and the same texts.

Two comparisons, in one process and in turn: sentence-transformers with its defaults (batches of 32, up to 256 tokens a text), and the same
with its maximal length set to ours, so that what is due to reading less is not taken for speed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np

from client.model.text_encoder import TextEncoder

AIMS = {"text_encoding_vs_sentence_transformers": (">=", 1.0)}

SYLLABLES = ["pa", "per", "ink", "lin", "en", "brush", "tone", "mer", "in", "o", "glue", "ste", "el", "card", "pen", "cil"]


def mixed_texts(count: int, seed: int = 0) -> list[str]:
    """Made-up titles of 3 to 150 words, half of them below 13: in tokens like a shop's titles with categories (median 30, 2 % above 64)."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(SYLLABLES, size=rng.integers(1, 4))) for _ in range(2000)]
    lengths = np.clip(rng.lognormal(np.log(13.0), 0.4, size=count), 3, 150).astype(int)
    return [" ".join(rng.choice(words, size=length)) for length in lengths]


def run(quick: bool = True) -> dict[str, float]:
    """Ratios of texts per second, above 1 where we are faster: the median of rounds that take turns."""
    texts, rounds = (mixed_texts(160), 3) if quick else (mixed_texts(600), 5)
    encoder = TextEncoder(cache=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        theirs = SentenceTransformer(str(encoder.folder), device="cpu")
    by_default = theirs.max_seq_length

    def default() -> np.ndarray:
        theirs.max_seq_length = by_default
        return theirs.encode(texts, show_progress_bar=False)

    def same_length() -> np.ndarray:
        theirs.max_seq_length = encoder.max_tokens
        return theirs.encode(texts, show_progress_bar=False)

    difference = float(np.abs(encoder.encode(texts) - same_length()).max())  # warms both up
    if difference > 1e-5:
        raise AssertionError(f"the two encoders disagree by {difference:.1e}: their speeds cannot be compared")
    times = [(seconds(lambda: encoder.encode(texts)), seconds(default), seconds(same_length)) for _ in range(rounds)]
    ours = statistics.median(own for own, _, _ in times)
    return {
        "text_encoding_vs_sentence_transformers": statistics.median(other / own for own, other, _ in times),
        "text_encoding_vs_sentence_transformers_same_length": statistics.median(other / own for own, _, other in times),
        "texts_per_second": len(texts) / ours,
    }


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    for name, value in run(quick=False).items():
        print(f"{name:<52} {value:8.2f}")
