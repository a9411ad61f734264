r"""What one could offer people with a history without a federation: popularity, text, ItemKNN, EASE, and EASE with text.

Settings are chosen on validation people, who are in no fit: the latest item of each is the truth, the others are the history. Then the same
settings are used for the people who are asked about. Histories are sets here, as in the papers; only the text reads the order of time.

**ItemKNN**: cosine of the columns of the interactions, shrunk, the largest k of each item (Sarwar et al. 2001; Deshpande & Karypis 2004,
"Item-based top-N recommendation algorithms"): :math:`w_{ij} = n_{ij} / (\sqrt{n_i n_j} + h)`. **EASE**: Steck 2019, nothing cut off.
Maintained libraries have both (implicit, RecTools), but for a few lines of SciPy they bring compiled solvers and a data model of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from client.evaluation import VALIDATION, EvaluatedDomain, HeldOut
from client.model.collaborative import ease_by_items, ease_by_users, recency_weights
from client.model.warm_head import interests
from client.preparation import PreparedDomain
from shared.ranking import ScoreRows

from . import baselines
from .baselines import hits_at_k
from .control_rows import matrix, ranked
from .ranks import RanksFile
from .shared_work import SharedWork

TEXT_DECAYS = (0.3, 0.5, 0.7, 0.9)
NEIGHBOURS, SHRINKAGES = (50, 200), (0.0, 10.0, 50.0)
RIDGES = (50.0, 200.0, 1000.0)
TEXT_WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Of the text, beside the scores of EASE."""
MOST_ITEMS = 50_000
"""EASE is left out above: its dense scores would not fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarmPeople:
    """n people whose next item is asked about.

    Attributes:
        items, mask: (n, L) their earlier histories, latest last.
        truth: (n, n_items) their held-out items, sparse.
    """

    items: np.ndarray
    mask: np.ndarray
    truth: scipy.sparse.csr_array

    def history(self, decay: float = 1.0) -> scipy.sparse.csr_array:
        """(n, n_items) what they took, the latest weighing most; the truth is no part of it, even if they took it before."""
        found = recency_weights(self.items, self.mask, decay, self.truth.shape[1])
        return scipy.sparse.csr_array(found - found.multiply(self.truth))

    def hits(self, scores: np.ndarray) -> float:
        """How many find a held-out item among the first ten; what they had is masked in place."""
        scores[self.history().nonzero()] = -np.inf
        return hits_at_k(scores, self.truth)


def warm_controls(domain: EvaluatedDomain, people: HeldOut, work: SharedWork | None) -> RanksFile:
    """Ranks of warm people by everything that no method of a comparison changes; kept for the runs to come where there is a place for it.

    Args:
        domain: after delivery.
        people: warm people of it.
        work: the cache of a comparison.
    """
    asked = dataclasses.replace(people, interests=domain.warm_text(people))

    def make() -> RanksFile:
        train = matrix(domain.domain.prepared.training, domain.n_items)
        scores = {"popularity": baselines.popularity(train), **warm_baselines(domain, people)}
        return ranked(people, scores, baselines.item_counts(train), domain.n_items)

    return make() if work is None else work.rows(_made_of(domain), asked, make)


def warm_baselines(domain: EvaluatedDomain, people: HeldOut) -> dict[str, ScoreRows]:
    """Rows ``text``, ``item-knn``, and with at most `MOST_ITEMS` items ``ease`` and ``ease-text``.

    Args:
        domain: gives training users, validation people and coordinates.
        people: warm people of it.
    """
    prepared, n_items = domain.domain.prepared, domain.n_items
    length = domain.domain.config.training.max_items_per_user
    items, mask = prepared.training.padded(people.rows, length, trim=True)
    truth = scipy.sparse.csr_array((np.ones(len(people.truth), np.float32), people.truth, people.offsets), shape=(people.users, n_items))
    asked, known = WarmPeople(items=items, mask=mask, truth=truth), validation_people(prepared, n_items, length)
    train = _taken(prepared, n_items)
    coordinates = np.asarray(domain.domain.coordinates)
    decay = _text_decay(known, coordinates)
    rows = {"text": text(asked, coordinates, decay), "item-knn": item_knn(train, asked, *_neighbourhood(train, known))}
    if n_items > MOST_ITEMS:
        return rows
    ridge, weight = _ease_settings(train, known, coordinates, decay)
    dense, cosine = ease(train, asked, ridge), rows["text"]
    rows["ease"] = lambda start, stop: dense[start:stop]
    rows["ease-text"] = lambda start, stop: dense[start:stop] + np.float32(weight) * cosine(start, stop)
    return rows


def validation_people(prepared: PreparedDomain, n_items: int, length: int) -> WarmPeople:
    """Validation people with at least three items, the latest held out; with a cut in time, the latest before it."""
    rows = np.flatnonzero((prepared.roles == VALIDATION) & (prepared.everyone.lengths >= 3))
    items, mask = prepared.everyone.padded(rows, length + 1, trim=True)
    last = items[:, -1] if items.shape[1] else np.zeros(0, dtype=np.int32)
    truth = scipy.sparse.csr_array((np.ones(len(rows), np.float32), (np.arange(len(rows)), last)), shape=(len(rows), n_items))
    return WarmPeople(items=items[:, :-1], mask=mask[:, :-1], truth=truth)


def text(people: WarmPeople, coordinates: np.ndarray, decay: float) -> ScoreRows:
    """Zero-shot: the mean of a history's text, the latest weighing most, against the text of each item."""
    vectors = interests(recency_weights(people.items, people.mask, decay, len(coordinates)), coordinates)
    return lambda start, stop: np.asarray(vectors[start:stop] @ coordinates.T)


def item_knn(train: scipy.sparse.csr_array, people: WarmPeople, neighbours: int, shrinkage: float) -> ScoreRows:
    """Sum over what people had of its similarity to every item.

    Args:
        train: (n_users, n_items) ones.
        people: who is asked about.
        neighbours: k, items that keep a similarity to each item.
        shrinkage: h.
    """
    weights, history = similarities(train, neighbours, shrinkage), people.history()
    return lambda start, stop: np.asarray((history[start:stop] @ weights).toarray(), dtype=np.float32)


def similarities(train: scipy.sparse.csr_array, neighbours: int, shrinkage: float) -> scipy.sparse.csr_array:
    """(n_items, n_items) shrunk cosines; of each column the largest ones, no item is its own neighbour.

    >>> similarities(scipy.sparse.csr_array([[1.0, 1.0], [1.0, 0.0]]), 1, 0.0).toarray().astype(float).round(3).tolist()  # 1 / sqrt(2 * 1)
    [[0.0, 0.707], [0.707, 0.0]]
    """
    counts = np.asarray(train.sum(axis=0), dtype=np.float64)
    together = scipy.sparse.coo_array(train.T @ train)
    other = together.row != together.col
    row, column, n = together.row[other], together.col[other], together.data[other]
    values = n / (np.sqrt(counts[row] * counts[column]) + shrinkage)
    order = np.lexsort((row, -values, column))
    begins = np.concatenate([[0], np.cumsum(np.bincount(column, minlength=train.shape[1]))])
    place = np.arange(len(order)) - begins[column[order]]
    kept = order[place < neighbours]
    return scipy.sparse.csr_array((values[kept].astype(np.float32), (row[kept], column[kept])), shape=together.shape)


def ease(train: scipy.sparse.csr_array, people: WarmPeople, ridge: float) -> np.ndarray:
    """(n, n_items) float32 scores; B itself is never whole in memory.

    Args:
        train: (n_users, n_items) ones.
        people: who is asked about.
        ridge: lambda.
    """
    history = people.history()
    scores = np.zeros(history.shape, dtype=np.float32)
    columns = ease_by_users if train.shape[0] < train.shape[1] else ease_by_items
    for block, weights in columns(train, ridge):
        scores[:, block] = history @ weights
    return scores


def _made_of(domain: EvaluatedDomain) -> list[Any]:
    """What the rows depend on, but for the people themselves, whom the cache compares one by one."""
    here, prepared = domain.domain, domain.domain.prepared
    contents = (np.sort(prepared.training.lengths), baselines.item_counts(matrix(prepared.training, domain.n_items)))
    benchmark = dataclasses.asdict(here.settings.benchmark)
    settings = [here.settings.domain, here.space_version, prepared.catalogue_hash, benchmark, here.config.training.max_items_per_user]
    return ["warm", *settings, *(hashlib.sha256(content.tobytes()).hexdigest() for content in contents)]


def _text_decay(known: WarmPeople, coordinates: np.ndarray) -> float:
    return max(reversed(TEXT_DECAYS), key=lambda decay: _hits(known, text(known, coordinates, decay)))


def _neighbourhood(train: scipy.sparse.csr_array, known: WarmPeople) -> tuple[int, float]:
    settings = list(itertools.product(NEIGHBOURS, SHRINKAGES))
    return max(settings, key=lambda pair: _hits(known, item_knn(train, known, *pair)))


def _ease_settings(train: scipy.sparse.csr_array, known: WarmPeople, coordinates: np.ndarray, decay: float) -> tuple[float, float]:
    """The ridge with the most hits, and for it the weight of the text."""
    scores = {ridge: ease(train, known, ridge) for ridge in RIDGES}
    ridge = max(reversed(RIDGES), key=lambda one: known.hits(scores[one].copy()))
    rows = text(known, coordinates, decay)
    cosine = rows(0, known.truth.shape[0])
    return ridge, max(TEXT_WEIGHTS, key=lambda weight: known.hits(scores[ridge] + np.float32(weight) * cosine))


def _hits(known: WarmPeople, rows: ScoreRows) -> float:
    return known.hits(np.array(rows(0, known.truth.shape[0])))


def _taken(prepared: PreparedDomain, n_items: int) -> scipy.sparse.csr_array:
    """(n_training, n_items) float32 ones."""
    training = prepared.training
    parts = (np.ones(len(training.items), dtype=np.float32), np.array(training.items), np.array(training.offsets))
    found = scipy.sparse.csr_array(parts, shape=(len(training), n_items))
    found.sum_duplicates()
    found.data[:] = 1.0
    return found
