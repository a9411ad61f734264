"""What the ledger's commands say: as a document for machines, and in words for people."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..key_rotation import Rotated
    from ..ledger_life import Overview
    from ..ledger_restart import Restarted

ROTATED = (
    "Passports that were sealed to the old keys can no longer be opened; the old private keys are gone. Partners, auditors and the "
    "coordinator need the new public file, and should compare its fingerprint with you: until the coordinator writes the new verify_key "
    "into its list of partners, it drops this domain's replies."
)
RESTARTED = (
    "The whole ceiling of the lost ledger counts as spent, and every later report of this domain says WITHIN RAISED BUDGET. Runs that were "
    "under way cannot go on: the coordinator begins new ones, and drops this domain's replies where they show more than the ceiling it "
    "agreed on with you."
)


def document(found: Overview) -> dict[str, Any]:
    return {
        "domain": found.domain,
        "file": str(found.path),
        "format": found.format,
        "private": found.private,
        "ceiling_epsilon": _number(found.ceiling),
        "first_ceiling_epsilon": _number(found.first_ceiling),
        "booked_epsilon": _number(found.booked),
        "spent_epsilon": _number(found.spent),
        "reserved_epsilon": _number(found.reserved),
        "remaining_epsilon": _number(found.remaining),
        "delta": found.delta,
        "claimed_delta": found.claimed_delta,
        "decided_by": found.decided_by,
        "intents": found.intents,
        "runs": [dataclasses.asdict(run) for run in found.runs],
        "events": found.events,
        "head_hash": found.head_hash,
        "last_event_utc": found.last_event,
        "keys": [{"from_event": seq, "verify_key": key} for seq, key in found.keys],
        "audits": [
            {"event": event.seq, "time_utc": event.time_utc, **{name: event.payload[name] for name in ("tier", "verdict", "code_version")}}
            for event in found.audits
        ],
    }


def _number(epsilon: float) -> float | None:
    """JSON has no infinity: null, where a ledger without privacy has none."""
    return epsilon if math.isfinite(epsilon) else None


def table(found: Overview) -> str:
    raised = "" if found.ceiling == found.first_ceiling else f"   (raised; {found.first_ceiling:.2f} at first)"
    rows = [
        ("ledger", f"{found.path}, format {found.format}{'' if found.private else ', NOT PRIVATE'}"),
        ("ceiling", f"{found.ceiling:10.2f}{raised}"),
        *([("booked", f"{found.booked:10.2f}   (of a lost ledger)")] if found.booked else []),
        ("spent", f"{found.spent:10.2f}"),
        ("reserved", f"{found.reserved:10.2f}   (with what is spent)"),
        ("remaining", f"{found.remaining:10.2f}"),
        ("delta", f"{found.claimed_delta:10.0e}   (unit: user; decided by {found.decided_by})"),
        *(
            ("run", f"{run.run_id}: {run.committed} of {run.rounds} rounds, {run.attempts} of {run.permitted} attempts")
            for run in found.runs
        ),
        ("events", f"{sum(found.events.values()):,}: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.events.items()))),
        *((("key" if at == found.keys[-1] else "old key"), f"{at[1]} from event {at[0]:,}") for at in found.keys),
        *(("audit", f"tier {event.payload['tier']}: {event.payload['verdict']}, {event.time_utc[:10]}") for event in found.audits),
        ("last event", f"{found.last_event}  {found.head_hash[:16]}"),
    ]
    if not found.keys:
        rows.append(("note", "this ledger is unsigned: isthmus-client ledger upgrade brings it to format 2"))
    if not found.audits:
        rows.append(("audit", "the code was never tested here: isthmus-client canary does"))
    return "\n".join([f"ledger of '{found.domain}', epsilon for each user over its whole life", *(f"  {a:<10}  {b}" for a, b in rows)])


def rotated(domain: str, path: Path, changed: Rotated) -> tuple[dict[str, Any], str]:
    document = {
        "domain": domain,
        "old_verify_key": changed.old.verify_key,
        "new_verify_key": changed.new.verify_key,
        "file": str(path),
        "fingerprint": changed.new.fingerprint,
        "means": ROTATED,
    }
    return (
        document,
        f"new public keys of '{domain}': {path}\nverify_key: {changed.new.verify_key}\nfingerprint: {changed.new.fingerprint}\n{ROTATED}",
    )


def restarted(domain: str, path: Path, made: Restarted) -> tuple[dict[str, Any], str]:
    document = {
        "domain": domain,
        "file": str(path),
        "lost": made.lost,
        "aside": [str(one) for one in made.aside],
        "booked_epsilon": made.booked_epsilon,
        "booked_delta": made.booked_delta,
        "ceiling_epsilon": made.ceiling_epsilon,
        "claimed_delta": made.claimed_delta,
        "intents": made.intents,
        "verify_key": made.verify_key,
        "receipt_of_this_key": made.known_key,
        "means": RESTARTED,
    }
    lines = [
        f"new ledger of '{domain}': {path}",
        f"because: {made.lost}",
        f"booked as spent: epsilon {made.booked_epsilon:g}, delta {made.booked_delta:g}; ceiling now {made.ceiling_epsilon:g}",
        *(f"moved aside: {one}" for one in made.aside),
        RESTARTED,
    ]
    if not made.known_key:
        lines.append(
            f"The receipt was signed with another key than the one in use now. Tell the coordinator the new one: {made.verify_key}"
        )
    return document, "\n".join(lines)
