"""The coordinator's processes: started, kept running, refused where something is wrong, and gone without a trace."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from server import certificates, enrolment, flower_internals, processes
from server.submission import Control, key_bytes
from shared.errors import ConfigError, FederationError, UsageError
from tests.journeys.coordinated import COMMAND, Coordinated, free_ports, new_home, tiny_run
from tests.server.bundles import a_bundle
from tests.shared.cards import node_key, partner_card


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Coordinated]:
    """A coordinator without partners."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    made = Coordinated(home=new_home(tmp_path / "home"), partners={}, bundle=a_bundle(), environment=environment)
    try:
        yield made
    finally:
        made.end()


def programs(ours: Coordinated) -> dict[str, int]:
    return {name: one["pid"] for name, one in ours.status()["programs"].items()}


@pytest.mark.slow
def test_it_comes_up_admits_partners_restarts_what_dies_and_leaves_nothing(ours: Coordinated) -> None:
    home = ours.home.root
    ours.command("up", home, "--detach")
    assert "already" in ours.command("up", home, code=2).stderr
    ours.wait(lambda: {"superlink", "executor", "registrar"} <= programs(ours).keys(), "not everything started", 30)

    enrolment.enroll(ours.home, partner_card())
    films = partner_card(domain="films", node_key=node_key(), box_key="0c" * 32)
    enrolment.enroll(ours.home, films)
    with Control(ours.home.settings.superlink_address, ours.home.ca) as control:
        ours.wait(lambda: [node.name for node in control.nodes()] == ["books", "films"], "the registrar did not admit them", 30)
        enrolment.remove(ours.home, "books", reason="it left")
        ours.wait(lambda: [node.name for node in control.nodes()] == ["films"], "the registrar did not turn one away", 30)
        assert [node.public_key for node in control.nodes()] == [key_bytes(films.node_key)]

        before = programs(ours)["superlink"]
        os.kill(before, signal.SIGKILL)
        ours.wait(lambda: control.healthy() and programs(ours)["superlink"] != before, "the SuperLink was not started again", 60)
        assert [node.name for node in control.nodes()] == ["films"]  # it remembers

    toml = home.parent / "two.toml"
    toml.write_text(tiny_run().to_toml())
    few = ours.command("run", home, toml, code=3).stderr  # before anybody is waited for
    assert "a round needs 2 partners, and 1 agreed" in few
    enrolment.enroll(ours.home, partner_card(node_key=node_key()), replace="it came back")
    toml.write_text(tiny_run().to_toml().replace("wait_s = 60.0", "wait_s = 0.5"))
    nobody = ours.command("run", home, toml, code=16)
    assert "not there: books, films" in nobody.stderr
    assert list(ours.home.runs.iterdir()) == []  # nothing was begun
    assert "not enrolled: music" in ours.command("run", home, toml, "--wait-for", "music", code=2).stderr

    ours.command("stop", home)
    assert ours.pids(str(home)) == []
    assert "not up" in ours.command("status", home).stdout
    assert "does not answer" in ours.command("run", home, toml, code=16).stderr


@pytest.mark.slow
def test_a_supervisor_that_was_killed_leaves_nothing_that_the_next_one_trips_over(ours: Coordinated) -> None:
    ours.command("up", ours.home.root, "--detach")
    (supervisor,) = ours.pids("server.cli", "up", str(ours.home.root))
    os.kill(supervisor, signal.SIGKILL)
    ours.command("up", ours.home.root, "--detach")
    assert len(ours.pids("flower-superlink", str(ours.home.root))) == 1


@pytest.mark.slow
def test_in_the_foreground_a_signal_ends_it_and_its_processes(ours: Coordinated) -> None:
    enrolment.enroll(ours.home, partner_card())
    process = ours.start("up", [*COMMAND, "up", str(ours.home.root)])
    ours.wait(lambda: "books: its node is admitted" in ours.log("up"), "nobody was admitted", 60)  # told where it was started
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert ours.pids(str(ours.home.root)) == []


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    with socket.socket() as other:
        other.bind(("127.0.0.1", home.settings.superlink_port))
        other.listen()
        with pytest.raises(UsageError, match=rf"port {home.settings.superlink_port} .*cannot be used") as refused:
            processes.check_ports(home, None, patience_s=0.1)
    assert "superlink_port" in refused.value.do
    processes.check_ports(home, None, patience_s=0.1)


def test_a_certificate_that_ended_or_has_not_begun_is_refused_with_what_to_do(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    until = certificates.validity(home.certificate).until
    processes.check_dates(home)
    with pytest.raises(ConfigError, match=r"server\.pem ended on") as ended:
        processes.check_dates(home, until + datetime.timedelta(seconds=1))
    assert "renew" in ended.value.do
    with pytest.raises(ConfigError, match="holds from"):
        processes.check_dates(home, datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))


def test_a_half_made_home_says_so(tmp_path: Path) -> None:
    home = new_home(tmp_path / "home")
    shutil.rmtree(home.root / "join")
    ours = Coordinated(home=home, partners={}, bundle=a_bundle(), environment=dict(os.environ))
    assert "half made" in ours.command("up", home.root, code=3).stderr
    assert "no coordinator's home" in ours.command("status", tmp_path / "nowhere", code=3).stderr


def test_the_superlink_is_closed_in_every_way_that_flower_offers(tmp_path: Path) -> None:
    line = processes.superlink(new_home(tmp_path / "home"))
    assert {"--enable-supernode-auth", "--host=127.0.0.1", "--isolation=process", "--disable-runtime-dependency-installation"} <= set(line)
    assert any(part.startswith("--superexec-auth-secret-file=") for part in line)
    assert not any("insecure" in part or "simulation" in part for part in line)


def test_variables_that_somebody_set_for_another_flower_open_no_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")  # would serve the Control API on a second port
    monkeypatch.setenv("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.3")
    processes.forget_flower_variables()
    assert [name for name in os.environ if name.startswith("FLWR_")] == ["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]


def test_another_flower_is_refused() -> None:
    flower_internals.verify()
    with pytest.raises(ConfigError, match=r"Flower 1\.41\.0 is installed"):
        flower_internals.verify(flower="1.42.0")
    changed = {**flower_internals.MODULES, "flwr.superlink.cli.flower_superlink": "0" * 64}
    with pytest.raises(ConfigError, match=r"flower_superlink is not the one"):
        flower_internals.verify(changed)


def test_a_superlink_that_is_not_there_and_a_stranger_in_its_place_are_told_apart(tmp_path: Path) -> None:
    home, stranger = new_home(tmp_path / "home"), new_home(tmp_path / "stranger")
    (port,) = free_ports(1)
    with Control(f"127.0.0.1:{port}", home.ca) as control:
        assert not control.healthy()
        with pytest.raises(FederationError, match="does not answer"):
            control.nodes()
        line = [
            "openssl",
            "s_server",
            "-accept",
            str(port),
            "-cert",
            str(stranger.certificate),
            "-key",
            str(stranger.certificate_key),
            "-quiet",
        ]
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                while not processes.listens(port):
                    assert server.poll() is None
                with pytest.raises(ConfigError, match="does not prove to be this coordinator's SuperLink"):
                    control.healthy()
            finally:
                server.kill()


def test_a_key_that_is_no_node_key_is_refused() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    with pytest.raises(ConfigError, match="not on an elliptic curve"):
        key_bytes(line)
