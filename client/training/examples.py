"""One user, one example: positions of users -> the tensors of a step. No loop over users; cost O(batch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.data.histories import Histories
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
        generator: draws targets and negatives; neither needs to be secret.
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
    ) -> None:
        self._histories = histories
        self._coordinates = coordinates
        self._passports = passports
        self._descriptor = torch.from_numpy(descriptor.astype(np.float32))
        self._config = config
        self._generator = generator
        self._nothing = np.zeros(coordinates.shape[1], dtype=np.float32)

    def __call__(self, users: np.ndarray) -> Batch:
        """Args: users (batch,) positions. Returns the batch; works for zero users."""
        items, present = self._histories.padded(users, self._config.max_items_per_user, trim=True)  # (batch, W) latest last
        targets, target_mask, is_target = self._draw_targets(items, present)
        history, history_mask = self._history(items, present, is_target)
        negatives, hits = self._draw_negatives(targets)
        rows = self._passports.rows[users]  # (batch, P)
        brought = self._vectors(rows)  # (batch, P, d)
        return Batch(
            history=self._rows(history),
            history_mask=torch.from_numpy(history_mask.astype(np.float32)),
            passports=torch.from_numpy(brought),
            passport_mask=torch.from_numpy((rows >= 0).astype(np.float32)),
            targets=self._rows(targets),
            target_mask=torch.from_numpy(target_mask.astype(np.float32)),
            negatives=self._rows(negatives),
            hits=torch.from_numpy(hits.astype(np.float32)),
            negative_weight=len(self._coordinates) / len(negatives),
            descriptor=self._descriptor,
        )

    def _rows(self, items: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._coordinates[items])

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        if len(self._passports.vectors) == 0:
            return np.zeros((*rows.shape, len(self._nothing)), dtype=np.float32)
        return np.where((rows >= 0)[..., None], self._passports.vectors[np.maximum(rows, 0)], np.float32(0.0))

    def _draw_targets(self, items: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Up to M items of each user, at most half of them (rounded up), so that there is a history to predict them from."""
        batch, width = items.shape
        most = min(self._config.target_items, max(width, 1))
        if width == 0:
            return np.zeros((batch, 1), dtype=np.int64), np.zeros((batch, 1), dtype=bool), present
        key = np.where(present, self._generator.random(items.shape), -1.0)
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
        batch, width = items.shape
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
