"""A ledger of 100,000 signed events, as an auditor reads it: seconds, and memory against a ledger a tenth as long.

Each command runs in a process of its own, imports included. `recompute` is timed with PLD, RDP and the second PLD; PRV has a limit of its
own and is not asked. On a machine that does other things too, look at the seconds of CPU: verify has two threads to spread them over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shared.privacy.accountant import epsilon_pld, filter_order
from shared.privacy.budget import Budget
from shared.privacy.ledger_beginning import next_event
from shared.privacy.ledger_database import write_whole
from shared.privacy.ledger_schema import FORMAT, NO_HASH, UNIT, Event
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import SigningPair

VERIFY = "verify 100,000 events, seconds"
RECOMPUTE = "recompute 100,000 events by PLD and RDP, seconds"
MEMORY = "memory of verify, 100,000 events against 10,000"
AIMS = {VERIFY: ("<=", 10.0), RECOMPUTE: ("<=", 5.0), MEMORY: ("<=", 1.25)}

_KEYS = SigningPair(b"bookshop" * 4)
_ONE = Mechanism(kind="poisson_gaussian", sampling_rate=0.01, noise_multiplier=10.0, clip_norm=0.5, grid=0.0, dimension=1000, steps=1)
_BUDGET = Budget.of(8.0, 1e-5)
_TIMED = (
    "import json, resource, sys, time\n"
    "from pathlib import Path\n"
    "start = time.perf_counter()\n"
    "if sys.argv[1] == 'verify':\n"
    "    from shared.privacy.audit import verify\n"
    "    found = verify(Path(sys.argv[2]), key=sys.argv[3])\n"
    "    assert found.status == 'INTACT' and found.events == int(sys.argv[4]), found\n"
    "else:\n"
    "    from shared.privacy.recompute import recompute\n"
    "    found = recompute([Path(sys.argv[2])], copies=1, time_limit_s=0.0)\n"
    "    assert found.agree, found.why\n"
    "memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
    "print(json.dumps([time.perf_counter() - start, memory, time.process_time()]))\n"
)


def _events(rounds: int) -> Iterator[Event]:
    """Genesis, one schedule, then an intent and a commit for each round."""
    terms = {"ceiling_epsilon": _BUDGET.ceiling_epsilon.hex(), "delta": _BUDGET.delta.hex(), "pld_interval": _BUDGET.interval.hex()}
    begun = {"format": FORMAT, "unit": UNIT, "domain": "books", "set_by": "the bookshop", "private": True, "verify_key": _KEYS.verify_key}
    lost = {"booked_epsilon": None, "booked_delta": None, "last_receipt": None}
    event = next_event("genesis", {**begun, **terms, **lost}, 0, NO_HASH, _KEYS)
    yield event
    what = {"run_id": "autumn", "config_hash": "c" * 64, "mechanism": _ONE.to_record()}
    reserved = epsilon_pld([_ONE.for_steps(rounds)], _BUDGET.delta, interval=_BUDGET.interval)
    order = filter_order(_ONE, _BUDGET.ceiling_epsilon, _BUDGET.delta)
    plan = {"rounds": rounds, "reserve": 0, "permitted_intents": rounds, "decided_by": "pld", "plan_signature": None}
    numbers = {"epsilon_reserved": reserved.hex(), "filter_order": order.hex()}
    event = next_event("schedule", {**what, **plan, **numbers}, event.seq, event.hash, _KEYS)
    yield event
    for number in range(1, rounds + 1):
        attempt = {"round": number, "attempt": 1}
        event = next_event("intent", {**what, **attempt, "bundle_digest": "b" * 64, "code_version": "0"}, event.seq, event.hash, _KEYS)
        yield event
        event = next_event("commit", {"run_id": "autumn", **attempt, "payload_sha256": "d" * 64}, event.seq, event.hash, _KEYS)
        yield event


def _timed(command: str, path: Path, events: int) -> tuple[float, float, float]:
    """Seconds, the most memory the process held, in MiB, and seconds of CPU."""
    arguments = [sys.executable, "-c", _TIMED, command, str(path), _KEYS.verify_key, str(events)]
    root = Path(__file__).parents[2]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    seconds, memory, cpu_s = json.loads(done.stdout)
    return seconds, memory, cpu_s


def run(quick: bool = True) -> dict[str, float]:
    many = 10_000 if quick else 100_000
    few = many // 10
    with tempfile.TemporaryDirectory() as folder:
        long, short = Path(folder) / "long.sqlite", Path(folder) / "short.sqlite"
        write_whole(long, _events(many // 2 - 1))
        write_whole(short, _events(few // 2 - 1))
        verify_s, verify_mib, verify_cpu_s = _timed("verify", long, many)
        recompute_s, recompute_mib, recompute_cpu_s = _timed("recompute", long, many)
        short_mib = _timed("verify", short, few)[1]
    return {
        VERIFY: verify_s,
        RECOMPUTE: recompute_s,
        MEMORY: verify_mib / short_mib,
        "verify, seconds of CPU": verify_cpu_s,
        "recompute, seconds of CPU": recompute_cpu_s,
        "memory of verify, MiB": verify_mib,
        "memory of recompute, MiB": recompute_mib,
    }
