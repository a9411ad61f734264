"""Submitting a run, and submitting it again after a crash: the checks that come first, and the two steps that change something."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared import bundle as bundles
from shared.bundle import Bundle
from shared.config import RunConfig
from shared.errors import ConfigError, DataError, FederationError, UsageError

from . import flower_internals, journal
from .app import RUN_FILE
from .enrolment import cards
from .home import Home
from .price import Price, price
from .receipts import ReceiptsFile
from .run_record import RunRecord
from .runs import State, going_on, prepare, read_config, status
from .submission import Control

Tell = Callable[[str], None]
_PAUSE_S = 0.5
_STOP_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A run that could be submitted.

    Args:
        config: its noise solved.
        bundle: the very file.
    """

    config: RunConfig
    bundle: Bundle
    price: Price


def plan(home: Home, run_toml: Path, named: str) -> Plan:
    """Checks a configuration, finds the bundle, and prices the run for everybody who is enrolled.

    Raises:
        ConfigError: the configuration or a partner's card cannot be used, or nobody is enrolled.
        DataError: the bundle is none of ours.
        UnreachableBudget: no noise reaches its epsilon.
    """
    config = read_config(run_toml)
    known = cards(home)
    if not known or not home.partners_file.is_file():
        raise ConfigError("nobody is enrolled", do=f"isthmus-server enroll {home.root} PARTNER.json enrolls a partner.")
    return Plan(
        config=config, bundle=find_bundle(home, named), price=price(config, list(known.values()), ReceiptsFile(home.receipts).load())
    )


def find_bundle(home: Home, named: str = "") -> Bundle:
    """The bundle of a run: a file, a digest or the beginning of one; else the only one of the home, or one that is built now.

    Raises:
        UsageError: several could be meant.
        DataError: it is none of ours.
        ConfigError: there is none, and no checkout to build one of.
    """
    if named and (file := Path(named)).is_file():
        found = bundles.read_file(file)
        bundles.save(found, home.bundles)
        return found
    files = sorted(path for path in home.bundles.glob("*.fab") if path.name.startswith(named))
    if not files and named:
        raise UsageError(f"there is no bundle '{named}'", do=f"Name a file, or one of those in {home.bundles}.")
    if len(files) > 1:
        digests = ", ".join(path.stem[:16] for path in files)
        raise UsageError(f"{home.bundles} holds several bundles", do=f"Say which partners allowed, with --bundle: {digests}.")
    if not files:
        found = bundles.build(bundles.project_folder())
        bundles.save(found, home.bundles)
        return found
    found = bundles.read_file(files[0])
    if found.digest != files[0].stem:
        raise DataError(f"{files[0]} is not the bundle that its name says", do="Delete it, and build it again or get it back.")
    return found


def wait_for(control: Control, plan: Plan, domains: Sequence[str], tell: Tell) -> list[str]:
    """Waits until partners are connected.

    Args:
        domains: who has to be there; empty: as many as a round needs. The wait is bounded by ``aggregation.wait_s``.
    Returns:
        Domains that are connected, whether they would take part or not.
    Raises:
        UsageError: one of the domains is not enrolled.
        ConfigError: too few agreed to a run like this.
        FederationError: too few came in time.
    """
    enrolled, willing = [one.domain for one in plan.price.domains], plan.price.willing()
    if unknown := sorted(set(domains) - set(enrolled)):
        raise UsageError(f"not enrolled: {', '.join(unknown)}", do=f"Enrolled are {', '.join(enrolled)}.")
    least = plan.config.aggregation.min_clients
    if len(willing) < least or set(domains) - set(willing):
        against = "\n  ".join(line for one in plan.price.domains for line in one.against) or f"{len(enrolled)} enrolled"
        raise ConfigError(
            f"a round needs {least} partners, and {len(willing)} agreed to a run like this\n  {against}",
            do="Change the configuration, or agree with the partners on other ranges and have them enrol again.",
        )
    until, said = time.monotonic() + plan.config.aggregation.wait_s, ""
    while True:
        there = [node.name for node in control.nodes() if node.online and node.name in enrolled]
        missing = sorted(set(domains) - set(there))
        if not missing and len(set(there) & set(willing)) >= least:
            return sorted(there)
        line = f"connected: {', '.join(sorted(there)) or 'nobody'}; waiting for {', '.join(missing) or 'more partners'}"
        if time.monotonic() > until:
            absent = sorted(set(willing) - set(there))
            raise FederationError(
                f"{len(set(there) & set(willing))} of at least {least} partners are connected; not there: {', '.join(absent)}",
                do="Ask them to start isthmus-client up, and look at HOME/logs/registrar.log; then try again.",
            )
        if line != said:
            tell(line)
        said = line
        time.sleep(_PAUSE_S)


def submit(home: Home, control: Control, plan: Plan, there: Sequence[str]) -> Path:
    """Makes the run folder and submits the run; returns the folder.

    Raises:
        UsageError: a run is going on.
        FederationError: the SuperLink does not take it.
    """
    flower_internals.verify()
    if others := going_on(home):
        raise UsageError(
            f"{others[0].name} is going on: a client works on one run at a time",
            do=f"Wait for it, or isthmus-server stop {home.root} {others[0].name}.",
        )
    folder = prepare(home, plan.config, plan.bundle, expected_clients=len(there))
    _submit(control, folder, RunRecord.read(folder), plan.bundle)
    return folder


def resume(home: Home, control: Control, folder: Path) -> RunRecord:
    """Submits an unfinished run again: the same folder, configuration and bundle. It goes on from its newest checkpoint.

    Raises:
        UsageError: it is going on, or has ended well.
        ConfigError: its bundle is gone.
        FederationError: the SuperLink does not take it.
    """
    flower_internals.verify()
    now, record = status(folder), RunRecord.read(folder)
    if now.state is State.FINISHED:
        raise UsageError(f"{folder.name} has ended well, with all {now.rounds} rounds", do="Start a new run.")
    if now.state is State.RUNNING:
        raise UsageError(f"{folder.name} is going on", do=f"isthmus-server status {home.root} shows it.")
    if others := [one for one in going_on(home) if one.name != folder.name]:
        raise UsageError(f"{others[0].name} is going on: a client works on one run at a time", do="Wait for it, or stop it.")
    RunConfig.from_toml((folder / RUN_FILE).read_text(encoding="utf-8"))
    found = find_bundle(home, record.bundle_digest)
    if record.attempts:
        control.stop(record.attempts[-1].flower_run)  # Flower notices a dead ServerApp after a minute only
    return _submit(control, folder, record, found)


def stop(control: Control | None, folder: Path) -> bool:
    """Stops a run: its ServerApp ends after what it is doing; what it committed stays.

    Returns:
        Whether there was anything to stop.
    Raises:
        FederationError: its ServerApp did not end in a minute.
    """
    record = RunRecord.read(folder)
    if not status(folder).state.going_on or not record.attempts:
        return False
    record.stopped().write(folder)
    if control is not None:
        control.stop(record.attempts[-1].flower_run)
    until = time.monotonic() + _STOP_S
    while journal.is_kept(folder):
        if time.monotonic() > until:
            raise FederationError(f"the ServerApp of {folder.name} has not ended in {_STOP_S:.0f} s", do="Stop isthmus-server up.")
        time.sleep(_PAUSE_S)
    return True


def _submit(control: Control, folder: Path, record: RunRecord, found: Bundle) -> RunRecord:
    if found.digest != record.bundle_digest:
        raise ConfigError(f"{folder.name} began with another bundle", do="Bring the file back: its contract names it.")
    return record.submitted(control.submit(found, folder)).write(folder)
