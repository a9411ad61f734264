"""Runs work in copies of a world and kills it with SIGKILL: in one copy at each of its named steps, and at each of the moments at
which it is about to change something on the disk.

Called as a program, so that the copies are forked from a process in which everything is imported and nothing has run yet.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
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

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        """As `sqlite3.connect`, and each statement is a moment before it is carried out."""
        connection = sqlite3.Connection(*arguments, **options)
        connection.set_trace_callback(lambda statement: self._moment(f"sql {statement.split()[0]}"))
        return connection

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
    if work is drawing:
        sqlite3.connect = killer.connect  # type: ignore[assignment]
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


def releasing(root: Path, killer: Killer) -> None:
    from client.releases import Ask, release
    from client.settings import ClientSettings

    release(ClientSettings.read(root / "books" / "partner.toml"), Ask(purpose="count", noise_multiplier=30.0), out=root / "users.json")


def drawing(root: Path, killer: Killer) -> None:
    from client.passport_exchange import export
    from client.preparation import prepare
    from client.settings import ClientSettings
    from tests.client.partner_world import CONFIG

    settings = ClientSettings.read(root / "books" / "partner.toml")
    prepared = prepare(settings, CONFIG)
    (version,) = (path.stem for path in settings.at_home("prepared").glob("spaces/*.npz"))
    for target in ("films", "music"):
        export(settings, CONFIG, prepared, target, version)
        killer.step(f"sent {target}")


def main() -> None:
    """Arguments: name of the work, world, folder for the copies, and from one unnamed moment to the next that is tried."""
    work = {"forgetting": forgetting, "releasing": releasing, "drawing": drawing}[sys.argv[1]]
    world, folder, stride = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    import client.delivery
    import client.forgetting
    import client.model.text_encoder
    import client.releases  # noqa: F401

    shutil.copytree(world, folder / "whole")
    assert child(work, folder / "whole", -1, folder / "moments.json") == 0
    moments = json.loads((folder / "moments.json").read_text())
    steps = [at for at, what in enumerate(moments) if what.startswith("step")]
    for at in sorted({*steps, *range(0, len(moments), stride)}):
        copy = folder / f"killed-{at}"
        shutil.copytree(world, copy)
        assert os.WTERMSIG(child(work, copy, at, folder / "none")) == signal.SIGKILL, moments[at]


def killed(work: str, world: Path, folder: Path, *, every: int) -> tuple[list[str], dict[int, Path]]:
    """Moments of a piece of work, and copies of a world that were killed right before some of them."""
    folder.mkdir(exist_ok=True)
    program = [sys.executable, __file__, work, str(world), str(folder), str(every)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(program, check=True, cwd=root, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    copies = {int(path.name.removeprefix("killed-")): path for path in folder.glob("killed-*")}
    return json.loads((folder / "moments.json").read_text()), copies


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.1f} s", file=sys.stderr)
