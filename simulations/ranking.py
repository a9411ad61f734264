"""Every row of the tables, for one direction or one domain: what each method would have offered to people nobody trained on."""

from __future__ import annotations

import dataclasses

from client.evaluation import COLD, VALIDATION, EvaluatedDomain
from shared.ranking import ScoreRows

from .control_rows import control_rows, matrix, ranked, truth_matrix
from .ranks import RanksFile
from .shared_work import SharedWork
from .warm_baselines import warm_controls

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
    scores["recommender"] = target.served(people, name)
    if alone is not None:
        scores["target-only"] = alone.federated(alone.people(name, role), name)
    return _together(controls, ranked(people, scores, controls.popularity, target.n_items))


def warm(domain: EvaluatedDomain, *, work: SharedWork | None = None) -> RanksFile | None:
    """All rows of training users whose latest item was kept back: what nobody trained, the trained encoder, and the partner's recommender.

    Args:
        domain: after delivery.
        work: as for a direction.
    Returns:
        None where no item was kept back.
    """
    people = domain.warm_people()
    if people.users == 0:
        return None
    controls = warm_controls(domain, people, work)
    scores: dict[str, ScoreRows] = {"federated": domain.warm(people)}
    recommender = domain.recommender(people)
    if recommender is not None:
        scores["recommender"] = recommender
    return _together(controls, ranked(people, scores, controls.popularity, domain.n_items))


def _together(controls: RanksFile, trained: RanksFile) -> RanksFile:
    """Rows about the same people."""
    return dataclasses.replace(trained, ranks={**controls.ranks, **trained.ranks}, top={**controls.top, **trained.top})
