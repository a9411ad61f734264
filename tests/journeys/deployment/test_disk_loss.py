"""What both runbooks say for the day after a disk is lost, typed with real processes: the coordinator's in mid-run, and a partner's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from client.node import connected
from server.checkpoints import Checkpoints
from server.processes import find_nginx
from shared.config import RunConfig
from shared.privacy.ledger import read_events
from tests.journeys.coordinated import Coordinated, federation, tiny_run
from tests.journeys.deployment import what_must_hold

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

LIMIT_S = 1200
RESERVE = 2
CLIENT, AUDIT = "client.cli", "shared.privacy.cli"
INTACT, ROLLED_BACK, RAISED = 0, 31, 33


@pytest.fixture(autouse=True)
def _with_a_proxy() -> None:
    if find_nginx() is None:
        pytest.skip("the coordinator's nginx is not installed (Debian: apt-get install nginx-light)")


def a_run(folder: Path, name: str, rounds: int) -> Path:
    config = tiny_run(rounds=rounds, reserve_rounds=RESERVE, epsilon=3.0)
    patient = dataclasses.replace(config.aggregation, wait_s=300.0)  # nodes come back after pauses that grow to a minute
    wanted: RunConfig = dataclasses.replace(config, name=name, aggregation=patient)
    (folder / f"{name}.toml").write_text(wanted.to_toml())
    return folder / f"{name}.toml"


def typed(ours: Coordinated, module: str, *words: Any, code: int = 0) -> str:
    """A command of a partner or an auditor, as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, *map(str, words)],
        env=ours.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def the_run(ours: Coordinated, name: str) -> Path:
    (folder,) = ours.home.runs.glob(f"{name}-*")
    return folder


def rounds_of(folder: Path) -> list[int]:
    return Checkpoints(folder / "transfer_layer").rounds()


def commits(ours: Coordinated, domain: str, run_id: str) -> int:
    events = read_events(ours.partners[domain].ledger_path)
    return sum(event.kind == "commit" and event.payload["run_id"] == run_id for event in events)


def run_id(folder: Path) -> str:
    found: str = json.loads((folder / "run_id.json").read_text())["run_id"]
    return found


def family(pids: set[int]) -> set[int]:
    """Processes and all that came from them: not every one names its folder (a worker of nginx does not)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def gone(ours: Coordinated, folder: Path, *words: str) -> None:
    """A power cut takes every process that has to do with a folder, and its disk."""
    until = time.monotonic() + 30
    while pids := {*ours.pids(str(folder)), *(ours.pids(*words) if words else ())}:
        assert time.monotonic() < until, pids
        for pid in family(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    if folder.name in ours.processes:
        ours.processes.pop(folder.name).wait(30)
    shutil.rmtree(folder)


def copied(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target


def put_back(ours: Coordinated, backup: Path) -> None:
    """The coordinator's runbook, 'Restore after disk loss', to the start."""
    home = ours.home.root
    copied(backup, home)
    ours.command("init", home)
    ours.command("renew", home, "--within", "30")
    ours.command("up", home, "--detach")
    ours.wait(lambda: {one["node"] for one in ours.status()["partners"]} == {"online"}, "the nodes did not come back", LIMIT_S)


def test_a_coordinators_home_comes_back_with_the_last_checkpoint_and_its_run_goes_on(tmp_path: Path, repository: Path) -> None:
    with federation(tmp_path, repository, supervised=True) as ours:
        home, port = ours.home.root, str(ours.home.settings.superlink_port)
        ours.command("run", home, a_run(tmp_path, "first", 2), "--wait-for", "all", "--detach")
        folder = the_run(ours, "first")
        ours.wait(lambda: 1 in rounds_of(folder), "round 1 did not end", LIMIT_S)
        backup = copied(home, tmp_path / "backup")
        assert rounds_of(folder) == rounds_of(backup / "runs" / folder.name) == [0, 1]
        gone(ours, home, "flwr-serverapp", port)

        put_back(ours, backup)
        ours.command("resume", home, "last", timeout=LIMIT_S)

        assert rounds_of(folder) == [0, 1, 2]
        lost = what_must_hold.lost_attempts(ours, rounds=dict.fromkeys(ours.partners, 2), reserve=RESERVE)
        print("\nlost attempts:", lost)
    assert ours.pids(str(tmp_path)) == []


def test_a_run_whose_backup_is_too_old_ends_and_a_new_one_begins(tmp_path: Path, repository: Path) -> None:
    """Nobody computes a committed round again, and nobody has its bytes any more."""
    with federation(tmp_path, repository, supervised=True) as ours:
        home, port = ours.home.root, str(ours.home.settings.superlink_port)
        ours.command("run", home, a_run(tmp_path, "first", 4), "--wait-for", "all", "--detach")
        folder = the_run(ours, "first")
        ours.wait(lambda: 1 in rounds_of(folder), "round 1 did not end", LIMIT_S)
        backup = copied(home, tmp_path / "backup")
        ours.wait(lambda: 3 in rounds_of(folder), "round 3 did not end", LIMIT_S)
        first = run_id(folder)
        gone(ours, home, "flwr-serverapp", port)
        ours.wait(lambda: all(quiet(ours, domain) for domain in ours.partners), "a node still trains", LIMIT_S)
        had = {domain: commits(ours, domain, first) for domain in ours.partners}

        put_back(ours, backup)
        said = ours.command("resume", home, "last", code=None, timeout=LIMIT_S)

        now = next(one for one in ours.status()["runs"] if one["run"] == folder.name)
        print("\nresumed from a checkpoint that is two rounds older:", said.returncode, said.stderr[-800:], now)
        assert (said.returncode, now["state"]) == (16, "failed")
        assert {domain: commits(ours, domain, first) for domain in ours.partners} == had
        what_must_hold.lost_attempts(ours, rounds=had, reserve=RESERVE, run_id=first)
        ours.command("run", home, a_run(tmp_path, "second", 1), "--wait-for", "all", timeout=LIMIT_S)
        second = run_id(the_run(ours, "second"))
        what_must_hold.lost_attempts(ours, rounds=dict.fromkeys(ours.partners, 1), reserve=RESERVE, run_id=second)
    assert ours.pids(str(tmp_path)) == []


def test_a_partner_with_an_old_backup_begins_again_above_what_it_may_have_spent(tmp_path: Path, repository: Path) -> None:
    with federation(tmp_path, repository, supervised=True, agreed={"ceiling.epsilon": 6.0}) as ours:
        films, receipts = tmp_path / "films", tmp_path / "receipts.json"
        toml, ledger, keys = films / "partner.toml", films / "home/ledger.sqlite", tmp_path / "films.keys.json"
        backup = copied(films, tmp_path / "backup")
        ours.command("run", ours.home.root, a_run(tmp_path, "first", 1), "--wait-for", "all", timeout=LIMIT_S)
        gone(ours, films)
        shutil.copy(ours.home.receipts, receipts)

        for name in ("partner.toml", "home/keys", "home/ledger.sqlite", "home/allowed.json", "home/register.sqlite"):
            if (backup / name).exists():  # what the runbook names, and nothing else
                (films / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copied(backup / name, films / name)
        typed(ours, CLIENT, "passport", "keys", toml, "--out", keys)
        assert "ROLLED BACK" in typed(ours, AUDIT, "verify", ledger, "--key", keys, "--receipts", receipts, code=ROLLED_BACK)
        begin_again(ours, receipts, booked=6, epsilon=12)

        takes_part(ours, "second")
    assert ours.pids(str(tmp_path)) == []


def test_a_partner_without_any_backup_begins_again_with_new_keys(tmp_path: Path, repository: Path) -> None:
    with federation(tmp_path, repository, supervised=True, agreed={"ceiling.epsilon": 6.0}) as ours:
        films, books, receipts = tmp_path / "films", tmp_path / "books", tmp_path / "receipts.json"
        toml = films / "partner.toml"
        ours.command("run", ours.home.root, a_run(tmp_path, "first", 1), "--wait-for", "all", timeout=LIMIT_S)
        given = [line for line in toml.read_text().splitlines() if line.startswith(("items = ", "interactions = ", "time = "))]
        gone(ours, films)
        shutil.copy(ours.home.receipts, receipts)

        typed(ours, CLIENT, "init", films, "--domain", "films", *given_again(given))
        begin_again(ours, receipts, booked=8, epsilon=12)  # the ceiling was 6; the new partner.toml says 8, and less is not believed
        typed(ours, CLIENT, "join", books, ours.home.join / "books.json", code=2)
        (books / "passports/partners/films.json").rename(tmp_path / "films-old.json")
        typed(ours, CLIENT, "join", books, ours.home.join / "books.json")
        typed(ours, CLIENT, "allow", toml, next(ours.home.bundles.glob("*.fab")), "--by", "A. Officer")

        takes_part(ours, "second")
    assert ours.pids(str(tmp_path)) == []


def quiet(ours: Coordinated, domain: str) -> bool:
    """Whether a partner has nothing in hand: its last attempt is committed."""
    kinds = [event.kind for event in read_events(ours.partners[domain].ledger_path)]
    return kinds[-1] == "commit"


def begin_again(ours: Coordinated, receipts: Path, *, booked: int, epsilon: int) -> None:
    """The partner's runbook, 'Restore after disk loss', step 4, and what the coordinator does about it."""
    films, toml, home = ours.partners["films"].base, ours.toml("films"), ours.home.root
    words = ["--booked-epsilon", booked, "--epsilon", epsilon, "--by", "A. Officer", "--why", "disk died on 3 March", "--yes"]
    typed(ours, CLIENT, "ledger", "restart", toml, "--receipt", receipts, *words)
    typed(ours, CLIENT, "init", films, "--domain", "films")
    ours.command("enroll", home, films / "PARTNER.json", "--replace", "disk died, confirmed by A. Officer")
    typed(ours, CLIENT, "join", films, ours.home.join / "films.json")


def given_again(lines: list[str]) -> list[str]:
    """Settings of [data], as --set of `init`."""
    return [f"--set=data.{key}={value.strip(chr(34))}" for key, _, value in (line.partition(" = ") for line in lines)]


def takes_part(ours: Coordinated, name: str) -> None:
    """`check` is green and `up` brings films into a run; an audit calls it RAISED, and the other one INTACT as ever."""
    typed(ours, CLIENT, "check", ours.toml("films"))
    ours.up("films")
    ours.wait(
        lambda: connected(ours.partners["films"]), "the node did not connect", LIMIT_S
    )  # Flower takes the dead one for online a while
    ours.command("run", ours.home.root, a_run(ours.home.root.parent, name, 1), "--wait-for", "all", timeout=LIMIT_S)
    for domain, code in (("films", RAISED), ("books", INTACT)):
        assert commits(ours, domain, run_id(the_run(ours, name))) == 1
        out = ours.home.root.parent / f"{domain}-ledger.sqlite"
        typed(ours, CLIENT, "ledger", "export", ours.toml(domain), "--out", out)
        keys = out.with_name(f"{out.stem}.keys.json")
        typed(ours, AUDIT, "verify", out, "--key", keys, "--receipts", ours.home.receipts, code=code)
