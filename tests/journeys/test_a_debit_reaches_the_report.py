"""What is printed is what the ledger files add up to, over one run and over several; a run above the ceiling trains nothing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from shared.errors import BudgetExhausted
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.receipts import read_receipts
from simulations.scenario import run_scenario
from tests.journeys.tiny_world import DOMAINS, metrics, tiny

pytestmark = pytest.mark.journey

ROOT = Path(__file__).parents[2]
OVERRIDES = tiny(ceiling__epsilon=3.0)
Events = list[tuple[str, dict[str, Any]]]


def read(ledgers: Path, domain: str) -> Events:
    """Kind and payload of every event, without a line of ours."""
    database = sqlite3.connect(f"file:{ledgers / domain}.sqlite?mode=ro", uri=True)
    try:
        return [(kind, json.loads(payload)) for kind, payload in database.execute("SELECT kind, payload FROM events ORDER BY seq")]
    finally:
        database.close()


def kinds(events: Events) -> list[str]:
    return [kind for kind, _ in events]


def recomputed(events: Events, accountant: PLDAccountant | RdpAccountant) -> float:
    """Epsilon of all intents by one accountant of dp-accounting."""
    for kind, said in events:
        if kind == "intent":
            mechanism = said["mechanism"]
            assert mechanism["kind"] == "poisson_gaussian"
            step = dp_accounting.GaussianDpEvent(float.fromhex(mechanism["noise_multiplier"]))
            accountant.compose(dp_accounting.PoissonSampledDpEvent(float.fromhex(mechanism["sampling_rate"]), step), mechanism["steps"])
    return accountant.get_epsilon(float.fromhex(events[0][1]["delta"]))


def pld(events: Events) -> float:
    return recomputed(events, PLDAccountant(value_discretization_interval=1e-4))


def rdp(events: Events) -> float:
    """By the one order that the first schedule recorded."""
    [order] = {said["filter_order"] for kind, said in events if kind == "schedule"}
    return recomputed(events, RdpAccountant(orders=[float.fromhex(order)]))


def run(tmp_path: Path, seed: int) -> Path:
    return run_scenario("demo", out=tmp_path / "runs", seed=seed, epsilon=2.0, ledgers=tmp_path / "ledgers", overrides=OVERRIDES)


def test_two_runs_add_up_and_a_third_one_trains_nothing(tmp_path: Path) -> None:
    ledgers = tmp_path / "ledgers"
    first = metrics(run(tmp_path, 0))["privacy"]
    pld_decides(ledgers, first)
    folder = run(tmp_path, 1)
    second = metrics(folder)["privacy"]
    the_filter_decides(ledgers, second)
    for domain in DOMAINS:
        assert second[domain]["epsilon"] > pld(read(ledgers, domain)) > first[domain]["epsilon"]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [(line["replies"], line["refused"]) for line in lines] == [(list(DOMAINS), [])] * 2  # the receipts of both runs were accepted
    assert lines[-1]["epsilon"] == {domain: second[domain]["epsilon"] for domain in DOMAINS}
    kept = read_receipts(ledgers / "receipts.json")  # beside the ledgers, because it has to outlive each run
    assert [(domain, each.holds(), each.count_of_intents) for domain, each in kept.items()] == [(domain, True, 4) for domain in DOMAINS]
    assert {domain: each.head_hash for domain, each in kept.items()} == {d: read_events(ledgers / f"{d}.sqlite")[-1].hash for d in DOMAINS}
    print({number: {d: round(spent[d]["epsilon"], 4) for d in DOMAINS} for number, spent in ((1, first), (2, second))})
    a_third_run_is_refused(tmp_path)
    and_so_is_the_command(tmp_path)


def pld_decides(ledgers: Path, printed: dict[str, Any]) -> None:
    """After the first run: its whole schedule was reserved, and what was not needed is not spent."""
    for domain in DOMAINS:
        events, said = read(ledgers, domain), printed[domain]
        assert kinds(events) == ["genesis", "schedule", *["intent", "commit"] * 2]
        assert events[1][1]["decided_by"] == "pld"
        assert said["epsilon"] == pytest.approx(pld(events), abs=2e-3)
        assert said["epsilon"] < 2.0
        assert (said["ceiling"], said["delta"], said["events"]) == (3.0, 1e-6, 2)


def the_filter_decides(ledgers: Path, printed: dict[str, Any]) -> None:
    """After the second run: everything in the ledger counts, at the order that the first schedule recorded."""
    for domain in DOMAINS:
        events, said = read(ledgers, domain), printed[domain]
        assert kinds(events) == ["genesis", *["schedule", "intent", "commit", "intent", "commit"] * 2]
        assert [plan["decided_by"] for kind, plan in events if kind == "schedule"] == ["pld", "rdp-filter"]
        assert said["epsilon"] == pytest.approx(rdp(events), abs=1e-9)
        assert said["pld"] == pytest.approx(pld(events), abs=2e-3)
        with Ledger.open(ledgers / f"{domain}.sqlite", read_only=True) as ledger:
            assert ledger.adaptive


def a_third_run_is_refused(tmp_path: Path) -> None:
    ledgers = tmp_path / "ledgers"
    before = {domain: read(ledgers, domain) for domain in DOMAINS}
    with pytest.raises(BudgetExhausted) as caught:
        run(tmp_path, 2)
    error = caught.value
    assert (error.exit_code, error.ceiling, error.delta) == (10, 3.0, 1e-6)
    assert error.requested > error.remaining > 0
    assert "books" in error.what
    assert "ceiling" in error.do
    print(error)
    for domain in DOMAINS:
        events = read(ledgers, domain)
        assert events[:-1] == before[domain]
        kind, said = events[-1]
        assert (kind, said["round"], said["intents"]) == ("refused", 0, 3)
        assert (float.fromhex(said["requested"]), float.fromhex(said["remaining"])) == (error.requested, error.remaining)
    [stopped] = [path for path in (tmp_path / "runs").iterdir() if not (path / "metrics.json").exists()]
    assert list(stopped.rglob("state")) == []
    assert list((stopped / "transfer_layer").iterdir()) == []


def and_so_is_the_command(tmp_path: Path) -> None:
    """In a process of its own: exit code 10, one JSON document, no traceback."""
    given = [word for key, value in OVERRIDES.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "simulations.cli", "run", "demo", "--json", "--epsilon", "2", "--seed", "3"]
    done = subprocess.run(
        [*command, "--ledgers", str(tmp_path / "ledgers"), "--out", str(tmp_path / "runs"), *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 10, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "remaining 0.48" in done.stderr
    said = json.loads(done.stdout)["error"]
    assert (said["kind"], said["exit_code"]) == ("BudgetExhausted", 10)
    for domain in DOMAINS:
        assert kinds(read(tmp_path / "ledgers", domain)).count("intent") == 4
