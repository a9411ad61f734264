"""How a comparison tells what it does: bars in a terminal, lines in a log, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any


class Silence:
    """For ``--quiet``: failures are still raised at the end."""

    def begun(self, name: str) -> None: ...

    def stage(self, name: str, stage: str, done: int, total: int) -> None: ...

    def ended(self, name: str, done: int, total: int, *, failed: bool) -> None: ...

    def note(self, text: str) -> None: ...


class _Timed(Silence):
    """Knows since when each run is at work, and how long they take."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._since: dict[str, float] = {}
        self._took: list[float] = []

    def begun(self, name: str) -> None:
        self._since[name] = time.monotonic()

    def _end(self, name: str) -> float:
        took = time.monotonic() - self._since.pop(name, time.monotonic())
        self._took.append(took)
        return took

    def _left(self, runs: int) -> str:
        """A guess at what is still to come, from the mean of the runs so far."""
        if not self._took or not runs:
            return ""
        seconds = sum(self._took) / len(self._took) * runs / self._jobs
        return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


class Lines(_Timed):
    """For a log: a line when a run ends, and one for each note."""

    def ended(self, name: str, done: int, total: int, *, failed: bool) -> None:
        took = self._end(name)
        if total:
            how = "failed after" if failed else "took"
            print(f"{done} of {total} runs{self._left(total - done)}: {name} {how} {took:.0f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bars(_Timed):
    """For a terminal: all runs on top, below them each run at work with its stage."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=RichConsole(stderr=True), transient=True)
        self._all = self._bars.add_task("runs", total=None)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begun(self, name: str) -> None:
        super().begun(name)
        self._tasks[name] = self._bars.add_task(name, total=None)

    def stage(self, name: str, stage: str, done: int, total: int) -> None:
        if name in self._tasks:
            self._bars.update(self._tasks[name], description=f"{name}: {stage}", completed=done, total=total)

    def ended(self, name: str, done: int, total: int, *, failed: bool) -> None:
        self._end(name)
        if name in self._tasks:
            self._bars.remove_task(self._tasks.pop(name))
        if total:
            self._bars.update(self._all, completed=done, total=total, description=f"runs{self._left(total - done)}")

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)
