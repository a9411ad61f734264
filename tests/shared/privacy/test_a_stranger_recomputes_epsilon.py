"""The ledger file alone, SQLite, JSON, SHA-256 and dp-accounting give the epsilon we print; no line of ours is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.privacy.accountant import epsilon_at_order, epsilon_pld
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism

STRANGER = r"""
import hashlib, json, sqlite3, sys
import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

def number(text):
    return float.fromhex(text)

previous, genesis, runs, order, adaptive, steps = "0" * 64, None, set(), None, False, {}
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
rows = database.execute("SELECT seq, kind, time_utc, payload, prev_hash, hash FROM events ORDER BY seq")
for at, (seq, kind, time_utc, payload, prev_hash, digest) in enumerate(rows, start=1):
    chained = json.dumps(["isthmus-ledger-1", seq, kind, time_utc, payload, prev_hash], separators=(",", ":"))
    assert (seq, prev_hash, digest) == (at, previous, hashlib.sha256(chained.encode()).hexdigest()), "the chain is broken"
    previous, said = digest, json.loads(payload)
    if kind == "genesis":
        genesis = said
    elif kind == "schedule":
        runs.add(said["run_id"])
        order = order or number(said["filter_order"])
    elif kind in ("ceiling", "release"):
        adaptive = True
    if kind in ("intent", "release"):
        what = said["mechanism"]
        key = (number(what["sampling_rate"]), number(what["noise_multiplier"]))
        steps[key] = steps.get(key, 0) + what["steps"]

def epsilon(accountant):
    for (q, sigma), n in sorted(steps.items()):
        accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma)), n)
    return accountant.get_epsilon(number(genesis["delta"]))

pld = epsilon(PLDAccountant(value_discretization_interval=number(genesis["pld_interval"])))
decides = epsilon(RdpAccountant(orders=[order])) if adaptive or len(runs) > 1 else pld
assert not any(name.split(".")[0] == "shared" for name in sys.modules)
print(json.dumps({"pld": pld, "decides": decides, "ceiling": number(genesis["ceiling_epsilon"])}))
"""


def ask_a_stranger(path: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-P", "-c", STRANGER, str(path)], capture_output=True, text=True, check=True, cwd=path.parent)
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def test_a_stranger_gets_the_same_epsilon_from_the_file_alone(
    new_ledger: Callable[..., Ledger], path: Path, admit: Callable[..., None], intend: Callable[..., int], do_round: Callable[..., None]
) -> None:
    with new_ledger() as ledger:
        admit(ledger, rounds=20, reserve=2)
        intend(ledger, 1)  # lost, and spent
        for round in range(1, 20):
            do_round(ledger, round)
        printed = ledger.epsilon_spent()
    answer = ask_a_stranger(path)
    assert answer["pld"] == answer["decides"] == printed == pytest.approx(4.766, abs=1e-3)  # 20 intents of 10 steps
    assert answer["ceiling"] == 8.0


def test_a_stranger_gets_the_same_epsilon_after_several_runs(
    new_ledger: Callable[..., Ledger],
    path: Path,
    admit: Callable[..., None],
    do_round: Callable[..., None],
    gaussian: Callable[..., Mechanism],
) -> None:
    other = gaussian(noise_multiplier=1.7, sampling_rate=0.03)
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
        admit(ledger, run_id="winter", mechanism=other)
        do_round(ledger, 1, run_id="winter", mechanism=other)
        printed, order, events = ledger.epsilon_spent(), ledger.filter_order, ledger.spent_events()
    answer = ask_a_stranger(path)
    assert order is not None
    assert answer["decides"] == printed == epsilon_at_order(events, 1e-5, order)
    assert answer["pld"] == epsilon_pld(events, 1e-5) < printed
