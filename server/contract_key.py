"""The coordinator's key: what it signs run contracts with. Made once, stays in one file (0600), and is never sent.

A partner pins the public half when it joins. Whoever holds the file can start runs at every partner, within what each of them agreed to.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from pathlib import Path

from shared.errors import ConfigError, StorageError
from shared.flushing import flush
from shared.privacy.signing import SigningPair

KEY_FILE = "coordinator.keys"
_FORMAT = "isthmus-coordinator-1"
_SEED = re.compile(r"[0-9a-f]{64}")
_LARGEST = 4096


class CoordinatorKey(SigningPair):
    """An Ed25519 pair: ``verify_key`` in hex, and ``sign``."""

    def __repr__(self) -> str:
        return "CoordinatorKey(secret)"

    @classmethod
    def create(cls, path: Path) -> CoordinatorKey:
        """Makes a key from the operating system's entropy, on disk when this returns.

        Raises:
            ConfigError: something is there already; it stays as it is.
            StorageError: no space left, or the folder cannot be written.
        """
        path = Path(path)
        content = json.dumps({"format": _FORMAT, "signing": os.urandom(32).hex()}) + "\n"
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(content)
                flush([Path(part)])
                try:
                    os.link(part, path)  # fails where anything is there: a key that partners pinned is never replaced
                except FileExistsError:
                    raise ConfigError(f"{path} exists already", do="It stays: partners know the coordinator by this key.") from None
            finally:
                os.unlink(part)
            flush([path.parent])
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error.strerror})", do="Check the folder and the space that is left.") from None
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> CoordinatorKey:
        """Opens a key.

        Raises:
            ConfigError: there is none, it is damaged, or others than its owner may read or change it.
        """
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror})", do="isthmus-server init makes this key.") from None
        try:
            mode = os.fstat(handle).st_mode  # of what was opened, not of what stands there a moment later
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path} is not a file", do="Name the coordinator's key.")
            if stat.S_IMODE(mode) & 0o077:
                raise ConfigError(
                    f"{path} can be read or changed by others than its owner",
                    do="Run chmod 600 on it. If others may have used it, make a new key and have every partner enrol again.",
                )
            data = os.read(handle, _LARGEST)
        finally:
            os.close(handle)
        try:
            values = json.loads(data)
            if values["format"] == _FORMAT and _SEED.fullmatch(values["signing"]):
                return cls(bytes.fromhex(values["signing"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise ConfigError(f"{path} is damaged", do="Restore it from a copy; with a new key every partner has to enrol again.")
