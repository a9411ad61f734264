"""More of `planted_bugs`: code that is right in the first step of a round, or in its first round, and noise that comes back."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from client.training import noise
from client.training.dp_sgd import PublicOptimizer
from shared.config import RunConfig
from tests.client.training.planted_bugs import HalfNoise, finite_samples


class ClipInTheFirstStepOnly(PublicOptimizer):
    """Right in the first step of a round."""

    done = 0

    def clip_and_accumulate(self) -> None:
        if self.done == 0:
            super().clip_and_accumulate()
            return
        for parameter, sample in zip(self.params, finite_samples(self.params), strict=True):
            total = sample.sum(dim=0)
            parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total

    def add_noise(self) -> None:
        super().add_noise()
        self.done += 1


class NoiseInTheFirstStepOnly(PublicOptimizer):
    """Right in the first step of a round."""

    def add_noise(self) -> None:
        super().add_noise()
        self.noise = noise.NoNoise()


class FainterNoise:
    """The n-th draw is divided by sqrt(n), as a mean over steps would be."""

    private = True

    def __init__(self, source: noise.NoiseSource) -> None:
        self.source, self.drawn = source, 0

    def normal(self, count: int) -> np.ndarray:
        self.drawn += 1
        return self.source.normal(count) / math.sqrt(self.drawn)


class OneDraw:
    """The first draw serves for all."""

    private = True

    def __init__(self, source: noise.NoiseSource) -> None:
        self.normal = functools.cache(source.normal)


def noise_of_a_round(bug: Callable[[noise.NoiseSource], noise.NoiseSource]) -> type[PublicOptimizer]:
    """The optimiser of a round, with its source of noise changed for all the round's steps."""

    class WithNoiseOfARound(PublicOptimizer):
        def __init__(self, *arguments: Any, noise: noise.NoiseSource, **named: Any) -> None:
            super().__init__(*arguments, noise=bug(noise), **named)

    return WithNoiseOfARound


def half_noise_after_the_first_round(config: RunConfig, named: tuple[object, ...]) -> noise.NoiseSource:
    """Right in the first round of a run."""
    _seed, _domain, round_ = named
    return noise.SystemNoise() if round_ == 1 else HalfNoise()


class AntitheticNoise(noise.SystemNoise):
    """Every number comes a second time with the other sign: the right law, and half of the noise."""

    def normal(self, count: int) -> np.ndarray:
        half = super().normal((count + 1) // 2)
        return np.concatenate([half, -half])[:count]
