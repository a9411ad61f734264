"""The real classes with one bug each. A conformance check is worth something only if it refuses these."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import MetricRecord, RecordDict

from client.data.histories import Histories
from client.model.encoders.attention import AttentionEncoder
from client.model.methods import InterestModel
from client.model.objective import Batch
from client.serving_state import ServingFolder
from client.state import RoundKey, State
from client.training import dp_sgd, noise
from client.training.dp_sgd import PublicOptimizer
from client.training.examples import Examples
from client.training.local_round import TrainingData
from client.training.sampler import PoissonSampler
from shared.config import RunConfig
from shared.errors import StateError
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.wire import RoundInstruction, TransferUpdate


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
    """Faulty users are zero as they should be, but nobody is cut down."""

    def clip_and_accumulate(self) -> None:
        for parameter, sample in zip(self.params, finite_samples(self.params), strict=True):
            parameter.summed_grad = sample.sum(dim=0)


class ClipPerTensor(PublicOptimizer):
    """Faulty users are zero as they should be, but each tensor is cut down by itself."""

    def clip_and_accumulate(self) -> None:
        for parameter, sample in zip(self.params, finite_samples(self.params), strict=True):
            factors = (self.mechanism.clip_norm / sample.norm(dim=1)).clamp(max=1.0)
            parameter.summed_grad = factors @ sample


def finite_samples(parameters: list[Any]) -> list[torch.Tensor]:
    samples = [parameter.grad_sample.flatten(1).double() for parameter in parameters]
    faulty = ~torch.cat(samples, dim=1).isfinite().all(dim=1)
    for sample in samples:
        sample[faulty] = 0.0
    return samples


def in_each_micro_batch(bug: type[PublicOptimizer]) -> type[PublicOptimizer]:
    """The same bug where a batch comes in pieces: as planted above, it forgets all but the last."""

    class InEachMicroBatch(bug):  # type: ignore[misc, valid-type]
        def clip_and_accumulate(self) -> None:
            before = [parameter.summed_grad for parameter in self.params]
            super().clip_and_accumulate()
            for parameter, earlier in zip(self.params, before, strict=True):
                if earlier is not None:
                    parameter.summed_grad = parameter.summed_grad + earlier

    return InEachMicroBatch


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

    def forward(self, history: torch.Tensor, mask: torch.Tensor, items: torch.Tensor | None = None) -> torch.Tensor:
        del items
        age = torch.arange(history.shape[1] - 1, -1, -1, dtype=history.dtype)
        features = torch.stack([age, torch.log1p(age)], dim=-1) * 0.1
        score = age * self.log_decay + self.recency(features)[..., 0] + self.content(history)[..., 0]
        attention = torch.softmax(score.masked_fill(mask == 0, -1e9), dim=1) * mask
        mean = torch.einsum("bl,bld->bd", attention, history)
        moved: torch.Tensor = self.expand(torch.tanh(self.reduce(mean)))
        return mean + moved


class PrivateIdf(Examples):
    """Weighs items by how rare they are among this domain's users."""

    def __init__(self, *, histories: Histories, coordinates: np.ndarray, **rest: Any) -> None:
        counts = np.bincount(histories.items, minlength=len(coordinates))
        idf = np.log((1 + len(histories)) / (1 + counts)).astype(np.float32)
        super().__init__(histories=histories, coordinates=coordinates * idf[:, None], **rest)


class SkipsSmallBatches(PoissonSampler):
    """Draws again until enough came."""

    def draw(self, users: int, rate: float) -> np.ndarray:
        batch = super().draw(users, rate)
        while len(batch) < users * rate:
            batch = super().draw(users, rate)
        return batch


class NoiseOfTheRound(noise.SeededNoise):
    """Secret, but named by the round: a round that is repeated after a crash adds the same noise to other batches."""

    private = True

    def __init__(self, *named: object) -> None:
        super().__init__("a secret of this domain", *named)


class OneNoiseForAllTensors(noise.SystemNoise):
    """Fresh for each release, but the same numbers for each block of it."""

    def normal(self, count: int) -> np.ndarray:
        block = super().normal(math.ceil(count / 2))
        return np.concatenate([block, block])[:count]


class DebitAfterTraining(Ledger):
    """Books an attempt when it succeeded."""

    _asked: dict[str, Any]

    def intent(self, **asked: Any) -> int:
        self._asked = asked
        return 1 + sum(event.kind == "intent" and event.payload["round"] == asked["round"] for event in self.events())

    def commit(self, **asked: Any) -> None:
        super().intent(**self._asked)
        super().commit(**asked)


def named_noise(config: RunConfig, named: tuple[object, ...]) -> noise.NoiseSource:
    return NoiseOfTheRound(*named)


def noise_without_domain(config: RunConfig, named: tuple[object, ...]) -> noise.NoiseSource:
    """Named by the run's seed and the round, and not by the domain."""
    seed, _domain, round_ = named
    return NoiseOfTheRound(seed, round_)


def trained_on_one_step_less(*arguments: Any, mechanism: Mechanism, **named: Any) -> None:
    """Pays for a step and does not take it."""
    dp_sgd.train(*arguments, mechanism=mechanism.for_steps(max(1, mechanism.steps - 1)), **named)


def divided_by_the_private_number(*arguments: Any, users: int, divisor: float, **named: Any) -> None:
    """Divides by the number of training users there are, as a mean over the data does."""
    del divisor
    dp_sgd.train(*arguments, users=users, divisor=float(max(users, 1)), **named)


def with_number_of_examples() -> tuple[Callable[..., None], type[TransferUpdate]]:
    """A `train` that remembers how many users there were, and an update that says so, as Flower's own examples do."""
    seen: list[int] = []

    def train(*arguments: Any, users: int, **named: Any) -> None:
        seen.append(users)
        dp_sgd.train(*arguments, users=users, **named)

    class WithNumberOfExamples(TransferUpdate):
        def pack(self) -> RecordDict:
            content = TransferUpdate.pack(self)
            content["num-examples"] = MetricRecord({"num-examples": seen[-1]})
            return content

    return train, WithNumberOfExamples


def per_user_events(real: Callable[..., TransferUpdate]) -> Callable[..., TransferUpdate]:
    """A local round that notes each user it trained on."""

    def run(instruction: RoundInstruction, *, data: Callable[[], TrainingData], **rest: Any) -> TransferUpdate:
        update = real(instruction, data=data, **rest)
        with Ledger.open(rest["ledger_path"], signer=rest["signer"]) as ledger:
            for user in range(len(data().histories)):
                ledger.note(f"trained on user {user}")
        return update

    return run


def starts_from_the_serving_head(
    real_run: Callable[..., TransferUpdate], real_start: Callable[..., InterestModel]
) -> tuple[Callable[..., TransferUpdate], Callable[..., InterestModel]]:
    """A local round whose model begins with the scale of the head that was fitted on exact data."""
    scale: list[float] = []

    def run(instruction: RoundInstruction, **rest: Any) -> TransferUpdate:
        scale.clear()
        with contextlib.suppress(StateError):
            serving = ServingFolder(rest["ledger_path"].parent / "serving").current()
            if serving is not None:
                scale.append(max(float(array[0]) for name, array in serving.arrays.items() if name.endswith("/scale")) + 1.0)
        return real_run(instruction, **rest)

    def start(config: RunConfig, domain: str) -> InterestModel:
        model = real_start(config, domain)
        with torch.no_grad():
            model.head.log_scale.weight.add_(sum(scale))
        return model

    return run, start


def goes_on_from_the_last_run(real: Callable[..., State]) -> Callable[..., State]:
    """Takes whatever state there is for the state of this run."""

    def train(instruction: RoundInstruction, key: RoundKey, attempt: int, previous: State | None, config: RunConfig, *rest: Any) -> State:
        if previous is not None:
            previous = dataclasses.replace(previous, key=key, meta={**previous.meta, "config_hash": config.config_hash})
        return real(instruction, key, attempt, previous, config, *rest)

    return train


def keeps_what_it_saw(real: Callable[..., dict[str, np.ndarray]]) -> Callable[..., dict[str, np.ndarray]]:
    """Leaves another array in the state than parameters and moments."""

    def arrays(*arguments: Any) -> dict[str, np.ndarray]:
        return {**real(*arguments), "last_batch": np.arange(3)}

    return arrays


def sends_something_else(real: Callable[..., dict[str, np.ndarray]]) -> Callable[..., dict[str, np.ndarray]]:
    """Sends other numbers than those that were trained."""

    def shared(*arguments: Any) -> dict[str, np.ndarray]:
        return {name: array + np.float32(0.01) for name, array in real(*arguments).items()}

    return shared
