r"""How likely a serving head holds the items that people took, and the slope of it: what `client.model.domain_head` is fitted by.

For person u with items :math:`I_u`, interest z and scores s over the whole catalogue, each own item counted without u (leave one out),

.. math:: L = -\frac{1}{n} \sum_u \frac{1}{|I_u|} \sum_{j \in I_u} \Big( s_{uj} - \log \sum_k e^{s_{uk}} \Big) + \frac{r}{n} \|o\|^2
    \qquad s_{uj} = \langle \beta (z_u - \bar z) + o, x_j \rangle + \sum_f \gamma_f \log(n_{fj} + 1)

whose gradient by the scores is the softmax less the true shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

USERS_AT_A_TIME = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittingData:
    """People whose interest and items are both known.

    Attributes:
        interests: (n, d) float32 interest for this domain.
        offsets, items: their items here, flat.
        counts: (F, n_items) how often each item was taken, by group; these people's own items are counted in all of them.
        passports: (n, d) what they brought, as it was before it was transferred; None where neighbours have no say.
    """

    interests: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    counts: np.ndarray
    passports: np.ndarray | None = None

    @property
    def users(self) -> int:
        return len(self.interests)

    def of(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (position within ``users``), items, and weights (1 / items of that user), flat."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        rows = np.repeat(np.arange(len(users)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items = self.items[np.repeat(self.offsets[users], lengths) + within]
        weights = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
        return torch.from_numpy(rows), torch.from_numpy(items.astype(np.int64)), torch.from_numpy(weights.astype(np.float32))


def counts_by_group(items: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """(F, n_items) int64 counts of the flat items of each group."""
    return np.stack([np.bincount(group, minlength=n_items) for group in items])


def logarithm(counts: np.ndarray) -> np.ndarray:
    return np.log1p(np.asarray(counts, dtype=np.float32))


def logarithms(data: FittingData) -> tuple[torch.Tensor, torch.Tensor]:
    """log(n + 1) and log(n - 1 + 1), each (F, n_items)."""
    return torch.from_numpy(logarithm(data.counts)), torch.from_numpy(logarithm(np.maximum(data.counts - 1, 0)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Taken:
    """The items of some people, each once, so that their own items can count without them (leave one out).

    Attributes:
        rows, items: (m,) position among the people, and item.
        shares: (m,) of a person's history.
        changes: (F, m) what the logarithms of counts lose without that very person.
    """

    rows: torch.Tensor
    items: torch.Tensor
    shares: torch.Tensor
    changes: torch.Tensor

    @classmethod
    def of(cls, data: FittingData, users: np.ndarray, log_counts: torch.Tensor, without: torch.Tensor) -> Taken:
        rows, items, shares = data.of(users)
        pairs, which = torch.unique(rows * data.counts.shape[1] + items, return_inverse=True)
        rows, items = pairs // data.counts.shape[1], pairs % data.counts.shape[1]
        shares = torch.zeros(len(pairs)).index_add_(0, which, shares)
        return cls(rows=rows, items=items, shares=shares, changes=without[:, items] - log_counts[:, items])

    def count_without_themselves(self, scores: torch.Tensor, weights: torch.Tensor) -> None:
        """Changes (people, n_items) scores in place."""
        scores[self.rows, self.items] += weights @ self.changes

    def less_shares(self, found: torch.Tensor) -> torch.Tensor:
        """(people, n_items) in place: the gradient by the scores, found less true shares; nobody pulls who took nothing."""
        found[torch.bincount(self.rows, minlength=len(found)) == 0] = 0.0
        found[self.rows, self.items] -= self.shares
        return found


class Slope:
    """The mean negative log-likelihood of people's items, and its gradient, at (weights, scale, scaled offset).

    By hand: automatic differentiation keeps and walks several copies of a matrix of people by catalogue.

    Args:
        data: the people.
        coordinates: (n_items, d).
        users: (n,) positions of those whose items are asked about.
        interests: (n, d) float32 interests of these users.
        ridge: of the offset; None leaves scale and offset out.
    Attributes:
        log_counts: (F, n_items) float32 log(n + 1).
        centre: (d,) mean of their interests.
    """

    def __init__(self, data: FittingData, coordinates: torch.Tensor, users: np.ndarray, interests: np.ndarray, ridge: float | None) -> None:
        self._coordinates, self._ridge, self._people = coordinates, ridge, len(users)
        self.log_counts, without = logarithms(data)
        self.centre = torch.from_numpy(interests).mean(dim=0)
        self._parts = []
        for start in range(0, len(users), USERS_AT_A_TIME):
            some = users[start : start + USERS_AT_A_TIME]
            theirs = torch.from_numpy(interests[start : start + USERS_AT_A_TIME])
            self._parts.append((theirs - self.centre, Taken.of(data, some, self.log_counts, without)))

    @torch.no_grad()
    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        groups = len(self.log_counts)
        parameters = torch.from_numpy(theta.astype(np.float32))
        weights, scale, offset = parameters[:groups], parameters[groups : groups + 1], parameters[groups + 1 :]
        gradient = torch.zeros_like(parameters)
        prior, total = weights @ self.log_counts, 0.0
        for interests, taken in self._parts:
            if self._ridge is None:
                scores = prior.repeat(len(interests), 1)
            else:
                scores = torch.addmm(prior, scale * interests + offset, self._coordinates.T)
            taken.count_without_themselves(scores, weights)
            found = torch.softmax(scores, dim=1)
            log_sum = scores.amax(dim=1) - found.amax(dim=1).log()  # the greatest share is no less than 1 / n_items: its logarithm is safe
            total += float((taken.shares * (log_sum[taken.rows] - scores[taken.rows, taken.items])).sum())
            slope = taken.less_shares(found)
            gradient[:groups] += self.log_counts @ slope.sum(dim=0) + taken.changes @ slope[taken.rows, taken.items]
            if self._ridge is not None:
                pulled = slope @ self._coordinates
                gradient[groups] += (pulled * interests).sum()
                gradient[groups + 1 :] += pulled.sum(dim=0)
        gradient[groups + 1 :] += 2.0 * (self._ridge or 0.0) * offset
        total += (self._ridge or 0.0) * float((offset**2).sum())
        return total / self._people, (gradient / self._people).numpy().astype(np.float64)
