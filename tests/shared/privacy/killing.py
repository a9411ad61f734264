"""Kills processes at every place.

They are real children of this one. Each counts the lines of the ledger's code and the instructions of SQLite's machine that it runs, and
ends itself with SIGKILL at one of them; together they are killed at all of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import shared.privacy.ledger_database as ledger_database
import shared.privacy.ledger_file as ledger_file

Step = Callable[[], object]

ROOM = str(Path(ledger_file.__file__).parent)
NEVER = 10**9


class Countdown:
    """Ends this process with SIGKILL at the n-th line of the room's code, or instruction of SQLite, that it runs once it is armed."""

    def __init__(self, at: int) -> None:
        self.at, self.passed, self.armed = at, 0, False

    def tick(self) -> int:
        self.passed += self.armed
        if self.passed == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        if event == "line":
            self.tick()
        return self.trace

    def run(self, prepare: Callable[[], Step]) -> None:
        connect = ledger_database.connect

        def watched(path: Path, mode: str) -> Any:
            connection = connect(path, mode)
            connection.set_progress_handler(self.tick, 1)
            return connection

        ledger_database.connect = ledger_file.connect = watched  # a real connection, watched
        step = prepare()
        self.armed = True
        sys.settrace(self.trace)
        step()
        sys.settrace(None)


def in_child(prepare: Callable[[], Step], at: int) -> tuple[bool, int]:
    """Runs a step in a child that is killed at its tick ``at``: whether the step returned, and how many ticks it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            countdown = Countdown(at)
            countdown.run(prepare)
            os.write(writing, f"{countdown.passed}".encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 64), b""))
    os.close(reading)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed on its own account"
    return bool(said), int(said or 0)


def killed_everywhere(
    folder: Path, at_rest: Path, prepare: Callable[[Path], Step], check: Callable[[Path, bool], None], *, stride: int = 1
) -> int:
    """Kills a step at every ``stride``-th tick, each time in a copy of ``at_rest``, and checks what is left. Returns how often."""
    place = folder / "killed"
    last, at, times = NEVER, NEVER, 0
    while at <= last:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(at_rest, place)
        returned, ticks = in_child(lambda: prepare(place), at)
        check(place, returned)
        if last == NEVER:
            assert returned
            last, at = ticks, 1
        else:
            at, times = at + stride, times + 1
    return times
