"""One user, one example: positions of users -> the tensors of a step. No loop over users; cost O(batch).

A user's example is a function of that user's own data, public data, and a number of the step that everybody may know. It does not change
with who else is in the batch: had all users drawn from one stream of random numbers, one user more would have moved the draws of everyone
behind, and with them gradients that nobody clipped together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.data.histories import Histories
from client.model.encoders.recency import recency_weighted_mean
from client.model.objective import Batch
from shared.config import TrainingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Passports:
    """The passports that training users brought.

    Attributes:
        vectors: (n, d) float32 interest vectors.
        rows: (n_users, P) int32 row of ``vectors`` for each user and partner, -1 = none; P >= 1.
    """

    vectors: np.ndarray
    rows: np.ndarray

    @classmethod
    def none(cls, users: int, dimension: int) -> Passports:
        return cls(vectors=np.zeros((0, dimension), dtype=np.float32), rows=np.full((users, 1), -1, dtype=np.int32))


class Examples:
    """Draws each user's targets, history and passports, and the step's negatives.

    Args:
        histories: training users only, (n_users,) of them.
        coordinates: (n_items, d) float32 public coordinates of the catalogue.
        passports: what the users brought.
        descriptor: (d_c,) float32 of this domain.
        config: public constants.
        generator: draws the negatives and a number for each step. It need not be secret, because how often it is asked depends on no data.
        prototypes: (K, d) float32 of the interest space, public; None where no method reads them.
    """

    def __init__(
        self,
        *,
        histories: Histories,
        coordinates: np.ndarray,
        passports: Passports,
        descriptor: np.ndarray,
        config: TrainingConfig,
        generator: np.random.Generator,
        prototypes: np.ndarray | None = None,
    ) -> None:
        self._histories = histories
        self._coordinates = coordinates
        self._passports = passports
        self._descriptor = torch.from_numpy(descriptor.astype(np.float32))
        self._config = config
        self._generator = generator
        self._nothing = np.zeros(coordinates.shape[1], dtype=np.float32)
        self._prototypes = None if prototypes is None else torch.from_numpy(prototypes.astype(np.float32))

    def __call__(self, users: np.ndarray) -> Batch:
        """Args: users (batch,) positions. Returns the batch; works for zero users."""
        items, present = self._histories.padded(users, self._config.max_items_per_user, trim=True)  # (batch, W) latest last
        targets, target_mask, is_target = self._draw_targets(items, present, self._generator.integers(2**64, dtype=np.uint64))
        history, history_mask = self._history(items, present, is_target)
        negatives, hits = self._draw_negatives(targets)
        rows = self._passports.rows[users]  # (batch, P)
        brought, has_brought = self._vectors(rows), rows >= 0  # (batch, P, d), (batch, P)
        if self._config.own_as_passport:
            self._stand_in(brought, has_brought, history, history_mask)
        return Batch(
            history=self._rows(history),
            history_mask=torch.from_numpy(history_mask.astype(np.float32)),
            passports=torch.from_numpy(brought),
            passport_mask=torch.from_numpy(has_brought.astype(np.float32)),
            targets=self._rows(targets),
            target_mask=torch.from_numpy(target_mask.astype(np.float32)),
            negatives=self._rows(negatives),
            hits=torch.from_numpy(hits.astype(np.float32)),
            negative_weight=len(self._coordinates) / len(negatives),
            descriptor=self._descriptor,
            history_items=torch.from_numpy(history),
            target_ratings=self._ratings(users, items, present, targets),
            prototypes=self._prototypes,
        )

    def _rows(self, items: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._coordinates[items])

    def _ratings(self, users: np.ndarray, items: np.ndarray, present: np.ndarray, targets: np.ndarray) -> torch.Tensor | None:
        """(batch, M) what the user gave each target last; None where nobody rates. 0 in empty places, which no loss reads."""
        if self._histories.ratings is None:
            return None
        given = self._histories.rated(users, items.shape[1])  # (batch, W)
        if items.shape[1] == 0:
            return torch.zeros(targets.shape)
        that_item = (items[:, None] == targets[:, :, None]) & present[:, None]  # (batch, M, W)
        last = that_item.shape[2] - 1 - that_item[:, :, ::-1].argmax(axis=2)  # (batch, M)
        return torch.from_numpy(np.take_along_axis(given, last, axis=1))

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        if len(self._passports.vectors) == 0:
            return np.zeros((*rows.shape, len(self._nothing)), dtype=np.float32)
        return np.where((rows >= 0)[..., None], self._passports.vectors[np.maximum(rows, 0)], np.float32(0.0))

    def _stand_in(self, brought: np.ndarray, has_brought: np.ndarray, history: np.ndarray, history_mask: np.ndarray) -> None:
        """Gives who brought nothing the passport that this domain would make of the history, in place: the targets are not in it."""
        alone = np.flatnonzero(~has_brought.any(axis=1) & history_mask.any(axis=1))
        coordinates = self._coordinates[history[alone]]  # (alone, L, d)
        brought[alone, 0] = recency_weighted_mean(coordinates, history_mask[alone], self._config.history_decay)
        has_brought[alone, 0] = True

    def _draw_targets(self, items: np.ndarray, present: np.ndarray, step: np.uint64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Up to M items of each user, at most half of them (rounded up), so that there is a history to predict them from."""
        batch, width = items.shape
        most = min(self._config.target_items, max(width, 1))
        if width == 0:
            return np.zeros((batch, 1), dtype=np.int64), np.zeros((batch, 1), dtype=bool), present
        key = np.where(present, own_draws(items, present, step), -1.0)
        order = np.argsort(-key, axis=1)[:, :most]  # (batch, M)
        wanted = np.minimum(most, (present.sum(axis=1) + 1) // 2)  # (batch,)
        mask = np.arange(most)[None, :] < wanted[:, None]
        is_target = np.zeros_like(present)
        np.put_along_axis(is_target, order, mask, axis=1)
        return np.take_along_axis(items, order, axis=1), mask, is_target

    def _history(self, items: np.ndarray, present: np.ndarray, is_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The user's other items before the first target; all the others where none is before it. Latest L, latest last."""
        others = present & ~is_target
        before = others & ~np.logical_or.accumulate(is_target, axis=1)
        chosen = np.where(before.any(axis=1, keepdims=True), before, others)
        length = self._config.max_history_items
        batch = len(items)
        rank = chosen[:, ::-1].cumsum(axis=1)[:, ::-1] - 1  # 0 = the latest chosen item
        row, column = np.nonzero(chosen & (rank < length))
        longest = int(rank[row, column].max()) + 1 if len(row) else 1
        history = np.zeros((batch, longest), dtype=np.int64)
        mask = np.zeros((batch, longest), dtype=bool)
        place = longest - 1 - rank[row, column]
        history[row, place] = items[row, column]
        mask[row, place] = True
        return history, mask

    def _draw_negatives(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Uniform from the public catalogue (all of it when it is small), the same for all users of the step."""
        items = len(self._coordinates)
        size = self._config.catalogue_negatives
        negatives = np.arange(items) if items <= size else self._generator.choice(items, size=size, replace=False, shuffle=False)
        drawn = np.zeros(items, dtype=bool)
        drawn[negatives] = True
        return negatives, drawn[targets]


def own_draws(items: np.ndarray, present: np.ndarray, step: np.uint64) -> np.ndarray:
    """Numbers that look uniform in [0, 1) and depend on each user's own items and the step alone.

    Args:
        items: (batch, W) latest last; present: (batch, W) bool.
        step: a number of the step.
    Returns:
        (batch, W) float64; how wide the batch is and who else is in it changes none of them.
    """
    age = np.arange(items.shape[1] - 1, -1, -1, dtype=np.uint64)[None, :]  # (1, W) counted from the latest item
    own = (_mixed(items.astype(np.uint64) + (age << np.uint64(32))) * present).sum(axis=1, keepdims=True, dtype=np.uint64)  # (batch, 1)
    return (_mixed(_mixed(own + step) + age) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele, Lea and Flood 2014): each bit of the argument moves each bit of the result; wraps around 2^64."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(numbers ^ (numbers >> np.uint64(31)))
