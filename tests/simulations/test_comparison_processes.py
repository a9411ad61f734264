"""A comparison in several processes that are interrupted and killed, for real, ends like one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.errors import FederationError
from simulations.comparison_task import Task
from simulations.comparison_workers import ATTEMPTS, run_all
from simulations.ranks import RanksFile, read_ranks
from simulations.run_slots import Wanted, held
from simulations.scenario import run_scenario
from simulations.shared_work import by_person, rearranged
from simulations.variants import Variant

ROOT = Path(__file__).parents[2]
ROUNDS = 16
"""Enough for a run to be met at work again after it was interrupted twice, however slow the machine is."""
TINY = f"""
[data]
kind = "synthetic"
[synthetic]
items = 60
users_alone = 40
users_linked = 40
interactions = 6
[run]
name = "tiny"
[run.privacy]
rounds = {ROUNDS}
steps_per_round = 1
sampling_rate = 0.25
expected_batch_users = 30
[run.model]
dimension = 16
descriptor_dimension = 4
prototypes = 8
[run.training]
catalogue_negatives = 64
"""
PATIENCE_S = 600.0


def start(folder: Path) -> subprocess.Popen[str]:
    words = ["compare", str(folder / "tiny.toml"), "--epsilons", "8,2", "--seeds", "0", "--target-only", "none", "--jobs", "2"]
    command = [sys.executable, "-W", "ignore", "-m", "simulations.cli", *words, "--out", str(folder / "out"), "--json"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(found: Callable[[], object], what: str, process: subprocess.Popen[str] | None = None) -> object:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before {what}: {process.communicate()[1]}")
        time.sleep(0.1)
    pytest.fail(f"no {what} within {PATIENCE_S} s")


def workers(out: Path) -> dict[int, Path]:
    """Process -> slot that it holds the lock of, of the living processes of a comparison."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                held_open = [os.readlink(fd) for fd in (entry / "fd").iterdir()]
            except OSError:
                continue
            for name in held_open:
                if name.startswith(str(out / "runs")) and name.endswith("/.lock"):
                    found[int(entry.name)] = Path(name).parent
    return found


def rounds(slot: Path) -> int:
    return max((len(path.read_text().splitlines()) for path in slot.glob("*/rounds.jsonl")), default=0)


def finished(slot: Path) -> bool:
    return any(slot.glob("*/metrics.json"))


def at_work(out: Path, more_than: dict[str, int]) -> dict[int, Path]:
    """Processes whose run has counted further rounds and is not done."""
    return {pid: slot for pid, slot in workers(out).items() if rounds(slot) > more_than.get(slot.name, 0) and not finished(slot)}


def progress_of(out: Path) -> dict[str, int]:
    return {slot.name: rounds(slot) for slot in (out / "runs").iterdir()}


@pytest.mark.slow
def test_a_comparison_that_is_interrupted_and_killed_ends_with_every_run_made_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    out = (tmp_path / "out").resolve()

    process = start(tmp_path)
    until(lambda: at_work(out, {}), "first round", process)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 130, said
    assert "The same command goes on where this one ended" in said
    assert "Traceback" not in said
    assert workers(out) == {}  # it waited for its children

    before = progress_of(out)
    process = start(tmp_path)
    until(lambda: at_work(out, before), "further round", process)
    process.kill()  # -9: nobody can tell the children
    process.communicate(timeout=PATIENCE_S)
    until(lambda: not workers(out), "end of the children whose parent is gone")
    with held(out, wait_s=0.0):  # nobody works here any more
        before = progress_of(out)

    process = start(tmp_path)
    victims = until(lambda: at_work(out, before), "further round", process)
    assert isinstance(victims, dict)
    os.kill(next(iter(victims)), signal.SIGKILL)
    document, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    assert "was killed (signal 9); the run goes on in another one" in said

    values = json.loads(document)
    assert {(run["epsilon_target"], run["seed"]) for run in values["runs"]} == {(8.0, 0), (2.0, 0)}
    for slot in (out / "runs").iterdir():
        assert len(list(slot.glob("*/config.toml"))) == 1, f"{slot.name} was begun anew instead of resumed"
        assert [json.loads(line)["round"] for line in next(slot.glob("*/rounds.jsonl")).read_text().splitlines()] == list(
            range(1, ROUNDS + 1)
        )
    assert not (out / "cache" / "prepared").exists()

    alone = run_scenario(str(tmp_path / "tiny.toml"), out=tmp_path / "alone", epsilon=8.0, with_target_only=False)
    [shared] = [path.parent for path in out.glob("runs/*-eps8-seed0-*/*/metrics.json")]
    for path in sorted((alone / "ranks").rglob("*.npz")):
        compare_controls(read_ranks(path), read_ranks(shared / path.relative_to(alone)))


def compare_controls(one: RanksFile, other: RanksFile) -> None:
    """Rows that were computed for this run and rows that came from another one: the same people, the same ranks."""
    one, other = (rearranged(found, by_person(found.users)) for found in (one, other))
    np.testing.assert_array_equal(one.users, other.users)
    controls = {"popularity", "linked-popularity", "text", "text-popularity", "pooled-ridge"} & set(one.methods)
    assert {"popularity", "text"} <= controls
    for method in controls:
        np.testing.assert_allclose(one.ranks[method], other.ranks[method], atol=1.0, err_msg=method)  # near-equal scores may swap


def test_a_process_that_dies_every_time_is_given_up_with_the_name_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The children are real; the interpreter that they start with ends at once."""
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho no more memory >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    wanted = Wanted(epsilon=8.0, seed=0, variant=Variant.of({"model.method": "residual"}))
    task = Task(scenario="demo", folder=tmp_path / "out", wanted=wanted, engine="in-process", data=None, overrides={})
    events = list(run_all([task], jobs=2, logs=tmp_path / "logs"))
    assert [event.kind for event in events] == ["begun", *["note"] * (ATTEMPTS - 1), "failed"]
    assert isinstance(events[-1].error, FederationError)
    assert "was killed (signal 9), 3 times: no more memory" in events[-1].error.what
    assert str(tmp_path / "logs" / "run-000.log") in events[-1].error.do


def test_a_task_survives_its_way_to_another_process() -> None:
    wanted = Wanted(epsilon=float("inf"), seed=2, variant=Variant.of({"model.method": "maml", "model.rank": 4}))
    task = Task(
        scenario="demo",
        folder=Path("out"),
        wanted=wanted,
        engine="in-process",
        data=None,
        overrides={"privacy.rounds": 3},
        base={"model.method": "residual", "model.rank": 8},
        with_target_only=False,
    )
    assert Task.from_json(task.to_json()) == task


def test_an_error_of_a_run_comes_back_as_what_it_is(tmp_path: Path) -> None:
    """The child refuses the key in its own process; here it has the same words and the same exit code."""
    task = Task(
        scenario="demo",
        folder=tmp_path / "out",
        wanted=Wanted(epsilon=8.0, seed=0),
        engine="in-process",
        data=None,
        overrides={"privacy.rouns": 3},
    )
    *_, last = run_all([task], jobs=2, logs=tmp_path / "logs")
    assert last.kind == "failed"
    assert last.error is not None
    assert (last.error.exit_code, "privacy.rouns" in last.error.what) == (3, True)
