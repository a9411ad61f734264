"""The last receipt of every domain, kept from run to run: one file, replaced as a whole.

It is what makes a ledger that was rolled back visible: without it the next run would believe whatever ledger it meets. Keep it as long as
the partners keep their ledgers, and give it to whoever audits them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.errors import AuditError, StorageError
from shared.privacy.receipts import SignedReceipt, read_receipts, receipts_text

from .checkpoints import replace_file

RECEIPTS_FILE = "receipts.json"


@dataclass(frozen=True, slots=True)
class ReceiptsFile:
    """The file of one coordinator."""

    path: Path

    def load(self) -> dict[str, SignedReceipt]:
        """Domain -> its last receipt; empty before the first round ever.

        Raises:
            AuditError: the file is damaged: going on without it would let every partner start over.
        """
        if not self.path.exists():
            return {}
        receipts = read_receipts(self.path)
        for domain, receipt in receipts.items():
            if not receipt.holds():
                raise AuditError(
                    f"the receipt of domain '{domain}' in {self.path} does not match its signature", do="Restore the file from a copy."
                )
        return receipts

    def keep(self, receipts: Mapping[str, SignedReceipt]) -> None:
        """Replaces the file; domains that are not among ``receipts`` keep theirs.

        Raises:
            AuditError: what is there cannot be read.
            StorageError: it cannot be written; what was there still is.
        """
        with self._alone():
            kept = self.load()
            latest = newest((*kept.values(), *receipts.values()))
            if latest != kept:
                replace_file(self.path, receipts_text(latest.values()).encode())

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Runs of other partners may use the same file at the same time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written ({error.strerror})", do="Choose another place for it.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def newest(receipts: Iterable[SignedReceipt]) -> dict[str, SignedReceipt]:
    """The last receipt of each domain: the one that counts most intents; of equal ones, the one that comes later."""
    found: dict[str, SignedReceipt] = {}
    for receipt in receipts:
        known = found.get(receipt.domain)
        if known is None or receipt.count_of_intents >= known.count_of_intents:
            found[receipt.domain] = receipt
    return found
