"""Every row of the tables, for one direction or one domain: what each method would have offered to people nobody trained on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.sparse

from client.data.histories import Histories
from client.evaluation import COLD, VALIDATION, EvaluatedDomain, HeldOut, rank
from client.preparation import TRAIN, PreparedDomain
from shared.ranking import ScoreRows

from . import baselines
from .ranks import RanksFile


def direction(source: EvaluatedDomain, target: EvaluatedDomain, alone: EvaluatedDomain) -> RanksFile | None:
    """All methods for the cold people who come from one domain to another.

    Args:
        source, target: the federated run's domains; raw rows of both go into the pooled ceiling and nothing else.
        alone: the target's twin that was trained without averaging.
    Returns:
        None where no cold person is linked in this direction.
    """
    name = source.domain.settings.domain
    people, known = target.people(name, COLD), target.people(name, VALIDATION)
    if people.users == 0:
        return None
    coordinates = np.asarray(target.domain.coordinates)
    train = matrix(target.domain.prepared.training, target.n_items)
    linked_users, _ = target.domain.training_passports(name)
    linked = train[np.sort(linked_users)]
    counts = baselines.item_counts(train)
    weights = baselines.tune_text_popularity(known.interests, coordinates, counts, truth_matrix(known, target.n_items))
    scores: dict[str, ScoreRows] = {
        "popularity": baselines.popularity(train),
        "linked-popularity": baselines.popularity(linked),
        "text": baselines.text(people.interests, coordinates),
        "text-popularity": baselines.text_popularity(people.interests, coordinates, counts, weights),
        "head-only": target.head_only(people, name),
        "target-only": alone.federated(alone.people(name, COLD), name),
        "federated": target.federated(people, name),
        "federated-shuffled": target.shuffled(people, name),
    }
    ceiling = pooled(source, target, people, known)
    if ceiling is not None:
        scores["pooled-ridge"] = ceiling
    return ranked(people, scores, counts, target.n_items)


def warm(domain: EvaluatedDomain) -> RanksFile | None:
    """Popularity, text and the trained encoder for training users whose latest item was kept back."""
    people = domain.warm_people()
    if people.users == 0:
        return None
    train = matrix(domain.domain.prepared.training, domain.n_items)
    scores = {
        "popularity": baselines.popularity(train),
        "text": baselines.text(domain.warm_text(people), np.asarray(domain.domain.coordinates)),
        "federated": domain.warm(people),
    }
    return ranked(people, scores, baselines.item_counts(train), domain.n_items)


def ranked(people: HeldOut, scores: Mapping[str, ScoreRows], counts: np.ndarray, n_items: int) -> RanksFile:
    """Ranks by every method."""
    found = {method: rank(people, rows, n_items) for method, rows in scores.items()}
    return RanksFile(
        offsets=people.offsets,
        users=people.persons,
        popularity=counts,
        ranks={method: result.ranks for method, result in found.items()},
        top={method: result.top for method, result in found.items()},
    )


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


def matrix(histories: Histories, n_items: int) -> scipy.sparse.csr_array:
    """(n_users, n_items) interactions."""
    ones = np.ones(len(histories.items), dtype=np.float32)
    found = scipy.sparse.csr_array((ones, np.array(histories.items), np.array(histories.offsets)), shape=(len(histories), n_items))
    found.sum_duplicates()
    return found


def truth_matrix(people: HeldOut, n_items: int) -> scipy.sparse.csr_array:
    """(n, n_items) held-out items."""
    return scipy.sparse.csr_array(
        (np.ones(len(people.truth), dtype=np.float32), people.truth, people.offsets), shape=(people.users, n_items)
    )
