"""What `isthmus-audit` says: the findings of an audit in words for a person, and as plain values for a program."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .budget import CEILING
from .findings import Status, Verification
from .recompute import LedgerEpsilons, PersonRow, Recomputation

MEANS = {
    Status.INTACT: "every check holds, and what is spent is below the ceiling",
    Status.RAISED: "every check holds, and more is permitted than at the start",
    Status.EXCEEDED: "more was spent, or admitted, than the ceiling permits",
    Status.ROLLED_BACK: "events are missing that are proved to have existed",
    Status.BROKEN: "this is not what the owner of the key wrote, or not what a run could have written",
    Status.NOT_VERIFIABLE: "what was promised cannot be checked, or was nothing",
}
_DECIDES = {
    "pld": "privacy loss distributions",
    "rdp-filter": "the Renyi filter",
    "none": "nothing: steps without noise",
}
_CEILING = "  epsilon claimed   {:g}, the ceiling: the filter vouches for that; what is spent is information"


def plain(value: Any) -> Any:
    """Values that JSON can hold; infinity and NaN become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, Status) else value


def verification_document(found: Verification) -> dict[str, Any]:
    """A verification for programs; epsilon is null where it is infinite. ``epsilon_claimed`` is what may be claimed, and ``claim_is`` says
    whether that is what is "spent" or the "ceiling"; both are null where nothing may.
    """
    claim = {"epsilon_claimed": plain(found.epsilon_claimed), "claim_is": found.claim_is}
    return {**plain(found), **claim, "exit_code": found.status.exit_code, "first_bad_event": found.first_bad}


def verification_words(found: Verification) -> str:
    """A verification for a person."""
    name = f"domain '{found.domain}'" if found.domain else "the ledger"
    lines = [f"{name}: {found.status} ({MEANS[found.status]})"]
    if found.status is Status.BROKEN:
        where = "none that can be named" if found.first_bad is None else f"{found.first_bad:,}"
        lines.append(f"  first bad event   {where}; {found.events:,} events were read")
    if found.events:
        lines += _facts(found)
    for one in found.findings:
        where = "" if one.event is None or f"event {one.event:,}" in one.what else f"event {one.event:,}: "
        leads = "" if one.status is Status.INTACT else f"{one.status} - "
        lines.append(f"  {one.code:<16}  {leads}{where}{one.what}")
    return "\n".join(lines)


def _facts(found: Verification) -> list[str]:
    of = f"of {found.ceiling_epsilon:g} (delta {found.claimed_delta:g}, unit: user, for life)"
    counted = (
        f"{found.events:,}: {found.intents:,} intents, {found.commits:,} commits, {found.releases:,} releases, {found.refused:,} refused"
    )
    lines = [
        f"  events            {counted}",
        f"  epsilon spent     {found.epsilon_spent:.4f} {of}",
        *([_CEILING.format(found.ceiling_epsilon)] if found.claim_is == CEILING else []),
        f"  decided by        {_DECIDES[found.decided_by]}",
        f"  from              {found.begun_utc} to {found.ended_utc}",
        f"  head              {found.head_hash}",
    ]
    if found.keys:
        before = f", after {len(found.keys) - 1} others" if len(found.keys) > 1 else ""
        lines.append(f"  key in force      {found.keys[-1]}{before}")
    if found.manifest_lines is not None:
        lines.append(f"  manifest          {found.manifest_lines:,} lines")
    return lines


def recomputation_document(found: Recomputation) -> dict[str, Any]:
    """A recomputation for programs. ``epsilon`` is the claim, null where there is none; ``epsilon_is`` says whether that is what is "spent"
    or the "ceiling"; ``accountants`` holds what each of them said of what is spent.
    """
    return {
        "agree": found.agree,
        "why": found.why,
        "ledgers": [_ledger(one) for one in found.ledgers],
        "persons": plain(found.persons),
        "hypothetical": found.hypothetical,
    }


def _ledger(one: LedgerEpsilons) -> dict[str, Any]:
    three = one.epsilons
    return {
        "domain": one.domain,
        "epsilon": plain(one.claim),
        "epsilon_is": one.claim_is,
        "epsilon_spent": plain(one.spent),
        "delta": one.claimed_delta,
        "ceiling_epsilon": plain(one.ceiling_epsilon),
        "decided_by": one.decided_by,
        "agree": three.agree,
        "why": three.why,
        "accountants": plain(
            {"pld": three.pld, "prv": three.prv, "second_pld": three.second, "rdp": three.rdp, "filter": one.filter_epsilon}
        ),
        "filter_order": one.filter_order,
        "booked_epsilon": one.booked,
        "replace_one": plain(one.replace_one),
        "replace_one_why": one.replace_one_why,
        "steps": one.steps,
        "groups": [{"sampling_rate": q, "noise_multiplier": sigma, "steps": steps} for q, sigma, steps in one.groups],
    }


def recomputation_words(found: Recomputation) -> str:
    """A recomputation for a person."""
    lines = [line for one in found.ledgers for line in _of_ledger(one)]
    lines.append("a person in k domains" + (" like this one" if found.hypothetical else ", the worst of each size"))
    lines += [_of_row(row, named=not found.hypothetical) for row in found.persons]
    if not found.agree:
        lines.append(f"NOT VERIFIED: {found.why}")
    return "\n".join(lines)


def _of_ledger(one: LedgerEpsilons) -> list[str]:
    three = one.epsilons
    claim = f"epsilon {one.claim:.4f} at delta {one.claimed_delta:g}" if one.claim is not None else "NOT VERIFIED"
    if one.claim is None and three.agree:
        claim = "no claim: more is spent than the ceiling that the filter keeps"
    elif one.claim_is == CEILING:
        claim += ", its ceiling: what may ever be known, whatever was chosen after seeing results"
    lines = [f"domain '{one.domain}': {claim}"]
    if three.agree:
        second = f"PRV {three.prv:.4f}" if three.prv is not None else f"PRV no answer, second PLD {three.second:.4f}"
        lines.append(f"  accountants       PLD {three.pld:.4f}, {second}, RDP {three.rdp:.4f}")
    else:
        lines.append(f"  why               {three.why}")
    if one.filter_epsilon is not None and three.agree:
        spent = f"spent so far {one.spent:.4f} at order {one.filter_order:g}"
        lines.append(f"  filter decides    {spent}, which is information and no smaller claim; so is PLD")
    if one.booked:
        lines.append(
            f"  booked            {one.booked:g} for a lost ledger, at delta {one.claimed_delta - one.delta:g}, in the number above"
        )
    swapped = f"no number ({one.replace_one_why})" if one.replace_one is None else f"{one.replace_one:.4f}"
    lines.append(f"  REPLACE_ONE       {swapped}, for people whose passport sits in this domain and whose record changes")
    lines.append(f"  steps             {one.steps:,} in {len(one.groups):,} kinds")
    return lines


def _of_row(row: PersonRow, *, named: bool) -> str:
    epsilon = "NOT VERIFIED" if row.epsilon is None else f"epsilon {row.epsilon:.4f} at delta {row.delta:g}"
    return f"  k = {row.k:<2}            {epsilon}" + (f"  ({', '.join(row.domains)})" if named else "")
