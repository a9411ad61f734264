"""A run that is killed in every place, and resumed each time, ends where an uninterrupted one does, and has forgotten nothing it spent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from shared.privacy.ledger import read_events
from simulations.scenario import run_scenario
from tests.journeys.tiny_world import DOMAINS, NO_NOISE, farthest, layer, metrics, tiny

pytestmark = pytest.mark.journey

ROOT = Path(__file__).parents[2]
ROUNDS = 4
HOW: dict[str, Any] = {"name": "demo", "seed": 3, "overrides": tiny(privacy__rounds=ROUNDS, **NO_NOISE)}


def kill(out: Path, at: str, domain: str, round: int, **how: Any) -> None:
    """Runs a child process until it kills itself there."""
    task = json.dumps({"at": at, "domain": domain, "round": round, "how": {**HOW, "out": str(out), **how}})
    child = [sys.executable, "-W", "ignore", "-m", "tests.journeys.run_until_killed", task]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def events(run: Path, kind: str) -> dict[str, Counter[int]]:
    """Domain -> round -> how many events of a kind its ledger holds."""
    return {
        domain: Counter(event.payload.get("round", 0) for event in read_events(run / "ledgers" / f"{domain}.sqlite") if event.kind == kind)
        for domain in DOMAINS
    }


def test_a_run_killed_in_every_place_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, out = run_scenario(**HOW, out=tmp_path / "whole"), tmp_path / "killed"

    kill(out, "admit", "films", 0)
    [run] = out.iterdir()
    assert events(run, "schedule") == {"books": {0: 1}, "films": {0: 1}, "music": {}}
    intents = {domain: Counter[int]() for domain in DOMAINS}

    kill(out, "intent", "music", 1, resume=str(run))  # books and films have committed; their replies are lost
    for domain in DOMAINS:
        intents[domain][1] += 1
    assert events(run, "intent") == intents
    assert events(run, "commit") == {"books": {1: 1}, "films": {1: 1}, "music": {}}

    kill(out, "state", "films", 2, resume=str(run))
    intents["music"][1] += 1  # the lost attempt is debited again; nobody else computes round 1 anew
    intents["books"][2] += 1
    intents["films"][2] += 1
    assert events(run, "intent") == intents
    assert events(run, "commit")["films"] == {1: 1}

    kill(out, "commit", "music", 3, resume=str(run))
    intents["music"][2] += 1  # films commits round 2 from its state, without an intent
    for domain in DOMAINS:
        intents[domain][3] += 1
    assert events(run, "intent") == intents
    assert events(run, "commit") == {domain: {1: 1, 2: 1, 3: 1} for domain in DOMAINS}

    kill(out, "line", "", 3, resume=str(run))  # all three answer round 3 from disk
    kill(out, "checkpoint", "", 3, resume=str(run))
    assert events(run, "intent") == intents
    assert len((run / "rounds.jsonl").read_text().splitlines()) == 3

    kill(out, "control", "films", 0, resume=str(run))
    for domain in DOMAINS:
        intents[domain][4] += 1
    assert events(run, "intent") == intents

    assert run_scenario("demo", out=out, resume=run) == run
    assert events(run, "intent") == intents
    assert events(run, "commit") == {domain: {1: 1, 2: 1, 3: 1, 4: 1} for domain in DOMAINS}
    assert events(run, "schedule") == {domain: {0: 1} for domain in DOMAINS}

    difference = farthest(layer(whole), layer(run))
    print(f"7 kills; largest difference of a coordinate: {difference:.1e}")
    assert difference <= 1e-6
    assert [json.loads(line)["round"] for line in (run / "rounds.jsonl").read_text().splitlines()] == [1, 2, 3, 4]

    one, other = metrics(whole), metrics(run)
    assert [figure["methods"] for figure in one["directions"]] == [figure["methods"] for figure in other["directions"]]
    assert {domain: spent["events"] for domain, spent in other["privacy"].items()} == {"books": 4, "films": 4, "music": 5}
    for domain in DOMAINS:
        more = other["privacy"][domain]["epsilon"] - one["privacy"][domain]["epsilon"]
        assert more > 0.1 if domain == "music" else more == 0
    print("epsilon:", {d: [round(m["privacy"][d]["epsilon"], 3) for m in (one, other)] for d in DOMAINS})
