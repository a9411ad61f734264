"""The bundle guard: Flower's SuperNode, started so that only bundles on the partner's list ever run here.

A run ships code. The guard stands where the SuperNode pulls it: what was received is compared, by its sha256, with ``home/allowed.json``
before it is opened for anything. What is not on the list is answered with Flower's own error for an unverified bundle, logged, and noted in
``home/refused.jsonl``. The list is read anew for every message, and once more by the process in which the app runs (`client.app_process`).

The guard starts the executor itself, with a secret of this start, so that nobody else on the machine can take a task from the SuperNode; it
starts client apps only, and installs nothing. It rests on private parts of Flower and checks them first (`client.flower_internals`).

`command` writes the command line that starts it: ``python -P -m client.bundle_guard PARTNER_TOML --superlink HOST:PORT ...``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.console import guarded
from shared.errors import ConfigError, Refusal, StorageError
from shared.polling import pause_s
from shared.process_groups import children_of

from .allowed import FILE, AllowList
from .answering import answered
from .app_launcher import FORKS
from .durable_files import storage_errors, write_file
from .flower_internals import verify
from .node_check import check_port
from .settings import ClientSettings

if TYPE_CHECKING:
    from flwr.app import Error, Message
    from flwr.supercore.fab import Fab
    from flwr.supercore.run import Run
    from flwr.supernode.nodestate import NodeState

_LOG = logging.getLogger("isthmus.guard")
REFUSED_FILE = "refused.jsonl"
MAX_REFUSED_BYTES = 16 * 1024 * 1024
PRELOAD = "torch,opacus,dp_accounting,scipy.cluster,nacl.signing"
"""Libraries that the waiting app process imports ahead of its messages; the app itself is imported after its bundle was admitted. Polars is
none of them: it starts threads, which a forked process would not have."""
OURS = "The guarded SuperNode"
"""How what the guard says about the node's end begins."""
_LOOPBACK = "127.0.0.1"
_SEEN = Path("/proc/thread-self/children")
"""Where the kernel shows who is whose child; not every one does."""
_TASK = "flwr-serverapp"


class Guard:
    """Decides what may run at one partner, and keeps a note of what may not.

    Args:
        home: the partner's home folder.
    """

    def __init__(self, home: Path) -> None:
        self._allowed = AllowList(home / FILE)
        self._notes = home / REFUSED_FILE
        self._noted: set[tuple[int, str]] = set()

    def admit(self, content: bytes, *labels: str, run_id: int) -> None:
        """Admits what was received for a run.

        Args:
            content: the very bytes.
            labels: digests that the server calls them by; empty ones are none.
        Raises:
            Refusal: code ``bundle``.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            bundle = self._allowed.admit(content)
            if any(label not in ("", bundle.digest) for label in labels):
                raise Refusal("bundle", f"bundle {digest} came under another digest")
        except Refusal as refusal:
            self._note(digest, run_id, len(content), refusal.what)
            raise

    def check_run(self, run: Run, run_id: int) -> None:
        """Refuses a run that is no plain federation: agents, models and connectors bring code and network of their own.

        Raises:
            Refusal: code ``bundle``.
        """
        if run.primary_task_type != _TASK or run.run_id != run_id:
            what = "the run is of a kind that never runs here" if run.run_id == run_id else "the server described another run"
            self._note(str(run.fab_hash)[:64], run_id, 0, what)
            raise Refusal("bundle", what)

    def _note(self, digest: str, run_id: int, size: int, why: str) -> None:
        _LOG.error("run %d refused: %s. No line of it was run or opened.", run_id, why)
        if (run_id, digest) in self._noted:
            return
        self._noted.add((run_id, digest))
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "digest": digest, "run_id": str(run_id), "bytes": size, "why": why}
        try:
            append(self._notes, line)
        except StorageError as error:
            _LOG.error("the refusal could not be noted: %s", error.what)


def append(path: Path, line: dict[str, Any]) -> None:
    """Adds a line to ``refused.jsonl`` and flushes it; a full file stays as it is.

    Raises:
        StorageError: no space left, or the file cannot be written.
    """
    with storage_errors(f"'{path.name}'"):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if os.fstat(handle).st_size < MAX_REFUSED_BYTES:
                os.write(handle, json.dumps(line).encode() + b"\n")
                os.fsync(handle)
        finally:
            os.close(handle)


def guarded_pull(
    original: Callable[..., int | None], guard: Guard, *, insert: Callable[..., None], error: Error
) -> Callable[..., int | None]:
    """Flower's ``_pull_and_store_message`` with the guard between it and the server.

    Args:
        original: Flower's own function; it opens a bundle after ``get_fab`` returned it, and only then.
        insert, error: Flower's own way to answer an unverified bundle.
    """

    def pull_and_store_message(
        *,
        state: NodeState,
        object_store: Any,
        receive: Callable[[], tuple[Message, Any] | None],
        get_run: Callable[[int], Run],
        get_fab: Callable[[str, int], Fab],
        **others: Any,
    ) -> int | None:
        received: list[Message] = []

        def receive_noted() -> tuple[Message, Any] | None:
            if (pulled := receive()) is None:
                return None
            received.append(pulled[0])
            run_id = pulled[0].metadata.run_id
            if (run := state.get_run(run_id)) is not None:  # its bundle is here already: Flower would not ask for it again
                fab = state.get_fab(run.fab_hash)
                guard.admit(fab.content if fab else b"", run.fab_hash, run_id=run_id)
            return pulled

        def get_plain_run(run_id: int) -> Run:
            run = get_run(run_id)
            guard.check_run(run, run_id)
            return run

        def get_admitted_fab(digest: str, run_id: int) -> Fab:
            fab = get_fab(digest, run_id)
            guard.admit(fab.content, digest, fab.hash_str, run_id=run_id)
            return fab

        try:
            return original(
                state=state,
                object_store=object_store,
                receive=receive_noted,
                get_run=get_plain_run,
                get_fab=get_admitted_fab,
                **others,
            )
        except Refusal:
            from flwr.app import Message

            insert(Message(error, reply_to=received[-1]), state, object_store)
            return int(received[-1].metadata.run_id)

    return pull_and_store_message


def promptly(pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """A pull that asks until there is a message: what finds none makes Flower wait for 3 s, however short the rounds are."""

    def pull_when_there_is_one(**how: Any) -> int | None:
        begun = time.monotonic()
        while (run_id := pull(**how)) is None:
            time.sleep(pause_s(time.monotonic() - begun))
        return run_id

    return pull_when_there_is_one


class Executor:
    """Keeps the executor's process running beside the SuperNode, which would wait for ever without noticing that it is gone."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Starts it, and again whenever it ends, after a pause that grows to half a minute."""
        threading.Thread(target=self._keep, name="isthmus-executor", daemon=True).start()

    def is_at_work(self) -> bool:
        """Whether a process works on a message: it is forked from the one that waits. True where processes cannot be seen."""
        if not FORKS or not _SEEN.exists():
            return True
        return self._process is not None and any(children_of(waiting) for waiting in children_of(self._process.pid))

    def stop(self) -> None:
        """Ends it and waits; its app process ends with it."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def _keep(self) -> None:
        pause = 0.5
        while not self._stopping.is_set():
            begun = time.monotonic()
            self._process = subprocess.Popen(self._command)
            self._process.wait()
            pause = 0.5 if time.monotonic() - begun > 60 else min(2 * pause, 30)
            if not self._stopping.is_set():
                _LOG.error("the executor ended with code %s; it is started again in %.1f s", self._process.returncode, pause)
            self._stopping.wait(pause)


def command(
    partner_toml: Path, *, superlink: str, root_certificates: Path, node_key: Path, port: int = 0, deadline_s: float = 0.0
) -> list[str]:
    """The command line that starts a guarded SuperNode; whoever supervises it starts it again when it ends.

    Args:
        partner_toml: settings of the domain.
        superlink: host:port that partners reach.
        root_certificates: PEM file of the authority that signed the server's certificate.
        node_key: the SuperNode's private key in OpenSSH's form.
        port: on the loopback, for the app processes; 0 = a free one.
        deadline_s: seconds that the app may take for a message; 0 = no limit.
    """
    named = {"superlink": superlink, "root-certificates": root_certificates, "node-key": node_key, "port": port, "deadline-s": deadline_s}
    options = [f"--{name}={value}" for name, value in named.items()]
    return [sys.executable, "-P", "-m", "client.bundle_guard", str(partner_toml), *options]


def serve(options: argparse.Namespace) -> None:
    """Checks what it rests on, then runs the SuperNode until it ends.

    Raises:
        ConfigError: Flower is not as expected, the app cannot be imported, or a setting cannot be used.
    """
    settings = ClientSettings.read(options.partner_toml)
    home = settings.path(settings.home)
    if set(str(options.partner_toml.resolve())) & set("\"'\\\n"):
        raise ConfigError("Flower cannot pass on a path with quotes or backslashes", do="Rename the folder of partner.toml.")
    os.umask(0o077)
    os.environ.update(_environment(home))  # before Flower is imported, which reads some of it then
    verify()
    check_app_imports()
    AllowList(home / FILE).decisions()
    check_port(options.port)
    port = options.port or _free_port()
    secret = home / "flower" / "executor.secret"
    write_file(secret, secrets.token_bytes(32))
    executor = Executor(_executor_command(home, port, secret, options))
    install(Guard(home), executor.is_at_work)

    from flwr.supercore.exit import ExitCode, flwr_exit
    from flwr.supernode.cli.flower_supernode import flower_supernode

    sys.argv = ["flower-supernode", *_supernode_options(options, port, secret)]
    executor.start()
    try:
        flower_supernode()
        # Flower logs what broke the loop of its node and returns; its HTTP server would keep the process, which asks for messages no more.
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, f"{OURS} stopped asking for messages.")
    except Exception as error:  # whatever it is: without an exit of Flower's own, that server keeps a process that nobody starts again
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, f"{OURS} broke: {type(error).__name__}: {error}")
    finally:
        executor.stop()
        with contextlib.suppress(OSError):
            secret.unlink()


def install(guard: Guard, at_work: Callable[[], bool] = lambda: True) -> None:
    """Puts the guard into this process' SuperNode.

    Args:
        at_work: whether a process works on a message.
    Raises:
        ConfigError: Flower did not take it.
    """
    from flwr.supernode import start_client_internal as module
    from flwr.supernode.nodestate.in_memory_nodestate import CLIENT_APP_CRASHED_ERROR

    original, insert, error = module._pull_and_store_message, module._insert_message, module.FAB_VERIFICATION_ERROR
    replaced = promptly(guarded_pull(original, guard, insert=insert, error=error))
    module._pull_and_store_message = replaced
    module._push_messages = answered(module._push_messages, insert=insert, error=CLIENT_APP_CRASHED_ERROR, at_work=at_work)
    if module.start_client_internal.__globals__["_pull_and_store_message"] is not replaced:
        raise ConfigError("the guard could not be put into Flower's SuperNode: nothing was started")


def check_app_imports() -> None:
    """Imports the app once in a process of its own, so that a broken installation is found here and not in a run.

    Raises:
        ConfigError: with the last line of what Python said.
    """
    done = subprocess.run([sys.executable, "-P", "-c", "import client.app"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ConfigError(f"the installed client cannot be imported: {said[-1]}", do="Install isthmus anew with its constraints.txt.")


def _environment(home: Path) -> dict[str, str]:
    return {
        "FLWR_HOME": str(home / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": os.environ.get("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.2"),
    }


def _supernode_options(options: argparse.Namespace, port: int, secret: Path) -> list[str]:
    named = {
        "superlink": options.superlink,
        "root-certificates": options.root_certificates.resolve(),
        "auth-supernode-private-key": options.node_key.resolve(),
        "node-config": f'partner-toml="{options.partner_toml.resolve()}"',
        "isolation": "process",
        "superexec-auth-secret-file": secret,
        "host": _LOOPBACK,
        "port": port,
    }
    return [part for name, value in named.items() for part in (f"--{name}", str(value))]


def _executor_command(home: Path, port: int, secret: Path, options: argparse.Namespace) -> list[str]:
    named = {
        "runtime-api-address": f"{_LOOPBACK}:{port}",
        "secret": secret,
        "allowed": home / FILE,
        "apps": home / "flower" / "bundles",
        "deadline-s": options.deadline_s,
        "preload": options.preload,
        "parent-pid": os.getpid(),
    }
    return [sys.executable, "-P", "-m", "client.app_process", "executor", *(f"--{name}={value}" for name, value in named.items())]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_LOOPBACK, 0))
        return int(found.getsockname()[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; `isthmus-client up` supervises it."""
    parser = argparse.ArgumentParser(prog="client.bundle_guard", allow_abbrev=False)
    parser.add_argument("partner_toml", type=Path)
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument("--root-certificates", type=Path, required=True, metavar="FILE")
    parser.add_argument("--node-key", type=Path, required=True, metavar="FILE")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--deadline-s", type=float, default=0.0)
    parser.add_argument("--preload", default=PRELOAD)
    options = parser.parse_args(arguments)
    sys.exit(guarded(lambda: serve(options), debug=False))


if __name__ == "__main__":
    main()
