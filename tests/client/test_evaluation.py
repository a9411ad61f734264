"""Evaluation: who is asked about, what is true of them, and what was seen, checked against the files themselves."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from client.data.histories import Histories
from client.data.split import COLD, VALIDATION, divide, role
from client.delivery import Domain
from client.evaluation import LIST_LENGTH, EvaluatedDomain, _distinct_items, _new_items, evaluated, rank
from client.model.collaborative import nothing
from client.model.domain_head import ServingHead
from client.model.warm_head import Blend, WarmHead
from client.preparation import prepare
from client.queries import CurrentRun
from shared.errors import StateError
from tests.client.partner_world import CONFIG, LINKED, SPLIT_SEED, World, link_id, people


def rows_of(world: World, domain: str) -> dict[str, list[int]]:
    """Person -> items in the order of time, from the file."""
    found: dict[str, list[int]] = {}
    with (world.root / domain / "interactions.csv").open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["user_id"], []).append(int(row["item_id"][1:]))
    return found


def key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


@pytest.fixture
def films(done: World) -> EvaluatedDomain:
    return evaluated(done["films"])


def personal(films: EvaluatedDomain) -> EvaluatedDomain:
    """With a head that listens to the interest alone."""
    d = CONFIG.model.dimension
    head = ServingHead(
        scale=1.0,
        offset=np.zeros(d, np.float32),
        weights=np.zeros(1, np.float32),
        log_counts=np.zeros((1, films.n_items), np.float32),
    )
    return dataclasses.replace(films, heads=dict.fromkeys(films.heads, head))


@pytest.mark.parametrize("wanted", [COLD, VALIDATION])
def test_all_items_of_a_held_out_person_are_the_truth_and_nothing_was_seen(done: World, films: EvaluatedDomain, wanted: int) -> None:
    names = people("films")[:LINKED]
    roles = role([link_id(name) for name in names], SPLIT_SEED)
    truth = {key(link_id(n)): sorted(rows_of(done, "films")[n]) for n, r in zip(names, roles.tolist(), strict=True) if r == wanted}

    asked = films.people("books", wanted)

    found = {person.tobytes(): asked.truth[asked.offsets[at] : asked.offsets[at + 1]].tolist() for at, person in enumerate(asked.persons)}
    assert found == truth
    assert len(asked.seen) == 0
    assert asked.seen_offsets.tolist() == [0] * (asked.users + 1)


def test_of_warm_people_the_latest_item_is_true_and_the_others_were_seen(done: World, films: EvaluatedDomain) -> None:
    rows = {key(f"films/{name}"): items for name, items in rows_of(done, "films").items()}

    asked = films.warm_people()

    assert asked.users == len(films.domain.prepared.training)
    for at, person in enumerate(asked.persons):
        items = rows[person.tobytes()]
        assert asked.truth[asked.offsets[at] : asked.offsets[at + 1]].tolist() == [items[-1]]
        assert asked.seen[asked.seen_offsets[at] : asked.seen_offsets[at + 1]].tolist() == sorted(items[:-1])


def with_a_cut(films: EvaluatedDomain, cut: int) -> EvaluatedDomain:
    prepared = films.domain.prepared
    parts = divide(prepared.everyone, prepared.roles, cut_s=cut)
    divided = dataclasses.replace(
        prepared, roles=parts.roles, everyone=parts.everyone, training=parts.training, training_rows=parts.training_rows, later=parts.later
    )
    return dataclasses.replace(films, domain=dataclasses.replace(films.domain, prepared=divided))


def test_with_a_cut_cold_people_are_asked_about_what_came_after_it(done: World, films: EvaluatedDomain) -> None:
    at = 5  # the first five items are before the cut; some people have no others
    rows = {key(link_id(name)): items for name, items in rows_of(done, "films").items()}

    asked = with_a_cut(films, 1_600_000_000 + 1000 * at).people("books", COLD)

    expected = {person.tobytes() for person in films.people("books", COLD).persons if len(rows[person.tobytes()]) > at}
    assert {person.tobytes() for person in asked.persons} == expected
    assert 0 < len(expected) < films.people("books", COLD).users
    for n, person in enumerate(asked.persons):
        items = rows[person.tobytes()]
        assert asked.truth[asked.offsets[n] : asked.offsets[n + 1]].tolist() == sorted(items[at:])
        assert asked.seen[asked.seen_offsets[n] : asked.seen_offsets[n + 1]].tolist() == sorted(items[:at])


def test_with_a_cut_warm_people_are_asked_about_all_that_came_after_it(done: World, films: EvaluatedDomain) -> None:
    rows = {key(f"films/{name}"): items for name, items in rows_of(done, "films").items()}
    films = with_a_cut(films, 1_600_000_000 + 5000)

    asked = films.warm_people()

    assert 0 < asked.users < len(films.domain.prepared.training)
    for n, person in enumerate(asked.persons):
        items = rows[person.tobytes()]
        assert asked.truth[asked.offsets[n] : asked.offsets[n + 1]].tolist() == sorted(items[5:])
        assert asked.seen[asked.seen_offsets[n] : asked.seen_offsets[n + 1]].tolist() == sorted(items[:5])
    assert rank(asked, films.warm(asked), films.n_items).ranks.shape == asked.truth.shape


def test_after_a_cut_only_what_is_new_to_a_person_is_the_truth() -> None:
    before = Histories(offsets=np.array([0, 2, 3, 3]), items=np.array([1, 2, 3], dtype=np.int32), times=np.arange(3))
    later = Histories(offsets=np.array([0, 3, 4, 5]), items=np.array([2, 5, 5, 3, 3], dtype=np.int32), times=np.arange(5))

    items, offsets = _new_items(later, before, np.arange(3))

    assert (items.tolist(), offsets.tolist()) == ([5, 3], [0, 1, 1, 2])  # 5 once; 3 again; 3 for the first time


def test_the_same_warm_people_are_drawn_whatever_key_made_their_pseudonyms(
    tmp_path: Path, done: World, films: EvaluatedDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.evaluation._WARM_USERS", 7)
    elsewhere = dataclasses.replace(films.domain.settings, base=tmp_path)
    for name in ("interactions", "items", "links"):  # the same files, another home
        file = done["films"].path(getattr(done["films"].data, name))
        shutil.copy2(file, tmp_path / file.name)
    prepared = prepare(elsewhere, CONFIG)
    prepared.fix_space(films.domain.prepared.space(films.domain.space_version))
    domain = dataclasses.replace(films.domain, settings=elsewhere, prepared=prepared)

    here, there = films.warm_people(), dataclasses.replace(films, domain=domain).warm_people()

    assert not np.array_equal(prepared.everyone.pseudonyms, films.domain.prepared.everyone.pseudonyms)
    assert here.users == 7
    assert {person.tobytes() for person in here.persons} == {person.tobytes() for person in there.persons}


def test_an_item_taken_twice_is_held_out_all_the_same(done: World, films: EvaluatedDomain) -> None:
    prepared = films.domain.prepared
    items = np.array(prepared.training.items)
    latest = prepared.everyone.items[prepared.everyone.offsets[prepared.training_rows + 1] - 1]
    items[prepared.training.offsets[:-1]] = latest  # everybody's first item is the one that was kept back
    training = Histories(offsets=prepared.training.offsets, items=items, times=prepared.training.times)
    twice = dataclasses.replace(films.domain, prepared=dataclasses.replace(prepared, training=training))

    asked = dataclasses.replace(films, domain=twice).warm_people()

    for at in range(asked.users):
        seen = asked.seen[asked.seen_offsets[at] : asked.seen_offsets[at + 1]]
        assert asked.truth[at] not in seen
        assert len(seen) == prepared.training.lengths[at] - 1


def test_the_recommender_reads_what_warm_people_had_and_not_what_was_kept_back(films: EvaluatedDomain) -> None:
    d, n = films.domain.coordinates.shape[1], films.n_items
    text_alone = WarmHead(
        blend=Blend(text=1.0, text_decay=1.0), log_counts=np.zeros(n, np.float32), collaborative=nothing(n), max_history=50
    )
    asked = films.warm_people()

    scores = dataclasses.replace(films, warm_head=text_alone).recommender(asked)
    assert scores is not None
    found = scores(3, 5)

    for row, at in zip(found, (3, 4), strict=True):
        had = asked.seen[asked.seen_offsets[at] : asked.seen_offsets[at + 1]]
        mean = films.domain.coordinates[had].mean(axis=0)
        assert mean.shape == (d,)
        np.testing.assert_allclose(row, films.domain.coordinates @ mean, atol=1e-5)
    assert dataclasses.replace(films, warm_head=None).recommender(asked) is None


def test_shuffled_is_the_same_model_fed_with_somebody_elses_passport(films: EvaluatedDomain) -> None:
    films = personal(films)
    asked = films.people("books")
    own, other = (method(asked, "books")(0, asked.users) for method in (films.federated, films.shuffled))

    same = [any(np.array_equal(theirs, mine) for theirs in other) for mine in own]
    moved = [not np.array_equal(mine, theirs) for mine, theirs in zip(own, other, strict=True)]

    assert all(same)  # nobody's passport is lost or invented
    assert sum(moved) >= asked.users - 3  # a permutation leaves about one in place
    again = films.shuffled(asked, "books")(0, asked.users)
    np.testing.assert_array_equal(again, other)


def test_head_only_does_not_read_the_transfer_layer(films: EvaluatedDomain) -> None:
    asked = films.people("books")
    before = films.without_federation(asked, "books")[0](0, asked.users)
    for parameter in films.model.transfer.parameters():
        parameter.data.fill_(3.0)

    anew = dataclasses.replace(films, domain=dataclasses.replace(films.domain))  # or it would be the head that was fitted before
    np.testing.assert_array_equal(anew.without_federation(asked, "books")[0](0, asked.users), before)


def test_head_only_is_fitted_once_for_both_roles_of_people(films: EvaluatedDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    cold, validation = films.people("books"), films.people("books", VALIDATION)
    before = films.without_federation(cold, "books")[0](0, cold.users)
    monkeypatch.setattr(Domain, "fit_head", lambda *_: pytest.fail("fitted again"))

    assert films.without_federation(validation, "books")[0](0, validation.users).shape == (validation.users, films.n_items)
    np.testing.assert_array_equal(films.without_federation(cold, "books")[0](0, cold.users), before)


def test_ranks_are_those_of_the_scores_and_lists_of_a_small_catalogue_are_padded(films: EvaluatedDomain) -> None:
    asked = films.people("books")
    scores = -np.arange(films.n_items, dtype=np.float32)  # item 0 is best for everybody

    found = rank(asked, lambda start, stop: np.tile(scores, (stop - start, 1)), films.n_items)
    small = rank(dataclasses.replace(asked, truth=asked.truth % 7), lambda start, stop: np.tile(scores[:7], (stop - start, 1)), 7)

    assert found.ranks.tolist() == asked.truth.tolist()
    assert found.top.shape == (asked.users, LIST_LENGTH)
    assert small.top[0].tolist() == [*range(7), *[-1] * (LIST_LENGTH - 7)]


def test_distinct_items_of_nobody_are_none() -> None:
    two = Histories(offsets=np.array([0, 2, 4]), items=np.arange(4, dtype=np.int32), times=np.arange(4))
    items, offsets = _distinct_items(two, np.zeros(0, dtype=np.int64))

    assert (items.tolist(), offsets.tolist()) == ([], [0])


def test_before_delivery_there_is_nothing_to_measure(done: World) -> None:
    shutil.rmtree(done["films"].at_home("serving"))
    with pytest.raises(StateError, match="nothing was delivered here"):
        evaluated(done["films"])


def test_heads_of_the_last_run_are_not_measured_in_this_one(done: World) -> None:
    run = CurrentRun(done["films"])
    run.begin("run-2", CONFIG)
    run.fix_space(done.space_version)

    with pytest.raises(StateError, match="nothing was delivered here in this run"):
        evaluated(done["films"])
