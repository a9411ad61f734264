"""The head for warm users: its sum by hand, the same as inner products, what is let in and what is kept out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse

from client.data.histories import Histories
from client.model import warm_fit
from client.model.collaborative import ItemFactors, ItemWeights, Limits, nothing
from client.model.warm_fit import fit, sampled, without_last_of
from client.model.warm_head import POPULARITY, Blend, WarmHead
from shared.errors import StateError

PLANE = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
BLEND = Blend(text=2.0, text_decay=0.5, prior=0.5, collaborative=10.0, collaborative_decay=1.0)
WEIGHTS = ItemWeights(weights=scipy.sparse.csr_array(np.array([[0, 0.1, 0], [0, 0, 0.3], [0, 0, 0]], dtype=np.float32)))
FACTORS = ItemFactors(vectors=np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32))
ITEMS, MASK = np.array([[0, 1], [0, 2], [0, 0]]), np.array([[1, 1], [0, 1], [0, 0]])


def head(part: ItemWeights | ItemFactors = WEIGHTS, *, blend: Blend = BLEND, max_history: int = 50) -> WarmHead:
    log_counts = np.array([4, 2, 0], dtype=np.float32)
    return WarmHead(blend=blend, log_counts=log_counts, collaborative=part, max_history=max_history)


def histories(lists: list[list[int]]) -> Histories:
    items = np.array([item for one in lists for item in one], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
    return Histories(offsets=offsets, items=items, times=np.arange(len(items), dtype=np.int64))


def test_a_score_is_the_sum_of_text_popularity_and_collaborative_part() -> None:
    scores = head().scores(ITEMS, MASK, PLANE)

    # the first: z = (0.5 * item 0 + 1 * item 1) / 1.5 = (1/3, 2/3), times 2; prior (2, 1, 0); row 0 + row 1 = (0, 0.1, 0.3), times 10
    np.testing.assert_allclose(scores[0], [2 / 3 + 2 + 0, 4 / 3 + 1 + 1, 2 * (0.6 / 3 + 1.6 / 3) + 0 + 3], rtol=1e-6)
    np.testing.assert_allclose(scores[1], [1.2 + 2, 1.6 + 1, 2], rtol=1e-6)  # item 2 alone, which says nothing about others
    np.testing.assert_allclose(scores[2], [2, 1, 0])  # no history: what is popular


@pytest.mark.parametrize("part", [WEIGHTS, FACTORS, nothing(3)])
@pytest.mark.parametrize("blend", [BLEND, POPULARITY, dataclasses.replace(BLEND, text=0.0)])
def test_scores_are_inner_products_and_what_these_lack(part: ItemWeights | ItemFactors, blend: Blend) -> None:
    one = head(part, blend=blend)

    products = one.queries(ITEMS, MASK, PLANE) @ one.vectors(PLANE).T
    extra = one.extra(ITEMS, MASK)
    parts = one.parts(ITEMS, MASK, PLANE)

    chunks = [slice(0, 2), slice(2, 3)]
    added = 0 if extra is None else np.concatenate([extra(chunk) for chunk in chunks])
    np.testing.assert_allclose(products + added, one.scores(ITEMS, MASK, PLANE), atol=1e-5)
    assert (extra is None) == (isinstance(part, ItemFactors) or blend.collaborative == 0)
    np.testing.assert_allclose(parts["text"] + parts["prior"] + parts["collaborative"], one.scores(ITEMS, MASK, PLANE), atol=1e-6)


def test_a_disliked_item_takes_away_what_it_would_give() -> None:
    only_text = head(blend=Blend(text=1.0, text_decay=1.0))

    scores = only_text.scores(np.array([[0]]), np.array([[-1]]), PLANE)

    np.testing.assert_allclose(scores, [[-1, 0, -0.6]], rtol=1e-6)


def test_only_the_latest_items_are_read() -> None:
    short = head(max_history=1)

    np.testing.assert_array_equal(short.scores(ITEMS[:1], MASK[:1], PLANE), head().scores(ITEMS[:1, 1:], MASK[:1, 1:], PLANE))


@pytest.mark.parametrize("part", [WEIGHTS, FACTORS, nothing(3)])
def test_what_was_kept_is_what_comes_back(part: ItemWeights | ItemFactors) -> None:
    kept = head(part)
    again = WarmHead.from_arrays(kept.to_arrays())

    assert (again.blend, again.max_history) == (BLEND, 50)
    np.testing.assert_array_equal(again.scores(ITEMS, MASK, PLANE), kept.scores(ITEMS, MASK, PLANE))


@pytest.mark.parametrize("missing", ["blend", "log_counts", "max_history", "collaborative/weights/data"])
def test_a_damaged_head_is_refused(missing: str) -> None:
    arrays = head().to_arrays()
    del arrays[missing]
    with pytest.raises(StateError, match="damaged"):
        WarmHead.from_arrays(arrays)


# --- fitting ---


def fitted(lists: list[list[int]], coordinates: np.ndarray, *, seed: int = 0, limits: Limits | None = None) -> WarmHead:
    counts = np.bincount([item for one in lists for item in one], minlength=len(coordinates))
    return fit(histories(lists), coordinates, counts, generator=np.random.default_rng(seed), max_history=20, limits=limits)


def random_coordinates(items: int) -> np.ndarray:
    found = np.random.default_rng(9).standard_normal((items, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def groups_of_four(people: int, items: int) -> list[list[int]]:
    """Everybody takes the four items of one group in any order: the others of a group are known from one of them."""
    generator = np.random.default_rng(1)
    return [(4 * generator.integers(items // 4) + generator.permutation(4)).tolist() for _ in range(people)]


def hit_rate(head: WarmHead, lists: list[list[int]], coordinates: np.ndarray, k: int = 5) -> float:
    items, truth = np.array([one[:-1] for one in lists]), np.array([one[-1] for one in lists])
    scores = head.scores(items, np.ones_like(items), coordinates)
    np.put_along_axis(scores, items, -np.inf, axis=1)
    return float(np.mean((scores > scores[np.arange(len(truth)), truth][:, None]).sum(axis=1) < k))


@pytest.mark.parametrize("limits", [Limits(), Limits(users_squared=0, items_squared=0, factors=50)])
def test_where_items_go_together_the_collaborative_part_is_let_in(limits: Limits) -> None:
    coordinates = random_coordinates(200)  # text says nothing
    found = fitted(groups_of_four(600, 200), coordinates, limits=limits)

    assert found.blend.collaborative > 0
    assert hit_rate(found, groups_of_four(100, 200), coordinates) > 0.9


def test_where_words_say_it_all_the_text_is_let_in() -> None:
    coordinates = random_coordinates(50)[np.repeat(np.arange(50), 4)]  # the items of a group have one text
    lists = groups_of_four(60, 200)  # too few people for each group to be taken by two
    found = fitted(lists, coordinates)

    assert found.blend.text > 0
    assert hit_rate(found, groups_of_four(100, 200), coordinates) > 0.9


def test_where_nothing_is_to_be_learned_popularity_remains() -> None:
    generator = np.random.default_rng(2)
    popularity = np.arange(1, 301) ** -1.0
    lists = [generator.choice(300, size=5, replace=False, p=popularity / popularity.sum()).tolist() for _ in range(800)]

    found = fitted(lists, random_coordinates(300))

    # the part that serves has seen every last item; had it judged itself, it would have looked perfect
    assert found.blend == POPULARITY
    assert found.collaborative.to_arrays()["weights/data"].size == 0


def test_a_part_of_a_large_catalogue_decides_as_all_of_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_fit, "_COMPETITORS", 60)
    coordinates = random_coordinates(200)

    found = fitted(groups_of_four(600, 200), coordinates)

    assert found.blend.collaborative > 0
    assert hit_rate(found, groups_of_four(100, 200), coordinates) > 0.9


def test_the_head_is_named_by_the_seed() -> None:
    lists, coordinates = groups_of_four(100, 40), random_coordinates(40)
    first, again = fitted(lists, coordinates, seed=3), fitted(lists, coordinates, seed=3)

    assert first.blend == again.blend
    for name, array in first.to_arrays().items():
        np.testing.assert_array_equal(array, again.to_arrays()[name])


@pytest.mark.parametrize(
    ("lists", "items"),
    [([], 3), ([[]], 3), ([[0, 1, 2]], 3), ([[0]] * 30, 1), ([[0, 0]] * 30, 1), ([[0, 1]] * 9, 2)],
    ids=["nobody", "no-history", "one-user", "one-item", "one-item-twice", "nine-people"],
)
def test_of_a_domain_with_next_to_nothing_popularity_is_known(lists: list[list[int]], items: int) -> None:
    coordinates = random_coordinates(items)
    found = fitted(lists, coordinates)

    counts = np.bincount([item for one in lists for item in one], minlength=items)
    assert found.blend == POPULARITY
    np.testing.assert_allclose(found.scores(np.zeros((1, 1), int), np.ones((1, 1)), coordinates), np.log1p(counts)[None], rtol=1e-6)


def test_a_sample_holds_whole_histories_of_so_many_users() -> None:
    lists = [[user, user + 100] for user in range(100)]

    found = sampled(histories(lists), 30, np.random.default_rng(0))

    kept = [found.items[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]
    assert len(kept) == 30
    assert all(one in lists for one in kept)


def test_the_latest_item_of_those_who_judge_is_taken_out() -> None:
    earlier, last = without_last_of(histories([[5, 6], [7], [8, 9, 1]]), np.array([0, 2]))

    assert (earlier.items.tolist(), earlier.offsets.tolist(), last.tolist()) == ([5, 7, 8, 9], [0, 1, 2, 4], [6, 1])
