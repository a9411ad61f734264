"""Ranks of held-out items, for benchmarks: what the trained domain would have offered to people it did not train on.

Exact per-user results: they exist in simulations, and nothing here is sent anywhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shared.errors import StateError
from shared.ranking import Ranking, ScoreRows, ranks_of

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
        """Linked people of a role with a passport from ``source``; all their items here are the truth."""
        prepared = self.domain.prepared
        rows, vectors = self.domain.passports(source)
        chosen = prepared.roles[rows] == role
        rows, vectors = rows[chosen], vectors[chosen]
        order = np.argsort(rows)
        rows, vectors = rows[order], vectors[order]
        truth, offsets = _distinct_items(prepared.everyone.items, prepared.everyone.offsets, rows)
        nothing = np.zeros(0, dtype=np.int64)
        return HeldOut(
            rows=rows,
            persons=self._persons(source, rows),
            interests=vectors,
            truth=truth,
            offsets=offsets,
            seen=nothing,
            seen_offsets=np.zeros(len(rows) + 1, dtype=np.int64),
        )

    def federated(self, people: HeldOut, source: str) -> ScoreRows:
        """The transfer layer and its serving head."""
        return self._scores(self.domain.transfer(self.model, people.interests), self.heads[source])

    def shuffled(self, people: HeldOut, source: str) -> ScoreRows:
        """The same model fed with somebody else's passport: what is left is not personal."""
        generator = keyed_generator(self.domain.config.seed, self.domain.settings.domain, source, "shuffled")
        order = generator.permutation(people.users)
        return self._scores(self.domain.transfer(self.model, people.interests[order]), self.heads[source])

    def head_only(self, people: HeldOut, source: str) -> ScoreRows:
        """No transfer layer: the identity, with a serving head fitted in the same way."""
        head = self.domain.fit_head(source, self.domain.transferred(None, source))
        return self._scores(people.interests, head)

    def warm_people(self) -> HeldOut:
        """Training users whose latest item was kept back; a sample where there are many."""
        prepared = self.domain.prepared
        lengths = prepared.everyone.lengths[prepared.training_rows]
        kept_back = np.flatnonzero(lengths > prepared.training.lengths)
        generator = keyed_generator(self.domain.config.seed, self.domain.settings.domain, "warm")
        users = np.sort(generator.choice(kept_back, size=min(_WARM_USERS, len(kept_back)), replace=False))
        rows = prepared.training_rows[users]
        truth = prepared.everyone.items[prepared.everyone.offsets[rows + 1] - 1].astype(np.int64)
        seen, seen_offsets = _distinct_items(prepared.training.items, prepared.training.offsets, users)
        again = seen == np.repeat(truth, np.diff(seen_offsets))  # an item they took before is held out all the same
        dropped = np.zeros(len(users), dtype=np.int64)
        np.add.at(dropped, np.repeat(np.arange(len(users)), np.diff(seen_offsets))[again], 1)
        return HeldOut(
            rows=users,
            persons=self._users(rows),
            interests=self.domain.own_interests(self.model, users),
            truth=truth,
            offsets=np.arange(len(users) + 1, dtype=np.int64),
            seen=seen[~again],
            seen_offsets=seen_offsets - np.concatenate([[0], np.cumsum(dropped)]),
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

    def _scores(self, vectors: np.ndarray, head: ServingHead) -> ScoreRows:
        coordinates = np.asarray(self.domain.coordinates)
        return lambda start, stop: head.scores(vectors[start:stop], coordinates)

    def _users(self, rows: np.ndarray) -> np.ndarray:
        """Keys by the partner's own user ids: a home made anew has another pseudonym key, and its users are the same."""
        settings, names = self.domain.settings, self.domain.prepared.everyone.pseudonyms[rows]
        known = PseudonymTable.open(settings.at_home("keys") / "external_ids.parquet").external(names)
        keys = [hashlib.sha256(f"{settings.domain}/{user}".encode()).digest()[:16] for user in known]
        return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)

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


def _distinct_items(items: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items of some users, each once for a user: flat int64, and (n + 1,) offsets."""
    lengths = offsets[rows + 1] - offsets[rows]
    user = np.repeat(np.arange(len(rows)), lengths)
    within = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pairs = np.unique(np.stack([user, items[np.repeat(offsets[rows], lengths) + within].astype(np.int64)]), axis=1)
    return pairs[1], np.concatenate([[0], np.cumsum(np.bincount(pairs[0], minlength=len(rows)))]).astype(np.int64)
