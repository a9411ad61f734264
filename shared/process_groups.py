"""Groups of processes as the kernel knows them: who began when, who is whose child, and how a whole group ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def began(pid: int) -> str | None:
    """When a process began: the machine's start, and ticks since; together with the process id it names one process. None: it is gone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else f"{boot}/{fields[19]}"


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process ended; it stays a zombie, so that its number is nobody else's yet."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def signal_group(group: int, number: int) -> None:
    """Sends a signal to all processes of a group; nothing where it is empty."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def reap_group(group: int, patience_s: float = 5.0) -> None:
    """Buries what a program left to us when it ended."""
    until = time.monotonic() + patience_s
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < until:
            if os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is None:
                time.sleep(0.01)


def children_of(pid: int) -> set[int]:
    """Process ids of the children of a process, zombies included."""
    try:
        return {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}
    except OSError:
        return set()


def prctl(option: int, value: int) -> None:
    """Asks the kernel for something about this process; nothing happens where there is no Linux."""
    if _LIBC is not None:
        _LIBC.prctl(option, value, 0, 0, 0)
