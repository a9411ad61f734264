"""Runs of a comparison in processes of their own, several at a time.

A run is crash-safe and a process holds one run only, so a process that is killed costs one process: the run goes on in the next one. The
children notice by their standard input when this process is gone, and end.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import FederationError, IsthmusError

from .comparison_task import Task

ATTEMPTS = 3
"""Processes that may be lost over one run before it counts as failed."""

_GRACE_S = 25.0
_LOG_LINES = 5


class RemoteError(IsthmusError):
    """An error that a run met in its own process; it carries the exit code of its kind there."""

    def __init__(self, kind: str, what: str, do: str, exit_code: int) -> None:
        super().__init__(what, do=do)
        self.kind = kind
        self.exit_code = exit_code  # type: ignore[misc]  # of its kind there, which has no class here


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened to a task: ``begun``, ``stage``, ``note``, ``finished`` or ``failed``."""

    task: int
    kind: str
    stage: str = ""
    done: int = 0
    total: int = 0
    text: str = ""
    folder: Path | None = None
    error: IsthmusError | None = None


@dataclass(slots=True)
class _Child:
    task: int
    attempt: int
    process: subprocess.Popen[str]
    settled: bool = False


def run_all(tasks: Sequence[Task], *, jobs: int, logs: Path) -> Generator[Event]:
    """Makes every run, ``jobs`` at a time, and says what happens. Each task ends with one ``finished`` or ``failed``.

    When the caller leaves early or is interrupted, the children are ended; what they did is on disk.

    Args:
        logs: folder for what the children print, a file for each task.
    """
    logs.mkdir(parents=True, exist_ok=True)
    heard: queue.Queue[tuple[_Child, dict[str, Any] | None]] = queue.Queue()
    waiting = [(number, 1) for number in range(len(tasks))]
    living: list[_Child] = []
    try:
        while waiting or living:
            while waiting and len(living) < jobs:
                number, attempt = waiting.pop(0)
                living.append(_start(number, attempt, tasks[number], logs, heard, jobs))
                if attempt == 1:
                    yield Event(task=number, kind="begun")
            child, event = heard.get()
            if event is None:
                living.remove(child)
                _end([child])
                if not child.settled:
                    yield from _lost(child, logs, waiting)
            else:
                found = _event(child.task, event)
                child.settled |= found.kind in ("finished", "failed")
                yield found
    finally:
        _end(living)


def _start(
    number: int, attempt: int, task: Task, logs: Path, heard: queue.Queue[tuple[_Child, dict[str, Any] | None]], jobs: int
) -> _Child:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with _log(logs, number).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulations.comparison_task"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which ends its children in order
        )
    child = _Child(number, attempt, process)
    with contextlib.suppress(BrokenPipeError):  # it died already; its end is heard below
        assert process.stdin is not None
        process.stdin.write(task.to_json() + "\n")
        process.stdin.flush()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # half a line of a process that was killed
                heard.put((child, json.loads(line)))
        heard.put((child, None))

    threading.Thread(target=listen, daemon=True).start()
    return child


def _event(number: int, event: dict[str, Any]) -> Event:
    kind = str(event.get("event"))
    if kind == "stage":
        return Event(task=number, kind=kind, stage=event["stage"], done=event["done"], total=event["total"])
    if kind == "finished":
        return Event(task=number, kind=kind, folder=Path(event["folder"]))
    if kind == "failed":
        return Event(task=number, kind=kind, error=RemoteError(event["kind"], event["what"], event["do"], event["exit_code"]))
    return Event(task=number, kind="note", text=str(event.get("text", "")))


def _lost(child: _Child, logs: Path, waiting: list[tuple[int, int]]) -> Iterator[Event]:
    """A process ended without a word: once more, and at some point no more."""
    code = child.process.returncode
    how = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    if child.attempt < ATTEMPTS:
        waiting.insert(0, (child.task, child.attempt + 1))
        yield Event(task=child.task, kind="note", text=f"the process of a run {how}; the run goes on in another one")
        return
    log = _log(logs, child.task)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LOG_LINES:]
    last = f": {said[-1]}" if said else ""
    error = FederationError(f"the process of a run {how}, {ATTEMPTS} times{last}", do=f"Read {log}, then run the comparison again.")
    yield Event(task=child.task, kind="failed", error=error)


def _end(children: Sequence[_Child]) -> None:
    """Waits for children that said their last word; asks the others to end, and ends those that do not."""
    for child in children:
        if child.process.poll() is None and not child.settled:
            child.process.terminate()
    for child in children:
        try:
            child.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        for pipe in (child.process.stdin, child.process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _log(logs: Path, number: int) -> Path:
    return logs / f"run-{number:03d}.log"
