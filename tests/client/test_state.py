"""The state of a domain on disk: the power goes out, the disk is full, a file is bent, and nothing is lost by half."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from client.serving_state import ServingFolder, ServingState
from client.state import RoundKey, State, StateFolder
from shared.errors import StateError, StorageError

KEY = RoundKey(run_id="run-1", round=7, layer_sha256="ab" * 32)


def state(fill: float = 1.0, *, reply: bytes | None = b"reply", key: RoundKey | None = KEY) -> State:
    arrays: dict[str, np.ndarray] = {
        "encoder.weight": np.full((20, 3), fill, np.float32),
        "adam.step": np.full((), fill, np.float64),
        "seen": np.arange(5),
    }
    return State(arrays=arrays, key=key, reply=reply, space_version="space-1", meta={"rounds": 7, "encoder": "e1"})


def same(a: State | None, b: State) -> bool:
    return (
        a is not None
        and (a.key, a.reply, a.space_version, a.meta) == (b.key, b.reply, b.space_version, b.meta)
        and a.arrays.keys() == b.arrays.keys()
        and all(a.arrays[n].dtype == b.arrays[n].dtype and np.array_equal(a.arrays[n], b.arrays[n]) for n in a.arrays)
    )


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "domain" / "state")


def path_of(folder: StateFolder) -> Path:
    return folder._snapshots.path


def snapshot(folder: StateFolder) -> Path:
    (only,) = path_of(folder).glob("snapshot-*")
    return only


def test_there_is_no_state_before_the_first_one(folder: StateFolder) -> None:
    assert folder.current() is None
    assert folder.reply_to(KEY) is None
    assert not path_of(folder).exists()


@pytest.mark.parametrize("kept", [state(), state(reply=None, key=None), state(reply=b""), state(fill=float("nan"), reply=None)])
def test_what_was_kept_is_what_a_new_process_finds(folder: StateFolder, kept: State) -> None:
    folder.replace(state(fill=0.5))
    folder.replace(kept)
    found = StateFolder(path_of(folder)).current()
    if np.isnan(kept.arrays["adam.step"]):
        assert found is not None
        assert np.isnan(found.arrays["adam.step"])
    else:
        assert same(found, kept)


def test_an_array_that_is_not_in_c_order_is_kept_as_it_reads(folder: StateFolder) -> None:
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    folder.replace(State(arrays={"a": transposed, "b": transposed[::2]}, key=None, reply=None, space_version="s"))
    found = folder.current()
    assert found is not None
    assert found.arrays["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found.arrays["b"].tolist() == [[0, 3], [2, 5]]


def test_a_message_that_was_answered_is_answered_from_disk_and_no_other_is(folder: StateFolder) -> None:
    folder.replace(state(reply=b"these very bytes"))
    assert folder.reply_to(KEY) == b"these very bytes"
    for other in (
        RoundKey(run_id="run-2", round=7, layer_sha256=KEY.layer_sha256),
        RoundKey(run_id="run-1", round=8, layer_sha256=KEY.layer_sha256),
        RoundKey(run_id="run-1", round=7, layer_sha256="cd" * 32),
    ):
        assert folder.reply_to(other) is None


def test_the_folder_and_its_files_belong_to_their_owner_even_under_a_careless_umask(folder: StateFolder) -> None:
    before = os.umask(0)
    try:
        folder.replace(state())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(folder).stat().st_mode) == 0o700
    assert stat.S_IMODE(snapshot(folder).stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in snapshot(folder).iterdir()} == {0o600}


def test_only_one_state_is_kept_on_disk(folder: StateFolder) -> None:
    for fill in range(4):
        folder.replace(state(fill))
    assert snapshot(folder).name == "snapshot-000000000004"
    assert sorted(entry.name for entry in path_of(folder).iterdir()) == [".lock", "snapshot-000000000004"]


# --- crashes ---------------------------------------------------------------------------------------------------------------------

_KILLED_AT_LINE = """
    import os, shutil, signal, sys
    from pathlib import Path
    import numpy as np
    from client import durable_files, state
    from client.state import RoundKey, State, StateFolder

    def new(fill):
        return State(arrays={"w": np.full(1000, fill, np.float32)}, key=None, reply=b"r" * int(fill), space_version="s")

    watched = {durable_files.__file__, state.__file__}
    root = Path(sys.argv[1])
    import safetensors.numpy
    outcomes = []
    StateFolder(root / "old").replace(new(1))
    for fatal in range(1, 10_000):
        folder = StateFolder(root / str(fatal))
        shutil.copytree(root / "old", root / str(fatal))
        child = os.fork()
        if child == 0:
            lines = 0
            def trace(frame, event, argument):
                global lines
                if frame.f_code.co_filename not in watched:
                    return None
                if event in ("line", "return"):
                    lines += 1
                    if lines == fatal:
                        os.kill(os.getpid(), signal.SIGKILL)
                return trace
            sys.settrace(trace)
            folder.replace(new(2))
            sys.settrace(None)
            os._exit(0)
        survived = os.waitpid(child, 0)[1] == 0
        found = folder.current()
        fill = int(found.arrays["w"][0])
        assert (found.arrays["w"] == fill).all() and found.reply == b"r" * fill, fatal
        if fatal % 5 == 0:  # and work goes on from what was left
            folder.replace(new(3))
            assert folder.current().reply == b"rrr"
            assert len(list((root / str(fatal)).iterdir())) == 2, fatal
        outcomes.append(fill)
        if survived:
            break
    assert outcomes == sorted(outcomes), "once the new state counts it counts for good"
    print(outcomes.count(1), outcomes.count(2))
"""


@pytest.mark.journey
def test_a_process_killed_at_any_line_leaves_the_old_state_or_the_new_whole(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_KILLED_AT_LINE), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    old, new = map(int, run.stdout.split())
    assert old > 30
    assert new > 10


_CUT_WHILE_WRITING = """
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from client.state import State, StateFolder
    signal.signal(signal.SIGXFSZ, getattr(signal, sys.argv[3]))
    limit = int(sys.argv[2])
    state = State(arrays={"w": np.full(1000, 2, np.float32)}, key=None, reply=b"rr" * 3000, space_version="s")
    folder = StateFolder(Path(sys.argv[1]))
    import safetensors.numpy
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    folder.replace(state)
"""


def _cut(path: Path, limit: int, action: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(_CUT_WHILE_WRITING)
    return subprocess.run([sys.executable, "-c", script, str(path), str(limit), action], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("limit", [100, 4_000, 5_000])
def test_a_process_killed_in_the_middle_of_a_file_leaves_the_old_state(folder: StateFolder, limit: int) -> None:
    folder.replace(state())
    assert _cut(path_of(folder), limit, "SIG_DFL").returncode == -signal.SIGXFSZ
    assert same(folder.current(), state())
    folder.replace(state(2))  # sweeps away what was begun
    assert snapshot(folder).name == "snapshot-000000000002"
    assert len(list(path_of(folder).iterdir())) == 2


@pytest.mark.parametrize("limit", [100, 4_000, 5_000])
def test_a_full_disk_is_a_storage_error_and_the_old_state_is_intact(folder: StateFolder, limit: int) -> None:
    folder.replace(state())
    run = _cut(path_of(folder), limit, "SIG_IGN")
    assert run.returncode == 1
    assert "StorageError: no space left while writing the training state" in run.stderr
    assert same(folder.current(), state())
    assert len(list(path_of(folder).iterdir())) == 2  # nothing half-written stays on the full disk


def test_a_disk_that_is_really_full_is_a_storage_error_and_the_old_state_is_intact(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here; the size limit above stands in for it")
    try:
        folder = StateFolder(disk / "state")
        folder.replace(state())
        with pytest.raises(StorageError, match="no space left while writing the training state"):
            folder.replace(State(arrays={"w": np.zeros(30_000)}, key=None, reply=None, space_version="s"))
        assert same(folder.current(), state())
        folder.replace(state(2))
        assert same(folder.current(), state(2))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write the training state"):
        StateFolder(tmp_path / "file" / "state").replace(state())


_WRITES_ON_AND_ON = """
    import sys
    from pathlib import Path
    import numpy as np
    from client.state import State, StateFolder
    folder = StateFolder(Path(sys.argv[1]))
    for i in range(int(sys.argv[2]), int(sys.argv[2]) + 40):
        folder.replace(State(arrays={"w": np.full(100, i)}, key=None, reply=str(i).encode(), space_version="s"))
"""


def test_two_writers_and_a_reader_at_once_never_meet_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "state"
    script = textwrap.dedent(_WRITES_ON_AND_ON)
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(start)]) for start in (0, 1000)]
    folder, seen = StateFolder(path), set()
    while any(writer.poll() is None for writer in writers):
        if (found := folder.current()) is not None:
            assert found.reply == str(found.arrays["w"][0]).encode()
            assert len(set(found.arrays["w"].tolist())) == 1
            seen.add(found.reply)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(seen) > 1
    assert snapshot(folder).name == "snapshot-000000000080"


# --- damage ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arrays.safetensors", "reply.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bent"])
def test_a_damaged_state_is_refused_and_says_what_to_do(folder: StateFolder, name: str, damage: str) -> None:
    folder.replace(state())
    file = snapshot(folder) / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "bent":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    with pytest.raises(StateError, match="damaged") as caught:
        folder.current()
    assert "Restore the folder from a copy" in caught.value.do


def test_an_empty_snapshot_is_refused_rather_than_taken_for_a_fresh_start(folder: StateFolder) -> None:
    folder.replace(state())
    shutil.rmtree(snapshot(folder))
    (path_of(folder) / "snapshot-000000000001").mkdir()
    with pytest.raises(StateError, match=r"'meta\.json' is missing"):
        folder.current()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"body": {}, "sha256": ""}', "[" * 100_000, "\xff"])
def test_a_description_that_is_not_one_is_refused(folder: StateFolder, text: str) -> None:
    folder.replace(state())
    (snapshot(folder) / "meta.json").write_text(text, encoding="latin-1")
    with pytest.raises(StateError, match="damaged"):
        folder.current()


def test_a_round_number_changed_by_hand_is_refused(folder: StateFolder) -> None:
    folder.replace(state())
    file = snapshot(folder) / "meta.json"
    described = json.loads(file.read_text())
    described["body"]["meta"]["key"]["round"] = 6
    file.write_text(json.dumps(described))
    with pytest.raises(StateError, match="does not match its own digest"):
        folder.current()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StateError, match="is a file"):
        StateFolder(tmp_path / "state").current()


# --- training and serving ----------------------------------------------------------------------------------------------------------


def test_a_serving_folder_cannot_be_opened_as_training_state_nor_the_other_way_round(tmp_path: Path) -> None:
    serving = ServingState(arrays={"head": np.ones(3)}, space_version="s", meta={"rounds": 3})
    ServingFolder(tmp_path / "serving").replace(serving)
    StateFolder(tmp_path / "training").replace(state())
    found = ServingFolder(tmp_path / "serving").current()
    assert found is not None
    assert (found.arrays["head"].tolist(), found.space_version, found.meta) == ([1, 1, 1], "s", {"rounds": 3})
    with pytest.raises(StateError, match="holds a serving state, not a training state"):
        StateFolder(tmp_path / "serving").current()
    with pytest.raises(StateError, match="holds a training state, not a serving state"):
        ServingFolder(tmp_path / "training").current()


def _imports(file: Path, root: Path) -> Iterable[str]:
    """Modules that a file names in any import, wherever in the file it stands, as dotted names."""
    package = file.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
                if node.level
                else node.module or ""
            )
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _reached(starts: Iterable[Path], root: Path) -> set[str]:
    waiting, reached = list(starts), set[str]()
    while waiting:
        for name in set(_imports(waiting.pop(), root)) - reached:
            file = root.joinpath(*name.split(".")).with_suffix(".py")
            if file.is_file():
                reached.add(name)
                waiting.append(file)
    return reached


def _training_files(root: Path) -> list[Path]:
    return [*sorted((root / "client" / "training").rglob("*.py")), *filter(Path.exists, [root / "client" / "local_round.py"])]


def test_training_code_cannot_reach_the_serving_state(repository: Path) -> None:
    files = _training_files(repository)
    assert len(files) > 2
    assert "client.serving_state" not in _reached(files, repository)
    for file in files:
        assert "serving" not in {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}, file.name


@pytest.mark.parametrize(
    "planted",
    [
        "from client.serving_state import ServingFolder",
        "from ..serving_state import ServingFolder",
        "from .. import serving_state",
        "import client.serving_state",
    ],
)
def test_a_planted_way_to_the_serving_state_is_found(tmp_path: Path, planted: str) -> None:
    training = tmp_path / "client" / "training"
    training.mkdir(parents=True)
    (tmp_path / "client" / "serving_state.py").write_text("")
    (tmp_path / "client" / "model.py").write_text(f"def fit():\n    {planted.replace('..', '.')}\n")
    (training / "dp_sgd.py").write_text("from ..model import fit\n")
    assert "client.serving_state" in _reached(_training_files(tmp_path), tmp_path)
