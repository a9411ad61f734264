"""One run of a comparison, in this process or in one of its own: ``python -m simulations.comparison_task``.

The child reads its task from standard input, one JSON line, and writes events to standard output, one JSON line each::

    {"event": "stage", "stage": "train", "done": 3, "total": 15}
    {"event": "note", "text": "..."}
    {"event": "finished", "folder": "..."}
    {"event": "failed", "kind": "UnreachableBudget", "what": "...", "do": "...", "exit_code": 11}

Standard input stays open while the parent lives. When it ends, whatever ended the parent, the child goes too: its run can be resumed.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from shared.errors import FederationError, IsthmusError, RunFolderError, StateError

from .run_slots import Wanted, claim, finished_in, held, older_unfinished, slot_of, unfinished_in
from .variants import Variant

Progress = Callable[[str, int, int], None]
RunScenario = Callable[..., Path]
_GRACE_S = 20.0
_SECONDS_BETWEEN_EVENTS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A run as a comparison wants it.

    Args:
        scenario, engine, data, overrides: as for one run; the overrides are those of the whole comparison.
        folder: of the comparison.
        wanted: which of its runs.
        base: value of every configuration key where nothing is varied.
        with_target_only: train each domain alone too.
    """

    scenario: str
    folder: Path
    wanted: Wanted
    engine: str
    data: Path | None
    overrides: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    with_target_only: bool = True

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in ("scenario", "engine", "with_target_only")}
        values |= {"folder": str(self.folder), "data": None if self.data is None else str(self.data)}
        values |= {"overrides": dict(self.overrides), "base": dict(self.base), "variant": dict(self.wanted.variant.settings)}
        values |= {"epsilon": None if math.isinf(self.wanted.epsilon) else self.wanted.epsilon, "seed": self.wanted.seed}
        return json.dumps(values, default=str)

    @classmethod
    def from_json(cls, text: str) -> Task:
        values = json.loads(text)
        epsilon = math.inf if values["epsilon"] is None else values["epsilon"]
        return cls(
            **{name: values[name] for name in ("scenario", "engine", "with_target_only", "overrides", "base")},
            folder=Path(values["folder"]),
            data=None if values["data"] is None else Path(values["data"]),
            wanted=Wanted(epsilon=epsilon, seed=values["seed"], variant=Variant.of(values["variant"])),
        )


def make(task: Task, run_scenario: RunScenario, *, progress: Progress, note: Callable[[str], None]) -> Path:
    """Makes one run, or goes on with it where it broke off. Returns its folder.

    Raises:
        IsthmusError: whatever `run_scenario` raises; `RunFolderError` where another process works at the same run.
    """
    from .shared_work import SharedWork

    slot = slot_of(task.folder, task.wanted, task.base)
    work = SharedWork(task.folder / "cache")
    with held(slot):
        claim(slot, task.wanted)
        for done in finished_in(slot)[:1]:  # by another process, while this one waited for the lock
            if complete(done, with_target_only=task.with_target_only):
                return done
        for broken in [*unfinished_in(slot), *older_unfinished(task.folder, task.wanted)]:
            if begun_with_target_only(broken) < task.with_target_only:
                continue
            try:
                note(f"going on with {broken}")
                return run_scenario(
                    task.scenario, out=slot, seed=task.wanted.seed, engine=task.engine, resume=broken, progress=progress, work=work
                )
            except (RunFolderError, FederationError, StateError) as error:
                note(f"{broken} cannot be resumed, starting anew: {error.what}")
        return run_scenario(
            task.scenario,
            out=slot,
            seed=task.wanted.seed,
            split_seed=task.wanted.seed,
            epsilon=task.wanted.epsilon,
            engine=task.engine,
            data=task.data,
            overrides={**task.overrides, **task.wanted.variant.difference(task.base)},
            progress=progress,
            with_target_only=task.with_target_only,
            work=work,
        )


def complete(run: Path, *, with_target_only: bool) -> bool:
    """Whether a finished run has every row that is asked for."""
    return not with_target_only or begun_with_target_only(run)


def begun_with_target_only(run: Path) -> bool:
    try:
        return bool(json.loads((run / "scenario.json").read_text(encoding="utf-8")).get("target_only", True))
    except (OSError, ValueError, AttributeError):
        return True


def main() -> None:
    """The child's life: one task, then the end."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what a library prints is no event
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it ends its children itself
    signal.signal(signal.SIGTERM, _interrupt)
    task = Task.from_json(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        from .scenario import run_scenario

        folder = make(task, run_scenario, progress=_staged(events), note=partial(_note, events))
        _tell(events, {"event": "finished", "folder": str(folder)})
    except IsthmusError as error:
        _tell(events, {"event": "failed", "kind": type(error).__name__, "what": error.what, "do": error.do, "exit_code": error.exit_code})
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)


def _note(events: TextIO, text: str) -> None:
    _tell(events, {"event": "note", "text": text})


def _tell(events: TextIO, event: Mapping[str, Any]) -> None:
    print(json.dumps(event), file=events, flush=True)


def _staged(events: TextIO) -> Progress:
    last: list[Any] = ["", 0.0]

    def tell(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != last[0] or now - last[1] >= _SECONDS_BETWEEN_EVENTS:
            last[:] = [stage, now]
            _tell(events, {"event": "stage", "stage": stage, "done": done, "total": total})

    return tell


def _interrupt(number: int, frame: Any) -> None:
    del number, frame
    raise KeyboardInterrupt


def _end_with_the_parent() -> None:
    while os.read(0, 1024):  # nothing comes until the parent is gone; not `sys.stdin`, whose lock would be held when this process ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
