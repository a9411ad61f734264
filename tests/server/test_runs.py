"""Run folders of a home: made, found, and what their silence means."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server import runs
from server.cli import main
from server.home import Home
from server.journal import Journal, keeping
from server.receipts import ReceiptsFile
from server.run_contract import Signing
from server.run_record import RunRecord, utc
from server.runs import State, find, going_on, prepare, read_config, status
from server.settings import ServerSettings
from server.too_few import BudgetUsedUp, too_few
from shared.config import RunConfig
from shared.errors import ConfigError, RunFolderError, UnreachableBudget, UsageError
from tests.server.bundles import a_bundle

CONFIG = RunConfig.from_mapping({"name": "tiny", "privacy": {"rounds": 2, "noise_multiplier": 1.0}})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home.create(tmp_path / "home", ServerSettings(hosts="localhost")).home
    made.partners_file.write_text("[books]\n[films]\n")
    return made


@pytest.fixture
def run(home: Home) -> Path:
    folder = prepare(home, CONFIG, a_bundle(), expected_clients=2)
    RunRecord.read(folder).submitted(7).write(folder)
    return folder


def killed(folder: Path, flower_run: int) -> None:
    Journal(folder).append("begun", flower_run=flower_run)


def test_the_serverapp_finds_everything_beside_the_run(home: Home, run: Path) -> None:
    signing = Signing.beside(run / "run.toml")
    assert signing is not None
    assert (signing.signer.verify_key, signing.bundle_digest) == (home.coordinator_key().verify_key, "b" * 64)
    assert signing.domains == "books,films"
    assert (run / "receipts.json").resolve() == home.receipts  # also before there are any
    assert (run / "partners.toml").read_text() == home.partners_file.read_text()
    assert RunConfig.from_toml((run / "run.toml").read_text()) == CONFIG
    assert not os.path.isabs(os.readlink(run / "coordinator.keys"))  # a home can be moved


def test_who_is_enrolled_later_is_not_named_by_a_contract_that_began_before(home: Home, run: Path) -> None:
    home.partners_file.write_text("[books]\n[films]\n[games]\n")
    signing = Signing.beside(run / "run.toml")
    assert signing is not None
    assert signing.domains == "books,films"


def test_nobody_enrolled_is_no_open_door(home: Home) -> None:
    home.partners_file.unlink()
    with pytest.raises(ConfigError, match="nobody is enrolled"):
        prepare(home, CONFIG, a_bundle(), expected_clients=2)
    assert runs.all_runs(home) == []


def test_a_run_waits_runs_and_ends(run: Path) -> None:
    assert status(run).state is State.WAITING
    with keeping(run, 7) as journal:
        journal.progress("hello", 2, 2)
        now = status(run)
        assert (now.state, now.stage) == (State.RUNNING, "hello 2/2")
    assert status(run).state is State.FINISHED


def test_a_serverapp_that_is_gone_without_a_word_is_lost(run: Path) -> None:
    killed(run, 7)
    assert status(run).state is State.LOST
    RunRecord.read(run).submitted(8).write(run)
    assert status(run).state is State.WAITING  # for the next attempt
    killed(run, 8)
    assert status(run).state is State.LOST


def test_an_attempt_that_a_crash_kept_out_of_the_record_is_seen_all_the_same(run: Path) -> None:
    killed(run, 7)
    record = RunRecord.read(run)
    earlier = dataclasses.replace(record.attempts[0], submitted_utc="2030-01-01T00:00:00+00:00")
    dataclasses.replace(record, attempts=(earlier,)).write(run)
    (run / "journal.jsonl").write_text('{"time": "2030-01-01T00:00:09+00:00", "event": "begun", "flower_run": 9}\n')
    assert status(run).state is State.LOST


def test_a_serverapp_that_failed_says_why(run: Path) -> None:
    with pytest.raises(ConfigError), keeping(run, 7):
        raise ConfigError("no good", do="Do better.")
    now = status(run)
    assert now.state is State.FAILED
    assert now.error is not None
    assert (now.error["what"], now.error["do"], now.error["exit_code"]) == ("no good", "Do better.", 3)


def _runs_out(journal: Journal) -> None:
    journal.append("note", text="round 2: reply of films is dropped (refused-ceiling)")
    raise too_few("round 2", 1, 2, [("films", "refused-ceiling")])


def test_a_run_whose_partners_have_nothing_left_ends_in_the_state_budget(run: Path) -> None:
    with pytest.raises(BudgetUsedUp), keeping(run, 7) as journal:
        _runs_out(journal)
    now = status(run)
    assert (now.state, dict(now.left_out)) == (State.BUDGET, {"films": "refused-ceiling"})
    assert now.error is not None
    assert "films: refused-ceiling" in now.error["what"]
    killed(run, 8)
    assert dict(status(run).left_out) == {}  # the next attempt greets everybody again


def test_a_stopped_run_is_stopped_and_not_lost(run: Path) -> None:
    killed(run, 7)
    RunRecord.read(run).stopped().write(run)
    assert status(run).state is State.STOPPED
    assert not status(run).state.going_on


SUPERVISOR = """
import signal, sys, time
from pathlib import Path
from shared.process_lock import only_one, write_record
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with only_one(Path(sys.argv[1]), "a stand-in"):
    write_record(Path(sys.argv[1]), {"pid": __import__("os").getpid(), "started_utc": "now", "programs": {}})
    print("up", flush=True)
    time.sleep(300)
"""


def test_everything_is_stopped_where_a_run_cannot_be_asked_to_end(home: Home, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For example in the moment after the SuperLink was killed."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(home.root)], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    with supervisor, supervisor.stdout as said:
        try:
            assert said.readline() == b"up\n"
            with keeping(run, 7), pytest.raises(SystemExit) as left:
                main(["stop", str(home.root)])
            assert left.value.code == 0
            assert supervisor.wait(30) == 0
        finally:
            supervisor.kill()
    out = capsys.readouterr().out
    assert "does not answer" in out
    assert "everything is stopped" in out


def test_one_run_goes_on_at_a_time(home: Home, run: Path) -> None:
    assert [one.name for one in going_on(home)] == [run.name]
    killed(run, 7)
    assert going_on(home) == []


def test_a_run_is_found_by_its_name_the_beginning_of_it_and_as_the_last(home: Home, run: Path) -> None:
    other = prepare(home, dataclasses.replace(CONFIG, name="other"), a_bundle(), expected_clients=None)
    record = RunRecord.read(other)
    dataclasses.replace(record, created_utc="2099-01-01T00:00:00+00:00").write(other)
    assert find(home, run.name) == find(home, "tiny") == run
    assert find(home, "last") == other
    again = prepare(home, CONFIG, a_bundle(), expected_clients=None)
    assert again.name != run.name
    with pytest.raises(UsageError, match="several runs"):
        find(home, "tiny-")
    with pytest.raises(RunFolderError, match="no run 'missing'"):
        find(home, "missing")


def test_a_record_that_was_damaged_is_named(run: Path) -> None:
    (run / "record.json").write_text('{"format": "isthmus-run-1"')
    with pytest.raises(RunFolderError, match=r"record\.json cannot be read"):
        status(run)


def test_the_noise_is_solved_before_anybody_is_asked(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('name = "tiny"\n[privacy]\nepsilon = 4.0\nrounds = 2\n')
    assert read_config(toml).privacy.noise_multiplier > 0.1
    toml.write_text('name = "tiny"\n[privacy]\nepsilom = 4.0\n')
    with pytest.raises(ConfigError, match=r"unknown key 'privacy\.epsilom'"):
        read_config(toml)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "missing.toml")
    toml.write_text('name = "tiny"\n[privacy]\nepsilon = 0.001\nsampling_rate = 1.0\nrounds = 10000\nsteps_per_round = 1000\n')
    with pytest.raises((UnreachableBudget, ConfigError)):
        read_config(toml)


def test_a_home_keeps_no_receipts_before_the_first_round(home: Home) -> None:
    assert ReceiptsFile(home.receipts).load() == {}
    assert utc().endswith("+00:00")
