"""The egress manifest: one line for every message that left a client, and for every one that was stopped.

JSON lines, appended under a lock and flushed to the disk before the message goes. A line says what left, how large it was, its digest and
why it may; of a stopped message it says only that it was stopped and by which rule: its size and digest could already tell something.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .durable_files import storage_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestLine:
    """One message.

    Args:
        event: "left" or "blocked".
        time_utc: to the second.
        kind: kind of the instruction it answers, "unknown" for a foreign one.
        round: absolute round of a training reply.
        schema: what the reply was, by the name of its record; None when stopped.
        bytes: size of the content; None when stopped.
        sha256: digest of those bytes; None when stopped.
        why: why it may leave (fixed texts), or the code of the rule that stopped it.
        ledger_event: hash of the ledger's commit that a training reply belongs to.
    """

    event: str
    time_utc: str
    kind: str
    why: str
    round: int | None = None
    schema: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    ledger_event: str | None = None


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
                event="left",
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
        self._append(ManifestLine(event="blocked", time_utc=_now(), kind=kind, why=why, round=round))

    def _append(self, line: ManifestLine) -> None:
        text = json.dumps(asdict(line)).encode() + b"\n"
        with storage_errors(f"'{self.path.name}'"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    text = b"\n" + text  # a crash cut the last line short
                while text:
                    text = text[os.write(handle, text) :]
                os.fsync(handle)
            finally:
                os.close(handle)


def read_manifest(path: Path) -> list[ManifestLine]:
    """All whole lines, in order; a line that a crash cut short is passed over."""
    lines: list[ManifestLine] = []
    for text in Path(path).read_bytes().splitlines() if Path(path).exists() else []:
        try:
            lines.append(ManifestLine(**json.loads(text)))
        except (ValueError, TypeError):
            continue
    return lines


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
