r"""Approximate search for very large catalogues: an inverted file (FAISS) that looks into some of its lists only.

An inverted file over raw inner products finds next to nothing here: a prior, or popular items, make some vectors much longer than others,
and the list of a long vector is not where a query points. So

1. dimensions are scaled by what queries put on them: :math:`x_d a_d`, :math:`q_d / a_d` with :math:`a_d` the root mean square of sample
   queries, which changes no inner product;
2. every vector gets one more coordinate that makes all of them equally long, :math:`\sqrt{M^2 - \lVert x\rVert^2}`, and queries a 0: the
   nearest vector is now the one with the largest inner product (Bachrach et al. 2014, sect. 3; Xbox recommender);
3. the items that sample queries score highest on average, `HEAD` of the catalogue, are searched exactly for everybody.

What the file offers is scored from the vectors themselves, as by `ExactTopK`. Excluded items are never listed: as many more are asked for
as a query excludes, and where a list is still shorter than it has to be, that query is searched exactly. So recall is the one thing that is
approximate; with sample queries it is measured when the index is made, and the number of lists that are looked into follows from it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import ConfigError, UsageError

from .chunked import inner_products
from .exact import ExactTopK
from .lists import NONE, Array32, Array64, Excluded, Ints, TopItems, checked_queries, checked_vectors, norms

if TYPE_CHECKING:
    import faiss

HEAD = 0.02
"""Share of the catalogue that is searched exactly for everybody."""
RECALL = 0.97
"""What the lists of sample queries must hold of the exact ones before no more lists are looked into."""
FEWEST_PROBES, DEFAULT_PROBES = 4, 32
SURPLUS = 6
MOST_EXCLUDED = 2000
"""A query that excludes more than this of its own is searched exactly."""
_SAMPLE, _SAMPLE_K, _SEED = 200, 20, 20261123
_TRAINED_PER_LIST, _FEWEST_PER_LIST = 40, 39
_NUMBERS_AT_A_TIME, _MADE_AT_A_TIME = 8_000_000, 50_000


class FaissTopK:
    """Approximate search (see the head of this file).

    Args:
        vectors: (n_items, D) float32 item vectors; kept beside the index, which holds them once more.
        sample: (n, D) queries like those to come; without them dimensions count as they are, and recall is not measured.
        recall: what to reach on ``sample``.
        probes: lists that are looked into; None finds the number by ``recall``, or takes `DEFAULT_PROBES` without a sample.
        exact: an exact search over the same vectors, so that they are not kept twice; None makes one.
        threads: threads while making the index and searching; None takes as many as FAISS wants.
    Raises:
        ConfigError: FAISS is not installed.
        UsageError: vectors or sample are not finite or have another shape; a number is out of its range.
    """

    def __init__(
        self,
        vectors: Array32,
        *,
        sample: Array32 | None = None,
        recall: float = RECALL,
        probes: int | None = None,
        exact: ExactTopK | None = None,
        threads: int | None = None,
    ) -> None:
        if not 0 < recall <= 1 or (probes is not None and probes < 1) or (threads is not None and threads < 1):
            raise UsageError("a FAISS index needs a recall above 0 and up to 1, and probes and threads of at least 1")
        self._faiss = _faiss()
        if threads is not None:
            self._faiss.omp_set_num_threads(threads)
        self._vectors = checked_vectors(vectors)
        self._largest = float(norms(self._vectors).max())
        self._exact = exact or ExactTopK(self._vectors, threads=threads)
        if self._exact.n_items != len(self._vectors):
            raise UsageError("the exact search beside an index is over another catalogue")
        sample = None if sample is None else checked_queries(sample, 1, self._vectors.shape[1], self._largest)
        self._scale = _scale(sample, self._vectors.shape[1])
        head = _head(self._vectors, sample)
        self._head_items, self._tail_items = np.flatnonzero(head), np.flatnonzero(~head)  # (n,) int64, rising
        self._head = ExactTopK(self._vectors[self._head_items], threads=threads)
        self._index: faiss.IndexIVFFlat | None = self._made() if len(self._tail_items) else None
        self.lists = 0 if self._index is None else int(self._index.nlist)
        self.probes = min(probes or DEFAULT_PROBES, max(self.lists, 1))
        self.recall: float | None = None
        if sample is not None and len(sample):
            self._measure(sample, recall, fixed=probes is not None)

    @property
    def n_items(self) -> int:
        return len(self._vectors)

    def search(self, queries: Array32, k: int, *, excluded: Excluded | None = None) -> TopItems:
        """See `TopK.search`; scores are exact, and of the items that are offered the best are listed."""
        queries = checked_queries(queries, k, self._vectors.shape[1], self._largest)
        excluded = Excluded.nothing(len(queries)) if excluded is None else excluded
        excluded.check(len(queries), self.n_items)
        found = TopItems.empty(len(queries), k)
        order = np.argsort(excluded.counts, kind="stable")
        few = order[excluded.counts[order] <= MOST_EXCLUDED]
        start = 0
        while start < len(few):
            rows = few[start : start + self._rows_at_a_time(k + int(excluded.counts[few[start]]))]
            part = self._best(queries[rows], k, excluded.of_rows(rows))
            found.items[rows], found.scores[rows] = part.items, part.scores
            start += len(rows)
        short = np.flatnonzero(found.items[:, -1] == NONE)
        short = short[[_left(excluded, row, self.n_items) > np.count_nonzero(found.items[row] != NONE) for row in short.tolist()]]
        if len(short):
            part = self._exact.search(queries[short], k, excluded=excluded.of_rows(short))
            found.items[short], found.scores[short] = part.items, part.scores
        return found

    def measured_recall(self, queries: Array32, k: int) -> float:
        """Share of the exact lists that this search finds, averaged over the queries."""
        return _shared(self.search(queries, k).items, self._exact.search(queries, k).items)

    def _rows_at_a_time(self, fetched: int) -> int:
        return max(1, min(4096, _NUMBERS_AT_A_TIME // (fetched * int(self._vectors.shape[1]))))

    def _best(self, queries: Array32, k: int, excluded: Excluded) -> TopItems:
        """The best of what the head and the index offer; some lists may be shorter than they have to be."""
        wanted = k + int(excluded.counts.max(initial=0))
        head = self._head.search(queries, k, excluded=_within(excluded, self._head_items, self.n_items))
        known = np.where(head.items == NONE, NONE, self._head_items[head.items])
        items, scores = [known], [head.scores]
        if self._index is not None:
            offered = self._offered(queries, min(wanted + SURPLUS, len(self._tail_items)), excluded.everywhere)
            final = np.asarray(inner_products(queries, self._vectors[offered]), dtype=np.float32)
            final[(offered == NONE) | _is_own(excluded, offered, self.n_items)] = -np.inf
            items.append(offered)
            scores.append(final)
        return _sorted(np.concatenate(items, axis=1), np.concatenate(scores, axis=1), k)

    def _offered(self, queries: Array32, wanted: int, everywhere: np.ndarray | None) -> Ints:
        """(n, wanted) items of the tail that the index finds near the queries, `NONE` where it finds no more."""
        index = self._index
        if index is None:
            raise AssertionError("a catalogue without a tail has no index to ask")
        moved = queries / self._scale
        lengths = np.sqrt(np.square(moved).sum(axis=1, keepdims=True))
        moved = moved / np.where(lengths > 0, lengths, 1.0)
        padded = np.concatenate([moved, np.zeros((len(moved), 1))], axis=1).astype(np.float32)
        parameters: Any = self._faiss.SearchParametersIVF(nprobe=self.probes)
        if everywhere is not None:
            bits = np.packbits(~everywhere[self._tail_items], bitorder="little")
            selector = self._faiss.IDSelectorBitmap(len(self._tail_items), self._faiss.swig_ptr(bits))
            parameters = self._faiss.SearchParametersIVF(nprobe=self.probes, sel=selector)
        _, places = index.search(padded, wanted, params=parameters)
        return np.asarray(np.where(places < 0, NONE, self._tail_items[places]))

    def _made(self) -> faiss.IndexIVFFlat:
        """The inverted file over the tail, all vectors equally long and at most 1; made piece by piece, because they are many."""
        n, dimension = len(self._tail_items), self._vectors.shape[1]
        pieces = [slice(start, min(start + _MADE_AT_A_TIME, n)) for start in range(0, n, _MADE_AT_A_TIME)]
        longest = max(float(np.square(self._scaled(np.arange(piece.start, piece.stop))).sum(axis=1).max()) for piece in pieces)

        def level(places: Ints) -> Array32:
            rows = self._scaled(places)
            missing = np.sqrt(np.maximum(longest - np.square(rows).sum(axis=1), 0.0))
            return np.concatenate([rows, missing[:, None]], axis=1).astype(np.float32)

        lists = max(1, min(round(4 * np.sqrt(n)), n // _FEWEST_PER_LIST))
        quantiser = self._faiss.IndexFlatL2(dimension + 1)
        index: faiss.IndexIVFFlat = self._faiss.IndexIVFFlat(quantiser, dimension + 1, lists, self._faiss.METRIC_L2)
        index.train(level(np.sort(np.random.default_rng(_SEED).permutation(n)[: lists * _TRAINED_PER_LIST])))
        for piece in pieces:
            index.add(level(np.arange(piece.start, piece.stop)))
        return index

    def _scaled(self, places: Ints) -> Array64:
        """(m, D) vectors of some items of the tail, at most 1 long."""
        return np.asarray(self._vectors[self._tail_items[places]] * (self._scale / (self._largest or 1.0)))

    def _measure(self, sample: Array32, aim: float, *, fixed: bool) -> None:
        """Sets ``recall``, and ``probes`` where they are not fixed: twice as many until the recall is reached."""
        rows = np.linspace(0, len(sample) - 1, min(_SAMPLE, len(sample))).astype(np.int64)
        queries, k = sample[rows], min(_SAMPLE_K, self.n_items)
        truth = self._exact.search(queries, k).items
        self.probes = self.probes if fixed else min(FEWEST_PROBES, max(self.lists, 1))
        self.recall = _shared(self.search(queries, k).items, truth)
        while not fixed and self.recall < aim and self.probes < self.lists:
            self.probes = min(2 * self.probes, self.lists)
            self.recall = _shared(self.search(queries, k).items, truth)


def _faiss() -> Any:
    os.environ.setdefault("KMP_WARNINGS", "0")
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "an approximate search needs FAISS, which is not installed", do="Install isthmus[serve], or search exactly."
        ) from error
    return faiss


def _scale(sample: Array32 | None, dimension: int) -> Array64:
    """(D,) what item vectors are multiplied by and queries divided by: at most 1, and above 0."""
    if sample is None or not sample.any():
        return np.ones(dimension)
    size = np.sqrt(np.square(sample, dtype=np.float64).mean(axis=0))
    return np.asarray(np.maximum(size / size.max(), 1e-3))


def _head(vectors: Array32, sample: Array32 | None) -> np.ndarray:
    """(n_items,) whether an item is searched exactly: those with the highest mean score, or the longest ones without a sample."""
    scores = norms(vectors) if sample is None or len(sample) == 0 else vectors @ sample.mean(axis=0)
    chosen = np.argsort(-scores, kind="stable")[: max(1, round(HEAD * len(vectors)))]
    head = np.zeros(len(vectors), dtype=bool)
    head[chosen] = True
    return head


def _within(excluded: Excluded, items: Ints, n_items: int) -> Excluded:
    """Exclusions among some of the items (rising), by place among them."""
    place = np.full(n_items, NONE, dtype=np.int64)
    place[items] = np.arange(len(items))
    queries, own = excluded.pairs()
    there = place[own] != NONE
    counts = np.bincount(queries[there], minlength=len(excluded.counts))
    everywhere = None if excluded.everywhere is None else excluded.everywhere[items]
    return Excluded(items=place[own[there]], offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), everywhere=everywhere)


def _is_own(excluded: Excluded, items: Ints, n_items: int) -> np.ndarray:
    """(n, m) whether items (n, m) of each query are among its own excluded ones."""
    queries, own = excluded.pairs()
    keys = np.arange(len(items))[:, None] * n_items + items
    return np.asarray(np.isin(keys, queries.astype(np.int64) * n_items + own))


def _left(excluded: Excluded, row: int, n_items: int) -> int:
    """How many items a query may get."""
    own = np.unique(excluded.items[excluded.offsets[row] : excluded.offsets[row + 1]])
    if excluded.everywhere is None:
        return n_items - len(own)
    return int(n_items - np.count_nonzero(excluded.everywhere) - np.count_nonzero(~excluded.everywhere[own]))


def _sorted(items: Ints, scores: Array32, k: int) -> TopItems:
    """The best k of each row, equal scores by item index."""
    order = np.lexsort((items, -scores), axis=-1)[:, :k]
    found = TopItems.empty(len(items), k)
    width = order.shape[1]
    found.items[:, :width], found.scores[:, :width] = np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)
    found.items[~np.isfinite(found.scores)] = NONE
    return found


def _shared(found: Ints, truth: Ints) -> float:
    """Share of the items of ``truth`` that stand in the same row of ``found``."""
    hits = [len(np.intersect1d(a[a != NONE], b[b != NONE])) for a, b in zip(found, truth, strict=True)]
    return float(np.sum(hits) / max(1, np.count_nonzero(truth != NONE)))
