"""Files that a power cut leaves whole: either the old content or the new, never a mixture.

A `SnapshotFolder` holds one snapshot, a set of files with their digests. A new one is written into a hidden folder, flushed to the disk and
then renamed to its number; that one rename is the moment at which the new snapshot counts. What a crash leaves behind before it is hidden
and swept away by the next write; what it leaves behind after it is an older number that nobody reads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import StateError, StorageError
from shared.flushing import flush

_FORMAT = 1
_META = "meta.json"
_NUMBERED = re.compile(r"snapshot-(\d{12})")
_HIDDEN = ".new-"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StorageError` that says what to do.

    Args:
        what: what was being written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageError(
                f"no space left while writing {what}", do="Free some space and start again; what was there before is untouched."
            ) from None
        raise StorageError(
            f"cannot write {what}: {os.strerror(error.errno or errno.EIO)}", do="Check the folder and who may write to it."
        ) from None


def write_file(path: Path, data: bytes) -> None:
    """Replaces a file's content in one step; only its owner may read it (0600).

    Raises:
        StorageError: no space left, or the folder cannot be written; an earlier file stays as it was.
    """
    with storage_errors(f"'{path.name}'"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read back: the files by name and the description that was stored with them."""

    files: dict[str, bytes]
    meta: dict[str, Any]


class SnapshotFolder:
    """One snapshot on disk, replaced atomically.

    Args:
        path: the folder; made on the first write, readable by its owner only.
        kind: what its snapshots are; a folder of another kind is refused.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = Path(path)
        self.kind = kind

    def read(self) -> Snapshot | None:
        """The newest snapshot, or None where none was ever completed.

        Raises:
            StateError: a file is missing, changed or cut short, or the folder holds another kind of snapshot.
        """
        if not self.path.exists():
            return None
        if not self.path.is_dir():
            raise StateError(f"'{self.path.name}' is a file, not the folder of the {self.kind} state", do="Give the path of a folder.")
        newest = self._newest()
        while newest is not None:
            try:
                return self._read(newest)
            except FileNotFoundError as error:
                if (again := self._newest()) == newest:
                    raise self._broken(f"'{Path(error.filename).name}' is missing") from None
                newest = again  # a writer replaced it while we read
            except OSError as error:
                raise StateError(
                    f"the {self.kind} state cannot be read: {os.strerror(error.errno or errno.EIO)}", do="Check who may read the folder."
                ) from None
        return None

    def write(self, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> None:
        """Makes a new snapshot the current one.

        Args:
            files: content by file name.
            meta: anything JSON can hold.
        Raises:
            StorageError: no space left, or the folder cannot be written; the earlier snapshot stays the current one.
        """
        with storage_errors(f"the {self.kind} state"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._locked():
                self._sweep(keep=self._newest())
                hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, dir=self.path))
                try:
                    written = {hidden / name: data for name, data in {**files, _META: self._describe(files, meta)}.items()}
                    for path, data in written.items():
                        _write_new(path, data)
                    flush([*written, hidden])
                    number = 1 + max(self._numbers(), default=0)
                    os.rename(hidden, self.path / f"snapshot-{number:012d}")  # from here on the new snapshot counts
                except BaseException:
                    shutil.rmtree(hidden, ignore_errors=True)
                    raise
                _sync_folder(self.path)
                self._sweep(keep=self._newest())

    def _describe(self, files: Mapping[str, bytes], meta: Mapping[str, Any]) -> bytes:
        digests = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        body = {"format": _FORMAT, "kind": self.kind, "files": digests, "meta": dict(meta)}
        return json.dumps({"body": body, "sha256": _digest(body)}, indent=1, sort_keys=True).encode()

    def _read(self, folder: Path) -> Snapshot:
        try:
            described = json.loads((folder / _META).read_bytes())
            body = described["body"]
            intact = described["sha256"] == _digest(body)
            format_, kind, digests, meta = body["format"], body["kind"], body["files"], body["meta"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._broken(f"'{_META}' is not whole") from None
        if not intact:
            raise self._broken(f"'{_META}' does not match its own digest")
        if format_ != _FORMAT:
            raise StateError(f"the {self.kind} state was written in another format", do="Use the version that wrote it.")
        if kind != self.kind:
            raise StateError(
                f"'{self.path.name}' holds a {kind} state, not a {self.kind} state", do="Give each kind of state a folder of its own."
            )
        files = {name: (folder / name).read_bytes() for name in digests}
        for name, data in files.items():
            if len(data) != digests[name]["bytes"] or hashlib.sha256(data).hexdigest() != digests[name]["sha256"]:
                raise self._broken(f"'{name}' does not match its digest")
        return Snapshot(files=files, meta=meta)

    def _broken(self, why: str) -> StateError:
        return StateError(
            f"the {self.kind} state in '{self.path.name}' is damaged: {why}",
            do="Restore the folder from a copy, or move it away and begin again from the public initial state; the ledger stays as it is.",
        )

    def _numbers(self) -> list[int]:
        return [int(match[1]) for entry in os.listdir(self.path) if (match := _NUMBERED.fullmatch(entry))]

    def _newest(self) -> Path | None:
        numbers = self._numbers()
        return self.path / f"snapshot-{max(numbers):012d}" if numbers else None

    def _sweep(self, keep: Path | None) -> None:
        for entry in os.listdir(self.path):
            ours = entry.startswith(_HIDDEN) or _NUMBERED.fullmatch(entry)
            if ours and (keep is None or entry != keep.name):
                shutil.rmtree(self.path / entry, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _write_new(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
