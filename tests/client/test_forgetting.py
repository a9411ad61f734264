"""Erasure: what is gone, what stays, and that nobody is told by the ledger, the manifest or a message."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from client import delivery, queries, rounds
from client.data.pseudonyms import PseudonymTable
from client.erasure_notice import read_notice
from client.forgetting import DELETED, NOTHING, REFITTED, finish, forget, take_notice
from client.keys import seal
from client.passport_exchange import HALF, export, own_keys, partners, take_in
from client.preparation import prepare
from client.register import Register
from client.rounds import training_data
from client.serving_state import ServingFolder
from client.settings import ClientSettings
from client.state import StateFolder
from shared import wire
from shared.errors import DataError, PassportError, UsageError
from tests.client.partner_world import CONFIG, LINKED, World, instruction, link_id, people

GONE, ALONE = "p003", "books-002"
"""A linked user who trains, and one without links."""


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def traces(settings: ClientSettings, *needles: bytes) -> list[str]:
    """Files below home, outbox and inbox that hold one of the needles."""
    found = []
    for folder in (settings.at_home(""), settings.path("outbox"), settings.path("inbox")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and any(needle in path.read_bytes() for needle in needles):
                found.append(path.relative_to(settings.base).as_posix())
    return found


def pseudonym_of(settings: ClientSettings, name: str) -> bytes:
    with Register.of(settings) as register:
        return bytes(register.marker.users([name])[0])


def utf32(text: str) -> bytes:
    """As numpy keeps text."""
    return text.encode("utf-32-le")


def test_nothing_of_a_user_is_left_but_the_mark(done: World) -> None:
    settings = done["books"]
    needles = [GONE.encode(), link_id(GONE).encode(), utf32(link_id(GONE)), pseudonym_of(settings, GONE)]
    before = traces(settings, *needles)
    assert any("people.npz" in path for path in before)
    assert "home/keys/external_ids.parquet" in before or "home/register.sqlite" in before

    did = forget(settings, [GONE, ALONE])

    assert (did.users, did.new, did.serving, did.why) == (2, 2, REFITTED, "")
    assert traces(settings, *needles) == ["home/register.sqlite"]  # the keyed mark
    assert traces(settings, *needles[:3]) == []
    assert not settings.path("outbox/books-to-films.passports").exists()
    names = PseudonymTable.open(settings.at_home("keys") / "external_ids.parquet").external_ids.to_list()
    assert sorted(names) == sorted(set(people("books")) - {GONE, ALONE})
    with Register.of(settings) as register:
        assert link_id(GONE) not in register.exported("films").link_ids
        assert link_id(GONE) not in register.imported("films", space_version=done.space_version, now=0)[0]
        assert len(register.exported("films").link_ids) == LINKED - 1
        assert not register.is_unfinished()


def test_the_ledger_the_manifest_and_the_training_state_are_the_same_bytes(done: World) -> None:
    settings = done["books"]
    settings.at_home("egress.jsonl").write_bytes(b"{}\n")
    kept = [path for path in settings.at_home("").iterdir() if path.name.startswith(("ledger", "egress"))]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} | {None: files(settings.at_home("state"))}

    forget(settings, [GONE])

    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in kept} | {None: files(settings.at_home("state"))} == before
    assert sorted(path.name for path in settings.at_home("").iterdir() if path.name.startswith("ledger")) == sorted(
        path.name for path in kept if path.name.startswith("ledger")
    )


def test_what_recommends_is_what_it_would_be_had_the_user_never_been_there(done: World, tmp_path: Path) -> None:
    settings = done["books"]
    shutil.copytree(done.root, tmp_path / "never")
    never = World(root=tmp_path / "never", space_version=done.space_version)["books"]
    for name in ("interactions.csv", "links.csv"):
        path = never.base / name
        path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{GONE},")))
    with Register.of(never) as register:
        register.erase([link_id(GONE)], at=2**39)
    delivery.refit(never)
    with_user = ServingFolder(settings.at_home("serving")).current()

    forget(settings, [GONE])

    mine, theirs = (ServingFolder(each.at_home("serving")).current() for each in (settings, never))
    assert mine is not None
    assert theirs is not None
    assert with_user is not None
    assert set(mine.arrays) == set(theirs.arrays)
    for name, array in mine.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name], err_msg=name)
    assert any(not np.array_equal(array, with_user.arrays[name]) for name, array in mine.arrays.items())


def test_the_next_round_trains_without_the_user_in_the_same_run(world: World) -> None:
    settings = world["books"]
    made = export(world["films"], CONFIG, prepare(world["films"], CONFIG), "books", world.space_version)
    take_in(settings, world.space_version, made.path, dimension=CONFIG.model.dimension)
    rounds.train(settings, instruction(1), bundle_digest="b" * 64, code_version="0")
    before, mark = training_data(settings), pseudonym_of(settings, GONE)
    assert mark in before.histories.pseudonyms.tobytes()

    assert forget(settings, [GONE]).serving == NOTHING
    after = training_data(settings)

    assert mark not in after.histories.pseudonyms.tobytes()
    assert len(after.histories) == len(before.histories) - 1
    assert len(after.passports.vectors) == len(before.passports.vectors) - 1
    rounds.train(settings, instruction(2), bundle_digest="b" * 64, code_version="0")
    state = StateFolder(settings.at_home("state")).current()
    assert state is not None
    assert state.key is not None
    assert state.key.round == 2


def test_no_passport_of_a_forgotten_user_comes_in_or_goes_out_again(done: World) -> None:
    settings = done["books"]
    forget(settings, [GONE])
    later = export(done["films"], CONFIG, prepare(done["films"], CONFIG), "books", done.space_version)  # films was not told

    take_in(settings, done.space_version, later.path, dimension=CONFIG.model.dimension)
    made = export(settings, CONFIG, prepare(settings, CONFIG), "films", done.space_version)

    with Register.of(settings) as register:
        assert link_id(GONE) not in register.imported("films", space_version=done.space_version, now=0)[0]
        assert link_id(GONE) not in register.exported("films").link_ids
    assert made.passports == LINKED - 1


def test_a_second_call_changes_nothing(done: World) -> None:
    settings = done["books"]
    forget(settings, [GONE])
    before = files(settings.base)
    again = forget(settings, [GONE])
    assert (again.users, again.new, again.versions, again.outbox, again.serving) == (1, 0, 0, (), NOTHING)
    assert [each.target for each in again.notices] == ["films"]  # still to be sent
    finish(settings)
    assert files(settings.base) == before


def test_an_unknown_user_is_named_by_position_and_nothing_changes(done: World) -> None:
    settings = done["books"]
    before = files(settings.base)
    with pytest.raises(UsageError, match="user 2 is not known here: nothing was changed") as raised:
        forget(settings, [GONE, "nobody-we-know"])
    assert "nobody-we-know" not in str(raised.value)
    assert GONE not in str(raised.value)
    with pytest.raises(UsageError, match="user 3 is empty"):
        forget(settings, [GONE, ALONE, " "])
    assert files(settings.base) == before


def test_rows_that_come_later_are_left_out_where_an_unknown_user_was_marked(done: World) -> None:
    settings = done["books"]
    assert forget(settings, ["to-come"], even_unknown=True).new == 1
    file = done.root / "books/interactions.csv"
    file.write_text(file.read_text() + "to-come,b01,1600000000\nnewcomer,b01,1600000000\n")
    prepared = prepare(settings, CONFIG)
    assert len(prepared.everyone) == len(people("books")) + 1
    assert forget(settings, ["to-come"]).new == 0  # a mark is known


def test_a_user_of_the_files_alone_is_known_before_any_run(tmp_path: Path, text_cache: Path) -> None:
    from tests.client.partner_world import settings as fresh

    settings = fresh(tmp_path, "books", text_cache)
    did = forget(settings, [GONE])
    assert (did.new, did.serving, did.versions) == (1, NOTHING, 0)
    assert len(prepare(settings, CONFIG).everyone) == len(people("books")) - 1


def test_a_broken_file_of_links_is_an_error_before_anything_changes(done: World) -> None:
    settings = done["books"]
    (done.root / "books/links.csv").write_text("user_id,partner\np003,films\n")
    before = files(settings.base)
    with pytest.raises(DataError, match="link_id"):
        forget(settings, [GONE])
    assert files(settings.base) == before


def test_links_are_found_where_the_rows_were_taken_out_of_the_files_already(done: World) -> None:
    settings = done["books"]
    for name in ("interactions.csv", "links.csv"):
        path = settings.base / name
        path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{GONE},")))
    forget(settings, [GONE])
    with Register.of(settings) as register:
        assert link_id(GONE) not in register.exported("films").link_ids


def test_what_cannot_be_fitted_now_is_deleted_and_said(done: World) -> None:
    settings = done["books"]
    queries.hello(settings, wire.Hello(run_id="another", config_toml=CONFIG.to_toml()))
    did = forget(settings, [GONE])
    assert did.serving == DELETED
    assert "earlier run" in did.why
    assert ServingFolder(settings.at_home("serving")).current() is None
    assert not settings.at_home(".serving-deleted").exists()


def test_files_that_cannot_be_prepared_now_leave_nothing_old_behind(done: World) -> None:
    settings = done["books"]
    (done.root / "books/items.csv").unlink()
    did = forget(settings, [GONE])
    assert (did.serving, did.why) == (DELETED, "domain 'books': there is no file items.csv")
    assert [path.name for path in settings.at_home("prepared").iterdir()] == ["spaces"]
    assert GONE not in PseudonymTable.open(settings.at_home("keys") / "external_ids.parquet").external_ids.to_list()


def test_an_inbox_file_goes_and_the_others_in_it_are_taken_in(world: World) -> None:
    settings = world["books"]
    made = export(world["films"], CONFIG, prepare(world["films"], CONFIG), "books", world.space_version)
    inbox = settings.path("inbox")
    inbox.mkdir()
    shutil.copy(made.path, inbox)
    (inbox / "toys-to-books.passports").write_bytes(b"sealed to somebody else")

    did = forget(settings, [GONE])

    assert did.inbox == ("films-to-books.passports",)
    assert [path.name for path in inbox.iterdir()] == ["toys-to-books.passports"]
    with Register.of(settings) as register:
        links, _ = register.imported("films", space_version=world.space_version, now=0)
    assert len(links) == LINKED - 1
    assert link_id(GONE) not in links


def test_what_a_killed_service_was_taking_in_goes_too(world: World) -> None:
    made = export(world["films"], CONFIG, prepare(world["films"], CONFIG), "books", world.space_version)
    inbox = world["books"].path("inbox")
    inbox.mkdir()
    shutil.copy(made.path, inbox / f"{HALF}0123456789abcdef")

    forget(world["books"], [GONE])

    assert list(inbox.iterdir()) == []


def test_a_partner_who_is_told_drops_the_passport_and_keeps_its_own_data(done: World) -> None:
    books, films = done["books"], done["films"]
    (notice,) = forget(books, [GONE, ALONE]).notices
    assert notice.target == "films"
    assert notice.path is not None
    assert link_id(GONE).encode() not in notice.path.read_bytes()  # sealed
    with Register.of(films) as register:
        assert link_id(GONE) in register.imported("books", space_version=done.space_version, now=0)[0]
    heads = ServingFolder(films.at_home("serving")).current()

    did = take_notice(films, notice.path)

    assert did.serving == REFITTED
    with Register.of(films) as register:
        links, _ = register.imported("books", space_version=done.space_version, now=0)
        assert link_id(GONE) not in links
        assert len(links) == LINKED - 1
    refitted = ServingFolder(films.at_home("serving")).current()
    assert heads is not None
    assert refitted is not None
    assert any(not np.array_equal(array, refitted.arrays[name]) for name, array in heads.arrays.items())
    assert len(prepare(films, CONFIG).everyone) == len(people("films"))
    take_notice(films, notice.path)  # again: nothing happens
    old = sorted(films.path("outbox").glob("*.erasure"))
    assert old == []


def test_a_notice_that_is_not_the_partners_is_refused(done: World, tmp_path: Path) -> None:
    books, films = done["books"], done["films"]
    (notice,) = forget(books, [GONE]).notices
    assert notice.path is not None
    sealed = notice.path.read_bytes()
    before = files(films.base)
    with pytest.raises(PassportError, match="not sealed to this"):
        take_notice(books, notice.path)
    (tmp_path / "cut").write_bytes(sealed[:-1])
    with pytest.raises(PassportError):
        take_notice(films, tmp_path / "cut")
    text = own_keys(films).open_sealed(sealed)
    for old, new in (
        (b'"issued": 1', b'"issued": 2'),
        (b'"source": "books"', b'"source": "films"'),
        (b"isthmus-erasure-1", b"isthmus-erasure-2"),
    ):
        (tmp_path / "forged").write_bytes(text.replace(old, new))
        with pytest.raises(PassportError):
            take_notice(films, tmp_path / "forged")
    (tmp_path / "plain").write_bytes(text)
    plain = read_notice(tmp_path / "plain", keys=own_keys(films), me="films", partners=partners(films))
    assert plain.link_ids == (link_id(GONE),)
    assert files(films.base) == before


def test_a_sealed_notice_that_happens_to_begin_like_an_open_one_is_opened(done: World) -> None:
    books, films = done["books"], done["films"]
    (notice,) = forget(books, [GONE]).notices
    assert notice.path is not None
    plain = own_keys(films).open_sealed(notice.path.read_bytes())
    alike = (seal(plain, partners(books)["films"].box_key) for _ in range(10_000))
    notice.path.write_bytes(next(data for data in alike if data.startswith(b"{")))  # one in 256 does

    assert take_notice(films, notice.path).inbox == ()
    assert read_notice(notice.path, keys=own_keys(films), me="films", partners=partners(films)).link_ids == (link_id(GONE),)


def test_users_forgotten_one_after_the_other_make_a_notice_each(done: World) -> None:
    settings = done["books"]
    forget(settings, ["p003"])
    export(settings, CONFIG, prepare(settings, CONFIG), "films", done.space_version)
    notices = forget(settings, ["p004"]).notices
    opened = [read_notice(n.path, keys=own_keys(done["films"]), me="films", partners=partners(done["films"])) for n in notices if n.path]
    assert sorted(link for each in opened for link in each.link_ids) == sorted([link_id("p003"), link_id("p004")])


def test_what_a_killed_process_left_half_written_is_no_obstacle_and_goes(done: World) -> None:
    settings = done["books"]
    prepared = settings.at_home("prepared")
    (version,) = [path.name for path in prepared.iterdir() if path.name != "spaces"]
    (dead := subprocess.Popen(["true"])).wait()
    for name in (f".{version}.gone", f".{version}.{dead.pid}"):
        shutil.copytree(prepared / version, prepared / name)
        (prepared / name / "people.npz").write_bytes(b"PK\x03\x04 half")
        (prepared / name / "everyone" / "offsets.npy").unlink()

    forget(settings, [GONE])

    assert len(list(prepared.iterdir())) == 2
    assert not any(path.name.startswith(".") or path.name == version for path in prepared.iterdir())
