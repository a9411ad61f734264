"""Reasons in words: prototypes, and items only of the user's own, in this domain."""

from __future__ import annotations

import re

import polars as pl
import pytest

from client.recommender.explanation import LONGEST_TITLE, NEITHER, PERSONAL, POPULAR
from client.recommender.recommender import Recommender, Request, UnknownUser
from client.recommender.requests import OWN, passport_from
from tests.client.partner_world import World
from tests.client.recommender.shops import SUBJECTS, likes

QUOTED = re.compile(r"your '([^']*)'")


def titles(world: World, domain: str) -> dict[str, str]:
    """Item id -> how a reason calls it."""
    return {item: f"{title}. {kind}" for item, title, kind in pl.read_csv(world[domain].path("items.csv")).iter_rows()}


def had(world: World, user: str) -> set[str]:
    rows = pl.read_csv(world["films"].path("interactions.csv")).filter(user_id=user)
    named = titles(world, "films")
    return {named[item] for item in rows["item_id"]}


def test_a_reason_names_items_of_the_users_own_history_here_and_no_others(films: Recommender, open_shops: World) -> None:
    frame = pl.concat(films.batch([*films.all_users(), "n00", "n01"], k=10, explain=True))
    quoting = 0
    for (user,), rows in frame.group_by("user"):
        named = {title for reason in rows["reason"] for title in QUOTED.findall(reason)}
        assert named <= had(open_shops, str(user))
        quoting += bool(named)
    assert quoting > 100


def test_what_a_passport_was_made_of_is_never_named(films: Recommender, open_shops: World) -> None:
    books = titles(open_shops, "books").values()
    words = [films.explain(user, item) for user in ("n00", "n01") for item in ("f00", "f01", "f08")]
    reasons = [
        each.reason
        for answer in films.recommend([Request(user="n00", explain=True), Request(user="n01", explain=True)])
        for each in answer.items
    ]

    assert all(one.like == () for one in words)
    assert not any(book in text for book in books for text in [*reasons, *(one.words for one in words)])
    assert not any(QUOTED.search(text) for text in reasons)
    assert any(reason.startswith("your interest in ") for reason in reasons)


def test_an_explanation_names_what_the_match_is_about(films: Recommender) -> None:
    galaxies = films.explain("n00", "f08")

    assert galaxies.source == passport_from("books")
    assert galaxies.words.startswith("'the galaxy 1. films': your interest in ")
    assert galaxies.from_interest > galaxies.from_popularity
    assert sum(each.share for each in galaxies.prototypes) <= 1 + 1e-6
    assert galaxies.prototypes[0].share == max(each.share for each in galaxies.prototypes)


def test_an_explanation_adds_up_the_same_score_as_the_list(films: Recommender) -> None:
    for user in ("p001", "n00"):
        (answer,) = films.recommend([Request(user=user, k=6)])
        for each in answer.items:
            assert films.explain(user, each.item).score == pytest.approx(each.score, rel=1e-4)


def test_own_items_that_are_alike_are_named_with_how_alike_they_are(films: Recommender) -> None:
    user = next(user for user in films.all_users() if likes(user) == 3)
    (item, *_) = [each.item for each in films.recommend([Request(user=user, k=20)])[0].items if int(each.item[1:]) % 8 == 3]
    found = films.explain(user, item)

    assert found.source == OWN
    assert all("chess" in one.title for one in found.like)
    assert [one.cosine for one in found.like] == sorted((one.cosine for one in found.like), reverse=True)
    assert item not in [one.item for one in found.like]


def test_an_item_that_the_user_had_is_said_to_be_theirs(films: Recommender, open_shops: World) -> None:
    rows = pl.read_csv(open_shops["films"].path("interactions.csv")).filter(user_id="p001")
    assert films.explain("p001", rows["item_id"][0]).words.endswith("among what you had here")


def test_what_nobody_takes_and_nobody_likes_is_not_called_popular(films: Recommender) -> None:
    away = films.explain("n00", "f04")  # roses, to a reader of galaxies
    assert away.from_interest < 0
    assert away.words.endswith(("speak for it", POPULAR))


def test_a_short_reason_says_which_of_the_two_lifts_an_item(films: Recommender) -> None:
    (answer,) = films.recommend([Request(user="n00", k=20)])
    reasons = {each.item: each.reason for each in answer.items}
    assert {PERSONAL, POPULAR} <= set(reasons.values()) <= {PERSONAL, POPULAR, NEITHER}  # a list of 20 may reach where nothing lifts
    assert reasons["f00"] == POPULAR
    assert reasons["f08"] == PERSONAL


def test_where_neither_lifts_an_item_nobody_claims_that_one_does(films: Recommender) -> None:
    for explain in (False, True):
        (answer,) = films.recommend([Request(user="n00", k=64, explain=explain)])
        reasons = [each.reason for each in answer.items]
        assert reasons[-1] == NEITHER  # the last of all
        assert NEITHER not in reasons[:5]


def test_every_prototype_has_a_name_from_the_catalogue(films: Recommender) -> None:
    names = films._now.reasons.prototype_names
    assert len(names) == 4
    assert all(any(subject in name for subject in SUBJECTS) for name in names)


def test_a_long_title_is_cut(shops: World) -> None:
    path = shops["films"].path("items.csv")
    path.write_text(path.read_text().replace("the chess 1", "the chess " + "and more " * 40))
    films = Recommender.open(shops["films"])
    cut = [each.title for each in films.similar("f03", k=10) if "more" in each.title]
    assert cut
    assert all(len(title) <= LONGEST_TITLE and title.endswith("…") for title in cut)


def test_an_unknown_user_is_not_explained(films: Recommender) -> None:
    with pytest.raises(UnknownUser):
        films.explain("stranger", "f01")
