"""A real coordinator and two real partners: the ServerApp and the executor are killed in mid-run, and every debit stands once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from client.key_rotation import own_keys
from server.checkpoints import Checkpoints
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from tests.journeys.coordinated import COMMAND, Coordinated, federation, tiny_run

pytestmark = pytest.mark.slow


def folder_of(ours: Coordinated) -> Path:
    (folder,) = ours.home.runs.iterdir()
    return folder


def rounds(folder: Path) -> int:
    path = folder / "rounds.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def every_debit_stands_once(ours: Coordinated) -> None:
    """One plan, a commit for each round, intents beyond them from the reserve, and a chain that holds."""
    for settings in ours.partners.values():
        kinds = [event.kind for event in read_events(settings.ledger_path)]
        assert kinds.count("schedule") == 1
        assert kinds.count("commit") == 3
        assert 3 <= kinds.count("intent") <= 6
        found = verify(settings.ledger_path, key=own_keys(settings).verify_key, receipts=ours.home.receipts)
        assert found.status is Status.INTACT, found.findings


def test_a_run_goes_on_after_its_serverapp_and_its_executor_were_killed(tmp_path: Path, repository: Path) -> None:
    with federation(tmp_path, repository) as ours:
        home, port = ours.home.root, str(ours.home.settings.superlink_port)
        toml = tmp_path / "run.toml"
        toml.write_text(tiny_run(rounds=3, reserve_rounds=3).to_toml())

        watching = subprocess.Popen(
            [*COMMAND, "run", str(home), str(toml), "--wait-for", "all"],
            env=ours.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        ours.wait(lambda: any(ours.home.runs.iterdir()), "the run was not submitted", 60)
        folder = folder_of(ours)
        ours.wait(lambda: ours.status()["runs"][0]["state"] == "running", "no ServerApp began")
        os.kill(watching.pid, signal.SIGINT)  # Ctrl-C ends the watching, not the run
        said, _ = watching.communicate(timeout=30)
        assert watching.returncode == 130
        assert "goes on without being watched" in said
        assert "epsilon at delta 1e-06, unit: user" in said
        assert "is going on" in ours.command("run", home, toml, code=2).stderr  # one at a time

        ours.wait(lambda: rounds(folder) == 1, "round 1 did not end")
        first = (folder / "transfer_layer" / "round-0001.safetensors").read_bytes()
        ours.kill("flwr-serverapp", port)
        ours.wait(lambda: ours.status()["runs"][0]["state"] == "lost", "nobody noticed", 30)

        resuming = subprocess.Popen(
            [*COMMAND, "resume", str(home), "last", "--again", "1"],
            env=ours.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ours.wait(lambda: rounds(folder) >= 2, "round 2 did not end")
        ours.kill("flower-superexec", port)  # and its ServerApp with it; both are started again
        said, _ = resuming.communicate(timeout=600)
        assert resuming.returncode == 0, said + ours.logs()
        assert "submitted again" in said
        assert "round 3 of 3" in said

        assert (folder / "transfer_layer" / "round-0001.safetensors").read_bytes() == first  # a committed round is not computed again
        assert Checkpoints(folder / "transfer_layer").rounds() == [0, 1, 2, 3]
        every_debit_stands_once(ours)
        assert "has ended well" in ours.command("resume", home, "last", code=2).stderr

        ours.command("report", home, "last")
        report = json.loads((folder / "report.json").read_text())
        assert [one["code"] for one in report["incidents"]].count("lost") == 2
        assert len(report["for_k_domains"]) == 2
        assert report["run"]["state"] == "finished"
        assert "<script" not in (folder / "report.html").read_text()

        ours.command("stop", home)
        assert ours.pids(str(home)) == []
    assert ours.pids(str(tmp_path)) == []
