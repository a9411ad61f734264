"""Programs that are kept running: started again whenever they end, for ever, and ended together without leaving a process behind.

Each program is a process group of its own, so that Ctrl-C reaches the supervisor alone, and what a program started ends with it. Where the
kernel offers it, a program is told when the supervisor is killed, and processes that lost their parent are handed to the supervisor. What a
killed supervisor left behind all the same is ended by the next one, which finds it by process id and start time in the record.

`Supervisor.run` blocks in the main thread, because signals arrive there.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from .process_groups import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, began, children_of, has_ended, prctl, reap_group, signal_group
from .process_lock import left_behind, only_one, remove_record, write_record

LOG_BYTES = 8 * 1024 * 1024
OLD_LOGS = 3
STARTED = "--- started "
"""How the line begins that a log has for each start of its program."""
_TICK_S = 1.0
_LEFT_S = 5.0
_TAIL_BYTES = 16_384
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def tell_on_stderr(line: str) -> None:
    """A line with its time on standard error; nothing where nobody reads it any more."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{_utc()} {line}", file=sys.stderr, flush=True)


def last_line(log: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Pauses before a program is started again: they double, and are drawn, so that many partners do not return at the same moment.

    Args:
        first_s, longest_s: the pause after the first failure, and the longest; each is drawn between half of it and all of it.
        settled_s: after running for so long, the next end counts as the first.
    """

    first_s: float = 1.0
    longest_s: float = 60.0
    settled_s: float = 60.0

    def pause_s(self, failures: int, draw: float) -> float:
        """The pause after so many failures in a row.

        Args:
            draw: in [0, 1).

        >>> [Backoff().pause_s(n, 0.0) for n in (1, 2, 3, 7, 1000)], Backoff().pause_s(1, 0.5)
        ([1.0, 2.0, 4.0, 60.0, 60.0], 0.75)
        """
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60)) * (1 - draw / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program.

    Args:
        name: a plain word; its log is ``NAME.log``.
        command: program and arguments.
        environment: added to the supervisor's own.
        ready: asked before each start; while it says no, nothing is started. It answers at once.
        why: what its log says about its end, for people.
        stop_s: seconds from SIGTERM to SIGKILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] = lambda: True
    why: Callable[[str], str] = last_line
    stop_s: float = 15.0


@dataclass(slots=True)
class _Child:
    """A program and what became of it."""

    program: Program
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    since: str = ""
    starts: int = 0
    failures: int = 0
    due: float = 0.0
    due_utc: str = ""
    last_code: int | None = None
    last_end: str = ""
    last_why: str = ""

    def record(self) -> dict[str, Any]:
        pid = self.process.pid if self.process is not None else None
        return {
            "pid": pid,
            "pid_began": began(pid) if pid else None,
            "since_utc": self.since if pid else "",
            "starts": self.starts,
            "last_code": self.last_code,
            "last_end_utc": self.last_end,
            "last_why": self.last_why,
            "next_start_utc": "" if pid else self.due_utc,
        }


class Supervisor:
    """Keeps programs running until it is told to stop.

    Args:
        programs: in the order in which they are started; they are stopped in the reverse of it.
        what: what all of them are together, for messages: "the node of 'books'".
        folder: for lock and record; see `process_lock`.
        logs: folder for what the programs say, with `OLD_LOGS` older files of at most `LOG_BYTES` each.
        tell: is told what happens, a line each.
        tick: called about once a second; it answers at once and does not raise.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        what: str,
        folder: Path,
        logs: Path,
        backoff: Backoff | None = None,
        tell: Callable[[str], None] = tell_on_stderr,
        log_bytes: int = LOG_BYTES,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._children = [_Child(program) for program in programs]
        self._what, self._folder, self._logs = what, folder, logs
        self._backoff = backoff or Backoff()
        self._tell, self._log_bytes, self._tick = tell, log_bytes, tick
        self._signals = 0
        self._started = _utc()

    def run(self, begin: Callable[[], None] = lambda: None) -> None:
        """Runs until SIGTERM, SIGINT or SIGHUP; a second of them ends the programs without mercy.

        Args:
            begin: called once the lock is held and before anything starts.
        Raises:
            UsageError: it is running already.
            StorageError: the folder cannot be written.
        """
        with only_one(self._folder, self._what), self._woken() as wake:
            old_umask = os.umask(0o077)
            others = children_of(os.getpid())
            try:
                begin()
                self._logs.mkdir(mode=0o700, parents=True, exist_ok=True)
                prctl(PR_SET_CHILD_SUBREAPER, 1)
                self._end_what_was_left()
                while not self._signals:
                    if self._step():
                        self._record()
                    self._tick()
                    self._rest(wake)
            finally:
                self._stop(wake, others)
                remove_record(self._folder)
                os.umask(old_umask)

    # --- running ---------------------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        changed, now = False, time.monotonic()
        for child in self._children:
            if child.process is not None and has_ended(child.process):
                self._take_leave(child)
                changed = True
            if child.process is None and child.due <= now and child.program.ready():
                self._start(child)
                changed = True
            _rotate(self._log_of(child), self._log_bytes)
        return changed

    def _start(self, child: _Child) -> None:
        program, supervisor = child.program, os.getpid()
        child.begun, child.since = time.monotonic(), _utc()
        child.starts += 1

        def end_with_me() -> None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:
                os._exit(1)

        try:
            handle = os.open(self._log_of(child), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                with contextlib.suppress(OSError):
                    os.write(handle, f"{STARTED}{child.since}\n".encode())
                child.process = subprocess.Popen(
                    list(program.command),
                    stdin=subprocess.DEVNULL,
                    stdout=handle,
                    stderr=handle,
                    env={**os.environ, **program.environment},
                    start_new_session=True,
                    preexec_fn=end_with_me,
                )
            finally:
                os.close(handle)
        except OSError as error:
            self._plan(child, code=None, why=f"could not be started: {error.strerror}")
        else:
            self._tell(f"{program.name}: started (process {child.process.pid})")

    def _take_leave(self, child: _Child) -> None:
        """Ends what is left of a program that ended, and plans its next start."""
        assert child.process is not None
        signal_group(child.process.pid, signal.SIGKILL)  # before its leader is gone for good: the number is still its own
        code = child.process.wait()
        reap_group(child.process.pid)
        child.process = None
        self._plan(child, code=code, why=child.program.why(self._said(child)))

    def _plan(self, child: _Child, *, code: int | None, why: str) -> None:
        settled = time.monotonic() - child.begun >= self._backoff.settled_s
        child.failures = 1 if settled else child.failures + 1
        pause = self._backoff.pause_s(child.failures, random.random())
        child.due = time.monotonic() + pause
        child.due_utc = _utc(timedelta(seconds=pause))
        child.last_code, child.last_end, child.last_why = code, _utc(), why
        ended = "" if code is None else f"ended by signal {-code}; " if code < 0 else f"ended with code {code}; "
        self._tell(f"{child.program.name}: {ended}{why or 'it said nothing'}; started again in {pause:.1f} s")

    def _said(self, child: _Child) -> str:
        """The end of a program's log, from its last start on."""
        try:
            with self._log_of(child).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                tail = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        _, found, rest = tail.rpartition(STARTED)
        return rest.partition("\n")[2] if found else tail

    # --- stopping --------------------------------------------------------------------------------------------------------------------

    def _stop(self, wake: int, others: set[int]) -> None:
        for child in reversed(self._children):
            if child.process is None:
                continue
            self._tell(f"{child.program.name}: is stopped")
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.process.pid, signal.SIGTERM)
            until = time.monotonic() + child.program.stop_s
            while not has_ended(child.process) and time.monotonic() < until and self._signals < 2:
                _await(wake, 0.1)
            signal_group(child.process.pid, signal.SIGKILL)
            child.process.wait()
            reap_group(child.process.pid)
            child.process = None
        for _ in range(100):  # processes that left their group came back to us
            strays = children_of(os.getpid()) - others
            if not strays:
                break
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)

    def _end_what_was_left(self) -> None:
        """Ends the programs of a supervisor that was killed."""
        record = left_behind(self._folder)
        for name, one in (record or {"programs": {}})["programs"].items():
            pid = one.get("pid") if isinstance(one, dict) else None
            if type(pid) is not int or pid <= 1 or one.get("pid_began") is None or began(pid) != one["pid_began"]:
                continue
            self._tell(f"{name}: process {pid} of an earlier start is ended")
            signal_group(pid, signal.SIGTERM)
            until = time.monotonic() + _LEFT_S
            while began(pid) == one["pid_began"] and time.monotonic() < until:
                time.sleep(0.1)
            signal_group(pid, signal.SIGKILL)

    # --- small parts -----------------------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        record = {
            "pid": os.getpid(),
            "started_utc": self._started,
            "programs": {child.program.name: child.record() for child in self._children},
        }
        try:
            write_record(self._folder, record)
        except OSError as error:
            self._tell(f"what runs could not be noted: {error.strerror}")

    def _log_of(self, child: _Child) -> Path:
        return self._logs / f"{child.program.name}.log"

    def _rest(self, wake: int) -> None:
        waiting = [child.due - time.monotonic() for child in self._children if child.process is None]
        _await(wake, max(0.05, min([_TICK_S, *waiting])))

    @contextlib.contextmanager
    def _woken(self) -> Iterator[int]:
        """Signals end a rest at once; the handlers that were there before come back."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        before = {number: signal.signal(number, self._noted) for number in _STOPPING}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        old = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        try:
            yield reading
        finally:
            signal.set_wakeup_fd(old)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reading)
            os.close(writing)

    def _noted(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1


def _await(wake: int, seconds: float) -> None:
    select.select([wake], [], [], seconds)
    with contextlib.suppress(BlockingIOError):
        os.read(wake, 4096)


def _rotate(log: Path, log_bytes: int) -> None:
    """Copies a full log aside and empties it: the program goes on writing into the same file."""
    with contextlib.suppress(OSError):
        if log.stat().st_size < log_bytes:
            return
        for number in range(OLD_LOGS - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{log}.{number}", f"{log}.{number + 1}")
        try:
            with log.open("rb") as full, open(os.open(f"{log}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as old:
                while block := full.read(1 << 20):
                    old.write(block)
        finally:
            os.truncate(log, 0)  # also where no room was left for a copy


def _utc(later: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + later).isoformat(timespec="seconds")
