"""Ranks of held-out items on disk, and the figures they give: ``ranks/<source>-<target>.npz`` and ``ranks/warm-<domain>.npz``.

Layout: for each method ``<method>/ranks`` and ``<method>/top``, and once ``offsets``, ``users``, ``popularity``, ``n_items``. Such files
hold exact per-user results and exist in simulations only.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared import ranking
from shared.errors import RunFolderError

from .bootstrap import Interval, bootstrap_intervals, coverage_interval
from .json_files import replace_file

CUT = 10
LIST_LENGTH = 20
USER_METRICS = ("hr@10", "ndcg@10", "recall@10", "mrr", "novelty@10")
METRICS = ("hr@10", "ndcg@10", "recall@10", "mrr", "coverage@10", "novelty@10")
METHODS = (
    "popularity",
    "linked-popularity",
    "text",
    "text-popularity",
    "head-only",
    "neighbours",
    "target-only",
    "federated",
    "federated-shuffled",
    "recommender",
    "pooled-ridge",
)
"""Rows of a direction's table, in the order of the table."""
WARM_METHODS = ("item-knn", "ease", "ease-text")
"""Rows that only the table of warm people has, behind the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksFile:
    """Where each held-out item of each user stands in each method's ranking of the whole catalogue.

    Attributes:
        offsets: (n_users + 1,) where a user's held-out items begin in the flat arrays.
        users: (n_users, 16) uint8 keys; equal keys in two runs are the same person.
        popularity: (n_items,) interactions of the training users.
        ranks: method -> (n_held_out,) float32 position, 0 = first, ties at their average.
        top: method -> (n_users, 20) int32 list; -1 for an empty place.
    """

    offsets: np.ndarray
    users: np.ndarray
    popularity: np.ndarray
    ranks: Mapping[str, np.ndarray]
    top: Mapping[str, np.ndarray]

    @property
    def methods(self) -> list[str]:
        """Methods in the order of `METHODS` and `WARM_METHODS`, others behind by name."""
        order = (*METHODS, *WARM_METHODS)
        return sorted(self.ranks, key=lambda m: (order.index(m) if m in order else len(order), m))

    @property
    def with_truth(self) -> np.ndarray:
        """(n_users,) whether a user has any held-out item; the others are no part of any figure."""
        return np.diff(self.offsets) > 0


def write_ranks(path: Path, ranks: RanksFile) -> None:
    """Writes a ranks file, atomically.

    Raises:
        StorageError: when it cannot be written.
    """
    arrays = {"offsets": ranks.offsets.astype(np.int64), "users": ranks.users, "popularity": ranks.popularity.astype(np.int64)}
    arrays["n_items"] = np.asarray(len(ranks.popularity), dtype=np.int64)
    for method in ranks.methods:
        arrays[f"{method}/ranks"] = ranks.ranks[method].astype(np.float32)
        arrays[f"{method}/top"] = ranks.top[method].astype(np.int32)
    replace_file(path, lambda file: np.savez(file, allow_pickle=False, **arrays))


def read_ranks(path: Path) -> RanksFile:
    """Reads and checks a ranks file.

    Raises:
        RunFolderError: when the file is missing, is not such a file, or its arrays do not fit together.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing", do="Run the scenario again: ranks are written at its end.") from None
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{path} is not a ranks file ({type(error).__name__})", do="Run the scenario again.") from None
    missing = [name for name in ("offsets", "users", "popularity") if name not in arrays]
    if missing:
        raise RunFolderError(f"{path} lacks the array '{missing[0]}'", do="Run the scenario again.")
    ranks = {name.removesuffix("/ranks"): array for name, array in arrays.items() if name.endswith("/ranks")}
    top = {name.removesuffix("/top"): array for name, array in arrays.items() if name.endswith("/top")}
    found = RanksFile(offsets=arrays["offsets"], users=arrays["users"], popularity=arrays["popularity"], ranks=ranks, top=top)
    _check_shapes(path, found)
    return found


def user_values(ranks: RanksFile, method: str) -> dict[str, np.ndarray]:
    """Per-user metrics of a method: name of `USER_METRICS` -> (n_users with held-out items,) float64."""
    keep = ranks.with_truth
    flat, offsets = ranks.ranks[method], np.append(0, np.diff(ranks.offsets)[keep].cumsum())
    values = {
        f"hr@{CUT}": ranking.hit_rate_at_k(flat, offsets, CUT),
        f"ndcg@{CUT}": ranking.ndcg_at_k(flat, offsets, CUT),
        f"recall@{CUT}": ranking.recall_at_k(flat, offsets, CUT),
        "mrr": ranking.mrr(flat, offsets),
        f"novelty@{CUT}": ranking.novelty_at_k(ranks.top[method][keep][:, :CUT], ranks.popularity),
    }
    return {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}


def method_figures(ranks: RanksFile, generator: np.random.Generator) -> dict[str, dict[str, Interval]]:
    """Every metric of every method with its 95 % interval over users."""
    keep, persons = ranks.with_truth, ranks.users[ranks.with_truth]
    figures: dict[str, dict[str, Interval]] = {}
    columns = {method: user_values(ranks, method) for method in ranks.methods}
    table = np.stack([columns[m][name] for m in columns for name in USER_METRICS], axis=1) if columns else np.zeros((keep.sum(), 0))
    intervals = iter(bootstrap_intervals(table, generator=generator, persons=persons))
    for method in columns:
        found = {name: next(intervals) for name in USER_METRICS}
        found[f"coverage@{CUT}"] = coverage_interval([ranks.top[method][keep][:, :CUT]], len(ranks.popularity), generator=generator)
        figures[method] = {name: found[name] for name in METRICS}
    return figures


def direction_of(stem: str, domains: Iterable[str]) -> tuple[str | None, str]:
    """(source, target) of a ranks file's name, (None, domain) for a warm one; domain names may hold hyphens.

    >>> direction_of("art-shop-office", ["art-shop", "office"])
    ('art-shop', 'office')
    >>> direction_of("warm-office", ["art-shop", "office"])
    (None, 'office')
    """
    known = set(domains)
    pairs = [(s, t) for s in known for t in known if f"{s}-{t}" == stem and s != t]
    if pairs:
        return pairs[0]
    if stem.startswith("warm-") and stem.removeprefix("warm-") in known:
        return None, stem.removeprefix("warm-")
    raise RunFolderError(
        f"ranks/{stem}.npz is neither a direction nor a domain of this run", do="Remove the file; it does not belong here."
    )


def _check_shapes(path: Path, ranks: RanksFile) -> None:
    offsets = ranks.offsets
    n_users = len(offsets) - 1
    sound = offsets.ndim == 1 and n_users >= 0 and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()) and len(ranks.users) == n_users
    if not sound:
        raise RunFolderError(f"{path}: 'offsets' and 'users' do not fit together", do="Run the scenario again.")
    if set(ranks.ranks) != set(ranks.top):
        odd = sorted(set(ranks.ranks) ^ set(ranks.top))[0]
        raise RunFolderError(f"{path}: '{odd}' has ranks without lists or lists without ranks", do="Run the scenario again.")
    for method, flat in ranks.ranks.items():
        if flat.shape != (int(offsets[-1]),) or ranks.top[method].ndim != 2 or len(ranks.top[method]) != n_users:
            raise RunFolderError(f"{path}: the arrays of '{method}' do not fit 'offsets'", do="Run the scenario again.")
