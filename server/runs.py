"""Run folders of a coordinator's home: made, found, and read while their ServerApp works and after it ended.

::

    runs/NAME-TIME/
      run.toml         the configuration, its noise solved         record.json     bundle, attempts
      partners.toml    -> those of the home                        bundle.sha256   what the contract names
      receipts.json    -> those of the home                        coordinator.keys -> the home's
      nodes.json       -> the SuperLink's                          domains.txt     who was enrolled: the contract names them
      journal.jsonl  rounds.jsonl  run_id.json  contract.json  transfer_layer/  federation.json  privacy_overview.json

The ServerApp finds everything beside ``run.toml``, so Flower has to be told a single path.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from shared.bundle import Bundle
from shared.config import RunConfig
from shared.errors import ConfigError, RunFolderError, StorageError, UsageError

from . import journal
from .app import RUN_FILE
from .contract_key import KEY_FILE
from .home import Home
from .journal import Journal
from .nodes import NODES_FILE
from .partners import PARTNERS_FILE, Partners
from .private_files import create_file
from .receipts import RECEIPTS_FILE
from .round_log import RoundLog
from .run_contract import BUNDLE_FILE, DOMAINS_FILE
from .run_record import RECORD_FILE, RunRecord, utc
from .too_few import BudgetUsedUp


class State(StrEnum):
    """What became of a run.

    WAITING: submitted, and no ServerApp has begun. LOST: its ServerApp is gone without a word. FAILED: it said why. STOPPED: by a person.
    BUDGET: it ended, correctly, because partners have nothing left for it.
    """

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    BUDGET = "budget"
    STOPPED = "stopped"
    LOST = "lost"

    @property
    def going_on(self) -> bool:
        return self in (State.WAITING, State.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run, as its folder tells.

    Args:
        stage: the last one that the ServerApp reported, in words.
        round, rounds: done, and planned.
        epsilon: spent by each domain so far, by its last receipt; None where it is infinite.
        refused: domain -> code -> how many replies were dropped.
        left_out: domain -> code; who does not take part in the rest of the run, and why.
        error: what ended it, as the journal holds it; None unless it failed or ran out of budget.
    """

    name: str
    folder: Path
    state: State
    stage: str
    round: int
    rounds: int
    replies: tuple[str, ...] = ()
    epsilon: Mapping[str, float | None] = field(default_factory=dict)
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] | None = None
    attempts: int = 1

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.name,
            "state": str(self.state),
            "stage": self.stage,
            "round": self.round,
            "rounds": self.rounds,
            "domains": list(self.replies),
            "epsilon": dict(self.epsilon),
            "refused": {domain: dict(codes) for domain, codes in self.refused.items()},
            "left_out": dict(self.left_out),
            "error": None if self.error is None else {key: self.error.get(key) for key in ("kind", "exit_code", "what", "do", "dropped")},
            "attempts": self.attempts,
            "folder": str(self.folder),
        }


def read_config(path: Path) -> RunConfig:
    """A run configuration with its noise solved.

    Raises:
        ConfigError: it cannot be read, or a key is unknown or out of range.
        UnreachableBudget: no noise reaches its epsilon.
    """
    from .schedule import solved

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{path} cannot be read", do="Name a run configuration; HOME/run.toml is one to begin with.") from None
    return solved(RunConfig.from_toml(text))


def prepare(home: Home, config: RunConfig, bundle: Bundle, *, expected_clients: int | None) -> Path:
    """Makes the folder of a new run. Nothing is submitted yet.

    Args:
        config: its noise solved.
        expected_clients: how many partners are connected.
    Raises:
        ConfigError: nobody is enrolled.
        StorageError: it cannot be made.
    """
    if not home.partners_file.is_file():  # without it anybody could take part
        raise ConfigError(
            f"{home.partners_file} is missing: nobody is enrolled", do="isthmus-server enroll HOME PARTNER.json enrolls a partner."
        )
    folder = _new_folder(home.runs, config.name)
    create_file(folder / RUN_FILE, config.to_toml().encode())
    create_file(folder / BUNDLE_FILE, f"{bundle.digest}\n".encode())
    links = {PARTNERS_FILE: home.partners_file, RECEIPTS_FILE: home.receipts, KEY_FILE: home.coordinator_keys, NODES_FILE: home.nodes_file}
    try:
        for name, target in links.items():
            (folder / name).symlink_to(os.path.relpath(target, folder))
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror})", do="Check the folder and the space that is left.") from None
    known = Partners.from_toml(home.partners_file.read_text(encoding="utf-8")).agreements or {}
    create_file(folder / DOMAINS_FILE, "".join(f"{name}\n" for name in sorted(known)).encode())
    RunRecord(name=folder.name, created_utc=utc(), bundle_digest=bundle.digest, expected_clients=expected_clients).write(folder)
    return folder


def _new_folder(runs: Path, name: str) -> Path:
    begun = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    for number in range(1, 100):
        folder = runs / (f"{name}-{begun}" if number == 1 else f"{name}-{begun}-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(f"{folder} cannot be made ({error.strerror})", do="Check the folder and the space that is left.") from None
        return folder
    raise StorageError(f"{runs} holds too many runs of this name", do="Choose another name in the run configuration.")


def all_runs(home: Home) -> list[Path]:
    """Run folders, oldest first."""
    if not home.runs.is_dir():
        return []
    found = (path for path in home.runs.iterdir() if (path / RECORD_FILE).is_file())
    return sorted(found, key=lambda path: (RunRecord.read(path).created_utc, path.name))


def find(home: Home, name: str) -> Path:
    """The folder of a run, by its name or the beginning of it; ``last`` is the newest.

    Raises:
        RunFolderError: there is none.
        UsageError: several begin so.
    """
    folders = all_runs(home)
    if name == "last" and folders:
        return folders[-1]
    names = [path for path in folders if path.name == name] or [path for path in folders if path.name.startswith(name)]
    if not names:
        known = ", ".join(path.name for path in folders[-5:]) or "none yet"
        raise RunFolderError(f"there is no run '{name}' in {home.runs}", do=f"The newest are: {known}.")
    if len(names) > 1:
        raise UsageError(f"several runs begin with '{name}'", do=f"Name one of {', '.join(path.name for path in names[:5])}.")
    return names[0]


def going_on(home: Home) -> list[RunStatus]:
    """Runs that wait or run. There is one at a time: a client keeps the configuration of one run."""
    return [one for one in map(status, all_runs(home)) if one.state.going_on]


def status(folder: Path) -> RunStatus:
    """A run as its folder tells, now.

    Raises:
        RunFolderError: it is no run folder, or damaged.
    """
    record = RunRecord.read(folder)
    config = RunConfig.from_toml(_text(folder / RUN_FILE))
    kept = journal.is_kept(folder)  # before the lines are read: what ends in between is read as ended
    lines = Journal(folder).read()
    rounds = RoundLog(folder / "rounds.jsonl").read()
    begun, end = _latest(lines)
    refused: dict[str, dict[str, int]] = {}
    for one in (pair for line in rounds for pair in line["refused"]):
        codes = refused.setdefault(one["domain"], {})
        codes[one["code"]] = codes.get(one["code"], 0) + 1
    last = rounds[-1] if rounds else None
    state = _state(record, begun, end, kept)
    return RunStatus(
        name=folder.name,
        folder=folder,
        state=state,
        stage=_stage(lines),
        round=last["round"] if last else 0,
        rounds=config.privacy.rounds,
        replies=tuple(last["replies"]) if last else (),
        epsilon=dict(last["epsilon"]) if last else {},
        refused=refused,
        left_out=journal.left_out(lines),
        error=end if state in (State.FAILED, State.BUDGET) else None,
        attempts=len(record.attempts),
    )


def _latest(lines: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The last begin of a ServerApp, and the end that it wrote down."""
    begun: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    for line in lines:
        if line["event"] == journal.BEGUN:
            begun, end = line, None
        elif line["event"] in (journal.FINISHED, journal.FAILED):
            end = line
    return begun, end


def _state(record: RunRecord, begun: dict[str, Any] | None, end: dict[str, Any] | None, kept: bool) -> State:
    last = record.attempts[-1] if record.attempts else None
    if end is not None and end["event"] == journal.FINISHED:
        return State.FINISHED
    if kept:
        return State.RUNNING
    if last is not None and last.stopped_utc:
        return State.STOPPED
    if last is not None and (begun is None or (begun.get("flower_run") != last.flower_run and begun["time"] <= last.submitted_utc)):
        return State.WAITING
    if end is not None:
        return State.BUDGET if end.get("kind") == BudgetUsedUp.__name__ else State.FAILED
    return State.LOST  # it began and is gone, or was never submitted


def _stage(lines: list[dict[str, Any]]) -> str:
    stages = [line for line in lines if line["event"] == journal.STAGE]
    return f"{stages[-1]['stage']} {stages[-1]['done']}/{stages[-1]['total']}" if stages else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RunFolderError(f"{path} cannot be read", do="Restore it from a copy.") from None
