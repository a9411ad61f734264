"""Private passports from the command line to a trained domain, and registers from before there were any."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import cli, delivery, rounds
from client.evaluation import COLD, evaluated
from client.passport_exchange import export, export_all, take_in, take_in_all
from client.passports import ImportedPassports
from client.preparation import prepare
from client.private_passports import booked
from client.private_terms import received
from client.privunit import PrivUnit
from client.public_projection import PrivateTerms, Projection
from client.register import Register
from client.settings import ClientSettings, PassportSettings
from client.suppression import Marker
from client.training.noise import SeededNoise
from shared.errors import ConfigError
from shared.interest_space import InterestSpace, Moments
from tests.client.partner_world import CONFIG, LINKED, World, final_layer, instruction
from tests.client.private_world import EPSILON, make_private

SPACE = InterestSpace.from_moments([Moments.of(np.random.default_rng(0).normal(size=(99, 12)).astype(np.float32))], 8)


def terms(epsilon: float = EPSILON, dimensions: int = 4) -> PrivateTerms:
    return PrivateTerms(epsilon=epsilon, projection=Projection.of(SPACE, dimensions))


def passports(links: list[str], *, issued: int = 100, of: PrivateTerms | None = None, seed: object = 0) -> ImportedPassports:
    of = of or terms()
    drawn = PrivUnit.of(of.dimension, of.epsilon).release(np.ones((len(links), of.dimension)), SeededNoise(seed))
    return ImportedPassports(
        source="arts",
        link_ids=links,
        vectors=drawn,
        space_version=SPACE.version,
        encoder_version="e1",
        issued=issued,
        expires=issued + 900,
        private=of,
    )


def held(register: Register, now: int = 500) -> dict[str, tuple[float, int]]:
    """Link -> epsilon and dimension."""
    with register.reading() as database:
        return {link: (one.epsilon, rows.shape[1]) for one, links, rows in received(database, "arts", now=now) for link in links}


@pytest.fixture
def private(world: World) -> World:
    return make_private(world)


# from the command line


def call(words: list[str]) -> int:
    """Ends a command as its process would end."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return int(str(end.value.code))


def test_the_commands_say_what_a_private_passport_hides_and_what_was_booked(private: World, capsys: pytest.CaptureFixture[str]) -> None:
    toml = private.toml("books")
    assert call(["passport", "export", toml, "--to", "films", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["mode"], document["epsilon_u"], document["passports"]) == ("private", EPSILON, LINKED)
    assert "hides what a user did here, not that they are a user here" in err
    assert "disclosure by consent" not in err

    assert call(["passport", "list", toml, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["booked"] == {"epsilon": EPSILON, "dimensions": 8, "people": LINKED, "forgotten": 0}
    assert [(row["mode"], row["epsilon_u"]) for row in document["passports"]] == [("private", EPSILON)]

    assert call(["forget", toml, "p003"]) == 0
    capsys.readouterr()
    assert call(["passport", "list", toml]) == 0
    shown = capsys.readouterr().out
    assert f"booked: epsilon_u 4 for each of {LINKED} people, 1 of them forgotten since, once for life" in shown


def test_exact_passports_book_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["passport", "export", world.toml("books"), "--to", "films", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["mode"], json.loads(out)["epsilon_u"]) == ("exact", None)
    assert "disclosure by consent" in err
    assert call(["passport", "list", world.toml("books"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["booked"] is None


@pytest.mark.parametrize("wrong", [{"mode": "secret"}, {"epsilon_u": 0.0}, {"epsilon_u": float("nan")}, {"private_dimensions": 33}])
def test_settings_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    ClientSettings(domain="books").write(tmp_path / "partner.toml")
    text = (tmp_path / "partner.toml").read_text()
    for key, value in wrong.items():
        old = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(old, f"{key} = {json.dumps(value).replace('NaN', 'nan')}")
    (tmp_path / "partner.toml").write_text(text)
    with pytest.raises(ConfigError, match="passports"):
        ClientSettings.read(tmp_path / "partner.toml")


def test_what_nobody_chose_is_exact() -> None:
    assert PassportSettings().mode == "exact"


# to a trained domain


def test_where_passports_go_by_themselves_private_ones_do_too(private: World) -> None:
    books, films = private["books"], private["films"]
    made = export_all(books, CONFIG, prepare(books, CONFIG), private.space_version)
    assert {one.path.name: one.passports for one in made} == {f"books-to-{to}.passports": LINKED for to in ("films", "music")}
    films.path("inbox").mkdir()
    (films.path("inbox") / "books-to-films.passports").write_bytes(made[0].path.read_bytes())
    assert take_in_all(films, private.space_version, dimension=8) == LINKED
    assert export_all(books, CONFIG, prepare(books, CONFIG), private.space_version) == []


@pytest.mark.journey
def test_a_domain_trains_on_private_passports_and_ranks_for_people_who_brought_one(private: World) -> None:
    for source, target in (("books", "films"), ("films", "books")):
        made = export(private[source], CONFIG, prepare(private[source], CONFIG), target, private.space_version)
        assert take_in(private[target], private.space_version, made.path, dimension=8) == LINKED
    for round in (1, 2):
        rounds.train(private["films"], instruction(round), bundle_digest="b" * 64, code_version="0")
    delivery.deliver(private["films"], final_layer())

    domain = evaluated(private["films"])
    people = domain.people("books", COLD)

    assert people.users > 5
    scores = domain.federated(people, "books")(0, people.users)
    assert scores.shape == (people.users, domain.n_items)
    assert np.isfinite(scores).all()


# what the register holds


def test_a_register_of_version_2_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    database = sqlite3.connect(path)
    database.executescript(
        "CREATE TABLE passports_out (target TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL, issued INTEGER NOT NULL,"
        " expires INTEGER NOT NULL, PRIMARY KEY (target, link_id)) WITHOUT ROWID;"
        "CREATE TABLE passports_in (source TEXT NOT NULL, link_id TEXT NOT NULL, space_version TEXT NOT NULL,"
        " encoder_version TEXT NOT NULL, issued INTEGER NOT NULL, expires INTEGER NOT NULL, vector BLOB NOT NULL,"
        " PRIMARY KEY (source, link_id)) WITHOUT ROWID;"
        "CREATE TABLE forgotten_users (mark BLOB PRIMARY KEY) WITHOUT ROWID;"
        "CREATE TABLE erased_links (source TEXT NOT NULL, mark BLOB NOT NULL, issued_until INTEGER NOT NULL, PRIMARY KEY (source, mark))"
        " WITHOUT ROWID; CREATE TABLE marked_with (key_check BLOB PRIMARY KEY) WITHOUT ROWID;"
        "CREATE TABLE unfinished (at INTEGER NOT NULL);"
        "INSERT INTO passports_out VALUES ('office', 'a', 's1', 1, 9);"
        "INSERT INTO passports_in VALUES ('arts', 'a', 's1', 'e1', 100, 1000, x'0000803f'); PRAGMA user_version = 2;"
    )
    database.close()
    for _ in range(2):
        with Register(path, Marker(bytes(32))) as register:
            links, vectors = register.imported("arts", space_version="s1", now=500)
            assert (links, vectors.tolist()) == (["a"], [[1.0]])
            assert [(one.direction, one.epsilon) for one in register.overview()] == [("out", None), ("in", None)]
            assert booked(register) is None
            assert held(register) == {}


def test_private_passports_of_one_source_keep_apart_what_they_were_drawn_with(tmp_path: Path) -> None:
    with Register(tmp_path / "register.sqlite", Marker(bytes(32))) as register:
        assert register.record_import(passports(["a", "b"])) == 2
        assert register.record_import(passports(["b", "c"], of=terms(8.0), issued=101)) == 2
        assert register.record_import(passports(["d"], of=terms(8.0, 3), issued=102)) == 1
        assert held(register) == {"a": (4.0, 4), "b": (8.0, 4), "c": (8.0, 4), "d": (8.0, 3)}
        assert held(register, now=1_001) == {"d": (8.0, 3)}  # the others have expired
        assert register.imported("arts", space_version=SPACE.version, now=500)[0] == []  # none of them is exact
        register.erase(["a"], at=300)
        assert set(held(register)) == {"b", "c", "d"}


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("abc")), max_size=12))
def test_whatever_files_come_in_whatever_order_the_newest_draw_of_each_link_counts(files: list[tuple[int, str]]) -> None:
    newest: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, Register(Path(folder) / "register.sqlite", Marker(bytes(32))) as register:
        for issued, link in files:
            register.record_import(passports([link], issued=issued, seed=issued))
            newest[link] = max(newest.get(link, 0), issued)
        with register.reading() as database:
            kept = {link: row for _, links, rows in received(database, "arts", now=60) for link, row in zip(links, rows, strict=True)}
    expected = {link: passports([link], seed=issued).vectors[0] for link, issued in newest.items()}
    assert set(kept) == set(expected)
    assert all(np.array_equal(kept[link], vector) for link, vector in expected.items())
