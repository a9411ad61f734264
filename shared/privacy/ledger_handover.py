"""A ledger in other hands: one whole file, and the owner's signature on where it ended when it was handed over.

A bare copy of a ledger that is in use may miss its newest events, which still stand in the write-ahead part beside it. A file made here
lacks nothing, needs no file beside it, and is never written again. The signed head shows later that events are missing at its end, as long
as whoever cut them off does not remove the head as well: what proves completeness to a stranger is the coordinator's receipts.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from ..errors import LedgerBroken, LedgerError
from .ledger import Ledger
from .ledger_database import plain_errors, write_whole
from .ledger_file import LedgerFile
from .signing import Signer, head_message, holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last event of a ledger when it was handed over.

    Attributes:
        seq: its number.
        hash: its hash.
        exported_utc: when, by the owner's clock.
        signature: Ed25519 over `signing.head_message`, by the key in force.
    """

    domain: str
    seq: int
    hash: str
    exported_utc: str
    signature: bytes

    def holds(self, verify_key: str) -> bool:
        """Whether it was signed with this key."""
        return holds(verify_key, head_message(self.domain, self.seq, self.hash, self.exported_utc), self.signature)


def hand_over(path: Path, to: Path, *, signer: Signer) -> Head:
    """Writes a whole, checked copy with a signed head (mode 0600).

    Args:
        path: the ledger.
        to: a file that does not exist.

    Raises:
        LedgerError: when there is a file at ``to``, or the ledger is unsigned.
        LedgerLocked: when a process is writing to the ledger.
        LedgerBroken: when it does not hold.
        WrongKey: when it is signed with another key.
        StorageError: no space left; then nothing stands at ``to``.
    """
    to = Path(os.path.abspath(to))
    if os.path.lexists(to):
        raise LedgerError("there is a file at the place of the hand-over already", do="Name another file; nothing is overwritten.")
    with Ledger.open(path, signer=signer) as ledger, plain_errors("handing it over"):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        seq = ledger.count_of_events
        signature = signer.sign(head_message(ledger.domain, seq, ledger.head_hash, now))
        head = Head(domain=ledger.domain, seq=seq, hash=ledger.head_hash, exported_utc=now, signature=signature)
        write_whole(to, ledger.events(), head=(head.seq, head.hash, head.exported_utc, head.signature))
    return head


def head_of(file: LedgerFile, domain: str) -> Head | None:
    """The signed head of an open file; None in a ledger that was not handed over. Whether it holds is for the caller to check.

    Raises:
        LedgerBroken: it is malformed.
    """
    found = file.signed_head()
    if found is None:
        return None
    seq, digest, exported, signature = found
    if len(signature) != 64 or not exported.isascii() or "\0" in exported:
        raise LedgerBroken("the signed head of the file is not one", do="Ask its owner to hand the ledger over again.")
    return Head(domain=domain, seq=seq, hash=digest, exported_utc=exported, signature=signature)
