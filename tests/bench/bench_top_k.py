"""The best 20 items for everybody: chunked products beside plain numpy, an index beside the exact search, one byte a number beside four.

The vectors are like those of a serving head: 64 coordinates in clusters, and a skewed prior; every user has 20 items that must not be
listed. For the index the prior counts a quarter, or most lists would lie in the head of the catalogue, which it searches exactly. Plain
numpy takes the product of 200 users at a time (about its fastest), masks, partitions and sorts. All that is compared runs in turns in one
child process, whose numpy and torch have the same number of threads from the start.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from client.top_k import ExactTopK, Excluded, FaissTopK, Int8TopK, TopItems, TopK
from client.top_k.faiss_index import HEAD

AIMS = {
    "exact against numpy product, partition and sort": ("<=", 0.8),
    "FAISS recall at 20": (">=", 0.95),
    "FAISS speed-up over exact": (">=", 2.0),
    "int8 overlap at 20": (">=", 0.95),
}

K, DIMENSION, PLAIN_ROWS, THREADS = 20, 64, 200, 2
_CLUSTERS = 300


def catalogue(users: int, items: int, seed: int = 0, prior: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Queries (users, 65) and vectors (items, 65): 8 <z, x> + prior (times a weight), where x and z are unit vectors in clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((_CLUSTERS, DIMENSION), dtype=np.float32)

    def drawn(count: int, scale: float, last: np.ndarray) -> np.ndarray:
        rows = np.empty((count, DIMENSION + 1), dtype=np.float32)
        for start in range(0, count, 50_000):
            part = rows[start : start + 50_000]
            points = centres[rng.integers(0, _CLUSTERS, len(part))] + 0.8 * rng.standard_normal((len(part), DIMENSION), dtype=np.float32)
            part[:, :DIMENSION] = scale * points / np.linalg.norm(points, axis=1, keepdims=True)
        rows[:, DIMENSION] = last
        return rows

    return drawn(users, 8.0, np.ones(users)), drawn(items, 1.0, prior * np.log1p(rng.pareto(1.2, items)))


def plain(queries: np.ndarray, vectors: np.ndarray, excluded: Excluded) -> TopItems:
    """What one writes first."""
    found = TopItems.empty(len(queries), K)
    for start in range(0, len(queries), PLAIN_ROWS):
        rows = slice(start, min(start + PLAIN_ROWS, len(queries)))
        scores = queries[rows] @ vectors.T
        users, items = excluded.of_slice(rows).pairs()
        scores[users, items] = -np.inf
        best = np.argpartition(scores, len(vectors) - K, axis=1)[:, len(vectors) - K :]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found.items[rows] = np.take_along_axis(best, order, axis=1)
        found.scores[rows] = np.take_along_axis(scores, found.items[rows], axis=1)
    return found


def product(queries: np.ndarray, vectors: np.ndarray) -> None:
    """The scores alone, thrown away."""
    buffer = np.empty((PLAIN_ROWS, len(vectors)), dtype=np.float32)
    for start in range(0, len(queries), PLAIN_ROWS):
        part = queries[start : start + PLAIN_ROWS]
        np.matmul(part, vectors.T, out=buffer[: len(part)])


def batches(users: int, items: int) -> dict[str, float]:
    """All users at once, for throughput and memory; then in slices that take turns with plain numpy."""
    queries, vectors = catalogue(users, items)
    excluded = Excluded.of(list(np.random.default_rng(1).integers(0, items, (users, 20))))
    engine = ExactTopK(vectors)
    few = slice(0, 2 * PLAIN_ROWS)
    engine.search(queries[few], K, excluded=excluded.of_slice(few))  # warms up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = seconds(lambda: engine.search(queries, K, excluded=excluded))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    ratios, alone = [], []
    size = max(users // 20, PLAIN_ROWS)
    for start in range(0, users, size):
        rows = slice(start, min(start + size, users))
        mine, own = queries[rows], excluded.of_slice(rows)
        begun = time.perf_counter()
        found = engine.search(mine, K, excluded=own)
        ours = time.perf_counter() - begun
        begun = time.perf_counter()
        expected = plain(mine, vectors, own)
        ratios.append(ours / (time.perf_counter() - begun))
        alone.append(ours / seconds(partial(product, mine, vectors)))
        if shared(found.items, expected.items) < 0.9999:  # equal scores may be cut otherwise
            raise AssertionError("the two searches find different items: their speeds cannot be compared")
    return {
        "exact against numpy product, partition and sort": float(np.median(ratios)),
        "exact against the numpy product alone": float(np.median(alone)),
        "exact, users a second": users / spent,
        "exact, MiB beyond vectors and queries (lists included)": memory,
    }


def codes(users: int, items: int) -> dict[str, float]:
    queries, vectors = catalogue(users, items, seed=2)
    exact, coded, again = ExactTopK(vectors), Int8TopK(vectors), Int8TopK(vectors, rescored=True)
    truth = exact.search(queries, K)
    found = coded.search(queries, K)
    if shared(again.search(queries, K).items, truth.items) < 1:
        raise AssertionError("codes that are scored again do not give the exact lists")
    engines: list[TopK] = [exact, coded, again]
    turns = [[seconds(partial(engine.search, queries, K)) for engine in engines] for _ in range(5)]
    ours, codes_only, rescored = np.median(np.array(turns) / np.array(turns)[:, :1], axis=0)
    return {
        "int8 overlap at 20": shared(found.items, truth.items),
        "int8 first item the same": float((found.items[:, 0] == truth.items[:, 0]).mean()),
        "int8 memory of the vectors": coded.bytes / vectors.nbytes,
        "int8 time against exact": float(codes_only / ours),
        "int8 scored again (exact lists), time against exact": float(rescored / ours),
    }


def index(users: int, items: int) -> dict[str, float]:
    queries, vectors = catalogue(2 * users, items, seed=3, prior=0.25)
    sample, asked = queries[:users], queries[users:]
    begun = time.perf_counter()
    engine = FaissTopK(vectors, sample=sample, threads=THREADS)
    made = time.perf_counter() - begun
    blind = FaissTopK(vectors[: items // 10], threads=THREADS)
    exact = ExactTopK(vectors)
    truth = exact.search(asked, K).items
    head = np.argpartition(-(vectors @ sample.mean(axis=0)), round(HEAD * items))[: round(HEAD * items)]
    turns = [(seconds(lambda: exact.search(asked, K)), seconds(lambda: engine.search(asked, K))) for _ in range(3)]
    one = [(seconds(partial(exact.search, row, K)), seconds(partial(engine.search, row, K))) for row in asked[:50, None]]
    return {
        "FAISS recall at 20": shared(engine.search(asked, K).items, truth),
        "FAISS share of the lists in the head that is searched exactly": float(np.isin(truth, head).mean()),
        "FAISS speed-up over exact": float(np.median([slow / fast for slow, fast in turns])),
        "FAISS speed-up over exact, one query at a time": float(np.median([slow / fast for slow, fast in one])),
        "FAISS, one query, milliseconds": float(np.median([fast for _, fast in one])) * 1e3,
        "FAISS seconds to make": made,
        "FAISS lists looked into": engine.probes / engine.lists,
        "FAISS recall at 20 without sample queries (a tenth of the items)": blind.measured_recall(asked[:200], K),
    }


def shared(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, truth, strict=True)]))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run(quick: bool = True) -> dict[str, float]:
    sizes = {"batches": (4_000, 20_000), "codes": (1_000, 5_000), "index": (300, 30_000)}
    if not quick:
        sizes = {"batches": (100_000, 20_000), "codes": (5_000, 20_000), "index": (1_000, 1_000_000)}
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    measured: dict[str, float] = {}
    for part, size in sizes.items():
        command = [sys.executable, __file__, part, *map(str, size)]
        done = subprocess.run(command, env=os.environ | threads | {"PYTHONPATH": paths}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"bench_top_k {part} failed: {done.stderr[-2000:]}")
        measured |= json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    parts = {"batches": batches, "codes": codes, "index": index}
    if len(sys.argv) == 4:
        print(json.dumps(parts[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))))
    else:
        for name, value in run(quick=False).items():
            print(f"{name:<70} {value:10.3f}")
