"""``record.json`` in a run folder: what was submitted, which file, and how often. Written by commands, read by the ServerApp."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import RunFolderError

from .checkpoints import replace_file

RECORD_FILE = "record.json"
FORMAT = "isthmus-run-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One submission of a run: by `run`, or again by `resume`.

    Args:
        flower_run: Flower's number of it.
        stopped_utc: when somebody stopped it; empty otherwise.
    """

    flower_run: int
    submitted_utc: str
    stopped_utc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the coordinator's commands know about a run.

    Args:
        name: of the run folder; `status`, `resume`, `stop` and `report` find the run by it.
        bundle_digest: sha256 of the bundle that runs, in every attempt.
        expected_clients: partners who were connected at the last submission and whose agreement allows the run; None: not known.
    """

    name: str
    created_utc: str
    bundle_digest: str
    expected_clients: int | None = None
    attempts: tuple[Attempt, ...] = ()

    @classmethod
    def find(cls, folder: Path) -> RunRecord | None:
        """The record of a run folder; None where there is none, as in simulations.

        Raises:
            RunFolderError: it is damaged.
        """
        path = folder / RECORD_FILE
        try:
            values = json.loads(path.read_bytes())
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            attempts = tuple(Attempt(**one) for one in values.pop("attempts"))
            return cls(**values, attempts=attempts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise RunFolderError(f"{path} cannot be read", do="Restore it, or start a new run.") from None

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record of a run folder.

        Raises:
            RunFolderError: there is none, or it is damaged.
        """
        record = cls.find(folder)
        if record is None:
            raise RunFolderError(f"{folder} is no run folder", do="isthmus-server status HOME lists the runs.")
        return record

    def write(self, folder: Path) -> RunRecord:
        """Replaces the record in one step and returns it."""
        values: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        replace_file(folder / RECORD_FILE, (json.dumps(values, indent=1) + "\n").encode())
        return self

    def submitted(self, flower_run: int) -> RunRecord:
        return dataclasses.replace(self, attempts=(*self.attempts, Attempt(flower_run=flower_run, submitted_utc=utc())))

    def stopped(self) -> RunRecord:
        """The same with its last attempt marked as stopped."""
        if not self.attempts:
            return self
        last = dataclasses.replace(self.attempts[-1], stopped_utc=utc())
        return dataclasses.replace(self, attempts=(*self.attempts[:-1], last))


def utc() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
