"""Tier 0: one ledger, a public key and what others hold against it. Nothing here trusts the system that wrote them.

Every event is read once, some at a time: chain, fields, the rules of a life, all signatures, every recorded number and decision computed
anew; then the ceiling, the coordinator's receipt, the manifest, the signed head. It finds any change by somebody without the partner's key,
and with the receipts anything that is missing up to the last one. That the code did what is recorded is for tiers 1 and 2 to test.

The ledger, what stands beside it and its folder stay as they are, byte for byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import (
    AuditError,
    EmptyLedger,
    ForeignReceipts,
    LedgerBroken,
    LedgerError,
    LedgerLocked,
    NewerLedger,
    NotALedger,
    UnknownEvent,
    WrongKey,
)
from .audit_evidence import Egress, Receipts, check_head
from .audit_numbers import KINDS, Before, check_numbers
from .budget import NOTHING, PLD, RDP_FILTER, epsilon_of
from .findings import Finding, Status, Verification, worst
from .ledger_book import Book
from .ledger_file import LedgerFile
from .ledger_handover import Head, head_of
from .ledger_schema import NO_HASH, Event
from .receipts import SignedReceipt
from .signing import event_message, holds, is_verify_key

_AT_A_TIME, _AHEAD = 500, 8
_MOST_OF_A_CODE = 50
_REFUSED = (NotALedger, EmptyLedger, NewerLedger, UnknownEvent, LedgerLocked)
_Signed = tuple[int, str, str, bytes]


def verify(path: Path, *, key: str | None, receipts: Path | None = None, manifest: Path | None = None) -> Verification:
    """Checks everything that can be checked without trusting anybody.

    Args:
        path: a ledger, or the file that its owner handed over.
        key: the partner's public key, 32 bytes in hex; None where the auditor has none, and then nothing is vouched for.
        receipts: the coordinator's receipts; without them the end of the ledger is not provable.
        manifest: the partner's egress manifest.

    Returns:
        The verdict, with every finding; a ledger that does not hold is a verdict, not an error.

    Raises:
        LedgerError: there is none, or a process is writing to it (`LedgerLocked`); it is no ledger (`NotALedger`), empty (`EmptyLedger`),
            of a newer format (`NewerLedger`), or holds events of an unknown kind (`UnknownEvent`).
        WrongKey: it holds, and is not signed with this key.
        ForeignReceipts: the receipts are another partner's.
        AuditError: key, receipts or manifest cannot be used.
    """
    if key is not None and not is_verify_key(key):
        raise AuditError("the public key is not 32 bytes in hex", do="Ask the partner for its public key file again.")
    reading = _Reading(Receipts(receipts), Egress(manifest))
    file = LedgerFile.examine(Path(path))
    try:
        reading.read(file)
    finally:
        file.close()
    return reading.verdict(key)


class _Reading:
    """One pass over a ledger."""

    def __init__(self, receipts: Receipts, egress: Egress) -> None:
        self.book = Book()
        self.found: list[Finding] = []
        self.last: Event | None = None
        self._receipts, self._egress = receipts, egress
        self._signatures = _Signatures()
        self._head: Head | None = None
        self._counts: dict[str, int] = {}
        self._of_code: dict[str, int] = {}
        self._genesis: Event | None = None
        self._verdicts: dict[int, Event] = {}
        self._first_refused: int | None = None
        self._receipted: int | None = None

    def read(self, file: LedgerFile) -> None:
        try:
            for event in file.load():
                self._take(event)
            self._whole(file)
        except _REFUSED:
            raise
        except LedgerError as error:
            self._broken(error)
        finally:
            unsigned = self._signatures.finish()
        if unsigned:
            more = f"; so are {len(unsigned) - 1:,} more" if len(unsigned) > 1 else ""
            self.add("signature", unsigned[0], f"event {unsigned[0]:,} is not signed by the key that was in force{more}", Status.BROKEN)

    def add(self, code: str, event: int | None, what: str, status: Status = Status.INTACT) -> None:
        self._keep(Finding(code=code, event=event, what=what, status=status))

    def _keep(self, finding: Finding) -> None:
        """A ledger cannot fill the memory with findings: of each code the first ones are enough."""
        seen = self._of_code[finding.code] = self._of_code.get(finding.code, 0) + 1
        if seen <= _MOST_OF_A_CODE:
            self.found.append(finding)

    def _take(self, event: Event) -> None:
        key = self.book.key_of(event)
        before = Before.of(self.book, event) if event.kind in KINDS else None
        self.book.apply(event)
        if key is not None:
            self._signatures.add((event.seq, key, event.hash, event.signature or b""))
        if before is not None:
            self._check(event, before)
        self._counts[event.kind] = self._counts.get(event.kind, 0) + 1
        self._remark(event)
        self._receipts.see(event, self.book)
        self._egress.see(event)
        self._genesis = self._genesis or event
        self.last = event

    def _check(self, event: Event, before: Before) -> None:
        try:
            for finding in check_numbers(event, before):
                self._keep(finding)
        except (ValueError, ArithmeticError):  # of an accountant, for numbers beyond its range
            self.add("number", event.seq, f"event {event.seq:,}: its numbers cannot be computed anew", Status.NOT_VERIFIABLE)

    def _remark(self, event: Event) -> None:
        said = event.payload
        if event.kind == "ceiling":
            before, now = (float.fromhex(said[name]) for name in ("previous_epsilon", "ceiling_epsilon"))
            what = f"{said['raised_by']} raised the ceiling from {before:g} to {now:g}: {said['why']}"
            self.add("raised", event.seq, what, Status.RAISED)
        elif event.kind == "key":
            self.add("key", event.seq, f"the key was changed to {said['new_verify_key']}; the old one signed the change, and the new one")
        elif event.kind == "schedule" and said["permitted_intents"] == said["rounds"] + said["reserve"]:  # no plan that was cut short
            by = said["plan_signature"]
            signed = "carries no coordinator's signature" if by is None else f"was signed by the coordinator ({by[:16]})"
            self.add("contract", event.seq, f"the plan of run {said['run_id']} {signed}")
        elif event.kind == "audit":
            self._verdicts[said["tier"]] = event
        elif event.kind == "refused" and self._first_refused is None:
            self._first_refused = event.seq

    def _broken(self, error: LedgerError) -> None:
        """The first event that does not hold: nothing after it can be believed, and so nothing after it is read."""
        after = 0 if self.last is None else self.last.seq
        event = after + 1 if after or error.what.startswith("event ") else None
        where = "" if error.what.startswith("event ") or event is None else f"event {event:,}: "
        code = "signature" if "sign" in error.what.split(":")[-1] else "chain"
        self.add(code, event, where + error.what, Status.BROKEN)

    def _whole(self, file: LedgerFile) -> None:
        if self.book.format != file.format:
            raise LedgerBroken("the file names another format than its events")
        try:
            self._head = head_of(file, self.book.domain)
        except LedgerBroken as error:
            self.add("head", None, error.what, Status.BROKEN)

    # --- what it adds up to --------------------------------------------------------------------------------------------------------------
    def verdict(self, key: str | None) -> Verification:
        whole = not any(one.status is Status.BROKEN and one.code in ("chain", "signature") for one in self.found)
        spent = self._spent()
        complete_to, proved_by = self._compare(key, spent) if whole and self.last is not None else (None, "")
        rolled_back = any(one.status is Status.ROLLED_BACK for one in self.found)
        lost_before = self._genesis.time_utc[:19] + "Z" if self._genesis is not None and self.book.budget.booked else None
        for finding in self._egress.compare(whole=whole, rolled_back=rolled_back, lost_before=lost_before):
            self._keep(finding)
        for finding in self._totals(spent):
            self._keep(finding)
        for code, seen in self._of_code.items():
            if seen > _MOST_OF_A_CODE:
                self.found.append(Finding(code=code, event=None, what=f"{seen - _MOST_OF_A_CODE:,} more findings of this kind"))
        found = tuple(sorted(self.found, key=lambda one: (one.event is None, one.event or 0, one.status is not Status.BROKEN)))
        return self._verification(found, spent, complete_to, proved_by)

    def _verification(self, found: tuple[Finding, ...], spent: float, complete_to: int | None, proved_by: str) -> Verification:
        book, genesis, last = self.book, self._genesis, self.last
        nothing = any(event.kind == "none" for event in book.spent)
        return Verification(
            domain=book.domain,
            status=worst(found),
            findings=found,
            events=0 if last is None else last.seq,
            intents=self._counts.get("intent", 0),
            commits=self._counts.get("commit", 0),
            releases=self._counts.get("release", 0),
            refused=self._counts.get("refused", 0),
            head_hash=NO_HASH if last is None else last.hash,
            keys=tuple(book.keys),
            signed_from=book.signed_from,
            private=book.private,
            ceiling_epsilon=book.budget.ceiling_epsilon,
            genesis_ceiling=0.0 if genesis is None else float.fromhex(genesis.payload["ceiling_epsilon"]),
            delta=book.budget.delta,
            claimed_delta=book.budget.delta + book.booked_delta,
            booked_epsilon=book.budget.booked or None,
            epsilon_spent=spent,
            decided_by=NOTHING if nothing else RDP_FILTER if book.adaptive else PLD,
            filter_order=book.order,
            complete_to=complete_to,
            proved_by=proved_by,
            manifest_lines=self._egress.lines,
            begun_utc="" if genesis is None else genesis.time_utc,
            ended_utc="" if last is None else last.time_utc,
        )

    def _spent(self) -> float:
        if self.last is None or any(one.code == "number" and one.event == 1 and one.status is Status.BROKEN for one in self.found):
            return 0.0  # without a genesis, or with a grid of somebody's choice, there is nothing to compute with
        return epsilon_of(self.book.spent, self.book.budget, adaptive=self.book.adaptive, order=self.book.order)

    def _totals(self, spent: float) -> Iterator[Finding]:
        book = self.book
        if self.last is None:
            return
        if not book.private:
            what = "the ledger says of itself that it protects nobody: NOT PRIVATE"
            yield Finding(code="not-private", event=1, what=what, status=Status.NOT_VERIFIABLE)
        elif spent > book.budget.ceiling_epsilon * (1.0 + 1e-9):
            what = f"epsilon {spent:.4g} is spent, and the ceiling is {book.budget.ceiling_epsilon:.4g}"
            yield Finding(code="ceiling", event=None, what=what, status=Status.EXCEEDED)
        if book.budget.booked:
            what = f"a lost ledger counts as spent with all it permitted: epsilon {book.budget.booked:g} at delta {book.booked_delta:g}"
            yield Finding(code="booked", event=1, what=what, status=Status.RAISED)
        if self._first_refused is not None:
            what = f"{self._counts['refused']:,} debits were refused, the first at event {self._first_refused:,}; nothing was spent on them"
            yield Finding(code="refused", event=self._first_refused, what=what)
        for tier, event in sorted(self._verdicts.items()):
            said = event.payload
            what = f"tier {tier} {said['verdict']} for code {said['code_digest'][:16]} (version {said['code_version']})"
            yield Finding(code="audit", event=event.seq, what=what)

    # --- whose it is, and whether it is all there ----------------------------------------------------------------------------------------
    def _compare(self, key: str | None, spent: float) -> tuple[int | None, str]:
        receipt = self._receipts.of(self.book.domain)
        if not self._own(key, receipt):
            return None, ""
        complete_to, proved_by = None, ""
        if self._head is not None and self.last is not None:
            signed = list(check_head(self._head, self.book, self.last))
            for finding in signed:
                self._keep(finding)
            if not signed:
                complete_to, proved_by = self._head.seq, "signed head"
        if receipt is not None:
            for finding in self._receipts.compare(receipt, self.book, spent):
                self._keep(finding)
            proved = self._receipts.proved(receipt, self.book)
            if proved is not None and proved >= (complete_to or 0):
                complete_to, proved_by = proved, "receipts"
            elif proved is not None:
                self._receipted = proved
        self._completeness(complete_to, proved_by)
        return complete_to, proved_by

    def _own(self, key: str | None, receipt: SignedReceipt | None) -> bool:
        """Whether the ledger is signed by whom the auditor expects; False where what others hold cannot be compared with it."""
        keys = self.book.keys
        if not keys:
            what = "the ledger is of format 1, which was not signed: whoever can write the file can change all of it"
            self.add("unsigned", None, what, Status.NOT_VERIFIABLE)
        elif (self.book.signed_from or 1) > 1:
            before = (self.book.signed_from or 1) - 1
            what = (
                f"events 1 to {before:,} are from before ledgers were signed; the signature of event {before + 1:,} covers them as they are"
            )
            self.add("unsigned", before, what)
        cited = self.book.cites
        if cited is not None and cited.verify_key not in keys:
            what = (
                f"the receipt that is cited for the lost ledger is signed with {cited.verify_key}, which this ledger never had: have the "
                "partner confirm that it was its key then"
            )
            self.add("key", 1, what)
        if receipt is not None and receipt.verify_key not in keys and receipt != cited:
            if receipt.verify_key != key:
                what = f"the receipt of domain '{self.book.domain}' is signed with a key that this ledger never had"
                if keys and key is not None and key not in keys:
                    raise self._wrong_key()
                raise ForeignReceipts(what, do="Ask the coordinator for the receipts of this domain again.")
            what = "the coordinator's receipt is signed with the key you gave, and the ledger is not: somebody else signed it anew"
            self.add("signature", self.book.signed_from or 1, what, Status.BROKEN)
            return False
        if key is None:
            what = "no public key was given: the signatures fit the keys that the ledger names, and whose keys these are is not known"
            self.add("key", None, what, Status.NOT_VERIFIABLE)
        elif keys and key not in keys:
            raise self._wrong_key()
        elif keys and key != keys[-1]:
            what = f"the key you gave was replaced; have the partner confirm that {keys[-1]} is its key now"
            self.add("key", None, what)
        return True

    def _wrong_key(self) -> WrongKey:
        what = f"the ledger of domain '{self.book.domain}' is signed with {self.book.keys[-1]}, not with the key you gave"
        do = (
            "Ask the partner for its public key again. If it is the one you gave, somebody else signed this ledger: "
            "the coordinator's receipts, given with --receipts, prove it."
        )
        return WrongKey(what, do=do)

    def _completeness(self, complete_to: int | None, proved_by: str) -> None:
        last = 0 if self.last is None else self.last.seq
        if complete_to is None:
            what = "the end of the ledger is not provable: without the coordinator's receipts, events cut off its end leave no trace"
        elif proved_by == "signed head" and self._receipted is not None:
            what = (
                f"complete up to event {self._receipted:,}, by the coordinator's receipt; of what came after it, the owner signed event "
                f"{complete_to:,} as the last one of the file"
            )
        elif proved_by == "signed head":
            what = (
                f"the owner signed event {complete_to:,} as the last one of the file; that nothing was cut off before that, or with "
                "the signed head, is not provable without the coordinator's receipts"
            )
        elif complete_to < last:
            what = f"complete up to event {complete_to:,}, by the coordinator's receipt; that nothing is missing after it is not provable"
        else:
            what = "complete up to its last event, by the coordinator's receipt"
        self.add("completeness", complete_to, what)


class _Signatures:
    """Checks Ed25519 signatures in two threads, while events are read: the library works without Python's lock."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: list[_Signed] = []
        self._working: deque[Future[list[int]]] = deque()
        self._bad: list[int] = []

    def add(self, signed: _Signed) -> None:
        self._waiting.append(signed)
        if len(self._waiting) < _AT_A_TIME:
            return
        self._pool = self._pool or ThreadPoolExecutor(2, thread_name_prefix="signatures")
        self._working.append(self._pool.submit(_unsigned, self._waiting))
        self._waiting = []
        if len(self._working) > _AHEAD:
            self._bad += self._working.popleft().result()

    def finish(self) -> list[int]:
        """Numbers of the events whose signature does not hold, in order."""
        bad = [*self._bad, *(number for work in self._working for number in work.result()), *_unsigned(self._waiting)]
        self._waiting = []
        if self._pool is not None:
            self._pool.shutdown()
        return sorted(bad)


def _unsigned(events: list[_Signed]) -> list[int]:
    return [seq for seq, key, digest, signature in events if not holds(key, event_message(digest), signature)]
