r"""Adapting to one user in a few steps: the inner loop of the method `maml`, in training and at serving.

.. math:: z' = (1 + g)\,z + b,\qquad
          (b, g) \leftarrow (b, g) - \alpha\,\nabla_{(b, g)}\; \frac{m + 1}{m + k}\, \tfrac1s \sum_{j=1}^{k} CE_j(s\,z')

from a start :math:`(b_0, g_0)` that all users of all domains share. With no support item the start is what remains. The sum over the k
support items is a likelihood, and its curvature grows with k beside that of a prior worth m items (as many as a passport is made of at
least); so a step is shortened as Newton's would be, and twenty items do not throw an interest twenty times as far as one. Divided by the
scale of scores s, one item that scores nothing yet moves an interest by alpha times its own coordinate, whatever s a domain has learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.model.objective import Batch, cross_entropy
from shared.config import RunConfig

MOST_NEGATIVES = 4096
"""Items of the catalogue that a support item is held against; of a larger catalogue every so many-th."""

_USERS_AT_A_TIME, _SHUT = 256, 1e-3


def inner_loop(
    interests: Tensor,
    offset: Tensor,
    gate: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    rate: float,
    steps: int,
    second_order: bool,
) -> Tensor:
    """Takes the steps of each user and returns the adapted interests.

    The gradient is taken with respect to a zero that is added to the start, not to the start itself: the start is then used once, as hooks
    on layers expect, and a user's row of the zero is moved by that user's loss alone.

    Args:
        interests: (batch, T, d), each adapted by itself.
        offset: b_0, broadcast to (batch, T, d).
        gate: g_0, broadcast to (batch, T, 1).
        loss: adapted interests -> (batch, T) loss on the support items; 0 where there are none.
        rate: alpha.
        steps: how many.
        second_order: keep how the steps depend on everything else, so that an outer gradient goes through them.
    Returns:
        (batch, T, d).
    """
    with torch.enable_grad():
        moved = torch.zeros_like(interests, requires_grad=True)  # (batch, T, d) what is added to b_0
        opened = torch.zeros_like(interests[..., :1], requires_grad=True)  # (batch, T, 1) what is added to g_0
        for _ in range(steps):
            value = loss((1.0 + gate + opened) * interests + offset + moved).sum()
            by_offset, by_gate = torch.autograd.grad(value, (moved, opened), create_graph=second_order)
            moved, opened = moved - rate * by_offset, opened - rate * by_gate
    if not second_order:
        moved, opened = moved.detach(), opened.detach()
    return (1.0 + gate + opened) * interests + offset + moved


def support_loss(adapted: Tensor, scale: Tensor | float, support: Batch, prior_items: float) -> Tensor:
    """What the inner loop descends, (batch, T).

    Args:
        adapted: (batch, T, d).
        scale: s, broadcast to (batch, 1, 1).
        support: its targets are the support items.
        prior_items: m.
    """
    items = support.target_mask.sum(dim=1)[:, None, None]  # (batch, 1, 1)
    weight = (prior_items + 1.0) * items / (prior_items + items) / scale
    return cross_entropy(scale * adapted, support) * weight[..., 0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """Where a user's adaptation begins, as training left it.

    Attributes:
        offset: (d,) float32 b_0.
        gate: g_0.
        scale: s, the scale of scores in training.
        rate: alpha.
        steps: inner steps.
        prior_items: m.
    """

    offset: np.ndarray
    gate: float
    scale: float
    rate: float
    steps: int
    prior_items: float

    def begin(self, interests: np.ndarray) -> np.ndarray:
        """(n, d) interests without any start, such as encoded histories -> where their adaptation begins.

        Transferred interests stand there already: the model of the method applies the start to them.
        """
        return np.asarray((1.0 + self.gate) * interests + self.offset, dtype=np.float32)

    def undone(self, begun: np.ndarray) -> np.ndarray:
        """The inverse of `begin`; what a gate of -1 has shut out altogether stays as it is."""
        opened = 1.0 + self.gate
        return np.asarray((begun - self.offset) / opened if abs(opened) > _SHUT else begun, dtype=np.float32)

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray], config: RunConfig, *, scale: float | None = None) -> Start:
        """The start in a delivered shared layer; the zero start for a method that learns none.

        Args:
            arrays: shared arrays by name.
            config: of the run that made them.
            scale: as this domain trained it (`InterestModel.head`); None where it did not train, and the public start of it holds.
        """
        offset, gate = arrays.get("start.offset"), arrays.get("start.gate")
        return cls(
            offset=np.zeros(config.model.dimension, dtype=np.float32) if offset is None else np.asarray(offset, dtype=np.float32)[:, 0],
            gate=0.0 if gate is None else float(gate[0, 0]),
            scale=config.training.temperature if scale is None else scale,
            rate=config.training.inner_rate,
            steps=config.training.inner_steps,
            prior_items=float(config.training.passport_min_items),
        )


def adapt(interests: np.ndarray, items: np.ndarray, present: np.ndarray, coordinates: np.ndarray, start: Start) -> np.ndarray:
    """Interests after a user's own few interactions; nothing is trained, and no user sees another.

    Args:
        interests: (n, d) float32 where adaptation begins: transferred passports, or what `Start.begin` gives for other interests.
        items: (n, S) positions in the catalogue of what each user took; S may be 0.
        present: (n, S) bool, which of them are there.
        coordinates: (n_items, d) float32 of the catalogue.
        start: see `Start`.
    Returns:
        (n, d) float32.
    """
    shown = np.unique(np.linspace(0, len(coordinates) - 1, min(len(coordinates), MOST_NEGATIVES)).round().astype(np.int64))
    drawn = np.zeros(len(coordinates), dtype=np.float32)
    drawn[shown] = 1.0
    parts = [np.zeros((0, interests.shape[1]), dtype=np.float32)]
    for first in range(0, len(interests), _USERS_AT_A_TIME):
        rows = slice(first, first + _USERS_AT_A_TIME)
        parts.append(_adapted(interests[rows], items[rows], present[rows], np.asarray(coordinates), shown, drawn, start))
    return np.concatenate(parts)


def _adapted(
    interests: np.ndarray,
    items: np.ndarray,
    present: np.ndarray,
    coordinates: np.ndarray,
    shown: np.ndarray,
    drawn: np.ndarray,
    start: Start,
) -> np.ndarray:
    before = torch.from_numpy(start.undone(interests))[:, None]  # (n, 1, d)
    nothing = before.new_zeros(len(interests), 1)
    items = np.where(present, items, 0)
    support = Batch(
        history=before,
        history_mask=nothing,
        passports=before,
        passport_mask=nothing,
        targets=torch.from_numpy(np.asarray(coordinates[items], dtype=np.float32)),
        target_mask=torch.from_numpy(present.astype(np.float32)),
        negatives=torch.from_numpy(np.asarray(coordinates[shown], dtype=np.float32)),
        hits=torch.from_numpy(drawn[items]),
        negative_weight=len(coordinates) / len(shown),
        descriptor=before.new_zeros(0),
    )
    found = inner_loop(
        before,
        torch.from_numpy(np.array(start.offset, dtype=np.float32)),
        before.new_full((1,), start.gate),
        lambda adapted: support_loss(adapted, start.scale, support, start.prior_items),
        rate=start.rate,
        steps=start.steps,
        second_order=False,
    )
    return found[:, 0].numpy().astype(np.float32)
