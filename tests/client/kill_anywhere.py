"""Runs work in copies of a world and kills it with SIGKILL: in one copy at each of its named steps, and at each of the moments at
which it is about to change something on the disk.

Called as a program, so that the copies are forked from a process in which everything is imported and nothing has run yet.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "shutil.rmtree", "sqlite3.connect")
"""Audit events of a process that changes a folder; opening a file for writing is looked at by its flags."""


class Killer:
    """Kills this process at the n-th moment; counts them where n is below 0."""

    def __init__(self, at: int, below: Path) -> None:
        self.at, self.below, self.moments = at, str(below), []

    def step(self, name: str) -> None:
        self._moment(f"step {name}")

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(arguments[0]).startswith(self.below):
            self._moment(event)

    def _moment(self, what: str) -> None:
        self.moments.append(what)
        if len(self.moments) == self.at + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def child(work: Callable[[Path, Killer], None], root: Path, at: int, told: Path) -> int:
    """Forks; the copy does the work and is killed at its moment. Returns the status it ended with."""
    process = os.fork()
    if process:
        return os.waitpid(process, 0)[1]
    killer = Killer(at, root)
    sys.addaudithook(killer.audit)
    try:
        work(root, killer)
        told.write_text(json.dumps(killer.moments))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def forgetting(root: Path, killer: Killer) -> None:
    from client.forgetting import forget
    from client.settings import ClientSettings

    forget(ClientSettings.read(root / "books" / "partner.toml"), ["p003"], on_step=killer.step)


def main() -> None:
    """Arguments: world, folder for the copies, the first moment and the stride, most moments."""
    world, folder, first, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    import client.delivery
    import client.forgetting
    import client.model.text_encoder  # noqa: F401

    shutil.copytree(world, folder / "whole")
    assert child(forgetting, folder / "whole", -1, folder / "moments.json") == 0
    moments = json.loads((folder / "moments.json").read_text())
    steps = [at for at, what in enumerate(moments) if what.startswith("step")]
    for at in sorted({*steps, *range(first, len(moments), stride)}):
        copy = folder / f"killed-{at}"
        shutil.copytree(world, copy)
        assert os.WTERMSIG(child(forgetting, copy, at, folder / "none")) == signal.SIGKILL, moments[at]


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
