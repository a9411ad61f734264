"""The processes below the guarded SuperNode: the executor, one that waits, and one for each message in which the app runs.

They stand in for ``flower-superexec`` and ``flwr-clientapp``. The executor starts client apps and no other kind of task. The process that
waits has imported Flower and torch, which takes longer than anything else that happens here to a message. It forks for each, and never runs
a line of a bundle itself; where forking is not safe, outside of Linux, it does one message and ends, and another is started. An app process
checks the bundle a second time, by the sha256 of what reached it; unpacks it itself, whole or not at all, into a folder named by the full
digest; loads the app from there, whatever names the server gave; and answers every failure outside the app with one fixed text, because
Flower would send the text of the exception.

Run with ``python -P -m client.app_process``, so that neither the working folder nor this package's place can shadow a bundle's modules.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.bundle import RUNNING, Bundle
from shared.console import guarded
from shared.errors import Refusal
from shared.process_groups import PR_SET_PDEATHSIG, prctl

from .allowed import AllowList
from .app_launcher import FORKS, Launcher
from .durable_files import storage_errors
from .flower_internals import verify
from .watchdog import deadline, within

if TYPE_CHECKING:
    from flwr.app import Context, Error, Message
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

REFUSED = "The FAB could not be verified."
"""Flower's own words for a refused bundle."""
FAILED = "The app of this node could not be started."
_OURS = frozenset({"client", "server", "shared"})


class OneMessage:
    """What happens between a message's arrival in its process and the app: nothing of it is left to Flower.

    Args:
        allowed: the partner's list; read at the moment of the decision.
        apps: folder for unpacked bundles.
        deadline_s: seconds that the app may take at most; 0 = as long as the server waits, less a margin.
    """

    def __init__(self, allowed: Path, apps: Path, deadline_s: float = 0.0) -> None:
        self._allowed = AllowList(allowed)
        self._apps = apps
        self._deadline_s = deadline_s
        self._refused = False
        self._bundle: Bundle | None = None

    def take_over(self, module: Any) -> None:
        """Replaces what ``flwr.supernode.runtime.run_clientapp`` calls to install and load a bundle and to word an error."""
        module.install_from_fab = self.install
        module.get_project_dir = lambda *_: self._apps
        module.get_load_client_app_fn = lambda **_: self.load
        module.install_app_dependencies = self._no_installation
        module.Error = self.error
        module.register_signal_handlers = die_of_signals

    def install(self, content: bytes, skip_prompt: bool = True) -> None:
        """Admits and unpacks what was received.

        Raises:
            Refusal: it is not on the list.
        """
        del skip_prompt
        try:
            self._bundle = self._allowed.admit(content)
        except Refusal:
            self._refused = True
            raise
        unpack(self._bundle, self._apps)

    def load(self, *_: str) -> Callable[..., Message]:
        """Loads the admitted app; the names that the server gave count for nothing.

        Raises:
            LoadClientAppError: it cannot be imported, or something else was imported in its place.
        """
        from flwr.clientapp.client_app import ClientApp, LoadClientAppError
        from flwr.supercore.object_ref import load_app

        if self._bundle is None:
            raise LoadClientAppError("no bundle was admitted")
        folder = self._apps / self._bundle.digest
        os.environ[RUNNING] = self._bundle.digest
        for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
            del sys.modules[name]  # the guard's own modules: the app's come from its bundle
        try:
            app = load_app(self._bundle.client_app, LoadClientAppError, folder)
        except Exception as error:  # whatever a library says while it is imported, the server gets one fixed text
            raise LoadClientAppError(FAILED) from error
        except SystemExit as error:
            raise LoadClientAppError(FAILED) from error  # a library that ends the process while it is imported would leave no answer
        foreign = [name for name, each in sys.modules.items() if name.partition(".")[0] in _OURS and not _lies_in(each, folder)]
        if foreign or not isinstance(app, ClientApp):
            raise LoadClientAppError(f"not from the bundle: {', '.join(foreign) or 'the app'}")
        return lambda message, context: self._within_deadline(app, message, context)

    def error(self, code: int, reason: str) -> Error:
        """Flower's error for the server, in fixed words: never the text of an exception."""
        from flwr.app import Error
        from flwr.common.constant import ErrorCode

        del code, reason
        return Error(ErrorCode.INVALID_FAB, REFUSED) if self._refused else Error(ErrorCode.LOAD_CLIENT_APP_EXCEPTION, FAILED)

    def _within_deadline(self, app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
        with within(deadline(permitted_s=self._deadline_s, ttl_s=message.metadata.ttl)):
            return app(message, context)

    @staticmethod
    def _no_installation(*_: object, **__: object) -> Path:
        raise Refusal("bundle", "a bundle's dependencies are never installed here")


def die_of_signals(*, exit_handlers: Sequence[Callable[[], None]] = (), **_: object) -> None:
    """In place of Flower's graceful end, which reports a finished task without a reply: its SuperNode would wait for the reply for ever.

    A process that dies instead is missed after a minute, and the SuperNode answers for it. What follows a task in order stays as it is.

    Args:
        exit_handlers: Flower's own, for the end of a task.
    """
    from flwr.supercore.exit import add_exit_handler

    # Flower raises the former itself, where the executor is gone or the task is not this process' own any more.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    for handler in exit_handlers:
        add_exit_handler(handler)


def unpack(bundle: Bundle, apps: Path) -> Path:
    """The folder of an admitted bundle's modules: made in one step, and made anew where a file of it is not as it was.

    Raises:
        StorageError: no space left, or the folder cannot be written.
    """
    folder = apps / bundle.digest
    with storage_errors("the bundle's modules"):
        if _holds(folder, bundle):
            return folder
        apps.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".new-", dir=apps))
        try:
            for path, content in bundle.contents.items():
                (new / path).parent.mkdir(parents=True, exist_ok=True)
                (new / path).write_bytes(content)
            if folder.exists():
                os.rename(folder, Path(tempfile.mkdtemp(prefix=".old-", dir=apps)) / "app")
            os.rename(new, folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if _holds(folder, bundle):
                return folder  # another process was faster
            raise
        for old in apps.glob(".old-*"):
            shutil.rmtree(old, ignore_errors=True)
    return folder


def _holds(folder: Path, bundle: Bundle) -> bool:
    if not folder.is_dir():
        return False
    found = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }
    return found.keys() == bundle.contents.keys() and all(path.read_bytes() == bundle.contents[name] for name, path in found.items())


def _lies_in(module: Any, folder: Path) -> bool:
    places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return all(Path(place).is_relative_to(folder) for place in places if place)


def run_executor(options: argparse.Namespace) -> None:
    """Claims client apps' tasks from the SuperNode, and no others, until the SuperNode ends."""
    from flwr.supercore.auth import load_superexec_auth_secret
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supercore.superexec.plugin import AutoExecPlugin
    from flwr.supercore.superexec.run_superexec import run_superexec
    from flwr.supercore.utils import disable_process_dumping

    verify()
    disable_process_dumping(strict=False)
    launcher = Launcher(_handed_on(options))
    launcher.prepare()

    def capacity(self: SubprocessExecutor, wanted: set[TaskType], **_: object) -> tuple[set[TaskType], set[str]]:
        del self
        return (wanted if launcher.ready() else set()), set()

    def launch(self: SubprocessExecutor, spec: ExecutionSpec) -> LaunchResult:
        del self
        return launcher.launch(spec)

    AutoExecPlugin.supported_task_types = frozenset({TaskType.CLIENT_APP})
    SubprocessExecutor.get_eligible_capacity = capacity  # type: ignore[method-assign, assignment]
    SubprocessExecutor.launch = launch  # type: ignore[method-assign]
    run_superexec(
        runtime_api_address=options.runtime_api_address,
        insecure=True,  # on this machine's loopback, with the secret
        superexec_auth_secret=load_superexec_auth_secret(str(options.secret)),
        parent_pid=options.parent_pid,
        runtime_dependency_install=False,
    )


def run_app(options: argparse.Namespace) -> None:
    """Waits for tasks' tokens on standard input, and does each in a process of its own."""
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # also while it imports, when nobody reads that the executor is gone
    if os.getppid() != options.parent_pid:
        return
    from flwr.supernode.runtime import run_clientapp as module

    verify()
    for name in filter(None, options.preload.split(",")):
        with contextlib.suppress(ImportError):  # the app meets it too, where it is answered
            importlib.import_module(name)
    token = next_task(options.ready)
    if not token:
        return  # the executor ended
    verify()  # anew: the installation may have changed since this process began to wait
    one = OneMessage(options.allowed, options.apps, options.deadline_s)
    one.take_over(module)
    module.run_clientapp(
        runtime_api_address=options.runtime_api_address,
        token=token,
        insecure=True,
        parent_pid=options.parent_pid,
        runtime_dependency_install=False,
    )


def next_task(ready: int | None) -> str:
    """The token of a task, in a process that is for this task alone; empty in the process that waits, once there is nobody to give another.

    Args:
        ready: pipe by which it says, each time, that it waits.
    """
    if FORKS:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a message's process ended, and none stays a zombie
    waiting = os.getpid()
    while True:
        if ready is not None:
            with contextlib.suppress(OSError):
                os.write(ready, b"\n")
        token = sys.stdin.readline().strip()
        if not token or not FORKS:
            return token
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            break
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != waiting:
        return ""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # the pipes are the waiting process' own: whoever holds an end of them would hide that it is gone
    for each in (nothing, ready):
        if each is not None:
            os.close(each)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # nobody here draws from the library's own generator, and no two messages may ever see the same numbers of it
    return token


def _handed_on(options: argparse.Namespace) -> list[str]:
    named = {
        "--runtime-api-address": options.runtime_api_address,
        "--allowed": options.allowed,
        "--apps": options.apps,
        "--deadline-s": options.deadline_s,
        "--preload": options.preload,
    }
    return [f"{name}={value}" for name, value in named.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of both kinds of process; started by the guard, not by people."""
    parser = argparse.ArgumentParser(prog="client.app_process", allow_abbrev=False)
    parser.add_argument("role", choices=("executor", "app"))
    parser.add_argument("--runtime-api-address", required=True)
    parser.add_argument("--allowed", type=Path, required=True)
    parser.add_argument("--apps", type=Path, required=True)
    parser.add_argument("--deadline-s", type=float, default=0.0)
    parser.add_argument("--preload", default="")
    parser.add_argument("--secret", type=Path)
    parser.add_argument("--ready", type=int)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args(arguments)
    sys.exit(guarded(lambda: (run_executor if options.role == "executor" else run_app)(options), debug=False))


if __name__ == "__main__":
    main()
