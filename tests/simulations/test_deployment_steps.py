"""The deployment demo's own machinery: commands that fail are named, nothing is left behind, and each party reaches what it should."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigError, FederationError, UsageError
from simulations import deployment_database, deployment_demo
from simulations.deployment_demo import check_programs, demonstrate
from simulations.deployment_network import PUBLIC, Network, network, processes_of
from simulations.deployment_position import connects
from simulations.deployment_steps import Steps, table
from simulations.scenario_config import load

WAITS = "import sys, time; print('up', flush=True); time.sleep(600)"
LISTENS = (
    "import socket, sys; s = socket.socket(); s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(); print('up', flush=True); "
    "[s.accept() for _ in range(99)]"
)


@pytest.fixture
def steps(tmp_path: Path) -> Iterator[Steps]:
    made = Steps(folder=tmp_path, inside=lambda _party, command: list(command))
    yield made
    made.end_all()


def eventually(what: object, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if what():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_every_program_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_demo, "find_nginx", lambda: None)
    monkeypatch.setattr(deployment_database, "find_postgres", lambda: None)

    with pytest.raises(ConfigError) as refused:
        check_programs()

    assert refused.value.exit_code == 3  # as the demo's help says
    assert "apt-get install nginx-light" in str(refused.value)
    assert "apt-get install postgresql" in str(refused.value)


def test_a_folder_that_holds_something_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    scenario = load("demo")

    with pytest.raises(UsageError, match="not an empty folder"):
        demonstrate(tmp_path, scenario.run, scenario.synthetic, apart=False)

    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_command_that_fails_ends_its_step_by_name_and_its_words_are_kept(steps: Steps) -> None:
    with (
        pytest.raises(FederationError, match=r"step 'look': 'isthmus-server status nowhere' at coordinator ended with 3") as refused,
        steps.step("look"),
    ):
        steps.run("coordinator", "isthmus-server", "status", "nowhere")

    assert "no coordinator's home" in str(refused.value)
    assert "no coordinator's home" in steps.transcript.read_text()
    assert steps.done == []


def test_a_code_that_was_expected_is_no_failure_and_the_answer_comes_back(steps: Steps) -> None:
    assert "Usage" in steps.run("books", "isthmus-client", "--help")
    steps.run("books", "isthmus-client", "status", "missing.toml", codes=(3,))


def test_a_command_that_should_stay_up_and_ends_is_noticed(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.keep("books", "isthmus-client", "up", "missing.toml")

    with pytest.raises(FederationError, match=r"'up' at books ended with 3\n.*missing\.toml"):
        steps.wait(lambda: False, "never", limit_s=60)


def test_whatever_still_runs_is_ended_and_found_until_then(steps: Steps, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "here")], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    steps._kept["books"] = process

    assert processes_of(tmp_path) == [process.pid]
    assert processes_of(tmp_path / "elsewhere") == []
    steps.end_all()

    assert processes_of(tmp_path) == []
    process.stdout.close()


def test_the_table_adds_its_seconds_up() -> None:
    said = table([{"name": "data", "seconds": 1.5, "what": "made"}, {"name": "rounds", "seconds": 2.25, "what": "5 of 5"}])

    assert [line.split() for line in said.splitlines()] == [
        ["data", "1.5", "s", "made"],
        ["rounds", "2.2", "s", "5", "of", "5"],
        ["all", "of", "it", "3.8", "s"],
    ]


def test_where_namespaces_are_not_wanted_everybody_shares_the_loopback_and_it_is_said() -> None:
    with network(("books", "films"), apart=False) as found:
        assert not found.apart
        assert found.why == "told so"
        assert found.inside("books", ["true"]) == ["true"]
        assert len({found.port, found.superlink_port, found.database_port}) == 3


@contextlib.contextmanager
def apart() -> Iterator[Network]:
    """Namespaces, where this machine permits them."""
    with network(("books", "films")) as found:
        if not found.apart:
            pytest.skip(f"no network namespaces here: {found.why}")
        yield found


@contextlib.contextmanager
def listening(found: Network, party: str, host: str, port: int) -> Iterator[None]:
    words = found.inside(party, [sys.executable, "-I", "-c", LISTENS, host, str(port)])
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield
        process.kill()


def reach(found: Network, party: str, host: str, port: int) -> str:
    words = [sys.executable, "-P", "-c", "import sys; from simulations.deployment_position import connects; "
             "print(connects(sys.argv[1], int(sys.argv[2])))", host, str(port)]  # fmt: skip
    return subprocess.run(found.inside(party, words), capture_output=True, text=True, check=True).stdout.strip()


def test_a_partner_reaches_what_the_coordinator_shows_and_nobody_else() -> None:
    with (
        apart() as found,
        listening(found, "coordinator", PUBLIC, found.port),
        listening(found, "coordinator", "127.0.0.1", found.superlink_port),
        listening(found, "films", "0.0.0.0", 7000),
    ):
        assert reach(found, "books", PUBLIC, found.port) == "open"
        assert reach(found, "films", found.addresses["films"], 7000) == "open", "the listener itself is deaf"

        assert reach(found, "books", PUBLIC, found.superlink_port) != "open"
        assert reach(found, "books", found.addresses["films"], 7000) != "open"
        assert reach(found, "books", "203.0.113.1", 443) != "open"
        assert connects(PUBLIC, found.port) != "open", "the machine itself is in the coordinator's network"


def test_networks_are_gone_when_the_demo_ends_however_it_ends() -> None:
    with contextlib.suppress(KeyError), apart() as found:
        spaces = set(found.spaces.values())
        raise KeyError
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("no network namespaces here")

    listed = {
        line.split()[0] for line in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    }
    assert not spaces & listed
