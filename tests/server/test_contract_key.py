"""The coordinator's key: made once, safe from the first moment, never replaced, and opened only where it is nobody else's."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.contract_key import CoordinatorKey
from shared.errors import ConfigError, StorageError
from shared.privacy.signing import holds


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "coordinator.keys"


def test_a_key_is_made_for_its_owner_alone_and_read_back(path: Path) -> None:
    before = os.umask(0)
    try:
        made = CoordinatorKey.create(path)
    finally:
        os.umask(before)
    read = CoordinatorKey.load(path)
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert read.verify_key == made.verify_key
    assert holds(made.verify_key, b"plan", read.sign(b"plan"))
    assert [one.name for one in path.parent.iterdir()] == ["coordinator.keys"]  # nothing secret is left beside it


def test_two_keys_are_never_the_same(path: Path) -> None:
    assert CoordinatorKey.create(path).verify_key != CoordinatorKey.create(path.with_name("other")).verify_key


def test_what_is_there_already_stays_as_it_is(path: Path) -> None:
    CoordinatorKey.create(path)
    before = path.read_bytes()
    for kind in ("file", "link", "folder"):
        there = path.with_name(kind)
        {"file": there.touch, "link": lambda at=there: at.symlink_to("nowhere"), "folder": there.mkdir}[kind]()
        with pytest.raises(ConfigError, match="exists already"):
            CoordinatorKey.create(there)
    with pytest.raises(ConfigError, match="exists already"):
        CoordinatorKey.create(path)
    assert path.read_bytes() == before
    assert not path.with_name("nowhere").exists()


def test_of_many_who_make_it_at_once_one_does(path: Path) -> None:
    def make(_: int) -> str | None:
        try:
            return CoordinatorKey.create(path).verify_key
        except ConfigError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [key for key in pool.map(make, range(16)) if key is not None]
    assert made == [CoordinatorKey.load(path).verify_key]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_key_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    CoordinatorKey.create(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        CoordinatorKey.load(path)


def test_a_link_is_as_safe_as_what_it_leads_to(path: Path) -> None:
    made, link = CoordinatorKey.create(path), path.with_name("link")
    link.symlink_to(path)
    assert CoordinatorKey.load(link).verify_key == made.verify_key
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        CoordinatorKey.load(link)


WRONG = {
    "nothing": b"",
    "no JSON": b"\xff\xfe",
    "a list": b"[]",
    "another format": json.dumps({"format": "isthmus-coordinator-2", "signing": "0" * 64}).encode(),
    "a partner's keys": json.dumps({"signing": "0" * 64, "box": "0" * 64}).encode(),
    "half a key": json.dumps({"format": "isthmus-coordinator-1", "signing": "0" * 63}).encode(),
    "a number": json.dumps({"format": "isthmus-coordinator-1", "signing": 7}).encode(),
    "too deep": b"[" * 4000,
    "cut off": b'{"format": "isthmus-coordinator-1", "signing": "' + b"0" * 9000,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_damaged_key_is_an_error_without_its_content(path: Path, what: str) -> None:
    path.parent.mkdir()
    path.write_bytes(WRONG[what])
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is damaged") as refused:
        CoordinatorKey.load(path)
    assert "000" not in str(refused.value).replace(str(path), "")


def test_what_is_no_file_is_refused_without_waiting(path: Path) -> None:
    path.parent.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        CoordinatorKey.load(path)
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="is not a file"):
        CoordinatorKey.load(path)
    with pytest.raises(ConfigError, match="is not a file"):
        CoordinatorKey.load(path.parent)


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file")
    with pytest.raises(StorageError, match="cannot be written"):
        CoordinatorKey.create(tmp_path / "keys" / "coordinator.keys")
    assert (tmp_path / "keys").read_text() == "a file"


def test_the_secret_is_not_in_its_name(path: Path) -> None:
    made = CoordinatorKey.create(path)
    secret = json.loads(path.read_text())["signing"]
    assert secret not in repr(made)
    assert secret not in made.verify_key
