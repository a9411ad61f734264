"""One draw for each person, for life: whatever asks again, whoever asks at the same time, whatever is lost, and whoever leaves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from client.forgetting import forget
from client.key_rotation import own_keys
from client.passport_exchange import for_training, interests, of_users, take_in
from client.passports import import_passports
from client.preparation import prepare
from client.private_passports import DrawWitness, booked, draw_once
from client.privunit import PrivUnit
from client.register import Register
from client.training.noise import SeededNoise
from shared.errors import ConfigError, DataError, PassportError, StateError
from shared.interest_space import InterestSpace
from tests.client.partner_world import CONFIG, LINKED, World, link_id
from tests.client.private_world import EPSILON, choose, environment, make_private, opened, send, vectors


@pytest.fixture
def private(world: World) -> World:
    return make_private(world)


def fix_another_space(world: World, domain: str) -> str:
    """Another run fixes another interest space: the same directions, turned. Returns its version."""
    prepared = prepare(world[domain], CONFIG)
    old = prepared.space(world.space_version)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(8, 8)))
    basis = (old.basis @ turn).astype(np.float32)
    new = InterestSpace(mean=old.mean, basis=basis, scale=old.scale[::-1], prototypes=old.prototypes)
    prepared.fix_space(new)
    return new.version


def draws(world: World, domain: str = "books") -> dict[bytes, bytes | None]:
    with Register.of(world[domain]) as register, register.reading() as database:
        return dict(database.execute("SELECT mark, vector FROM private_draws"))


def test_all_targets_and_renewals_get_the_same_bytes(private: World) -> None:
    first = vectors(private, "films", send(private, "films").read_bytes())
    again = vectors(private, "films", send(private, "films").read_bytes())
    elsewhere = vectors(private, "music", send(private, "music").read_bytes())

    assert len(first) == LINKED
    assert first == again == elsewhere
    assert len(set(first.values())) == LINKED  # and no two people the same


def test_a_renewal_changes_dates_and_signature_only(private: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = opened(private, "films", send(private, "films").read_bytes())
    later = time.time() + 30 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    after = opened(private, "films", send(private, "films").read_bytes())

    assert after.vectors.tobytes() == before.vectors.tobytes()
    assert after.issued - before.issued >= 30 * 86_400 - 2
    assert take_in_at_films(private) == LINKED


def take_in_at_films(world: World) -> int:
    return take_in(world["films"], world.space_version, world["books"].path("outbox") / "books-to-films.passports", dimension=8)


def test_neither_new_data_nor_a_new_interest_space_draws_again(private: World) -> None:
    first = vectors(private, "films", send(private, "films").read_bytes())
    with (private.root / "books/interactions.csv").open("a") as file:
        file.write("".join(f"p{n:03d},b{n % 24:02d},1700000000\n" for n in range(LINKED)))
    after_data = vectors(private, "films", send(private, "films").read_bytes())
    version = fix_another_space(private, "books")
    after_space = vectors(private, "films", send(private, "films", version).read_bytes())

    assert first == after_data == after_space
    assert len(draws(private)) == LINKED


def test_the_noise_is_asked_for_once_and_from_the_operating_system(private: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom
    monkeypatch.setattr(os, "urandom", lambda count: (asked.append(count), real(count))[1])
    send(private, "films")
    assert LINKED * 8 * 8 in asked  # 64 bits for each number across
    asked.clear()
    send(private, "films")
    assert LINKED * 8 * 8 not in asked


def test_everybody_who_is_linked_gets_one_for_who_got_none_would_be_known_to_have_few_items(private: World) -> None:
    files = private.root / "books/interactions.csv"
    kept = [line for line in files.read_text().splitlines() if not line.startswith("p000,")]
    files.write_text("\n".join([*kept, "p000,b01,1600000000"]) + "\n")  # one item; an exact passport needs three

    assert "p000" in vectors(private, "films", send(private, "films").read_bytes())


def test_a_person_linked_later_is_drawn_then_and_nobody_else(private: World) -> None:
    first = vectors(private, "films", send(private, "films").read_bytes())
    with (private.root / "books/links.csv").open("a") as file:
        file.write(f"books-000,films,{link_id('books-000')}\n")
    second = vectors(private, "films", send(private, "films").read_bytes())

    assert set(second) - set(first) == {"books-000"}
    assert {person: second[person] for person in first} == first


def test_what_is_sent_is_a_release_of_the_direction_of_the_interest(private: World) -> None:
    books, version = private["books"], private.space_version
    prepared = prepare(books, CONFIG)
    rows = prepared.links["films"].rows
    true = interests(prepared.everyone, rows, prepared.coordinates(version), CONFIG)

    drawn = draw_once(books, prepared, rows, version, lambda some: true[np.searchsorted(rows, some)], noise=SeededNoise("seed"))

    law = PrivUnit.of(8, EPSILON)
    assert np.array_equal(drawn.vectors, law.release(true, SeededNoise("seed")))
    cosines = (drawn.vectors * true).sum(axis=1) * law.mean / np.linalg.norm(true, axis=1)
    assert abs(cosines.mean() - law.mean) < 6 * cosines.std() / np.sqrt(LINKED)


# what it costs, and where that is kept


def test_epsilon_is_booked_once_for_each_person_and_not_in_the_ledger(private: World) -> None:
    ledger = private["books"].ledger_path.read_bytes()
    for target in ("films", "music", "films"):
        send(private, target)
    with Register.of(private["books"]) as register:
        spent = booked(register)
        assert spent is not None
        assert (spent.epsilon, spent.dimensions, spent.people, spent.forgotten) == (EPSILON, 8, LINKED, 0)
        assert {(each.partner, each.epsilon, each.passports) for each in register.overview()} == {
            ("films", EPSILON, LINKED),
            ("music", EPSILON, LINKED),
        }
    assert private["books"].ledger_path.read_bytes() == ledger


def test_what_went_out_exactly_is_not_booked_as_private_later(private: World) -> None:
    choose(private, "books", mode="exact")
    send(private, "films")
    choose(private, "books", mode="private")
    for target in ("films", "music"):
        send(private, target)

    with Register.of(private["books"]) as register:
        assert {(each.partner, each.epsilon) for each in register.overview()} == {("films", None), ("music", EPSILON)}


@pytest.mark.parametrize("change", [{"epsilon_u": 8.0}, {"epsilon_u": 2.0}, {"private_dimensions": 32}, {"private_dimensions": 4}])
def test_other_terms_are_refused_once_somebody_was_drawn(private: World, change: dict[str, float]) -> None:
    send(private, "films")
    choose(private, "books", **change)
    with pytest.raises(ConfigError, match=r"begun with epsilon_u = 4 and private_dimensions = 16"):
        send(private, "music")
    assert not (private["books"].path("outbox") / "books-to-music.passports").exists()


# what is lost


@pytest.mark.parametrize("loss", ["lost", "older"])
def test_a_lost_or_older_register_is_noticed_and_nobody_is_drawn_again(private: World, loss: str) -> None:
    register = private["books"].at_home("register.sqlite")
    with Register.of(private["books"]):
        older = register.read_bytes()
    send(private, "films")
    register.unlink() if loss == "lost" else register.write_bytes(older)
    (private["books"].path("outbox") / "books-to-films.passports").unlink()

    with pytest.raises(StateError, match="fewer private draws than were made"):
        send(private, "films")
    assert not (private["books"].path("outbox") / "books-to-films.passports").exists()


@pytest.mark.parametrize("lost", ["the key", "all keys", "the key, while what was prepared with it is there"])
def test_a_lost_pseudonym_key_is_noticed_and_nobody_is_drawn_again(private: World, lost: str) -> None:
    books = private["books"]
    send(private, "films")
    before = draws(private)
    (books.at_home("keys") / "pseudonyms.key").unlink()
    if lost == "all keys":
        (books.at_home("keys") / "private_draws.json").unlink()
    if not lost.endswith("there"):
        for version in books.at_home("prepared").glob("*/people.npz"):
            shutil.rmtree(version.parent)

    with pytest.raises(DataError, match="another pseudonym key"):
        send(private, "films")
    with Register(books.at_home("register.sqlite")) as register, register.reading() as database:
        assert dict(database.execute("SELECT mark, vector FROM private_draws")) == before


def test_the_witness_never_falls(private: World) -> None:
    send(private, "films")
    witness = DrawWitness(private["books"])
    with Register.of(private["books"]) as register:
        assert witness.draws() == LINKED
        with register.transaction() as database:
            database.execute("DELETE FROM private_draws")
        witness.raise_to_what_is_there(register)
        assert witness.draws() == LINKED


def test_a_link_that_carried_a_draw_carries_no_other_when_user_ids_change(private: World, caplog: pytest.LogCaptureFixture) -> None:
    first = vectors(private, "films", send(private, "films").read_bytes())
    for name in ("interactions.csv", "links.csv"):
        path = private.root / "books" / name
        path.write_text(path.read_text().replace("p003,", "q003,"))

    for target in ("films", "music"):  # music never got one of that link, but the person's other link did
        again = vectors(private, target, send(private, target).read_bytes())
        assert again == {person: vector for person, vector in first.items() if person != "p003"}
    assert len(draws(private)) == LINKED
    assert "1 linked users get no private passport" in caplog.text


# who leaves


def test_forgetting_drops_the_vector_and_keeps_the_mark_and_what_was_booked(private: World) -> None:
    gone = np.frombuffer(vectors(private, "films", send(private, "films").read_bytes())["p003"], dtype=np.float32)
    register = private["books"].at_home("register.sqlite")
    assert gone.tobytes() in register.read_bytes()

    done = forget(private["books"], ["p003"])

    assert gone.tobytes() not in register.read_bytes()
    assert sorted(each.target for each in done.notices) == ["films"]
    assert list(draws(private).values()).count(None) == 1
    with Register.of(private["books"]) as opened_register:
        spent = booked(opened_register)
    assert spent is not None
    assert (spent.people, spent.forgotten) == (LINKED, 1)


def test_who_was_forgotten_and_comes_back_is_not_drawn_again(private: World) -> None:
    first = vectors(private, "films", send(private, "films").read_bytes())
    forget(private["books"], ["p003"])
    with (private.root / "books/interactions.csv").open("a") as file:
        file.write("".join(f"p003,b{n:02d},1700000000\n" for n in range(5)))

    again = vectors(private, "films", send(private, "films").read_bytes())

    assert again == {person: vector for person, vector in first.items() if person != "p003"}
    assert list(draws(private).values()).count(None) == 1


@pytest.mark.parametrize("drawn_before", [True, False])
def test_who_is_forgotten_while_an_export_runs_is_not_in_it(private: World, drawn_before: bool) -> None:
    books, version = private["books"], private.space_version
    prepared = prepare(books, CONFIG)  # the export opened its data
    rows = prepared.links["films"].rows
    if drawn_before:
        send(private, "music")
    forget(books, ["p003"])  # and then somebody left

    drawn = draw_once(books, prepared, rows, version, lambda some: np.ones((len(some), 8)))

    assert len(drawn.vectors) == LINKED - 1
    assert len([vector for vector in draws(private).values() if vector is not None]) == LINKED - 1


# at the target


def test_a_target_reads_them_in_its_space_as_it_reads_exact_ones(private: World) -> None:
    send(private, "films")
    assert take_in_at_films(private) == LINKED
    films = private["films"]
    prepared = prepare(films, CONFIG)

    rows, found = of_users(films, prepared, "books", private.space_version)

    sent = vectors(private, "films")
    links = dict(zip(prepared.links["books"].rows.tolist(), prepared.links["books"].link_ids.tolist(), strict=True))
    by_link = {link_id(person): np.frombuffer(vector, dtype=np.float32) for person, vector in sent.items()}
    assert found.dtype == np.float32
    assert found.shape == (LINKED, 8)
    mean = PrivUnit.of(8, EPSILON).mean
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), mean, rtol=1e-5, atol=1e-6)  # the guess m V at a direction
    np.testing.assert_allclose(found / mean**2, np.stack([by_link[links[row]] for row in rows.tolist()]), rtol=1e-5, atol=1e-6)
    assert len(for_training(films, prepared, private.space_version, 8).vectors) > 0


def test_in_another_space_the_same_passports_go_on_without_being_sent_again(private: World) -> None:
    send(private, "films")
    take_in_at_films(private)
    films = private["films"]
    _, before = of_users(films, prepare(films, CONFIG), "books", private.space_version)
    version = fix_another_space(private, "films")

    rows, after = of_users(films, prepare(films, CONFIG), "books", version)

    old, new = (prepare(films, CONFIG).space(each) for each in (private.space_version, version))
    assert len(rows) == LINKED
    np.testing.assert_allclose((after * new.scale) @ new.basis.T, (before * old.scale) @ old.basis.T, atol=1e-4)  # the same texts


def test_the_newer_of_an_exact_and_a_private_passport_counts(private: World, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(private, "books", mode="exact")
    send(private, "films")
    take_in_at_films(private)
    exact = (private["books"].path("outbox") / "books-to-films.passports").read_bytes()
    choose(private, "books", mode="private")
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    send(private, "films")

    assert take_in_at_films(private) == LINKED
    (private["books"].path("outbox") / "books-to-films.passports").write_bytes(exact)
    assert take_in_at_films(private) == 0  # an older file, played again
    with Register.of(private["films"]) as register:
        assert [(each.epsilon, each.passports) for each in register.overview() if each.direction == "in"] == [(EPSILON, LINKED)]


@pytest.mark.parametrize("what", ["expired", "foreign", "unknown source"])
def test_an_expired_or_foreign_file_is_refused(private: World, what: str) -> None:
    path = send(private, "films")
    partner = "music" if what == "unknown source" else "books"
    opener = "music" if what == "foreign" else "films"
    now = int(time.time()) + (181 * 86_400 if what == "expired" else 0)
    with pytest.raises(PassportError, match={"expired": "expired", "foreign": "not sealed", "unknown source": "not among"}[what]):
        import_passports(
            path.read_bytes(),
            keys=own_keys(private[opener]),
            me="films",
            partners={partner: own_keys(private[partner]).public(partner)},
            space_version=private.space_version,
            now=now,
        )


# two at once

DRAWER = """
    import hashlib, sys, time
    from pathlib import Path
    from client.passport_exchange import interests
    from client.preparation import prepare
    from client.private_passports import draw_once
    from client.settings import ClientSettings
    from tests.client.partner_world import CONFIG
    toml, version, target, go = sys.argv[1:]
    settings = ClientSettings.read(Path(toml))
    prepared = prepare(settings, CONFIG)

    def interests_of(rows):  # asked for once it is known who has no draw: here all of them wait for the slowest
        print(len(rows), flush=True)
        while not Path(go).exists():
            time.sleep(0.001)
        return interests(prepared.everyone, rows, prepared.coordinates(version), CONFIG)

    drawn = draw_once(settings, prepared, prepared.links[target].rows, version, interests_of)
    print(hashlib.sha256(drawn.vectors.tobytes()).hexdigest(), flush=True)
"""


@pytest.mark.journey
def test_processes_that_draw_for_the_same_people_at_once_all_go_on_with_the_first_one_s(private: World, tmp_path: Path) -> None:
    go = tmp_path / "go"
    processes = []
    for target in ("films", "music", "films"):
        words = [sys.executable, "-c", textwrap.dedent(DRAWER), private.toml("books"), private.space_version, target, str(go)]
        processes.append(subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True))
    pipes = [process.stdout for process in processes if process.stdout is not None]
    assert [pipe.readline() for pipe in pipes] == [f"{LINKED}\n"] * 3  # nobody has a draw yet
    go.touch()
    digests = {pipe.read() for pipe in pipes}
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    for pipe in pipes:
        pipe.close()

    assert len(digests) == 1
    assert len(draws(private)) == LINKED
    assert vectors(private, "films", send(private, "films").read_bytes()) == vectors(private, "music", send(private, "music").read_bytes())
    assert {digest.strip() for digest in digests} == {hashlib.sha256(b"".join(by_row(private))).hexdigest()}


def by_row(world: World) -> list[bytes]:
    """The draws in the register, in the order of the prepared users."""
    prepared, kept = prepare(world["books"], CONFIG), draws(world)
    found = [kept[bytes(mark)] for mark in prepared.everyone.pseudonyms[prepared.links["films"].rows]]
    return [vector for vector in found if vector is not None]
