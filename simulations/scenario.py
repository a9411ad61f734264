"""One simulated run, from a scenario's name to a run folder: homes, federation, controls, ranks, metrics, report."""

from __future__ import annotations

import functools
import json
import logging
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from client.app import build_client_app
from client.evaluation import EvaluatedDomain, evaluated
from client.key_rotation import own_keys
from client.preparation import prepare
from client.settings import ClientSettings
from server.checkpoints import Checkpoints
from server.receipts import RECEIPTS_FILE
from server.strategy import Outcome, TooFewClients
from shared.config import RunConfig
from shared.errors import BudgetExhausted, IsthmusError, LedgerError, RunFolderError
from shared.privacy.accountant import crosscheck
from shared.privacy.ledger import Ledger

from . import ranking
from .controls import one_of, target_only
from .federation import run
from .metrics import Bytes, DomainPrivacy, Metrics, Seconds, build_metrics, write_metrics
from .partners import data_folders, forget_prepared, settings_of, settle
from .ranks import write_ranks
from .run_folder import RunFolder
from .scenario_config import Scenario, load
from .shared_work import SharedWork
from .synthetic_domains import write as write_synthetic
from .told import told

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

_SCENARIO = "scenario.json"
_VERSIONS = ("isthmus", "flwr", "opacus", "torch", "dp-accounting", "numpy", "polars", "transformers")


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total


@dataclass(slots=True)
class Clock:
    """Seconds by stage."""

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, stage: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begun

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started


def run_scenario(
    name: str,
    *,
    out: Path,
    seed: int = 0,
    split_seed: int = 0,
    epsilon: float | None = None,
    engine: str = "in-process",
    data: Path | None = None,
    ledgers: Path | None = None,
    resume: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
    keep_prepared: bool = False,
    with_target_only: bool = True,
    work: SharedWork | None = None,
) -> Path:
    """Runs a scenario to its end.

    Args:
        name: of a built-in scenario, or the path of a TOML file; with ``resume`` it is read from the folder.
        out: folder in which the run folder is made.
        seed: of everything but privacy noise.
        split_seed: names who is held out.
        epsilon: target of the run; inf for one without privacy; None as the scenario says.
        engine: one of `federation.ENGINES`.
        data: folder of the data sets; None as ``ISTHMUS_DATA`` says.
        ledgers: folder of ledgers that outlive the run; made where there are none.
        resume: an interrupted run folder to go on with.
        overrides: dotted configuration key -> value.
        progress: see `Progress`.
        note: told what preparation found in the partners' files, a line at a time.
        keep_prepared: keep the partners' prepared arrays in the run folder.
        with_target_only: train each domain alone too; about doubles the time. A resumed run goes on as it began.
        work: keeps prepared data and the rows of controls for other runs.
    Returns:
        The run folder.
    Raises:
        IsthmusError: any of them; see `shared.errors`.
    """
    tell, clock = progress or _silent, Clock()
    if resume is not None:
        folder, scenario, settings, split_seed, with_target_only = _reopen(resume)
    else:
        scenario = load(name, seed=seed, epsilon=epsilon, overrides=overrides)
        folder, settings = _begin(scenario, out, data, split_seed, ledgers, with_target_only)
    config = scenario.run
    _ledgers_are_free(settings)
    if work is not None:
        work.lend(folder, settings, config)
    clock.timed("text_encoding", functools.partial(_prepare, settings, config, tell, note))
    if work is not None and resume is None:
        work.keep(settings, config)
    outcome = clock.timed("training", lambda: _federate(folder, scenario, settings, engine, resume is not None, tell))
    stayed = [one for one in settings if one.domain in outcome.delivered]
    control = functools.partial(target_only, folder, config, stayed if with_target_only else [], functools.partial(_prefixed, tell))
    twins = clock.timed("controls", control)
    clock.timed("evaluation", lambda: _evaluate(folder, stayed, twins, tell, work))
    if work is not None and resume is None:
        work.keep(settings, config)  # once more: coordinates and the blend for warm users came with the delivery
    metrics = _measure(folder, scenario, settings, outcome, split_seed, clock, tell)
    write_metrics(folder.metrics, metrics)
    if not keep_prepared:
        forget_prepared([*twins, *settings])
    _present(folder)
    return folder.path


def _prepare(settings: Sequence[ClientSettings], config: RunConfig, tell: Progress, note: Callable[[str], None] | None) -> None:
    """Prepares every domain, then says what was found."""
    prepared = {}
    for number, one in enumerate(settings):
        prepared[one.domain] = prepare(one, config, functools.partial(tell, f"prepare {one.domain}"))
        tell("prepare", number + 1, len(settings))
    if note is not None:
        for line in told(prepared):
            note(line)


def _prefixed(tell: Progress, stage: str, done: int, total: int) -> None:
    tell(f"control {stage}", done, total)


def _begin(
    scenario: Scenario, out: Path, data: Path | None, split_seed: int, ledgers: Path | None, with_target_only: bool
) -> tuple[RunFolder, list[ClientSettings]]:
    config = scenario.run
    sources = data_folders(scenario, data) if scenario.data.kind == "folder" else None
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = RunFolder(out / f"{stamp}-{config.name}-{config.config_hash[:8]}-{split_seed}").create(config)
    if sources is None:
        from .synthetic_domains import KINDS

        write_synthetic(folder.path / "data", scenario.synthetic, config.seed)
        sources = {domain: (folder.path / "data" / domain).absolute() for domain in sorted(KINDS)}
    settings = settle(folder, scenario, sources, split_seed=split_seed, ledgers=ledgers)
    kept = {"split_seed": split_seed, "ceiling": scenario.ceiling_epsilon, "target_only": with_target_only}
    (folder.path / _SCENARIO).write_text(json.dumps(kept), encoding="utf-8")
    return folder, settings


def _reopen(path: Path) -> tuple[RunFolder, Scenario, list[ClientSettings], int, bool]:
    folder = RunFolder(path).open()
    if folder.metrics.is_file():
        raise RunFolderError(f"{path} is finished already", do="Look at it with: isthmus-simulate report " + str(path))
    try:
        kept = json.loads((path / _SCENARIO).read_text(encoding="utf-8"))
        split_seed, with_target_only = int(kept["split_seed"]), bool(kept.get("target_only", True))
    except (OSError, ValueError, KeyError):
        raise RunFolderError(f"{path} cannot be resumed: it broke off before it was complete", do="Start the run anew.") from None
    return folder, Scenario(run=folder.config), settings_of(folder), split_seed, with_target_only


class _Causes(logging.Handler):
    """Why clients failed since the last round that counted. It never crosses the border, but here all of them stand on one desk."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[IsthmusError] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = getattr(record, "cause", None)
        if isinstance(cause, IsthmusError):
            self.errors.append(cause)

    def first(self) -> IsthmusError | None:
        """Later ones may only follow from it, as a used-up reserve does."""
        return self.errors[0] if self.errors else None


def _federate(
    folder: RunFolder, scenario: Scenario, settings: Sequence[ClientSettings], engine: str, resume: bool, tell: Progress
) -> Outcome:
    """The federation; where it cannot go on, the cause at the clients comes out as what it is."""
    app = build_client_app(functools.partial(one_of, list(settings)))
    begun = resume and bool(Checkpoints(folder.transfer_layer).rounds())
    causes, gate = _Causes(), logging.getLogger("isthmus.egress")

    def heard(stage: str, done: int, total: int) -> None:
        if stage != "deliver":
            causes.errors.clear()
        tell(stage, done, total)

    gate.addHandler(causes)
    try:
        receipts = _receipts(folder, settings)
        outcome = run(scenario.run, folder, engine, app, resume=begun, progress=heard, clients=len(settings), receipts=receipts)
        if not outcome.delivered:
            raise TooFewClients("deliver", 0, 1, outcome.not_delivered)
        return outcome
    except TooFewClients as error:
        if any(code == "refused-ceiling" for _, code in error.dropped):
            raise _exhausted(settings, error) from None
        raise causes.first() or error from None
    finally:
        gate.removeHandler(causes)


def _receipts(folder: RunFolder, settings: Sequence[ClientSettings]) -> Path:
    """The coordinator's receipts outlive a run where the ledgers do: they lie beside them."""
    (place,) = {one.ledger_path.parent for one in settings}
    return (folder.path if place == folder.ledgers.absolute() else place) / RECEIPTS_FILE


def _ledgers_are_free(settings: Sequence[ClientSettings]) -> None:
    """Nobody is asked for anything before every ledger can be written."""
    for one in settings:
        try:
            Ledger.open(one.ledger_path, signer=own_keys(one)).close()
        except LedgerError as error:
            raise type(error)(f"domain '{one.domain}': {error.what}", do=error.do) from None


def _exhausted(settings: Sequence[ClientSettings], error: TooFewClients) -> BudgetExhausted | TooFewClients:
    """Reads from the ledgers who refused, and how much was missing."""
    for one in settings:
        with Ledger.open(one.ledger_path, read_only=True) as ledger:
            for event in reversed(list(ledger.events())):
                if event.kind == "schedule":
                    break
                if event.kind == "refused":
                    return BudgetExhausted(
                        f"the run needs more than domain '{one.domain}' has left; nothing was trained",
                        requested=float.fromhex(str(event.payload["requested"])),
                        remaining=float.fromhex(str(event.payload["remaining"])),
                        ceiling=ledger.ceiling_epsilon,
                        delta=ledger.delta,
                    )
    return error


def _evaluate(
    folder: RunFolder, settings: Sequence[ClientSettings], twins: Sequence[ClientSettings], tell: Progress, work: SharedWork | None
) -> None:
    domains: dict[str, EvaluatedDomain] = {one.domain: evaluated(one) for one in settings}
    alone = {one.domain: evaluated(one) for one in twins}
    pairs = [(s, t) for s in domains for t in domains if s != t and s in domains[t].domain.prepared.links]
    for number, (source, target) in enumerate(pairs):
        tell("evaluate", number, len(pairs) + len(domains))
        for role, place in ((ranking.COLD, folder.ranks), (ranking.VALIDATION, folder.validation_ranks)):
            found = ranking.direction(domains[source], domains[target], alone.get(target), role=role, work=work)
            if found is not None:
                write_ranks(place / f"{source}-{target}.npz", found)
    for number, (name, domain) in enumerate(domains.items()):
        tell("evaluate", len(pairs) + number, len(pairs) + len(domains))
        warm = ranking.warm(domain, work=work)
        if warm is not None:
            write_ranks(folder.ranks / f"warm-{name}.npz", warm)
    tell("evaluate", len(pairs) + len(domains), len(pairs) + len(domains))


def _measure(
    folder: RunFolder,
    scenario: Scenario,
    settings: Sequence[ClientSettings],
    outcome: Outcome,
    split_seed: int,
    clock: Clock,
    tell: Progress,
) -> Metrics:
    config = scenario.run
    privacy = {}
    for number, one in enumerate(settings):
        tell("account", number, len(settings))
        privacy[one.domain] = domain_privacy(one)
    tell("account", len(settings), len(settings))
    rss = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
    return build_metrics(
        folder.ranks,
        privacy=privacy,
        seconds=Seconds(
            text_encoding=clock.seconds.get("text_encoding", 0.0),
            training=clock.seconds.get("training", 0.0),
            evaluation=clock.seconds.get("evaluation", 0.0),
            total=clock.total,
        ),
        bytes={domain: Bytes(up=traffic.up, down=traffic.down) for domain, traffic in outcome.traffic.items()},
        peak_rss_mb=rss / (2**20 if sys.platform == "darwin" else 2**10),
        config_hash=config.config_hash,
        versions={name: _version(name) for name in _VERSIONS} | {"python": platform.python_version()},
        seed=config.seed,
        split_seed=split_seed,
        epsilon_target=config.privacy.epsilon,
        noise=config.privacy.noise,
        private=config.privacy.private,
        generator=np.random.default_rng(config.seed),
    )


def domain_privacy(settings: ClientSettings) -> DomainPrivacy:
    """What a ledger adds up to, by three accountants."""
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        events = ledger.spent_events()
        found = crosscheck(events, ledger.delta)
        return DomainPrivacy(
            epsilon=ledger.epsilon_spent(),
            delta=ledger.delta,
            ceiling=ledger.ceiling_epsilon,
            pld=found.pld,
            prv=float("nan") if found.prv is None else found.prv,
            rdp=found.rdp,
            events=ledger.count_of_intents,
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _present(folder: RunFolder) -> None:
    from .report import write_report
    from .tensorboard import write_tensorboard

    write_tensorboard(folder)
    write_report(folder)
