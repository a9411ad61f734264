"""Every row of the tables, for one direction or one domain: what each method would have offered to people nobody trained on."""

from __future__ import annotations

import numpy as np

from client.evaluation import COLD, VALIDATION, EvaluatedDomain
from shared.ranking import ScoreRows

from . import baselines
from .control_rows import control_rows, matrix, ranked, truth_matrix
from .ranks import RanksFile
from .shared_work import SharedWork

__all__ = ["COLD", "VALIDATION", "direction", "matrix", "ranked", "truth_matrix", "warm"]


def direction(
    source: EvaluatedDomain, target: EvaluatedDomain, alone: EvaluatedDomain | None, *, role: int = COLD, work: SharedWork | None = None
) -> RanksFile | None:
    """All methods for the people of a role who come from one domain to another.

    Args:
        source, target: the federated run's domains.
        alone: the target's twin that was trained without averaging; None leaves that row out.
        role: COLD for what is reported, VALIDATION for what choices are made by.
        work: keeps what does not depend on the method between the runs of a comparison.
    Returns:
        None where nobody of that role is linked in this direction.
    """
    name = source.domain.settings.domain
    people = target.people(name, role)
    if people.users == 0:
        return None
    controls = control_rows(source, target, people, role, work)
    scores: dict[str, ScoreRows] = {"federated": target.federated(people, name), "federated-shuffled": target.shuffled(people, name)}
    if alone is not None:
        scores["target-only"] = alone.federated(alone.people(name, role), name)
    trained = ranked(people, scores, controls.popularity, target.n_items)
    return RanksFile(
        offsets=people.offsets,
        users=people.persons,
        popularity=controls.popularity,
        ranks={**controls.ranks, **trained.ranks},
        top={**controls.top, **trained.top},
    )


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
