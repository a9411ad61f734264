"""The approximate index: what it finds of the exact lists, and that it never lists what it must not."""

from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pytest

from client.top_k import NONE, ExactTopK, Excluded, FaissTopK
from client.top_k.faiss_index import MOST_EXCLUDED
from shared.errors import UsageError

ITEMS, QUERIES, DIMENSION = 20_000, 300, 32


def catalogue(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Items in clusters with a skewed prior in their last column, and queries as a serving head asks them: 8 <z, x> + prior."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, DIMENSION))

    def drawn(count: int) -> np.ndarray:
        points = centres[rng.integers(0, len(centres), count)] + 0.8 * rng.normal(size=(count, DIMENSION))
        return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))

    vectors = np.concatenate([drawn(ITEMS), np.log1p(rng.pareto(1.2, (ITEMS, 1)))], axis=1)
    queries = np.concatenate([8 * drawn(QUERIES), np.ones((QUERIES, 1))], axis=1)
    return queries.astype(np.float32), vectors.astype(np.float32)


def shared(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray, FaissTopK]:
    queries, vectors = catalogue()
    return queries, vectors, FaissTopK(vectors, sample=queries[:100], recall=0.95, threads=1)


def test_the_index_finds_what_it_measured_also_for_others(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, vectors, engine = made
    truth = ExactTopK(vectors).search(queries[100:], 20).items
    found = engine.search(queries[100:], 20).items
    assert engine.recall is not None
    assert engine.recall >= 0.95
    assert shared(found, truth) > 0.92
    assert engine.measured_recall(queries[100:], 20) == pytest.approx(shared(found, truth))
    assert 4 <= engine.probes < engine.lists / 4  # or it would be no index


def test_raw_inner_products_in_the_same_index_find_next_to_nothing(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    """Why vectors are made equally long first, and the head is searched exactly."""
    queries, vectors, engine = made
    raw = faiss.index_factory(vectors.shape[1], f"IVF{engine.lists},Flat", faiss.METRIC_INNER_PRODUCT)
    raw.train(vectors)
    raw.add(vectors)
    faiss.ParameterSpace().set_index_parameter(raw, "nprobe", engine.probes)
    _, found = raw.search(queries, 20)
    assert shared(found, ExactTopK(vectors).search(queries, 20).items) < 0.5


def test_two_indexes_of_the_same_vectors_answer_the_same(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, vectors, engine = made
    again = FaissTopK(vectors, sample=queries[:100], recall=0.95, threads=1)
    np.testing.assert_array_equal(again.search(queries, 20).items, engine.search(queries, 20).items)


def test_lists_stay_full_when_the_best_are_excluded(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, _, engine = made
    first = engine.search(queries[:20], 500).items
    excluded = Excluded.of([row[row != NONE] for row in first])
    found = engine.search(queries[:20], 20, excluded=excluded)
    assert (found.items != NONE).all()
    assert not any(np.isin(a, b).any() for a, b in zip(found.items, first, strict=True))


def test_as_much_is_found_when_the_best_are_excluded(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, vectors, engine = made
    exact = ExactTopK(vectors)
    excluded = Excluded.of(list(exact.search(queries, 60).items))
    found, truth = (search.search(queries, 20, excluded=excluded).items for search in (engine, exact))
    assert shared(found, truth) > 0.9


def test_who_excludes_a_great_deal_is_searched_exactly(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, vectors, engine = made
    excluded = Excluded.of([np.arange(MOST_EXCLUDED + 1)])
    expected = ExactTopK(vectors).search(queries[:1], 20, excluded=excluded)
    found = engine.search(queries[:1], 20, excluded=excluded)
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_what_is_out_of_stock_is_not_looked_for(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, vectors, engine = made
    gone = np.random.default_rng(3).random(ITEMS) < 0.9
    excluded = Excluded.nothing(len(queries), gone)
    found = engine.search(queries, 20, excluded=excluded).items
    assert (found != NONE).all()
    assert not gone[found].any()
    assert shared(found, ExactTopK(vectors).search(queries, 20, excluded=excluded).items) > 0.85


def test_one_item_left_in_the_whole_catalogue_is_found(made: tuple[np.ndarray, np.ndarray, FaissTopK]) -> None:
    queries, _, engine = made
    found = engine.search(queries[:3], 5, excluded=Excluded.nothing(3, np.arange(ITEMS) != 777))
    assert found.items.tolist() == [[777, NONE, NONE, NONE, NONE]] * 3


@pytest.mark.parametrize("number", [{"recall": 0.0}, {"recall": 1.5}, {"probes": 0}, {"threads": 0}])
def test_numbers_out_of_range_are_refused(number: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="recall above 0"):
        FaissTopK(np.ones((2, 2), dtype=np.float32), **number)  # type: ignore[arg-type]


def test_an_exact_search_over_another_catalogue_is_refused() -> None:
    with pytest.raises(UsageError, match="another catalogue"):
        FaissTopK(np.ones((2, 2), dtype=np.float32), exact=ExactTopK(np.ones((3, 2), dtype=np.float32)))


def test_an_index_is_the_same_in_whatever_pieces_it_is_made(
    made: tuple[np.ndarray, np.ndarray, FaissTopK], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, vectors, engine = made
    monkeypatch.setattr("client.top_k.faiss_index._MADE_AT_A_TIME", 777)
    pieces = FaissTopK(vectors, sample=queries[:100], recall=0.95, exact=ExactTopK(vectors), threads=1)
    np.testing.assert_array_equal(pieces.search(queries, 20).items, engine.search(queries, 20).items)


def test_a_sample_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not \(n, 2\)"):
        FaissTopK(np.ones((2, 2), dtype=np.float32), sample=np.ones((2, 3), dtype=np.float32))


def test_without_the_package_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np; from client.top_k import FaissTopK; from shared.errors import ConfigError\n"
        "try: FaissTopK(np.ones((2, 2), dtype=np.float32))\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "isthmus[serve]" in done.stdout
