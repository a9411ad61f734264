"""What an audit of a ledger found: plain records that the command prints and the report draws."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .budget import CEILING, NOTHING, PLD, SPENT


class Status(StrEnum):
    """The one verdict on a ledger; the worst that applies, in the order `WORST_FIRST`."""

    INTACT = "INTACT"
    RAISED = "RAISED"
    EXCEEDED = "EXCEEDED"
    ROLLED_BACK = "ROLLED BACK"
    BROKEN = "BROKEN"
    NOT_VERIFIABLE = "NOT VERIFIABLE"

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self]


_EXIT_CODES = {
    Status.INTACT: 0,
    Status.BROKEN: 30,
    Status.ROLLED_BACK: 31,
    Status.EXCEEDED: 32,
    Status.RAISED: 33,
    Status.NOT_VERIFIABLE: 34,
}

WORST_FIRST = (Status.BROKEN, Status.ROLLED_BACK, Status.EXCEEDED, Status.NOT_VERIFIABLE, Status.RAISED, Status.INTACT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a reader of the ledger must know.

    Attributes:
        code: what kind of thing, for machines: see `CODES`.
        event: number of the event it is about; None where it is about the whole ledger.
        what: one line for a person.
        status: the verdict that this finding alone leads to; `Status.INTACT` for remarks that change nothing.
    """

    code: str
    event: int | None
    what: str
    status: Status = Status.INTACT


CODES = {
    "chain": "an event is missing, moved, edited, or says what no run could have done",
    "signature": "an event is not signed by the key that was in force",
    "key": "the signing key was changed",
    "receipt": "the coordinator's receipt and the ledger do not say the same",
    "head": "the signed head of a handed-over file and its last event are not the same",
    "manifest": "the egress manifest and the ledger's commits do not say the same",
    "gap": "a commit without a line in the manifest, as a crash between the two leaves it",
    "number": "a number that the ledger recorded is not what its events give",
    "ceiling": "more is spent than the ceiling permits",
    "raised": "the ceiling was raised",
    "booked": "the ledger books an older, lost one as spent",
    "not-private": "the ledger says of itself that it protects nobody",
    "unsigned": "events without a signature",
    "completeness": "up to which event the ledger is proved to be complete",
    "refused": "a debit that the ledger refused",
    "audit": "a verdict of a canary run that the ledger holds",
    "contract": "whether the coordinator signed the plan of a run, as the partner checked it when it admitted the plan",
}
"""Permanent in meaning: programs read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Everything `shared.privacy.audit.verify` can say about one ledger. Fields after ``status`` are meaningful up to the first bad event.

    Attributes:
        domain: as genesis names it; empty where not even that can be read.
        status: the verdict.
        findings: in the order of the events; the first with status BROKEN names the first bad event.
        events: events that hold.
        intents: of them, attempts that are spent.
        commits: of them, updates that left.
        releases: of them, mechanisms outside the runs.
        refused: of them, debits that were refused.
        head_hash: hash of the last event that holds.
        keys: verify keys in the order they were in force; empty in an unsigned ledger.
        signed_from: first signed event; None in an unsigned ledger.
        private: what genesis says.
        ceiling_epsilon: as it stands at the end.
        genesis_ceiling: as it stood at the start.
        delta: of every epsilon here.
        claimed_delta: ``delta`` plus the delta of a lost ledger that this one books.
        booked_epsilon: epsilon of a lost ledger that this one books as spent; None without one.
        epsilon_spent: of all intents and releases and what is booked, recomputed by who decides in this life; where that is the filter,
            it is information, and the claim is the ceiling.
        decided_by: pld, rdp-filter or none.
        filter_order: order of the filter, fixed by the first schedule; None before it.
        complete_to: last event that a receipt or a signed head proves to have existed when it was made; None when nothing does.
        proved_by: "receipts", "signed head" or empty.
        manifest_lines: lines of the manifest that were compared; None without one.
        begun_utc: time of genesis, by the partner's clock.
        ended_utc: time of the last event that holds.
    """

    domain: str
    status: Status
    findings: tuple[Finding, ...]
    events: int
    intents: int
    commits: int
    releases: int
    refused: int
    head_hash: str
    keys: tuple[str, ...]
    signed_from: int | None
    private: bool
    ceiling_epsilon: float
    genesis_ceiling: float
    delta: float
    claimed_delta: float
    booked_epsilon: float | None
    epsilon_spent: float
    decided_by: str
    filter_order: float | None
    complete_to: int | None
    proved_by: str
    manifest_lines: int | None
    begun_utc: str
    ended_utc: str

    @property
    def first_bad(self) -> int | None:
        """Number of the first event that does not hold; None where every event does."""
        bad = [finding.event for finding in self.findings if finding.status is Status.BROKEN and finding.event is not None]
        return min(bad) if bad else None

    @property
    def claim_is(self) -> str | None:
        """Which number may be claimed of the whole life, "spent" or "ceiling"; None where none may."""
        if self.status in (Status.BROKEN, Status.ROLLED_BACK, Status.NOT_VERIFIABLE) or self.decided_by == NOTHING:
            return None
        if self.decided_by == PLD:
            return SPENT
        return None if self.epsilon_spent > self.ceiling_epsilon * (1.0 + 1e-9) else CEILING

    @property
    def epsilon_claimed(self) -> float | None:
        """That number, at ``claimed_delta``."""
        return {SPENT: self.epsilon_spent, CEILING: self.ceiling_epsilon}.get(self.claim_is or "")


def worst(findings: tuple[Finding, ...]) -> Status:
    """The verdict that findings lead to together.

    >>> raised = Finding(code="raised", event=7, what="", status=Status.RAISED)
    >>> worst((raised, Finding(code="ceiling", event=None, what="", status=Status.EXCEEDED)))
    <Status.EXCEEDED: 'EXCEEDED'>
    >>> worst(())
    <Status.INTACT: 'INTACT'>
    """
    said = {finding.status for finding in findings}
    return next((status for status in WORST_FIRST if status in said), Status.INTACT)
