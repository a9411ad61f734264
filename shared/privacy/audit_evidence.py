"""What others hold against a ledger: the coordinator's receipts, the egress manifest, and the signed head of a handed-over file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import AuditError, ForeignReceipts
from .audit_numbers import close
from .budget import Budget, epsilon_of
from .findings import Finding, Status
from .ledger_book import Book
from .ledger_handover import Head
from .ledger_schema import Event, canonical
from .manifest import LEFT, ManifestLine, read_manifest
from .mechanism import Mechanism
from .receipts import SignedReceipt, read_receipts

UPDATE = "TransferUpdate"
"""Name of the record with which a round's arrays leave; each has a commit in the ledger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipted:
    """The event that a receipt names, and what the ledger added up to right after it."""

    event: Event
    count: int
    mechanism: str
    spent: tuple[Mechanism, ...]
    budget: Budget
    adaptive: bool
    order: float | None
    key: str | None


class Receipts:
    """Compares the coordinator's last receipt of a domain with its ledger.

    Args:
        path: a receipts file; None where there is none.

    Raises:
        AuditError: it cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self._given = None if path is None else read_receipts(path)
        self._named = {receipt.head_hash for receipt in (self._given or {}).values()}
        self._found: _Receipted | None = None

    def see(self, event: Event, book: Book) -> None:
        """Takes note of an event, after the book took it."""
        if event.hash not in self._named:
            return
        plan = book.plans.get(event.payload.get("run_id", ""))
        self._found = _Receipted(
            event=event,
            count=book.intents,
            mechanism="" if plan is None else canonical(plan.mechanism.to_record()),
            spent=book.spent,
            budget=book.budget,
            adaptive=book.adaptive,
            order=book.order,
            key=book.verify_key,
        )

    def of(self, domain: str) -> SignedReceipt | None:
        """The domain's receipt; None where no receipts were given.

        Raises:
            ForeignReceipts: there is none of this domain among them.
            AuditError: its signature does not hold.
        """
        if self._given is None:
            return None
        receipt = self._given.get(domain)
        if receipt is None:
            others = ", ".join(sorted(self._given)) or "nobody"
            what = f"the receipts are of {others}: none is of domain '{domain}'"
            raise ForeignReceipts(what, do="Ask the coordinator for the receipts of this domain, or leave them out.")
        if not receipt.holds():
            what = f"the receipt of domain '{domain}' is not signed by the key it names: it was changed"
            raise AuditError(what, do="Ask the coordinator for the receipts again.")
        return receipt

    def proved(self, receipt: SignedReceipt, book: Book) -> int | None:
        """Number of the event that the receipt names; None where the ledger does not hold it."""
        if self._found is not None and self._found.event.hash == receipt.head_hash:
            return self._found.event.seq
        return 1 if book.cites == receipt else None

    def compare(self, receipt: SignedReceipt, book: Book, spent_at_end: float) -> Iterator[Finding]:
        """What the receipt and a ledger of the same key do not say alike."""
        if self.proved(receipt, book) is None:
            what = (
                f"the coordinator holds a receipt of intent {receipt.count_of_intents:,}, signed with this ledger's key; the ledger counts "
                f"{book.intents:,} and does not hold the event that it names: it is an older copy, or its end was cut off"
            )
            yield Finding(code="receipt", event=None, what=what, status=Status.ROLLED_BACK)
            return
        found = self._found
        if found is None or found.event.hash != receipt.head_hash:
            return  # cited by a genesis that books the whole ledger of that receipt
        spent = epsilon_of(found.spent, found.budget, adaptive=found.adaptive, order=found.order)
        # a reply that is sent again carries the epsilon of that later moment
        fits = close(receipt.epsilon_spent, spent, found.budget) or spent < receipt.epsilon_spent <= spent_at_end * (1 + 1e-9)
        said = {
            "kind": found.event.kind == "commit",
            "payload_sha256": found.event.payload.get("payload_sha256") == receipt.payload_sha256,
            "count_of_intents": found.count == receipt.count_of_intents,
            "mechanism": found.mechanism == receipt.mechanism,
            "epsilon_spent": fits,
        }
        wrong = [name for name, same in said.items() if not same]
        if wrong:
            what = f"event {found.event.seq}: the receipt that the partner signed says something else ({', '.join(wrong)})"
            yield Finding(code="receipt", event=found.event.seq, what=what, status=Status.BROKEN)


class Egress:
    """Compares the lines of an egress manifest with a ledger's commits.

    Args:
        path: a manifest; None where there is none.

    Raises:
        AuditError: it cannot be read.
    """

    _MOST_NAMED = 20

    def __init__(self, path: Path | None) -> None:
        self._reading = None if path is None else read_manifest(path)
        self._open: dict[str, tuple[int, ManifestLine]] = {}
        self._matched: dict[str, int | None] = {}
        self._gaps: list[int] = []
        self._many_gaps = 0
        self._bad: list[Finding] = []
        if self._reading is not None:
            for number, line in zip(self._reading.numbers, self._reading.lines, strict=True):
                self._take(number, line)

    @property
    def lines(self) -> int | None:
        return None if self._reading is None else len(self._reading.lines)

    def _take(self, number: int, line: ManifestLine) -> None:
        if line.event != LEFT or (line.schema != UPDATE and line.ledger_event is None):
            return
        if line.ledger_event is None:
            self._bad.append(_broken(f"line {number} of the manifest: an update left, and no commit of the ledger is named for it"))
        else:
            self._open.setdefault(line.ledger_event, (number, line))

    def see(self, event: Event) -> None:
        """Takes note of an event of the ledger."""
        if self._reading is None or event.kind not in ("commit", "release"):
            return
        if event.kind == "release":
            self._see_release(event)
            return
        if event.hash not in self._open and event.hash not in self._matched:
            self._many_gaps += 1
            if len(self._gaps) < self._MOST_NAMED:
                self._gaps.append(event.seq)
            return
        number, line = self._open.pop(event.hash)
        self._matched[event.hash] = None
        if line.round != event.payload["round"]:
            what = f"line {number} of the manifest speaks of round {line.round}, and its commit, event {event.seq}, of another one"
            self._bad.append(_broken(what))

    def _see_release(self, event: Event) -> None:
        """A release that was paid for may leave later or never, so one without a line is no gap; and no update leaves on its account."""
        if event.hash not in self._open:
            return
        number, line = self._open.pop(event.hash)
        self._matched[event.hash] = None
        if line.schema == UPDATE:
            what = f"line {number} of the manifest: an update left, and what it names, event {event.seq}, is a release and no commit"
            self._bad.append(_broken(what))

    def compare(self, *, whole: bool, rolled_back: bool, lost_before: str | None) -> Iterator[Finding]:
        """What the manifest and the ledger do not say alike.

        Args:
            whole: the ledger could be read to its end.
            rolled_back: it is proved that its end is missing.
            lost_before: time of a genesis that books a lost ledger: what left before belongs to that one.
        """
        if self._reading is None:
            return
        if self._reading.broken_at is not None:
            yield _broken(f"line {self._reading.broken_at} of the manifest: {self._reading.why}")
        if self._reading.unchained:
            what = f"the first {self._reading.unchained:,} lines of the manifest are from before it was chained: nothing protects them"
            yield Finding(code="manifest", event=None, what=what)
        if self._reading.torn:
            what = "the manifest ends in a line that a crash cut short: that message never left"
            yield Finding(code="manifest", event=None, what=what)
        yield from self._bad[: self._MOST_NAMED]
        if whole:
            yield from self._unmatched(rolled_back, lost_before)
        if self._many_gaps:
            named = ", ".join(map(str, self._gaps)) + (", ..." if self._many_gaps > len(self._gaps) else "")
            what = (
                f"{self._many_gaps:,} commits have no line in the manifest (events {named}): what they booked may not have left, "
                "as a crash between the two leaves it, or the manifest lacks lines"
            )
            yield Finding(code="gap", event=self._gaps[0], what=what)

    def _unmatched(self, rolled_back: bool, lost_before: str | None) -> Iterator[Finding]:
        of_a_lost_one = [number for number, line in self._open.values() if lost_before is not None and line.time_utc <= lost_before]
        left = [number for number, _ in self._open.values() if number not in set(of_a_lost_one)]
        if of_a_lost_one:
            what = f"{len(of_a_lost_one):,} updates left before this ledger began, under the lost one that it books as spent"
            yield Finding(code="manifest", event=None, what=what)
        status = Status.ROLLED_BACK if rolled_back else Status.BROKEN
        for number in left[: self._MOST_NAMED]:
            what = f"line {number} of the manifest: an update left, and the ledger holds no commit for it"
            yield Finding(code="manifest", event=None, what=what, status=status)
        if len(left) > self._MOST_NAMED:
            what = f"{len(left) - self._MOST_NAMED:,} further updates left without a commit"
            yield Finding(code="manifest", event=None, what=what, status=status)


def check_head(head: Head, book: Book, last: Event) -> Iterator[Finding]:
    """Whether a handed-over file ends where its owner signed that it ends."""
    if head.seq <= last.seq and (book.verify_key is None or not head.holds(book.verify_key)):
        what = "the head of the handed-over file is not signed with the key in force"
        yield Finding(code="head", event=None, what=what, status=Status.BROKEN)
    elif head.seq > last.seq:
        what = f"the ledger ends at event {last.seq:,}, and event {head.seq:,} was its last one when it was handed over"
        yield Finding(code="head", event=None, what=what, status=Status.ROLLED_BACK)
    elif (head.seq, head.hash) != (last.seq, last.hash):
        what = f"event {last.seq:,} is not the one with which the file was handed over"
        yield Finding(code="head", event=last.seq, what=what, status=Status.BROKEN)


def _broken(what: str) -> Finding:
    return Finding(code="manifest", event=None, what=what, status=Status.BROKEN)
