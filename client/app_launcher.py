"""How a message reaches the process that waits for it: a task is claimed only while that one is ready, so that there is one at most."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

FORKS = sys.platform == "linux"
"""Whether the process that waits forks for each message. Elsewhere system libraries do not bear it: on macOS, what asks for the system's
proxies ends a forked process."""
_PAUSE_S = 2.0
"""Shortest time between two starts of processes that wait, where they end by themselves."""


class _Waiting:
    """The process that waits for messages, with Flower and the named libraries imported.

    Args:
        command: that starts it; the number of the pipe by which it says that it is ready is added.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._said, saying = os.pipe()
        try:
            self._process = subprocess.Popen([*command, f"--ready={saying}"], stdin=subprocess.PIPE, pass_fds=(saying,))
        except BaseException:
            os.close(self._said)
            raise
        finally:
            os.close(saying)
        self._is_ready = False

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it waits for a task; it says so anew after each."""
        if not self._is_ready and self.lives and select.select([self._said], [], [], 0)[0]:
            self._is_ready = os.read(self._said, 1) != b""
        return self._is_ready and self.lives

    def give(self, token: str) -> bool:
        """Hands a task over; whether it was still there to take it."""
        assert self._process.stdin is not None
        self._is_ready = False
        try:
            self._process.stdin.write(token.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def end(self) -> None:
        """Nothing is given after this: it ends when it has read all of it."""
        assert self._process.stdin is not None
        os.close(self._said)
        with contextlib.suppress(OSError):
            self._process.stdin.close()


class Launcher:
    """Hands each message to the process that waits, and keeps one waiting.

    Tasks are claimed only while it is ready. Flower takes back what does not begin within 30 s of its claim and hands it out again: on a
    machine that is slower than that each try would add a process that still imports, which makes the machine slower still.

    Args:
        options: of this process, handed on to the app processes.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self._command = [sys.executable, "-P", "-m", "client.app_process", "app", f"--parent-pid={os.getpid()}", *options]
        self._waiting: _Waiting | None = None
        self._not_before = 0.0

    def prepare(self) -> None:
        """Starts the process that waits, where there is none."""
        if self._waiting is not None and not self._waiting.lives:
            self._waiting.end()
            self._waiting = None
        if self._waiting is None:
            self._waiting = _Waiting(self._command)
            self._not_before = time.monotonic() + _PAUSE_S

    def ready(self) -> bool:
        """Whether a task that is claimed now begins at once."""
        if (self._waiting is None or not self._waiting.lives) and time.monotonic() >= self._not_before:
            self.prepare()
        return self._waiting is not None and self._waiting.ready

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Hands a client app's task to the waiting process; the token goes through a pipe, where other users cannot see it."""
        from flwr.supercore.constant import TaskType
        from flwr.supercore.superexec.executor.types import LaunchResult

        if spec.task_type != TaskType.CLIENT_APP:
            return LaunchResult.failed("only client apps run at this partner")
        for _ in range(2):  # where it died while it waited, a fresh one takes the task
            self.prepare()
            assert self._waiting is not None
            if self._waiting.give(spec.token):
                return LaunchResult.accepted()
        return LaunchResult.failed("no process could be started for the app")
