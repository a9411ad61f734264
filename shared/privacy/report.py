"""The privacy officer's report on one or several ledgers: JSON, and one HTML page that needs no network.

The fields are those of NIST SP 800-226, and a superset of tier 3 of the registry of differential privacy deployments. Names and meanings
below are stable; `SCHEMA` grows by one when a meaning changes or a name goes. Numbers that do not exist (an epsilon that the accountants do
not agree on, infinity) are null. Times are UTC, by the partner's clock. Hashes are hex.

============================ =========================================================================================================
format, schema               "isthmus-privacy-report" and `SCHEMA`
generated_utc                when this report was made
status, status_means         WITHIN BUDGET, WITHIN RAISED BUDGET, EXCEEDED or NOT VERIFIED: the worst of the domains' (`report_status`)
plain_words                  paragraphs for an officer and a board member, about all domains together
reasons                      list of {domain, code, event, what, leads_to}; leads_to is a status, or null for a remark
identity                     A. system, version, packages of the machine that made the report, and the fields of `report_about`
deployment                   C. model, parties and what each is trusted with, adversary, number of domains, secure_aggregation
domains                      one record per ledger:
  domain, status, reasons    as above, for this ledger
  holds                      false where the ledger is broken: then nothing it says of itself is repeated here
  plain_words                the same about this domain; empty where there is no number to explain
  guarantee                  B. flavour, unit, neighbours, covers, lifetime, contribution, epsilon (the claim), epsilon_is ("spent" or
                             "ceiling": which number that is), epsilon_means, epsilon_spent, delta, ceiling, genesis_ceiling, ceilings
                             (event, by, why, epsilon_spent_then), remaining, booked_epsilon, private, replace_one_epsilon,
                             replace_one_why, why_no_number
  course                     the plot: decides, information (lists of {event, time_utc, epsilon}), complete, refused (event numbers)
  mechanism                  D. how, released, sensitivity, constants, runs (`report_facts.runs`), releases (`report_facts.releases`)
  accounting                 E. decided_by, decides, filter_order, pld, second, rdp, filter, difference, agree, why, rule, groups, steps,
                             rdp_curve, composition, post_processing
  egress                     what left, by kind and schema, and gaps (`report_facts.egress`); null without a manifest
  code                       G. trained, tests (`report_facts.code`)
  ledger                     G. file, events, intents, commits, releases, refused, head_hash, keys, signed_from_event, complete_to_event,
                             proved_by, receipts, begun_utc, ended_utc, by_kind, notable events
  about                      this domain's own words, by section
persons                      a person in k = 1..K domains: rows of {k, epsilon, delta, domains, agree}, hypothetical, note
unprotected                  F. list of {name, what}
preprocessing                F. as stated, or null
implementation               G. randomness, floating_point, side_channels, keys, tiers
utility                      H. note, and the words of `report_about`
risk                         I. erasure_does, erasure_does_not, resistance, and the words of `report_about`
============================ =========================================================================================================
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, StorageError
from . import report_facts as facts
from . import report_status as verdict
from . import report_words as words
from .budget import CEILING
from .findings import Status
from .report_about import fields_of, read_about, unknown_domains
from .report_domain import Evidence, domain_record

if TYPE_CHECKING:
    from .recompute import Recomputation

FORMAT, SCHEMA = "isthmus-privacy-report", 2
_PACKAGES = ("isthmus", "dp-accounting", "opacus", "numpy", "scipy", "PyNaCl")


def build(
    evidence: Sequence[Evidence], *, about: Mapping[str, Any] | None = None, copies: int = 5, time_limit_s: float = 120.0
) -> dict[str, Any]:
    """Audits every ledger and gathers the fields above.

    Args:
        evidence: one for each domain.
        about: what `report_about.read_about` read.
        copies: with one ledger, the person table is for up to this many domains like it.
        time_limit_s: for the accountant that may take long.

    Raises:
        LedgerError: a file is no ledger at all, or of a newer format.
        AuditError: receipts of another partner, ledgers with different deltas, a manifest that cannot be read.
        ConfigError: nothing to report, or ``about`` speaks of a domain that is not there.
    """
    from .audit import verify
    from .recompute import recompute

    if not evidence:
        raise ConfigError("a report needs at least one ledger")
    told = about or {}
    found = [verify(one.ledger, key=one.key, receipts=one.receipts, manifest=one.manifest) for one in evidence]
    strangers = unknown_domains(told, {one.domain for one in found})
    if strangers:
        raise ConfigError(f"the file of --about speaks of '{strangers[0]}', which none of the ledgers is")
    sound = [one.ledger for one, audit in zip(evidence, found, strict=True) if audit.status is not Status.BROKEN]
    recomputed = recompute(sound, copies=copies, time_limit_s=time_limit_s) if sound else None
    epsilons = dict(zip(sound, recomputed.ledgers, strict=True)) if recomputed else {}
    domains = [domain_record(one, audit, epsilons.get(one.ledger), about=told) for one, audit in zip(evidence, found, strict=True)]
    whole = not any(one.status in (Status.BROKEN, Status.ROLLED_BACK) for one in found)
    return assemble(domains, recomputed if whole else None, about=told)


def render(report: Mapping[str, Any]) -> str:
    """The page, from what `build` made (or what was read back from its JSON)."""
    from .report_page import page

    return page(report)


def write(
    evidence: Sequence[Evidence],
    *,
    out: Path,
    json_out: Path | None = None,
    about: Path | None = None,
    copies: int = 5,
    time_limit_s: float = 120.0,
) -> dict[str, Any]:
    """Makes the report, writes the page and, where asked for, the JSON; each appears whole or not at all.

    Returns:
        What `build` made.

    Raises:
        StorageError: when a file cannot be written.
        LedgerError, AuditError, ConfigError: as `build` and `report_about.read_about`.
    """
    report = build(evidence, about=read_about(about), copies=copies, time_limit_s=time_limit_s)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    html = render(report)
    if json_out is not None:
        _replace(json_out, text)
    _replace(out, html)
    return report


def assemble(domains: Sequence[Mapping[str, Any]], recomputed: Recomputation | None, *, about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole record from those of the domains; ``recomputed`` is None where a ledger does not hold, so that no sum has a meaning."""
    reasons = [one for domain in domains for one in domain["reasons"]]
    reasons += verdict.from_persons(recomputed.persons) if recomputed else []
    status = verdict.status_of(reasons)
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "generated_utc": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "status": str(status),
        "status_means": verdict.MEANS[status],
        "reasons": sorted(reasons, key=verdict.weight),
        "plain_words": _plain_words(domains, recomputed),
        "identity": {
            "system": "isthmus: federated cross-domain recommendation",
            "packages_of_the_reporting_machine": {name: _version(name) for name in _PACKAGES},
            **fields_of(about, None, "identity"),
        },
        "deployment": {
            "model": words.MODEL,
            "parties": [{"who": who, "does": does, "trusted_with": trusted} for who, does, trusted in words.PARTIES],
            "adversary": words.ADVERSARY,
            "domains_in_this_report": len(domains),
            "secure_aggregation": words.SECURE_AGGREGATION,
        },
        "domains": list(domains),
        "persons": _persons(recomputed),
        "unprotected": [{"name": name, "what": what} for name, what in words.UNPROTECTED],
        "preprocessing": fields_of(about, None, "unprotected")["preprocessing"],
        "implementation": {
            "randomness": words.RANDOMNESS,
            "floating_point": words.FLOATING_POINT,
            "side_channels": words.SIDE_CHANNELS,
            "keys": words.KEYS,
            "tiers": [{"tier": tier, "name": name, "shows": shows} for tier, name, shows in words.TIERS],
        },
        "utility": {"note": words.UTILITY, **fields_of(about, None, "utility")},
        "risk": {
            "erasure_does": list(words.ERASURE_DOES),
            "erasure_does_not": list(words.ERASURE_DOES_NOT),
            "resistance_by_the_bound": words.RESISTANCE,
            **fields_of(about, None, "risk"),
        },
    }


def _plain_words(domains: Sequence[Mapping[str, Any]], recomputed: Recomputation | None) -> list[str]:
    if len(domains) == 1:
        return list(domains[0]["plain_words"])
    last = recomputed.persons[-1] if recomputed is not None else None
    told = facts.number(last.epsilon) if last is not None and last.agree else None
    return words.plain_words_together([one["domain"] for one in domains], epsilon=told, delta=last.delta if last is not None else 0.0)


def _persons(recomputed: Recomputation | None) -> dict[str, Any]:
    """A person in k domains is covered by the composition over those k, never by the maximum."""
    if recomputed is None:
        return {"rows": [], "hypothetical": False, "note": "Not given: at least one of the ledgers does not hold, or is not the newest."}
    rows = [
        {
            "k": row.k,
            "epsilon": facts.number(row.epsilon) if row.agree else None,
            "delta": row.delta,
            "domains": list(row.domains),
            "agree": row.agree,
        }
        for row in recomputed.persons
    ]
    note = words.PERSONS_LIKE_THIS if recomputed.hypothetical else words.PERSONS_OF_THESE
    if any(one.claim_is == CEILING for one in recomputed.ledgers):
        note += " " + words.PERSONS_BY_CEILING
    return {"rows": rows, "hypothetical": recomputed.hypothetical, "note": note}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    """Writes beside the file, forces it to the disk, then takes its name."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}", do="Make room, or choose another place with --out."
        ) from None
