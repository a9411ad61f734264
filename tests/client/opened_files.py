"""Which files and folders this process opens, by Python's own audit events. A hook stays for life, so it listens only when asked.

What a native library opens by itself, as polars opens a table, is not seen; so tests also take away what must not be opened.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LISTENING: list[list[str]] = []
_EVENTS = frozenset({"open", "os.listdir", "os.scandir", "sqlite3.connect"})


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _LISTENING and event in _EVENTS and isinstance(arguments[0], (str, bytes, Path)):
        path = os.fsdecode(arguments[0])
        for paths in _LISTENING:
            paths.append(path)


sys.addaudithook(_note)


def take_data_away(partner: Path) -> None:
    """Whoever opens this partner's data from now on fails, and otherwise than with a refusal."""
    for name in ("items.csv", "interactions.csv", "links.csv"):
        (partner / name).unlink()
    shutil.rmtree(partner / "home" / "prepared")


@contextmanager
def opened_below(folder: Path) -> Iterator[list[str]]:
    """The list holds, after the block, what was opened below ``folder``: paths relative to it."""
    paths: list[str] = []
    below: list[str] = []
    _LISTENING.append(paths)
    try:
        yield below
    finally:
        _LISTENING.remove(paths)
        below += [str(Path(path).relative_to(folder)) for path in paths if Path(path).is_relative_to(folder)]
