"""Bad days on demand: who can be killed, an operator who does what a runbook says, and what has to hold afterwards.

Nothing here knows how isthmus mends itself: the operator starts services again that were killed themselves, as a machine's service manager
does, and gives `resume` where `status` names a run that ended.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.key_rotation import own_keys
from server import proxy, runs
from server.checkpoints import Checkpoints
from server.processes import find_nginx
from server.round_log import RoundLog
from server.run_record import RunRecord
from server.runs import RunStatus, State
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import read_events
from shared.privacy.ledger_schema import Event
from shared.process_lock import running
from tests.client.data import postgres
from tests.journeys.coordinated import Coordinated, federation, tiny_run
from tests.journeys.tiny_world import TINY

DOMAINS = ("books", "films", "music")
IN_A_DATABASE = "music"
PATIENCE_S = 1200.0
"""The longest that anything here waits for a run: only for what hangs."""
_PAUSE_S = 1.0
_NOBODY_TAKES_IT_S = 150.0
"""After so long without a ServerApp an operator gives `resume`."""
_ASKED_AGAIN_S = 15.0


def seconds(name: str, default: float) -> float:
    """A duration that an environment variable may change; ISTHMUS_TEST_ROUND_S, how long a round waits, is for machines that are busy."""
    return float(os.environ.get(name, default))


# --- a federation with a database -----------------------------------------------------------------------------------------------------


def _tables(server: postgres.Server, folder: Path) -> None:
    """The files of a domain, as tables: the columns are texts but for the time."""
    for name in ("items", "interactions"):
        with (folder / f"{name}.csv").open(newline="") as file:
            head, *rows = csv.reader(file)
        columns: dict[str, tuple[str, Sequence[Any]]] = {
            column: ("bigint" if column == "timestamp" else "text", [row[at] or None for row in rows]) for at, column in enumerate(head)
        }
        server.put(name, columns)


@contextlib.contextmanager
def bad_day(folder: Path, project: Path, database: postgres.Server | None = None, **how: Any) -> Iterator[Coordinated]:
    """Three partners through the proxy, kept up as partners keep themselves; one of them has its data in a database, where there is one."""
    if find_nginx() is None:
        pytest.skip(proxy.INSTALL)
    own = dict(how.pop("own", {}))
    if database is not None:
        from simulations.scenario_config import load
        from simulations.synthetic_domains import write

        scenario = load("demo", seed=0, overrides=TINY)
        write(folder / "tables", scenario.synthetic, 0)
        _tables(database, folder / "tables" / IN_A_DATABASE)
        password = folder / "password"
        password.touch(0o600)
        password.write_text(postgres.PASSWORD)
        there = {
            "data.url": database.url(),
            "data.password_file": str(password),
            "data.items": "items",
            "data.interactions": "interactions",
        }
        own[IN_A_DATABASE] = {**there, "data.connect_timeout_s": 5.0, **own.get(IN_A_DATABASE, {})}
    with federation(folder, project, supervised=True, domains=DOMAINS, own=own, **how) as ours:
        yield ours


def begin(ours: Coordinated, *, rounds: int, reserve: int, epsilon: float = 0.5, **aggregation: Any) -> Run:
    """Submits a run and leaves it to itself."""
    made = tiny_run(rounds=rounds, reserve_rounds=reserve, epsilon=epsilon)
    values: dict[str, Any] = {"wait_s": 120.0, "round_timeout_s": seconds("ISTHMUS_TEST_ROUND_S", 40.0), "min_clients": 2, **aggregation}
    toml = ours.home.root.parent / "run.toml"
    toml.write_text(dataclasses.replace(made, aggregation=dataclasses.replace(made.aggregation, **values)).to_toml())
    ours.command("run", ours.home.root, toml, "--wait-for", "all", "--detach")
    return Run(ours, runs.all_runs(ours.home)[-1])


# --- the operator -----------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run, and the operator who looks after it.

    Args:
        resumed: state in which it was found -> how often `resume` was given for it.
    """

    ours: Coordinated
    folder: Path
    resumed: Counter[str] = field(default_factory=Counter)
    _waiting_since: float = field(default_factory=time.monotonic)
    _asked: float = -1e9

    @property
    def now(self) -> RunStatus:
        return runs.status(self.folder)

    def tend(self, until: Callable[[RunStatus], bool], patience_s: float = PATIENCE_S, pause_s: float = _PAUSE_S) -> RunStatus:
        """Does what an operator does, until something is so."""
        end = time.monotonic() + patience_s
        while not until(now := self.now):
            self.look_after(now)
            assert time.monotonic() < end, f"nothing moves: {now.to_json()}\n{self.ours.logs()}"
            time.sleep(pause_s)
        return now

    def tend_for(self, some_s: float) -> None:
        until = time.monotonic() + some_s
        self.tend(lambda _: time.monotonic() >= until)

    def look_after(self, now: RunStatus) -> None:
        """Once: services that were killed are started, and a run that ended before its last round is resumed."""
        start_services(self.ours)
        if now.state is not State.WAITING:
            self._waiting_since = time.monotonic()
        nobody = time.monotonic() - self._waiting_since > _NOBODY_TAKES_IT_S
        if now.state not in (State.LOST, State.FAILED, State.STOPPED) and not nobody:
            return
        if time.monotonic() - self._asked > _ASKED_AGAIN_S:
            done = self.ours.command("resume", self.ours.home.root, self.folder.name, "--detach", code=None)
            assert "Traceback" not in done.stderr, done.stderr
            if done.returncode == 0:
                why = "" if now.error is None else f": {now.error.get('what')}"
                print(f"    resumed after {now.state} in round {now.round}{why}"[:200], flush=True)
                self.resumed[str(now.state)] += 1
                self._waiting_since = time.monotonic()
            self._asked = time.monotonic()

    def to_the_end(self, patience_s: float = PATIENCE_S) -> RunStatus:
        return self.tend(lambda now: now.state in (State.FINISHED, State.BUDGET), patience_s)


def start_services(ours: Coordinated) -> None:
    """What systemd does: `up` of either side is started again where it is gone."""
    for domain in ours.partners:
        process = ours.processes.get(domain)
        if process is None or process.poll() is not None:
            ours.up(domain)
    if running(ours.home.root) is None:
        ours.command("up", ours.home.root, "--detach", code=None)


def everybody_is_there(ours: Coordinated, patience_s: float = PATIENCE_S) -> None:
    """Waits for every service and every node, so that the next bad day begins on a good one."""
    end = time.monotonic() + patience_s
    while True:
        start_services(ours)
        found = ours.command("status", ours.home.root, "--json", code=None)
        if found.returncode == 0 and '"offline"' not in found.stdout and found.stdout.count('"online"') == len(ours.partners):
            return
        assert time.monotonic() < end, f"not everybody came back: {found.stdout}\n{ours.logs()}"
        time.sleep(2 * _PAUSE_S)


# --- victims ----------------------------------------------------------------------------------------------------------------------------


def victims(ours: Coordinated, database: postgres.Server | None = None) -> dict[str, Callable[[random.Random], bool]]:
    """Name -> `kill -9` of it; each answers whether there was anything to kill at that moment."""
    home = str(ours.home.root)

    def of(*words: str) -> Callable[[random.Random], bool]:
        return lambda draw: _kill(ours, draw, *words)

    def at_a_partner(*words: str) -> Callable[[random.Random], bool]:
        return lambda draw: _kill(ours, draw, *words, f"{ours.partners[draw.choice(sorted(ours.partners))].base}/")

    found = {
        "node": at_a_partner("client.bundle_guard"),
        "app at work": lambda draw: _kill_at_work(ours, draw),
        "app that waits": at_a_partner("client.app_process app"),
        "executor of a node": at_a_partner("client.app_process executor"),
        "isthmus-client up": at_a_partner("client.cli up"),
        "SuperLink": of("flower-superlink", f"--database={ours.home.superlink_state}"),
        "ServerApp": of("flwr-serverapp", ours.home.settings.superlink_address),
        "executor of ServerApps": of("flower-superexec", ours.home.settings.superlink_address),
        "registrar": of("server.registrar", home),
        "proxy": of("nginx: master", home),
        "isthmus-server up": of("server.cli up", home),
    }
    if database is not None:
        found["database"] = lambda draw: _power_cut(database, draw.uniform(0.5, 8.0))
    return found


def _kill(ours: Coordinated, draw: random.Random, *words: str) -> bool:
    """Kills one of what is found."""
    pids = sorted(ours.pids(*words))
    if not pids:
        return False
    try:
        os.kill(draw.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _kill_at_work(ours: Coordinated, draw: random.Random) -> bool:
    """An app that has a message: the process that waited for it is older, and waits for the next."""
    found = [ours.pids("client.app_process app", f"{settings.base}/") for settings in ours.partners.values()]
    busy = [max(pids, key=_begun) for pids in found if len(pids) > 1]
    if not busy:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(busy), signal.SIGKILL)
    return True


def _begun(pid: int) -> int:
    """When a process began, in ticks; 0 for one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def _power_cut(database: postgres.Server, for_s: float) -> bool:
    database.stop(signal.SIGKILL)
    time.sleep(for_s)
    database.start()
    return True


# --- what holds ---------------------------------------------------------------------------------------------------------------------------


def what_holds(run: Run, *, reserve: int) -> dict[str, tuple[int, int]]:
    """Nothing is lost, nothing that was spent is forgotten, and nothing is paid twice without a loss.

    Every ledger verifies against the coordinator's receipts. Of this run it holds one plan; each round has at most one commit, which is the
    last thing about it: no attempt follows. Attempts beyond the commits are within the reserve, and numbered without a gap. Every reply
    that ever counted is such a commit, by the receipts in the checkpoints.

    Returns:
        Domain -> commits, lost attempts.
    """
    run_id = Checkpoints(run.folder / "transfer_layer").newest()[0].run_id
    counted = _counted(run.folder)
    found = {}
    for domain, settings in run.ours.partners.items():
        audit = verify(settings.ledger_path, key=own_keys(settings).verify_key, receipts=run.ours.home.receipts)
        assert audit.status is Status.INTACT, (domain, audit.findings)
        mine = [event for event in read_events(settings.ledger_path) if event.payload.get("run_id") == run_id]
        commits = _one_commit_each(domain, mine)
        intents = [event for event in mine if event.kind == "intent"]
        kinds = Counter(event.kind for event in mine)
        assert kinds["schedule"] == 1, (domain, kinds)
        assert len(intents) <= run.now.rounds + reserve, (domain, kinds)
        assert {round: commits.get(round) for round in counted.get(domain, {})} == counted.get(domain, {}), domain
        found[domain] = (len(commits), len(intents) - len(commits))
    return found


def _one_commit_each(domain: str, events: list[Event]) -> dict[int, str]:
    """Round -> hash of its commit."""
    commits: dict[int, str] = {}
    attempts: Counter[int] = Counter()
    for event in events:
        if event.kind not in ("intent", "commit"):
            continue
        round = int(event.payload["round"])
        assert round not in commits, f"{domain}: round {round} was tried or committed again after its commit"
        attempts[round] += event.kind == "intent"
        assert event.payload["attempt"] == attempts[round], f"{domain}: attempts at round {round} are not numbered in order"
        if event.kind == "commit":
            commits[round] = event.hash
    return commits


def _counted(folder: Path) -> dict[str, dict[int, str]]:
    """Domain -> round -> head of its receipt, for every reply that went into a layer."""
    checkpoints, found = Checkpoints(folder / "transfer_layer"), dict[str, dict[int, str]]()
    for line in RoundLog(folder / "rounds.jsonl").read():
        receipts = checkpoints.load(line["round"]).receipts
        for domain in line["replies"]:
            found.setdefault(domain, {})[line["round"]] = receipts[domain].head_hash
    return found


def told(run: Run, held: dict[str, tuple[int, int]], began: float) -> str:
    """Figures of a run, for the report."""
    words = ", ".join(f"{domain} {commits} commits {lost} lost" for domain, (commits, lost) in held.items())
    submitted = len(RunRecord.read(run.folder).attempts)
    return f"{run.now.state} after {time.monotonic() - began:.0f} s, submitted {submitted} times; {words}"
