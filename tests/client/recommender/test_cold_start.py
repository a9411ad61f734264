"""What is known of a user and how it is put together: averages that can be checked by hand, on real passports and real histories."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from client.data.pseudonyms import pseudonym
from client.model.adaptation import Start, adapt
from client.model.domain_head import popularity_head
from client.recommender.cold_start import DISMISSED_WEIGHT, ENOUGH, WARM, Interests, encoded, interests, scorer_names
from client.recommender.people import People, nobody
from client.recommender.ragged import Ragged
from client.recommender.recommender import Recommender
from client.recommender.requests import DECLARED, OWN, POPULARITY, passport_from
from client.recommender.scoring import histories
from tests.client.partner_world import CONFIG
from tests.client.recommender.shops import NEWCOMERS

PRIOR_ITEMS = CONFIG.training.passport_min_items  # a passport counts as so many items: 3


def known(films: Recommender, user: str, *, own: list[int] | None = None, dismissed: list[int] | None = None) -> People:
    """A user of the film shop, as if they had had or dismissed these items."""
    (name,) = pseudonym(films._now.delivered.pseudonym_key, [user])
    people = films._now.gatherer.people(name[None])
    return People(
        own=people.own if own is None else Ragged.of_lists([own]),
        dismissed=Ragged.of_lists([dismissed or []]),
        passports=people.passports,
        declared=people.declared,
        blocked=people.blocked,
        known=people.known,
    )


def read(films: Recommender, people: People) -> Interests:
    return interests(people, films._now.delivered)


def source(films: Recommender, found: Interests) -> str:
    return films._now.sources[int(found.sources[0])]


def brought(films: Recommender, user: str) -> np.ndarray:
    (name,) = pseudonym(films._now.delivered.pseudonym_key, [user])
    passports = films._now.delivered.brought["books"]
    return passports.interests[passports.of_users(name[None])[0]]


def test_a_passport_alone_is_the_interest(films: Recommender) -> None:
    found = read(films, known(films, "n00"))

    np.testing.assert_allclose(found.vectors[0], brought(films, "n00"), rtol=1e-6, atol=1e-6)
    assert source(films, found) == passport_from("books")
    assert found.uncertainty[0] == pytest.approx(1 / (1 + PRIOR_ITEMS))


def test_own_items_are_weighed_against_the_items_that_a_passport_stands_for(films: Recommender) -> None:
    people = known(films, "n00", own=[9, 17])
    found = read(films, people)
    own = encoded(people.own, films._now.delivered)[0]

    expected = (PRIOR_ITEMS * brought(films, "n00") + 2 * own) / (PRIOR_ITEMS + 2)  # 3/5 of what came, 2/5 of what was seen
    np.testing.assert_allclose(found.vectors[0], expected, rtol=1e-5, atol=1e-6)
    assert source(films, found) == passport_from("books")
    assert found.uncertainty[0] == pytest.approx(1 / (1 + 5))


def test_with_enough_items_of_their_own_nothing_else_is_asked(films: Recommender) -> None:
    people = known(films, "n00", own=[1, 9, 17, 25, 33][:ENOUGH])
    without_blend = dataclasses.replace(films._now.delivered, warm=None)
    found = interests(people, without_blend)

    np.testing.assert_allclose(found.vectors, encoded(people.own, without_blend), rtol=1e-5, atol=1e-6)
    assert scorer_names(without_blend)[found.scorers[0]] == source(films, found) == OWN


def test_where_a_blend_for_warm_users_was_delivered_it_reads_histories_without_the_encoder(films: Recommender) -> None:
    people = known(films, "n00", own=[1, 9, 17, 25, 33][:ENOUGH])
    found = read(films, people)

    assert scorer_names(films._now.delivered)[found.scorers[0]] == WARM
    assert source(films, found) == OWN
    expected = films._now.delivered.warm.scores(*histories(people, films._now.delivered), films._now.delivered.coordinates)
    lists = films._now.lists(people, found, k=64, with_seen=True, diversity=0.0)
    np.testing.assert_allclose(lists.scores[0], np.take_along_axis(expected[0], lists.items[0], axis=0), rtol=1e-5, atol=1e-6)


def test_what_was_dismissed_pushes_away(films: Recommender) -> None:
    with_, without = (read(films, known(films, "n00", dismissed=items)).vectors[0] for items in ([1, 2], []))
    mean = films._now.delivered.coordinates[[1, 2]].mean(axis=0)

    np.testing.assert_allclose(without - with_, DISMISSED_WEIGHT * mean, atol=1e-6)


def test_declared_interests_weigh_one_item(films: Recommender) -> None:
    said = films._now.delivered.coordinates[5]
    people = films._now.gatherer.people(nobody(1), said[None])
    alone = read(films, people)
    with_one = People(
        own=Ragged.of_lists([[1]]),
        dismissed=people.dismissed,
        passports=people.passports,
        declared=people.declared,
        blocked=people.blocked,
        known=people.known,
    )

    np.testing.assert_allclose(alone.vectors[0], said, rtol=1e-5, atol=1e-6)
    assert source(films, alone) == DECLARED
    own = encoded(with_one.own, films._now.delivered)[0]
    np.testing.assert_allclose(read(films, with_one).vectors[0], (said + own) / 2, rtol=1e-5, atol=1e-6)
    assert source(films, read(films, with_one)) == OWN


def test_a_passport_that_does_not_help_leaves_the_word_to_what_was_declared(films: Recommender) -> None:
    delivered = films._now.delivered
    closed = popularity_head(np.expm1(delivered.heads["books"].log_counts), 8)
    without = dataclasses.replace(delivered, heads={**delivered.heads, "books": closed})
    (name,) = pseudonym(delivered.pseudonym_key, ["n00"])
    said = delivered.coordinates[5]

    silent, speaking = (interests(films._now.gatherer.people(name[None], wish), without) for wish in (None, said[None]))

    names = scorer_names(without)
    assert (names[silent.scorers[0]], source(films, silent), silent.uncertainty[0]) == ("books", POPULARITY, 1.0)
    assert (names[speaking.scorers[0]], source(films, speaking)) == (DECLARED, DECLARED)
    np.testing.assert_allclose(speaking.vectors[0], said, rtol=1e-5, atol=1e-6)


def test_the_method_that_learned_where_to_begin_takes_its_steps_instead(films: Recommender) -> None:
    start = Start(offset=np.full(8, 0.1, dtype=np.float32), gate=0.2, scale=4.0, rate=0.5, steps=1, prior_items=3.0)
    maml = dataclasses.replace(films._now.delivered, start=start)
    few, none = (known(films, "n00", own=items) for items in ([9, 17], []))

    moved = interests(few, maml).vectors[0]

    stepped = adapt(brought(films, "n00")[None], np.array([[9, 17]]), np.ones((1, 2), dtype=bool), maml.coordinates, start)
    np.testing.assert_allclose(moved, stepped[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(moved, read(films, few).vectors[0], atol=1e-3)
    np.testing.assert_allclose(interests(none, maml).vectors[0], brought(films, "n00"), rtol=1e-6, atol=1e-6)


def test_of_a_stranger_nothing_is_known(films: Recommender) -> None:
    people = films._now.gatherer.people(nobody(1))
    found = read(films, people)

    assert not people.known.any()
    assert not found.vectors.any()
    assert (source(films, found), found.uncertainty[0]) == (POPULARITY, 1.0)


def test_newcomers_are_known_by_their_passports_alone(films: Recommender) -> None:
    names = pseudonym(films._now.delivered.pseudonym_key, [*NEWCOMERS, "stranger"])
    people = films._now.gatherer.people(names)

    assert people.own.lengths.tolist() == [0, 0, 0]
    assert people.known.tolist() == [True, True, False]
    assert (people.passports["books"] >= 0).tolist() == [True, True, False]
