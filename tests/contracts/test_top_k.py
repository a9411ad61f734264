"""What every search for the best items must do: no list ever holds an excluded item, is out of order, or is shorter than it has to be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.top_k import NONE, ExactTopK, Excluded, FaissTopK, Int8TopK, TopItems, TopK
from shared.errors import UsageError

Make = Callable[[np.ndarray], TopK]

EXACT: dict[str, Make] = {
    "exact": ExactTopK,
    "exact, three queries at a time": lambda vectors: ExactTopK(vectors, rows_at_a_time=3),
    "int8, scored again": lambda vectors: Int8TopK(vectors, rescored=True),
}
ENGINES: dict[str, Make] = {
    **EXACT,
    "int8": Int8TopK,
    "FAISS": FaissTopK,
    "FAISS, one list": lambda vectors: FaissTopK(vectors, probes=1),
}

every = pytest.mark.parametrize("make", ENGINES.values(), ids=ENGINES)
exact = pytest.mark.parametrize("make", EXACT.values(), ids=EXACT)


def naive(queries: np.ndarray, vectors: np.ndarray, k: int, excluded: Excluded | None = None) -> TopItems:
    """All scores in float64, a stable sort, one query after the other."""
    found = TopItems.empty(len(queries), k)
    for row, query in enumerate(queries):
        scores = (vectors.astype(np.float64) * query).sum(axis=1).astype(np.float32)
        if excluded is not None:
            scores[excluded.items[excluded.offsets[row] : excluded.offsets[row + 1]]] = -np.inf
            scores[np.zeros(len(vectors), dtype=bool) if excluded.everywhere is None else excluded.everywhere] = -np.inf
        best = [item for item in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[item])]
        found.items[row, : len(best)], found.scores[row, : len(best)] = best, scores[best]
    return found


def same(found: TopItems, expected: TopItems) -> None:
    assert found.items.dtype == np.int32
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.items, expected.items)
    np.testing.assert_array_equal(found.scores, expected.scores)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, Excluded]:
    """Catalogues of 1 to 400 items whose vectors often repeat, so that scores tie; some lists cannot be filled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_items, dimension = draw(st.integers(0, 7)), draw(st.integers(1, 400)), draw(st.integers(1, 9))
    coarse = draw(st.sampled_from([0, 1, None]))  # decimals that are kept: 0 and 1 make ties
    vectors = rng.normal(size=(n_items, dimension)).astype(np.float32)
    queries = rng.normal(size=(n, dimension)).astype(np.float32) * draw(st.sampled_from([0, 1, 100]))
    if coarse is not None:
        vectors, queries = vectors.round(coarse), queries.round(coarse)
    if draw(st.booleans()):
        vectors = vectors[rng.integers(0, n_items, n_items)]
    share = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    rows = [np.flatnonzero(rng.random(n_items) < share) for _ in range(n)]
    everywhere = draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
    excluded = Excluded.of(rows, None if everywhere is None else rng.random(n_items) < everywhere)
    return queries, vectors, draw(st.integers(1, 40)), excluded


def searched(engine: TopK, vectors: np.ndarray) -> np.ndarray:
    """The vectors that an engine's scores are of: codes alone stand for others than they were made from."""
    return engine.vectors if isinstance(engine, Int8TopK) and not engine.rescored else vectors


@every
@given(problem=problems())
def test_a_list_is_in_order_holds_nothing_excluded_and_is_as_long_as_it_can_be(
    make: Make, problem: tuple[np.ndarray, np.ndarray, int, Excluded]
) -> None:
    queries, vectors, k, excluded = problem
    engine = make(vectors)
    found, expected = engine.search(queries, k, excluded=excluded), naive(queries, vectors, k, excluded)
    np.testing.assert_array_equal(found.items == NONE, expected.items == NONE)
    for row in range(len(queries)):
        items = found.items[row][found.items[row] != NONE]
        scores = found.scores[row][: len(items)]
        own = excluded.items[excluded.offsets[row] : excluded.offsets[row + 1]]
        assert len(set(items.tolist())) == len(items)
        assert not np.isin(items, own).any()
        assert excluded.everywhere is None or not excluded.everywhere[items].any()
        # Best first, and what scores the same in the catalogue's order.
        assert list(zip(-scores, items, strict=True)) == sorted(zip(-scores, items, strict=True))
        assert (found.scores[row][len(items) :] == -np.inf).all()
        # A list never promises more than its items hold.
        true = (searched(engine, vectors)[items].astype(np.float64) * queries[row]).sum(axis=1).astype(np.float32)
        np.testing.assert_array_equal(scores, true)


@exact
@given(problem=problems())
def test_the_lists_are_those_of_a_plain_sort_to_the_last_bit(make: Make, problem: tuple[np.ndarray, np.ndarray, int, Excluded]) -> None:
    queries, vectors, k, excluded = problem
    same(make(vectors).search(queries, k, excluded=excluded), naive(queries, vectors, k, excluded))


@every
def test_three_items_by_hand(make: Make) -> None:
    vectors = np.array([[1, 0], [0, 2], [1, -2]], dtype=np.float32)
    found = make(vectors).search(np.array([[2, 1], [0, -3]], dtype=np.float32), 2)
    assert found.items.tolist() == [[0, 1], [2, 0]]  # 2, 2, 0: the tie by index; 0, -6, 6
    assert found.scores.tolist() == [[2.0, 2.0], [6.0, 0.0]]


@every
def test_a_list_longer_than_the_catalogue_ends_where_the_catalogue_does(make: Make) -> None:
    found = make(np.array([[-2.0], [2.0]], dtype=np.float32)).search(np.ones((1, 1), dtype=np.float32), 5)
    assert found.items.tolist() == [[1, 0, NONE, NONE, NONE]]
    assert found.scores.tolist() == [[2.0, -2.0, -np.inf, -np.inf, -np.inf]]


@every
def test_who_has_seen_everything_gets_nothing(make: Make) -> None:
    vectors = np.eye(4, dtype=np.float32)
    excluded = Excluded.of([np.arange(4), np.array([0, 0, 2])])  # an item may be named twice
    found = make(vectors).search(np.ones((2, 4), dtype=np.float32), 3, excluded=excluded)
    assert found.items.tolist() == [[NONE] * 3, [1, 3, NONE]]


@every
def test_nobody_asking_is_nobody_answered(make: Make) -> None:
    found = make(np.eye(3, dtype=np.float32)).search(np.zeros((0, 3), dtype=np.float32), 2)
    assert found.items.shape == found.scores.shape == (0, 2)


@exact
def test_items_with_equal_vectors_tie_wherever_they_stand(make: Make) -> None:
    rng = np.random.default_rng(5)
    vectors = np.repeat(rng.normal(size=(1, 65)).astype(np.float32), 5000, axis=0)
    found = make(vectors).search(np.sign(vectors[:1]) * 3, 30)
    assert found.items[0].tolist() == list(range(30))


@every
def test_a_score_does_not_depend_on_who_else_asks(make: Make) -> None:
    rng = np.random.default_rng(6)
    vectors, queries = rng.normal(size=(3000, 65)).astype(np.float32), rng.normal(size=(40, 65)).astype(np.float32)
    together, engine = make(vectors).search(queries, 10), make(vectors)
    for row in range(len(queries)):
        alone = engine.search(queries[row : row + 1], 10)
        assert alone.items[0].tolist() == together.items[row].tolist()
        assert alone.scores[0].tobytes() == together.scores[row].tobytes()


@every
def test_callers_at_the_same_time_get_their_own_answers(make: Make) -> None:
    rng = np.random.default_rng(7)
    vectors, queries = rng.normal(size=(2000, 16)).astype(np.float32), rng.normal(size=(8, 50, 16)).astype(np.float32)
    engine = make(vectors)
    one_by_one = [engine.search(mine, 10) for mine in queries]
    with ThreadPoolExecutor(8) as callers:
        together = list(callers.map(lambda mine: engine.search(mine, 10), queries))
    for found, expected in zip(together, one_by_one, strict=True):
        same(found, expected)


@every
@pytest.mark.parametrize(
    ("queries", "k", "words"),
    [
        (np.ones((1, 2)), 0, "a list of 0 items"),
        (np.ones((1, 2)), -3, "a list of -3 items"),
        (np.ones((1, 3)), 1, r"not \(n, 2\)"),
        (np.ones(2), 1, r"not \(n, 2\)"),
        (np.array([[np.nan, 1]]), 1, "a query is not finite"),
        (np.array([[1, np.inf]]), 1, "a query is not finite"),
        (np.full((1, 2), 3e38), 1, "so large"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(make: Make, queries: np.ndarray, k: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(np.ones((4, 2), dtype=np.float32)).search(queries.astype(np.float32), k)


@every
@pytest.mark.parametrize("vectors", [np.full((2, 2), np.nan), np.array([[1.0, np.inf]]), np.zeros((0, 2)), np.zeros((2, 0)), np.zeros(3)])
def test_vectors_that_cannot_be_searched_are_refused(make: Make, vectors: np.ndarray) -> None:
    with pytest.raises(UsageError, match="item vector"):
        make(vectors.astype(np.float32))


@every
@pytest.mark.parametrize(
    ("excluded", "words"),
    [
        (Excluded.of([np.array([4])]), "not in the catalogue"),
        (Excluded.of([np.array([-1])]), "not in the catalogue"),
        (Excluded.nothing(2), "do not fit the queries"),
        (Excluded.nothing(0), "do not fit the queries"),
        (Excluded(items=np.array([1, 2]), offsets=np.array([0, 1])), "do not fit the queries"),
        (Excluded.nothing(1, np.zeros(3, dtype=bool)), "one truth value per item"),
        (Excluded.nothing(1, np.zeros(4)), "one truth value per item"),  # type: ignore[arg-type]
    ],
)
def test_exclusions_that_do_not_fit_are_refused(make: Make, excluded: Excluded, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(np.ones((4, 2), dtype=np.float32)).search(np.ones((1, 2), dtype=np.float32), 1, excluded=excluded)
