"""A supervisor in a process of its own, over programs that are short pieces of Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared import process_lock

ROOT = Path(process_lock.__file__).parents[1]
_MAIN = """
import json, sys
from pathlib import Path
from shared.console import guarded
from shared.supervision import Backoff, Program, Supervisor
given = json.loads(sys.argv[1])
programs = [Program(name=name, command=[sys.executable, "-c", code], stop_s=given["stop_s"]) for name, code in given["programs"].items()]
supervisor = Supervisor(programs, what="the test", folder=Path(given["folder"]), logs=Path(given["folder"]) / "logs",
                        backoff=Backoff(**given["backoff"]), log_bytes=given["log_bytes"])
sys.exit(guarded(supervisor.run, debug=True))
"""
WAITS = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def start(
    folder: Path,
    programs: dict[str, str],
    *,
    stop_s: float = 5.0,
    backoff: dict[str, float] | None = None,
    log_bytes: int = 1 << 20,
) -> subprocess.Popen[str]:
    given = {
        "folder": str(folder),
        "programs": programs,
        "stop_s": stop_s,
        "backoff": backoff or {"first_s": 0.1, "longest_s": 0.2},
        "log_bytes": log_bytes,
    }
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, json.dumps(given)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "MARK": str(folder)},
        start_new_session=True,
    )


@contextmanager
def supervised(folder: Path, programs: dict[str, str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Started; whatever is left of it is killed in the end."""
    process = start(folder, programs, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        for pid in alive(folder):
            os.kill(pid, signal.SIGKILL)


def alive(folder: Path) -> set[int]:
    """Processes that carry the mark of a supervisor's folder in their environment, however they are related."""
    found = set()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                marked = f"MARK={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
                living = (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            except OSError:
                continue
            if marked and living:
                found.add(int(process.name))
    return found


def program(folder: Path, name: str = "one") -> dict[str, Any]:
    """What the record says about one program; empty before it says anything."""
    record = process_lock.running(folder)
    found: dict[str, Any] = (record or {}).get("programs", {}).get(name, {})
    return found


def eventually(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What ``holds`` answered once it was true."""
    until = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.02)
    return answer
