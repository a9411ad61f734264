r"""The search that the exact and the int8 engine share: float32 products tile by tile, and the few that may win scored again.

All products are taken in float32 first, from item vectors as they are kept; such a score is at most m away from the final one (each
engine knows its own m). The best k and a surplus of them are scored for good, in float64, rounded once to float32. Where the k-th and the
last of the surplus are more than 2m apart, nothing that was left out can belong to the list; where they are not (many equal scores), every
item within 2m of the k-th is scored again. So lists and scores are the same whatever the tiles, the threads, the place of an item in the
catalogue and the other queries, and equal scores stand in the catalogue's order.

Selection, not the product, is what costs in plain code. Here a tile of scores is cut into blocks, and only the blocks with the largest
maxima are looked into: one pass over the scores, and two selections among about :math:`\sqrt{nk}` numbers. Threads share out the chunks,
one thread a chunk: they meet once at the end, and a chunk's scores stay in one processor's cache.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from shared.errors import UsageError

from .lists import NONE, Array32, Array64, Excluded, ExtraScores, Ints, TopItems, checked_queries

SCORES_AT_A_TIME = 1_300_000
"""Scores of a chunk: 5 MB of float32 for each thread, whatever the number of queries and of items."""
ITEMS_AT_A_TIME = 32_768
"""Items of a tile, so that a product has enough rows to be fast."""
UNIT_ROUNDOFF, TINY = 2.0**-24, 2.0**-126
"""Of float32; what is smaller than the second may be taken for 0 on the way."""
_RESCORED_AT_A_TIME = 4096


class ItemRows(Protocol):
    """Item vectors as an engine keeps them."""

    n_items: int
    dimension: int
    largest: float
    """The largest norm of an item vector."""

    def tile(self, first: int, last: int) -> Array32:
        """(dimension, last - first) what the rough scores are taken from, a column an item; fastest where its rows are contiguous."""

    def rough(self, queries: Array32) -> Array32:
        """(n, dimension) what ``queries`` become before they meet a tile."""

    def margin(self, queries: Array32) -> Array64:
        """(n,) how far a rough score can be from the final one."""

    def final(self, queries: Array32, items: Ints) -> Array64:
        """(n, m) final scores of each query's own items (n, m), each in the same order of summation always."""


class ChunkedSearch:
    """Search in some item vectors.

    Args:
        rows: the item vectors.
        surplus: items beyond k that are scored again; more of them cost little, and too few send more queries the long way.
        rows_at_a_time: queries of a chunk; None fits ``scores_at_a_time``.
        scores_at_a_time: scores of a chunk.
        threads: threads while searching; None takes as many as torch has.
    Raises:
        UsageError: a number is below 1.
    """

    def __init__(
        self, rows: ItemRows, *, surplus: int, rows_at_a_time: int | None, threads: int | None, scores_at_a_time: int = SCORES_AT_A_TIME
    ) -> None:
        if (rows_at_a_time is not None and rows_at_a_time < 1) or (threads is not None and threads < 1):
            raise UsageError("a search needs rows_at_a_time of at least 1 and threads of at least 1")
        self._rows = rows
        self._surplus = surplus
        self._rows_at_a_time = rows_at_a_time
        self._scores_at_a_time = scores_at_a_time
        self._threads = threads

    @property
    def n_items(self) -> int:
        return self._rows.n_items

    def search(self, queries: Array32, k: int, *, excluded: Excluded | None = None, extra: ExtraScores | None = None) -> TopItems:
        """See `TopK.search`.

        Args:
            extra: scores to add to the inner products.
        Raises:
            UsageError: also where ``extra`` gives another shape or a value that is not finite.
        """
        queries = checked_queries(queries, k, self._rows.dimension, self._rows.largest)
        excluded = Excluded.nothing(len(queries)) if excluded is None else excluded
        excluded.check(len(queries), self.n_items)
        found = TopItems.empty(len(queries), k)
        width = self.n_items if extra is not None else min(self.n_items, ITEMS_AT_A_TIME)
        rows = self._rows_at_a_time or max(1, self._scores_at_a_time // width)
        parts = [slice(start, min(start + rows, len(queries))) for start in range(0, len(queries), rows)]
        threads = self._threads or torch.get_num_threads()
        scratch = _Scratch()

        def fill(part: slice) -> None:
            added = None if extra is None else _checked_extra(extra(part), part.stop - part.start, self.n_items)
            chunk = _Chunk(self._rows, queries[part], excluded.of_slice(part), added, scratch)
            found.items[part], found.scores[part] = chunk.best(k, self._surplus)

        if extra is not None or threads == 1 or len(parts) == 1:  # what the caller computes need not stand several threads
            with _torch(threads):
                for part in parts:
                    fill(part)
        else:
            with _torch(1), ThreadPoolExecutor(threads, initializer=_alone) as pool:
                for _ in pool.map(fill, parts):
                    pass
        return found


class _Scratch(threading.local):
    """A thread's memory for scores, the same for all its chunks: what is in the processor's cache already is written fastest."""

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def of(self, rows: int, columns: int) -> torch.Tensor:
        """(rows, columns) of anything."""
        if self._kept.numel() < rows * columns:
            self._kept = torch.empty(rows * columns)
        return self._kept[: rows * columns].view(rows, columns)


class _Chunk:
    """Some of the queries with what is added to their scores and taken out of them."""

    def __init__(self, rows: ItemRows, queries: Array32, excluded: Excluded, added: Array32 | None, scratch: _Scratch) -> None:
        self._rows = rows
        self._queries = queries
        self._excluded = excluded
        self._added = added
        self._scratch = scratch

    def best(self, k: int, surplus: int) -> tuple[Ints, Array32]:
        """(rows, k) items and scores, best first."""
        n_items = self._rows.n_items
        wanted = min(k + surplus, n_items)
        rough, candidates = self._roughly_best(wanted)  # (rows, wanted), falling
        found = TopItems.empty(len(self._queries), k)
        items, scores = self._scored(candidates, rough)
        found.items[:, :wanted], found.scores[:, :wanted] = items[:, :k], scores[:, :k]
        if wanted < n_items:
            margin = self._margin()
            with np.errstate(invalid="ignore"):  # -inf less -inf: a list that holds all there is
                settled = (rough[:, k - 1] - rough[:, -1] > 2 * margin) | ~np.isfinite(rough[:, -1])
            undecided = np.flatnonzero(~settled)
            if len(undecided):
                floors = rough[undecided, k - 1] - 2 * margin[undecided]
                found.items[undecided], found.scores[undecided] = self._of(undecided)._best_above(floors, k)
        return found.items, found.scores

    def _of(self, rows: Ints) -> _Chunk:
        added = None if self._added is None else self._added[rows]
        return _Chunk(self._rows, self._queries[rows], self._excluded.of_rows(rows), added, self._scratch)

    def _tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields (first item, rough scores (rows, items of the tile), excluded ones at -inf), which last until the next."""
        count, n_items = len(self._queries), self._rows.n_items
        rough = torch.from_numpy(self._rows.rough(self._queries))
        users, items = self._excluded.pairs()
        everywhere = self._excluded.everywhere
        nobody = np.zeros(0, dtype=np.int64) if everywhere is None else np.flatnonzero(everywhere)
        for first in range(0, n_items, ITEMS_AT_A_TIME):
            last = min(first + ITEMS_AT_A_TIME, n_items)
            tile = self._scratch.of(count, last - first)
            torch.mm(rough, torch.from_numpy(self._rows.tile(first, last)), out=tile)
            scores = tile.numpy()
            if self._added is not None:
                scores += self._added[:, first:last]
            inside = (items >= first) & (items < last)
            scores[users[inside], items[inside] - first] = -np.inf
            scores[:, nobody[(nobody >= first) & (nobody < last)] - first] = -np.inf
            yield first, tile

    def _roughly_best(self, wanted: int) -> tuple[Array32, Ints]:
        """The best by rough scores: (rows, wanted) scores, falling, and items."""
        scores = torch.empty((len(self._queries), 0))
        items = torch.empty((len(self._queries), 0), dtype=torch.int64)
        for first, tile in self._tiles():
            mine, where = best_of_tile(tile, wanted)
            scores, items = torch.cat([scores, mine], dim=1), torch.cat([items, where + first], dim=1)
            if first:
                scores, chosen = scores.topk(min(wanted, scores.shape[1]), dim=1)
                items = items.gather(1, chosen)
        return scores.numpy(), items.numpy()

    def _best_above(self, floors: Array32, k: int) -> tuple[Ints, Array32]:
        """(rows, k) the best among all items with rough scores of at least ``floors`` (rows,)."""
        places, items, scores = [], [], []
        for first, tile in self._tiles():
            rough = tile.numpy()
            rows, columns = np.nonzero(rough >= floors[:, None])
            places.append(rows)
            items.append(columns + first)
            scores.append(rough[rows, columns])
        order = np.argsort(np.concatenate(places), kind="stable")
        ends = np.cumsum(np.bincount(np.concatenate(places), minlength=len(floors)))[:-1]
        best = TopItems.empty(len(floors), k)
        parts = zip(np.split(np.concatenate(items)[order], ends), np.split(np.concatenate(scores)[order], ends), strict=True)
        for row, (near, rough) in enumerate(parts):
            found, final = self._of(np.array([row]))._scored(near[None], rough[None])
            best.items[row], best.scores[row] = found[0, :k], final[0, :k]
        return best.items, best.scores

    def _scored(self, items: Ints, rough: Array32) -> tuple[Ints, Array32]:
        """Candidates (rows, any) in their final order, with their final scores; excluded ones become `NONE`."""
        parts = [slice(start, start + _RESCORED_AT_A_TIME) for start in range(0, items.shape[1], _RESCORED_AT_A_TIME)]
        scores = np.concatenate([self._rows.final(self._queries, items[:, part]) for part in parts], axis=1)
        if self._added is not None:
            scores += np.take_along_axis(self._added, items, axis=1)
        final = scores.astype(np.float32)
        final[~np.isfinite(rough)] = -np.inf
        order = np.lexsort((items, -final), axis=-1)
        final, ordered = np.take_along_axis(final, order, axis=1), np.take_along_axis(items, order, axis=1)
        ordered[~np.isfinite(final)] = NONE
        return ordered, final

    def _margin(self) -> Array64:
        """(rows,) how far a rough score with what is added can be from the final one."""
        margin = self._rows.margin(self._queries)
        return margin if self._added is None else margin + 2 * UNIT_ROUNDOFF * (margin + np.abs(self._added).max(axis=1))


def best_of_tile(tile: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores of each row and where they are, (rows, at most wanted) both, falling.

    Args:
        tile: (rows, n) scores.
        wanted: how many.
    """
    rows, n = tile.shape
    block = math.isqrt(n // wanted)
    if block < 4:  # too few scores for blocks to pay
        scores, where = tile.topk(min(wanted, n), dim=1)
        return scores, where
    # Block b holds the columns b, b + blocks, b + 2 blocks, ...: so the maxima are taken along whole rows of memory. A score outside the
    # blocks with the largest maxima is below `wanted` others: the maxima themselves.
    blocks = n // block
    maxima = tile[:, : blocks * block].unflatten(1, (block, blocks)).amax(dim=1)  # (rows, blocks)
    chosen = torch.from_numpy(_largest(maxima.numpy(), wanted))
    columns = (chosen[:, None, :] + (torch.arange(block) * blocks)[:, None]).view(rows, -1)
    rest = torch.arange(blocks * block, n).expand(rows, -1)
    columns = torch.cat([columns, rest], dim=1) if rest.shape[1] else columns
    inside = tile.gather(1, columns)
    places = torch.from_numpy(_largest(inside.numpy(), wanted))
    scores, order = inside.gather(1, places).sort(dim=1, descending=True)
    return scores, columns.gather(1, places.gather(1, order))


def _largest(scores: Array32, wanted: int) -> Ints:
    """(rows, wanted) columns of the largest scores of each row, in no order."""
    place = scores.shape[1] - wanted
    cuts = np.partition(scores, place, axis=1)[:, place]
    rows, columns = np.nonzero(scores >= cuts[:, None])
    if len(rows) == wanted * len(scores):
        return np.asarray(columns.reshape(len(scores), wanted))
    return np.asarray(np.argpartition(scores, place, axis=1)[:, place:])  # scores tie at a cut; with indices it takes twice as long


def inner_products(queries: Array32, vectors: Array32) -> Array64:
    """(n, m) inner products of queries (n, D) with vectors (n, m, D), in float64 and always in the same order."""
    return np.asarray(np.multiply(vectors, queries[:, None, :], dtype=np.float64).sum(axis=2))


def _checked_extra(added: Array32, rows: int, n_items: int) -> Array32:
    scores = np.asarray(added, dtype=np.float32)
    if scores.shape != (rows, n_items):
        raise UsageError("the extra scores are not (queries of the slice, n_items)")
    if not (np.abs(scores) < np.finfo(np.float32).max / 4).all():
        raise UsageError("an extra score is not finite, or so large that a sum is not")
    return scores


@contextlib.contextmanager
def _torch(threads: int) -> Iterator[None]:
    """Gives torch that many threads and whole float32 products, which the bound on their error needs, and what it had afterwards."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)


def _alone() -> None:
    """A thread of the pool works by itself: torch counts threads for each thread that calls it."""
    torch.set_num_threads(1)
