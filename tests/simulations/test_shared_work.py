"""What runs of a comparison share is found by what it was made of, and never given to those whom it does not fit."""

import dataclasses

import numpy as np
import pytest

from client.data.split import TRAIN, role
from client.evaluation import HeldOut
from client.preparation import prepare
from simulations.partners import linked
from simulations.ranks import RanksFile
from simulations.shared_work import SharedWork, rearranged
from tests.journeys.tiny_world import world


def people(persons: list[int], items: dict[int, list[int]]) -> HeldOut:
    keys = np.zeros((len(persons), 16), dtype=np.uint8)
    keys[:, 3] = persons
    return HeldOut(
        rows=np.arange(len(persons)),
        persons=keys,
        interests=np.array([[person, 1.0] for person in persons], dtype=np.float32),
        truth=np.concatenate([items[person] for person in persons]).astype(np.int64),
        offsets=np.concatenate([[0], np.cumsum([len(items[person]) for person in persons])]).astype(np.int64),
        seen=np.zeros(0, dtype=np.int64),
        seen_offsets=np.zeros(len(persons) + 1, dtype=np.int64),
    )


def rows_of(held_out: HeldOut) -> RanksFile:
    """A control whose rank of an item is the item, so that every rank says whose it is."""
    return RanksFile(
        offsets=held_out.offsets,
        users=held_out.persons,
        popularity=np.ones(50, dtype=np.int64),
        ranks={"text": held_out.truth.astype(np.float32)},
        top={"text": np.tile(held_out.persons[:, 3:4].astype(np.int32), (1, 20))},
    )


ITEMS = {1: [10, 11], 2: [20], 3: [30, 31, 32]}


def never() -> RanksFile:
    pytest.fail("kept rows were made again")


def test_rows_in_another_order_take_their_items_along():
    found = rearranged(rows_of(people([1, 2, 3], ITEMS)), np.array([2, 0, 1]))
    assert found.ranks["text"].tolist() == [30, 31, 32, 10, 11, 20]
    assert found.offsets.tolist() == [0, 3, 5, 6]
    assert found.top["text"][:, 0].tolist() == [3, 1, 2]


def test_kept_rows_come_back_for_the_same_people_in_any_order(tmp_path):
    work, first, again = SharedWork(tmp_path), people([3, 1, 2], ITEMS), people([2, 3, 1], ITEMS)
    work.rows(["books", "films"], first, lambda: rows_of(first))
    found = work.rows(["books", "films"], again, never)
    assert found.ranks["text"].tolist() == [20, 30, 31, 32, 10, 11]
    np.testing.assert_array_equal(found.users, again.persons)


@pytest.mark.parametrize(
    "other",
    [
        people([1, 2], ITEMS),
        people([1, 2, 4], {**ITEMS, 4: [30, 31, 32]}),
        people([1, 2, 3], {**ITEMS, 3: [30, 31, 33]}),
        dataclasses.replace(people([1, 2, 3], ITEMS), interests=np.full((3, 2), 0.5, dtype=np.float32)),
    ],
    ids=["fewer", "somebody else", "another item", "another interest"],
)
def test_rows_of_others_are_made_anew(tmp_path, other):
    work, first = SharedWork(tmp_path), people([1, 2, 3], ITEMS)
    work.rows(["books", "films"], first, lambda: rows_of(first))
    found = work.rows(["books", "films"], other, lambda: rows_of(other))
    np.testing.assert_array_equal(found.ranks["text"], rows_of(other).ranks["text"])


def test_rows_made_of_something_else_are_not_given_out(tmp_path):
    work, asked = SharedWork(tmp_path), people([1, 2, 3], ITEMS)
    work.rows(["books", "films"], asked, lambda: rows_of(asked))
    made = []
    work.rows(["books", "music"], asked, lambda: made.append(1) or rows_of(asked))
    assert made == [1]


def test_half_a_file_is_made_anew(tmp_path):
    work, asked = SharedWork(tmp_path), people([1, 2, 3], ITEMS)
    work.rows(["books", "films"], asked, lambda: rows_of(asked))
    for path in (tmp_path / "controls").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert work.rows(["books", "films"], asked, lambda: rows_of(asked)).ranks["text"].tolist() == [10, 11, 20, 30, 31, 32]


def write_users(folder, domain: str, users: list[int]):
    path = folder / f"{domain}.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{user},i\n" for user in users))
    return path


def test_few_linked_users_are_training_users_and_whoever_is_held_out_stays(tmp_path):
    files = {"books": write_users(tmp_path, "books", list(range(300))), "films": write_users(tmp_path, "films", list(range(100, 400)))}
    everybody, few, more = linked(files), linked(files, most=20, split_seed=4), linked(files, most=40, split_seed=4)
    ids = {name: tables["books"]["link_id"].to_list() for name, tables in {"all": everybody, "few": few, "more": more}.items()}
    assert len(ids["all"]) == 200
    held_out = {token for token, part in zip(ids["all"], role(ids["all"], 4), strict=True) if part != TRAIN}
    assert held_out <= set(ids["few"])
    assert len(set(ids["few"]) - held_out) == 20
    assert set(ids["few"]) < set(ids["more"]) < set(ids["all"])
    assert set(few["films"]["link_id"]) == set(ids["few"])  # both sides hold the same tokens


@pytest.mark.journey
def test_what_one_run_prepared_the_next_one_only_opens(tmp_path):
    work = SharedWork(tmp_path / "cache")
    first, second, other = (world(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    config = first.scenario.run
    made = [prepare(one, config) for one in first.settings]
    work.keep(first.settings, config)
    for run in (second, other):
        work.lend(run.folder, run.settings, config)
    for one, before in zip(second.settings, made, strict=True):
        found = prepare(one, config)
        assert (found.folder / "text.npy").stat().st_ino == (before.folder / "text.npy").stat().st_ino  # the same file, not made again
        np.testing.assert_array_equal(found.everyone.pseudonyms, before.everyone.pseudonyms)
        np.testing.assert_array_equal(found.roles, before.roles)
        assert (one.at_home("keys") / "external_ids.parquet").is_file()
    assert not any(one.at_home("prepared").exists() for one in other.settings)  # another world: nothing fits
    work.forget_prepared()
    assert (made[0].folder / "text.npy").is_file()  # what a run opened stays its own


@pytest.mark.journey
def test_what_came_while_a_run_went_on_is_shared_as_well(tmp_path):
    work = SharedWork(tmp_path / "cache")
    first, second, third = (world(tmp_path / name, seed=0) for name in "abc")
    config, domains = first.scenario.run, range(len(first.settings))
    prepared = [prepare(one, config).folder for one in first.settings]
    work.keep(first.settings, config)
    for folder in prepared:
        (folder / "a-space").mkdir()
        (folder / "a-space" / "coordinates.npy").write_bytes(b"first")

    work.keep(first.settings, config)
    work.lend(second.folder, second.settings, config)
    lent = [prepare(one, config).folder for one in second.settings]
    for folder in lent:
        assert (folder / "a-space" / "coordinates.npy").read_bytes() == b"first"
        (folder / "a-space" / "warm-0.npz").write_bytes(b"second")  # into a folder that is shared already
    work.keep(second.settings, config)
    work.keep(first.settings, config)  # has less, and takes nothing away
    work.lend(third.folder, third.settings, config)

    for one in domains:
        found = prepare(third.settings[one], config).folder
        assert (found / "a-space" / "warm-0.npz").stat().st_ino == (lent[one] / "a-space" / "warm-0.npz").stat().st_ino
        assert (found / "a-space" / "coordinates.npy").stat().st_ino == (prepared[one] / "a-space" / "coordinates.npy").stat().st_ino
        assert not (prepared[one] / "a-space" / "warm-0.npz").exists()
    assert not [path for path in (tmp_path / "cache" / "prepared").iterdir() if path.name.startswith(".")]
