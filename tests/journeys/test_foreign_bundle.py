"""Code that a partner did not allow does not run there: tried with real bundles on a real SuperLink and SuperNode."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import pytest

from client.allowed import AllowList
from shared import bundle
from tests.journeys.guarded_loopback import Federation, federation, write_app

pytestmark = pytest.mark.journey

INVALID_FAB, LOAD_FAILED = 7, 1
FIXED = {"code": LOAD_FAILED, "reason": "The app of this node could not be started."}


def allow(ours: Federation, digest: str, *, allowed: bool = True) -> None:
    AllowList(ours.home / "allowed.json").decide(digest, allowed=allowed, by="A. Officer")


def executor_of(ours: Federation) -> int:
    """Process id of the guard's executor."""
    guard = ours.processes["supernode"].pid
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == guard and b"executor" in (path / "cmdline").read_bytes():
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("the guard has no executor")


def test_no_line_of_a_foreign_bundle_runs_and_an_allowed_one_does(tmp_path: Path) -> None:
    ours_app = write_app(tmp_path / "ours", "ours")
    same_name = write_app(tmp_path / "same_name", "same-name", body="# the same project, name and version")
    other = write_app(tmp_path / "other", "other", project="other")
    broken = write_app(tmp_path / "broken", "broken", body="raise ImportError('a secret of this house')")
    digests = {app.name: bundle.build(app).digest for app in (ours_app, same_name, other, broken)}
    assert len(set(digests.values())) == 4

    with federation(tmp_path) as ours:
        allow(ours, digests["ours"])
        allow(ours, digests["broken"])
        for app in (other, same_name):  # no line of either runs, and the server learns that it was refused, and no more
            assert ours.submit(app) == [{"code": INVALID_FAB, "reason": "The FAB could not be verified."}]
            assert ours.markers == set()
        assert [line["digest"] for line in ours.refused()] == [digests["other"], digests["same_name"]]
        assert all(line["bytes"] > 0 and line["run_id"].isdigit() and line["time"].endswith("+00:00") for line in ours.refused())
        assert stat.S_IMODE((ours.home / "refused.jsonl").stat().st_mode) == 0o600
        assert f"{digests['other']} is not on the allow-list" in ours.log("supernode")
        assert not (ours.home / "flower" / "bundles").exists()  # nothing was unpacked

        (answer,) = ours.submit(ours_app)
        assert ours.markers == {"ours"}
        assert answer["bundle"] == digests["ours"]  # what the ledger's intents will name
        assert Path(answer["from"]).is_relative_to(ours.home / "flower" / "bundles" / digests["ours"])

        os.kill(executor_of(ours), signal.SIGKILL)  # the SuperNode would wait for ever
        (answer,) = ours.submit(ours_app)
        assert answer["bundle"] == digests["ours"]

        assert ours.submit(broken) == [FIXED]  # the text of the exception stays here
        assert "a secret of this house" in ours.log("supernode")

        allow(ours, digests["ours"], allowed=False)
        assert ours.submit(ours_app)[0]["code"] == INVALID_FAB
        assert json.loads((ours.home / "allowed.json").read_text())["decisions"][-1]["allowed"] is False

        os.kill(ours.processes["supernode"].pid, signal.SIGTERM)
        ours.processes["supernode"].wait(60)
        ours.wait(lambda: not set(ours.children()) - others(ours), "a process below the guard outlived it", 30)


def others(ours: Federation) -> set[int]:
    """Processes of the coordinator's side."""
    link = {name: process for name, process in ours.processes.items() if name != "supernode"}
    return set(Federation(ours.folder, ours.address, ours.environment, link).children())
