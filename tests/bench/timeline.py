"""Where the seconds of a round go, out of what `trace/sitecustomize.py` wrote down: the same reading for any Flower app."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

ASKING = ("Fleet/PullMessages", "Fleet/PullObject", "Fleet/PushMessages", "Fleet/PushObject")
_EMPTY = 32
"""Bytes of an answer that brings no message and no task."""
PARTS = (
    "sending",
    "until the node asks for messages",
    "until its executor has the task",
    "until an app process asks for it",
    "the app before training",
    "training",
    "the app after training",
    "until the node sees the reply",
    "the reply's way to the coordinator",
    "until the coordinator asks for it",
    "averaging, logs and checkpoint",
)
"""Parts of a round in their order, for the node whose reply came last; together they are the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One request, or one call of a timed function; times in seconds since the epoch."""

    begin: float
    end: float
    node: str
    pid: int
    what: str
    bytes: int
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Seconds of one round.

    Args:
        wall: from sending its instructions to sending the next ones.
        training: the longest local training in it.
        parts: of `PARTS`, in their order.
        processor: processor time of the process of a message, training included: since its fork, or where it was started, since then.
    """

    wall: float
    training: float
    parts: tuple[float, ...]
    processor: float

    @property
    def overhead(self) -> float:
        return self.wall - self.training


def read(folder: Path) -> list[Event]:
    """All events of a federation, by their ends."""
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sorted((Event(**json.loads(line)) for line in lines), key=lambda event: event.end)


def questions(events: Sequence[Event]) -> list[Event]:
    """Each time when the coordinator's app sent messages."""
    return [event for event in events if event.what == "Runtime/PushMessages" and not event.node]


def rounds(events: Sequence[Event], first: int, count: int) -> list[Round]:
    """What happened between the coordinator's questions.

    Args:
        first: the question that is round 1.
        count: rounds; one more question has to follow the last of them.
    """
    asked = questions(events)
    if len(asked) < first + count + 1:
        raise ValueError(f"the coordinator asked {len(asked)} times, not the {first + count + 1} times that a whole run takes")
    return [_round(events, asked[at], asked[at + 1]) for at in range(first, first + count)]


def _round(events: Sequence[Event], question: Event, following: Event) -> Round:
    within = [event for event in events if event.begin >= question.begin and event.end <= following.begin]
    own = [event for event in within if not event.node and event.pid == question.pid]
    nodes = sorted({event.node for event in within if event.what == "Fleet/PushMessages"})
    slowest = max(nodes, key=lambda node: _last(within, node, "Fleet/PushMessages", "Fleet/PushObject").end)
    mine = [event for event in within if event.node == slowest]
    sent = max([question.end, *(event.end for event in own if event.what == "Runtime/PushObject")])
    pulled = _first(mine, lambda event: event.what == "Fleet/PullMessages" and event.bytes > _EMPTY)
    task = _first(mine, lambda event: event.what == "Runtime/AcquireTask" and event.bytes > _EMPTY)
    wanted = _first(mine, lambda event: event.what == "Runtime/PullTaskInput")
    answered = _first(mine, lambda event: event.what == "Runtime/PushMessages")
    left = _first(mine, lambda event: event.what == "Fleet/PushMessages")
    arrived = _last(mine, slowest, "Fleet/PushMessages", "Fleet/PushObject").end
    got = max(event.end for event in own if event.what in ("Runtime/PullMessages", "Runtime/PullObject", "Runtime/ConfirmMessageReceived"))
    trained = [event for event in mine if event.what == "train"]
    begun, done = (trained[0].begin, trained[0].end) if trained else (answered.begin, answered.begin)
    at = [
        question.begin,
        min(sent, pulled.begin),
        pulled.end,
        task.end,
        wanted.begin,
        begun,
        done,
        answered.begin,
        left.begin,
        arrived,
        got,
    ]
    longest = max((event.end - event.begin for event in within if event.what == "train"), default=0.0)
    apps = {event.pid for event in within if event.node and event.what == "Runtime/PullTaskInput"}
    return Round(
        wall=following.begin - question.begin,
        training=longest,
        parts=tuple(later - earlier for earlier, later in zip(at, [*at[1:], following.begin], strict=True)),
        processor=fmean(max(event.cpu for event in within if event.pid == app) for app in apps),
    )


def _first(events: Sequence[Event], is_it: Callable[[Event], bool]) -> Event:
    return next(event for event in events if is_it(event))


def _last(events: Sequence[Event], node: str, *what: str) -> Event:
    return [event for event in events if event.node == node and event.what in what][-1]
