"""Rows that no method changes: popularity, text, the head alone, and the pooled ceiling. Computed once for a data set and split."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import scipy.sparse

from client.data.histories import Histories
from client.evaluation import VALIDATION, EvaluatedDomain, HeldOut, rank
from client.preparation import TRAIN, PreparedDomain
from shared.ranking import ScoreRows

from . import baselines
from .ranks import RanksFile
from .shared_work import SharedWork

TUNED = ("text-popularity", "pooled-ridge")
"""Controls whose settings are chosen on validation people, so that figures of those people would flatter them."""


def control_rows(source: EvaluatedDomain, target: EvaluatedDomain, people: HeldOut, role: int, work: SharedWork | None) -> RanksFile:
    """Ranks of the people of a role by every control; kept for the runs to come where there is a place for it.

    Args:
        source, target: raw rows of both go into the pooled ceiling and nothing else.
        people: linked people of the role, from source to target.
        role: COLD or VALIDATION; the latter get no row that is tuned on them.
        work: the cache of a comparison.
    """

    def make() -> RanksFile:
        train = matrix(target.domain.prepared.training, target.n_items)
        return ranked(people, _scores(source, target, people, role, train), baselines.item_counts(train), target.n_items)

    return make() if work is None else work.rows(_made_of(source, target, role), people, make)


def ranked(people: HeldOut, scores: dict[str, ScoreRows], counts: np.ndarray, n_items: int) -> RanksFile:
    """Ranks by every method."""
    found = {method: rank(people, rows, n_items) for method, rows in scores.items()}
    return RanksFile(
        offsets=people.offsets,
        users=people.persons,
        popularity=counts,
        ranks={method: result.ranks for method, result in found.items()},
        top={method: result.top for method, result in found.items()},
    )


def matrix(histories: Histories, n_items: int) -> scipy.sparse.csr_array:
    """(n_users, n_items) interactions."""
    ones = np.ones(len(histories.items), dtype=np.float32)
    found = scipy.sparse.csr_array((ones, np.array(histories.items), np.array(histories.offsets)), shape=(len(histories), n_items))
    found.sum_duplicates()
    return found


def _scores(
    source: EvaluatedDomain, target: EvaluatedDomain, people: HeldOut, role: int, train: scipy.sparse.csr_array
) -> dict[str, ScoreRows]:
    name = source.domain.settings.domain
    coordinates, counts = np.asarray(target.domain.coordinates), baselines.item_counts(train)
    linked_users, _ = target.domain.training_passports(name)
    scores: dict[str, ScoreRows] = {
        "popularity": baselines.popularity(train),
        "linked-popularity": baselines.popularity(train[np.sort(linked_users)]),
        "text": baselines.text(people.interests, coordinates),
        **dict(zip(("head-only", "neighbours"), target.without_federation(people, name), strict=True)),
    }
    if role == VALIDATION:
        return scores
    known = target.people(name, VALIDATION)
    weights = baselines.tune_text_popularity(known.interests, coordinates, counts, truth_matrix(known, target.n_items))
    scores["text-popularity"] = baselines.text_popularity(people.interests, coordinates, counts, weights)
    ceiling = pooled(source, target, people, known)
    return scores if ceiling is None else scores | {"pooled-ridge": ceiling}


def pooled(source: EvaluatedDomain, target: EvaluatedDomain, people: HeldOut, known: HeldOut) -> ScoreRows | None:
    """The ceiling that sees the raw rows of both domains; None where nobody is there to learn or to choose its settings from."""
    here, there = target.domain.prepared, source.domain.prepared
    rows, partners = linked_rows(here, there, source.domain.settings.domain, target.domain.settings.domain)
    position = np.full(len(here.roles), -1, dtype=np.int64)
    position[rows] = partners
    train = np.flatnonzero((position >= 0) & (here.roles == TRAIN))
    if len(train) == 0 or known.users == 0:
        return None
    histories = matrix(there.everyone, source.n_items)
    in_training = np.searchsorted(here.training_rows, train)
    model = baselines.PooledRidge.tuned(
        histories[position[train]],
        matrix(here.training, target.n_items)[in_training],
        validation_source=histories[position[known.rows]],
        validation_truth=truth_matrix(known, target.n_items),
    )
    return model.scores(histories[position[people.rows]])


def linked_rows(here: PreparedDomain, there: PreparedDomain, source: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same people in two domains. Only a simulation holds both sides."""
    mine, theirs = here.links[source], there.links[target]
    _, at_mine, at_theirs = np.intersect1d(mine.link_ids, theirs.link_ids, assume_unique=True, return_indices=True)
    return mine.rows[at_mine], theirs.rows[at_theirs]


def truth_matrix(people: HeldOut, n_items: int) -> scipy.sparse.csr_array:
    """(n, n_items) held-out items."""
    return scipy.sparse.csr_array(
        (np.ones(len(people.truth), dtype=np.float32), people.truth, people.offsets), shape=(people.users, n_items)
    )


def _made_of(source: EvaluatedDomain, target: EvaluatedDomain, role: int) -> list[Any]:
    """What the controls depend on, but for the people themselves, whom the cache compares one by one."""
    name, there = source.domain.settings.domain, target.domain
    linked_users, _ = there.training_passports(name)
    train = matrix(there.prepared.training, target.n_items)
    contents = [
        baselines.item_counts(train),
        baselines.item_counts(train[np.sort(linked_users)]),
        baselines.item_counts(matrix(source.domain.prepared.everyone, source.n_items)),
    ]
    return [
        *(
            name,
            there.settings.domain,
            role,
            len(linked_users),
            there.space_version,
            there.config.seed,
            there.settings.benchmark.split_seed,
        ),
        *(there.prepared.catalogue_hash, source.domain.prepared.catalogue_hash),
        *(hashlib.sha256(content.tobytes()).hexdigest() for content in contents),
        there.config.training.max_items_per_user,
    ]
