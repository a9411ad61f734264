"""What the service answers: lists, similar items, explanations; and that what happened a moment ago changes the next answer."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from client.serving_wire import CLASSES, SERVICE
from tests.client.partner_world import World
from tests.client.recommender.shops import ITEMS, NEWCOMERS, SUBJECTS, likes, subject_of
from tests.client.serving.counter import Counter, served, until

NEW, REGULAR = "somebody-new", "p010"
"""Nobody has heard of the first; the second had five of the eight items about yachts, and never the one that many take."""

EVERYBODYS = "f00"
INTERACTION, LIKED, DISMISSED = 1, 2, 3


def personal(reply: Any) -> list[str]:
    """Subjects of a list, best first, without the item that everybody takes."""
    return [subject_of(one.item) for one in reply.items if one.item != EVERYBODYS]


def test_a_user_with_a_history_gets_items_of_their_subject_that_they_have_not_had(films: Counter) -> None:
    status, reply = films.ask("Recommend", user=REGULAR, k=4)

    assert status == "OK"
    assert personal(reply) == [SUBJECTS[likes(REGULAR)]] * 3
    assert reply.source == "own history"
    assert 0 < reply.uncertainty < 0.5
    assert reply.model_version.startswith("run-1/1/")
    assert [one.score for one in reply.items] == sorted((one.score for one in reply.items), reverse=True)
    assert all(one.reason for one in reply.items)


def test_a_newcomer_with_a_passport_gets_what_they_like_elsewhere(films: Counter) -> None:
    for person in NEWCOMERS:
        status, reply = films.ask("Recommend", user=person, k=4)
        assert (status, reply.source) == ("OK", "passport from books")
        assert personal(reply) == [SUBJECTS[likes(person)]] * 3


def test_interests_in_a_persons_own_words_are_enough_and_in_another_language_they_are_answered_too(films: Counter) -> None:
    status, reply = films.ask("Recommend", declared="I read everything about volcanoes", k=3)
    assert (status, reply.source) == ("OK", "declared")
    assert "volcano" in [subject_of(one.item) for one in reply.items]

    for text in ("Ich lese gern über Vulkane und Geigen", "火山についての本が好きです", "أحب الكتب عن البراكين", "🌋🌋🌋"):
        status, reply = films.ask("Recommend", declared=text, k=3)
        assert (status, len(reply.items)) == ("OK", 3)


def test_of_whom_nothing_is_known_is_not_found_and_gets_what_is_popular_where_that_is_asked_for(films: Counter) -> None:
    assert films.ask("Recommend", user=NEW)[0] == "NOT_FOUND"

    status, reply = films.ask("Recommend", user=NEW, even_unknown=True, k=1)
    assert (status, reply.source, reply.uncertainty) == ("OK", "popularity", 1.0)
    assert reply.items[0].item == EVERYBODYS  # by construction


def test_without_k_a_list_has_twenty_items(films: Counter) -> None:
    assert len(films.items(user=REGULAR)) == 20
    assert len(films.items(user=REGULAR, k=1)) == 1
    assert len(films.items(user=REGULAR, k=ITEMS, with_seen=True)) == ITEMS


def test_blocked_items_are_left_out_and_seen_ones_only_where_that_is_asked_for(films: Counter) -> None:
    first = films.items(user=REGULAR, k=3)

    assert not set(first[:2]) & set(films.items(user=REGULAR, k=10, blocked=first[:2]))
    everything = films.items(user=REGULAR, k=ITEMS)
    assert len(everything) < len(films.items(user=REGULAR, k=ITEMS, with_seen=True))


def test_similar_items_are_about_the_same_and_never_the_item_itself(films: Counter) -> None:
    status, reply = films.ask("Similar", item="f11", k=5)

    assert status == "OK"
    assert {subject_of(one.item) for one in reply.items} == {subject_of("f11")}
    assert "f11" not in {one.item for one in reply.items}
    assert all(one.title and -1.001 <= one.cosine <= 1.001 for one in reply.items)


def test_an_explanation_names_prototypes_and_items_of_the_users_own_in_this_domain_only(films: Counter) -> None:
    best = next(item for item in films.items(user=REGULAR) if item != EVERYBODYS)
    status, reply = films.ask("Explain", user=REGULAR, item=best)

    assert status == "OK"
    assert reply.prototypes
    assert all(one.name and 0 < one.share <= 1 for one in reply.prototypes)
    assert reply.like
    assert {subject_of(one.item) for one in reply.like} == {SUBJECTS[likes(REGULAR)]}
    assert {one.item[0] for one in reply.like} == {"f"}
    assert subject_of(best) in reply.words

    status, brought = films.ask("Explain", user=NEWCOMERS[0], item=best)
    assert status == "OK"
    assert list(brought.like) == []  # what a passport was made of stays at its source
    assert brought.prototypes


def test_a_live_interaction_changes_the_next_answer_and_is_not_offered_again(films: Counter) -> None:
    wanted = f"f{likes('p003') + 8:02d}"
    before = films.items(user=NEW, even_unknown=True, k=10)

    status, reply = films.ask("Observe", user=NEW, item=wanted, kind=INTERACTION)
    assert (status, reply.is_new) == ("OK", True)

    status, after = films.ask("Recommend", user=NEW, k=10)
    assert (status, after.source) == ("OK", "own history")
    items = [one.item for one in after.items]
    assert items != before
    assert wanted not in items
    assert personal(after)[:3] == [subject_of(wanted)] * 3
    assert after.uncertainty < 1.0


def test_feedback_with_a_sign_changes_the_next_answer(films: Counter) -> None:
    before = films.items(user=REGULAR, k=10)
    wanted, unwanted = f"f{(likes('p003') + 1) % 8 + 16:02d}", before[0]

    assert films.ask("Observe", user=REGULAR, item=unwanted, kind=DISMISSED)[0] == "OK"
    dismissed = films.items(user=REGULAR, k=10)
    assert unwanted not in dismissed

    for number in range(2, 8):
        films.ask("Observe", user=REGULAR, item=f"f{(likes('p003') + 1) % 8 + 8 * number:02d}", kind=LIKED)
    liked = films.items(user=REGULAR, k=10)
    assert liked != dismissed
    assert subject_of(wanted) in {subject_of(item) for item in liked[:5]}


def test_the_same_observation_twice_is_one_and_both_are_answered(films: Counter) -> None:
    answers = [films.ask("Observe", user=NEW, item="f01", kind=LIKED, at=1_700_000_000) for _ in range(2)]
    assert [(status, reply.is_new) for status, reply in answers] == [("OK", True), ("OK", False)]


def test_an_observation_survives_the_service(shops: World) -> None:
    with served(shops["films"]) as films:
        films.ask("Observe", user=NEW, item="f01", kind=LIKED)
        before = films.items(user=NEW, k=5)
    with served(shops["films"]) as films:
        assert films.items(user=NEW, k=5) == before


def test_callers_at_the_same_time_each_get_their_own_answer_also_beside_bad_ones(films: Counter) -> None:
    users = [f"p{n:03d}" for n in range(24)]
    alone = {user: films.items(user=user, k=5) for user in users}
    found: dict[str, list[object]] = {}
    start = threading.Barrier(len(users) + 4)

    def call(user: str) -> None:
        start.wait(20)
        if user.startswith("bad"):
            found[user] = [films.ask("Recommend", user=user, k=5)[0] for _ in range(5)]
        else:
            found[user] = [films.items(user=user, k=5) for _ in range(5)]

    threads = [threading.Thread(target=call, args=(user,)) for user in [*users, "bad-0", "bad-1", "bad-2", "bad-3"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert {user: lists for user, lists in found.items() if not user.startswith("bad")} == {user: [alone[user]] * 5 for user in users}
    assert [found[f"bad-{n}"] for n in range(4)] == [["NOT_FOUND"] * 5] * 4


def test_health_and_reflection_say_what_is_there(films: Counter) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    health = health_pb2_grpc.HealthStub(films.channel)
    for name in ("", SERVICE):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == health_pb2.HealthCheckResponse.SERVING

    described = ProtoReflectionDescriptorDatabase(films.channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(described.get_services())
    file = described.FindFileContainingSymbol(SERVICE)
    assert {method.name for method in file.service[0].method} == {"Recommend", "Similar", "Explain", "Observe", "AcceptPassport"}
    assert {message.name for message in file.message_type} == set(CLASSES)


def test_a_new_delivery_is_served_without_a_restart(shops: World, films: Counter) -> None:
    from client import delivery
    from tests.client.recommender.shops import identity

    before = films.ask("Recommend", user=REGULAR, k=1)[1].model_version
    delivery.deliver(shops["films"], identity(round=2))

    until(lambda: films.ask("Recommend", user=REGULAR, k=1)[1].model_version != before)
    assert films.ask("Recommend", user=REGULAR, k=1)[1].model_version.startswith("run-1/2/")


@pytest.mark.journey
def test_who_is_forgotten_is_a_stranger_at_once_and_nothing_of_theirs_is_taken(shops: World, films: Counter, repository: Path) -> None:
    films.ask("Observe", user=REGULAR, item="f01", kind=LIKED)
    before = films.ask("Recommend", user=REGULAR, k=1)[1].model_version
    command = [sys.executable, "-m", "client.cli", "forget", shops.toml("films"), REGULAR]
    subprocess.run(command, check=True, cwd=repository, capture_output=True, timeout=300)

    assert films.ask("Recommend", user=REGULAR, k=1)[0] == "NOT_FOUND"  # at once
    assert films.ask("Explain", user=REGULAR, item="f01")[0] == "NOT_FOUND"
    assert films.ask("Recommend", user=REGULAR, k=1, even_unknown=True)[1].source == "popularity"
    until(lambda: films.ask("Recommend", user="p004", k=1)[1].model_version != before)  # and what recommends was fitted without them
    status, text = films.ask("Observe", user=REGULAR, item="f01", kind=LIKED)
    assert status == "FAILED_PRECONDITION"
    assert REGULAR not in text


def test_nothing_is_recommended_before_a_delivery_and_from_the_delivery_on_it_is(shops: World) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    serving, aside = shops["films"].at_home("serving"), shops["films"].at_home("aside")
    serving.rename(aside)
    with served(shops["films"]) as films:
        health = health_pb2_grpc.HealthStub(films.channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for method, fields in {
            "Recommend": {"user": REGULAR},
            "Similar": {"item": "f01"},
            "Explain": {"user": REGULAR, "item": "f01"},
        }.items():
            status, text = films.ask(method, **fields)
            assert status == "FAILED_PRECONDITION"
            assert "nothing was delivered" in text

        aside.rename(serving)
        until(lambda: films.ask("Recommend", user=REGULAR)[0] == "OK")
        until(lambda: health.Check(health_pb2.HealthCheckRequest(), timeout=20).status == health_pb2.HealthCheckResponse.SERVING)

        serving.rename(aside)  # and where it is gone, nothing goes on in secret
        until(lambda: films.ask("Recommend", user=REGULAR)[0] == "FAILED_PRECONDITION")
