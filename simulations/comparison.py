"""Several runs of one scenario, pooled: figures per variant, epsilon and direction, paired differences and verdicts (compare.json)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import RunFolderError, UsageError

from .bootstrap import Difference, Interval, bootstrap_intervals, coverage_interval, mean_over_groups
from .choices import Choice, choose
from .metrics import Metrics, read_metrics
from .paired_rows import COMPARED_METRICS, Contrast, Rows, contrasts, rows_of
from .ranks import CUT, METRICS, USER_METRICS, RanksFile, direction_of, read_ranks, user_values
from .run_folder import RunFolder
from .run_slots import SLOT, read_slot
from .variants import NOTHING, Variant, varied

UNIT = "one user with all their interactions in one domain"
ADJACENCY = "add or remove one user"
PAIRS = (
    ("federated", "popularity"),
    ("federated", "linked-popularity"),
    ("federated", "text-popularity"),
    ("federated", "head-only"),
    ("federated", "target-only"),
    ("federated", "federated-shuffled"),
    ("federated", "pooled-ridge"),
    ("recommender", "neighbours"),
    ("recommender", "federated"),
    ("recommender", "popularity"),
    ("recommender", "item-knn"),
    ("recommender", "ease"),
    ("recommender", "ease-text"),
)
"""A and B of the differences A - B; those whose methods were measured are made. The neighbours are nobody's but cold people's."""


OPTIONAL = ("target-only",)
"""Rows that a run may do without: where some seeds have them and some do not, they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run folder with what it says of itself."""

    folder: Path
    name: str
    metrics: Metrics
    variant: Variant = NOTHING

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Raises `RunFolderError` where the run is not finished."""
        opened = RunFolder(folder).open()
        config = opened.config
        variant = read_slot(folder.parent).variant if (folder.parent / SLOT).is_file() else Variant.of_config(config)
        return cls(folder=folder, name=config.name, metrics=read_metrics(opened.metrics), variant=variant)

    @property
    def synthetic(self) -> bool:
        """Whether the run made its own domains; their rows lie in the run folder."""
        return (self.folder / "data").is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """One direction (or, without a source, the warm users of one domain) at one epsilon, users of all seeds together.

    With ``target`` "" it is the mean over all directions: every direction counts the same, persons are drawn with all their rows.
    """

    epsilon: float
    source: str | None
    target: str
    n_users: int
    n_seeds: int
    methods: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, tuple[Difference, ...]]
    """metric -> differences in the order of `PAIRS`."""
    variant: Variant = NOTHING

    @property
    def title(self) -> str:
        if not self.target:
            return "mean over directions"
        return f"{self.source} → {self.target}" if self.source else f"{self.target}, warm users"

    def difference(self, a: str, b: str, metric: str = "hr@10") -> Difference | None:
        return next((d for d in self.differences.get(metric, ()) if (d.a, d.b) == (a, b)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs of one scenario side by side.

    Attributes:
        results: a direction or warm domain of one variant at one epsilon, each.
        overall: the mean over directions of each variant at each epsilon; `COMPARED_METRICS` only.
        validation: the same of validation people.
        contrasts: between variants at the same epsilon; their ``a`` and ``b`` are positions in `variants`.
        choices: by validation people, where there is more than one variant.
        command: that made the runs; empty where it is not known.
    """

    scenario: str
    delta: float
    private: bool
    runs: tuple[FinishedRun, ...]
    results: tuple[Pooled, ...]
    overall: tuple[Pooled, ...] = ()
    validation: tuple[Pooled, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    choices: tuple[Choice, ...] = ()
    command: str = ""

    @property
    def synthetic(self) -> bool:
        return all(run.synthetic for run in self.runs)

    @property
    def epsilons(self) -> list[float]:
        return sorted({run.metrics.epsilon_target for run in self.runs}, reverse=True)

    @property
    def variants(self) -> list[Variant]:
        return list(dict.fromkeys(run.variant for run in self.runs))

    @property
    def varied(self) -> list[str]:
        """Configuration keys in which the variants differ."""
        return varied(self.variants)

    def private_at(self, epsilon: float) -> bool:
        """Whether every run at an epsilon promises it."""
        return all(run.metrics.private for run in self.runs if run.metrics.epsilon_target == epsilon)

    def words(self, variant: Variant) -> str:
        """Name of a variant in this comparison; empty where there is only one."""
        return variant.words(self.varied)

    def to_json(self) -> dict[str, Any]:
        from .comparison_json import record

        return record(self)


Progress = Callable[[str, int, int], None]


def compare(folders: Sequence[Path], *, generator: np.random.Generator) -> Comparison:
    """Pools finished runs of one scenario.

    Args:
        folders: run folders; the same variant, epsilon, seed and split seed only once.
        generator: the bootstrap's source of chance.
    Raises:
        RunFolderError: a folder is not a finished run, or the runs do not belong together.
    """
    return compare_finished([FinishedRun.read(folder) for folder in folders], generator=generator)


def compare_finished(
    found: Sequence[FinishedRun], *, generator: np.random.Generator, progress: Progress | None = None, command: str = ""
) -> Comparison:
    """The same for runs that were read already."""
    runs = tuple(found)
    if not runs:
        raise UsageError("there is no run to compare", do="Name at least one seed and one epsilon.")
    _check_belong_together(runs)
    variants = list(dict.fromkeys(run.variant for run in runs))
    epsilons = sorted({run.metrics.epsilon_target for run in runs}, reverse=True)
    cells = [
        (variant, epsilon, [run for run in runs if (run.variant, run.metrics.epsilon_target) == (variant, epsilon)])
        for epsilon in epsilons
        for variant in variants
    ]
    cells = [cell for cell in cells if cell[2]]
    results: list[Pooled] = []
    overall: list[Pooled] = []
    validation: list[Pooled] = []
    cold: dict[float, dict[int, dict[tuple[str, str], Rows]]] = {epsilon: {} for epsilon in epsilons}
    known: dict[float, dict[int, dict[tuple[str, str], Rows]]] = {epsilon: {} for epsilon in epsilons}
    for number, (variant, epsilon, group) in enumerate(cells):
        if progress is not None:
            progress("compare", number, len(cells))
        pooled, rows = _cell(group, variant, epsilon, generator)
        results += pooled
        mean = functools.partial(over_directions, epsilon=epsilon, variant=variant, generator=generator)
        held = _validation(group)
        overall += [mean(rows)] if rows else []
        validation += [mean(held)] if held else []
        at = variants.index(variant)
        cold[epsilon][at] = {direction: of.only(["federated"]) for direction, of in rows.items()}
        known[epsilon][at] = {direction: of.only(["federated"]) for direction, of in held.items()}
    deltas = {domain.delta for run in runs for domain in run.metrics.privacy.values()}
    return Comparison(
        scenario=runs[0].name,
        delta=max(deltas, default=math.nan),
        private=all(run.metrics.private for run in runs),
        runs=runs,
        results=tuple(results),
        overall=tuple(overall),
        validation=tuple(validation),
        contrasts=tuple(_contrasts(cold, generator)),
        choices=tuple(_choices(known, generator)),
        command=command,
    )


def pool(
    seeds: Sequence[RanksFile],
    *,
    epsilon: float,
    source: str | None,
    target: str,
    generator: np.random.Generator,
    variant: Variant = NOTHING,
) -> Pooled:
    """Means, intervals and differences over the users of several seeds; all of them share the same resamples.

    Raises:
        RunFolderError: when the seeds did not measure the same methods.
    """
    methods = [m for m in seeds[0].methods if m not in OPTIONAL or all(m in seed.methods for seed in seeds)]
    if any([m for m in seed.methods if m in methods or m not in OPTIONAL] != methods for seed in seeds):
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
        variant=variant,
    )


def over_directions(tables: Mapping[tuple[str, str], Rows], *, epsilon: float, variant: Variant, generator: np.random.Generator) -> Pooled:
    """The mean over directions of what every direction measured, with its paired differences."""
    every = list(tables.values())
    methods = [method for method in every[0].values if all(method in rows.values for rows in every)]
    pairs = [(a, b) for a, b in PAIRS if a in methods and b in methods]
    groups = [
        (np.concatenate([*(rows.values[m] for m in methods), *(rows.values[a] - rows.values[b] for a, b in pairs)], axis=1), rows.persons)
        for rows in every
    ]
    found = iter(mean_over_groups(groups, generator=generator))
    figures = {method: {name: next(found) for name in COMPARED_METRICS} for method in methods}
    n_users = sum(len(rows) for rows in every)
    differences: dict[str, list[Difference]] = {name: [] for name in COMPARED_METRICS}
    for a, b in pairs:
        for name in COMPARED_METRICS:
            differences[name].append(Difference(a=a, b=b, interval=next(found), n_users=n_users))
    return Pooled(
        epsilon=epsilon,
        source=None,
        target="",
        n_users=n_users,
        n_seeds=min(rows.n_seeds for rows in every),
        methods=figures,
        differences={name: tuple(of) for name, of in differences.items()},
        variant=variant,
    )


def _cell(
    group: Sequence[FinishedRun], variant: Variant, epsilon: float, generator: np.random.Generator
) -> tuple[list[Pooled], dict[tuple[str, str], Rows]]:
    """Figures of one variant at one epsilon, and the rows of its directions."""
    results, rows = [], {}
    for source, target in _directions(group):
        stem = f"{source}-{target}" if source else f"warm-{target}"
        ranks = {run.metrics.seed: read_ranks(run.folder / "ranks" / f"{stem}.npz") for run in group}
        results.append(pool(list(ranks.values()), epsilon=epsilon, source=source, target=target, generator=generator, variant=variant))
        if source:
            rows[source, target] = rows_of(ranks)
    return results, {direction: of for direction, of in rows.items() if len(of)}


def _validation(group: Sequence[FinishedRun]) -> dict[tuple[str, str], Rows]:
    """Rows of validation people; none where a run has none."""
    stems = [{path.stem for path in RunFolder(run.folder).validation_ranks.glob("*.npz")} for run in group]
    found = {}
    for stem in sorted(set.intersection(*stems)):
        source, target = direction_of(stem, group[0].metrics.privacy)
        if source is not None:
            found[source, target] = rows_of(
                {run.metrics.seed: read_ranks(RunFolder(run.folder).validation_ranks / f"{stem}.npz") for run in group}
            )
    return {direction: rows for direction, rows in found.items() if len(rows)}


def _lined_up(by_variant: Mapping[int, Mapping[tuple[str, str], Rows]]) -> dict[tuple[str, str], list[Rows]]:
    """Direction -> rows of each variant, of the directions that all variants have."""
    shared = [direction for direction in next(iter(by_variant.values()), {}) if all(direction in of for of in by_variant.values())]
    return {direction: [of[direction] for of in by_variant.values()] for direction in shared}


def _contrasts(cold: Mapping[float, Mapping[int, Mapping[tuple[str, str], Rows]]], generator: np.random.Generator) -> list[Contrast]:
    found = []
    for epsilon, by_variant in cold.items():
        positions = list(by_variant)
        if len(positions) > 1:
            found += [c.renamed(positions) for c in contrasts(_lined_up(by_variant), epsilon=epsilon, generator=generator)]
    return found


def _choices(known: Mapping[float, Mapping[int, Mapping[tuple[str, str], Rows]]], generator: np.random.Generator) -> list[Choice]:
    found = []
    for epsilon, by_variant in known.items():
        positions = list(by_variant)
        choice = choose(_lined_up(by_variant), epsilon=epsilon, generator=generator) if len(positions) > 1 else None
        if choice is not None:
            found.append(choice.renamed(positions))
    return found


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
    seen: dict[tuple[Variant, float, int, int], Path] = {}
    for run in runs:
        key = (run.variant, run.metrics.epsilon_target, run.metrics.seed, run.metrics.split_seed)
        if key in seen:
            what = "same variant, epsilon, seed and split seed"
            raise RunFolderError(f"{run.folder} repeats {seen[key]}: {what}", do="Leave one of them out.")
        seen[key] = run.folder
