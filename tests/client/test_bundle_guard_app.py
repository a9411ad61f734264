"""The process in which an admitted bundle runs: it loads the bundle's own code, whatever is installed, and its failures say nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.common.constant import ErrorCode
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus

from client.allowed import AllowList
from client.app_launcher import FORKS, Launcher
from client.app_process import FAILED, REFUSED, OneMessage, unpack
from shared import bundle
from shared.errors import Refusal, StorageError
from tests.shared.test_bundle import FILES, packed

APP = b"""
from flwr.clientapp import ClientApp
from shared.inside import WORD
app = ClientApp()
app.word = WORD
"""
OURS = {
    **FILES,
    "client/__init__.py": b"",
    "client/app.py": APP,
    "shared/__init__.py": b"",
    "shared/inside.py": b"WORD = 'from the bundle'\n",
}
SCRIPT = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
from client.app_process import OneMessage
import shared.errors, client.settings
one = OneMessage(Path(sys.argv[1]), Path(sys.argv[2]))
module = SimpleNamespace()
one.take_over(module)
said = {}
try:
    module.install_from_fab(Path(sys.argv[3]).read_bytes(), skip_prompt=True)
    load = module.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    run = load("../../x", "/../../etc", "f" * 8)
    app = sys.modules["client.app"].app
    said["app"] = getattr(app, "word", type(app).__name__)
    said["file"] = sys.modules["shared"].__file__
    said["digest"] = os.environ.get("ISTHMUS_BUNDLE_DIGEST")
    said["intents_name"] = getattr(sys.modules["client.app"], "code_digest", str)()
except Exception as error:  # as Flower does
    said["raised"] = type(error).__name__
    error = module.Error(2, f"the text of the exception: {error}")
    said["code"], said["reason"] = error.code, error.reason
print(json.dumps(said))
"""


def loaded(folder: Path, data: bytes, *, allow: bool = True) -> dict[str, Any]:
    """What a fresh process finds after it installed and loaded a bundle."""
    (folder / "a.fab").write_bytes(data)
    if allow:
        AllowList(folder / "allowed.json").decide(hashlib.sha256(data).hexdigest(), allowed=True, by="A. Officer")
    command = [sys.executable, "-P", "-c", SCRIPT, *(str(folder / name) for name in ("allowed.json", "apps", "a.fab"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_our_own_bundle_loads_and_the_intents_of_its_ledger_will_name_it(tmp_path: Path, repository: Path) -> None:
    ours = bundle.build(repository)
    said = loaded(tmp_path, ours.data)

    assert said["app"] == "Gate"
    assert said["intents_name"] == said["digest"] == ours.digest
    assert Path(said["file"]).is_relative_to(tmp_path / "apps" / ours.digest)


def test_the_bundles_own_modules_run_and_not_the_installed_ones_and_the_servers_names_count_for_nothing(tmp_path: Path) -> None:
    said = loaded(tmp_path, packed(OURS))

    digest = hashlib.sha256(packed(OURS)).hexdigest()
    assert said["app"] == "from the bundle"
    assert Path(said["file"]) == tmp_path / "apps" / digest / "shared" / "__init__.py"
    assert said["digest"] == digest


@pytest.mark.parametrize("room", ["shared", "server"])
def test_a_bundle_that_leans_on_an_installed_module_of_ours_is_not_run(tmp_path: Path, room: str) -> None:
    with_it = {**OURS, f"{room}/__init__.py": b"", f"{room}/app.py": b"", "client/app.py": f"import {room}.app\n".encode() + APP}
    assert loaded(tmp_path, packed(with_it))["app"] == "from the bundle"

    without = {path: data for path, data in with_it.items() if path != f"{room}/__init__.py"}
    said = loaded(tmp_path, packed(without))  # Python finds the installed package instead
    assert (said["raised"], said["reason"]) == ("LoadClientAppError", FAILED)


@pytest.mark.parametrize(
    "body",
    [
        b"raise ImportError('a secret of this house')",
        b"import a_library_that_is_not_there",
        b"import sys; sys.exit('a secret of this house')",
        b"this is no python",
        b"app = 3",
        b"",
    ],
)
def test_an_import_that_fails_is_answered_by_one_fixed_text(tmp_path: Path, body: bytes) -> None:
    said = loaded(tmp_path, packed({**OURS, "client/app.py": body}))
    assert (said["code"], said["reason"]) == (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, FAILED)


def test_what_reaches_the_process_and_is_not_allowed_is_refused_there_too_and_not_unpacked(tmp_path: Path) -> None:
    said = loaded(tmp_path, packed(OURS), allow=False)

    assert (said["raised"], said["code"], said["reason"]) == ("Refusal", ErrorCode.INVALID_FAB, REFUSED)
    assert not (tmp_path / "apps").exists()


@pytest.fixture
def admitted() -> bundle.Bundle:
    return bundle.read(packed(OURS))


def test_a_folder_that_a_crash_or_anybody_changed_is_made_anew(tmp_path: Path, admitted: bundle.Bundle) -> None:
    folder = unpack(admitted, tmp_path)
    untouched = folder.stat().st_ino
    assert unpack(admitted, tmp_path).stat().st_ino == untouched
    (folder / "client" / "__pycache__").mkdir()
    (folder / "client" / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"")
    assert unpack(admitted, tmp_path).stat().st_ino == untouched  # Python's own cache is left alone

    for spoil in (
        lambda: (folder / "client" / "app.py").write_bytes(b"app = 'other'"),
        lambda: (folder / "client" / "app.py").unlink(),
        lambda: (folder / "sitecustomize.py").write_bytes(b""),
        lambda: os.truncate(folder / "shared" / "inside.py", 3),
    ):
        spoil()
        unpack(admitted, tmp_path)
        found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
        assert found == dict(admitted.contents)
    assert os.listdir(tmp_path) == [admitted.digest]


def test_no_room_for_the_modules_is_a_clear_error(tmp_path: Path, admitted: bundle.Bundle) -> None:
    (tmp_path / "apps").write_text("a file")
    with pytest.raises(StorageError, match="cannot write the bundle's modules"):
        unpack(admitted, tmp_path / "apps")


def test_dependencies_are_never_installed(tmp_path: Path) -> None:
    module = SimpleNamespace()
    OneMessage(tmp_path / "allowed.json", tmp_path / "apps").take_over(module)
    with pytest.raises(Refusal, match="never installed"):
        module.install_app_dependencies(tmp_path, launch_id="x", run_id=1, index_context={})


def test_an_app_that_takes_too_long_is_interrupted_and_a_quick_one_is_not(tmp_path: Path) -> None:
    one = OneMessage(tmp_path / "allowed.json", tmp_path / "apps", deadline_s=0.3)
    message = SimpleNamespace(metadata=SimpleNamespace(ttl=600.0))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="deadline"):
        one._within_deadline(lambda message, context: time.sleep(30), message, None)  # type: ignore[arg-type, return-value]
    assert time.monotonic() - began < 10
    assert one._within_deadline(lambda message, context: "quick", message, None) == "quick"  # type: ignore[arg-type, comparison-overlap]
    time.sleep(0.4)  # and no alarm is left behind


def _task(token: str, kind: TaskType = TaskType.CLIENT_APP) -> ExecutionSpec:
    return ExecutionSpec(
        task_type=kind,
        runtime_api_address="127.0.0.1:1",
        token=token,
        insecure=True,
        root_certificates_path=None,
        runtime_dependency_install=False,
        parent_pid=None,
        suppress_output=False,
        task_id=1,
    )


def test_only_client_apps_are_launched() -> None:
    launcher = Launcher([])
    for kind in set(TaskType) - {TaskType.CLIENT_APP}:
        assert launcher.launch(_task("t", kind)).status == LaunchResultStatus.FAILED


WAITS = """
import os, signal, sys, time
ready = int(sys.argv[-1].partition("=")[2])
with open(sys.argv[1], "a") as started:
    started.write(f"{os.getpid()}\\n")
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.02)
os.write(ready, b"\\n")
os.close(ready)
with open(sys.argv[1] + ".tasks", "a") as tasks:
    tasks.write(sys.stdin.readline())
"""


def test_a_task_is_claimed_only_while_a_process_is_ready_and_one_waits_at_most(tmp_path: Path) -> None:
    started, tasks, go = tmp_path / "p", tmp_path / "p.tasks", tmp_path / "p.go"
    launcher = Launcher([])
    launcher._command = [sys.executable, "-c", WAITS, str(started)]

    def waits() -> list[int]:
        return [int(pid) for pid in started.read_text().split()] if started.is_file() else []

    def until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end
            time.sleep(0.02)

    assert not launcher.ready()
    until(lambda: len(waits()) == 1)
    for _ in range(20):  # however often Flower asks while it still imports
        assert not launcher.ready()
    assert len(waits()) == 1

    go.touch()
    until(launcher.ready)
    assert launcher.launch(_task("first")).status == LaunchResultStatus.ACCEPTED
    until(lambda: tasks.is_file() and tasks.read_text() == "first\n")
    until(launcher.ready)
    assert len(waits()) == 2

    os.kill(waits()[-1], signal.SIGKILL)  # before anybody asked: its task goes to a fresh one
    until(lambda: not launcher.ready())
    until(launcher.ready)
    assert launcher.launch(_task("second")).status == LaunchResultStatus.ACCEPTED
    until(lambda: tasks.read_text() == "first\nsecond\n")
    until(launcher.ready)
    assert len(waits()) == 4
    last = launcher._waiting
    assert last is not None
    last.end()
    until(lambda: not last.lives)


FORKED = """
import json, os, sys, numpy, random
from client import app_process
token = app_process.next_task(int(sys.argv[-1]))
said = [os.getpid(), os.getppid(), token, float(numpy.random.random()), random.random(), os.read(0, 1).decode()]
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(said) + "\\n")
"""


@pytest.mark.skipif(not FORKS, reason="one message a process, where forking is not safe")
def test_each_message_has_a_process_that_shares_nothing_with_another_and_the_waiting_one_outlives_them(tmp_path: Path) -> None:
    said, saying = os.pipe()
    told = tmp_path / "told"
    command = [sys.executable, "-P", "-c", FORKED, str(told), str(saying)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(saying,)) as process:
        os.close(saying)
        assert process.stdin is not None
        for token in (b"first", b"second"):
            assert os.read(said, 1) == b"\n"
            process.stdin.write(token + b"\n")
            process.stdin.flush()
        assert os.read(said, 1) == b"\n"
        end = time.monotonic() + 60
        while not told.is_file() or told.read_text().count("\n") < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(30) == 0
        assert os.read(said, 1) == b""  # no process of a message kept its end
    os.close(said)
    lines = {token: rest for token, *rest in ((line[2], *line[:2], *line[3:]) for line in map(json.loads, told.read_text().splitlines()))}
    assert lines.keys() == {"first", "second", ""}
    for token in ("first", "second"):
        pid, parent, *_, rest = lines[token]
        assert pid != process.pid == parent
        assert rest == ""  # nor can it read what is meant for another
    assert len({tuple(line[2:4]) for line in lines.values()}) == 3


@pytest.mark.skipif(not FORKS, reason="one message a process, where forking is not safe")
def test_a_message_ends_with_the_process_that_waits(tmp_path: Path) -> None:
    said, saying = os.pipe()
    script = (
        "import sys, time; from client import app_process; print(app_process.next_task(int(sys.argv[-1])), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-P", "-c", script, str(saying)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(saying,)) as process:
        os.close(saying)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"first\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"first\n"
        process.kill()
        assert process.stdout.read() == b""  # and with it the last one who could write there
    os.close(said)


DIES = """
import os, signal, sys
from types import SimpleNamespace
from pathlib import Path
from flwr.supercore.exit import ExitCode, flwr_exit
from client.app_process import OneMessage
module = SimpleNamespace()
OneMessage(Path("none"), Path("none")).take_over(module)
module.register_signal_handlers(event_type=None, exit_message="", exit_handlers=[lambda: print("told that it finished", flush=True)])
if sys.argv[1] == "ends":
    flwr_exit(ExitCode.SUCCESS)
os.kill(os.getpid(), signal.Signals[sys.argv[1]])
"""


@pytest.mark.parametrize(("how", "code", "told"), [("SIGINT", -2, ""), ("SIGTERM", -15, ""), ("ends", 0, "told that it finished\n")])
def test_a_signal_ends_an_app_without_a_word_so_that_its_node_answers_for_it(how: str, code: int, told: str, repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, how], cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, told), done.stderr
