"""A file of recommendations is whole or not there, and for its owner's eyes only."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from client.recommender import output
from client.recommender.batches import SCHEMA
from client.recommender.output import write
from shared.errors import StorageError, UsageError


def frame(user: str, items: list[str], source: str = "own history") -> pl.DataFrame:
    rows = [
        {
            "user": user,
            "rank": rank,
            "item": item,
            "score": 1.0 / rank,
            "reason": "popular here",
            "source": source,
            "uncertainty": 0.5,
            "model_version": "r/1/a",
        }
        for rank, item in enumerate(items, start=1)
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


FRAMES = [frame("0012", ["a,b", "c"]), frame("ben", []), frame("cy\nd", ['"q"'], "popularity"), frame("dan", ["a"])]


def read(path: Path) -> pl.DataFrame:
    readers = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".jsonl": pl.read_ndjson}
    return readers[path.suffix](path, **({} if path.suffix == ".parquet" else {"schema": SCHEMA}))


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "r.jsonl"])
@pytest.mark.parametrize("rows_of_a_part", [1, 1_000_000])
def test_what_was_written_can_be_read_back(tmp_path: Path, name: str, rows_of_a_part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_ROWS_OF_A_PART", rows_of_a_part)

    written = write(tmp_path / "deep" / name, iter(FRAMES))

    assert read(tmp_path / "deep" / name).equals(pl.concat(FRAMES))
    assert (written.rows, written.users, written.sources) == (4, 3, {"own history": 2, "popularity": 1})
    assert stat.S_IMODE((tmp_path / "deep" / name).stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "deep") == [name]


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "r.jsonl"])
def test_nobody_to_recommend_to_gives_an_empty_file(tmp_path: Path, name: str) -> None:
    assert write(tmp_path / name, iter([frame("ann", [])])).users == 0
    assert len(read(tmp_path / name)) == 0


@pytest.mark.parametrize("name", ["r.parquet", "r.csv"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, UsageError])
def test_an_interruption_leaves_the_earlier_file_as_it_was(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    write(tmp_path / name, iter(FRAMES))
    before = (tmp_path / name).read_bytes()

    def interrupted() -> Iterator[pl.DataFrame]:
        yield FRAMES[3]
        raise error("no")

    with pytest.raises(StorageError if error is OSError else error):
        write(tmp_path / name, interrupted())

    assert (tmp_path / name).read_bytes() == before
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["r.xlsx", "r", "r.parquet.gz"])
def test_a_format_that_cannot_be_written_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    def never() -> Iterator[pl.DataFrame]:
        raise AssertionError("asked for a frame")
        yield

    with pytest.raises(UsageError, match="no format"):
        write(tmp_path / name, never())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write(tmp_path / "r.csv", iter(FRAMES))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write '.*/file/r\.csv'"):
        write(tmp_path / "file" / "r.csv", iter(FRAMES))


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "r.jsonl"])
@pytest.mark.parametrize("rows_of_a_part", [1000, 1_000_000])
def test_where_the_file_finds_no_room_the_error_says_so(
    tmp_path: Path, name: str, rows_of_a_part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_ROWS_OF_A_PART", rows_of_a_part)
    (tmp_path / name).write_bytes(b"before")
    frames = [frame(f"user {at}", [os.urandom(16).hex() for _ in range(1000)]) for at in range(3)]
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(StorageError, match="no space left while writing"):
            write(tmp_path / name, iter(frames))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    assert (tmp_path / name).read_bytes() == b"before"
    assert os.listdir(tmp_path) == [name]


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    for name in (".r.csv.left", ".r.csv.locked", ".other.csv.left", ".r.csv.fresh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole.csv").write_text("user")
        os.utime(tmp_path / name, (0, 0))
    os.utime(tmp_path / ".r.csv.fresh")
    lock = os.open(tmp_path / ".r.csv.locked", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write(tmp_path / "r.csv", iter(FRAMES))
    finally:
        os.close(lock)

    assert sorted(os.listdir(tmp_path)) == [".other.csv.left", ".r.csv.fresh", ".r.csv.locked", "r.csv"]
