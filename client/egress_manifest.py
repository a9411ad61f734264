"""Appends to the egress manifest: one line for every message that left a client, and for every one that was stopped.

A line is on the disk before its message goes. It says what left, how large it was, its digest and why it may; of a stopped message it says
only that it was stopped and by which rule: its size and digest could already tell something. Lines are chained as `shared.privacy.manifest`
describes; to add one, only the end of the file is read, however long it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path

from shared.privacy.ledger_schema import NO_HASH
from shared.privacy.manifest import BLOCKED, LEFT, ManifestLine, chained, encoded, read_line

from .durable_files import storage_errors

_BLOCK = 4096


class Manifest:
    """Appends to a manifest file (0600), made where there is none.

    Raises:
        StorageError: from every method, when the line is not on the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def left(
        self, *, kind: str, why: str, schema: str, size: int, sha256: str, round: int | None = None, ledger_event: str | None = None
    ) -> None:
        self._append(
            ManifestLine(
                event=LEFT,
                time_utc=_now(),
                kind=kind,
                why=why,
                schema=schema,
                bytes=size,
                sha256=sha256,
                round=round,
                ledger_event=ledger_event,
            )
        )

    def blocked(self, *, kind: str, why: str, round: int | None = None) -> None:
        self._append(ManifestLine(event=BLOCKED, time_utc=_now(), kind=kind, why=why, round=round))

    def _append(self, line: ManifestLine) -> None:
        with storage_errors(f"'{self.path.name}'"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                size = os.fstat(handle).st_size
                end, last = _last_line(handle, size)
                if end < size:
                    os.ftruncate(handle, end)  # a crash cut the last line short: its message never left
                data = encoded(chained(line, _link(handle, end, last)))
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            finally:
                os.close(handle)


def _last_line(handle: int, size: int) -> tuple[int, bytes]:
    """Where the last whole line ends, and that line without its end; (0, b"") where there is none."""
    length = min(_BLOCK, size)
    while True:
        tail = os.pread(handle, length, size - length)
        end = tail.rfind(b"\n")
        start = tail.rfind(b"\n", 0, max(end, 0))
        if length == size or (end >= 0 and start >= 0):
            return size - length + end + 1, tail[start + 1 : end] if end >= 0 else b""
        length = min(2 * length, size)


def _link(handle: int, end: int, last: bytes) -> str:
    """What the next line has to follow: the hash of the last one, or the digest of everything, where that one is not in the chain."""
    if end == 0:
        return NO_HASH
    line = read_line(last)
    return line.hash if line is not None else _digest(handle, end)


def _digest(handle: int, end: int) -> str:
    digest, at = hashlib.sha256(), 0
    while at < end:
        block = os.pread(handle, min(2**20, end - at), at)
        if not block:
            break
        digest.update(block)
        at += len(block)
    return digest.hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
