"""What every recommender promises: exact search, an index, one-byte vectors, and popularity for those of whom nothing is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from client.recommender.recommender import Recommender, Request
from client.recommender.requests import POPULARITY, Answer
from shared.errors import UsageError
from tests.client.partner_world import World
from tests.client.recommender.shops import ITEMS, delivered_shops

Asked = dict[str, Any]
"""What is said in a request about one person."""


@dataclass(frozen=True)
class Kind:
    """A way to recommend, and whom it is asked about.

    Attributes:
        engine: of `client.recommender.engines`.
        known: ask about users with histories and passports; otherwise about strangers.
        overlap: share of its lists that the exact ones hold, too.
    """

    engine: str
    known: bool = True
    overlap: float = 1.0

    def asked(self, shop: World) -> list[Asked]:
        """Users with histories and with passports, and people who declare a vector; or two strangers."""
        if not self.known:
            return [{"user": user, "even_unknown": True} for user in ("stranger", "another")]
        directions = np.random.default_rng(7).normal(size=(40, 8))
        declared = [{"interest": vector / np.linalg.norm(vector), "space_version": shop.space_version} for vector in directions]
        return [*({"user": f"p{n:03d}"} for n in range(0, 160, 5)), {"user": "n00"}, {"user": "n01"}, *declared]


KINDS = {
    "exact": Kind("exact"),
    "faiss": Kind("faiss", overlap=0.95),
    "int8": Kind("int8", overlap=0.9),
    "popularity": Kind("exact", known=False),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> World:
    return delivered_shops(tmp_path_factory.mktemp("contract-shops"), tmp_path_factory.mktemp("contract-text-cache"))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


OPENED: dict[str, Recommender] = {}


@pytest.fixture(scope="module", autouse=True)
def _close() -> Iterator[None]:
    yield
    OPENED.clear()


@pytest.fixture
def recommender(kind: Kind, shop: World) -> Recommender:
    if kind.engine not in OPENED:
        OPENED[kind.engine] = Recommender.open(shop["films"], engine=kind.engine)
    return OPENED[kind.engine]


@pytest.fixture
def people(kind: Kind, shop: World) -> list[Asked]:
    return kind.asked(shop)


def ask(recommender: Recommender, people: list[Asked], **more: Any) -> list[Answer]:
    return recommender.recommend([Request(**one, **more) for one in people])


def items(answer: Answer) -> list[str]:
    return [each.item for each in answer.items]


def test_a_list_has_k_different_items_of_the_catalogue_best_first(recommender: Recommender, people: list[Asked]) -> None:
    for answer in ask(recommender, people, k=10):
        found, scores = items(answer), [each.score for each in answer.items]
        assert len(set(found)) == 10
        assert all(recommender.has_item(item) for item in found)
        assert scores == sorted(scores, reverse=True)
        assert np.isfinite(scores).all()
        assert all(each.reason for each in answer.items)


def test_equal_scores_stand_in_the_order_of_the_catalogue(recommender: Recommender, people: list[Asked]) -> None:
    for answer in ask(recommender, people, k=30):
        order = [(-each.score, each.item) for each in answer.items]
        assert order == sorted(order)


def test_what_a_user_had_is_not_offered_again(recommender: Recommender, shop: World, people: list[Asked]) -> None:
    taken = pl.read_csv(shop["films"].path("interactions.csv"))
    for one, answer in zip(people, ask(recommender, people, k=ITEMS), strict=True):
        had = set(taken.filter(user_id=one.get("user", ""))["item_id"])
        assert set(items(answer)) == {f"f{n:02d}" for n in range(ITEMS)} - had


def test_what_is_blocked_is_not_offered_and_the_rest_moves_up(recommender: Recommender, people: list[Asked], kind: Kind) -> None:
    before = ask(recommender, people, k=12)
    requests = [Request(**one, k=10, blocked=tuple(items(answer)[:2])) for one, answer in zip(people, before, strict=True)]
    same = [items(after) == items(answer)[2:] for after, answer in zip(recommender.recommend(requests), before, strict=True)]
    assert np.mean(same) >= kind.overlap


def test_what_is_not_in_stock_is_offered_to_nobody(kind: Kind, shop: World, tmp_path: Path, people: list[Asked]) -> None:
    (tmp_path / "stock.txt").write_text("f01\nf02\nf03\nf04\n")
    narrow = Recommender.open(shop["films"], engine=kind.engine, in_stock=tmp_path / "stock.txt")
    for answer in ask(narrow, people, k=10):
        assert set(items(answer)) <= {"f01", "f02", "f03", "f04"}


def test_one_user_is_answered_alone_as_among_others(recommender: Recommender, people: list[Asked]) -> None:
    together = ask(recommender, people, k=8)
    assert [ask(recommender, [one], k=8)[0] for one in people] == together


def test_the_same_question_has_the_same_answer(recommender: Recommender, kind: Kind, shop: World, people: list[Asked]) -> None:
    again = Recommender.open(shop["films"], engine=kind.engine)
    assert ask(again, people, k=8) == ask(recommender, people, k=8)


def test_a_shorter_list_is_the_head_of_a_longer_one(recommender: Recommender, people: list[Asked], kind: Kind) -> None:
    long, short = (ask(recommender, people, k=k) for k in (15, 5))
    same = [items(a)[:5] == items(b) for a, b in zip(long, short, strict=True)]
    assert np.mean(same) >= kind.overlap


def test_lists_are_those_of_exact_search_as_far_as_promised(recommender: Recommender, kind: Kind, shop: World, people: list[Asked]) -> None:
    exact = Recommender.open(shop["films"], engine="exact")
    pairs = zip(ask(recommender, people, k=10), ask(exact, people, k=10), strict=True)
    shared = [len(set(items(a)) & set(items(b))) / 10 for a, b in pairs]
    assert np.mean(shared) >= kind.overlap


@pytest.mark.parametrize("k", [0, ITEMS + 1])
def test_a_length_that_cannot_be_is_refused(recommender: Recommender, k: int, people: list[Asked]) -> None:
    with pytest.raises(UsageError, match="cannot be made"):
        ask(recommender, people, k=k)


def test_nobody_to_answer_is_no_error(recommender: Recommender) -> None:
    assert recommender.recommend([]) == []
    assert list(recommender.batch([], k=3)) == []


def test_strangers_all_get_the_same_and_no_claim_to_know_them(recommender: Recommender, people: list[Asked], kind: Kind) -> None:
    one, other = ask(recommender, [{"user": user, "even_unknown": True} for user in ("stranger", "another")], k=10)
    assert items(one) == items(other)
    assert (one.source, one.uncertainty) == (POPULARITY, 1.0)
    if kind.known:
        assert any(items(answer) != items(one) for answer in ask(recommender, people, k=10))
