"""The egress manifest as a chain: what left a client, one line a message, each with the hash of the one before.

A line is canonical JSON (ASCII, no spaces, sorted keys). Its ``hash`` is the SHA-256 of the canonical JSON of ``["isthmus-manifest-1", line
without hash]``; ``prev`` is the hash of the line before, or 64 zeros in the first one. Manifests that were begun before there was a chain
keep their lines: the first chained line after them has, as ``prev``, the SHA-256 of all the bytes before it.

The chain finds a line that was edited, removed, put in or moved. It is not signed, and its end is not anchored: whoever rewrites every line
from the first to the last, or cuts off the end, is found by the ledger, whose commits the lines of training replies name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import AuditError
from ..wire_rules import ROUND, SHA256, Rule, optional, text, whole
from .ledger_schema import NO_HASH, canonical

TAG = "isthmus-manifest-1"
LEFT, BLOCKED = "left", "blocked"
_WORDS = text(r"[ -~]{1,200}")
_CHAIN = frozenset({"prev", "hash"})
_RULES: Mapping[str, Rule] = {
    "event": lambda value: value in (LEFT, BLOCKED) and type(value) is str,
    "time_utc": text(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"),
    "kind": _WORDS,
    "why": _WORDS,
    "round": optional(ROUND),
    "schema": optional(_WORDS),
    "bytes": optional(whole(0, 2**53)),
    "sha256": optional(SHA256),
    "ledger_event": optional(SHA256),
    "prev": SHA256,
    "hash": SHA256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestLine:
    """One message.

    Args:
        event: "left" or "blocked".
        time_utc: to the second.
        kind: kind of the instruction it answers, "unknown" for a foreign one.
        why: why it may leave (fixed texts), or the code of the rule that stopped it.
        round: absolute round of a training reply.
        schema: what the reply was, by the name of its record; None when stopped.
        bytes: size of the content; None when stopped.
        sha256: digest of those bytes; None when stopped.
        ledger_event: hash of the ledger's commit that a training reply belongs to.
        prev: hash of the line before; empty in a line from before there was a chain.
        hash: of this line; empty in a line from before there was a chain.
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
    prev: str = ""
    hash: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestReading:
    """What a manifest says, and how far it can be believed.

    Attributes:
        lines: every readable line in order, also those after a break.
        numbers: the number in the file, from 1, of each of ``lines``.
        unchained: how many lines at the beginning are from before there was a chain: nothing proves them.
        broken_at: number, from 1, of the first line that does not fit; None where the chain holds.
        why: what is wrong with it.
        torn: the file ends in a line that was not finished: a crash while it was written, and that message never left.
        head: hash of the last chained line; 64 zeros where there is none.
    """

    lines: tuple[ManifestLine, ...]
    numbers: tuple[int, ...]
    unchained: int
    broken_at: int | None
    why: str
    torn: bool
    head: str

    @property
    def intact(self) -> bool:
        """Every whole line is in the chain, and the chain holds."""
        return self.broken_at is None and self.unchained == 0


def chained(line: ManifestLine, prev: str) -> ManifestLine:
    """The line as the next one after ``prev``."""
    linked = dataclasses.replace(line, prev=prev, hash="")
    return dataclasses.replace(linked, hash=_hash_of(linked))


def encoded(line: ManifestLine) -> bytes:
    """A chained line as it stands in the file, end of line included."""
    return canonical(asdict(line)).encode("ascii") + b"\n"


def read_line(data: bytes) -> ManifestLine | None:
    """Reads one chained line, without its end; None where it is not one, or does not match its own hash."""
    line = _parsed(data, _RULES)
    return line if line is not None and encoded(line) == data + b"\n" and line.hash == _hash_of(line) else None


def read_manifest(path: Path) -> ManifestReading:
    """Reads a manifest, and finds the first line that does not fit.

    Raises:
        AuditError: there is no such file, or it cannot be read.
    """
    reader = _Reader()
    try:
        with Path(path).open("rb") as file:
            for data in file:
                reader.take(data)
    except OSError:
        raise AuditError(f"the egress manifest {path} cannot be read", do="Ask the partner for the file again.") from None
    return reader.reading()


class _Reader:
    """Goes through a manifest once, line by line."""

    def __init__(self) -> None:
        self._lines: list[ManifestLine] = []
        self._numbers: list[int] = []
        self._number = self._unchained = 0
        self._prefix = hashlib.sha256()
        self._odd: int | None = None  # first line before the chain that is not a line of an old manifest
        self._head: str | None = None
        self._broken: tuple[int, str] | None = None
        self._torn = False

    def take(self, data: bytes) -> None:
        if not data.endswith(b"\n"):
            self._torn = True
            return
        self._number += 1
        line = read_line(data[:-1])
        if line is not None:
            self._chained(line)
        elif self._head is None:
            self._old(data)
        else:
            self._break(self._number, "it is not a line of the chain: it was edited, or put in")

    def _chained(self, line: ManifestLine) -> None:
        if self._head is None:
            expected = self._prefix.hexdigest() if self._number > 1 else NO_HASH
            if line.prev != expected:
                changed = self._odd if self._odd is not None else self._number
                self._break(changed, "it does not follow from what stands before it: lines were changed or removed")
        elif line.prev != self._head:
            self._break(self._number, "it does not follow from the line before it: a line was removed, put in or moved")
        self._head = line.hash
        self._keep(line)

    def _old(self, data: bytes) -> None:
        self._prefix.update(data)
        self._unchained += 1
        line = _parsed(data[:-1], {name: rule for name, rule in _RULES.items() if name not in _CHAIN})
        if line is not None:
            self._keep(line)
        elif self._odd is None:
            self._odd = self._number

    def _keep(self, line: ManifestLine) -> None:
        self._lines.append(line)
        self._numbers.append(self._number)

    def _break(self, number: int, why: str) -> None:
        if self._broken is None:
            self._broken = (number, why)

    def reading(self) -> ManifestReading:
        if self._head is None and self._odd is not None:
            self._break(self._odd, "it is not a line of a manifest")
        number, why = self._broken or (None, "")
        return ManifestReading(
            lines=tuple(self._lines),
            numbers=tuple(self._numbers),
            unchained=self._unchained,
            broken_at=number,
            why=why,
            torn=self._torn,
            head=self._head or NO_HASH,
        )


def _hash_of(line: ManifestLine) -> str:
    said = asdict(line)
    del said["hash"]
    return hashlib.sha256(canonical([TAG, said]).encode("ascii")).hexdigest()


def _parsed(data: bytes, rules: Mapping[str, Rule]) -> ManifestLine | None:
    try:
        record: Any = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or set(record) != set(rules) or not all(rule(record[name]) for name, rule in rules.items()):
        return None
    return ManifestLine(**record)
