"""The text encoder in int8 beside the one in float32: texts a second, and what is lost, in cosines and in who is whose neighbour.

The same texts, threads and batches, in turns. The texts are of made-up words (`bench_text_encoder`), which are nearer to one another than
real titles: the neighbours lost are an upper bound.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from client.model.onnx_text_encoder import OnnxTextEncoder
from client.model.text_encoder import TextEncoder

AIMS = {"int8 texts a second against float32": (">=", 1.2), "int8 mean cosine with float32": (">=", 0.98)}

_NEIGHBOURS = 10


def mixed_texts(count: int) -> list[str]:
    path = Path(__file__).with_name("bench_text_encoder.py")
    spec = importlib.util.spec_from_file_location("bench_text_encoder_texts", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} cannot be loaded")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.mixed_texts(count))


def neighbours(vectors: np.ndarray) -> np.ndarray:
    """(n, 10) the most similar other texts of each."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2.0)
    return np.argsort(-cosines, axis=1)[:, :_NEIGHBOURS]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(quick: bool = True) -> dict[str, float]:
    texts, rounds = (mixed_texts(160), 3) if quick else (mixed_texts(1000), 5)
    plain, quantised = TextEncoder(cache=None, threads=1), OnnxTextEncoder(cache=None, threads=1)
    made = seconds(lambda: quantised.encode(texts[:1]))
    before, after = plain.encode(texts), quantised.encode(texts)  # warms both up
    turns = [(seconds(partial(plain.encode, texts)), seconds(partial(quantised.encode, texts))) for _ in range(rounds)]
    cosines = (before * after).sum(axis=1)
    pairs = zip(neighbours(before), neighbours(after), strict=True)
    return {
        "int8 texts a second against float32": statistics.median(slow / fast for slow, fast in turns),
        "int8 texts a second": len(texts) / statistics.median(fast for _, fast in turns),
        "int8 mean cosine with float32": float(cosines.mean()),
        "int8 least cosine with float32": float(cosines.min()),
        "int8 share of the ten nearest texts kept": float(np.mean([len(np.intersect1d(a, b)) for a, b in pairs])) / _NEIGHBOURS,
        "int8 nearest text the same": float((neighbours(before)[:, 0] == neighbours(after)[:, 0]).mean()),
        "int8 seconds to make": made,
    }


if __name__ == "__main__":
    for name, value in run(quick=False).items():
        print(f"{name:<52} {value:8.3f}")
