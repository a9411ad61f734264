r"""Exact search by chunked matrix products: the same lists whatever the chunks, the threads and the place of an item in the catalogue.

A score is :math:`\langle q, x_j\rangle` (plus what the caller adds), summed in float64 and rounded once to float32. To find the best of
them, all products are taken in float32 first; they are off by at most :math:`m = \gamma_{D+3} \lVert q\rVert \max_j\lVert x_j\rVert`,
:math:`\gamma_n = nu/(1-nu)`, :math:`u = 2^{-24}`, in whatever order they are summed (Higham 2002, eq. 3.5). The best k + `SLACK` of
them are scored again. Where the first and the last of the surplus are more than 2m apart, nothing that was left out can belong to the
list; where they are not (many equal scores), every item within 2m of the k-th is scored again.

Selection, not the product, is what costs in plain code. Here a tile of scores is cut into blocks, and only the blocks with the largest
maxima are looked into: one pass over the scores, and two selections among about :math:`\sqrt{nk}` numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import torch

from shared.errors import UsageError

from .lists import NONE, Array32, Excluded, ExtraScores, Ints, TopItems, checked_queries, checked_vectors, norms

SCORES_AT_A_TIME = 4_000_000
"""Scores of a tile: 16 MB of float32, whatever the number of queries and of items."""
ITEMS_AT_A_TIME = 32_768
"""Items of a tile, so that a product has enough rows to be fast."""
SLACK = 6
"""Items beyond k that are scored again."""
_UNIT_ROUNDOFF, _TINY = 2.0**-24, 2.0**-126
"""Of float32; what is smaller than the second may be taken for 0 on the way."""


class ExactTopK:
    """Exact search (see the head of this file).

    Args:
        vectors: (n_items, D) float32 item vectors; kept, not copied where they are contiguous already.
        rows_at_a_time: queries of a tile; None fits `SCORES_AT_A_TIME`.
        threads: torch threads while searching; None leaves torch as it is.
    Raises:
        UsageError: the vectors are not finite or have another shape; a number is below 1.
    """

    def __init__(self, vectors: Array32, *, rows_at_a_time: int | None = None, threads: int | None = None) -> None:
        if (rows_at_a_time is not None and rows_at_a_time < 1) or (threads is not None and threads < 1):
            raise UsageError("a search needs rows_at_a_time of at least 1 and threads of at least 1")
        self.vectors = checked_vectors(vectors)
        self._largest = float(norms(self.vectors).max())
        self._rows_at_a_time = rows_at_a_time
        self._threads = threads

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    def search(self, queries: Array32, k: int, *, excluded: Excluded | None = None, extra: ExtraScores | None = None) -> TopItems:
        """See `TopK.search`.

        Args:
            extra: scores to add to the inner products.
        Raises:
            UsageError: also where ``extra`` gives another shape or a value that is not finite.
        """
        queries = checked_queries(queries, k, self.vectors.shape[1], self._largest)
        if excluded is not None:
            excluded.check(len(queries), self.n_items)
        found = TopItems.empty(len(queries), k)
        width = self.n_items if extra is not None else min(self.n_items, ITEMS_AT_A_TIME)
        rows = self._rows_at_a_time or max(1, SCORES_AT_A_TIME // width)
        with _torch(self._threads):
            for start in range(0, len(queries), rows):
                chunk = slice(start, min(start + rows, len(queries)))
                added = None if extra is None else _checked_extra(extra(chunk), chunk, self.n_items)
                self._search_chunk(queries[chunk], chunk, excluded, added, found)
        return found

    def _search_chunk(self, queries: Array32, chunk: slice, excluded: Excluded | None, added: Array32 | None, found: TopItems) -> None:
        """Fills the rows ``chunk`` of ``found``."""
        k = found.items.shape[1]
        wanted = min(k + SLACK, self.n_items)
        rough, candidates = self._roughly_best(queries, chunk, excluded, added, wanted)  # (rows, wanted), best first
        items, scores = self._scored(queries, candidates, rough, added)
        kept = min(k, wanted)
        found.items[chunk, :kept], found.scores[chunk, :kept] = items[:, :kept], scores[:, :kept]
        if wanted == self.n_items:
            return
        margin = self._margin(queries, added)
        with np.errstate(invalid="ignore"):  # -inf less -inf: a list that holds all there is
            open_rows = np.flatnonzero(np.isfinite(rough[:, -1]) & ~(rough[:, k - 1] - rough[:, -1] > 2 * margin))
        for row in open_rows.tolist():
            one, place = slice(row, row + 1), slice(chunk.start + row, chunk.start + row + 1)
            extra = None if added is None else added[one]
            floor = float(rough[row, k - 1] - 2 * margin[row])
            close, near = self._above(queries[one], place, excluded, extra, floor)
            items, scores = self._scored(queries[one], near, close, extra)
            found.items[place], found.scores[place] = items[:, :k], scores[:, :k]

    def _tiles(
        self, queries: Array32, chunk: slice, excluded: Excluded | None, added: Array32 | None
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Yields (first item, float32 scores (rows, items of the tile), excluded ones at -inf); the buffer is used again."""
        mine = torch.from_numpy(queries)
        buffer = torch.empty(len(queries) * min(self.n_items, ITEMS_AT_A_TIME))
        users, items = excluded.pairs(chunk) if excluded is not None else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        nobody = None if excluded is None or excluded.everywhere is None else np.flatnonzero(excluded.everywhere)
        for first in range(0, self.n_items, ITEMS_AT_A_TIME):
            last = min(first + ITEMS_AT_A_TIME, self.n_items)
            tile = buffer[: len(queries) * (last - first)].view(len(queries), last - first)
            torch.mm(mine, torch.from_numpy(self.vectors[first:last]).T, out=tile)
            view = tile.numpy()
            if added is not None:
                view += added[:, first:last]
            inside = slice(None) if last - first == self.n_items else (items >= first) & (items < last)
            view[users[inside], items[inside] - first] = -np.inf
            if nobody is not None:
                view[:, nobody[(nobody >= first) & (nobody < last)] - first] = -np.inf
            yield first, tile

    def _roughly_best(
        self, queries: Array32, chunk: slice, excluded: Excluded | None, added: Array32 | None, wanted: int
    ) -> tuple[Array32, Ints]:
        """The best by float32 scores: (rows, wanted) scores, falling, and items."""
        scores: torch.Tensor | None = None
        items: torch.Tensor | None = None
        for first, tile in self._tiles(queries, chunk, excluded, added):
            mine, where = best_of_tile(tile, wanted)
            where = where + first
            if scores is None or items is None:
                scores, items = mine, where
            else:
                scores, items = torch.cat([scores, mine], dim=1), torch.cat([items, where], dim=1)
                scores, chosen = scores.topk(min(wanted, scores.shape[1]), dim=1)
                items = items.gather(1, chosen)
        if scores is None or items is None:
            raise AssertionError("a catalogue has at least one tile")
        return scores.numpy(), items.numpy()

    def _above(self, query: Array32, place: slice, excluded: Excluded | None, added: Array32 | None, floor: float) -> tuple[Array32, Ints]:
        """All items of one query with float32 scores of at least ``floor``: (1, any) scores and items."""
        scores, items = [], []
        for first, tile in self._tiles(query, place, excluded, added):
            row = tile.numpy()[0]
            near = np.flatnonzero(row >= floor)
            scores.append(row[near])
            items.append(near + first)
        return np.concatenate(scores)[None], np.concatenate(items)[None]

    def _scored(self, queries: Array32, items: Ints, rough: Array32, added: Array32 | None) -> tuple[Ints, Array32]:
        """Candidates (rows, any) in their final order, with their final scores; excluded ones become `NONE`."""
        scores = np.empty(items.shape, dtype=np.float64)
        for start in range(0, items.shape[1], 4096):
            part = slice(start, start + 4096)
            scores[:, part] = inner_products(queries, self.vectors, items[:, part])
        if added is not None:
            scores += np.take_along_axis(added, items, axis=1)
        final = scores.astype(np.float32)
        gone = ~np.isfinite(rough)
        final[gone] = -np.inf
        order = np.lexsort((items, -final), axis=-1)
        final = np.take_along_axis(final, order, axis=1)
        ordered = np.take_along_axis(items, order, axis=1)
        ordered[~np.isfinite(final)] = NONE
        return ordered, final

    def _margin(self, queries: Array32, added: Array32 | None) -> np.ndarray:
        """(rows,) how far a float32 score can be from the final one."""
        size = norms(queries) * self._largest
        if added is not None and added.size:
            size = size + np.abs(added).max(axis=1)
        terms = self.vectors.shape[1] + 3
        steps = terms * _UNIT_ROUNDOFF
        return np.asarray(steps / (1 - steps) * size + terms * _TINY * (1 + size + self._largest))


def best_of_tile(tile: torch.Tensor, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest scores of each row and where they are, (rows, at most wanted) both, falling.

    Args:
        tile: (rows, n) scores.
        wanted: how many.
    """
    rows, n = tile.shape
    block = math.isqrt(n // wanted)
    if block < 4:
        scores, where = tile.topk(min(wanted, n), dim=1)
        return scores, where
    # Block b holds the columns b, b + blocks, b + 2 blocks, ...: so the maxima are taken along whole rows of memory.
    blocks = n // block
    maxima = tile[:, : blocks * block].unflatten(1, (block, blocks)).amax(dim=1)  # (rows, blocks)
    chosen = maxima.topk(wanted, dim=1, sorted=False).indices
    columns = (chosen[:, None, :] + (torch.arange(block) * blocks)[:, None]).view(rows, -1)
    rest = torch.arange(blocks * block, n).expand(rows, -1)
    columns = torch.cat([columns, rest], dim=1) if rest.shape[1] else columns
    scores, places = tile.gather(1, columns).topk(wanted, dim=1)
    return scores, columns.gather(1, places)


def inner_products(queries: Array32, vectors: Array32, items: Ints) -> np.ndarray:
    """(rows, m) inner products of each query with its own items (rows, m), in float64 and always in the same order."""
    return np.asarray(np.multiply(vectors[items], queries[:, None, :], dtype=np.float64).sum(axis=2))


def _checked_extra(added: Array32, chunk: slice, n_items: int) -> Array32:
    rows = np.asarray(added, dtype=np.float32)
    if rows.shape != (chunk.stop - chunk.start, n_items):
        raise UsageError("the extra scores are not (queries of the slice, n_items)")
    if not (np.abs(rows) < np.finfo(np.float32).max / 4).all():
        raise UsageError("an extra score is not finite, or so large that a sum is not")
    return rows


@contextlib.contextmanager
def _torch(threads: int | None) -> Iterator[None]:
    """Gives torch that many threads and whole float32 products, which the bound on their error needs, and what it had afterwards."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads or before)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_float32_matmul_precision(precision)
