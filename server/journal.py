"""What a run's ServerApp says while it works: ``journal.jsonl`` in the run folder, and a lock that it holds while it lives.

Whoever watches needs no connection to it: the kernel lets go of the lock when the process ends, whatever ended it, and a journal that has
no end then is the mark of a process that was killed. Lines hold stages, counts, names of domains and codes, as the round log does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import IsthmusError, RunFolderError, StorageError

JOURNAL_FILE, LOCK_FILE = "journal.jsonl", "serverapp.lock"
BEGUN, STAGE, NOTE, FINISHED, FAILED = "begun", "stage", "note", "finished", "failed"
_PATIENCE_S = 20.0
_LONGEST_NOTE = 500
_LEFT_OUT = re.compile(
    r"[a-z.]+: (?P<domain>\S+) is left out(?: of the run)? \((?P<code>[a-z-]+)\)"
    r"|round [0-9]+: reply of (?P<dropped>\S+) is dropped \((?P<refusal>refused-[a-z]+)\)"
)
"""What `server.strategy` says of whoever it asks no more."""
_RETURNED = re.compile(r"hello: (?P<domain>\S+) takes part after all \(returned\)")


@dataclass(frozen=True, slots=True)
class Journal:
    """The journal of one run folder; lines are only appended."""

    folder: Path

    def progress(self, stage: str, done: int, total: int) -> None:
        """A stage of the run, as `server.strategy` reports it."""
        self.append(STAGE, stage=stage, done=done, total=total)

    def append(self, event: str, **values: Any) -> None:
        """Writes a line. A full disk must not end a run here: checkpoints say it better."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **values}) + "\n"
        with contextlib.suppress(OSError):
            handle = os.open(self.folder / JOURNAL_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)

    def read(self) -> list[dict[str, Any]]:
        """Lines so far; one that a crash cut short is left out."""
        try:
            text = (self.folder / JOURNAL_FILE).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        lines = []
        for one in text.splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(one)
                if isinstance(value, dict) and isinstance(value.get("event"), str):
                    lines.append(value)
        return lines


class _Notes(logging.Handler):
    """Takes the coordinator's warnings into the journal: who was left out and by which code."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.append(NOTE, text=record.getMessage()[:_LONGEST_NOTE])


def left_out(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Who does not take part in the rest of a run, and by which code: by the notes since its ServerApp last began.

    >>> left_out([{"event": "note", "text": "hello: films is left out (refused-range)"}])
    {'films': 'refused-range'}
    >>> notes = ["query.moments: films is left out of the run (unavailable)", "hello: films takes part after all (returned)"]
    >>> left_out([{"event": "note", "text": text} for text in notes])
    {}
    """
    found: dict[str, str] = {}
    for line in lines:
        if line["event"] == BEGUN:
            found = {}
        elif line["event"] == NOTE and (said := _LEFT_OUT.fullmatch(str(line.get("text", "")))):
            found[said["domain"] or said["dropped"]] = said["code"] or said["refusal"]
        elif line["event"] == NOTE and (said := _RETURNED.fullmatch(str(line.get("text", "")))):
            found.pop(said["domain"], None)
    return found


@contextlib.contextmanager
def keeping(folder: Path, flower_run: int) -> Iterator[Journal]:
    """Keeps the journal of a run while its ServerApp works, and writes down how it ended.

    Args:
        folder: of the run; it exists.
        flower_run: Flower's own number of this attempt.
    Raises:
        RunFolderError: another ServerApp works in this folder.
        StorageError: the folder cannot be written.
    """
    journal = Journal(folder)
    with _alone(folder):
        notes, log = _Notes(journal), logging.getLogger("isthmus.server")
        log.addHandler(notes)
        journal.append(BEGUN, pid=os.getpid(), flower_run=flower_run)
        try:
            yield journal
        except BaseException as error:
            journal.append(FAILED, **_said(error))
            raise
        else:
            journal.append(FINISHED)
        finally:
            log.removeHandler(notes)


def is_kept(folder: Path) -> bool:
    """Whether a ServerApp works in a run folder now."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _taken(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written ({error.strerror})", do="Check the folder and who may write to it.") from None
    try:
        until = time.monotonic() + _PATIENCE_S  # the attempt before may be dying
        while not _taken(handle, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise RunFolderError(f"another ServerApp works in {folder}", do="Stop that one first: isthmus-server stop HOME RUN.")
            time.sleep(0.2)
        yield
    finally:
        os.close(handle)


def _taken(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _said(error: BaseException) -> dict[str, Any]:
    dropped = [{"domain": domain, "code": code} for domain, code in getattr(error, "dropped", ())]
    if isinstance(error, IsthmusError):
        return {"kind": type(error).__name__, "exit_code": error.exit_code, "what": error.what, "do": error.do, "dropped": dropped}
    return {"kind": type(error).__name__, "exit_code": 1, "what": type(error).__name__, "do": "", "dropped": dropped}
