"""How sure a figure is, and whether one method beats another: bootstrap over users.

The resampled unit is the person. Where seeds are pooled, one person may be held out under several of them; all rows of a person are drawn
together, so that pooling does not feign more people than there are. Generators are handed in: the same generator, the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from .json_files import json_number

LEVEL = 0.95
RESAMPLES = 2000
LIST_RESAMPLES = 200
NEGLIGIBLE = 0.01
"""A mean difference of at most this much is no win, whatever its interval."""
NON_INFERIORITY_MARGIN = 0.005

_DRAWS_AT_A_TIME = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval; ``nan`` where the data cannot say (no user: all three; one user: the bounds)."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        return {name: json_number(getattr(self, name)) for name in ("mean", "low", "high")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A minus B over the same users, and the three verdicts that may be drawn from it."""

    a: str
    b: str
    interval: Interval
    n_users: int

    @property
    def beats(self) -> bool:
        """A beats B: the lower bound is above 0."""
        return self.interval.low > 0.0

    @property
    def does_not_beat(self) -> bool:
        """A does not beat B: the interval holds 0, or the mean is at most `NEGLIGIBLE`."""
        return self.interval.low <= 0.0 <= self.interval.high or self.interval.mean <= NEGLIGIBLE

    @property
    def non_inferior(self) -> bool:
        """A is not worse than B by more than `NON_INFERIORITY_MARGIN`: lower bound at least minus that."""
        return self.interval.low >= -NON_INFERIORITY_MARGIN

    def to_json(self) -> dict[str, Any]:
        verdicts = {"beats": self.beats, "does_not_beat": self.does_not_beat, "non_inferior": self.non_inferior}
        return {"a": self.a, "b": self.b, **self.interval.to_json(), "n_users": self.n_users, **verdicts}


def bootstrap_intervals(
    values: np.ndarray,
    *,
    generator: np.random.Generator,
    persons: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """Mean of each column with its percentile interval; every column sees the same resamples.

    The mean is over rows. With ``persons`` a resample draws people with replacement, each with all their rows, and divides by the rows
    drawn (the ratio estimate of a cluster bootstrap; Davison & Hinkley 1997, section 3.8).

    Args:
        values: (n_rows, n_columns) or (n_rows,) finite numbers, one row for each user of each seed.
        generator: the resamples' source of chance.
        persons: (n_rows,) or (n_rows, width) keys; rows with equal keys are one person. None: every row is a person.
        resamples: how many.
    Returns:
        One interval for each column.
    Raises:
        ValueError: when a value is not finite.

    >>> bootstrap_intervals(np.array([1.0, 1.0, 1.0]), generator=np.random.default_rng(0))
    [Interval(mean=1.0, low=1.0, high=1.0)]
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if not np.isfinite(table).all():
        raise ValueError("values of a bootstrap must be finite")
    n_rows, n_columns = table.shape
    if n_rows == 0:
        return [Interval(mean=math.nan, low=math.nan, high=math.nan)] * n_columns
    sums, rows = _per_person(table, persons)
    mean = table.mean(axis=0)
    if len(sums) < 2:
        return [Interval(mean=float(m), low=math.nan, high=math.nan) for m in mean]
    means = np.concatenate([(counts @ sums) / (counts @ rows)[:, None] for counts in _draws(len(sums), generator, resamples)])
    low, high = np.quantile(means, _tails(), axis=0)
    return [Interval(mean=float(m), low=float(lo), high=float(hi)) for m, lo, hi in zip(mean, low, high, strict=True)]


def mean_over_groups(
    groups: Sequence[tuple[np.ndarray, np.ndarray]], *, generator: np.random.Generator, resamples: int = RESAMPLES
) -> list[Interval]:
    """Mean over groups of each group's mean, with its interval: every group counts the same, however many rows it has.

    A group is a direction. A resample draws people with replacement, each with all their rows in all groups and seeds; one that leaves a
    group without any row is passed over.

    Args:
        groups: for each group (n_rows, n_columns) finite numbers, and (n_rows,) or (n_rows, width) keys of persons.
        generator: the resamples' source of chance.
        resamples: how many.
    Returns:
        One interval for each column.

    >>> two, one = np.array([[0.0], [1.0]]), np.array([[1.0]])
    >>> mean_over_groups([(two, np.arange(2)), (one, np.arange(1))], generator=np.random.default_rng(0))[0].mean
    0.75
    """
    tables = [np.asarray(values, dtype=np.float64) for values, _ in groups]
    if any(not np.isfinite(table).all() for table in tables):
        raise ValueError("values of a bootstrap must be finite")
    n_columns = tables[0].shape[1]
    if any(len(table) == 0 for table in tables):
        return [Interval(mean=math.nan, low=math.nan, high=math.nan)] * n_columns
    mean = np.mean([table.mean(axis=0) for table in tables], axis=0)
    persons = [_flat_keys(np.asarray(keys)) for _, keys in groups]
    everybody, person = np.unique(np.concatenate(persons), return_inverse=True)
    if len(everybody) < 2:
        return [Interval(mean=float(m), low=math.nan, high=math.nan) for m in mean]
    ends = np.cumsum([len(keys) for keys in persons])[:-1]
    summed = []
    for table, rows in zip(tables, np.split(person, ends), strict=True):
        incidence = scipy.sparse.csr_array((np.ones(len(table)), (rows, np.arange(len(table)))), shape=(len(everybody), len(table)))
        summed.append((np.asarray(incidence @ table), np.bincount(rows, minlength=len(everybody)).astype(np.float64)))
    means = []
    for counts in _draws(len(everybody), generator, resamples):
        drawn = np.stack([counts @ rows for _, rows in summed])  # (n_groups, some resamples)
        whole = (drawn > 0).all(axis=0)
        means.append(np.mean([(counts[whole] @ sums) / at[whole, None] for (sums, _), at in zip(summed, drawn, strict=True)], axis=0))
    low, high = np.quantile(np.concatenate(means), _tails(), axis=0)
    return [Interval(mean=float(m), low=float(lo), high=float(hi)) for m, lo, hi in zip(mean, low, high, strict=True)]


def paired_difference(
    a: tuple[str, np.ndarray],
    b: tuple[str, np.ndarray],
    *,
    generator: np.random.Generator,
    persons: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> Difference:
    """A minus B, row by row, with the interval of its mean.

    Args:
        a: name and (n_rows,) values of the first method.
        b: name and (n_rows,) values of the second, for the same users in the same order.
        generator: the resamples' source of chance.
        persons: see `bootstrap_intervals`.
        resamples: how many.
    """
    (name_a, values_a), (name_b, values_b) = a, b
    if values_a.shape != values_b.shape:
        raise ValueError(f"{name_a} and {name_b} were not measured on the same users")
    [interval] = bootstrap_intervals(values_a.astype(np.float64) - values_b, generator=generator, persons=persons, resamples=resamples)
    return Difference(a=name_a, b=name_b, interval=interval, n_users=len(values_a))


def coverage_interval(
    lists: Sequence[np.ndarray],
    n_items: int,
    *,
    generator: np.random.Generator,
    resamples: int = LIST_RESAMPLES,
) -> Interval:
    """Share of the catalogue that appears in anybody's list, mean over seeds, with an interval over users.

    A resample holds only about 63 % of the users, so its coverage is too small as a rule. The interval is therefore the spread of the
    resamples around their own mean, moved to the observed value (and kept inside [0, 1]).

    Args:
        lists: for each seed (n_users, k) item indices; negative entries are empty places.
        n_items: size of the catalogue.
        generator: the resamples' source of chance.
        resamples: how many; each costs one pass over the lists.

    >>> coverage_interval([np.array([[0, 1], [0, 2]])], 6, generator=np.random.default_rng(0)).mean
    0.5
    """
    filled = [top for top in lists if len(top)]
    if not filled or n_items < 1:
        return Interval(mean=math.nan, low=math.nan, high=math.nan)
    observed = float(np.mean([len(np.unique(top[top >= 0])) / n_items for top in filled]))
    if min(len(top) for top in filled) < 2:
        return Interval(mean=observed, low=math.nan, high=math.nan)
    drawn = np.mean([_resampled_coverage(top, n_items, generator, resamples) for top in filled], axis=0)  # (resamples,)
    low, high = observed + np.quantile(drawn, _tails()) - drawn.mean()
    return Interval(mean=observed, low=max(0.0, min(float(low), observed)), high=min(1.0, max(float(high), observed)))


def _tails() -> tuple[float, float]:
    return (1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0


def _per_person(table: np.ndarray, persons: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums of each person's rows, (n_persons, n_columns), and how many rows they have, (n_persons,)."""
    if persons is None:
        return table, np.ones(len(table))
    if len(persons) != len(table):
        raise ValueError("persons and values differ in length")
    _, person, rows = np.unique(_flat_keys(persons), return_inverse=True, return_counts=True)
    incidence = scipy.sparse.csr_array((np.ones(len(table)), (person, np.arange(len(table)))), shape=(len(rows), len(table)))
    return np.asarray(incidence @ table), rows.astype(np.float64)


def _flat_keys(persons: np.ndarray) -> np.ndarray:
    """(n,) keys that can be sorted."""
    keys = np.ascontiguousarray(persons)
    return keys if keys.ndim == 1 else keys.view(np.dtype((np.void, keys.dtype.itemsize * keys.shape[1]))).ravel()


def _draws(n: int, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """How often each of ``n`` was drawn, (some resamples, n) float64 a time, memory bounded."""
    step = max(1, _DRAWS_AT_A_TIME // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _resampled_coverage(top: np.ndarray, n_items: int, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """(resamples,) coverage of as many users drawn with replacement."""
    n, k = top.shape
    users, items = np.repeat(np.arange(n), k), top.ravel()
    keep = items >= 0
    _, column = np.unique(items[keep], return_inverse=True)
    lists = scipy.sparse.csr_array((np.ones(keep.sum()), (users[keep], column)), shape=(n, int(column.max(initial=-1)) + 1))
    covered = [np.asarray((counts > 0).astype(np.float64) @ lists) for counts in _draws(n, generator, resamples)]
    return np.concatenate([(seen > 0).sum(axis=1) for seen in covered]) / n_items
