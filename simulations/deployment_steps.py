"""The commands of the deployment demo: run as people run them, at their party's place, with what they say kept; and the table of steps."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from shared.errors import FederationError

_MODULES = {"isthmus-server": "server.cli", "isthmus-client": "client.cli", "isthmus-audit": "shared.privacy.cli"}
_LIMIT_S = 1800.0
_STOP_S = 90.0
_SHOWN = 2_000


class Party:
    """Whose place a command runs at; partners go by the names of their domains."""

    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step that ended well."""

    name: str
    seconds: float
    what: str


@dataclass(kw_only=True)
class Steps:
    """Runs commands and keeps what they said.

    Args:
        folder: of the demo.
        inside: puts a command line into a party's place.
    """

    folder: Path
    inside: Callable[[str, Sequence[str]], list[str]]
    done: list[Step] = field(default_factory=list)
    _kept: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _note: str = ""

    @property
    def transcript(self) -> Path:
        return self.folder / "transcript.log"

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Takes the time of a step, and says in which one something went wrong."""
        begun, self._note = time.monotonic(), ""
        self.tell(f"{name} ...")
        try:
            yield
        except FederationError as error:
            raise FederationError(f"step '{name}': {error.what}", do=error.do) from None
        self.done.append(Step(name=name, seconds=round(time.monotonic() - begun, 1), what=self._note))
        self.tell(f"{name}: {self._note} ({self.done[-1].seconds:.1f} s)")

    def note(self, what: str) -> None:
        """The line of the step that is under way."""
        self._note = what

    def tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def run(self, party: str, program: str, *words: Any, codes: Sequence[int] = (0,), shown: bool = False) -> str:
        """Runs a command to its end; returns what it printed.

        Args:
            codes: exit codes that are as they should be.
            shown: what it says is for whoever watches, too; of a command with ``--json`` what it tells on the way.
        Raises:
            FederationError: it ended with another code.
        """
        typed = shlex.join([program, *map(str, words)])
        if shown:
            self.tell(f"$ {typed}")
        done = self._call(party, program, words, live=shown and "--json" in words)
        self._keep_said(party, typed, done)
        if done.returncode not in codes:
            said = (done.stderr.strip() or done.stdout.strip())[-_SHOWN:]
            raise FederationError(f"'{typed}' at {party} ended with {done.returncode}\n{said}", do=f"Look at {self.transcript}.")
        if shown and "--json" not in words:
            self.tell(done.stdout.strip())
        return done.stdout

    def quietly(self, party: str, program: str, *words: Any) -> None:
        """Runs a command whatever comes of it: for the end, when a step may have failed."""
        with contextlib.suppress(OSError, FederationError):
            self._keep_said(party, shlex.join([program, *map(str, words)]), self._call(party, program, words, limit_s=120))

    def keep(self, party: str, program: str, *words: Any) -> None:
        """Starts a command that stays up until `end`."""
        self.tell(f"$ {shlex.join([program, *map(str, words)])} &")
        with (self.folder / f"{party}.log").open("ab") as log:
            self._kept[party] = subprocess.Popen(
                self.inside(party, _started(program, words)),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, what: Callable[[], bool], why: str, limit_s: float = 180.0) -> None:
        """Waits until something is so.

        Raises:
            FederationError: it is not so in time, or a command that should stay up has ended.
        """
        until = time.monotonic() + limit_s
        while not what():
            for party, process in self._kept.items():
                if process.poll() is not None:
                    said = (self.folder / f"{party}.log").read_text(errors="replace")[-_SHOWN:]
                    raise FederationError(f"'up' at {party} ended with {process.returncode}\n{said}", do=f"Look at {self.folder}.")
            if time.monotonic() > until:
                raise FederationError(why, do=f"Look at the logs in {self.folder}.")
            time.sleep(1.0)

    def end(self, party: str) -> None:
        """Ends a command that stays up, as a service manager does.

        Raises:
            FederationError: it did not end, or not in order.
        """
        process = self._kept.pop(party)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._kept[party] = process
            raise FederationError(f"'up' at {party} has not ended in {_STOP_S:.0f} s", do=f"Look at {self.folder}.") from None
        if code != 0:
            raise FederationError(f"'up' at {party} ended with {code} when it was told to stop", do=f"Look at {self.folder / party}.log.")

    def end_all(self) -> None:
        """Ends whatever still stays up, without mercy in the end."""
        for process in self._kept.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._kept.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._kept.clear()

    def _call(
        self, party: str, program: str, words: Sequence[Any], *, live: bool = False, limit_s: float = _LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; ``live``: what it says on standard error is told as it comes."""
        command = self.inside(party, _started(program, words))
        said: list[str] = []

        def listen(lines: IO[str]) -> None:
            for line in lines:
                said.append(line)
                if live:
                    self.tell(f"  {line.rstrip()}")

        with subprocess.Popen(
            command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            listener = threading.Thread(target=listen, args=(process.stderr,))
            watch = threading.Timer(limit_s, process.kill)
            listener.start()
            watch.start()
            try:
                out = process.stdout.read()
                code = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                watch.cancel()
                listener.join()
        return subprocess.CompletedProcess(command, code, out, "".join(said))

    def _keep_said(self, party: str, typed: str, done: subprocess.CompletedProcess[str]) -> None:
        with self.transcript.open("a") as file:
            file.write(f"--- {party}$ {typed}\n{done.stdout}{done.stderr}--- {done.returncode}\n")


def table(steps: Sequence[dict[str, Any]]) -> str:
    """The steps with their seconds."""
    lines = [f"{one['name']:<16} {one['seconds']:>7.1f} s   {one['what']}" for one in steps]
    return "\n".join([*lines, f"{'all of it':<16} {sum(one['seconds'] for one in steps):>7.1f} s"])


def _started(program: str, words: Sequence[Any]) -> list[str]:
    """A command's own script beside this Python where it is installed, else its module: both are the same code."""
    script = Path(sys.executable).parent / program
    begin = [str(script)] if script.is_file() else [sys.executable, "-P", "-m", _MODULES.get(program, program)]
    return [*begin, *map(str, words)]


def _environment() -> dict[str, str]:
    """What the commands find set: nothing of Flower, and nobody is asked over the network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "MPLBACKEND": "Agg",
        "NO_COLOR": "1",
    }
