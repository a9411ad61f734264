"""Whose passports go out, what comes in, and what a bad file from outside may not do."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from client import passport_exchange
from client.passport_exchange import export, export_all, interests, of_users, partners, take_in, take_in_all
from client.preparation import prepare
from client.register import Register
from client.settings import ClientSettings
from shared.errors import PassportError, StorageError
from tests.client.partner_world import CONFIG, LINKED, World


def sent(world: World) -> Path:
    books = world["books"]
    return export(books, CONFIG, prepare(books, CONFIG), "films", world.space_version).path


def test_a_history_that_is_too_short_makes_no_passport(world: World) -> None:
    files = world.root / "books/interactions.csv"
    lines = files.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("p000,")] + [
        "p000,b01,1600000000",
        "p000,b02,1600000001",
    ]  # two items, three are needed
    files.write_text("\n".join(kept) + "\n")
    books = world["books"]
    prepared = prepare(books, CONFIG)
    prepared.fix_space(prepare(world["films"], CONFIG).space(world.space_version))

    made = export(books, CONFIG, prepared, "films", world.space_version)

    assert made.passports == LINKED - 1


def test_the_disclosure_is_booked_before_the_file_goes_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, data: bytes) -> None:
        raise StorageError("the power goes out")

    monkeypatch.setattr(passport_exchange, "write_passports", crash)
    with pytest.raises(StorageError):
        sent(world)

    with Register(world["books"].at_home("register.sqlite")) as register:
        assert len(register.exported("films").link_ids) == LINKED


def test_nothing_is_sent_again_for_the_same_space(world: World) -> None:
    books = world["books"]
    prepared = prepare(books, CONFIG)
    first = export_all(books, CONFIG, prepared, world.space_version)

    assert [made.passports for made in first] == [LINKED]
    assert export_all(books, CONFIG, prepared, world.space_version) == []


def test_a_bad_file_in_the_inbox_is_left_out_and_the_good_one_taken(world: World, caplog: pytest.LogCaptureFixture) -> None:
    films = world["films"]
    inbox = films.path("inbox")
    inbox.mkdir()
    (inbox / "music-to-films.passports").write_bytes(b"\0" * 5000)
    shutil.copy(sent(world), inbox)

    with caplog.at_level(logging.WARNING, "isthmus.passports"):
        new = take_in_all(films, world.space_version, dimension=8)

    assert new == LINKED
    assert "music-to-films.passports was left out" in caplog.text


def test_vectors_of_another_length_are_refused(world: World) -> None:
    with pytest.raises(PassportError, match="another length"):
        take_in(world["films"], world.space_version, sent(world), dimension=16)


def test_passports_of_another_space_are_refused(world: World) -> None:
    with pytest.raises(PassportError, match="another version of the interest space"):
        take_in(world["films"], "0" * 16, sent(world), dimension=8)


@pytest.mark.parametrize(("content", "says"), [(b"\xff\xfe", "not JSON"), (b"{}", "exactly the fields"), (b"[" * 90_000, "not JSON")])
def test_a_damaged_key_file_is_named(world: World, content: bytes, says: str) -> None:
    (world["books"].path("partners") / "music.json").write_bytes(content)

    with pytest.raises(PassportError, match=rf"music\.json: .*{says}"):
        partners(world["books"])


def test_two_key_files_of_one_partner_are_refused_because_one_may_be_an_impostor(world: World) -> None:
    folder = world["books"].path("partners")
    shutil.copy(folder / "films.json", folder / "films-new.json")

    with pytest.raises(PassportError, match="another file holds keys of 'films' too"):
        partners(world["books"])


def test_links_that_nobody_here_holds_match_nobody(world: World) -> None:
    films = world["films"]
    take_in(films, world.space_version, sent(world), dimension=8)
    (world.root / "films/links.csv").write_text("user_id,partner,link_id\nnobody,books,token-1\n")
    prepared = prepare(films, CONFIG)
    prepared.fix_space(prepare(world["books"], CONFIG).space(world.space_version))

    rows, vectors = of_users(films, prepared, "books", world.space_version)

    assert (rows.shape, vectors.shape) == ((0,), (0, 8))


def test_a_passport_is_the_recency_weighted_mean_of_the_history(world: World) -> None:
    prepared = prepare(world["books"], CONFIG)
    coordinates = np.asarray(prepared.coordinates(world.space_version))
    items = prepared.everyone.items[: prepared.everyone.offsets[1]][-CONFIG.training.max_history_items :]
    weights = CONFIG.training.history_decay ** np.arange(len(items) - 1, -1, -1.0)

    found = interests(prepared.everyone, np.array([0]), coordinates, CONFIG)[0]

    np.testing.assert_allclose(found, weights @ coordinates[items] / weights.sum(), atol=1e-6)


def test_a_domain_without_keys_of_partners_exports_nothing(world: World) -> None:
    books: ClientSettings = world["books"]
    shutil.rmtree(books.path("partners"))

    assert export_all(books, CONFIG, prepare(books, CONFIG), world.space_version) == []
