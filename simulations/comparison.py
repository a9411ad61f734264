"""Several runs of one scenario, pooled: figures per epsilon and direction, paired differences and their verdicts (compare.json)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import RunFolderError, UsageError

from .bootstrap import Difference, Interval, bootstrap_intervals, coverage_interval
from .json_files import json_number, plain
from .metrics import Metrics, read_metrics
from .ranks import CUT, METRICS, USER_METRICS, RanksFile, direction_of, read_ranks, user_values
from .run_folder import RunFolder

SCHEMA = 1
UNIT = "one user with all their interactions in one domain"
ADJACENCY = "add or remove one user"
COMPARED_METRICS = ("hr@10", "ndcg@10")
PAIRS = (
    ("federated", "popularity"),
    ("federated", "linked-popularity"),
    ("federated", "text-popularity"),
    ("federated", "head-only"),
    ("federated", "target-only"),
    ("federated", "federated-shuffled"),
    ("federated", "pooled-ridge"),
)
"""A and B of the differences A - B; those whose methods were measured are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run folder with what it says of itself."""

    folder: Path
    name: str
    metrics: Metrics

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Raises `RunFolderError` where the run is not finished."""
        opened = RunFolder(folder).open()
        return cls(folder=folder, name=opened.config.name, metrics=read_metrics(opened.metrics))

    @property
    def synthetic(self) -> bool:
        """Whether the run made its own domains; their rows lie in the run folder."""
        return (self.folder / "data").is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """One direction (or, without a source, the warm users of one domain) at one epsilon, users of all seeds together."""

    epsilon: float
    source: str | None
    target: str
    n_users: int
    n_seeds: int
    methods: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, tuple[Difference, ...]]
    """metric -> differences in the order of `PAIRS`."""

    @property
    def title(self) -> str:
        return f"{self.source} → {self.target}" if self.source else f"{self.target}, warm users"

    def difference(self, a: str, b: str, metric: str = "hr@10") -> Difference | None:
        return next((d for d in self.differences.get(metric, ()) if (d.a, d.b) == (a, b)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs of one scenario side by side."""

    scenario: str
    delta: float
    private: bool
    runs: tuple[FinishedRun, ...]
    results: tuple[Pooled, ...]

    @property
    def synthetic(self) -> bool:
        return all(run.synthetic for run in self.runs)

    @property
    def epsilons(self) -> list[float]:
        return sorted({run.metrics.epsilon_target for run in self.runs}, reverse=True)

    def to_json(self) -> dict[str, Any]:
        """compare.json, schema 1."""
        return {
            "schema": SCHEMA,
            "scenario": self.scenario,
            "delta": json_number(self.delta),
            "unit": UNIT,
            "adjacency": ADJACENCY,
            "private": self.private,
            "runs": [_run_record(run) for run in self.runs],
            "directions": [{"source": r.source, **_result_record(r)} for r in self.results if r.source],
            "warm": [_result_record(r) for r in self.results if not r.source],
            "differences": [
                {"epsilon": json_number(r.epsilon), "source": r.source, "target": r.target, "metric": metric, **difference.to_json()}
                for r in self.results
                for metric, found in r.differences.items()
                for difference in found
            ],
        }


def compare(folders: Sequence[Path], *, generator: np.random.Generator) -> Comparison:
    """Pools finished runs of one scenario.

    Args:
        folders: run folders; the same epsilon, seed and split seed only once.
        generator: the bootstrap's source of chance.
    Raises:
        RunFolderError: a folder is not a finished run, or the runs do not belong together.
    """
    runs = tuple(FinishedRun.read(folder) for folder in folders)
    if not runs:
        raise UsageError("there is no run to compare", do="Name at least one seed and one epsilon.")
    _check_belong_together(runs)
    results = []
    for epsilon in sorted({run.metrics.epsilon_target for run in runs}, reverse=True):
        group = [run for run in runs if run.metrics.epsilon_target == epsilon]
        for source, target in _directions(group):
            stem = f"{source}-{target}" if source else f"warm-{target}"
            ranks = [read_ranks(run.folder / "ranks" / f"{stem}.npz") for run in group]
            results.append(pool(ranks, epsilon=epsilon, source=source, target=target, generator=generator))
    deltas = {domain.delta for run in runs for domain in run.metrics.privacy.values()}
    return Comparison(
        scenario=runs[0].name,
        delta=max(deltas, default=math.nan),
        private=all(run.metrics.private for run in runs),
        runs=runs,
        results=tuple(results),
    )


def pool(seeds: Sequence[RanksFile], *, epsilon: float, source: str | None, target: str, generator: np.random.Generator) -> Pooled:
    """Means, intervals and differences over the users of several seeds; all of them share the same resamples.

    Raises:
        RunFolderError: when the seeds did not measure the same methods.
    """
    methods = seeds[0].methods
    if any(seed.methods != methods for seed in seeds):
        raise RunFolderError(f"the runs measured different methods for {source or 'warm'}-{target}", do="Run the older ones again.")
    values = [{method: user_values(seed, method) for method in methods} for seed in seeds]
    columns: dict[tuple[str, ...], np.ndarray] = {
        (m, name): np.concatenate([seed[m][name] for seed in values]) for m in methods for name in USER_METRICS
    }
    pairs = [(a, b) for a, b in PAIRS if a in methods and b in methods]
    for a, b in pairs:
        columns |= {(a, b, name): columns[a, name] - columns[b, name] for name in COMPARED_METRICS}
    persons = np.concatenate([seed.users[seed.with_truth] for seed in seeds])
    intervals = dict(
        zip(columns, bootstrap_intervals(np.stack(list(columns.values()), axis=1), generator=generator, persons=persons), strict=True)
    )
    figures: dict[str, dict[str, Interval]] = {}
    for method in methods:
        lists = [seed.top[method][seed.with_truth][:, :CUT] for seed in seeds]
        coverage = coverage_interval(lists, len(seeds[0].popularity), generator=generator)
        figures[method] = {name: coverage if name.startswith("coverage") else intervals[method, name] for name in METRICS}
    differences = {
        name: tuple(Difference(a=a, b=b, interval=intervals[a, b, name], n_users=len(persons)) for a, b in pairs)
        for name in COMPARED_METRICS
    }
    return Pooled(
        epsilon=epsilon,
        source=source,
        target=target,
        n_users=len(persons),
        n_seeds=len(seeds),
        methods=figures,
        differences=differences,
    )


def _directions(runs: Sequence[FinishedRun]) -> list[tuple[str | None, str]]:
    """Directions first, then warm domains; the same in every run."""
    found = []
    for run in runs:
        stems = [path.stem for path in sorted((run.folder / "ranks").glob("*.npz"))]
        found.append(sorted((direction_of(stem, run.metrics.privacy) for stem in stems), key=lambda d: (d[0] is None, d[0] or "", d[1])))
        if not stems:
            raise RunFolderError(f"{run.folder} holds no ranks", do="Run the scenario again: ranks are written at its end.")
        if found[-1] != found[0]:
            raise RunFolderError(f"{run.folder} has other directions than {runs[0].folder}", do="Compare runs of one scenario.")
    return found[0]


def _check_belong_together(runs: Sequence[FinishedRun]) -> None:
    names = sorted({run.name for run in runs})
    if len(names) > 1:
        raise RunFolderError(f"runs of different scenarios: {', '.join(names)}", do="Compare runs of one scenario.")
    seen: dict[tuple[float, int, int], Path] = {}
    for run in runs:
        key = (run.metrics.epsilon_target, run.metrics.seed, run.metrics.split_seed)
        if key in seen:
            raise RunFolderError(f"{run.folder} repeats {seen[key]}: same epsilon, seed and split seed", do="Leave one of them out.")
        seen[key] = run.folder


def _run_record(run: FinishedRun) -> dict[str, Any]:
    values = run.metrics
    return {
        "folder": run.folder.name,
        "seed": values.seed,
        "split_seed": values.split_seed,
        "epsilon_target": json_number(values.epsilon_target),
        "noise": values.noise,
        "private": values.private,
        "config_hash": values.config_hash,
        "epsilon": {domain: json_number(spent.epsilon) for domain, spent in values.privacy.items()},
        "seconds": plain(values.seconds),
    }


def _result_record(result: Pooled) -> dict[str, Any]:
    methods = {
        method: {name: {**interval.to_json(), "n_seeds": result.n_seeds} for name, interval in figures.items()}
        for method, figures in result.methods.items()
    }
    return {
        "target": result.target,
        "epsilon": json_number(result.epsilon),
        "n_users": result.n_users,
        "n_seeds": result.n_seeds,
        "methods": methods,
    }
