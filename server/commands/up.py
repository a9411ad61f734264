"""`isthmus-server up`: the coordinator's processes, kept running.

Heavy libraries are imported inside the commands: ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.errors import FederationError, IsthmusError

from .answers import AsJson, Debug, HomeFolder, answer, epilog, open_home

if TYPE_CHECKING:
    from ..home import Home

EPILOG = epilog(0, 1, 2, 3, 6, 16, 130)
_HEALTHY_S = 120.0
_TAIL_BYTES = 4096


def up(
    home: HomeFolder,
    detach: Annotated[bool, typer.Option("--detach", help="Come back once it is healthy, and leave it running.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Start the SuperLink, the executor of runs and the proxy, keep them running, and admit the nodes of enrolled partners.

    What ends is started again, after a pause that grows to a minute. Ctrl-C or SIGTERM ends all of it, and nothing is left behind. Partners
    who are enrolled while this runs are admitted within seconds. Logs are in HOME/logs.

    \b
    Examples:
      isthmus-server up coordinator
      isthmus-server up coordinator --detach
    """
    del debug
    opened = open_home(home)
    nginx = _checked(opened)
    if detach:
        _detached(opened)
        document = {"home": str(opened.root), "server": opened.settings.address, "superlink": opened.settings.superlink_address}
        words = f"up: partners reach {opened.settings.address}; stop it with isthmus-server stop {opened.root}"
        answer(as_json, {**document, "proxy": nginx is not None}, words)
        return
    _supervise(opened, nginx)


def _checked(home: Home) -> str | None:
    """What can be known before anything starts; the proxy's program, or None where there is none."""
    from shared.errors import UsageError
    from shared.process_lock import running

    from .. import flower_internals, processes, proxy

    if (record := running(home.root)) is not None:
        raise UsageError(f"it is up already (process {record['pid']})", do=f"isthmus-server status {home.root} shows it.")
    flower_internals.verify()
    processes.check_dates(home)
    nginx = processes.find_nginx()
    if nginx is None:
        print(f"warning: {proxy.INSTALL}. Until then partners reach the coordinator through a proxy of your own only.", file=sys.stderr)
    processes.check_ports(home, nginx)
    return nginx


def _supervise(home: Home, nginx: str | None) -> None:
    from shared.supervision import Supervisor, tell_on_stderr

    from .. import processes

    processes.forget_flower_variables()
    news = _News(home.logs / f"{processes.REGISTRAR}.log")
    Supervisor(
        processes.programs(home, nginx), what=f"the coordinator of {home.root}", folder=home.root, logs=home.logs, tick=news.tell
    ).run(lambda: tell_on_stderr(f"partners reach {home.settings.address}; Ctrl-C ends it"))


class _News:
    """What the registrar writes into its log, told on the way: who is admitted, who connects, who is gone."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._at = log.stat().st_size if log.is_file() else 0

    def tell(self) -> None:
        from shared.supervision import tell_on_stderr

        with contextlib.suppress(OSError):
            size = self._log.stat().st_size
            self._at = min(self._at, size)  # it was rotated
            if size == self._at:
                return
            with self._log.open("rb") as file:
                file.seek(self._at)
                whole, _, _ = file.read().rpartition(b"\n")
            self._at += len(whole) + 1 if whole else 0
            for line in whole.decode("utf-8", "replace").splitlines():
                if line and not line.startswith("--- "):
                    tell_on_stderr(line)


def _detached(home: Home) -> None:
    """Starts the supervisor in a session of its own and waits until the SuperLink answers.

    Raises:
        FederationError: it ended, or does not answer in time; it is ended then.
    """
    from ..submission import Control

    log = home.logs / "up.log"
    begun = log.stat().st_size if log.is_file() else 0
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as said:
        supervisor = subprocess.Popen(
            [sys.executable, "-P", "-m", "server.cli", "up", str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    until = time.monotonic() + _HEALTHY_S
    try:
        with Control(home.settings.superlink_address, home.ca) as control:
            while not control.healthy():
                if supervisor.poll() is not None:
                    raise FederationError(f"it did not start: {_tail(log, begun)}", do=f"Look at {log}.")
                if time.monotonic() > until:
                    raise FederationError(f"the SuperLink does not answer after {_HEALTHY_S:.0f} s", do=f"Look at {home.logs}.")
                time.sleep(0.3)
    except (IsthmusError, KeyboardInterrupt):
        supervisor.terminate()
        supervisor.wait()
        raise


def _tail(log: Path, begun: int) -> str:
    with log.open("rb") as file:
        file.seek(max(begun, log.stat().st_size - _TAIL_BYTES))
        lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return next((line for line in lines if "Error:" in line), lines[-1] if lines else "it said nothing")
