"""The one status of a report, and every reason for it.

NOT VERIFIED needs one reason only: a gap, a seed, a check that was skipped, accountants that disagree, code that was never tested. A report
that was made without the coordinator's receipts, without the egress manifest or without a public key has skipped a check, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from .findings import Status, Verification

if TYPE_CHECKING:
    from .recompute import LedgerEpsilons, PersonRow


class ReportStatus(StrEnum):
    """Permanent in meaning; the worst that applies, in the order `WORST_FIRST`."""

    WITHIN = "WITHIN BUDGET"
    RAISED = "WITHIN RAISED BUDGET"
    EXCEEDED = "EXCEEDED"
    NOT_VERIFIED = "NOT VERIFIED"


WORST_FIRST = (ReportStatus.EXCEEDED, ReportStatus.NOT_VERIFIED, ReportStatus.RAISED, ReportStatus.WITHIN)
"""What is over the ceiling by the partner's own signed word is over it, whatever else could not be checked."""

MEANS = {
    ReportStatus.WITHIN: "Every check was made, none failed, and what was spent is below the ceiling that was set at the start.",
    ReportStatus.RAISED: "Every check was made, none failed, and what was spent is below the ceiling; but that ceiling is not the first.",
    ReportStatus.EXCEEDED: "More was spent, or admitted to be spent, than the ceiling permits.",
    ReportStatus.NOT_VERIFIED: "At least one check failed or was not made. Nothing here is vouched for until its reasons are gone.",
}

_OF_FINDING = {
    Status.INTACT: None,
    Status.RAISED: ReportStatus.RAISED,
    Status.EXCEEDED: ReportStatus.EXCEEDED,
    Status.ROLLED_BACK: ReportStatus.NOT_VERIFIED,
    Status.BROKEN: ReportStatus.NOT_VERIFIED,
    Status.NOT_VERIFIABLE: ReportStatus.NOT_VERIFIED,
}
_ALWAYS = frozenset({"gap", "not-private"})
"""Findings that a ledger can live with, and a report cannot."""

CODES = {
    "skipped": "a check was not made, because what it needs was not handed over",
    "accountants": "the accountants disagree, or one of them gave no answer",
    "code-untested": "code that trained was never tested by tier 1 or 2",
    "code-refuted": "the last test of code that trained refuted it",
}
"""Reasons beside those of `findings.CODES`. Permanent in meaning: programs read them."""


def reason(domain: str, code: str, what: str, *, event: int | None = None, leads_to: ReportStatus | None) -> dict[str, Any]:
    """One line of the list of reasons; ``leads_to`` is None for a remark that changes nothing."""
    return {"domain": domain, "code": code, "event": event, "what": what, "leads_to": None if leads_to is None else str(leads_to)}


def from_audit(found: Verification) -> list[dict[str, Any]]:
    """What `audit.verify` found, in its order."""
    reasons, lost = [], found.status in (Status.BROKEN, Status.ROLLED_BACK)
    for one in found.findings:
        leads_to = ReportStatus.NOT_VERIFIED if one.code in _ALWAYS else _OF_FINDING[one.status]
        if lost and leads_to is not None:  # what a damaged ledger says of its ceiling is no signed word
            leads_to = ReportStatus.NOT_VERIFIED
        reasons.append(reason(found.domain, one.code, one.what, event=one.event, leads_to=leads_to))
    said = {one["leads_to"] for one in reasons}
    own = _OF_FINDING[found.status]
    if own is not None and str(own) not in said:
        reasons.append(reason(found.domain, "chain", f"the audit says {found.status}", leads_to=own))
    return reasons


def from_skipped(domain: str, *, receipts: bool, manifest: bool) -> list[dict[str, Any]]:
    """What was not handed over, and what therefore nobody looked at; a missing key is a finding of the audit itself."""
    missing = {
        "no receipts of the coordinator were given: that nothing was cut off at the end was not checked": receipts,
        "no egress manifest was given: what left was not compared with the ledger": manifest,
    }
    return [reason(domain, "skipped", what, leads_to=ReportStatus.NOT_VERIFIED) for what, there in missing.items() if not there]


def from_accountants(domain: str, epsilons: LedgerEpsilons | None) -> list[dict[str, Any]]:
    """Numbers of one ledger that two accountants do not vouch for."""
    if epsilons is None:
        return []
    what = [] if epsilons.epsilons.agree else [epsilons.epsilons.why or "the accountants disagree"]
    if epsilons.epsilons.agree and epsilons.replace_one_disputed:
        what.append("the REPLACE_ONE epsilon is not confirmed by a second accountant")
    return [reason(domain, "accountants", each, leads_to=ReportStatus.NOT_VERIFIED) for each in what]


def from_persons(rows: Iterable[PersonRow]) -> list[dict[str, Any]]:
    """Rows of the person table that no second accountant confirms; k = 1 is a ledger's own affair."""
    return [
        reason("", "accountants", f"epsilon of a person in {row.k} domains is not confirmed", leads_to=ReportStatus.NOT_VERIFIED)
        for row in rows
        if row.k > 1 and not row.agree
    ]


def from_code(domain: str, trained: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Code that trained and has no passed test of its own: a passed test of other code says nothing about it."""
    found = []
    for one in trained:
        name = f"code {one['code_digest'][:16]}, which trained from event {one['first_event']:,} on,"
        untested = [tier for tier, test in one["tests"].items() if test is None]
        if untested:
            what = f"{name} was never tested by tier {' or '.join(untested)}: run isthmus-client canary with it"
            found.append(reason(domain, "code-untested", what, event=one["first_event"], leads_to=ReportStatus.NOT_VERIFIED))
        for tier, test in one["tests"].items():
            if test is not None and test["verdict"] != "passed":
                what = f"{name} was {test['verdict']} by tier {tier}"
                found.append(reason(domain, "code-refuted", what, event=test["event"], leads_to=ReportStatus.NOT_VERIFIED))
    return found


def weight(one: Mapping[str, Any]) -> int:
    """Sorts reasons: the gravest first, remarks last."""
    ranks = {str(status): rank for rank, status in enumerate(WORST_FIRST)}
    return ranks.get(one["leads_to"], len(ranks))


def status_of(reasons: Iterable[Mapping[str, Any]]) -> ReportStatus:
    """The worst that the reasons lead to.

    >>> status_of([])
    <ReportStatus.WITHIN: 'WITHIN BUDGET'>
    >>> status_of([{"leads_to": "NOT VERIFIED"}, {"leads_to": "EXCEEDED"}, {"leads_to": None}])
    <ReportStatus.EXCEEDED: 'EXCEEDED'>
    """
    said = {one["leads_to"] for one in reasons}
    return next((status for status in WORST_FIRST if str(status) in said), ReportStatus.WITHIN)
