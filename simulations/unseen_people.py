"""The people of a domain that took no part: what they brought, what is known of them after k interactions, and what they took later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.data.histories import Histories
from client.evaluation import HeldOut
from client.model.adaptation import Start, adapt
from client.model.encoders.recency import recency_weighted_mean
from client.model.methods import InterestModel
from client.preparation import TRAIN, PreparedDomain
from shared.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Met:
    """The unseen domain as one delivered layer meets it.

    Attributes:
        config: of the federation.
        prepared: the domain's own data.
        coordinates: (n_items, d) in the federation's space.
        rows: (n,) rows of ``prepared.everyone`` of people who brought something.
        passports, brought: (n, P, d) interests elsewhere, and (n, P) whether there is one.
        model: the delivered layer; everything private is as it is before any training.
        start: of an adaptation.
        descriptor: (d_c,) of the unseen domain.
    """

    config: RunConfig
    prepared: PreparedDomain
    coordinates: np.ndarray
    rows: np.ndarray
    passports: np.ndarray
    brought: np.ndarray
    model: InterestModel
    start: Start
    descriptor: np.ndarray

    @property
    def in_fit(self) -> np.ndarray:
        """(n,) bool: people on whom heads are fitted; the others are measured."""
        return np.asarray(self.prepared.roles[self.rows] == TRAIN)

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray(self.prepared.everyone.lengths[self.rows])

    def carried(self) -> np.ndarray:
        """(n, d) passports through the delivered layer."""
        with torch.no_grad():
            moved = self.model.transferred(torch.from_numpy(self.passports), torch.from_numpy(self.descriptor)).numpy()
        return self.mean(moved)

    def mean(self, vectors: np.ndarray) -> np.ndarray:
        """(n, P, d) -> (n, d), over what each person brought."""
        count = np.maximum(self.brought.sum(axis=1), 1)[:, None]
        return np.asarray((vectors * self.brought[..., None]).sum(axis=1) / count, dtype=np.float32)

    def first_items(self, who: np.ndarray, k: int) -> np.ndarray:
        """(m, k) the first items of people who have more than that."""
        everyone = self.prepared.everyone
        return np.asarray(everyone.items[everyone.offsets[self.rows[who]][:, None] + np.arange(k)[None, :]], dtype=np.int64)

    def blended(self, elsewhere: np.ndarray, who: np.ndarray, k: int) -> np.ndarray:
        """(m, d) the posterior mean of interests from elsewhere, (n, d), and of the first k items."""
        training = self.config.training
        items = self.first_items(who, k)
        own = recency_weighted_mean(self.coordinates[items], np.ones(items.shape, dtype=bool), training.history_decay)
        weight = np.float32(training.passport_min_items / (training.passport_min_items + k))
        return np.asarray(weight * elsewhere[who] + (1 - weight) * own, dtype=np.float32)

    def adapted(self, elsewhere: np.ndarray, who: np.ndarray, k: int, start: Start) -> np.ndarray:
        """(m, d) interests after the inner loop on the first k items."""
        items = self.first_items(who, k)
        return adapt(elsewhere[who], items, np.ones(items.shape, dtype=bool), self.coordinates, start)


def people_of(met: Met, k: int) -> HeldOut:
    """Everybody who is measured. ``rows`` are positions among the people of ``met``; the first k items are seen, later ones the truth."""
    who = np.flatnonzero(~met.in_fit & (met.lengths > k))
    seen = [np.unique(items) for items in met.first_items(who, k)]
    truth = [np.setdiff1d(items, known) for items, known in zip(later_items(met, who, k), seen, strict=True)]
    return HeldOut(
        rows=who,
        persons=np.asarray(met.prepared.everyone.pseudonyms[met.rows[who]]),
        interests=np.zeros((len(who), met.coordinates.shape[1]), dtype=np.float32),
        truth=flat(truth),
        offsets=ends(truth),
        seen=flat(seen),
        seen_offsets=ends(seen),
    )


def later_items(met: Met, who: np.ndarray, k: int) -> list[np.ndarray]:
    everyone = met.prepared.everyone
    return [np.asarray(everyone.items[everyone.offsets[row] + k : everyone.offsets[row + 1]]) for row in met.rows[who].tolist()]


def flat(lists: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int64), *lists]).astype(np.int64)


def ends(lists: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)


def others_of(met: Met) -> Histories:
    """Histories of the unseen domain's people who are not measured: whom its popularity is made of."""
    return met.prepared.everyone.select(met.prepared.roles == TRAIN)
