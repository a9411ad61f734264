"""The parts of the chunked search: tiles, surplus, the long way, extra scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import client.top_k.chunked as chunked
from client.top_k import ExactTopK, Excluded, Int8TopK
from shared.errors import UsageError


def plain(scores: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def made(n: int, n_items: int, dimension: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dimension)).astype(np.float32), rng.normal(size=(n_items, dimension)).astype(np.float32)


@pytest.fixture
def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries went the long way, call by call; the real function runs."""
    counts: list[int] = []
    real = chunked._Chunk._best_above

    def counted(self: chunked._Chunk, floors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        counts.append(len(floors))
        return real(self, floors, k)

    monkeypatch.setattr(chunked._Chunk, "_best_above", counted)
    return counts


@given(n=st.integers(1, 2000), rows=st.integers(1, 4), wanted=st.integers(1, 50), coarse=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_the_best_of_a_tile_are_those_of_a_sort(n: int, rows: int, wanted: int, coarse: bool, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(rows, n)).astype(np.float32)
    scores = scores.round(0) if coarse else scores
    best, where = chunked.best_of_tile(torch.from_numpy(scores), wanted)
    assert best.shape == (rows, min(wanted, n))
    np.testing.assert_array_equal(best.numpy(), -np.sort(-scores, axis=1)[:, :wanted])
    np.testing.assert_array_equal(np.take_along_axis(scores, where.numpy(), axis=1), best.numpy())
    assert all(len(set(row)) == len(row) for row in where.tolist())


@pytest.mark.parametrize("items_at_a_time", [1, 3, 100, 999, 1000, 1001])
def test_lists_do_not_depend_on_the_tiles(items_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, vectors = made(9, 1000)
    excluded = Excluded.of([np.arange(row * 100) for row in range(9)], np.arange(1000) % 7 == 0)
    whole = ExactTopK(vectors).search(queries, 12, excluded=excluded)
    monkeypatch.setattr(chunked, "ITEMS_AT_A_TIME", items_at_a_time)
    tiled = ExactTopK(vectors, rows_at_a_time=4).search(queries, 12, excluded=excluded)
    np.testing.assert_array_equal(tiled.items, whole.items)
    np.testing.assert_array_equal(tiled.scores, whole.scores)


def test_scores_that_float32_products_confuse_are_told_apart(long_ways: list[int]) -> None:
    # 1000 + j 2^-16 for j below 300: four neighbours share a float32, and a float32 product of such sizes may be off by all of them.
    steps = np.random.default_rng(1).permutation(300)
    vectors = np.stack([np.full(300, 1.0), steps], axis=1).astype(np.float32)
    queries = np.array([[1000.0, 2.0**-16]], dtype=np.float32)
    found = ExactTopK(vectors).search(queries, 5)
    scores = (1000.0 + steps * 2.0**-16).astype(np.float32)[None]
    assert found.items.tolist() == plain(scores, 5).tolist()
    assert len(np.unique(scores)) == 76
    assert long_ways == [1]


def test_queries_with_a_clear_answer_do_not_go_the_long_way(long_ways: list[int]) -> None:
    queries, vectors = made(200, 5000, dimension=65)
    ExactTopK(vectors).search(queries, 20)
    assert sum(long_ways) <= 2


def test_many_equal_scores_go_the_long_way_and_stand_in_the_order_of_the_catalogue(long_ways: list[int]) -> None:
    found = ExactTopK(np.ones((10_000, 3), dtype=np.float32)).search(np.ones((2, 3), dtype=np.float32), 4)
    assert found.items.tolist() == [[0, 1, 2, 3]] * 2
    assert long_ways == [2]


def test_extra_scores_are_asked_once_a_chunk_and_added() -> None:
    queries, vectors = made(10, 50)
    added = np.random.default_rng(2).normal(size=(10, 50)).astype(np.float32) * 5
    asked: list[slice] = []

    def extra(rows: slice) -> np.ndarray:
        asked.append(rows)
        return added[rows]

    found = ExactTopK(vectors, rows_at_a_time=4).search(queries, 6, extra=extra)
    scores = ((queries.astype(np.float64) @ vectors.T) + added).astype(np.float32)
    assert [(rows.start, rows.stop) for rows in asked] == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_array_equal(found.items, plain(scores, 6))
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :6], rtol=1e-6)


@pytest.mark.parametrize("added", [np.zeros((2, 4)), np.zeros((3, 5)), np.full((2, 5), np.nan), np.full((2, 5), 3e38)])
def test_extra_scores_that_do_not_fit_are_refused(added: np.ndarray) -> None:
    queries, vectors = made(2, 5)
    with pytest.raises(UsageError, match="extra score"):
        ExactTopK(vectors).search(queries, 1, extra=lambda rows: added.astype(np.float32))


def test_torch_is_left_as_it_was() -> None:
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        queries, vectors = made(200, 4000, dimension=64)
        found = ExactTopK(vectors, threads=1).search(queries, 500)
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "medium"
        np.testing.assert_array_equal(found.items, plain(queries.astype(np.float64) @ vectors.T, 500))
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("number", [{"rows_at_a_time": 0}, {"threads": 0}])
def test_a_search_with_nothing_at_a_time_is_refused(number: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        ExactTopK(np.ones((2, 2), dtype=np.float32), **number)


def test_codes_are_a_quarter_of_the_memory_and_half_a_step_off_at_most() -> None:
    _, vectors = made(1, 3000, dimension=16)
    vectors[:, 3] *= 1000  # a dimension of another size: the steps are per dimension
    vectors[:, 4] = 0
    engine = Int8TopK(vectors)
    assert engine.bytes * 4 == vectors.nbytes
    steps = np.abs(vectors).max(axis=0) / 127
    assert (np.abs(engine.vectors - vectors) <= steps * 0.5001 + 1e-30).all()


def test_codes_lose_little_and_scored_again_nothing(long_ways: list[int]) -> None:
    queries, vectors = made(100, 4000, dimension=65)
    exact = ExactTopK(vectors).search(queries, 20)
    coded, again = Int8TopK(vectors).search(queries, 20), Int8TopK(vectors, rescored=True).search(queries, 20)
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(coded.items, exact.items, strict=True)]) / 20
    assert 0.93 < shared < 1.0  # measured .97
    np.testing.assert_array_equal(again.items, exact.items)
    np.testing.assert_array_equal(again.scores, exact.scores)


def test_items_closer_than_a_step_of_the_codes_are_told_apart_by_their_vectors(long_ways: list[int]) -> None:
    # Values span one step, 1/127: what the codes say of the order is half noise, and the best ten are not all among its first 110.
    rng = np.random.default_rng(4)
    vectors = (1 - rng.random((20_000, 64)) / 127).astype(np.float32)
    queries = np.ones((3, 64), dtype=np.float32)
    expected = ExactTopK(vectors).search(queries, 10)
    codes = Int8TopK(vectors).search(queries, 110)
    assert not np.isin(expected.items[0], codes.items[0]).all()
    found = Int8TopK(vectors, rescored=True).search(queries, 10)
    np.testing.assert_array_equal(found.items, expected.items)
    assert long_ways[-1] == 3
