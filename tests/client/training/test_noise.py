"""Sources of noise: the law, and that nothing is kept or repeated."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy import stats

from client.training import noise
from client.training.noise import NoNoise, SeededNoise, SystemNoise, keyed_generator, system_uniform
from shared.privacy import conformance as checks


@pytest.mark.parametrize("source", [SystemNoise(), SeededNoise("a key")], ids=["system", "seeded"])
def test_noise_is_standard_normal(source: noise.NoiseSource) -> None:
    x = source.normal(50_000)
    assert x.dtype == np.float64
    assert stats.kstest(x, "norm").pvalue > checks.THRESHOLD
    assert min(2 * stats.chi2.sf(x @ x, len(x)), 2 * stats.chi2.cdf(x @ x, len(x))) > checks.THRESHOLD


def test_half_the_noise_is_refused() -> None:
    x = 0.5 * SystemNoise().normal(2_000)
    assert stats.chi2.cdf(x @ x, len(x)) < checks.THRESHOLD


def test_both_halves_of_a_draw_are_independent() -> None:
    x = SystemNoise().normal(40_000)  # Box and Muller make them from the same pair
    first, second = x[:20_000], x[20_000:]
    assert checks.noise_correlation([first, second]) > checks.THRESHOLD
    assert checks.noise_correlation([first**2, second**2]) > checks.THRESHOLD


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_as_many_numbers_come_as_were_asked_for(count: int) -> None:
    assert all(len(source.normal(count)) == count for source in (SystemNoise(), SeededNoise(1), NoNoise()))


def test_system_noise_comes_from_the_operating_system_at_each_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom

    def listening(count: int) -> bytes:
        asked.append(count)
        return real(count)

    monkeypatch.setattr(os, "urandom", listening)
    source = SystemNoise()
    source.normal(100)
    source.normal(100)
    assert asked == [800, 800]  # 64 bits for each number
    assert not vars(source)  # nothing is kept that could be saved


def test_no_seed_of_any_library_repeats_it() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(0)  # the very thing that must not matter
        draws.append(SystemNoise().normal(8))
    assert draws[0].tolist() != draws[1].tolist()


def test_uniform_numbers_are_never_zero_or_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for byte in (b"\x00", b"\xff"):
        monkeypatch.setattr(os, "urandom", lambda count, byte=byte: byte * count)
        assert 0.0 < system_uniform(1)[0] < 1.0
        assert np.isfinite(SystemNoise().normal(2)).all()


def test_only_system_noise_is_private() -> None:
    assert [source.private for source in (SystemNoise(), SeededNoise(1), NoNoise())] == [True, False, False]


def test_seeded_noise_repeats_for_its_key_and_differs_for_another() -> None:
    assert SeededNoise(0, "arts", 1).normal(9).tolist() == SeededNoise(0, "arts", 1).normal(9).tolist()
    assert SeededNoise(0, "arts", 1).normal(9).tolist() != SeededNoise(0, "arts", 2).normal(9).tolist()


def test_noise_sampling_and_examples_of_one_round_share_no_numbers() -> None:
    streams = [keyed_generator(*key).random(4).tolist() for key in (("noise", 0, "a", 1), ("sample", 0, "a", 1), (0, "a", 1, "examples"))]
    assert len({tuple(stream) for stream in streams}) == 3
