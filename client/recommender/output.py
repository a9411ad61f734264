"""Recommendations as a file: written beside its place, chunk after chunk, and renamed when it is whole. Readable by its owner only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from shared.errors import UsageError

from ..durable_files import storage_errors

FORMATS = (".parquet", ".csv", ".jsonl")
_ROWS_OF_A_PART = 1_000_000
_LEFT_AFTER_S = 60.0
"""Age from which an unlocked folder was left by somebody who was killed, and is not just being made."""

_NUMBER = re.compile(r"\(os error (\d+)\)")


@dataclass(slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        rows: recommendations.
        users: users with at least one.
        sources: users by what their list rests on.
    """

    rows: int = 0
    users: int = 0
    sources: dict[str, int] = field(default_factory=dict)

    def count(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Counts a frame and hands it on."""
        firsts = frame.filter(pl.col("rank") == 1)
        self.rows += len(frame)
        self.users += len(firsts)
        for source, count in firsts.group_by("source", maintain_order=True).len().iter_rows():
            self.sources[source] = self.sources.get(source, 0) + count
        return frame


def check_format(path: Path) -> None:
    """Raises UsageError for a file that could not be written, before any work is done."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path.name} is of no format that can be written", do=f"End its name with one of: {', '.join(FORMATS)}.")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", do="Name a file.")


def write(path: Path, frames: Iterator[pl.DataFrame]) -> Written:
    """Writes frames one after the other; an earlier file stays as it was until the new one is whole.

    What a killed process left beside it goes away.

    Raises:
        UsageError: the format is unknown.
        StorageError: no space left, or the folder cannot be written.
    """
    check_format(path)
    written = Written()
    with storage_errors(f"'{path}'"), _numbered():
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))  # 0700
        lock = os.open(folder, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            whole = folder / f"whole{path.suffix.lower()}"
            os.close(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            counted = (written.count(frame) for frame in frames)
            if whole.suffix == ".parquet":
                _parquet(whole, counted)
            else:
                _text(whole, counted)
            handle = os.open(whole, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(whole, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    return written


@contextlib.contextmanager
def _numbered() -> Iterator[None]:
    """Gives errors of Polars their number, which it says in words only: a full disk has to be told from a forbidden one."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        said = _NUMBER.search(str(error))
        if getattr(error, "errno", None) is not None or (said is None and not isinstance(error, OSError)):
            raise
        number = int(said[1]) if said else errno.EIO
        raise OSError(number, os.strerror(number)) from None


def _sweep(path: Path) -> None:
    """Deletes what killed processes left of earlier attempts at this file: lists of users are in it."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        with contextlib.suppress(OSError):  # somebody still writes it, or was faster
            if time.time() - left.stat().st_mtime < _LEFT_AFTER_S:
                continue
            folder = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(folder)


def _parquet(whole: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Parts of a million rows, which then become one file; memory holds one part."""
    parts: list[Path] = []
    for number, part in enumerate(_joined(frames)):
        parts.append(whole.with_name(f"{number}.parquet"))
        part.write_parquet(parts[-1])
    if len(parts) == 1:
        with parts[0].open("rb") as source, whole.open("wb") as target:
            shutil.copyfileobj(source, target)
    else:
        pl.scan_parquet(parts, glob=False).sink_parquet(whole)


def _joined(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    waiting: list[pl.DataFrame] = []
    for frame in frames:
        waiting.append(frame)
        if sum(map(len, waiting)) >= _ROWS_OF_A_PART:
            yield pl.concat(waiting)
            waiting = []
    if waiting:
        yield pl.concat(waiting)


def _text(whole: Path, frames: Iterator[pl.DataFrame]) -> None:
    with whole.open("wb") as file:
        for number, frame in enumerate(frames):
            if whole.suffix == ".csv":
                frame.write_csv(file, include_header=number == 0)
            else:
                frame.write_ndjson(file)
