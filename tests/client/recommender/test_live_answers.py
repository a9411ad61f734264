"""What happens after the delivery changes the next answer: interactions, feedback, passports, erasure, a changed catalogue, a new run."""

from __future__ import annotations

import dataclasses
import time

import polars as pl
import pytest

from client import delivery, passport_exchange, queries, rounds
from client.forgetting import forget
from client.live_profiles import DISMISSED, INTERACTION, LIKED
from client.passport_exchange import export, take_in
from client.preparation import prepare
from client.queries import CurrentRun
from client.recommender import recommender
from client.recommender.recommender import Recommender, Request, UnknownUser
from client.recommender.requests import OWN, POPULARITY, Answer, passport_from
from client.serving_state import ServingFolder
from shared import wire
from shared.errors import StateError
from tests.client.partner_world import CONFIG, World, link_id
from tests.client.private_world import choose
from tests.client.recommender.shops import identity, subject_of

PASSPORT = passport_from("books")


def ask(films: Recommender, user: str, k: int = 5, **more: object) -> Answer:
    (answer,) = films.recommend([Request(user=user, k=k, **more)])  # type: ignore[arg-type]
    return answer


def items(answer: Answer) -> list[str]:
    return [each.item for each in answer.items]


def test_an_interaction_changes_the_next_answer_without_any_training(shops: World) -> None:
    films = Recommender.open(shops["films"])
    before = ask(films, "n00", k=20)

    films.live.observe("n00", "f08", INTERACTION)
    after = ask(films, "n00", k=20)

    assert "f08" in items(before)
    assert "f08" not in items(after)
    assert after.uncertainty < before.uncertainty


def test_what_a_newcomer_takes_outweighs_their_passport_in_the_end(shops: World) -> None:
    films = Recommender.open(shops["films"])
    for item in ("f04", "f12", "f20", "f28", "f36"):
        films.live.observe("n00", item, INTERACTION)
    answer = ask(films, "n00", k=3)

    assert answer.source == OWN
    assert {subject_of(item) for item in items(answer) if item != "f00"} == {"rose"}


def test_feedback_has_a_sign(shops: World) -> None:
    films = Recommender.open(shops["films"])
    scores = {each.item: each.score for each in ask(films, "n00", k=64).items}

    films.live.observe("n00", "f08", DISMISSED)
    after = {each.item: each.score for each in ask(films, "n00", k=64).items}
    assert "f08" not in after
    assert after["f16"] - after["f12"] < scores["f16"] - scores["f12"]  # galaxies against roses

    films.live.observe("n00", "f08", LIKED, at=int(time.time()) + 1)
    again = {each.item: each.score for each in ask(films, "n00", k=64).items}
    assert again["f16"] - again["f12"] > after["f16"] - after["f12"]


def test_feedback_moves_a_user_with_a_history_too(shops: World) -> None:
    films = Recommender.open(shops["films"])
    before = ask(films, "p003", k=64)
    gone = items(before)[0]
    films.live.observe("p003", gone, DISMISSED)
    after = ask(films, "p003", k=64)

    assert gone not in items(after)
    scores = {each.item: each.score for each in before.items}
    assert any(each.score != pytest.approx(scores[each.item], abs=1e-6) for each in after.items)


def test_a_batch_knows_what_was_observed(shops: World) -> None:
    films = Recommender.open(shops["films"])
    users = [*films.all_users().to_list()[:80], "n00"]  # more than are looked up one by one
    films.live.observe("n00", "f08", INTERACTION)
    found = pl.concat(films.batch(users, k=20))
    assert found.filter(user="n00")["item"].to_list() == items(ask(films, "n00", k=20))
    assert "f08" not in found.filter(user="n00")["item"].to_list()


def test_somebody_new_is_known_from_their_first_interaction_on(shops: World) -> None:
    films = Recommender.open(shops["films"])
    with pytest.raises(UnknownUser):
        ask(films, "first-time")

    films.live.observe("first-time", "f05", INTERACTION)
    answer = ask(films, "first-time", k=3)

    assert answer.source == OWN
    assert "locomotive" in {subject_of(item) for item in items(answer)}


def test_an_item_that_the_catalogue_lacks_by_now_is_passed_over(shops: World) -> None:
    films = Recommender.open(shops["films"])
    before = ask(films, "n00")
    films.live.observe("n00", "discontinued", INTERACTION)
    assert items(ask(films, "n00")) == items(before)


def test_a_passport_that_arrives_makes_a_strangers_list_personal(shops: World) -> None:
    settings = shops["films"]
    settings.at_home("register.sqlite").unlink()
    films = Recommender.open(settings)
    with pytest.raises(UnknownUser):
        ask(films, "n01")
    assert ask(films, "n01", even_unknown=True).source == POPULARITY

    made = export(shops["books"], CONFIG, prepare(shops["books"], CONFIG), "films", shops.space_version)
    take_in(settings, shops.space_version, made.path, dimension=CONFIG.model.dimension)

    assert films.reload()
    answer = ask(films, "n01")
    assert answer.source == PASSPORT
    assert {subject_of(item) for item in items(answer) if item != "f00"} == {"recipe"}
    assert not films.reload()


def test_a_private_passport_is_read_like_an_exact_one(shops: World) -> None:
    settings = shops["films"]
    settings.at_home("register.sqlite").unlink()
    choose(shops, "books", mode="private", epsilon_u=8.0, private_dimensions=16)
    made = export(shops["books"], CONFIG, prepare(shops["books"], CONFIG), "films", shops.space_version)
    take_in(settings, shops.space_version, made.path, dimension=CONFIG.model.dimension)

    one, other = (ask(Recommender.open(settings), user, k=20) for user in ("n00", "n01"))

    assert one.source == other.source == PASSPORT
    assert items(one) != items(other)


def test_an_expired_passport_is_not_read(shops: World, monkeypatch: pytest.MonkeyPatch) -> None:
    films = Recommender.open(shops["films"])
    assert ask(films, "n01").source == PASSPORT

    later = time.time() + 181 * 86_400
    monkeypatch.setattr(passport_exchange.time, "time", lambda: later)
    assert not films.reload()  # nothing changed, and they were read a moment ago
    monkeypatch.setattr(recommender, "PASSPORTS_FOR_S", 0.0)

    assert films.reload()
    assert ask(films, "n01", even_unknown=True).source == POPULARITY
    with pytest.raises(UnknownUser):
        ask(films, "n01")


def test_a_link_that_a_service_was_told_of_finds_its_passport(shops: World) -> None:
    settings = shops["films"]
    links = settings.path("links.csv")
    links.write_text("".join(line for line in links.read_text().splitlines(keepends=True) if not line.startswith("n01,")))
    films = Recommender.open(settings)
    with pytest.raises(UnknownUser):
        ask(films, "n01")

    films.live.link("n01", "books", link_id("n01"))
    assert ask(films, "n01").source == PASSPORT


def test_the_same_token_for_another_partner_finds_nothing(shops: World) -> None:
    films = Recommender.open(shops["films"])
    films.live.link("somebody", "games", link_id("p001"))
    with pytest.raises(UnknownUser):
        ask(films, "somebody")


def test_a_forgotten_user_is_a_stranger_to_a_running_recommender(shops: World) -> None:
    films = Recommender.open(shops["films"])
    assert ask(films, "p001").source == OWN
    films.live.observe("n01", "f05", INTERACTION)

    forget(shops["films"], ["p001", "n01"])

    assert films.reload()
    for user in ("p001", "n01"):
        with pytest.raises(UnknownUser):
            ask(films, user)
        assert ask(films, user, even_unknown=True).source == POPULARITY


def test_a_catalogue_that_changed_is_recommended_from_and_nothing_moves_to_another_item(shops: World) -> None:
    settings = shops["films"]
    before = ask(Recommender.open(settings), "n01", k=3)
    path = settings.path("items.csv")
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, "f97,the recipe 9,films", *rows]) + "\n")  # every position moves by one

    films = Recommender.open(settings)
    answer = ask(films, "n01", k=6)

    assert films.n_items == 65
    assert {subject_of(item) for item in items(answer) if item != "f00"} == {"recipe"}
    assert set(items(before)) <= {*items(answer), "f97"}


def test_while_a_later_run_trains_the_delivered_model_goes_on(shops: World) -> None:
    settings = shops["films"]
    before = ask(Recommender.open(settings), "p003")
    config = dataclasses.replace(CONFIG, name="next", seed=4)
    queries.hello(settings, wire.Hello(run_id="run-2", config_toml=config.to_toml()))
    CurrentRun(settings).fix_space(shops.space_version)
    rounds.train(
        settings,
        dataclasses.replace(identity_round(), run_id="run-2", config_hash=config.config_hash),
        bundle_digest="b" * 64,
        code_version="0",
    )

    films = Recommender.open(settings)
    assert films.model_version.startswith("run-1/1/")
    assert ask(films, "p003") == before


def identity_round() -> wire.RoundInstruction:
    return wire.RoundInstruction(run_id="run-1", round=1, config_hash="", arrays=identity().arrays)


def test_a_new_delivery_is_seen_by_a_running_recommender(shops: World) -> None:
    films = Recommender.open(shops["films"])
    version = films.model_version
    assert not films.reload()

    layer = {name: array + 0.5 for name, array in identity().arrays.items()}
    delivery.deliver(shops["films"], dataclasses.replace(identity(round=2), arrays=layer))

    assert films.reload()
    assert films.model_version != version
    assert films.model_version.startswith("run-1/2/")
    assert ask(films, "n00").model_version == films.model_version


def test_a_damaged_serving_state_stops_nobody_who_is_being_answered(shops: World) -> None:
    films = Recommender.open(shops["films"])
    before = ask(films, "n00")
    folder = shops["films"].at_home("serving")
    state = ServingFolder(folder).current()
    assert state is not None
    ServingFolder(folder).replace(state)
    (newest,) = folder.glob("snapshot-*")
    (newest / "arrays.safetensors").write_bytes(b"half")

    with pytest.raises(StateError, match="damaged"):
        films.reload()
    assert ask(films, "n00") == before
