"""The real classes with one bug each. A conformance check is worth something only if it refuses these."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from client.model.interest_encoder import AttentionEncoder
from client.model.objective import Batch, InterestModel
from client.training import noise
from client.training.dp_sgd import PublicOptimizer
from client.training.examples import Examples
from client.training.sampler import PoissonSampler


class HalfNoise(noise.SystemNoise):
    def normal(self, count: int) -> np.ndarray:
        return 0.5 * super().normal(count)


class HeavyTails(noise.SystemNoise):
    """The right variance, another law."""

    def normal(self, count: int) -> np.ndarray:
        return np.asarray(np.sign(super().normal(count)))


class OneSeedForAll(noise.SeededNoise):
    """The same noise in every round, process and domain."""

    private = True

    def __init__(self) -> None:
        super().__init__("forgotten seed")


class SameSeedAtBothPartners(noise.SeededNoise):
    """Named by run and round, but not by the domain."""

    def __init__(self, seed: object, domain: object, round_: object) -> None:
        super().__init__(seed, round_)


class NoClip(PublicOptimizer):
    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            parameter.summed_grad = parameter.grad_sample.flatten(1).double().sum(dim=0)


class ClipPerTensor(PublicOptimizer):
    def clip_and_accumulate(self) -> None:
        for parameter in self.params:
            sample = parameter.grad_sample.flatten(1).double()
            factors = (self.mechanism.clip_norm / sample.norm(dim=1)).clamp(max=1.0)
            parameter.summed_grad = factors @ sample


class NonFiniteKept(PublicOptimizer):
    def clip_and_accumulate(self) -> None:
        samples = [parameter.grad_sample.flatten(1).double() for parameter in self.params]
        norms = torch.cat(samples, dim=1).norm(dim=1)
        for parameter, sample in zip(self.params, samples, strict=True):
            parameter.summed_grad = (self.mechanism.clip_norm / norms).clamp(max=1.0) @ sample


class SkippedEmptyBatch(PublicOptimizer):
    """Nobody came, so nothing is done: the update says so."""

    def add_noise(self) -> None:
        if len(self.params[0].grad_sample) > 0:
            super().add_noise()
            return
        for parameter in self.params:
            parameter.grad = torch.zeros_like(parameter)


class DividedByThisBatch(PublicOptimizer):
    """Divides by the number of users there are instead of the public constant."""

    def add_noise(self) -> None:
        self.divisor = float(max(len(self.params[0].grad_sample), 1))
        super().add_noise()


class FixedSizeBatches(PoissonSampler):
    def draw(self, users: int, rate: float) -> np.ndarray:
        return self._distinct(users, round(users * rate))


class ShuffledEpochs(PoissonSampler):
    """Goes through all users in turn, as a data loader does."""

    _queue = np.zeros(0, dtype=np.int64)

    def draw(self, users: int, rate: float) -> np.ndarray:
        if len(self._queue) == 0:
            self._queue = self._distinct(users, users)
        batch, self._queue = np.split(self._queue, [round(users * rate)])
        return np.asarray(batch)


class RightSizesWrongUsers(PoissonSampler):
    """Binomial sizes, but friends come together."""

    def draw(self, users: int, rate: float) -> np.ndarray:
        start = int(self._uniform(1)[0] * users)
        return np.asarray((start + np.arange(len(super().draw(users, rate)))) % users)


class EncoderTrainedWithoutPrivacy(InterestModel):
    """Peeks: before the private step, the encoder takes a plain one on the same users."""

    def forward(self, batch: Batch) -> torch.Tensor:
        if torch.is_grad_enabled() and batch.users:
            # over all users, neither clipped nor noised
            pull = torch.einsum("bld,bl->d", batch.history, batch.history_mask)
            with torch.no_grad():
                self.encoder.expand.weight.add_(pull[:, None])
        return super().forward(batch)


class InBatchNegatives(InterestModel):
    def forward(self, batch: Batch) -> torch.Tensor:
        negatives = batch.targets.flatten(0, 1) if batch.users else batch.negatives
        return super().forward(dataclasses.replace(batch, negatives=negatives))


class PopularNegatives(Examples):
    """Draws negatives by how often this domain's users took an item."""

    def _draw_negatives(self, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = np.bincount(self._histories.items, minlength=len(self._coordinates))
        negatives = np.argsort(-counts, kind="stable")[: self._config.catalogue_negatives]
        drawn = np.zeros(len(counts), dtype=bool)
        drawn[negatives] = True
        return negatives, drawn[targets]


class OneStreamForAllUsers(Examples):
    """Draws everybody's targets from one public stream, as `Examples` did once."""

    def _draw_targets(self, items: np.ndarray, present: np.ndarray, step: np.uint64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        # who comes first in the batch moves the draws of all who come after
        stream = np.random.default_rng(int(step)).integers(0, 2**63, size=items.shape, dtype=np.uint64)
        by_place = [
            super(OneStreamForAllUsers, self)._draw_targets(items[i : i + 1], present[i : i + 1], stream[i, 0]) for i in range(len(items))
        ]
        if not by_place or items.shape[1] == 0:
            return super()._draw_targets(items, present, step)
        targets, mask, is_target = (np.concatenate(parts) for parts in zip(*by_place, strict=True))
        return targets, mask, is_target


class PositionTableWithoutBatch(AttentionEncoder):
    """The recency bias reads (L, 2) instead of (batch, L, 2): autograd is right, per-user gradients are not."""

    def forward(self, history: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        age = torch.arange(history.shape[1] - 1, -1, -1, dtype=history.dtype)
        features = torch.stack([age, torch.log1p(age)], dim=-1) * 0.1
        score = age * self.log_decay + self.recency(features)[..., 0] + self.content(history)[..., 0]
        attention = torch.softmax(score.masked_fill(mask == 0, -1e9), dim=1) * mask
        mean = torch.einsum("bl,bld->bd", attention, history)
        moved: torch.Tensor = self.expand(torch.tanh(self.reduce(mean)))
        return mean + moved
