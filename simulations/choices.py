"""Which variant is chosen at each epsilon, by people whom no figure is reported on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Difference, Interval, mean_over_groups
from .paired_rows import Rows, common

RULE = (
    "Chosen is the variant whose federated row has the highest HR@10 of VALIDATION people, mean over directions, on the people and seeds "
    "that all variants share; of equals the one with the higher nDCG@10, then the earlier one. Cold people play no part in it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What validation people say at one epsilon.

    Attributes:
        epsilon: of the runs.
        positions: of the candidates in the comparison.
        chosen: which of the candidates.
        figures: for each variant its HR@10 and nDCG@10, mean over directions.
        ahead: chosen minus each variant in HR@10 on validation people; None for itself.
        n_users, n_seeds: rows over all directions, and seeds.
    """

    epsilon: float
    positions: tuple[int, ...]
    chosen: int
    figures: tuple[tuple[Interval, Interval], ...]
    ahead: tuple[Difference | None, ...]
    n_users: int
    n_seeds: int

    def renamed(self, positions: Sequence[int]) -> Choice:
        """The same where candidate ``i`` stands at ``positions[i]`` in the comparison."""

        def moved(found: Difference | None) -> Difference | None:
            if found is None:
                return None
            return dataclasses.replace(found, a=str(positions[int(found.a)]), b=str(positions[int(found.b)]))

        return dataclasses.replace(self, positions=tuple(positions), ahead=tuple(map(moved, self.ahead)))


def choose(
    tables: Mapping[tuple[str, str], Sequence[Rows]], *, epsilon: float, generator: np.random.Generator, method: str = "federated"
) -> Choice | None:
    """Chooses among variants.

    Args:
        tables: direction -> rows of validation people of each variant, in the same order of variants in each direction.
        epsilon: of all of them.
        generator: the bootstrap's source of chance.
        method: the row that is compared.
    Returns:
        None where the variants have no validation person in common.
    """
    lined = {direction: common(rows) for direction, rows in tables.items()}
    lined = {direction: rows for direction, rows in lined.items() if len(rows[0])}
    if not lined:
        return None
    n_variants = len(next(iter(lined.values())))
    groups = [(np.concatenate([rows.values[method] for rows in of], axis=1), of[0].persons) for of in lined.values()]
    means = np.mean([table.mean(axis=0) for table, _ in groups], axis=0).reshape(n_variants, 2)  # HR@10, nDCG@10
    chosen = max(range(n_variants), key=lambda at: (round(means[at, 0], 9), round(means[at, 1], 9), -at))
    hits = [(table[:, 2 * chosen, None] - table[:, ::2], persons) for table, persons in groups]
    both = [(np.concatenate([table, difference], axis=1), persons) for (table, persons), (difference, _) in zip(groups, hits, strict=True)]
    intervals = mean_over_groups(both, generator=generator)
    figures, ahead = intervals[: 2 * n_variants], intervals[2 * n_variants :]
    n_users = sum(len(table) for table, _ in groups)
    return Choice(
        epsilon=epsilon,
        positions=tuple(range(n_variants)),
        chosen=chosen,
        figures=tuple(zip(figures[::2], figures[1::2], strict=True)),
        ahead=tuple(
            None if at == chosen else Difference(a=str(chosen), b=str(at), interval=interval, n_users=n_users)
            for at, interval in enumerate(ahead)
        ),
        n_users=n_users,
        n_seeds=min(rows[0].n_seeds for rows in lined.values()),
    )


def sure(choice: Choice) -> bool:
    """Whether the chosen variant is ahead of every other one by more than chance on validation people."""
    return all(found is None or (found.interval.low > 0.0 and not math.isnan(found.interval.low)) for found in choice.ahead)
