"""Runs what a comparison still lacks, one run for each variant, epsilon and seed, and compares; taken up again wherever it broke off."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from shared.errors import IsthmusError, RunFolderError

from .comparison import Comparison, FinishedRun, compare_finished
from .comparison_page import write_pages
from .comparison_task import RunScenario, Task, complete, make
from .comparison_workers import run_all
from .json_files import read_json, write_json
from .run_slots import Wanted, finished_in, held, slot_of, slots
from .scenario_config import load
from .shared_work import SharedWork
from .variants import METHOD, STANDARD, Variant, base_of, product

_SETTINGS = "comparison.json"
_LOCK_WAIT_S = 5.0


class Watch(Protocol):
    """Told what a comparison does."""

    def begun(self, name: str) -> None: ...
    def stage(self, name: str, stage: str, done: int, total: int) -> None: ...
    def ended(self, name: str, done: int, total: int, *, failed: bool) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison as it was asked for.

    Args:
        scenario: name of a built-in scenario, or the path of a TOML file.
        folder: where its runs, compare.json, compare.md and compare.html lie.
        epsilons, seeds: every pair of them is a run of each variant.
        engine, data, overrides: as for one run.
        axes: configuration key -> values; every combination is a variant.
        target_only: methods that are trained at each domain alone too; None = all of them.
        jobs: runs at a time, each in a process of its own; 1 = one after the other in this process.
        command: that asked for it, for the pages.
    """

    scenario: str
    folder: Path
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    engine: str = "in-process"
    data: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    target_only: tuple[str, ...] | None = None
    jobs: int = 1
    command: str = ""

    def base(self) -> dict[str, Any]:
        """Value of every key where nothing is varied."""
        return base_of(load(self.scenario, epsilon=math.inf, overrides=self.overrides))

    def variants(self) -> list[Variant]:
        """Every combination of the axes; standard keys have a value whether they are varied or not.

        Raises:
            ConfigError: a value that the configuration refuses, or that does not go with another one.
        """
        found = []
        for values in product(self.axes):
            resolved = base_of(load(self.scenario, epsilon=math.inf, overrides={**self.overrides, **values}))
            found.append(Variant.of({key: resolved[key] for key in (*STANDARD, *values) if key in resolved}))
        return list(dict.fromkeys(found))

    def wanted(self) -> list[Wanted]:
        """A few seeds at a time, so that a comparison that is cut short has whole columns.

        As many as there are jobs: of two runs of one seed side by side, neither finds the other's work done.
        """
        together, variants = max(1, self.jobs), self.variants()
        groups = [self.seeds[at : at + together] for at in range(0, len(self.seeds), together)]
        return [Wanted(epsilon=e, seed=seed, variant=v) for group in groups for e in self.epsilons for v in variants for seed in group]

    def with_target_only(self, wanted: Wanted) -> bool:
        return self.target_only is None or wanted.variant.get(METHOD) in self.target_only

    def task(self, wanted: Wanted, base: Mapping[str, Any]) -> Task:
        return Task(
            scenario=self.scenario,
            folder=self.folder,
            wanted=wanted,
            engine=self.engine,
            data=self.data,
            overrides=dict(self.overrides),
            base=dict(base),
            with_target_only=self.with_target_only(wanted),
        )


def compare_runs(plan: Plan, *, watch: Watch, run_scenario: RunScenario | None = None) -> Comparison:
    """Runs what is missing, then compares; writes compare.json, compare.md and compare.html with its pictures.

    Where single runs fail, the others are made all the same and compared; the first error is raised at the end.

    Args:
        watch: told what happens.
        run_scenario: makes one run in this process; `simulations.scenario.run_scenario` when left out. With several jobs it is not used.
    Raises:
        RunFolderError: the folder holds runs of other settings, or another process works in it.
        IsthmusError: of a run that failed.
    """
    base = plan.base()
    wanted = plan.wanted()
    for epsilon in plan.epsilons:  # what no noise reaches is said before anything is run
        load(plan.scenario, epsilon=epsilon, overrides={**plan.overrides, **wanted[0].variant.difference(base)})
    with held(plan.folder, wait_s=_LOCK_WAIT_S):
        _claim(plan, base)
        finished = {one: path for one in wanted if (path := _finished(plan, one, base)) is not None}
        missing = [one for one in wanted if one not in finished]
        made, errors = _make(plan, missing, base, len(wanted), watch, run_scenario)
        finished |= made
        if not finished:
            raise errors[0]
        runs = [FinishedRun.read(finished[one]) for one in wanted if one in finished]
        found = pages(plan.folder, [_completed(run, base, list(plan.axes)) for run in runs], watch, command=plan.command)
    if errors:
        watch.note(f"{len(errors)} of {len(wanted)} runs failed; the comparison is of the others")
        raise errors[0]
    SharedWork(plan.folder / "cache").forget_prepared()
    return found


def compare_finished_runs(folder: Path, *, watch: Watch) -> Comparison:
    """Compares everything that is finished in the folder of one or several comparisons of the same settings; runs nothing.

    Raises:
        RunFolderError: no comparison, or nothing in it is finished.
    """
    kept = read_json(folder / _SETTINGS)
    base = dict(kept.get("base", {}))
    newest = [found[0] for slot in slots(folder) if (found := finished_in(slot))]
    older = sorted(path.parent for path in folder.glob("*/metrics.json"))
    if not newest and not older:
        raise RunFolderError(f"{folder} holds no finished run", do="Run the comparison first: isthmus-simulate compare.")
    runs = [FinishedRun.read(path) for path in (*newest, *older)]
    keys = list(dict.fromkeys(key for run in runs for key, _ in run.variant.settings))
    runs = [_completed(run, base, keys) for run in runs]
    order = {name: at for at, name in enumerate(kept.get("order", []))}
    runs.sort(key=lambda run: (order.get(_name(run.variant), len(order)), -run.metrics.epsilon_target, run.metrics.seed))
    return pages(folder, runs, watch, command=str(kept.get("command", "")))


def pages(folder: Path, runs: Sequence[FinishedRun], watch: Watch, *, command: str) -> Comparison:
    """Compares runs and writes what is read: compare.json, compare.md, compare.html, pictures."""
    name = "compare"
    watch.begun(name)

    def tell(stage: str, done: int, total: int) -> None:
        watch.stage(name, stage, done, total)

    found = compare_finished(runs, generator=np.random.default_rng(0), progress=tell, command=command)
    write_json(folder / "compare.json", found.to_json())
    write_pages(found, folder)
    watch.ended(name, 0, 0, failed=False)
    return found


def _make(
    plan: Plan, missing: Sequence[Wanted], base: Mapping[str, Any], total: int, watch: Watch, run_scenario: RunScenario | None
) -> tuple[dict[Wanted, Path], list[IsthmusError]]:
    """Makes the missing runs; what was made, and what went wrong."""
    keys = [key for key, values in plan.axes.items() if len(values) > 1]
    names = [one.name(keys) for one in missing]
    tasks = [plan.task(one, base) for one in missing]
    made: dict[Wanted, Path] = {}
    errors: list[IsthmusError] = []
    done = total - len(missing)

    def settle(at: int, folder: Path | None, error: IsthmusError | None) -> None:
        if folder is not None:
            made[missing[at]] = folder
        if error is not None:
            errors.append(error)
            watch.note(f"{names[at]} failed: {error.what}")
        watch.ended(names[at], done + len(made) + len(errors), total, failed=error is not None)

    if plan.jobs > 1 and missing:
        with closing(run_all(tasks, jobs=plan.jobs, logs=plan.folder / "logs")) as events:
            for event in events:
                if event.kind == "begun":
                    watch.begun(names[event.task])
                elif event.kind == "stage":
                    watch.stage(names[event.task], event.stage, event.done, event.total)
                elif event.kind == "note":
                    watch.note(f"{names[event.task]}: {event.text}")
                else:
                    settle(event.task, event.folder, event.error)
        return made, errors
    for at, task in enumerate(tasks):
        watch.begun(names[at])
        try:
            settle(at, _here(task, names[at], watch, run_scenario), None)
        except IsthmusError as error:
            settle(at, None, error)
    return made, errors


def _here(task: Task, name: str, watch: Watch, run_scenario: RunScenario | None) -> Path:
    if run_scenario is None:
        from .scenario import run_scenario as run_scenario_here

        run_scenario = run_scenario_here
    return make(task, run_scenario, progress=lambda *told: watch.stage(name, *told), note=watch.note)


def _finished(plan: Plan, wanted: Wanted, base: Mapping[str, Any]) -> Path | None:
    """The newest finished run of this kind that has the rows that are asked for; also one of a comparison from before variants."""
    alone = plan.with_target_only(wanted)
    for path in finished_in(slot_of(plan.folder, wanted, base)):
        if complete(path, with_target_only=alone):
            return path
    for path in sorted((one.parent for one in plan.folder.glob("*/metrics.json")), reverse=True):
        run = FinishedRun.read(path)
        values = run.metrics
        same = (values.epsilon_target, values.seed, values.split_seed) == (wanted.epsilon, wanted.seed, wanted.seed)
        if same and run.variant == wanted.variant and complete(path, with_target_only=alone):
            return path
    return None


def _completed(run: FinishedRun, base: Mapping[str, Any], keys: Sequence[str]) -> FinishedRun:
    """A run that was made before a key was varied has the value of the base there."""
    return FinishedRun(folder=run.folder, name=run.name, metrics=run.metrics, variant=run.variant.completed(base, keys))


def _name(variant: Variant) -> str:
    return json.dumps(dict(variant.settings), sort_keys=True, default=str)


def _claim(plan: Plan, base: Mapping[str, Any]) -> None:
    """Writes down what the folder is for, or checks that it is for the same: runs of different settings must not be pooled."""
    settings: dict[str, Any] = {
        "scenario": plan.scenario,
        "overrides": json.loads(json.dumps(dict(plan.overrides), default=str)),
        "data": None if plan.data is None else str(plan.data.absolute()),
        "version": _version(),
    }
    path = plan.folder / _SETTINGS
    kept = read_json(path) if path.exists() else {}
    other = [name for name, value in settings.items() if kept and kept.get(name) != value]
    if other:
        raise RunFolderError(f"{plan.folder} holds runs with another {other[0]}", do="Choose another folder with --out.")
    plain = json.loads(json.dumps(dict(base), default=str))
    changed = [key for key, value in kept.get("base", {}).items() if key in plain and plain[key] != value]
    if changed:
        raise RunFolderError(f"{plan.folder} holds runs with another {changed[0]}", do="Choose another folder with --out.")
    order = list(dict.fromkeys([*kept.get("order", []), *(_name(variant) for variant in plan.variants())]))
    commands = list(dict.fromkeys([*kept.get("commands", []), *([plan.command] if plan.command else [])]))
    write_json(path, settings | {"base": plain, "order": order, "commands": commands, "command": "\n".join(commands)})


def _version() -> str:
    try:
        return version("isthmus")
    except PackageNotFoundError:
        return "unknown"


def epsilon_of(text: str) -> float:
    """``8``, ``0.5``, ``inf`` or ``none`` (no privacy).

    >>> epsilon_of("8"), epsilon_of("none")
    (8.0, inf)
    """
    value = math.inf if text.strip().lower() in ("none", "inf") else float(text)
    if not value > 0:
        raise ValueError("epsilon is a positive number")
    return value
