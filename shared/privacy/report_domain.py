"""What a report says about one domain: its audit, its events, its egress manifest and its epsilons, put into one record."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AuditError
from . import report_facts as facts
from . import report_status as verdict
from . import report_words as words
from .accountant import renyi_divergence
from .budget import SPENT
from .findings import Status, Verification
from .ledger_file import LedgerFile
from .ledger_schema import Event, canonical, mechanism_of
from .manifest import read_manifest
from .mechanism import Mechanism
from .report_about import fields_of

if TYPE_CHECKING:
    from .recompute import LedgerEpsilons

RDP_ORDERS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_STILL = "Stop the client meanwhile, or report on a hand-over: isthmus-client ledger export."
_SECTIONS = ("identity", "guarantee", "unprotected", "utility", "risk")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was handed over about one domain.

    Attributes:
        ledger: a ledger, or its hand-over.
        key: the partner's public key, 32 bytes in hex; without one the report is NOT VERIFIED.
        receipts: file of the coordinator's last receipts; without one the report is NOT VERIFIED.
        manifest: the egress manifest; without one the report is NOT VERIFIED.
    """

    ledger: Path
    key: str | None = None
    receipts: Path | None = None
    manifest: Path | None = None


def domain_record(given: Evidence, found: Verification, epsilons: LedgerEpsilons | None, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of one domain, as the head of `report` lists them.

    Args:
        found: what the audit says.
        epsilons: what the accountants say; None where the ledger does not hold.
        about: what `report_about.read_about` read.

    Raises:
        AuditError: ledger or manifest are not the ones that were audited.
    """
    holds = found.status is not Status.BROKEN and epsilons is not None
    events = _same_events(given, found, epsilons) if holds and epsilons else []
    code = facts.code(events)
    commits = {event.hash: event.seq for event in events if event.kind == "commit"}
    manifest = None if given.manifest is None else read_manifest(given.manifest)
    if manifest is not None and len(manifest.lines) != found.manifest_lines:
        raise AuditError("the egress manifest changed while it was audited", do=_STILL)
    egress = facts.egress(manifest, commits=commits if holds else None)
    reasons = [
        *verdict.from_audit(found),
        *verdict.from_skipped(found.domain, receipts=given.receipts is not None, manifest=egress is not None),
        *verdict.from_accountants(found.domain, epsilons),
        *verdict.from_code(found.domain, code["trained"]),
    ]
    status = verdict.status_of(reasons)
    guarantee = _guarantee(found, epsilons if holds else None, events)
    told = _explained(found, guarantee)
    return {
        "domain": found.domain,
        "status": str(status),
        "status_means": verdict.MEANS[status],
        "reasons": sorted(reasons, key=verdict.weight),
        "holds": holds,
        "plain_words": told,
        "guarantee": guarantee,
        "course": _course(found, events, shown=guarantee["epsilon_spent"] is not None),
        "mechanism": {
            "how": words.MECHANISM,
            "released": words.RELEASED,
            "sensitivity": words.SENSITIVITY,
            "constants": words.CONSTANTS,
            "runs": facts.runs(events),
            "releases": facts.releases(events),
        },
        "accounting": _accounting(found, epsilons if holds else None, events),
        "egress": egress,
        "code": code,
        "ledger": _ledger(given, found, events),
        "about": {section: fields_of(about, found.domain, section) for section in _SECTIONS},
    }


def read_slim(path: Path) -> list[Event]:
    """Every event of a ledger that holds, without changing a byte; equal texts and mechanisms are kept once, because ledgers are long."""
    known: dict[str, Any] = {}

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return known.setdefault(canonical(value), value)
        return sys.intern(value) if isinstance(value, str) else value

    file = LedgerFile.examine(Path(path))
    try:
        return [replace(event, payload={name: kept(value) for name, value in event.payload.items()}) for event in file.load()]
    finally:
        file.close()


def _same_events(given: Evidence, found: Verification, epsilons: LedgerEpsilons) -> list[Event]:
    """The events that were audited and priced: a file that is written to, or exchanged, meanwhile would be reported unread."""
    events = read_slim(given.ledger)
    steps = sum(mechanism_of(event.payload["mechanism"]).steps for event in events if event.kind in ("intent", "release"))
    if events[-1].hash != found.head_hash or steps != epsilons.steps:
        raise AuditError(f"the ledger of domain '{found.domain}' changed while it was audited", do=_STILL)
    return events


def _explained(found: Verification, said: Mapping[str, Any]) -> list[str]:
    """The claim in plain words; nothing where there is none."""
    epsilon, spent, ceiling = said["epsilon"], said["epsilon_spent"], said["ceiling"]
    if epsilon is None or spent is None or ceiling is None:
        return []
    if said["epsilon_is"] == SPENT:
        return words.plain_words(found.domain, epsilon=epsilon, delta=said["delta"], ceiling=ceiling)
    first = said["genesis_ceiling"] if said["genesis_ceiling"] != ceiling else None
    return words.plain_words_of_a_ceiling(found.domain, ceiling=ceiling, delta=said["delta"], spent=spent, raised_from=first)


def why_no_number(found: Verification, epsilons: LedgerEpsilons | None) -> str:
    """Why no epsilon may be given for a ledger; empty where one may."""
    if found.status is Status.BROKEN or epsilons is None:
        return "the ledger does not hold"
    if found.status is Status.ROLLED_BACK:
        return "the ledger is older than what the coordinator has a receipt for: more was spent than it says"
    if not found.private:
        return "the ledger says of itself that it protects nobody: NOT PRIVATE"
    if not epsilons.epsilons.agree:
        return epsilons.epsilons.why
    return ""


def _guarantee(found: Verification, epsilons: LedgerEpsilons | None, events: Sequence[Event]) -> dict[str, Any]:
    why = why_no_number(found, epsilons)
    claim, claim_is, spent = (None, None, None) if why or epsilons is None else (epsilons.claim, epsilons.claim_is, epsilons.spent)
    epsilon, spent = facts.number(claim), facts.number(spent)
    ceiling = None if epsilons is None else facts.number(found.ceiling_epsilon)
    return {
        "flavour": words.FLAVOUR,
        "unit": words.UNIT,
        "neighbours": words.NEIGHBOURS,
        "covers": words.COVERS,
        "lifetime": words.LIFETIME,
        "contribution": words.CONTRIBUTION,
        "epsilon": epsilon,
        "epsilon_is": None if epsilon is None else claim_is,
        "epsilon_means": None if epsilon is None or claim_is is None else words.CLAIM[claim_is],
        "epsilon_spent": spent,
        "delta": None if epsilons is None else found.claimed_delta,
        "delta_of_this_ledger": None if epsilons is None else found.delta,
        "ceiling": ceiling,
        "genesis_ceiling": None if epsilons is None else facts.number(found.genesis_ceiling),
        "ceilings": facts.ceilings(events),
        "remaining": None if spent is None or ceiling is None else max(0.0, ceiling - spent),
        "booked_epsilon": None if epsilons is None else facts.number(found.booked_epsilon),
        "private": None if epsilons is None else found.private,
        "replace_one_epsilon": None if why or epsilons is None else facts.number(epsilons.replace_one),
        "replace_one_why": why if why or epsilons is None else epsilons.replace_one_why,
        "why_no_number": why or (words.PASSED if epsilon is None and spent is not None else ""),
    }


def _course(found: Verification, events: Sequence[Event], *, shown: bool) -> dict[str, Any]:
    refused = [event.seq for event in events if event.kind == "refused"]
    if not events or not shown:
        return {"decides": [], "information": [], "complete": False, "refused": refused}
    interval = float.fromhex(events[0].payload["pld_interval"])
    adaptive, booked = found.decided_by == "rdp-filter", found.booked_epsilon or 0.0
    course = facts.course(events, adaptive=adaptive, order=found.filter_order, delta=found.delta, interval=interval, booked=booked)
    return {**course, "refused": refused}


def _accounting(found: Verification, epsilons: LedgerEpsilons | None, events: Sequence[Event]) -> dict[str, Any]:
    said: dict[str, Any] = {"rule": words.RULE, "composition": words.COMPOSITION, "post_processing": words.POST_PROCESSING}
    if epsilons is None:
        nothing = dict.fromkeys(("decided_by", "decides", "filter_order", "pld", "second", "difference", "rdp", "filter"))
        return {**said, **nothing, "agree": False, "why": "the ledger does not hold", "groups": [], "steps": 0, "rdp_curve": []}
    three, used_prv = epsilons.epsilons, epsilons.epsilons.prv is not None
    second = three.prv if used_prv else three.second
    mechanisms = [mechanism_of(event.payload["mechanism"]) for event in events if event.kind in ("intent", "release")]
    return {
        **said,
        "decided_by": found.decided_by,
        "decides": words.DECIDES[found.decided_by],
        "filter_order": found.filter_order,
        "pld": facts.number(three.pld),
        "pld_interval": three.interval,
        "second": facts.number(second),
        "second_accountant": "PRV (Opacus)" if used_prv else "a second PLD of other code",
        "difference": facts.number(None if second is None else second - three.pld),
        "rdp": facts.number(three.rdp),
        "filter": facts.number(epsilons.filter_epsilon),
        "agree": three.agree,
        "why": three.why,
        "steps": epsilons.steps,
        "groups": [{"sampling_rate": q, "noise_multiplier": sigma, "steps": steps} for q, sigma, steps in epsilons.groups],
        "rdp_curve": _rdp_curve(mechanisms) if found.private else [],
    }


def _rdp_curve(mechanisms: Sequence[Mechanism]) -> list[dict[str, float]]:
    """Renyi divergence of the whole life at some orders."""
    curve = [(order, renyi_divergence(mechanisms, order)) for order in RDP_ORDERS] if mechanisms else []
    return [{"order": order, "divergence": value} for order, value in curve if math.isfinite(value)]


def _ledger(given: Evidence, found: Verification, events: Sequence[Event]) -> dict[str, Any]:
    return {
        "file": Path(given.ledger).name,
        "events": found.events,
        "intents": found.intents,
        "commits": found.commits,
        "releases": found.releases,
        "refused": found.refused,
        "head_hash": found.head_hash,
        "keys": list(found.keys),
        "key_given": given.key,
        "signed_from_event": found.signed_from,
        "complete_to_event": found.complete_to,
        "proved_by": found.proved_by,
        "receipts_given": given.receipts is not None,
        "manifest_given": given.manifest is not None,
        "begun_utc": found.begun_utc,
        "ended_utc": found.ended_utc,
        **facts.notable(events),
    }
