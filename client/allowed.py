"""The bundles that a partner lets run: ``home/allowed.json``. Every decision stays in it, with who took it and when; the last one counts.

A list that is damaged, or that anybody else could write to, allows nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.bundle import Bundle, is_digest, read
from shared.errors import ConfigError, DataError, Refusal, UsageError

from .durable_files import storage_errors, write_file

FILE = "allowed.json"
_FORMAT = "isthmus-allowed-1"
_LOOK = "Look at the file with whoever may change it; 'isthmus-client allow' writes it anew once it is moved away."


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision about one bundle.

    Args:
        digest: sha256 of the bundle's file, in hex.
        allowed: False takes an earlier permission back.
        by, when: who decided, and the time in UTC.
        name: project and version, where the file was looked at; else empty.
        code_digest: `shared.bundle.Bundle.code_digest`, where the file was looked at; else empty.
    """

    digest: str
    allowed: bool
    by: str
    when: str
    name: str = ""
    code_digest: str = ""


class AllowList:
    """The decisions in one file.

    Args:
        path: ``home/allowed.json``. A file that does not exist allows nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def decisions(self) -> tuple[Decision, ...]:
        """All of them, oldest first; read anew at each call.

        Raises:
            ConfigError: the file is damaged, or others may write to it.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                data = file.read()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ConfigError(
                f"the list of allowed bundles cannot be read: {error.strerror}", do="Check who may read home/allowed.json."
            ) from None
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(
                "the list of allowed bundles can be written to by others: nothing on it counts",
                do=f"Check what it says, then: chmod 600 {self.path}",
            )
        return _parsed(data)

    def allowed(self) -> tuple[Decision, ...]:
        """The decision that counts for each bundle that may run, in the order in which they were taken."""
        last = {decision.digest: decision for decision in self.decisions()}
        return tuple(sorted((each for each in last.values() if each.allowed), key=lambda each: each.when))

    def allows(self, digest: str) -> bool:
        """Whether a bundle may run, now."""
        return any(each.digest == digest for each in self.allowed())

    def admit(self, content: bytes) -> Bundle:
        """Decides about a bundle by the sha256 of what was received; only what is on the list is looked into.

        Raises:
            Refusal: code ``bundle``: it is not on the list, the list cannot be used, or it is on the list and no bundle of ours.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            if not self.allows(digest):
                raise Refusal("bundle", f"bundle {digest} is not on the allow-list", do="isthmus-client allow lets it run, if it shall.")
            return read(content)
        except (ConfigError, DataError) as error:
            raise Refusal("bundle", f"bundle {digest} is refused: {error.what}", do=error.do) from None

    def bundle_of_code(self, code_digest: str) -> str | None:
        """Digest of the newest allowed bundle that is known to hold this very code."""
        found = [each.digest for each in self.allowed() if each.code_digest == code_digest]
        return found[-1] if found else None

    def decide(self, digest: str, *, allowed: bool, by: str, name: str = "", code_digest: str = "") -> Decision:
        """Adds a decision.

        Raises:
            UsageError: the digest is none, or nobody is named.
            ConfigError: the list there is cannot be used.
            StorageError: it cannot be written; what was there stays.
        """
        if not is_digest(digest):
            raise UsageError("a digest has 64 digits of 0-9 and a-f", do="Copy the whole sha256 of the bundle, or name its file.")
        if not by.strip() or len(by) > 200 or not by.isprintable():
            raise UsageError("who decides is missing", do="Name a person in one line: --by NAME.")
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        decision = Decision(digest=digest, allowed=allowed, by=by.strip(), when=when, name=name, code_digest=code_digest)
        with self._locked():
            decisions = [*self.decisions(), decision]
            document = {"format": _FORMAT, "decisions": [asdict(each) for each in decisions]}
            write_file(self.path, json.dumps(document, indent=1).encode() + b"\n")
        return decision

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with storage_errors(f"'{self.path.name}'"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _parsed(data: bytes) -> tuple[Decision, ...]:
    damaged = ConfigError("the list of allowed bundles is damaged: nothing on it counts", do=_LOOK)
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT:
            raise ConfigError("the list of allowed bundles is of another format", do="Use the version of isthmus that wrote it.")
        entries: list[dict[str, Any]] = [dict(each) for each in document["decisions"]]
        for each in entries:
            texts_hold = all(isinstance(each[key], str) for key in ("digest", "by", "when", "name", "code_digest"))
            if not texts_hold or not isinstance(each["allowed"], bool) or not is_digest(each["digest"]):
                raise damaged
        return tuple(Decision(**each) for each in entries)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise damaged from None
