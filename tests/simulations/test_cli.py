import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.errors import AuditError, BudgetExhausted, MixedDeltas, RunFolderError, StorageError
from simulations.cli import EXIT_WORDS, exit_codes, main
from simulations.compare_runs import Plan, compare_runs
from simulations.console import Console, guarded
from simulations.console_watch import Bars, Lines, Silence

from .run_folder_fixture import planted_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folder(tmp_path_factory.mktemp("runs") / "run")


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_help_shows_examples_and_every_exit_code(capfd):
    for command in ("run", "compare", "sweep", "results", "report"):
        assert call(command, "--help") == 0
        text = " ".join(capfd.readouterr().out.split())
        assert f"isthmus-simulate {command}" in text
        assert all(f"{code} {words}" in text for code, words in EXIT_WORDS.items())


def test_every_error_has_a_documented_exit_code():
    only_of_audits = {AuditError.exit_code, MixedDeltas.exit_code}
    assert set(exit_codes()) - only_of_audits | {0, 130} == set(EXIT_WORDS)


def test_help_loads_no_heavy_library():
    code = """
import sys
from simulations.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "flwr", "numpy", "polars", "matplotlib", "transformers", "opacus"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600)
    assert done.returncode == 0, done.stderr


def test_report_renders_again_and_prints_the_tables(folder, capfd):
    assert call("report", folder) == 0
    out = capfd.readouterr().out
    assert "NOT FOR RELEASE" in out
    assert "federated-shuffled" in out
    assert str(folder / "report.html") in out


def test_json_is_exactly_one_document_on_standard_output(folder, capfd):
    assert call("report", folder, "--json") == 0
    values = json.loads(capfd.readouterr().out)
    assert values["metrics"]["schema"] == 2
    assert values["run_folder"] == str(folder)


def test_quiet_prints_the_folder_and_nothing_else(folder, capfd):
    assert call("report", folder, "--quiet") == 0
    assert capfd.readouterr().out.strip() == str(folder)


def test_what_libraries_and_child_processes_print_never_meets_the_document(capfd):
    console = Console(as_json=True)
    with console.working():
        print("a library talks")
        subprocess.run([sys.executable, "-c", "print('a child talks')"], check=True)
    console.document({"answer": 42})
    out, err = capfd.readouterr()
    assert json.loads(out) == {"answer": 42}
    assert "a library talks" in err
    assert "a child talks" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "demmo"], 2, "Did you mean 'demo'"),
        (["run", "--epsilon", "-1"], 2, "neither a positive number"),
        (["run", "--engine", "warp"], 2, "there is no engine"),
        (["run", "--set", "privacy.rounds"], 2, "not KEY=VALUE"),
        (["run", "--set", "privacy.rouns=3"], 3, "privacy.rounds"),
        (["run", "--seed", "many"], 2, "--seed"),
        (["run", "demo", "--resume", "somewhere"], 2, "goes on as the run began"),
        (["run", "--resume", "nowhere"], 5, "not a run folder"),
        (["compare", "demo", "--seeds", ""], 2, "--seeds is empty"),
        (["compare", "demo", "--epsilons", "some"], 2, "neither a positive number"),
        (["compare", "demo", "--methods", "resdual"], 3, "model.method"),
        (["compare", "demo", "--vary", "model.rank"], 2, "not KEY=VALUE,VALUE"),
        (["compare", "demo", "--vary", "model.rnk=4,8"], 3, "Did you mean"),
        (["sweep", "demo", "--vary", "model.rank=4,8", "--vary", "model.prototypes=8,16"], 2, "a sweep varies one key"),
        (["results", "nowhere"], 5, "is missing"),
        (["report", "nowhere"], 5, "not a folder"),
        (["surprise"], 2, "surprise"),
    ],
)
def test_a_wrong_call_says_what_to_do_and_leaves_with_its_code(arguments, code, words, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == code
    out, err = capfd.readouterr()
    assert words in " ".join(err.split())
    assert "Traceback" not in out + err


def test_an_error_is_one_document_too(capfd, tmp_path):
    assert call("report", tmp_path / "nowhere", "--json") == 5
    error = json.loads(capfd.readouterr().out)["error"]
    assert (error["kind"], error["exit_code"]) == ("RunFolderError", 5)
    assert error["do"]


def raising(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BudgetExhausted("round 4", requested=1, remaining=0.5, ceiling=8, delta=1e-6), 10, "remaining 0.50"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), 6, "no space left"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs/x"), 6, "runs/x"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (ZeroDivisionError("secret"), 1, "fault of isthmus"),
    ],
)
def test_nobody_ever_meets_a_traceback(error, code, words, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert guarded(raising(error), debug=False) == code
    err = capfd.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_an_unexpected_error_keeps_its_traceback_in_a_log(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    guarded(raising(ZeroDivisionError("here")), debug=False)
    [log] = tmp_path.glob("*.log")
    assert str(log) in capfd.readouterr().err
    assert "ZeroDivisionError: here" in log.read_text()


def test_debug_shows_the_traceback(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    guarded(raising(ZeroDivisionError("here")), debug=True)
    assert "Traceback" in capfd.readouterr().err


def test_a_run_that_breaks_off_says_how_to_go_on(tmp_path, capfd):
    def break_off():
        planted_folder(tmp_path / "new")
        (tmp_path / "new" / "metrics.json").unlink()
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), Console().hint_at_resume(tmp_path, None):
        break_off()
    assert f"run --resume {tmp_path / 'new'}" in capfd.readouterr().err


class Runner:
    """Stands for minutes of training: writes a planted run folder and remembers what it was asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, name, *, out, seed, progress, epsilon=None, resume=None, overrides=None, with_target_only=True, **how):
        assert set(how) <= {"engine", "split_seed", "data", "work"}
        self.calls.append((epsilon, seed, resume))
        progress("train", 1, 1)
        if resume is not None:
            raise RunFolderError("broke off too early")
        return planted_folder(out / f"run-{epsilon}-{seed}-{time.monotonic_ns()}", seed=seed, epsilon=epsilon)


def plan_of(folder: Path, **changes) -> Plan:
    values = {
        "scenario": "demo",
        "folder": folder,
        "epsilons": (8.0, 2.0),
        "seeds": (0, 1),
    }
    return Plan(**(values | changes))


def compared(plan: Plan, runner: Runner):
    return compare_runs(plan, run_scenario=runner, watch=Silence())


def test_a_comparison_runs_what_is_missing_and_keeps_what_is_there(tmp_path):
    runner = Runner()
    compared(plan_of(tmp_path, epsilons=(8.0,)), runner)
    found = compared(plan_of(tmp_path), runner)
    assert runner.calls == [(8.0, 0, None), (8.0, 1, None), (2.0, 0, None), (2.0, 1, None)]  # seed by seed
    assert found.epsilons == [8.0, 2.0]
    assert len(json.loads((tmp_path / "compare.json").read_text())["runs"]) == 4
    text = (tmp_path / "compare.md").read_text()
    assert "NOT FOR RELEASE" in text
    assert "epsilon 2 of one run, delta 1e-06" in text
    assert "selection and metrics on public benchmark data, not debited" in text


def test_a_run_that_broke_off_is_resumed_and_where_that_fails_begun_anew(tmp_path):
    runner = Runner()
    compared(plan_of(tmp_path, epsilons=(8.0,), seeds=(0,)), runner)
    [old] = tmp_path.glob("runs/*/run-*")
    (old / "metrics.json").unlink()
    compared(plan_of(tmp_path, epsilons=(8.0,), seeds=(0,)), runner)
    assert runner.calls[1:] == [(None, 0, old), (8.0, 0, None)]


def test_runs_of_other_settings_are_never_pooled(tmp_path):
    compared(plan_of(tmp_path, epsilons=(8.0,), seeds=(0,)), Runner())
    with pytest.raises(RunFolderError, match="another overrides"):
        compared(plan_of(tmp_path, overrides={"synthetic.strength": 0}), Runner())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        compared(plan_of(tmp_path / "file" / "below"), Runner())


def test_bars_and_lines_tell_the_same_story(capfd):
    for watch in (Bars(2), Lines(2)):
        with watch if isinstance(watch, Bars) else contextlib.nullcontext():
            for done, name in enumerate(("maml, epsilon 8, seed 0", "maml, epsilon 2, seed 0")):
                watch.begun(name)
                watch.stage(name, "train", 1, 15)
                watch.note(f"[x] {name}: going on")  # no markup: brackets stay
                watch.ended(name, done + 1, 4, failed=done == 1)
    said = " ".join(capfd.readouterr().err.split())
    assert said.count("[x] maml, epsilon 2, seed 0: going on") == 2
    assert re.search(r"1 of 4 runs, about \d+ s left: maml, epsilon 8, seed 0 took \d+ s", said)
    assert re.search(r"maml, epsilon 2, seed 0 failed after \d+ s", said)
