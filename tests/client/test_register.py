"""The register of passports: local, private to its owner, and never older than what it was told."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.passports import ImportedPassports
from client.register import Register, marks_of, witness_of
from client.suppression import Marker
from shared.errors import DataError, PassportError, StateError, StorageError
from tests.client.partner_world import World

D = 3
MARKER = Marker(bytes(range(32)))


def passports(
    links: list[str], *, issued: int = 100, expires: int = 1_000, fill: float = 1.0, space: str = "s1", source: str = "arts"
) -> ImportedPassports:
    return ImportedPassports(
        source=source,
        link_ids=links,
        vectors=np.full((len(links), D), fill, dtype=np.float32),
        space_version=space,
        encoder_version="e1",
        issued=issued,
        expires=expires,
    )


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    with Register(tmp_path / "private" / "register.sqlite", MARKER) as register:
        yield register


def fills(register: Register, source: str = "arts", space: str = "s1", now: int = 500) -> dict[str, float]:
    links, vectors = register.imported(source, space_version=space, now=now)
    return dict(zip(links, vectors[:, 0].tolist() if links else [], strict=True))


def test_passports_come_back_sorted_whatever_order_they_came_in(register: Register) -> None:
    assert register.record_import(passports(["b"], fill=2)) == 1
    assert register.record_import(passports(["c", "a"], fill=1)) == 2
    links, vectors = register.imported("arts", space_version="s1", now=500)
    assert links == ["a", "b", "c"]
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1] * D, [2] * D, [1] * D]


def test_the_same_file_twice_changes_nothing(register: Register) -> None:
    assert register.record_import(passports(["a", "b"])) == 2
    assert register.record_import(passports(["a", "b"])) == 0
    assert fills(register) == {"a": 1, "b": 1}


def test_an_old_file_played_again_does_not_replace_newer_passports(register: Register) -> None:
    register.record_import(passports(["a"], issued=200, fill=2))
    assert register.record_import(passports(["a", "b"], issued=100, fill=1)) == 1
    assert fills(register) == {"a": 2, "b": 1}


def test_another_passport_of_the_same_second_does_not_replace_the_first(register: Register) -> None:
    register.record_import(passports(["a"], fill=1))
    assert register.record_import(passports(["a"], fill=2)) == 0
    assert fills(register) == {"a": 1}


def test_a_renewed_passport_replaces_the_old_one(register: Register) -> None:
    register.record_import(passports(["a"], issued=100))
    assert register.record_import(passports(["a"], issued=101, fill=3)) == 1
    assert fills(register) == {"a": 3}


def test_expired_passports_and_those_of_another_space_are_left_out(register: Register) -> None:
    register.record_import(passports(["a"], expires=400))
    register.record_import(passports(["b"], space="s2"))
    register.record_import(passports(["c"]))
    assert fills(register, now=399) == {"a": 1, "c": 1}
    assert fills(register, now=400) == {"c": 1}
    assert fills(register, space="s2") == {"b": 1}
    assert fills(register, source="books") == {}


def test_sources_do_not_mix(register: Register) -> None:
    register.record_import(passports(["a"], fill=1))
    register.record_import(passports(["a"], source="books", fill=2))
    assert register.sources() == ["arts", "books"]
    assert fills(register) == {"a": 1}
    assert fills(register, source="books") == {"a": 2}


def test_what_went_out_is_remembered_by_target(register: Register) -> None:
    register.record_export(target="office", link_ids=["b", "a"], space_version="s1", issued=1, expires=9)
    register.record_export(target="office", link_ids=["a"], space_version="s1", issued=2, expires=10)
    register.record_export(target="toys", link_ids=["c"], space_version="s1", issued=3, expires=9)
    out = register.exported("office")
    assert (out.link_ids, out.issued, out.expires) == (["a", "b"], [2, 1], [10, 9])


def test_an_erased_link_is_gone_and_an_old_file_does_not_bring_it_back(register: Register) -> None:
    register.record_import(passports(["a", "b"]))
    register.record_export(target="office", link_ids=["a"], space_version="s1", issued=1, expires=9)
    register.erase(["a"], at=300)
    assert fills(register) == {"b": 1}
    assert register.exported("office").link_ids == []
    assert register.record_import(passports(["a", "b"], issued=300)) == 1
    assert fills(register) == {"b": 1}
    assert register.record_import(passports(["a"], issued=301)) == 1  # given anew, by the user's own wish


def test_an_erased_vector_is_not_left_in_the_file(register: Register) -> None:
    register.record_import(passports(["marker-of-a-person"], fill=1.2345e-19))
    needle = np.float32(1.2345e-19).tobytes() * D
    assert needle in register.path.read_bytes()
    register.erase(["marker-of-a-person"], at=300)
    register.close()
    assert needle not in register.path.read_bytes()


def test_a_mark_does_not_hold_the_link_id_or_the_user(register: Register) -> None:
    register.erase(["link-of-a-person"], at=300)
    register.mark(MARKER.users(["a-person"]), ["another-link-of-hers"], at=301)
    register.close()
    content = register.path.read_bytes()
    assert MARKER.links(["link-of-a-person"])[0] in content
    assert not any(text in content for text in (b"link-of-a-person", b"a-person", b"another-link-of-hers"))


def test_a_forgotten_users_passports_are_refused_for_good_and_those_there_go(register: Register) -> None:
    register.record_import(passports(["a", "b"]))
    register.record_export(target="office", link_ids=["a", "b"], space_version="s1", issued=1, expires=9)
    register.mark(MARKER.users(["ann"]), ["a"], at=300)
    assert register.is_unfinished()
    assert {target: gone.link_ids for target, gone in register.erased_out().items()} == {"office": ["a"]}
    assert fills(register) == {"a": 1, "b": 1}  # a crash here loses nothing: the second call finds them by their marks
    register.drop_erased()
    register.finished()
    assert not register.is_unfinished()
    assert fills(register) == {"b": 1}
    assert register.exported("office").link_ids == ["b"]
    assert register.record_import(passports(["a"], issued=2**40)) == 0
    assert register.record_import(passports(["a"], issued=2**40, source="books")) == 0
    assert register.erased_among(["a", "b"], source="books", issued=2**40).tolist() == [True, False]
    marks = register.marks()
    assert marks.of_users(MARKER.users(["ann", "ben"])).tolist() == [True, False]
    assert marks.of_links(["a", "b"]).tolist() == [True, False]


def test_what_one_source_takes_back_is_still_taken_in_from_another(register: Register) -> None:
    register.record_import(passports(["a"], source="arts"))
    register.record_import(passports(["a"], source="books", fill=2))
    register.begin_erasure(["a"], issued_until=300, source="arts", at=301)
    register.drop_erased()
    assert fills(register, "arts") == {}
    assert fills(register, "books") == {"a": 2}
    assert register.record_import(passports(["a"], source="arts", issued=300)) == 0
    assert register.record_import(passports(["a"], source="arts", issued=301)) == 1
    assert register.marks().of_links(["a"]).tolist() == [False]


def test_marking_twice_is_marking_once_and_the_later_time_holds(register: Register) -> None:
    for at in (300, 200):
        register.erase(["a"], at=at)
        register.mark(MARKER.users(["ann"]), ["b"], at=at)
    assert len(register.marks()) == 1
    assert register.erased_among(["a", "b"], source="arts", issued=300).tolist() == [True, True]
    assert register.erased_among(["a", "b"], source="arts", issued=301).tolist() == [False, True]


def test_marks_made_with_another_key_are_not_trusted(register: Register) -> None:
    register.mark(MARKER.users(["ann"]), [], at=300)
    register.close()
    with pytest.raises(DataError, match="another pseudonym key"):
        Register(register.path, Marker(bytes(32)))
    with Register(register.path) as without_key, pytest.raises(DataError, match="key"):
        without_key.marks()


def test_without_the_key_nothing_is_taken_in_where_something_was_erased(register: Register) -> None:
    register.erase(["a"], at=300)
    register.close()
    with Register(register.path) as without_key:
        assert without_key.overview() == []
        with pytest.raises(DataError, match="key"):
            without_key.record_import(passports(["b"]))


def test_a_register_of_version_1_keeps_its_erasures_without_their_names(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    with Register(path) as made:
        made.record_import(passports(["kept"]))
    database = sqlite3.connect(path)
    database.executescript(
        "PRAGMA secure_delete = ON; DROP TABLE forgotten_users; DROP TABLE erased_links; DROP TABLE marked_with; DROP TABLE unfinished;"
        "CREATE TABLE erasures (link_id TEXT PRIMARY KEY, erased INTEGER NOT NULL) WITHOUT ROWID;"
        "INSERT INTO erasures VALUES ('a-link-erased-by-name', 300); PRAGMA user_version = 1;"
    )
    database.close()
    with pytest.raises(DataError, match="earlier version"):
        Register(path)
    with Register(path, MARKER) as upgraded:
        assert fills(upgraded) == {"kept": 1}
        assert upgraded.record_import(passports(["a-link-erased-by-name"], issued=300)) == 0
        assert upgraded.record_import(passports(["a-link-erased-by-name"], issued=301)) == 1
        upgraded.erase(["a-link-erased-by-name"], at=400)
    assert b"a-link-erased-by-name" not in path.read_bytes()


@pytest.mark.parametrize("loss", ["lost", "older"])
def test_a_lost_or_older_register_is_noticed(world: World, loss: str) -> None:
    settings = world["books"]
    with Register.of(settings) as register:
        register.mark(MARKER.users(["ann"]), [], at=1)
        witness_of(settings).raise_to(len(register.marks()))
        older = register.path.read_bytes()
        register.mark(MARKER.users(["ben"]), [], at=2)
        witness_of(settings).raise_to(len(register.marks()))
    assert len(marks_of(settings)) == 2
    register.path.unlink() if loss == "lost" else register.path.write_bytes(older)
    with pytest.raises(StateError, match="fewer marks"):
        marks_of(settings)


def test_the_register_belongs_to_its_owner_even_under_a_careless_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Register(tmp_path / "register.sqlite") as register:
            register.record_import(passports(["a"]))
            assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in tmp_path.iterdir())
    finally:
        os.umask(before)


def test_what_was_recorded_is_there_after_a_restart(register: Register) -> None:
    register.record_import(passports(["a"]))
    register.close()
    with Register(register.path) as again:
        assert fills(again) == {"a": 1}


def test_a_process_killed_in_the_middle_of_an_import_leaves_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    Register(path).close()
    script = f"""
        import os, signal
        from client.register import Register
        register = Register({str(path)!r})
        with register.transaction() as database:
            database.execute("INSERT INTO passports_in VALUES ('arts', 'a', 's1', 'e1', 100, 1000, x'00000000', '')")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False).returncode == -9
    with Register(path) as register:
        assert register.sources() == []


@pytest.mark.parametrize("content", [b"not a database" * 100, b"SQLite format 3\0" + b"\0" * 5000])
def test_a_file_that_is_not_a_register_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "register.sqlite"
    path.write_bytes(content)
    with pytest.raises(PassportError, match="not a register"):
        Register(path)
    assert path.read_bytes() == content


def test_the_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "register.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE events (x)")
    other.close()
    with pytest.raises(PassportError, match="not a register of this version"):
        Register(path)


def test_a_register_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        Register(tmp_path / "file" / "register.sqlite")


def test_ten_thousand_passports_are_taken_in_at_once(register: Register) -> None:
    links = [f"link-{i}" for i in range(10_000)]
    began = time.perf_counter()
    assert register.record_import(passports(links)) == 10_000
    assert len(fills(register)) == 10_000
    assert time.perf_counter() - began < 5.0  # 0.1 s where nothing else runs; a commit for each row would take minutes
