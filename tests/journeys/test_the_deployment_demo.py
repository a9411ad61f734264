"""`make deployment-demo` with few people and rounds: the commands, programs and processes are those of a real deployment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigError
from simulations.deployment_demo import PARTNERS, check_programs
from simulations.deployment_network import processes_of
from tests.journeys.tiny_world import TINY

STEPS = [
    "network",
    "data",
    "coordinator",
    "enrolment",
    "bundle",
    "check",
    "nodes",
    "from outside",
    "rounds",
    "status, report",
    "stop",
    "audit",
]


def demonstrated(folder: Path, repository: Path, *options: str) -> dict[str, Any]:
    """What the demo wrote down about itself; nothing of it may run any more."""
    try:
        check_programs()
    except ConfigError as error:
        pytest.skip(f"the demo cannot run here: {error}")
    changes = [f"--set={key}={value}" for key, value in TINY.items() if key != "privacy.rounds"]
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "simulations.deployment_demo",
            str(folder / "demo"),
            *options,
            *changes,
            "--json",
            str(folder / "said.json"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert "all of it" in done.stdout
    assert processes_of(folder) == []
    said: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return said


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_three_partners_train_two_rounds_and_each_ledger_is_intact(tmp_path: Path, repository: Path) -> None:
    said = demonstrated(tmp_path, repository, "--rounds=2")

    assert [step["name"] for step in said["steps"]] == STEPS
    assert (said["run"]["state"], said["run"]["round"], said["run"]["domains"]) == ("finished", 2, list(PARTNERS))
    assert said["run"]["refused"] == {}
    assert all(0 < said["run"]["epsilon"][partner] < 8 for partner in PARTNERS)
    assert said["steps"][-1]["what"] == "three ledgers intact and within budget; the officer's page says NOT VERIFIED"  # no canary was run
    assert list((tmp_path / "demo" / "coordinator" / "runs").glob("*/report.html"))


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_without_noise_a_deployment_and_one_process_make_the_same_layer(tmp_path: Path, repository: Path) -> None:
    said = demonstrated(tmp_path, repository, "--rounds=1", "--test-build", "--loopback")

    assert said["apart"] is False
    assert [step["name"] for step in said["steps"]] == [*STEPS, "in one process"]
    assert said["steps"][-1]["what"].startswith("the same transfer layer up to ")  # and it has to have moved: the demo looks
