"""Pseudonyms: keyed, stable, and a way back that only the partner has."""

from __future__ import annotations

import hmac
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data.pseudonyms import PseudonymTable, are_sorted, load_or_create_key, locate, pseudonym, sort_order
from shared.errors import DataError, StorageError

KEY = bytes(range(32))
some_pseudonyms = st.lists(st.binary(min_size=16, max_size=16) | st.integers(0, 3).map(lambda n: bytes(15) + bytes([n])), max_size=20)


def as_array(rows: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


@given(ids=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_a_pseudonym_is_a_truncated_hmac_of_the_id(ids: list[str]) -> None:
    expected = [list(hmac.digest(KEY, user_id.encode(), "sha256")[:16]) for user_id in ids]
    assert pseudonym(KEY, ids).tolist() == expected
    assert pseudonym(KEY, pl.Series(ids, dtype=pl.String)).tolist() == expected


def test_another_key_makes_other_pseudonyms_and_a_short_key_none() -> None:
    assert pseudonym(KEY, ["ann"]).tolist() != pseudonym(bytes(32), ["ann"]).tolist()
    with pytest.raises(DataError, match="32 bytes"):
        pseudonym(b"short", ["ann"])
    with pytest.raises(DataError, match="not valid Unicode"):
        pseudonym(KEY, ["\ud800"])


def test_the_key_is_made_once_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonym.key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["pseudonym.key"]
    assert load_or_create_key(tmp_path / "another.key") != key


def test_processes_that_make_the_key_at_once_agree_on_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: load_or_create_key(tmp_path / "pseudonym.key"), range(16)))) == 1


@pytest.mark.parametrize("content", [b"", b"half a key", bytes(33)])
def test_a_damaged_key_is_refused_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pseudonym.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(DataError, match="does not hold 32 bytes"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pseudonym.key"
    load_or_create_key(path)
    path.chmod(0o640)
    with pytest.raises(DataError, match="open to other users"):
        load_or_create_key(path)


def test_a_key_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((StorageError, DataError)):
        load_or_create_key(tmp_path / "file" / "pseudonym.key")


@given(rows=some_pseudonyms, wanted=some_pseudonyms)
def test_pseudonyms_are_sorted_and_found_as_bytes(rows: list[bytes], wanted: list[bytes]) -> None:
    table = sorted(set(rows))
    shuffled = as_array(rows)
    assert [bytes(row) for row in shuffled[sort_order(shuffled)]] == sorted(rows)
    assert are_sorted(as_array(table))
    assert are_sorted(shuffled) == (rows == table)
    assert locate(as_array(table), as_array(wanted)).tolist() == [table.index(row) if row in table else -1 for row in wanted]


@pytest.fixture
def people() -> PseudonymTable:
    ids = ["ann", "bén", 'c"d']
    made = pseudonym(KEY, ids)
    order = sort_order(made)
    return PseudonymTable(pseudonyms=made[order], external_ids=pl.Series(ids).gather(order))


def test_the_partner_finds_its_own_ids_again(people: PseudonymTable, tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.parquet"
    people.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PseudonymTable.open(path).external(pseudonym(KEY, ["bén", "stranger", "ann"])) == ["bén", None, "ann"]


def test_a_forgotten_user_is_a_stranger(people: PseudonymTable, tmp_path: Path) -> None:
    people.forget(pseudonym(KEY, ["ann", "stranger"])).save(tmp_path / "pseudonyms.parquet")
    left = PseudonymTable.open(tmp_path / "pseudonyms.parquet")
    assert left.external(pseudonym(KEY, ["ann", "bén", 'c"d'])) == [None, "bén", 'c"d']
    assert b"ann" not in (tmp_path / "pseudonyms.parquet").read_bytes()


def test_a_table_of_nobody_is_a_table(tmp_path: Path) -> None:
    PseudonymTable(pseudonyms=as_array([]), external_ids=pl.Series([], dtype=pl.String)).save(tmp_path / "pseudonyms.parquet")
    assert PseudonymTable.open(tmp_path / "pseudonyms.parquet").external(pseudonym(KEY, ["ann"])) == [None]


def test_a_table_that_is_open_to_others_damaged_or_missing_is_refused(people: PseudonymTable, tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.parquet"
    with pytest.raises(DataError, match="is not a table of pseudonyms"):
        PseudonymTable.open(path)
    people.save(path)
    path.chmod(0o644)
    with pytest.raises(DataError, match="open to other users"):
        PseudonymTable.open(path)
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 9)
    with pytest.raises(DataError, match="is not a table of pseudonyms"):
        PseudonymTable.open(path)


def test_a_table_that_is_not_sorted_cannot_be_made() -> None:
    with pytest.raises(DataError, match="sorted"):
        PseudonymTable(pseudonyms=as_array([bytes([1] * 16), bytes(16)]), external_ids=pl.Series(["a", "b"]))
    with pytest.raises(DataError, match="one external id"):
        PseudonymTable(pseudonyms=as_array([bytes(16)]), external_ids=pl.Series(["a", "b"]))
