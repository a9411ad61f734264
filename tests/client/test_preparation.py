"""Preparation: once for each version of the files, whole or not at all, and without the people whom a benchmark holds out."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.data.histories import Histories
from client.data.pseudonyms import PseudonymTable
from client.data.split import TRAIN, role, without_last
from client.model.text_encoder import TextEncoder
from client.passport_exchange import export, for_training, take_in
from client.preparation import prepare
from client.register import Register
from client.settings import BenchmarkSettings, ClientSettings
from shared.errors import DataError, StateError, StorageError
from tests.client.partner_world import CONFIG, LINKED, SPLIT_SEED, World, link_id, people


def versions(settings: ClientSettings) -> list[str]:
    return sorted(path.name for path in settings.at_home("prepared").iterdir() if path.name != "spaces")


def held_out() -> set[str]:
    """Names of people whom the split keeps from training, computed from the links alone."""
    names = people("books")[:LINKED]
    roles = role([link_id(name) for name in names], SPLIT_SEED)
    return {name for name, r in zip(names, roles.tolist(), strict=True) if r != TRAIN}


def test_the_second_call_opens_what_the_first_left_and_encodes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world["books"]
    before = versions(settings)

    def encode(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(TextEncoder, "encode", encode)
    for name in ("items.csv", "interactions.csv", "links.csv"):
        (world.root / "books" / name).chmod(0)
    prepared = prepare(settings, CONFIG)

    assert versions(settings) == before
    assert len(prepared.everyone) == len(people("books"))


def test_a_changed_file_or_setting_makes_a_new_version(world: World) -> None:
    settings = world["books"]
    old = prepare(settings, CONFIG)
    with (world.root / "books/interactions.csv").open("a") as file:
        file.write("newcomer,b01,1600000000\nnewcomer,b02,1600000001\n")
    new = prepare(settings, CONFIG)
    shorter = prepare(settings, dataclasses.replace(CONFIG, training=dataclasses.replace(CONFIG.training, max_items_per_user=3)))

    assert len(new.everyone) == len(old.everyone) + 1
    assert shorter.everyone.lengths.max() == 3
    assert len({old.folder, new.folder, shorter.folder}) == 3


def test_what_was_left_out_of_a_new_version_is_said_once_on_this_machine(world: World, caplog: pytest.LogCaptureFixture) -> None:
    settings, file = world["books"], world.root / "books/interactions.csv"
    file.write_text(file.read_text() + "newcomer,b01,1600000000\n" * 3)
    with caplog.at_level(logging.INFO, logger="isthmus.client"):
        prepared = prepare(settings, CONFIG)
        said = [record.getMessage() for record in caplog.records]
        prepare(settings, CONFIG)

    assert "books: 2 rows dropped: user, item and time repeat an earlier row" in said
    assert said == [f"books: {line}" for line in prepared.said()] == [record.getMessage() for record in caplog.records]


def test_only_the_newest_two_versions_are_kept_and_nothing_of_a_process_that_died(world: World) -> None:
    settings, file = world["books"], world.root / "books/interactions.csv"
    (first,) = versions(settings)
    (dead := subprocess.Popen(["true"])).wait()
    killed, at_work = (settings.at_home("prepared") / f".{first}.{process}" for process in (dead.pid, os.getppid()))
    for folder in (killed, at_work):
        folder.mkdir()
        (folder / "text.npy").write_bytes(b"half")
    found = []
    for number in range(2):
        file.write_text(file.read_text() + f"newcomer{number},b01,1600000000\n")
        found.append(prepare(settings, CONFIG).folder.name)

    assert versions(settings) == sorted([at_work.name, *found])


def test_files_that_only_moved_are_not_prepared_again(world: World) -> None:
    settings = world["books"]
    there = settings.path(settings.data.links)
    moved = dataclasses.replace(settings, data=dataclasses.replace(settings.data, links=str(there)))

    assert prepare(moved, CONFIG).folder == prepare(settings, CONFIG).folder


@pytest.mark.journey
def test_two_processes_that_prepare_at_once_leave_one_whole_version(world: World) -> None:
    settings = world["books"]
    (only,) = versions(settings)
    subprocess.run(["rm", "-r", str(settings.at_home("prepared"))], check=True)
    script = (
        "import sys; from pathlib import Path; from client.preparation import prepare; from client.settings import ClientSettings;"
        "from tests.client.partner_world import CONFIG; print(len(prepare(ClientSettings.read(Path(sys.argv[1])), CONFIG).everyone))"
    )
    run = [sys.executable, "-c", script, world.toml("books")]
    root = Path(__file__).resolve().parents[2]
    both = [subprocess.Popen(run, stdout=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) for _ in range(2)]

    assert [int(one.communicate(timeout=600)[0]) for one in both] == [len(people("books"))] * 2
    assert versions(settings) == [only]


def test_a_full_disk_is_a_storage_error_and_leaves_nothing_behind(world: World) -> None:
    settings = world["books"]
    subprocess.run(["rm", "-r", str(settings.at_home("prepared"))], check=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # no file may grow beyond this
    try:
        with pytest.raises(StorageError):
            prepare(settings, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert versions(settings) == []
    assert len(prepare(settings, CONFIG).everyone) == len(people("books"))


def test_a_file_that_changes_while_it_is_read_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, file = world["books"], world.root / "books/interactions.csv"
    file.write_text(file.read_text() + "late,b01,1600000000\n")
    real = TextEncoder.encode

    def encode(self: TextEncoder, texts: list[str], progress: None = None) -> np.ndarray:
        os.utime(file)  # the export goes on
        return np.asarray(real(self, texts, progress))

    monkeypatch.setattr(TextEncoder, "encode", encode)
    before = versions(settings)

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(settings, CONFIG)
    assert versions(settings) == before


def test_a_missing_file_is_named(world: World) -> None:
    (world.root / "books/links.csv").unlink()

    with pytest.raises(DataError, match=r"there is no file links\.csv"):
        prepare(world["books"], CONFIG)


def test_only_the_owner_reads_what_was_prepared(world: World) -> None:
    assert stat.S_IMODE(prepare(world["books"], CONFIG).folder.stat().st_mode) == 0o700


def test_held_out_people_are_in_no_training_history_count_or_passport(world: World) -> None:
    source, target = world["books"], world["films"]
    sent = export(source, CONFIG, prepare(source, CONFIG), "films", world.space_version)
    take_in(target, world.space_version, sent.path, dimension=CONFIG.model.dimension)
    prepared = prepare(target, CONFIG)
    passports = for_training(target, prepared, world.space_version, CONFIG.model.dimension)
    away = held_out()

    assert 0 < len(away) < LINKED
    assert len(prepared.training) == len(people("films")) - len(away)
    assert set(prepared.roles[prepared.training_rows].tolist()) == {TRAIN}
    assert len(passports.vectors) == LINKED - len(away) == int((passports.rows >= 0).sum())
    # both partners hold out the same people, without a word between them
    here, there = prepared.links["books"], prepare(source, CONFIG).links["films"]
    mine = {link for link, row in zip(here.link_ids, here.rows, strict=True) if prepared.roles[row] != TRAIN}
    theirs = {link for link, row in zip(there.link_ids, there.rows, strict=True) if prepare(source, CONFIG).roles[row] != TRAIN}
    assert mine == theirs == {link_id(name) for name in away}


def test_a_passport_reaches_the_very_user_who_holds_its_link(world: World) -> None:
    source, target = world["books"], world["films"]
    books = prepare(source, CONFIG)
    take_in(target, world.space_version, export(source, CONFIG, books, "films", world.space_version).path, dimension=8)
    prepared = prepare(target, CONFIG)
    passports = for_training(target, prepared, world.space_version, 8)
    from client.passport_exchange import interests

    here, there = prepared.links["books"], books.links["films"]
    for position, row in enumerate(prepared.training_rows.tolist()):
        link = here.link_ids[here.rows == row]
        if len(link):
            origin = there.rows[there.link_ids == link[0]]
            expected = interests(books.everyone, origin, np.asarray(books.coordinates(world.space_version)), CONFIG)[0]
            np.testing.assert_array_equal(passports.vectors[passports.rows[position, 0]], expected)


def test_linked_users_without_any_passport_are_trained_without_one(world: World) -> None:
    prepared = prepare(world["films"], CONFIG)

    passports = for_training(world["films"], prepared, world.space_version, CONFIG.model.dimension)

    assert passports.vectors.shape == (0, CONFIG.model.dimension)
    assert (passports.rows == -1).all()


def test_the_latest_item_is_kept_back_from_training_alone(world: World) -> None:
    prepared = prepare(world["books"], CONFIG)
    everyone = prepared.everyone.select(prepared.roles == TRAIN)

    assert (everyone.lengths - prepared.training.lengths).tolist() == [1] * len(everyone)  # everybody has at least four
    for user in range(len(everyone)):
        mine = everyone.items[everyone.offsets[user] : everyone.offsets[user + 1]]
        kept = prepared.training.items[prepared.training.offsets[user] : prepared.training.offsets[user + 1]]
        assert kept.tolist() == mine[:-1].tolist()


def test_without_last_leaves_short_histories_alone() -> None:
    histories = Histories(offsets=np.array([0, 0, 1, 3, 6]), items=np.arange(6, dtype=np.int32), times=np.arange(6))

    shorter = without_last(histories)

    assert shorter.offsets.tolist() == [0, 0, 1, 3, 5]  # 0, 1 and 2 items stay, of 3 the latest goes
    assert shorter.items.tolist() == [0, 1, 2, 3, 4]


def test_what_comes_after_a_cut_is_in_no_history_that_is_read(world: World) -> None:
    whole = prepare(world["books"], CONFIG)
    cut = 1_600_000_000 + 3000  # everybody's fourth item is of that moment
    settings = dataclasses.replace(world["books"], benchmark=BenchmarkSettings(split_seed=SPLIT_SEED, cut_s=cut))

    prepared = prepare(settings, CONFIG)

    assert whole.later is None
    assert prepared.later is not None
    assert prepared.everyone.lengths.tolist() == [3] * len(prepared.everyone)
    assert prepared.training.times.max() < cut <= prepared.later.times.min()
    assert len(prepared.later.items) == len(whole.everyone.items) - 3 * len(whole.everyone)
    np.testing.assert_array_equal(prepared.later.items[prepared.later.offsets[:-1]], whole.everyone.items[whole.everyone.offsets[:-1] + 3])
    assert prepared.said()[-1] == f"{len(prepared.later.items):,} interactions after the cut; of items that nobody took before it: 0"


def test_without_a_benchmark_everybody_trains(world: World) -> None:
    settings = dataclasses.replace(world["books"], benchmark=ClientSettings(domain="books").benchmark)
    prepared = prepare(settings, CONFIG)

    assert len(prepared.training) == len(prepared.everyone) == len(people("books"))
    np.testing.assert_array_equal(prepared.training.items, prepared.everyone.items)


def test_an_interest_space_that_was_never_sent_is_unknown(world: World) -> None:
    with pytest.raises(StateError, match="the interest space of the run is not here"):
        prepare(world["books"], CONFIG).coordinates("0" * 16)


def forgotten(settings: ClientSettings, *names: str) -> None:
    with Register.of(settings) as register:
        marker = register.marker
        register.mark(marker.users(names), [link_id(name) for name in names], at=1)


def test_a_forgotten_user_is_in_nothing_although_the_files_still_hold_the_rows(world: World) -> None:
    settings, before = world["books"], prepare(world["books"], CONFIG)
    forgotten(settings, "p003", "books-002")
    after = prepare(settings, CONFIG)
    names = PseudonymTable.open(settings.at_home("keys") / "external_ids.parquet").external(after.everyone.pseudonyms)

    assert after.folder != before.folder
    assert sorted(names) == sorted(set(people("books")) - {"p003", "books-002"})
    assert len(after.everyone) == len(after.roles) == len(before.everyone) - 2
    assert len(after.training) == len(after.training_rows) == int((after.roles == TRAIN).sum())
    assert sorted(after.links["films"].link_ids.tolist()) == sorted(link_id(name) for name in people("books")[:LINKED] if name != "p003")
    assert f"of {len(after.everyone):,} users" in after.said()[0]
    for name, history in zip(names, range(len(names)), strict=True):  # and everybody else is who they were, with what they had
        (old,) = np.flatnonzero((before.everyone.pseudonyms == after.everyone.pseudonyms[history]).all(axis=1))
        mine, theirs = (h.items[h.offsets[u] : h.offsets[u + 1]] for h, u in ((after.everyone, history), (before.everyone, old)))
        assert mine.tolist() == theirs.tolist(), name


def test_the_link_of_a_forgotten_user_stays_out_under_another_user_id_too(world: World) -> None:
    settings = world["books"]
    forgotten(settings, "p003")
    for name in ("interactions.csv", "links.csv"):
        file = world.root / "books" / name
        file.write_text(file.read_text().replace("p003,", "the-same-person,"))
    prepared = prepare(settings, CONFIG)

    assert len(prepared.everyone) == len(people("books"))
    assert link_id("p003") not in prepared.links["films"].link_ids.tolist()


def test_a_domain_of_which_everybody_was_forgotten_has_no_usable_row(world: World) -> None:
    forgotten(world["books"], *people("books"))
    with pytest.raises(DataError, match="no usable row"):
        prepare(world["books"], CONFIG)


def test_a_user_forgotten_while_the_files_are_read_does_not_get_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, file = world["books"], world.root / "books/interactions.csv"
    file.write_text(file.read_text() + "late,b01,1600000000\n")
    real, before = TextEncoder.encode, versions(settings)

    def encode(self: TextEncoder, texts: list[str], progress: None = None) -> np.ndarray:
        forgotten(settings, "p003")
        return np.asarray(real(self, texts, progress))

    monkeypatch.setattr(TextEncoder, "encode", encode)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(settings, CONFIG)
    assert versions(settings) == before


def test_the_interest_space_is_found_again_after_the_files_changed_within_a_run(world: World) -> None:
    settings = world["books"]
    before = prepare(settings, CONFIG).coordinates(world.space_version).copy()
    forgotten(settings, "p003")
    prepared = prepare(settings, CONFIG)

    assert not (prepared.folder / world.space_version).exists()
    np.testing.assert_array_equal(prepared.coordinates(world.space_version), before)
    assert prepared.space(world.space_version).version == world.space_version


def test_int8_texts_are_prepared_beside_those_in_float32_and_differ_from_them(world: World) -> None:
    settings = world["films"]
    plain = prepare(settings, CONFIG)
    fast = prepare(dataclasses.replace(settings, text_precision="int8"), CONFIG)
    assert fast.folder != plain.folder
    cosine = (np.asarray(fast.text_vectors) * np.asarray(plain.text_vectors)).sum(axis=1)
    assert cosine.min() > 0.9
    assert cosine.min() < 1.0 - 1e-6
