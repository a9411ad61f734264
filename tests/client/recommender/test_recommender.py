"""Lists for users of every kind, from what was really delivered: who is read by what, what a list never holds, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from client.data.pseudonyms import PseudonymTable
from client.recommender import batches
from client.recommender.recommender import Recommender, Request, UnknownItem, UnknownUser
from client.recommender.requests import DECLARED, MOST_CHARACTERS, OWN, POPULARITY, Answer, passport_from
from client.serving_state import ServingFolder
from shared.errors import StateError, UsageError
from tests.client.partner_world import World
from tests.client.recommender.shops import ITEMS, LINKED, SUBJECTS, likes, subject_of

PASSPORT = passport_from("books")


def one(recommender: Recommender, **asked: object) -> Answer:
    (answer,) = recommender.recommend([Request(**asked)])  # type: ignore[arg-type]
    return answer


def items(answer: Answer) -> list[str]:
    return [each.item for each in answer.items]


def history(world: World, user: str, domain: str = "films") -> list[str]:
    rows = pl.read_csv(world[domain].path("interactions.csv"))
    return rows.filter(pl.col("user_id") == user)["item_id"].to_list()


def about(answer: Answer) -> list[str]:
    """Subjects of a list, but for item 0, which half of all people take."""
    return [subject_of(item) for item in items(answer) if item != "f00"]


def test_users_with_a_history_get_more_of_what_they_like_and_nothing_they_had(films: Recommender, open_shops: World) -> None:
    users = films.all_users().to_list()
    answers = films.recommend([Request(user=user, k=3) for user in users])
    liked = [subject == SUBJECTS[likes(user)] for user, answer in zip(users, answers, strict=True) for subject in about(answer)]

    assert {answer.source for answer in answers} == {OWN}
    assert np.mean(liked) > 0.5  # one in eight by chance; whoever had item 0 is offered galaxies, too
    for user, answer in zip(users, answers, strict=True):
        assert not set(items(answer)) & set(history(open_shops, user))
        assert [each.score for each in answer.items] == sorted((each.score for each in answer.items), reverse=True)


@pytest.mark.parametrize("user", ["n00", "n01"])
def test_a_newcomer_with_a_passport_gets_what_they_like_at_the_other_shop(films: Recommender, open_shops: World, user: str) -> None:
    assert history(open_shops, user) == []

    answer = one(films, user=user, k=5)

    assert answer.source == PASSPORT
    assert set(about(answer)) == {SUBJECTS[likes(user)]}
    assert 0 < answer.uncertainty < 1


def test_two_newcomers_get_different_lists_and_a_stranger_another(films: Recommender) -> None:
    galaxies, recipes, nobody = films.recommend([Request(user=user, k=5, even_unknown=True) for user in ("n00", "n01", "stranger")])

    assert set(about(galaxies)) & set(about(recipes)) == set()
    assert (nobody.source, nobody.uncertainty) == (POPULARITY, 1.0)


def test_declared_interests_are_read_in_a_persons_own_words(films: Recommender) -> None:
    answer = one(films, declared="I would like to read about volcanoes and lava", k=5)

    assert answer.source == DECLARED
    assert set(about(answer)) == {"volcano"}


def test_words_that_the_language_model_cannot_read_get_what_is_popular(films: Recommender) -> None:
    answer = one(films, declared="вулканы и горячая лава", k=5)

    assert (answer.source, answer.uncertainty) == (POPULARITY, 1.0)
    assert answer.items == one(films, declared=None, k=5).items


def test_a_declared_vector_says_the_same_as_the_items_it_points_to(films: Recommender, open_shops: World) -> None:
    coordinates = films._now.delivered.coordinates
    answer = one(films, interest=coordinates[4], space_version=open_shops.space_version, k=5)

    assert answer.source == DECLARED
    assert set(about(answer)) == {SUBJECTS[4]}


def test_whoever_is_nobody_gets_what_most_people_take(films: Recommender, open_shops: World) -> None:
    answer = one(films, k=ITEMS)
    taken = pl.read_csv(open_shops["films"].path("interactions.csv"))["item_id"].value_counts()
    counts = dict(taken.iter_rows())

    assert answer.source == POPULARITY
    assert [counts.get(item, 0) for item in items(answer)] == sorted(counts.values(), reverse=True)
    assert items(answer)[0] == "f00"


def test_the_chain_is_passport_before_declared_and_own_history_before_both(films: Recommender) -> None:
    declared = {"declared": "volcano", "k": 3}
    assert one(films, user="p001", **declared).source == OWN
    assert one(films, user="n01", **declared).source == PASSPORT
    assert one(films, user="stranger", **declared).source == DECLARED
    assert one(films, user="stranger", even_unknown=True).source == POPULARITY


def test_a_list_is_the_same_alone_in_company_and_in_a_batch(films: Recommender) -> None:
    users = films.all_users().to_list()
    together = films.recommend([Request(user=user, k=7) for user in users])
    batch = pl.concat(films.batch(users, k=7))

    assert [one(films, user=user, k=7) for user in users[:12]] == together[:12]
    assert batch["item"].to_list() == [item for answer in together for item in items(answer)]
    assert batch["user"].to_list() == [user for user in users for _ in range(7)]
    assert batch["rank"].to_list() == list(range(1, 8)) * len(users)
    assert batch.schema == batches.SCHEMA


def test_chunks_of_a_batch_do_not_show(films: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [*films.all_users().to_list(), "n00", "n01"]
    whole = pl.concat(films.batch(users, k=5, explain=True, diversity=0.3))
    done: list[tuple[int, int]] = []

    monkeypatch.setattr(batches, "USERS_AT_A_TIME", 17)
    parts = list(films.batch(users, k=5, explain=True, diversity=0.3, progress=lambda *said: done.append(said)))

    assert len(parts) == len(done) == -(-len(users) // 17)
    assert done[-1] == (len(users), len(users))
    joined = pl.concat(parts)
    assert joined.drop("score").equals(whole.drop("score"))
    np.testing.assert_allclose(joined["score"], whole["score"], rtol=1e-5, atol=1e-6)


def test_a_second_recommender_says_the_same(films: Recommender, open_shops: World) -> None:
    users = films.all_users().to_list()[:40]
    again = Recommender.open(open_shops["films"])

    assert again.model_version == films.model_version
    assert pl.concat(again.batch(users, k=9, explain=True)).equals(pl.concat(films.batch(users, k=9, explain=True)))


def test_seen_items_come_back_where_somebody_wants_them(films: Recommender, open_shops: World) -> None:
    had = set(history(open_shops, "p003"))
    whole = one(films, user="p003", k=ITEMS)
    with_seen = one(films, user="p003", k=ITEMS, with_seen=True)

    assert len(whole.items) == ITEMS - len(had)
    assert set(items(with_seen)) - set(items(whole)) == had


def test_what_a_user_blocked_is_not_offered_to_them_alone(films: Recommender) -> None:
    before = one(films, user="n00", k=3)
    after, other = films.recommend([Request(user="n00", k=3, blocked=(items(before)[0],)), Request(user="n01", k=3)])

    assert items(after)[:2] == items(before)[1:]
    assert other == one(films, user="n01", k=3)


def test_the_partners_lists_hold_for_everybody(open_shops: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lists")
    (folder / "stock.txt").write_text("\n".join(f"f{n:02d}" for n in range(0, ITEMS, 2)))
    (folder / "blocked.csv").write_text("user_id,item_id\nn00,f08\n")
    films = Recommender.open(open_shops["films"], in_stock=folder / "stock.txt", blocked=folder / "blocked.csv")
    found = pl.concat(films.batch([*films.all_users(), "n00", "n01"], k=20))

    assert {int(item[1:]) % 2 for item in found["item"].unique()} == {0}
    assert "f08" not in found.filter(user="n00")["item"].to_list()
    assert "f08" in found.filter(user="n01")["item"].to_list()
    assert {int(each.item[1:]) % 2 for each in films.similar("f03", k=20)} == {0}


def test_diversity_makes_a_list_of_more_subjects_out_of_the_same_scores(films: Recommender) -> None:
    plain = one(films, user="n00", k=6)
    diverse = one(films, user="n00", k=6, diversity=0.6)
    scores = {each.item: each.score for each in one(films, user="n00", k=ITEMS).items}

    assert len(set(about(diverse))) > len(set(about(plain)))
    assert items(diverse)[0] == items(plain)[0]
    assert all(each.score == pytest.approx(scores[each.item], rel=1e-5, abs=1e-6) for each in diverse.items)


def test_similar_items_are_about_the_same(films: Recommender) -> None:
    found = films.similar("f03", k=7)

    assert {subject_of(each.item) for each in found} == {SUBJECTS[3]}
    assert "f03" not in [each.item for each in found]
    assert [each.cosine for each in found] == sorted((each.cosine for each in found), reverse=True)
    assert all("chess" in each.title for each in found)


@pytest.mark.parametrize("k", [0, -1, ITEMS + 1, True])
def test_lists_that_nobody_can_make_are_refused(films: Recommender, k: int) -> None:
    with pytest.raises(UsageError, match="cannot be made from a catalogue of 64"):
        one(films, user="p001", k=k)
    with pytest.raises(UsageError, match="cannot be made"):
        films.batch(["p001"], k=k)
    with pytest.raises(UsageError, match="cannot be made"):
        films.similar("f01", k=k)


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_a_diversity_outside_its_range_is_refused(films: Recommender, diversity: float) -> None:
    with pytest.raises(UsageError, match="'diversity'"):
        one(films, user="p001", diversity=diversity)


def test_an_unknown_user_is_an_error_that_does_not_repeat_the_id(films: Recommender) -> None:
    with pytest.raises(UnknownUser, match="not known here") as alone:
        one(films, user="secret-name-17")
    with pytest.raises(UnknownUser, match="the user of request 2"):
        films.recommend([Request(user="p001"), Request(user="secret-name-17")])
    with pytest.raises(UnknownUser, match=r"user 2 is not known here, and 1 more: nothing was written") as many:
        films.batch(["p001", "secret-name-17", "n00", "secret-name-18"])
    assert "secret" not in str(alone.value) + str(many.value)


def test_an_unknown_item_is_an_error(films: Recommender) -> None:
    with pytest.raises(UnknownItem, match="lacks this item"):
        films.similar("b03")
    with pytest.raises(UnknownItem, match="lacks this item"):
        films.explain("p001", "")
    with pytest.raises(UnknownItem, match="lacks item 2 of those that are blocked"):
        one(films, user="p001", blocked=("f01", "b03"))


@pytest.mark.parametrize(("text", "said"), [("", "are empty"), (" \n\t", "are empty"), ("x" * 1_000_000, "more than 20,000 characters")])
def test_declared_interests_that_cannot_be_read_are_refused(films: Recommender, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        one(films, declared=text)
    with pytest.raises(UsageError, match=said):
        films.batch(["p001"], declared={"p001": text})


@pytest.mark.parametrize("text", ["古い地図と火山", "карты и вулканы", "🌋🌋🌋", "\ud800", "a" * MOST_CHARACTERS, "\u200b"])
def test_words_in_any_language_get_an_answer(films: Recommender, text: str) -> None:
    answer = one(films, declared=text, k=5)
    assert len(answer.items) == 5
    assert all(np.isfinite(each.score) for each in answer.items)
    assert answer.source in (DECLARED, POPULARITY)


@pytest.mark.parametrize(
    ("vector", "version", "said"),
    [
        ([np.nan] + [0.0] * 7, None, "not finite"),
        ([np.inf] * 8, None, "not finite"),
        ([0.0] * 7, None, "has 8 numbers"),
        ([[0.0] * 8], None, "has 8 numbers"),
        (["x"] * 8, None, "has 8 numbers"),
        ([1.0] * 8, "0" * 16, "another interest space"),
        ([1.0] * 8, "", "another interest space"),
    ],
)
def test_declared_vectors_that_cannot_be_read_are_refused(
    films: Recommender, open_shops: World, vector: list[float], version: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        one(films, interest=np.array(vector), space_version=open_shops.space_version if version is None else version)


def test_interests_are_declared_in_one_way(films: Recommender, open_shops: World) -> None:
    with pytest.raises(UsageError, match="not both"):
        one(films, declared="roses", interest=np.ones(8), space_version=open_shops.space_version)


def test_huge_declared_numbers_weigh_no_more_than_a_whole_interest(films: Recommender, open_shops: World) -> None:
    coordinates = films._now.delivered.coordinates[5].astype(np.float64)
    small, large = (one(films, interest=coordinates * size, space_version=open_shops.space_version, k=5) for size in (1.0, 1e30))
    assert items(small) == items(large)


def test_before_a_delivery_there_is_nothing_to_recommend_with(world: World) -> None:
    with pytest.raises(StateError, match="nothing was delivered"):
        Recommender.open(world["films"])


def test_a_model_of_another_interest_space_is_not_recommended_with(shops: World) -> None:
    folder = ServingFolder(shops["films"].at_home("serving"))
    state = folder.current()
    assert state is not None
    folder.replace(dataclasses.replace(state, space_version="0" * 16))

    with pytest.raises(StateError, match="the interest space of the run is not here"):
        Recommender.open(shops["films"])


def test_an_unknown_engine_is_refused(open_shops: World) -> None:
    with pytest.raises(UsageError, match="there is no engine 'best'"):
        Recommender.open(open_shops["films"], engine="best")


def test_everybody_of_the_table_can_be_asked_for(films: Recommender, open_shops: World) -> None:
    table = PseudonymTable.open(open_shops["films"].at_home("keys") / "external_ids.parquet")
    assert sorted(films.all_users().to_list()) == sorted(table.external_ids.to_list())
    assert len(films.all_users()) == LINKED + 40
