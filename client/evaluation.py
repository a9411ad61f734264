"""Ranks of held-out items, for benchmarks: what the trained domain would have offered to people it did not train on.

Exact per-user results: they exist in simulations, and nothing here is sent anywhere.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np

from shared.errors import StateError
from shared.ranking import Ranking, ScoreRows, ranks_of

from .data.histories import Histories
from .data.pseudonyms import PseudonymTable
from .delivery import OWN, Domain, delivered_model, serving_heads, serving_warm_head
from .model.domain_head import ServingHead
from .model.methods import InterestModel
from .model.warm_head import WarmHead
from .passport_exchange import interests
from .preparation import COLD, VALIDATION
from .queries import CurrentRun, opened
from .serving_state import ServingFolder
from .settings import ClientSettings
from .training.noise import keyed_generator

LIST_LENGTH = 20
_WARM_USERS = 3000

__all__ = ["COLD", "VALIDATION", "EvaluatedDomain", "HeldOut", "evaluated", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """People whose items here are the truth.

    Attributes:
        rows: (n,) rows of ``prepared.everyone``; of warm people, positions in ``prepared.training``.
        persons: (n, 16) uint8 keys; equal keys in two runs are the same person.
        interests: (n, d) what is known of them: passports, or interests from the own history.
        truth, offsets: their held-out items, flat and distinct.
        seen, seen_offsets: items they have here already, flat.
    """

    rows: np.ndarray
    persons: np.ndarray
    interests: np.ndarray
    truth: np.ndarray
    offsets: np.ndarray
    seen: np.ndarray
    seen_offsets: np.ndarray

    @property
    def users(self) -> int:
        return len(self.rows)


def rank(people: HeldOut, scores: ScoreRows, n_items: int) -> Ranking:
    """Full ranking of the catalogue, seen items masked; lists of 20, or of the whole of a smaller catalogue, padded with -1."""
    length = min(LIST_LENGTH, n_items)
    found = ranks_of(scores, people.truth, people.offsets, people.seen, people.seen_offsets, k=length, n_items=n_items)
    padding = np.full((people.users, LIST_LENGTH - length), -1, dtype=np.int32)
    return Ranking(ranks=found.ranks, top=np.concatenate([found.top, padding], axis=1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluatedDomain:
    """A domain after delivery, asked about people it never trained on."""

    domain: Domain
    model: InterestModel
    heads: dict[str, ServingHead]
    warm_head: WarmHead | None = None

    @property
    def n_items(self) -> int:
        return len(self.domain.coordinates)

    def people(self, source: str, role: int = COLD) -> HeldOut:
        """Linked people of a role with a passport from ``source``.

        All their items here are the truth. In a benchmark with a cut in time, those after it are that they did not have before, and people
        without any are left out.
        """
        prepared = self.domain.prepared
        rows, vectors = self.domain.passports(source)
        chosen = prepared.roles[rows] == role
        rows, vectors = rows[chosen], vectors[chosen]
        order = np.argsort(rows)
        rows, vectors = rows[order], vectors[order]
        if prepared.later is None:
            truth, offsets = _distinct_items(prepared.everyone, rows)
            seen, seen_offsets = np.zeros(0, dtype=np.int64), np.zeros(len(rows) + 1, dtype=np.int64)
        else:
            active = _with_something_new(prepared.later, prepared.everyone, rows)
            rows, vectors = rows[active], vectors[active]
            truth, offsets = _new_items(prepared.later, prepared.everyone, rows)
            seen, seen_offsets = _distinct_items(prepared.everyone, rows)
        return HeldOut(
            rows=rows,
            persons=self._persons(source, rows),
            interests=vectors,
            truth=truth,
            offsets=offsets,
            seen=seen,
            seen_offsets=seen_offsets,
        )

    def federated(self, people: HeldOut, source: str) -> ScoreRows:
        """The transfer layer and its serving head, without neighbours: what the federation brings."""
        return self._scores(self.domain.transfer(self.model, people.interests), self.heads[source].muted, people.interests)

    def served(self, people: HeldOut, source: str) -> ScoreRows:
        """What the partner's recommender offers them: the transfer layer, its head, and their neighbours where these help."""
        return self._scores(self.domain.transfer(self.model, people.interests), self.heads[source], people.interests)

    def shuffled(self, people: HeldOut, source: str) -> ScoreRows:
        """The same model fed with somebody else's passport: what is left is not personal."""
        generator = keyed_generator(self.domain.config.seed, self.domain.settings.domain, source, "shuffled")
        order = generator.permutation(people.users)
        anothers = people.interests[order]
        return self._scores(self.domain.transfer(self.model, anothers), self.heads[source].muted, anothers)

    def without_federation(self, people: HeldOut, source: str) -> tuple[ScoreRows, ScoreRows]:
        """No transfer layer: the identity, with a serving head fitted in the same way; without and with neighbours."""
        head = _untrained_head(self.domain, source)
        return self._scores(people.interests, head.muted), self._scores(people.interests, head, people.interests)

    def warm_people(self) -> HeldOut:
        """Training users of whom something was kept back, their latest item or all that came after a cut; a sample where there are many."""
        prepared = self.domain.prepared
        everyone, later, training_rows = prepared.everyone, prepared.later, prepared.training_rows
        if later is None:
            kept_back = np.flatnonzero(everyone.lengths[training_rows] > prepared.training.lengths)
        else:
            kept_back = np.flatnonzero(_with_something_new(later, everyone, training_rows))
        generator = keyed_generator(self.domain.config.seed, self.domain.settings.domain, "warm")
        by_name = kept_back[
            np.argsort(self._names(training_rows[kept_back]))
        ]  # whatever key made the pseudonyms, the same people are drawn
        users = np.sort(generator.choice(by_name, size=min(_WARM_USERS, len(kept_back)), replace=False))
        rows = training_rows[users]
        if later is None:  # an item they took before is held out all the same
            truth, offsets = everyone.items[everyone.offsets[rows + 1] - 1].astype(np.int64), np.arange(len(users) + 1, dtype=np.int64)
        else:
            truth, offsets = _new_items(later, everyone, rows)
        seen, seen_offsets = _without(*_distinct_items(prepared.training, users), truth, offsets)
        return HeldOut(
            rows=users,
            persons=self._users(rows),
            interests=self.domain.own_interests(self.model, users),
            truth=truth,
            offsets=offsets,
            seen=seen,
            seen_offsets=seen_offsets,
        )

    def warm_text(self, people: HeldOut) -> np.ndarray:
        """(n, d) interests of warm people by the untrained encoder."""
        return interests(self.domain.prepared.training, people.rows, np.asarray(self.domain.coordinates), self.domain.config)

    def warm(self, people: HeldOut) -> ScoreRows:
        """The trained encoder on the own history, and the head for it."""
        return self._scores(people.interests, self.heads[OWN])

    def recommender(self, people: HeldOut) -> ScoreRows | None:
        """What the partner's own recommender offers warm people: the blend; None where an earlier version delivered."""
        head, training = self.warm_head, self.domain.prepared.training
        if head is None:
            return None
        coordinates = np.asarray(self.domain.coordinates)

        def scores(start: int, stop: int) -> np.ndarray:
            items, mask = training.padded(people.rows[start:stop], head.max_history, trim=True)
            return head.scores(items, mask, coordinates)

        return scores

    def _scores(self, vectors: np.ndarray, head: ServingHead, passports: np.ndarray | None = None) -> ScoreRows:
        coordinates, compared = np.asarray(self.domain.coordinates), vectors if passports is None else passports
        return lambda start, stop: head.scores(vectors[start:stop], coordinates, compared[start:stop])

    def _users(self, rows: np.ndarray) -> np.ndarray:
        """Keys by the partner's own user ids: a home made anew has another pseudonym key, and its users are the same."""
        keys = [hashlib.sha256(f"{self.domain.settings.domain}/{user}".encode()).digest()[:16] for user in self._names(rows)]
        return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)

    def _names(self, rows: np.ndarray) -> list[str]:
        """The partner's own ids of users."""
        table = PseudonymTable.open(self.domain.settings.at_home("keys") / "external_ids.parquet")
        return [name or "" for name in table.external(self.domain.prepared.everyone.pseudonyms[rows])]

    def _persons(self, source: str, rows: np.ndarray) -> np.ndarray:
        linked = self.domain.prepared.links[source]
        ids = linked.link_ids[np.argsort(linked.rows)][np.searchsorted(np.sort(linked.rows), rows)]
        keys = [hashlib.sha256(link_id.encode()).digest()[:16] for link_id in ids.tolist()]
        return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)


def evaluated(settings: ClientSettings) -> EvaluatedDomain:
    """Opens a domain after delivery.

    Raises:
        StateError: nothing was delivered yet in the current run.
    """
    config, prepared = opened(settings)
    run = CurrentRun(settings)
    version = run.space_version()
    serving = ServingFolder(settings.at_home("serving")).current()
    if serving is None or serving.meta.get("run_id") != run.run_id():
        raise StateError("nothing was delivered here in this run yet", do="Let the run come to its end first.")
    layer = {name.removeprefix("layer/"): array for name, array in serving.arrays.items() if name.startswith("layer/")}
    model = delivered_model(settings, config, layer)
    domain = Domain(settings=settings, config=config, prepared=prepared, space_version=version)
    return EvaluatedDomain(domain=domain, model=model, heads=serving_heads(serving), warm_head=serving_warm_head(serving))


@functools.lru_cache(maxsize=1)  # asked for by one role of people after the other
def _untrained_head(domain: Domain, source: str) -> ServingHead:
    """For passports as they came."""
    return domain.fit_head(source, domain.transferred(None, source))


def _distinct_items(histories: Histories, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items of some users, each once for a user: flat int64, and (n + 1,) offsets."""
    lengths = histories.offsets[rows + 1] - histories.offsets[rows]
    user = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = histories.items[np.repeat(histories.offsets[rows], lengths) + within].astype(np.int64)
    pairs = np.unique(np.stack([user, flat]), axis=1)
    return pairs[1], _offsets(pairs[0], len(rows))


def _without(items: np.ndarray, offsets: np.ndarray, others: np.ndarray, other_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The items of users that are not among other items of theirs; all flat, with (n + 1,) offsets."""
    users = len(offsets) - 1
    user, other_user = np.repeat(np.arange(users), np.diff(offsets)), np.repeat(np.arange(users), np.diff(other_offsets))
    width = int(max(items.max(initial=0), others.max(initial=0))) + 1
    rest = ~np.isin(user * width + items, other_user * width + others)
    return items[rest], _offsets(user[rest], users)


def _new_items(later: Histories, before: Histories, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What some users took after a cut and never before it, each once: flat, and (n + 1,) offsets."""
    return _without(*_distinct_items(later, rows), *_distinct_items(before, rows))


def _with_something_new(later: Histories, before: Histories, rows: np.ndarray) -> np.ndarray:
    """(n,) bool, who of some users."""
    return np.asarray(np.diff(_new_items(later, before, rows)[1]) > 0)


def _offsets(users: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n))]).astype(np.int64)
