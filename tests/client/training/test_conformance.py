"""Conformance of noise and sampling: the real local round on a real ledger, against the law it claims; and the planted bugs are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from client.model.objective import Batch
from client.training import dp_sgd, local_round
from client.training.examples import Examples
from client.training.noise import NoiseSource, SystemNoise
from client.training.sampler import PoissonSampler
from shared.config import RunConfig
from shared.privacy import conformance as checks
from tests.client.training import planted_bugs as bugs
from tests.client.training.tiny_partner import Partner, config_of, people

PRIVATE = config_of(noise="system", sampling_rate=1e-6, noise_multiplier=2.0)
MECHANISM = local_round.round_mechanism(PRIVATE)


def empty_batch(tmp_path: Path, config: RunConfig = PRIVATE, name: str = "arts") -> Partner:
    """Forty users, of whom next to never one is in a batch."""
    return Partner(home=tmp_path / name, config=config, data=people(40).data(name), domain=name)


# --- T1: noise on an empty batch ---


def test_a_round_on_an_empty_batch_releases_noise_of_the_scale_that_was_paid_for(tmp_path: Path) -> None:
    releases = [empty_batch(tmp_path).joint_release(number) for number in (1, 2, 3)]
    p = checks.noise_scale(np.concatenate(releases), MECHANISM)
    print(f"noise scale: p = {p:.3g}")
    assert p > checks.THRESHOLD


@pytest.mark.parametrize("source", [bugs.HalfNoise, bugs.HeavyTails])
def test_noise_of_another_scale_or_law_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: type[NoiseSource]) -> None:
    monkeypatch.setattr(local_round, "SystemNoise", source)
    assert checks.noise_scale(empty_batch(tmp_path).joint_release(), MECHANISM) < checks.THRESHOLD


@pytest.mark.parametrize("optimizer", [bugs.SkippedEmptyBatch, bugs.DividedByThisBatch])
def test_an_empty_batch_that_can_be_told_from_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: type[dp_sgd.PublicOptimizer]
) -> None:
    monkeypatch.setattr(dp_sgd, "PublicOptimizer", optimizer)
    assert checks.noise_scale(empty_batch(tmp_path).joint_release(), MECHANISM) < checks.THRESHOLD


def test_a_domain_without_users_releases_noise_like_any_other(tmp_path: Path) -> None:
    partner = Partner(home=tmp_path / "arts", config=PRIVATE, data=people(0).data("arts"))
    assert checks.noise_scale(partner.joint_release(), MECHANISM) > checks.THRESHOLD


# --- T2: noise is never used twice ---


def test_noise_is_independent_across_rounds_runs_and_domains(tmp_path: Path) -> None:
    arts, music = empty_batch(tmp_path), empty_batch(tmp_path, name="music")
    releases = [arts.joint_release(1), arts.joint_release(2), music.joint_release(1), music.another_run("run-2").joint_release(1)]
    p = checks.noise_correlation(releases)
    print(f"noise correlation: p = {p:.3g}")
    assert p > checks.THRESHOLD


def test_noise_is_independent_across_processes() -> None:
    code = "import sys; from client.training.noise import SystemNoise; sys.stdout.buffer.write(SystemNoise().normal(4000).tobytes())"
    draws = [np.frombuffer(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(2)]
    p = checks.noise_correlation([*draws, SystemNoise().normal(4000)])
    print(f"noise correlation across processes: p = {p:.3g}")
    assert p > checks.THRESHOLD


def test_one_seed_for_all_rounds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "SystemNoise", bugs.OneSeedForAll)
    partner = empty_batch(tmp_path)
    assert checks.noise_correlation([partner.joint_release(1), partner.joint_release(2)]) < checks.THRESHOLD


def test_one_seed_at_two_partners_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "SeededNoise", bugs.SameSeedAtBothPartners)
    seeded = config_of(sampling_rate=1e-6)
    releases = [empty_batch(tmp_path, seeded, name).joint_release() for name in ("arts", "music")]
    assert checks.noise_correlation(releases) < checks.THRESHOLD


def test_the_seeded_noise_of_test_builds_differs_between_rounds_and_domains(tmp_path: Path) -> None:
    seeded = config_of(sampling_rate=1e-6)
    arts, music = (empty_batch(tmp_path, seeded, name) for name in ("arts", "music"))
    assert checks.noise_correlation([arts.joint_release(1), arts.joint_release(2), music.joint_release(1)]) > checks.THRESHOLD


# --- T4: Poisson sampling ---

STEPS, USERS, RATE = 60, 400, 0.3
POISSON = config_of(noise="system", sampling_rate=RATE, steps_per_round=STEPS)


def batches_of_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Who was in the batches that the real training code trained on."""
    seen: list[np.ndarray] = []

    class Seen(Examples):
        def __call__(self, users: np.ndarray) -> Batch:
            seen.append(users)
            return super().__call__(users[:4])  # four are enough to go on; the batch itself was drawn before

    monkeypatch.setattr(local_round, "Examples", Seen)
    Partner(home=tmp_path / "arts", config=POISSON, data=people(USERS).data("arts")).update()
    assert len(seen) == STEPS
    return seen


def test_batches_of_training_are_poisson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of_a_round(tmp_path, monkeypatch)
    sizes, who = checks.batch_sizes(batches, USERS, RATE), checks.inclusion(batches, USERS, RATE)
    print(f"batch sizes: p = {sizes:.3g}; inclusion: p = {who:.3g}")
    assert min(sizes, who) > checks.THRESHOLD


def test_batches_of_a_fixed_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_round, "PoissonSampler", bugs.FixedSizeBatches)
    assert checks.batch_sizes(batches_of_a_round(tmp_path, monkeypatch), USERS, RATE) < checks.THRESHOLD


def test_going_through_all_users_in_turn_is_refused() -> None:
    sampler = bugs.ShuffledEpochs()
    batches = [sampler.draw(USERS, RATE) for _ in range(STEPS)]
    assert checks.batch_sizes(batches, USERS, RATE) < checks.THRESHOLD
    assert checks.inclusion(batches, USERS, RATE) < checks.THRESHOLD


def test_batches_of_friends_are_refused_though_their_sizes_are_right() -> None:
    sampler = bugs.RightSizesWrongUsers()
    batches = [sampler.draw(USERS, RATE) for _ in range(STEPS)]
    assert checks.batch_sizes(batches, USERS, RATE) > checks.THRESHOLD
    assert checks.inclusion(batches, USERS, RATE) < checks.THRESHOLD


@pytest.mark.journey
def test_correct_code_is_not_refuted_in_twenty_runs(tmp_path: Path) -> None:
    worst = 1.0
    for number in range(20):
        arts, music = (empty_batch(tmp_path / str(number), name=name) for name in ("arts", "music"))
        releases = [arts.joint_release(1), arts.joint_release(2), music.joint_release(1)]
        sampler = PoissonSampler()
        batches = [sampler.draw(USERS, RATE) for _ in range(STEPS)]
        worst = min(
            worst,
            checks.noise_scale(np.concatenate(releases), MECHANISM),
            checks.noise_correlation(releases),
            checks.batch_sizes(batches, USERS, RATE),
            checks.inclusion(batches, USERS, RATE),
        )
    print(f"smallest of 80 p-values: {worst:.3g}")
    assert worst > 1e-3 / 80  # tau = 1e-3, over all of them
