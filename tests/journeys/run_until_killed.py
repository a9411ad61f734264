"""A child process that runs a scenario and kills itself, for real, at a chosen place: ``python -m tests.journeys.run_until_killed``.

The argument is JSON: ``{"at": place, "domain": domain, "round": round, "how": arguments of run_scenario}``. Places are those between two
steps of the promise: each is right AFTER what it names.

==========  ========================================================================
admit       a domain reserved the run's schedule; there is no checkpoint yet
intent      the attempt is booked; nothing is trained yet
state       the new training state replaced the old one; it is not committed yet
commit      the bytes are committed; the reply never reaches the server
line        the round's line is written; its checkpoint is not
checkpoint  the round is over; the next one has not begun
control     a control booked its first attempt; the federation itself is done
==========  ========================================================================
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from client.state import State, StateFolder
from server.checkpoints import Checkpoint, Checkpoints
from server.round_log import RoundLog, RoundReport
from shared.privacy.ledger import Ledger
from simulations.controls import TARGET_ONLY
from simulations.scenario import run_scenario


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(kind: type, name: str, here: Callable[..., bool]) -> None:
    """Kills this process once ``kind.name`` has returned from a call that ``here`` recognises."""
    original = getattr(kind, name)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **how: Any) -> Any:
        result = original(self, *args, **how)
        if here(self, *args, **how):
            die()
        return result

    setattr(kind, name, wrapped)


def in_control(ledger: Ledger) -> bool:
    return TARGET_ONLY in str(ledger._file.path)


def arm(at: str, domain: str, round: int) -> None:
    """Sets the trap."""

    def of_round(ledger: Ledger, **how: Any) -> bool:
        return not in_control(ledger) and (ledger.domain, how["round"]) == (domain, round)

    def of_state(folder: StateFolder, state: State) -> bool:
        return state.key is not None and state.key.round == round and folder._snapshots.path.parts[-3] == domain

    def of_checkpoint(checkpoints: Checkpoints, checkpoint: Checkpoint) -> bool:
        return checkpoint.round == round

    def of_line(log: RoundLog, report: RoundReport) -> bool:
        return report.round == round

    traps: dict[str, tuple[type, str, Callable[..., bool]]] = {
        "admit": (Ledger, "admit", lambda ledger, **how: ledger.domain == domain),
        "intent": (Ledger, "intent", of_round),
        "state": (StateFolder, "replace", of_state),
        "commit": (Ledger, "commit", of_round),
        "line": (RoundLog, "append", of_line),
        "checkpoint": (Checkpoints, "save", of_checkpoint),
        "control": (Ledger, "intent", lambda ledger, **how: in_control(ledger) and ledger.domain == domain),
    }
    after(*traps[at])


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    arm(task["at"], task["domain"], task["round"])
    how = task["how"]
    for key in ("out", "resume"):
        if how.get(key) is not None:
            how[key] = Path(how[key])
    print(run_scenario(**how))
