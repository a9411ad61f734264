"""Runs what a comparison still lacks: one run for each epsilon and seed, kept in one folder and taken up again where it broke off."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import FederationError, IsthmusError, RunFolderError, StateError

from .comparison import Comparison, FinishedRun, compare
from .findings import finding
from .json_files import read_json, replace_file, write_json
from .run_folder import RunFolder
from .tables import comparison_markdown

RunScenario = Callable[..., Path]
Progress = Callable[[str, int, int], None]
_SETTINGS = "comparison.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One run of a comparison; its split seed is its seed."""

    epsilon: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison as it was asked for.

    Args:
        scenario: name of a built-in scenario, or the path of a TOML file.
        folder: where its runs, compare.json and compare.md lie.
        epsilons, seeds: every pair of them is a run.
        engine, data, overrides: as for one run.
    """

    scenario: str
    folder: Path
    epsilons: tuple[float, ...]
    seeds: tuple[int, ...]
    engine: str
    data: Path | None
    overrides: Mapping[str, Any]

    @property
    def wanted(self) -> list[Wanted]:
        return [Wanted(epsilon=epsilon, seed=seed) for epsilon in self.epsilons for seed in self.seeds]


def compare_runs(plan: Plan, run_scenario: RunScenario, *, progress: Progress, note: Callable[[str], None]) -> Comparison:
    """Runs what is missing, then compares; writes compare.json and compare.md.

    Args:
        run_scenario: makes one run; `simulations.scenario.run_scenario`.
        progress: told (stage, done, total) of the runs and of what happens in each.
        note: told what a person may want to know.
    Raises:
        RunFolderError: the folder holds runs of other settings.
    """
    _claim(plan)
    finished = finished_runs(plan.folder)
    for number, wanted in enumerate(plan.wanted):
        progress(f"run {number + 1} of {len(plan.wanted)}", number, len(plan.wanted))
        if wanted not in finished:
            finished[wanted] = _run(plan, wanted, run_scenario, progress, note)
    progress("compare", 0, 1)
    comparison = compare([finished[wanted] for wanted in plan.wanted], generator=np.random.default_rng(0))
    words = [
        f"**{found.title}** ({found.verdict}): {' '.join(found.sentences)}"
        for found in map(finding, comparison.results)
        if found is not None
    ]
    write_json(plan.folder / "compare.json", comparison.to_json())
    markdown = comparison_markdown(comparison, words)
    replace_file(plan.folder / "compare.md", lambda file: file.write(markdown.encode()))
    progress("compare", 1, 1)
    return comparison


def finished_runs(folder: Path) -> dict[Wanted, Path]:
    """Finished runs in a comparison's folder, by what they are; those whose split seed is not their seed are no part of it."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        metrics = FinishedRun.read(path.parent).metrics
        if metrics.split_seed == metrics.seed:
            found[Wanted(epsilon=metrics.epsilon_target, seed=metrics.seed)] = path.parent
    return found


def _run(plan: Plan, wanted: Wanted, run_scenario: RunScenario, progress: Progress, note: Callable[[str], None]) -> Path:
    broken = _broken_off(plan.folder, wanted)
    if broken is not None:
        try:
            note(f"going on with {broken}")
            return run_scenario(plan.scenario, out=plan.folder, seed=wanted.seed, engine=plan.engine, resume=broken, progress=progress)
        except (RunFolderError, FederationError, StateError) as error:
            note(f"{broken} cannot be resumed, starting anew: {error.what}")
    return run_scenario(
        plan.scenario,
        out=plan.folder,
        seed=wanted.seed,
        split_seed=wanted.seed,
        epsilon=wanted.epsilon,
        engine=plan.engine,
        data=plan.data,
        overrides=dict(plan.overrides),
        progress=progress,
    )


def _broken_off(folder: Path, wanted: Wanted) -> Path | None:
    """The latest unfinished run of this kind."""
    for path in sorted(folder.glob("*/config.toml"), reverse=True):
        if (path.parent / "metrics.json").exists():
            continue
        try:
            config = RunFolder(path.parent).config
        except IsthmusError:
            continue
        same_epsilon = config.privacy.epsilon == wanted.epsilon
        if same_epsilon and config.seed == wanted.seed:
            return path.parent
    return None


def _claim(plan: Plan) -> None:
    """Writes down what the folder is for, or checks that it is for the same: runs of different settings must not be pooled."""
    settings = {
        "scenario": plan.scenario,
        "overrides": json.loads(json.dumps(dict(plan.overrides), default=str)),
        "data": None if plan.data is None else str(plan.data.absolute()),
        "version": _version(),
    }
    path = plan.folder / _SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    kept = read_json(path)
    other = [name for name, value in settings.items() if kept.get(name) != value]
    if other:
        raise RunFolderError(f"{plan.folder} holds runs with another {other[0]}", do="Choose another folder with --out.")


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
