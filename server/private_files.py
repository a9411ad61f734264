"""The coordinator's files: readable by their owner alone, whole or not there at all, and on disk when a function returns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.errors import ConfigError, StorageError
from shared.flushing import flush


def create_file(path: Path, data: bytes) -> bool:
    """Writes a file (0600) where there is nothing; whatever is there stays.

    Returns:
        Whether it was written.
    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    with storage_errors(path):
        part = _written(path, data)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(part)
        flush([path.parent])
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file (0600) in place of the one there.

    Raises:
        StorageError: no space left, or the folder cannot be written; what was there before still is.
    """
    with storage_errors(path):
        part = _written(path, data)
        try:
            os.replace(part, path)
        except OSError:
            os.unlink(part)
            raise
        flush([path.parent])


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file (0600).

    Raises:
        StorageError: no space left, or the file cannot be written.
    """
    with storage_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(line.encode() + b"\n")
        flush([path, path.parent])


def make_folder(path: Path) -> bool:
    """Makes a folder (0700); whether it was made.

    Raises:
        StorageError: it cannot be made, or something else is there.
    """
    with storage_errors(path):
        try:
            path.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if path.is_dir():
                return False
            raise
        path.chmod(0o700)  # whatever the umask left out
        flush([path.parent])
    return True


def check_private(path: Path, what: str) -> None:
    """Refuses a file or folder that others may use.

    Raises:
        ConfigError: it is missing, or open to others than its owner.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): {what}", do="Run isthmus-server init again, or restore it.") from None
    if mode & 0o077:
        usual = "700" if path.is_dir() else "600"
        raise ConfigError(
            f"{path} is open to others than its owner: {what}",
            do=f"Run chmod {usual} on it. If others may have read a key, make a new one.",
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes what is in a folder; others wait."""
    with storage_errors(folder):
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})", do="Check the folder and the space that is left.") from None


def _written(path: Path, data: bytes) -> Path:
    """A hidden file beside ``path`` with its content, flushed (0600)."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # whatever the umask left out
            file.write(data)
        flush([Path(name)])
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
