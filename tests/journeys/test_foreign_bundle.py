"""Code that a partner did not allow does not run there: tried with real bundles on a real SuperLink and SuperNode."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from client import bundle_guard
from client.allowed import AllowList
from shared import bundle
from tests.journeys.guarded_loopback import Federation, federation, write_app, write_certificates, write_node_key

pytestmark = [pytest.mark.journey, pytest.mark.slow]

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
        assert ours.processes["supernode"].wait(60) == 0
        ours.wait(lambda: not set(ours.children()) - others(ours), "a process below the guard outlived it", 30)


def test_a_node_that_its_server_no_longer_knows_ends_and_does_not_sit_there(tmp_path: Path) -> None:
    with federation(tmp_path) as ours:
        for name in ("superlink", "executor"):
            ours.processes[name].kill()
            ours.processes[name].wait(30)
        for path in tmp_path.glob("state.db*"):
            path.unlink()
        ours.start_link()
        ours.processes["supernode"].wait(120)  # whoever supervises it starts it again
        ours.wait(lambda: not set(ours.children()) - others(ours), "a process below the guard outlived it", 30)


BROKEN_LOOP = """
import sys
from client import bundle_guard
import flwr.supernode.cli.flower_supernode
module = sys.modules["flwr.supernode.cli.flower_supernode"]
module.start_client_internal = lambda **_: print("the loop returned", file=sys.stderr)  # as Flower does after any error inside it
bundle_guard.main(sys.argv[1:])
"""


def test_a_node_whose_loop_broke_ends_although_flower_keeps_its_http_server(tmp_path: Path) -> None:
    write_certificates(tmp_path)
    write_node_key(tmp_path)
    (tmp_path / "partner.toml").write_text('domain = "books"\n')
    words = bundle_guard.command(
        tmp_path / "partner.toml", superlink="127.0.0.1:9", root_certificates=tmp_path / "ca.pem", node_key=tmp_path / "node"
    )
    command = [*words[:2], "-c", BROKEN_LOOP, *words[4:], "--preload="]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)

    assert "the loop returned" in done.stderr
    assert done.returncode == 1
    assert not (tmp_path / "home" / "flower" / "executor.secret").exists()


def others(ours: Federation) -> set[int]:
    """Processes of the coordinator's side."""
    link = {name: process for name, process in ours.processes.items() if name != "supernode"}
    return set(Federation(ours.folder, ours.address, ours.environment, link).children())
