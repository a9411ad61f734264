"""`make deployment-demo`: a whole deployment on one machine, from an empty folder, driven by the commands that people type.

A coordinator and three partners, each with a folder, keys, a ledger and data of its own: books in PostgreSQL, films in Parquet, music in
CSV. Where the machine permits, each party has a network of its own, in which partners reach the coordinator's proxy and nothing else.

Exit codes: 0 done; 2 wrong usage; 3 a program or an extra is missing, and the message names the command that installs it; 16 a step failed,
and the message names it; 130 interrupted. Whatever happens, no process and no network is left behind; the folder stays.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from client.settings import ClientSettings
from client.settings_file import plain_value
from server.processes import find_nginx
from server.proxy import INSTALL as INSTALL_NGINX
from shared.config import RunConfig
from shared.console import guarded
from shared.errors import ConfigError, FederationError, UsageError

from . import deployment_database, synthetic_domains
from .deployment_network import Network, network, processes_of
from .deployment_position import CLOSED
from .deployment_steps import Party, Steps, table
from .partners import linked, make_ledger
from .scenario_config import load

PARTNERS = ("books", "films", "music")
TABLES = ("items", "interactions", "links")
ROUNDS = 5
CEILING = 8.0
NOT_VERIFIED = 34
"""Exit code of `isthmus-audit report` where a ledger is intact and something else is not known, such as whether the code was tested."""
SAME = 1e-6
"""Largest difference between the layers of a deployment and of one process, where there is no noise."""


@dataclasses.dataclass(kw_only=True)
class Demo:
    """One deployment.

    Args:
        folder: empty; everything is in it.
        config: of the run, its noise solved.
        synthetic: size of the partners' data.
    """

    folder: Path
    config: RunConfig
    synthetic: synthetic_domains.SyntheticConfig
    steps: Steps
    network: Network
    stack: contextlib.ExitStack
    database: deployment_database.Database = dataclasses.field(init=False)
    ended: dict[str, Any] = dataclasses.field(init=False)

    @property
    def home(self) -> Path:
        return self.folder / "coordinator"

    @property
    def post(self) -> Path:
        """Where sealed passports are handed over."""
        return self.folder / "post"

    @property
    def wanted(self) -> Path:
        """The run's configuration."""
        return self.folder / "run.toml"

    def toml(self, partner: str) -> Path:
        return self.folder / partner / "partner.toml"

    # --- steps, in this order ----------------------------------------------------------------------------------------------------------

    def make_data(self) -> str:
        """Every partner's data, in its own form; one of them in a database that starts here."""
        self.wanted.write_text(self.config.to_toml())
        self.post.mkdir(mode=0o700)
        made = self.folder / "data"
        synthetic_domains.write(made, self.synthetic, self.config.seed)
        for partner, links in linked({name: made / name / "interactions.csv" for name in PARTNERS}).items():
            links.write_csv(made / partner / "links.csv")
        tables = {name: pl.read_csv(made / "books" / f"{name}.csv") for name in TABLES}
        programs = deployment_database.find_postgres()
        assert programs is not None  # looked for before the first step
        database = self.stack.enter_context(
            deployment_database.running(
                programs, self.folder / "database", self.network.database_port, tables, lambda words: self.network.inside("books", words)
            )
        )
        for name in TABLES:
            (made / "books" / f"{name}.csv").unlink()
            pl.read_csv(made / "films" / f"{name}.csv").write_parquet(made / "films" / f"{name}.parquet")
            (made / "films" / f"{name}.csv").unlink()
        secret = made / "books" / "password"
        secret.touch(mode=0o600)
        secret.write_text(database.password)
        self.database = database
        counts = ", ".join(f"{name} in {how}" for name, how in zip(PARTNERS, ("PostgreSQL", "Parquet", "CSV"), strict=True))
        return f"{counts}; {tables['interactions'].height:,} interactions in books"

    def begin_coordinator(self) -> str:
        """init, twice: the second writes what follows from an edited server.toml."""
        server = Party.COORDINATOR
        ports = ["--port", str(self.network.port), "--superlink-port", str(self.network.superlink_port)]
        self.steps.run(server, "isthmus-server", "init", self.home, "--host", self.network.server, *ports)
        settings = self.home / "server.toml"
        settings.write_text(settings.read_text().replace('listen = "0.0.0.0"', f'listen = "{self.network.server}"'))
        self.steps.run(server, "isthmus-server", "init", self.home)
        self.steps.run(server, "isthmus-server", "up", self.home, "--detach")
        self.stack.callback(self.steps.quietly, server, "isthmus-server", "stop", self.home)
        return f"partners reach {self.network.server}:{self.network.port}"

    def enroll_partners(self) -> str:
        """init, PARTNER.json, enroll, JOIN.json, join; the cards are carried by hand, fingerprints compared."""
        for partner in PARTNERS:
            words = [f"--set={key}={value}" for key, value in {**self._data_of(partner), **self._ranges()}.items()]
            if self.config.privacy.private:
                words += ["--ceiling", str(CEILING)]
            begun = self.steps.run(partner, "isthmus-client", "init", self.folder / partner, "--domain", partner, *words, "--json")
            if not self.config.privacy.private:  # no command makes a ledger that promises nothing
                make_ledger(ClientSettings.read(self.toml(partner)), private=False)
            card, read_out = self.folder / partner / "PARTNER.json", json.loads(begun)["fingerprint"]
            self.steps.run(Party.COORDINATOR, "isthmus-server", "enroll", self.home, card, "--fingerprint", read_out)
        invited = json.loads(self.steps.run(Party.COORDINATOR, "isthmus-server", "init", self.home, "--json"))
        for partner in PARTNERS:
            card = self.home / "join" / f"{partner}.json"
            self.steps.run(partner, "isthmus-client", "join", self.folder / partner, card, "--fingerprint", invited["fingerprint"])
        return "three signed cards each way, fingerprints compared"

    def _data_of(self, partner: str) -> dict[str, Any]:
        made = self.folder / "data" / partner
        if partner == "books":
            return {
                "data.url": self.database.url,
                "data.password_file": made / "password",
                **{f"data.{name}": name for name in TABLES},
            }
        kind = "parquet" if partner == "films" else "csv"
        return {f"data.{name}": made / f"{name}.{kind}" for name in TABLES}

    def _ranges(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "agreed.max_sampling_rate": self.config.privacy.sampling_rate,
            "agreed.min_noise_multiplier": 0.3,
            "ceiling.delta": self.config.privacy.delta,
            # sealed passports go from partner to partner; here through one folder, as if somebody carried them
            "passports.automatic": "true",
            "passports.outbox": self.post,
            "passports.inbox": self.post,
        }
        return said if self.config.privacy.private else {**said, "agreed.test_builds": "true", "ceiling.epsilon": CEILING}

    def allow_bundle(self) -> str:
        """The code of the run, by its digest."""
        made = json.loads(self.steps.run(Party.COORDINATOR, "isthmus-server", "bundle", self.home, "--json"))
        for partner in PARTNERS:
            self.steps.run(partner, "isthmus-client", "allow", self.toml(partner), made["file"], "--by", "A. Officer")
        return f"{made['digest'][:16]}, {made['bytes']:,} bytes"

    def test_code(self) -> str:
        """Each partner tests the code that it allowed, on invented users; the verdict goes into its ledger."""
        for partner in PARTNERS:
            words = ["canary", self.toml(partner), "--config", self.wanted, "--out", self.folder / f"{partner}.canary.json"]
            self.steps.run(partner, "isthmus-client", *words, shown=True)
        return "the allowed code keeps what the ledgers say"

    def check_partners(self) -> str:
        """Preflight of each partner."""
        lines = 0
        for partner in PARTNERS:
            said = json.loads(self.steps.run(partner, "isthmus-client", "check", self.toml(partner), "--json"))
            lines += len(said["lines"])
        return f"{lines} lines, all of them green"

    def start_nodes(self) -> str:
        """isthmus-client up at each partner, until the coordinator sees all of them."""
        for partner in PARTNERS:
            self.steps.keep(partner, "isthmus-client", "up", self.toml(partner))

        def all_online() -> bool:
            said = json.loads(self.steps.run(Party.COORDINATOR, "isthmus-server", "status", self.home, "--json"))
            return [one["node"] for one in said["partners"]] == ["online"] * len(PARTNERS)

        self.steps.wait(all_online, "the partners' nodes did not connect")
        return "three nodes are connected"

    def look_from_a_partner(self) -> str:
        """What a partner reaches: the proxy, which shows the paths of its node and no other."""
        port = self.network.superlink_port
        peers = [f"{self.network.addresses[name]}:{self.network.port}" for name in PARTNERS if name != "music"]
        words = [self.folder / "music" / "home" / "server-ca.crt", f"{self.network.server}:{self.network.port}", port]
        found = json.loads(self.steps.run("music", "simulations.deployment_position", *words, *(peers if self.network.apart else [])))
        if any(status != 404 for status in found["paths"].values()):
            raise FederationError(f"the proxy shows more than a node's own paths: {found['paths']}", do="Look at proxy/nginx.conf.")
        closed = f"{len(CLOSED)} paths of the SuperLink answer 404"
        if not self.network.apart:
            return f"{closed}; one loopback for all, so nothing is said about the rest"
        reached = [
            name
            for name, what in {"superlink": found["superlink"], "the world": found["world"], **found["peers"]}.items()
            if what == "open"
        ]
        if reached:
            raise FederationError(f"a partner reaches more than the proxy: {', '.join(reached)}", do="Look at the namespaces.")
        return f"{closed}; SuperLink, other partners and the world cannot be reached"

    def run_rounds(self) -> str:
        """The run, to its last round."""
        words = ["run", self.home, self.wanted, "--wait-for", "all", "--json"]
        self.ended = json.loads(self.steps.run(Party.COORDINATOR, "isthmus-server", *words, shown=True))
        passports = len(list(self.post.glob("*.passports")))
        if passports != len(PARTNERS) * (len(PARTNERS) - 1):
            raise FederationError(
                f"{passports} files of passports were made, not one from each partner to each other", do=f"See {self.folder}."
            )
        if self.ended["state"] != "finished" or sorted(self.ended["domains"]) != sorted(PARTNERS):
            raise FederationError(f"the run ended as {self.ended['state']}", do=f"Look at {self.home / 'logs'}.")
        spent = ", ".join("none" if value is None else f"{value:.3f}" for value in self.ended["epsilon"].values())
        return f"{self.ended['round']} of {self.ended['rounds']} rounds, {self.ended['attempts']} attempt; epsilon {spent}"

    def look_at_all(self) -> str:
        """status on both sides, ledgers, and the coordinator's report."""
        self.steps.run(Party.COORDINATOR, "isthmus-server", "status", self.home, shown=True)
        for partner in PARTNERS:
            self.steps.run(partner, "isthmus-client", "status", self.toml(partner), shown=True)
            self.steps.run(partner, "isthmus-client", "ledger", "show", self.toml(partner))
        said = self.steps.run(Party.COORDINATOR, "isthmus-server", "report", self.home, "last", shown=True)
        return said.strip().splitlines()[0] if said.strip() else "written"

    def stop_all(self) -> str:
        """Everything ends by its own command or SIGTERM, and nothing is left."""
        for partner in PARTNERS:
            self.steps.end(partner)
        self.steps.run(Party.COORDINATOR, "isthmus-server", "stop", self.home)
        left = {pid for pid in processes_of(self.folder) if pid != self.database.process.pid}
        if left:
            raise FederationError(f"processes are left: {sorted(left)}", do="They are the demo's, and a defect.")
        return "nothing is left but the database, which ends with the demo"

    def audit_ledgers(self) -> str:
        """Each ledger is handed over, and checked against receipts and manifest; then the officer's page."""
        # a ledger of a test build is intact, and says of itself that it promises nothing
        codes, private = ((0,), True) if self.config.privacy.private else ((0, NOT_VERIFIED), False)
        with_it: list[Any] = ["--receipts", self.home / "receipts.json"]
        ledgers = [self.folder / f"{partner}-ledger.sqlite" for partner in PARTNERS]
        for partner, ledger in zip(PARTNERS, ledgers, strict=True):
            self.steps.run(partner, "isthmus-client", "ledger", "export", self.toml(partner), "--out", ledger)
            mine = ["--key", ledger.with_name(f"{ledger.stem}.keys.json"), "--manifest", self.folder / partner / "home" / "egress.jsonl"]
            self.steps.run(
                partner, "isthmus-audit", "verify", ledger, *mine, "--receipts", self.home / "receipts.json", codes=codes, shown=True
            )
            with_it += mine
        page = self.steps.run(
            "books", "isthmus-audit", "report", *ledgers, *with_it, "--out", self.folder / "audit.html", codes=(0, NOT_VERIFIED)
        )
        status = page.partition(":")[0]
        return f"three ledgers intact{' and within budget' if private else ', NOT PRIVATE'}; the officer's page says {status}"

    def compare_in_process(self) -> str:
        """A test build without noise gives the same layer in one process, up to the order in which numbers are added."""
        words = [self.folder, self.ended["folder"]]
        found = json.loads(self.steps.run("books", "simulations.deployment_twin", *words))
        if found["farthest"] > SAME or found["moved"] <= SAME or len(set(found["rounds"])) != 1:
            raise FederationError(
                f"the layer of the deployment is another one than in one process: {found}", do="Compare the two run folders."
            )
        return f"the same transfer layer up to {found['farthest']:.1e}; training moved it by {found['moved']:.1e}"


def demonstrate(
    folder: Path, config: RunConfig, synthetic: synthetic_domains.SyntheticConfig, *, apart: bool, canary: bool = False
) -> dict[str, Any]:
    """Goes through all steps in an empty folder.

    Args:
        apart: in network namespaces where this machine permits them.
        canary: let each partner test the code first, about a minute each.
    Returns:
        Seconds and a line for each step, the end of the run, and whether the parties had networks of their own.
    Raises:
        ConfigError: a program is missing.
        UsageError: the folder is not empty.
        FederationError: a step failed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not an empty folder", do="Name a folder that does not exist yet.")
    check_programs()
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(PARTNERS, apart=apart))
        steps = Steps(folder=folder, inside=net.inside)
        stack.callback(steps.end_all)
        demo = Demo(folder=folder, config=config, synthetic=synthetic, steps=steps, network=net, stack=stack)
        steps.tell(f"everything is in {folder}; what the commands said is in {steps.transcript.name} there")
        apart_words = "each party has a network of its own" if net.apart else f"one loopback for all ({net.why})"
        with steps.step("network"):
            steps.note(apart_words)
        every: list[tuple[str, Callable[[], str]]] = [
            ("data", demo.make_data),
            ("coordinator", demo.begin_coordinator),
            ("enrolment", demo.enroll_partners),
            ("bundle", demo.allow_bundle),
            ("check", demo.check_partners),
            ("nodes", demo.start_nodes),
            ("from outside", demo.look_from_a_partner),
            ("rounds", demo.run_rounds),
            ("status, report", demo.look_at_all),
            ("stop", demo.stop_all),
            ("audit", demo.audit_ledgers),
        ]
        if canary:
            every.insert([name for name, _ in every].index("check"), ("canary", demo.test_code))
        if config.privacy.noise == "none":
            every.append(("in one process", demo.compare_in_process))
        for name, act in every:
            with steps.step(name):
                steps.note(act())
    left = processes_of(folder)
    if left:
        raise FederationError(f"processes are left: {left}", do="They are the demo's, and a defect.")
    return {"apart": net.apart, "steps": [dataclasses.asdict(one) for one in steps.done], "run": demo.ended}


def check_programs() -> None:
    """Raises ConfigError with what is missing and the commands that install it."""
    missing = [INSTALL_NGINX] if find_nginx() is None else []
    missing += [deployment_database.INSTALL] if deployment_database.find_postgres() is None else []
    if any(importlib.util.find_spec(name) is None for name in ("psycopg", "sqlalchemy")):
        missing.append("the extra 'sql' of isthmus is not installed: pip install -c constraints.txt -e '.[sql]'")
    if missing:
        raise ConfigError("the demo needs more than Python", do="\n  ".join(missing))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `make deployment-demo`."""
    parser = argparse.ArgumentParser(prog="deployment-demo", description=(__doc__ or "").split("\n\n", 1)[1], allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path, nargs="?", help="empty, or to be made; by default a new one in runs/")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the scenario 'demo', such as synthetic.items=60"
    )
    parser.add_argument("--loopback", action="store_true", help="do not try network namespaces")
    parser.add_argument("--canary", action="store_true", help="each partner tests the code first: about a minute each")
    parser.add_argument("--test-build", action="store_true", help="no noise, NOT PRIVATE: and compare the layer with one process")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    sys.exit(guarded(lambda: _main(options), debug=False))


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"'{pair}' is not KEY=VALUE", do="For example --set synthetic.items=60")
        found[key.strip()] = plain_value(text.strip())
    return found


def _main(options: argparse.Namespace) -> None:
    wanted = {"privacy.rounds": options.rounds, "aggregation.min_clients": len(PARTNERS), **_changes(options.set)}
    if options.test_build:
        wanted["privacy.noise"] = "none"
    scenario = load("demo", overrides=wanted)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends the demo ends what it started
    folder = options.folder or Path("runs") / datetime.now(UTC).strftime("deployment-demo-%Y%m%d-%H%M%S")
    os.environ.setdefault("COLUMNS", "200")
    done = demonstrate(folder, scenario.run, scenario.synthetic, apart=not options.loopback, canary=options.canary)
    if options.json is not None:
        options.json.write_text(json.dumps(done, indent=1))
    print(table(done["steps"]))


if __name__ == "__main__":
    main()
