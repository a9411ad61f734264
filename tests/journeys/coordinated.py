"""A coordinator's home and its partners, as commands make them, and their real processes on the loopback.

Every process ends with the federation, whatever happened.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client import bundle_guard, enrolling
from client.allowed import AllowList
from client.settings import ClientSettings
from server import enrolment
from server.home import Home
from server.settings import ServerSettings
from shared import bundle as bundles
from shared.bundle import Bundle
from shared.config import RunConfig
from shared.enrolment import JoinCard
from simulations.deployment_network import free_ports
from simulations.scenario_config import load
from simulations.synthetic_domains import write as write_synthetic
from tests.journeys.tiny_world import TINY

DOMAINS = ("books", "films")
COMMAND = [sys.executable, "-P", "-m", "server.cli"]


def new_home(folder: Path) -> Home:
    """A coordinator's home on free ports."""
    port, superlink_port = free_ports(2)
    return Home.create(folder, ServerSettings(hosts="localhost", port=port, superlink_port=superlink_port)).home


def tiny_run(**privacy: Any) -> RunConfig:
    """A run of two short rounds."""
    values: dict[str, Any] = {"name": "tiny", "privacy": {"epsilon": 8.0}, "aggregation": {"wait_s": 60.0, "round_timeout_s": 240.0}}
    for key, value in TINY.items():
        table, _, name = key.partition(".")
        if table != "synthetic":
            values.setdefault(table, {})[name] = value
    values["privacy"] |= privacy
    return RunConfig.from_mapping(values)


@dataclass
class Coordinated:
    """A home, its partners, and what runs."""

    home: Home
    partners: dict[str, ClientSettings]
    bundle: Bundle
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def command(self, *arguments: str | Path, code: int | None = 0, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        """Runs `isthmus-server`; its exit code is checked."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def start(self, name: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Starts a process in a group of its own."""
        with (self.home.root.parent / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def up(self, domain: str) -> None:
        """`isthmus-client up`: a supervised node, which goes through the proxy as partners do."""
        self.start(domain, [sys.executable, "-P", "-m", "client.cli", "up", str(self.toml(domain))])

    def toml(self, domain: str) -> Path:
        return self.partners[domain].base / "partner.toml"

    def start_node(self, domain: str) -> None:
        """A guarded SuperNode that speaks to the SuperLink directly: a proxy is not installed everywhere."""
        settings = self.partners[domain]
        node = bundle_guard.command(
            settings.base / "partner.toml",
            superlink=self.home.settings.superlink_address,
            root_certificates=settings.ca_path,
            node_key=settings.node_key_path,
        )
        self.start(domain, node)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("status", self.home.root, "--json").stdout)
        return found

    def wait(self, what: Callable[[], bool], why: str, seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < until, f"{why}\n{self.logs()}"
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return (self.home.root.parent / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        paths = [*self.home.logs.glob("*.log"), *self.home.root.parent.glob("*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in paths)

    def pids(self, *words: str) -> list[int]:
        """Processes of this home whose command line holds all of the words."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if all(word in line for word in words):
                    found.append(int(path.parent.name))
        return found

    def kill(self, *words: str) -> None:
        """`kill -9` of what `pids` finds; there has to be something."""
        found = self.pids(*words)
        assert found, f"nothing to kill: {words}"
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.command("stop", self.home.root, code=None, timeout=90)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
        for pid in set(self.pids(f"{self.home.root.parent}/")) - {os.getpid()}:  # where a busy machine had no time for a stop in order
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def coordinator(
    folder: Path,
    project: Path,
    *,
    domains: tuple[str, ...] = DOMAINS,
    agreed: Mapping[str, Any] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Coordinated:
    """A home with partners who are enrolled, have joined, and allow the bundle of this checkout. Nothing runs yet.

    Args:
        agreed: dotted keys of every partner.toml.
        own: by domain, dotted keys of its partner.toml; an empty value takes a key out.
    """
    home = new_home(folder / "coordinator")
    scenario = load("demo", seed=0, overrides=TINY)
    write_synthetic(folder / "data", scenario.synthetic, 0)
    made = bundles.build(project)
    bundles.save(made, home.bundles)
    partners = {}
    for domain in domains:
        changes = {
            "data.items": str(folder / "data" / domain / "items.csv"),
            "data.interactions": str(folder / "data" / domain / "interactions.csv"),
            "data.time": scenario.data.time,
            "text_cache": str(folder / "text"),
            "ceiling.epsilon": 18.0,
            "ceiling.delta": 1e-6,
            "agreed.max_sampling_rate": 0.5,
            **(agreed or {}),
            **((own or {}).get(domain, {})),
        }
        begun = enrolling.begin(folder / domain, domain=domain, changes=changes, with_ledger=True)
        enrolment.enroll(home, begun.card)
        partners[domain] = begun.settings
        AllowList(begun.settings.at_home("allowed.json")).decide(made.digest, allowed=True, by="A. Officer", code_digest=made.code_digest())
    for domain in domains:
        enrolling.join(folder / domain / "partner.toml", JoinCard.read(enrolment.join_file(home, domain)))
        partners[domain] = ClientSettings.read(folder / domain / "partner.toml")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return Coordinated(home=home, partners=partners, bundle=made, environment={**environment, "COLUMNS": "200"})


@contextlib.contextmanager
def federation(folder: Path, project: Path, *, supervised: bool = False, **how: Any) -> Iterator[Coordinated]:
    """A coordinator that is up, and its partners' nodes, connected.

    Args:
        supervised: nodes as `isthmus-client up` keeps them, through the proxy, which then has to be installed.
    """
    ours = coordinator(folder, project, **how)
    try:
        ours.command("up", ours.home.root, "--detach")
        for domain in ours.partners:
            (ours.up if supervised else ours.start_node)(domain)
        ours.wait(lambda: {one["node"] for one in ours.status()["partners"]} == {"online"}, "not every node connected")
        yield ours
    finally:
        ours.end()
