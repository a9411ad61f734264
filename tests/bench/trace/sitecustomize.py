"""Writes down when each process of Flower asked what of whom: Python imports this at its start where this folder is on ``PYTHONPATH``.

Nothing of what is measured is changed for it: neither the bundle, nor Flower's files, nor ours. Two functions are timed when their modules
have been imported, the one through which every request of Flower goes and the one that trains. A line of ``ISTHMUS_TRACE/PID.jsonl`` holds
begin and end (seconds since the epoch), who (``ISTHMUS_TRACE_NODE``; the coordinator has no name), what, the bytes of the answer, and the
processor time of the process until then. Without that variable nothing happens.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_FOLDER = os.environ.get("ISTHMUS_TRACE", "")
_NODE = os.environ.get("ISTHMUS_TRACE_NODE", "")


def note(what: str, begun: float, size: int = 0) -> None:
    """Adds a line; an append of one line is whole, also where several threads do it."""
    line = {"begin": begun, "end": time.time(), "node": _NODE, "pid": os.getpid(), "what": what, "bytes": size, "cpu": time.process_time()}
    handle = os.open(os.path.join(_FOLDER, f"{os.getpid()}.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)


def _requests(module: ModuleType) -> None:
    original = module.ProtobufClient._send

    @functools.wraps(original)
    def timed(self: Any, context: Any, *, stream: bool = False) -> Any:
        begun = time.time()
        response = original(self, context, stream=stream)
        note(context.rpc_method.removeprefix("/flwr.proto."), begun, 0 if stream else len(response.content))
        return response

    module.ProtobufClient._send = timed


def _training(module: ModuleType) -> None:
    original = module.train

    @functools.wraps(original)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.time()
        try:
            return original(*arguments, **named)
        finally:
            note("train", begun)

    module.train = timed  # type: ignore[attr-defined]


_TIMED: dict[str, Callable[[ModuleType], None]] = {
    "flwr.supercore.protobuf.client": _requests,
    "client.training.local_round": _training,
}


class _Loader(importlib.abc.Loader):
    def __init__(self, real: Any, after: Callable[[ModuleType], None]) -> None:
        self._real, self._after = real, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._real.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        self._after(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _TIMED:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader, _TIMED[name])
        return found


if _FOLDER:
    note("start", time.time())
    sys.meta_path.insert(0, _Finder())
