"""`isthmus-client up` against a real SuperLink: the node comes back after a kill, after the server was away, and goes without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import enrolling
from client.allowed import FILE, AllowList
from client.node import NODE, status
from client.preflight import preflight
from client.settings import ClientSettings
from shared import bundle
from shared.enrolment import JoinCard
from shared.privacy.signing import SigningPair
from tests.journeys.guarded_loopback import BINARIES, Federation, free_port, write_app, write_certificates

ROOT = Path(enrolling.__file__).parents[1]
pytestmark = [pytest.mark.journey, pytest.mark.slow]


@dataclass
class Partner:
    """A domain that joined, and its `up`."""

    toml: Path
    link: Federation

    @property
    def settings(self) -> ClientSettings:
        return ClientSettings.read(self.toml)

    def up(self) -> None:
        self.link.start("up", [sys.executable, "-m", "client.cli", "up", str(self.toml)])

    def node(self) -> dict[str, Any]:
        return status(self.settings).node or {}

    def log(self) -> str:
        path = self.settings.at_home(f"logs/{NODE}.log")
        return path.read_text(errors="replace") if path.is_file() else ""

    def connections(self) -> int:
        return self.log().count("SuperNode ID: ")

    def wait_connected(self, times: int) -> None:
        self.link.wait(lambda: self.connections() >= times, f"the node did not connect: {self.log()[-3000:]}", 240)

    def processes(self) -> list[int]:
        """All that run with this partner's home, whoever their parents are."""
        mark = f"MARK_OF_PARTNER={self.toml}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ended = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not ended and mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found


@pytest.fixture
def partner(tmp_path: Path) -> Iterator[Partner]:
    """A SuperLink that knows the partner's node; nothing runs at the partner yet."""
    begun = enrolling.begin(tmp_path / "books", domain="books", changes={"server.longest_retry_s": 4.0}, with_ledger=True)
    for name in ("markers", "flower"):
        (tmp_path / name).mkdir()
    write_certificates(tmp_path)
    (tmp_path / "secret").write_bytes(secrets.token_bytes(32))
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "flower/config.toml").write_text(
        f'[superlink]\ndefault = "test"\n\n[superlink.test]\naddress = "{address}"\nroot-certificates = "{tmp_path}/ca.pem"\n'
    )
    toml = tmp_path / "books/partner.toml"
    card = JoinCard.signed(SigningPair.generate(), server=address, ca_pem=(tmp_path / "ca.pem").read_text(), domain="books")
    enrolling.join(toml, card)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLWR_HOME": str(tmp_path / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "TEST_MARKERS": str(tmp_path / "markers"),
        "MARK_OF_PARTNER": str(toml),
        "COLUMNS": "200",
    }
    link = Federation(tmp_path, address, environment)
    ours = Partner(toml, link)
    try:
        link.environment.pop("MARK_OF_PARTNER")
        link.start_link()
        link.flwr("supernode", "register", str(tmp_path / "books/home/keys/node.pub"), "test", "--name", begun.card.domain)
        link.environment["MARK_OF_PARTNER"] = str(toml)
        yield ours
    finally:
        link.end()
        for pid in ours.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_node_comes_back_whatever_is_killed_and_leaves_nothing_behind(partner: Partner, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", "app")
    made = bundle.build(app)
    AllowList(partner.settings.at_home(FILE)).decide(made.digest, allowed=True, by="a test")
    partner.up()
    partner.wait_connected(1)
    first = partner.node()
    assert first["starts"] == 1
    assert status(partner.settings).connected

    os.kill(first["pid"], signal.SIGKILL)  # the server still takes it for online, and refuses it for a while
    partner.wait_connected(2)
    refused = partner.log().count("Exit Code: 305")
    print(f"refused {refused} times after the kill")
    assert partner.node()["starts"] == refused + 2

    (answer,) = partner.link.submit(app)
    assert answer["bundle"] == made.digest

    begun = time.monotonic()
    partner.link.processes["up"].send_signal(signal.SIGTERM)
    assert partner.link.processes["up"].wait(60) == 0
    print(f"stopped in {time.monotonic() - begun:.1f} s")
    assert partner.processes() == []
    assert status(partner.settings).since is None


def test_a_node_waits_for_a_server_that_is_away(partner: Partner) -> None:
    partner.up()
    partner.wait_connected(1)
    for name in ("executor", "superlink"):
        partner.link.processes[name].kill()
        partner.link.processes[name].wait()
    partner.link.wait(lambda: not status(partner.settings).connected, "the node did not notice")
    time.sleep(5)
    assert partner.link.processes["up"].poll() is None

    marked = partner.link.environment.pop("MARK_OF_PARTNER")
    partner.link.start_link()
    partner.link.environment["MARK_OF_PARTNER"] = marked

    def online() -> bool:
        nodes = json.loads(partner.link.flwr("supernode", "list", "test", "--format", "json"))
        return any(node.get("status") == "online" for node in nodes.get("nodes", []))

    partner.link.wait(online, f"the node did not come back: {partner.log()[-3000:]}", 240)
    assert status(partner.settings).connected


def test_a_second_up_refuses_and_a_server_without_a_proxy_is_a_red_line(partner: Partner) -> None:
    partner.up()
    partner.wait_connected(1)
    partner.link.start("second", [sys.executable, "-m", "client.cli", "up", str(partner.toml)])

    assert partner.link.processes["second"].wait(60) == 2
    assert "the node of 'books' is running already, since" in partner.link.log("second")

    lines = {line.name: line for line in preflight(partner.toml, data=False).lines}
    assert {name: line.what for name, line in lines.items() if not line.ok} == {
        "bundle": "no bundle may run here yet",
        "closed interfaces": "the server answers at /v1/control/list-runs and /v1/runtime/get-nodes",
    }
    assert lines["node interface"].what.startswith("answers")
    assert "status 4" in lines["node interface"].what


def test_an_app_that_hangs_is_ended_and_its_node_answers_the_next_message(partner: Partner, tmp_path: Path) -> None:
    toml = partner.toml
    toml.write_text(toml.read_text().replace("deadline_s = 0.0", "deadline_s = 2.0"))
    hangs, well = write_app(tmp_path / "hangs", "hangs"), write_app(tmp_path / "well", "well")
    code = (hangs / "client/app.py").read_text()
    forever = "    sum(range(10**15))  # keeps the interpreter for itself, and hears no signal\n    said ="
    (hangs / "client/app.py").write_text(code.replace("    said =", forever))
    for app in (hangs, well):
        AllowList(partner.settings.at_home(FILE)).decide(bundle.build(app).digest, allowed=True, by="a test")
    partner.up()
    partner.wait_connected(1)

    begun = time.monotonic()
    (nothing,) = partner.link.submit(hangs)
    print(f"answered {nothing} after {time.monotonic() - begun:.0f} s")
    (answer,) = partner.link.submit(well)

    assert nothing["code"]
    assert "Timeout (" in partner.log()  # its process was ended, not its app
    assert "sum" not in json.dumps(nothing)
    assert answer["bundle"] == bundle.build(well).digest
    assert partner.node()["starts"] == 1  # the node itself went on
