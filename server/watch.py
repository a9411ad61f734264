"""Watching a run from its folder: stages, rounds, who answered, what was refused, epsilon by domain; and how it ended.

Nothing here is needed by the run: whoever stops watching leaves it running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.errors import FederationError, IsthmusError

from . import journal
from .journal import Journal
from .round_log import RoundLog
from .run_record import RunRecord
from .runs import RunStatus, State, status
from .submission import Control

_PAUSE_S = 0.3
_ASK_S = 3.0
_LONG_WAIT_S = 20.0
Tell = Callable[[str], None]


class Lost(FederationError):
    """The ServerApp of a run is gone without a word: it was killed, or its machine was."""


def follow(folder: Path, control: Control, tell: Tell, *, seen: int = 0) -> RunStatus:
    """Tells what a run does until it ends.

    Args:
        folder: of the run, submitted.
        control: of its SuperLink; asked whether the run still lives as long as no ServerApp has begun.
        tell: a line each.
        seen: lines of the journal that were told before.
    Raises:
        Lost: its ServerApp is gone; `resume` goes on from the last checkpoint.
        FederationError: it ended before its last round, with the reason, or was stopped.
    """
    waiting, asked, warned = time.monotonic(), 0.0, False
    while True:
        now = status(folder)
        lines = Journal(folder).read()
        for line in lines[seen:]:
            if words := _words(line, folder):
                tell(words)
        seen = len(lines)
        if not now.state.going_on:
            return _ended(now)
        if now.state is State.WAITING:
            if time.monotonic() - asked > _ASK_S:
                asked = time.monotonic()
                _check_pending(folder, control)
            if not warned and time.monotonic() - waiting > _LONG_WAIT_S:
                warned = True
                tell("no executor has taken the run yet; is isthmus-server up running?")
        time.sleep(_PAUSE_S)


def _ended(now: RunStatus) -> RunStatus:
    done, on = f"{now.round} of {now.rounds} rounds are done and kept", f"isthmus-server resume {now.folder.parents[1]} {now.name} goes on"
    if now.state is State.LOST:
        raise Lost(f"the ServerApp of {now.name} is gone; {done}", do=f"{on} from there.")
    if now.state is State.STOPPED:
        raise FederationError(f"{now.name} was stopped; {done}", do=f"{on} from there.")
    if now.state is State.BUDGET and now.error is not None:
        raise FederationError(f"{now.name} ended in the state budget; {done}: {now.error.get('what')}", do=str(now.error.get("do") or ""))
    if now.state is State.FAILED and now.error is not None:
        raise FederationError(
            f"{now.name} ended after {now.round} of {now.rounds} rounds: {now.error.get('what')}",
            do=f"{now.error.get('do') or ''} {on} from the last checkpoint.".strip(),
        )
    return now


def _check_pending(folder: Path, control: Control) -> None:
    """A run that Flower has ended before its ServerApp could begin, for example because its bundle cannot be imported."""
    record = RunRecord.read(folder)
    if not record.attempts:
        return
    try:
        run = control.run(record.attempts[-1].flower_run)
    except IsthmusError:
        return  # the SuperLink is starting again; what is pending waits
    if run.finished and status(folder).state is State.WAITING:
        raise FederationError(
            f"{folder.name} ended before it began: {run.details[:300] or run.status}",
            do=f"Look at {folder.parents[1]}/logs/executor.log, then isthmus-server resume {folder.parents[1]} {folder.name}.",
        )


def _words(line: Mapping[str, Any], folder: Path) -> str:
    event = line["event"]
    if event == journal.BEGUN:
        return "the ServerApp has begun"
    if event == journal.NOTE:
        return str(line.get("text", ""))
    if event != journal.STAGE:
        return ""
    stage, done, total = line.get("stage"), line.get("done"), line.get("total")
    if stage != "train":
        return f"{_STAGES.get(str(stage), stage)}: {done} of {total}"
    found = [one for one in RoundLog(folder / "rounds.jsonl").read() if one["round"] == done]
    return f"round {done} of {total}{round_words(found[-1]) if found else ''}"


_STAGES = {
    "hello": "agreed to the run",
    "moments": "answered for the interest space",
    "centroids": "answered for its prototypes",
    "descriptor": "gave a descriptor",
    "deliver": "hold the final layer",
}


def round_words(line: Mapping[str, Any]) -> str:
    """A round in words, as a line of the round log holds it.

    >>> round_words({"seconds": 4.25, "replies": ["arts"], "refused": [{"domain": "books", "code": "norm"}], "epsilon": {"arts": 0.5}})
    '   4.2 s   arts   epsilon arts 0.50   refused books: norm'
    """
    spent = ", ".join(f"{domain} {epsilon_words(value)}" for domain, value in sorted(line["epsilon"].items()))
    refused = ", ".join(f"{one['domain']}: {one['code']}" for one in line["refused"])
    parts = [f"{line['seconds']:.1f} s", ", ".join(line["replies"]), f"epsilon {spent}" if spent else "", refused and f"refused {refused}"]
    return "".join(f"   {part}" for part in parts if part)


def epsilon_words(value: float | None) -> str:
    """An epsilon for people; a missing one is infinite.

    >>> epsilon_words(1.234), epsilon_words(None)
    ('1.23', 'infinite')
    """
    return "infinite" if value is None else f"{value:.2f}"
