"""The same ClientApp and ServerApp, run by one of two engines.

``in-process`` (default) is fast and exact: clients run one after the other in this process, every message still becomes protobuf and back.
``ray`` is Flower's simulation engine: clients run in processes of their own, in parallel, on one machine or on a cluster.
"""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from server.app import build_server_app, run_federation
from server.checkpoints import Checkpoint
from server.grid_around import GridAround
from server.strategy import Outcome, Progress
from shared.config import RunConfig
from shared.errors import FederationError, UsageError

from .in_process_grid import InProcessGrid, OnMessage
from .run_folder import RunFolder

ENGINES = ("in-process", "ray")
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
_OBJECT_STORE_BYTES = 128 * 2**20
_PULL_INTERVAL_S = 0.05
_REAP_S = 10.0


def run(
    config: RunConfig,
    folder: RunFolder,
    engine: str,
    client_app: ClientApp,
    resume: bool = False,
    progress: Progress | None = None,
    *,
    clients: int | None = None,
    start: Checkpoint | None = None,
    before_rounds: Callable[[Checkpoint], None] | None = None,
    on_message: OnMessage | None = None,
    verbose: bool = False,
    **how: Any,
) -> Outcome:
    """Runs one federation to its end.

    Args:
        config: of the run; the noise multiplier is solved when it is 0.
        folder: made by `RunFolder.create`.
        engine: one of `ENGINES`.
        client_app: the app that partners run; for ``ray`` it is pickled, so what it refers to must be importable by a worker.
        resume: go on from the newest checkpoint in the folder.
        progress: see `server.strategy.Progress`; with ``ray`` it is called from another thread.
        clients: how many; by default one for each folder in ``clients/``.
        start: begin in the space and from the initial layer of this checkpoint of another run (controls).
        before_rounds: called once with checkpoint 0, before round 1: the time to carry passports from partner to partner.
        on_message: sees the bytes of every message; ``in-process`` only.
        verbose: let Flower and Ray speak.
        how: further fields of `server.strategy.Coordinator`.
    Raises:
        UsageError: an unknown engine, no client, or ``on_message`` with ``ray``.
        IsthmusError: as raised by the coordinator, with both engines.
    """
    if engine not in ENGINES:
        raise UsageError(f"'{engine}' is no engine", do=f"Engines: {', '.join(ENGINES)}.")
    number = clients if clients is not None else sum(entry.is_dir() for entry in folder.clients.iterdir())
    if number < 1:
        raise UsageError("a federation needs at least one client", do="Prepare the clients' folders first.")
    how |= {"expected_clients": number, "start": start}
    if progress is not None:
        how["progress"] = progress
    if before_rounds is not None:
        how["before_rounds"] = before_rounds
    with _quiet(folder.path, verbose):
        if engine == "in-process":
            return run_federation(InProcessGrid(client_app, number, on_message), config, folder.path, resume=resume, **how)
        if on_message is not None:
            raise UsageError("only the in-process engine can show its messages", do="Use --engine in-process.")
        warnings.simplefilter("ignore", ResourceWarning)  # Ray leaves log files open wherever it starts a process
        return _run_on_ray(config, folder.path, client_app, number, resume, verbose, how)


def _run_on_ray(
    config: RunConfig, folder: Path, client_app: ClientApp, clients: int, resume: bool, verbose: bool, how: dict[str, Any]
) -> Outcome:
    """Flower's engine: the server app runs in a thread, each client app in a Ray worker."""
    try:
        import ray
        from flwr.simulation import run_simulation
    except ImportError:
        raise UsageError("Ray is not installed", do="Install isthmus with the extra 'ray'.") from None
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    server_app = build_server_app(
        config,
        folder,
        resume=resume,
        done=outcomes.append,
        failed=errors.append,
        around=lambda grid: _StoppableGrid(grid, stop),
        **how,
    )
    children = _children()
    workers = min(clients, os.cpu_count() or 1)
    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": workers, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False},
    }
    if not verbose:
        resources["init_args"] |= {"logging_level": "critical", "log_to_driver": False}
    try:
        run_simulation(server_app, client_app, num_supernodes=clients, backend_config=resources, verbose_logging=verbose)
    except Exception:
        if not errors:
            raise
    finally:
        stop.set()
        if ray.is_initialized():
            ray.shutdown()
        _reap(children)
    if errors:
        raise errors[0]
    if not outcomes:
        raise FederationError("Flower's simulation engine ended before the run did", do="Run again with --verbose to see why.")
    return outcomes[0]


def _children() -> list[subprocess.Popen[bytes]]:
    """Handles of all processes that this one started and has not waited for."""
    return [found for found in gc.get_objects() if issubclass(type(found), subprocess.Popen) and found.returncode is None]


def _reap(known: list[subprocess.Popen[bytes]]) -> None:
    """Waits for the processes that Ray ended but did not wait for, and lets go of the files it left open: both would complain later."""
    for child in _children():
        if not any(child is other for other in known):
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_REAP_S)
    gc.collect()


class _StoppableGrid(GridAround):
    """Flower's grid, but waiting for replies ends when the engine does: otherwise an interrupt would hang until the round times out."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        super().__init__(grid)
        self._stop = stop

    def get_node_ids(self) -> Iterable[int]:
        self._check()
        return super().get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self._grid.push_messages(messages))
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            self._check()
            got = list(self._grid.pull_messages(waiting))
            replies += got
            waiting -= {message.metadata.reply_to_message_id for message in got}
            if waiting:
                self._stop.wait(_PULL_INTERVAL_S)
        return replies

    def _check(self) -> None:
        if self._stop.is_set():
            raise FederationError("the simulation engine was stopped", do="Resume the run.")


@contextmanager
def _quiet(folder: Path, verbose: bool) -> Iterator[None]:
    """Nothing calls home, nothing is installed, nobody chatters; the environment is put back afterwards.

    Flower's logger is silenced because the coordinator says in its own words, by code, what went wrong. Ray's workers inherit the
    environment and, by Flower's Ray backend, a PYTHONPATH made of `sys.path`.
    """
    from flwr.supercore import telemetry

    before = dict(os.environ)
    os.environ.update(_QUIET)
    os.environ["FLWR_HOME"] = str(folder / ".flwr")
    told = telemetry.FLWR_TELEMETRY_ENABLED
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # it was read from the environment when Flower was imported
    logger = logging.getLogger("flwr")
    level = logger.level
    try:
        with warnings.catch_warnings():
            if not verbose:
                logger.setLevel(logging.CRITICAL + 1)
                warnings.filterwarnings("ignore", category=FutureWarning, module=r"ray\..*")
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(ray|flwr)\..*")
            yield
    finally:
        logger.setLevel(level)
        telemetry.FLWR_TELEMETRY_ENABLED = told
        _restore_environment(before)


def _restore_environment(before: dict[str, str]) -> None:
    """Ray and Flower leave variables behind; one by one, because other threads may read the environment meanwhile."""
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
