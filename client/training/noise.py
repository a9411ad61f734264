"""Where privacy noise comes from. The type says whether a release may be called private."""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np


class NoiseSource(Protocol):
    """Standard normal numbers, 64 bit."""

    private: bool
    """False in test builds: whatever is made with them is stamped NOT PRIVATE."""

    def normal(self, count: int) -> np.ndarray:
        """(count,) independent standard normal float64."""
        ...


def system_uniform(count: int) -> np.ndarray:
    """(count,) uniform float64 in (0, 1), 52 random bits each, straight from the operating system."""
    bits = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(12)
    return (bits.astype(np.float64) + 0.5) * 2.0**-52  # with 53 bits the largest would be rounded to 1


class SystemNoise:
    """Operating-system entropy turned normal (Box and Muller 1958). Never seeded, never saved, fresh for each draw.

    A draw reaches to about 8.6 standard deviations, as far as 52 bits do.
    """

    private = True

    def normal(self, count: int) -> np.ndarray:
        half = (count + 1) // 2
        uniform = system_uniform(2 * half)
        radius = np.sqrt(-2.0 * np.log(uniform[:half]))
        angle = 2.0 * np.pi * uniform[half:]
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


class SeededNoise:
    """The same noise for the same key: test builds only.

    Args:
        key: whatever names the draw: seed, domain, round, purpose.
    """

    private = False

    def __init__(self, *key: object) -> None:
        self._generator = keyed_generator("noise", *key)

    def normal(self, count: int) -> np.ndarray:
        return self._generator.standard_normal(count)


class NoNoise:
    """No noise at all: test builds, and simulations at epsilon = inf."""

    private = False

    def normal(self, count: int) -> np.ndarray:
        return np.zeros(count)


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator named by its key (seed, domain, round, purpose): equal keys give equal numbers in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
