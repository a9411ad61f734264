"""Conformance checks: each takes what the training code did and says how likely that is under the claimed law, or how far off it is.

They know nothing about how to train: the tests hand them releases, batches and gradients of the real code, and of the same code with a
planted bug. A p-value below `THRESHOLD` refutes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from flwr.common.serde import recorddict_to_proto
from scipy import stats

from client.model.objective import Batch, InterestModel
from client.training.dp_sgd import PerUserGradients
from shared.privacy.mechanism import Mechanism
from shared.wire import TransferUpdate

THRESHOLD = 1e-6
GRADIENT_TOLERANCE = 1e-4
ROUNDING = 1e-5
"""Relative error of what float32 does after the noise."""


def noise_scale(release: np.ndarray, mechanism: Mechanism) -> float:
    """T1. p-value of a joint release on an empty batch: chi-square on its scale and Kolmogorov-Smirnov on its shape (Bonferroni)."""
    x = np.asarray(release, dtype=np.float64) / mechanism.noise_scale
    return min(1.0, 2 * min(_two_sided(stats.chi2(len(x)), float(x @ x)), float(stats.kstest(x, "norm").pvalue)))


def noise_correlation(releases: Sequence[np.ndarray]) -> float:
    """T2. p-value of the most correlated pair of noises (Fisher's z, Bonferroni over the pairs)."""
    pairs = [(a, b) for i, a in enumerate(releases) for b in releases[:i]]
    p = [2 * stats.norm.sf(abs(_fisher(np.corrcoef(a, b)[0, 1])) * math.sqrt(len(a) - 3)) for a, b in pairs]
    return float(min(1.0, min(p) * len(pairs)))


def sensitivity(with_user: np.ndarray, without_user: np.ndarray, mechanism: Mechanism) -> float:
    """T3. ||S(D) - S(D - i)|| over the whole joint vector, as a share of C + g sqrt(p); above 1 + `ROUNDING` it refutes."""
    bound = mechanism.clip_norm + mechanism.grid * math.sqrt(mechanism.dimension)
    return float(np.linalg.norm(with_user - without_user)) / bound


def rest_of_message(update: TransferUpdate) -> bytes:
    """T3. All bytes of a reply but the arrays, their digest and the hash of the ledger's head."""
    nothing = {name: np.zeros_like(array) for name, array in update.arrays.items()}
    receipt = dataclasses.replace(update.receipt, payload_sha256="0" * 64, head_hash="0" * 64)
    blank = dataclasses.replace(update, arrays=nothing, receipt=receipt)
    return bytes(recorddict_to_proto(blank.pack()).SerializeToString(deterministic=True))


def batch_sizes(batches: Sequence[np.ndarray], users: int, rate: float) -> float:
    """T4. p-value of the sizes of batches: each is Binomial(users, rate)."""
    sizes = np.array([len(batch) for batch in batches], dtype=np.float64)
    return _two_sided(stats.chi2(len(sizes)), float(((sizes - users * rate) ** 2).sum() / (users * rate * (1 - rate))))


def inclusion(batches: Sequence[np.ndarray], users: int, rate: float) -> float:
    """T4. p-value of who was in the batches: counts of each user, of pairs, and of users in two batches in a row (Bonferroni)."""
    there = np.zeros((len(batches), users), dtype=bool)
    for row, batch in zip(there, batches, strict=True):
        assert len(np.unique(batch)) == len(batch), "a user is in a batch twice"
        row[batch] = True
    half = users // 2
    together = there[:, :half] & there[:, half : 2 * half]
    again = there[1::2] & there[: len(batches) // 2 * 2 : 2]
    p = [_binomial(there, rate), _binomial(together, rate**2), _binomial(again, rate**2)]
    return min(1.0, 3 * min(p))


def per_user_gradients(model: InterestModel, batch: Batch) -> np.ndarray:
    """(batch, p) gradients as training computes them."""
    wrapped = PerUserGradients(model, loss_reduction="sum")
    wrapped.train()
    try:
        wrapped(batch).sum().backward()
        return np.concatenate([_sample(p).flatten(1).numpy() for p in model.parameters()], axis=1)
    finally:
        wrapped.zero_grad(set_to_none=True)
        wrapped.to_standard_module()


def _sample(parameter: torch.nn.Parameter) -> torch.Tensor:
    sample: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]  # Opacus hangs it on
    return sample


def gradient_error(model: InterestModel, batch: Batch) -> float:
    """T6. Largest relative error of a user's gradient against plain autograd on that user alone."""
    errors = []
    for position, mine in enumerate(per_user_gradients(model, batch)):
        loss = model(batch.part(position, position + 1)).sum()
        truth = np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, list(model.parameters()))])
        errors.append(_relative(mine, truth))
    return max(errors)


def coupling(model: InterestModel, alone: Batch, together: Batch) -> float:
    """In-batch coupling: largest relative change of the gradients of the first users of ``together`` against the batch ``alone``."""
    pairs = zip(per_user_gradients(model, alone), per_user_gradients(model, together), strict=False)
    return max(_relative(b, a) for a, b in pairs)


def _relative(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / max(float(np.linalg.norm(truth)), 1e-12))


def _two_sided(law: stats.rv_continuous, value: float) -> float:
    return float(min(1.0, 2 * min(law.cdf(value), law.sf(value))))


def _binomial(events: np.ndarray, chance: float) -> float:
    """p-value of column sums of independent events of one chance."""
    n, columns = events.shape
    deviation = (events.sum(axis=0) - n * chance) ** 2 / (n * chance * (1 - chance))
    # a squared standardised binomial has mean 1 and variance 2 + (1 - 6 q (1 - q)) / (n q (1 - q)), a little more than chi-square
    variance = 2 + (1 - 6 * chance * (1 - chance)) / (n * chance * (1 - chance))
    z = (float(deviation.sum()) - columns) / math.sqrt(variance * columns)
    shrunk = z * math.sqrt(2 * columns) + columns
    return _two_sided(stats.chi2(columns), max(shrunk, 0.0))


def _fisher(rho: float) -> float:
    return math.atanh(min(max(rho, -1 + 1e-15), 1 - 1e-15))
