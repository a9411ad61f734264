"""The report of one run: what was spent, what was brought, and what went wrong, as JSON and as one page that needs no network.

Everything comes from the run folder and from files that partners handed over; nobody is asked. What a domain spent is what its receipts
say: its ledger decides, and `isthmus-audit` checks that one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.config import RunConfig
from shared.errors import DataError, FederationError
from shared.privacy.receipts import SignedReceipt

from . import journal
from .app import RUN_FILE
from .checkpoints import Checkpoints, replace_file
from .home import Home
from .journal import Journal
from .privacy_overview import overview
from .round_log import RoundLog
from .run_record import RunRecord
from .runs import status

SCHEMA = "isthmus-run-report-1"
_RELEASE_FORMAT = "isthmus-release-1"
_SHOWN_PURPOSES = ("metric", "count")


def build(home: Home, folder: Path, releases: Sequence[Path] = (), *, now: datetime | None = None) -> dict[str, Any]:
    """Everything that the page shows, as plain values; infinite numbers are null.

    Args:
        releases: files of `isthmus-client release` that partners handed over: the only utility that a coordinator ever learns.
    Raises:
        RunFolderError: it is no run folder.
        DataError: a release is none, or of a domain that did not take part.
    """
    record, config = RunRecord.read(folder), RunConfig.from_toml((folder / RUN_FILE).read_text(encoding="utf-8"))
    lines, rounds, ended = Journal(folder).read(), RoundLog(folder / "rounds.jsonl").read(), status(folder)
    receipts, final = _receipts(folder), _final(folder)
    spent = overview(receipts, config.privacy.delta)
    ceilings = _ceilings(home)
    refusing = (one["domain"] for line in rounds for one in line["refused"])
    known = sorted({*receipts, *final.get("domains", ()), *ceilings, *refusing, *journal.left_out(lines)})
    return {
        "schema": SCHEMA,
        "generated_utc": (now or datetime.now(UTC)).isoformat(timespec="seconds"),
        "run": {
            "name": folder.name,
            "run_id": _run_id(folder),
            "state": str(ended.state),
            "rounds": ended.round,
            "rounds_planned": config.privacy.rounds,
            "reserve_rounds": config.privacy.reserve_rounds,
            "private": config.privacy.private,
            "epsilon_target": config.privacy.epsilon if config.privacy.epsilon < float("inf") else None,
            "delta": config.privacy.delta,
            "noise_multiplier": config.privacy.noise_multiplier,
            "config_hash": config.config_hash,
            "bundle_digest": record.bundle_digest,
            "layer_sha256": final.get("layer_sha256"),
            "attempts": [{"submitted_utc": one.submitted_utc, "stopped_utc": one.stopped_utc} for one in record.attempts],
            "seconds_in_rounds": round(sum(line["seconds"] for line in rounds), 1),
        },
        "domains": [_domain(domain, spent.to_json(), rounds, final, ceilings, lines) for domain in known],
        "for_k_domains": spent.to_json()["for_k_domains"],
        "for_k_domains_at_least": list(spent.at_least),
        "rounds": rounds,
        "incidents": incidents(lines, rounds),
        "utility": [_release(path, known) for path in releases],
    }


def write(document: Mapping[str, Any], page: Path, json_file: Path) -> None:
    """Writes page and JSON, each as a whole.

    Raises:
        StorageError: they cannot be written.
    """
    from .report_page import render

    replace_file(json_file, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
    replace_file(page, render(document).encode())


def incidents(lines: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What was not as it should be, in the order in which it happened; refusals by code, as admission and clients gave them."""
    found: list[dict[str, str]] = []
    open_since = ""
    for line in lines:
        time = str(line.get("time", ""))
        if line["event"] == journal.BEGUN:
            if open_since:
                found.append({"time": open_since, "code": "lost", "what": "the ServerApp that began here was gone without a word"})
            open_since = time
        elif line["event"] == journal.NOTE:
            found.append({"time": time, "code": _code(str(line.get("text", ""))), "what": str(line.get("text", ""))})
        elif line["event"] in (journal.FINISHED, journal.FAILED):
            open_since = ""
            if line["event"] == journal.FAILED:
                found.append({"time": time, "code": str(line.get("kind")), "what": str(line.get("what"))})
    repeated = [one for one in rounds if one["attempts"] > 1]
    found += [{"time": "", "code": "repeated", "what": f"round {one['round']} was asked for {one['attempts']} times"} for one in repeated]
    return found


def _code(text: str) -> str:
    """The code in brackets at the end of a note of the coordinator.

    >>> _code("hello: films is left out (refused-range)"), _code("a checkpoint is damaged")
    ('refused-range', 'note')
    """
    _, bracket, rest = text.rpartition("(")
    return rest[:-1] if bracket and rest.endswith(")") else "note"


def _domain(
    domain: str,
    spent: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    final: Mapping[str, Any],
    ceilings: Mapping[str, float | None],
    lines: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    refused: dict[str, int] = {}
    for code in (one["code"] for line in rounds for one in line["refused"] if one["domain"] == domain):
        refused[code] = refused.get(code, 0) + 1
    missing = {one["domain"]: one["code"] for one in final.get("not_delivered", ())}
    took_part = domain in final.get("domains", ())
    return {
        "domain": domain,
        "answered": sum(domain in line["replies"] for line in rounds),
        "refused": refused,
        "left_out": journal.left_out(lines).get(domain),
        "delivered": missing.get(domain, "yes" if took_part else None),
        "epsilon": None,
        "events": 0,
        **{key: value for key, value in spent["domains"].get(domain, {}).items() if key != "explained"},
        "ceiling": ceilings.get(domain),
        "bytes": final.get("bytes", {}).get(domain, {"up": 0, "down": 0}),
    }


def _receipts(folder: Path) -> dict[str, SignedReceipt]:
    """The last receipt of each domain in this run: those of its newest checkpoint."""
    try:
        checkpoint, _ = Checkpoints(folder / "transfer_layer").newest()
    except FederationError:
        return {}
    return checkpoint.receipts


def _final(folder: Path) -> dict[str, Any]:
    return _json(folder / "federation.json")


def _run_id(folder: Path) -> str | None:
    found = _json(folder / "run_id.json").get("run_id")
    return None if found is None else str(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _ceilings(home: Home) -> dict[str, float | None]:
    from .enrolment import listed

    found = {one.domain: one.agreement.ceiling_epsilon for one in listed(home)}
    return {domain: ceiling if ceiling < float("inf") else None for domain, ceiling in found.items()}


def _release(path: Path, known: Sequence[str]) -> dict[str, Any]:
    try:
        if path.stat().st_size > 1 << 20:
            raise ValueError
        value = json.loads(path.read_bytes())
        if value["format"] != _RELEASE_FORMAT or value["purpose"] not in _SHOWN_PURPOSES:
            raise ValueError
        figures = {str(name): float(one) for name, one in dict(value["values"]).items() if type(one) in (int, float)}
        found = {
            "domain": str(value["domain"]),
            "purpose": str(value["purpose"]),
            "private": bool(value["private"]),
            "values": figures,
            "noise_standard_deviation": float(value["mechanism"]["noise_standard_deviation"]),
            "epsilon_of_this_release": float(value["epsilon_of_this_release"]),
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{path} is no release of a metric or a count", do="Ask for a file of isthmus-client release metric.") from None
    if found["domain"] not in known:
        raise DataError(f"{path} is of a domain that is not part of this run", do="Leave it out.")
    return found
