"""What a report says about one domain, taken from its events and its egress manifest: plain values, ready for JSON.

Nothing here judges: `report_status` does. Numbers that JSON cannot hold (infinity) become None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .accountant import epsilon_at_order, epsilon_pld
from .ledger_schema import Event, mechanism_of
from .manifest import LEFT, ManifestReading
from .mechanism import Mechanism

MOST_POINTS = 40
"""Points of the plot that are priced by PLD; between them the line is straight."""
MOST_NOTABLE = 60
_NOTABLE = ("genesis", "schedule", "release", "ceiling", "key", "audit", "migration", "refused", "note")
_Course = list[dict[str, Any]]


def number(value: float | None) -> float | None:
    """A number that JSON can hold: None for infinity and NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def mechanism_facts(one: Mechanism) -> dict[str, Any]:
    """The record of a mechanism in decimal numbers, with the noise that it adds to each coordinate."""
    names = ("kind", "sampling_rate", "noise_multiplier", "clip_norm", "grid", "dimension", "steps")
    return {**{name: getattr(one, name) for name in names}, "noise_standard_deviation": one.noise_scale}


def runs(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Every admitted plan and how far it came, in order."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        said = event.payload
        if event.kind == "schedule" and said["run_id"] not in found:
            found[said["run_id"]] = {
                "run_id": said["run_id"],
                "config_hash": said["config_hash"],
                "mechanism": mechanism_facts(mechanism_of(said["mechanism"])),
                "rounds": said["rounds"],
                "reserve": said["reserve"],
                "permitted_intents": said["permitted_intents"],
                "decided_by": said["decided_by"],
                "admitted_at_event": event.seq,
                "admitted_utc": event.time_utc,
                "ended_early": False,
                "intents": 0,
                "commits": 0,
            }
        elif event.kind == "schedule":
            found[said["run_id"]].update(permitted_intents=said["permitted_intents"], ended_early=True)
        elif event.kind in ("intent", "commit"):
            found[said["run_id"]][f"{event.kind}s"] += 1
    for run in found.values():
        run["lost_attempts"] = run["intents"] - run["commits"]
        run["steps"] = run["intents"] * run["mechanism"]["steps"]
    return list(found.values())


def releases(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Mechanisms outside the runs: popularity, metrics, counts, moments."""
    return [
        {
            "release_id": event.payload["release_id"],
            "purpose": event.payload["purpose"],
            "mechanism": mechanism_facts(mechanism_of(event.payload["mechanism"])),
            "config_hash": event.payload["config_hash"],
            "event": event.seq,
            "time_utc": event.time_utc,
        }
        for event in events
        if event.kind == "release"
    ]


def ceilings(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The ceiling of genesis and every raise: by whom, why, and what was spent then."""
    found = []
    for event in events:
        said = event.payload
        if event.kind not in ("genesis", "ceiling"):
            continue
        first = event.kind == "genesis"
        found.append(
            {
                "event": event.seq,
                "time_utc": event.time_utc,
                "epsilon": number(float.fromhex(said["ceiling_epsilon"])),
                "by": said["set_by"] if first else said["raised_by"],
                "why": "genesis" if first else said["why"],
                "epsilon_spent_then": 0.0 if first else number(float.fromhex(said["epsilon_spent"])),
            }
        )
    return found


def notable(events: Sequence[Event]) -> dict[str, Any]:
    """Events other than intents and commits, the newest `MOST_NOTABLE` of them, and how many of each kind there are."""
    counts: dict[str, int] = {}
    for event in events:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    told = [event for event in events if event.kind in _NOTABLE]
    lines = [{"event": e.seq, "time_utc": e.time_utc, "kind": e.kind, "what": _told(e)} for e in told[-MOST_NOTABLE:]]
    return {"by_kind": counts, "left_out": len(told) - len(lines), "notable": lines}


def _told(event: Event) -> str:
    said = event.payload
    match event.kind:
        case "genesis":
            booked = "" if said.get("booked_epsilon") is None else f"; books epsilon {_hex(said['booked_epsilon'])} of a lost ledger"
            return f"ceiling {_hex(said['ceiling_epsilon'])} at delta {_hex(said['delta'])}, set by {said['set_by']}{booked}"
        case "schedule":
            return f"run {said['run_id']}: {said['permitted_intents']} attempts permitted, decided by {said['decided_by']}"
        case "release":
            return f"{said['purpose']}: {said['release_id']}"
        case "ceiling":
            return f"from {_hex(said['previous_epsilon'])} to {_hex(said['ceiling_epsilon'])} by {said['raised_by']}: {said['why']}"
        case "key":
            return f"{said['old_verify_key'][:16]} gave way to {said['new_verify_key'][:16]}"
        case "audit":
            return f"tier {said['tier']} {said['verdict']}, code {said['code_digest'][:16]}"
        case "migration":
            return f"from format {said['from_format']} to {said['to_format']}: {said['why']}"
        case "refused":
            return f"run {said['run_id']}: asked for {_hex(said['requested'])}, {_hex(said['remaining'])} were left; {said['why']}"
    return str(said["text"])


def _hex(text: str) -> str:
    return f"{float.fromhex(text):.4g}"


def code(events: Iterable[Event]) -> dict[str, Any]:
    """The code that trained, the code that was tested, and the last verdict of each tier on each.

    Returns:
        ``trained``: per digest its version, attempts, first and last event and time, and under ``tests`` the last verdict of tiers 1 and 2
        on that very digest (None where there was none). ``tests``: every verdict in the ledger, oldest first.
    """
    trained: dict[str, dict[str, Any]] = {}
    tests: list[dict[str, Any]] = []
    for event in events:
        said = event.payload
        if event.kind == "intent":
            first = {"first_event": event.seq, "first_utc": event.time_utc, "attempts": 0}
            one = trained.setdefault(
                said["bundle_digest"], {"code_digest": said["bundle_digest"], "code_version": said["code_version"], **first}
            )
            one.update(attempts=one["attempts"] + 1, last_event=event.seq, last_utc=event.time_utc)
        elif event.kind == "audit":
            tests.append(
                {
                    "event": event.seq,
                    "time_utc": event.time_utc,
                    "tier": said["tier"],
                    "verdict": said["verdict"],
                    "code_digest": said["code_digest"],
                    "code_version": said["code_version"],
                    "figures": _figures(said["summary"]),
                    "report_sha256": said["report_sha256"],
                }
            )
    for digest, one in trained.items():
        one["tests"] = {str(tier): _last(t for t in tests if (t["tier"], t["code_digest"]) == (tier, digest)) for tier in (1, 2)}
    return {"trained": list(trained.values()), "tests": tests}


def _last(tests: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    *_, last = [None, *tests]
    return last


def _figures(summary: str) -> dict[str, Any]:
    """The figures that a canary run wrote beside its verdict, flat: "name.part" -> value. A text that is no JSON object stays a text."""
    try:
        values = json.loads(summary)
    except (ValueError, RecursionError):
        return {"summary": summary}
    if not isinstance(values, dict):
        return {"summary": summary}
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), item)
        elif isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
            flat[prefix] = ", ".join(map(str, value)) or "none"
        elif isinstance(value, list):
            for position, item in enumerate(value, 1):
                walk(f"{prefix}.{position}", item)
        else:
            flat[prefix] = number(value) if isinstance(value, float) else value

    walk("", values)
    return flat


def course(events: Sequence[Event], *, adaptive: bool, order: float | None, delta: float, interval: float, booked: float) -> dict[str, Any]:
    """Epsilon spent after each debit, for the plot.

    Args:
        adaptive: the filter decides in this life; its course is the claim, and PLD is shown as information.
        order: Renyi order of the filter.
        delta: of the genesis, without what is booked.
        interval: width of the PLD grid.
        booked: epsilon of a lost ledger, from the first event on.

    Returns:
        ``decides`` and ``information``: lists of {event, time_utc, epsilon}, at most `MOST_POINTS` each; ``complete`` says whether every
        debit is among them. Both empty where a step added no noise.
    """
    debits = [event for event in events if event.kind in ("intent", "release")]
    kept = set(_spread(len(debits), MOST_POINTS))
    by_filter = adaptive and order is not None
    start = {"event": 1, "time_utc": events[0].time_utc, "epsilon": booked}
    decides, information = [start], [start] if by_filter else []
    totals: dict[Mechanism, int] = {}
    for position, event in enumerate(debits):
        one = mechanism_of(event.payload["mechanism"])
        if one.kind == "none":
            return {"decides": [], "information": [], "complete": False}
        totals[one] = totals.get(one, 0) + 1
        if position not in kept:
            continue
        spent = [each.for_steps(each.steps * times) for each, times in totals.items()]
        pld = booked + epsilon_pld(spent, delta, interval=interval)
        where = {"event": event.seq, "time_utc": event.time_utc}
        if by_filter and order is not None:
            decides.append({**where, "epsilon": booked + epsilon_at_order(spent, delta, order)})
            information.append({**where, "epsilon": pld})
        else:
            decides.append({**where, "epsilon": pld})
    return {"decides": decides, "information": information, "complete": len(kept) == len(debits)}


def _spread(count: int, most: int) -> list[int]:
    """Positions 0 .. count - 1, or ``most`` of them, the first and the last included.

    >>> _spread(3, 40), _spread(101, 3)
    ([0, 1, 2], [0, 50, 100])
    """
    return list(range(count)) if count <= most else sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def egress(reading: ManifestReading | None, *, commits: Mapping[str, int] | None) -> dict[str, Any] | None:
    """The egress manifest in summary; None where none was handed over.

    Args:
        commits: hash of every commit -> its event number; None where the ledger does not hold, so that nothing can be compared with it.
    """
    if reading is None:
        return None
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for line in reading.lines:
        left = line.event == LEFT
        key = (line.kind, line.schema or "")
        one = kinds.setdefault(key, {"kind": line.kind, "schema": line.schema, "left": 0, "bytes": 0, "stopped": 0, "why": [], "rules": []})
        one["left" if left else "stopped"] += 1
        one["bytes"] += line.bytes or 0
        reasons = one["why" if left else "rules"]
        if line.why not in reasons:
            reasons.append(line.why)
    named = {line.ledger_event for line in reading.lines if line.event == LEFT and line.ledger_event}
    return {
        "lines": len(reading.lines),
        "left": sum(one["left"] for one in kinds.values()),
        "bytes": sum(one["bytes"] for one in kinds.values()),
        "stopped": sum(one["stopped"] for one in kinds.values()),
        "kinds": sorted(kinds.values(), key=lambda one: (-one["bytes"], one["kind"], one["schema"] or "")),
        "first_utc": reading.lines[0].time_utc if reading.lines else None,
        "last_utc": reading.lines[-1].time_utc if reading.lines else None,
        "unchained_lines": reading.unchained,
        "broken_at_line": reading.broken_at,
        "broken_why": reading.why,
        "torn_last_line": reading.torn,
        "head_hash": reading.head,
        "commits_without_a_line": None if commits is None else sorted(event for digest, event in commits.items() if digest not in named),
        "lines_without_a_commit": None if commits is None else sum(1 for digest in named if digest not in commits),
    }
