"""Which search a recommender uses: exact up to a million items, an index above, int8 where somebody wants it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shared.errors import UsageError

from ..top_k import ExactTopK, TopK

AUTO, EXACT, FAISS, INT8 = "auto", "exact", "faiss", "int8"
ENGINES = (AUTO, EXACT, FAISS, INT8)
INDEXED_ABOVE = 1_000_000
"""Items above which `AUTO` takes the index: there a list costs less than a whole pass over the catalogue (tests/bench/bench_top_k.py)."""


def check_engine(name: str) -> None:
    """Raises UsageError where there is no such engine."""
    if name not in ENGINES:
        raise UsageError(f"there is no engine '{name}'", do=f"It is one of: {', '.join(ENGINES)}.")


def engine_of(name: str, vectors: np.ndarray, exact: ExactTopK, sample: Callable[[], np.ndarray | None]) -> TopK:
    """The search that a name stands for.

    Args:
        name: one of `ENGINES`.
        vectors: (n_items, D) float32.
        exact: the exact search over the same vectors.
        sample: gives queries like those to come, for the index.
    Raises:
        UsageError: there is no such engine.
        ConfigError: it needs an extra that is not installed.
    """
    check_engine(name)
    if name == FAISS or (name == AUTO and len(vectors) > INDEXED_ABOVE):
        from ..top_k.faiss_index import FaissTopK

        return FaissTopK(vectors, sample=sample())
    if name == INT8:
        from ..top_k.int8 import Int8TopK

        return Int8TopK(vectors)
    return exact
