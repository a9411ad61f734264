"""Per-user values of several runs, lined up by person and seed, so that variants and directions can be compared on the same people."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Difference, Interval, bootstrap_intervals, mean_over_groups
from .ranks import RanksFile, user_values

COMPARED_METRICS = ("hr@10", "ndcg@10")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """One direction of one variant at one epsilon.

    Attributes:
        persons: (n, 16) uint8 keys.
        seed: (n,) int64 of the run a row is from.
        keys: (n,) person and seed as one key of 24 bytes, sorted and distinct.
        values: method -> (n, len(COMPARED_METRICS)) float32.
    """

    persons: np.ndarray
    seed: np.ndarray
    keys: np.ndarray
    values: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def n_seeds(self) -> int:
        return len(np.unique(self.seed))

    def at(self, rows: np.ndarray) -> Rows:
        values = {method: table[rows] for method, table in self.values.items()}
        return Rows(persons=self.persons[rows], seed=self.seed[rows], keys=self.keys[rows], values=values)

    def only(self, methods: Sequence[str]) -> Rows:
        """The same rows with some methods."""
        return dataclasses.replace(self, values={method: self.values[method] for method in methods if method in self.values})


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """Variant A's federated row minus variant B's, on the same people and seeds; without a direction the mean over all directions."""

    epsilon: float
    source: str | None
    target: str | None
    metric: str
    n_seeds: int
    difference: Difference
    """Its ``a`` and ``b`` are positions of variants in the comparison, as text."""

    def flipped(self) -> Contrast:
        """The same difference the other way round."""
        found, old = self.difference, self.difference.interval
        interval = Interval(mean=-old.mean, low=-old.high, high=-old.low)
        return dataclasses.replace(self, difference=dataclasses.replace(found, a=found.b, b=found.a, interval=interval))

    def renamed(self, positions: Sequence[int]) -> Contrast:
        """The same where variant ``i`` stands at ``positions[i]``."""
        a, b = (str(positions[int(name)]) for name in (self.difference.a, self.difference.b))
        return dataclasses.replace(self, difference=dataclasses.replace(self.difference, a=a, b=b))


def rows_of(ranks: Mapping[int, RanksFile]) -> Rows:
    """Rows of one direction, by seed; of the methods that every seed measured."""
    persons, seeds, values = [], [], []
    for number, found in ranks.items():
        persons.append(np.ascontiguousarray(found.users[found.with_truth]))
        seeds.append(np.full(len(persons[-1]), number, dtype=np.int64))
        columns = {method: user_values(found, method) for method in found.methods}
        values.append({m: np.stack([of[name] for name in COMPARED_METRICS], axis=1).astype(np.float32) for m, of in columns.items()})
    people, seed = np.concatenate(persons), np.concatenate(seeds)
    bytes_ = np.concatenate([people, seed.astype(">i8").view(np.uint8).reshape(-1, 8)], axis=1)
    keys = np.ascontiguousarray(bytes_).view(f"V{bytes_.shape[1]}").ravel()
    methods = [method for method in values[0] if all(method in of for of in values)]
    table = {method: np.concatenate([of[method] for of in values]) for method in methods}
    return Rows(persons=people, seed=seed, keys=keys, values=table).at(np.argsort(keys))


def common(tables: Sequence[Rows]) -> list[Rows]:
    """The rows that all of them have, in the same order."""
    if all(np.array_equal(tables[0].keys, table.keys) for table in tables[1:]):
        return list(tables)
    shared = functools.reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), [table.keys for table in tables])
    return [table.at(np.flatnonzero(np.isin(table.keys, shared, assume_unique=True))) for table in tables]


def contrasts(
    tables: Mapping[tuple[str, str], Sequence[Rows]], *, epsilon: float, generator: np.random.Generator, method: str = "federated"
) -> list[Contrast]:
    """Every later variant minus every earlier one, in each direction and in the mean over directions.

    Args:
        tables: direction -> rows of each variant, in the same order of variants in each direction.
        epsilon: of all of them.
        generator: the bootstrap's source of chance.
        method: the row that is compared.
    Returns:
        Nothing where the variants have no person and seed in common in some direction.
    """
    lined = {direction: common(rows) for direction, rows in tables.items()}
    if not lined or any(not len(rows[0]) for rows in lined.values()):
        return []
    n_variants = len(next(iter(lined.values())))
    pairs = [(a, b) for b in range(n_variants) for a in range(b + 1, n_variants)]
    if not pairs:
        return []
    columns = {
        direction: np.concatenate([rows[a].values[method] - rows[b].values[method] for a, b in pairs], axis=1)
        for direction, rows in lined.items()
    }
    found = []
    for (source, target), table in columns.items():
        rows = lined[source, target][0]
        intervals = bootstrap_intervals(table, generator=generator, persons=rows.persons)
        found += _named(pairs, intervals, epsilon, (source, target), len(rows), rows.n_seeds)
    groups = [(columns[direction], lined[direction][0].persons) for direction in lined]
    n_rows, seeds = sum(len(table) for table, _ in groups), min(rows[0].n_seeds for rows in lined.values())
    return found + _named(pairs, mean_over_groups(groups, generator=generator), epsilon, (None, None), n_rows, seeds)


def _named(
    pairs: Sequence[tuple[int, int]],
    intervals: Sequence[Interval],
    epsilon: float,
    direction: tuple[str | None, str | None],
    n_users: int,
    n_seeds: int,
) -> list[Contrast]:
    source, target = direction
    wanted = [(pair, metric) for pair in pairs for metric in COMPARED_METRICS]
    return [
        Contrast(
            epsilon=epsilon,
            source=source,
            target=target,
            metric=metric,
            n_seeds=n_seeds,
            difference=Difference(a=str(a), b=str(b), interval=interval, n_users=n_users),
        )
        for ((a, b), metric), interval in zip(wanted, intervals, strict=True)
    ]
