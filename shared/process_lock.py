"""One of a kind: a lock that a process holds while it lives, and the record of what it runs.

The kernel lets go of the lock, whatever ends its holder.

``up.lock`` is held; ``up.json`` says who holds it and what runs below. The record of a process that was killed stays behind, and counts for
nothing but to find what it left running.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import StorageError, UsageError

LOCK, RECORD = "up.lock", "up.json"
_PATIENCE_S = 1.0
"""Whoever only looks holds the lock for a moment; that must not turn a start away."""


@contextlib.contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder's lock.

    Args:
        folder: made where it is missing (0700).
        what: what is running then, for the message.
    Raises:
        UsageError: another process holds it.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"{folder / LOCK} cannot be written: {error.strerror}", do="Check the folder and who may write to it.") from None
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _taken(handle, fcntl.LOCK_EX):
            if time.monotonic() > until:
                record = _read(folder)
                since = f", since {record['started_utc']} (process {record['pid']})" if record else ""
                raise UsageError(
                    f"{what} is running already{since}", do="Stop that one first, with SIGTERM or Ctrl-C where it was started."
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def running(folder: Path) -> dict[str, Any] | None:
    """The record of the process that holds a folder's lock; None where nobody does.

    Returns:
        At least ``pid``, ``started_utc`` and ``programs``; the latter two empty for a process that has only just begun.
    """
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        if _taken(handle, fcntl.LOCK_SH):
            return None
    finally:
        os.close(handle)
    return _read(folder) or {"pid": 0, "started_utc": "", "programs": {}}


def left_behind(folder: Path) -> dict[str, Any] | None:
    """The record that a killed process left; for the holder of the lock."""
    return _read(folder)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Replaces the record in one step (0600).

    Raises:
        OSError: it could not be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{RECORD}.", dir=folder)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.replace(name, folder / RECORD)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def remove_record(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / RECORD).unlink()


def _taken(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("pid")) is int and isinstance(record.get("programs"), dict)
    return record if whole and isinstance(record.get("started_utc"), str) else None
