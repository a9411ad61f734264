"""Tier 1 as a partner runs it: whole, on several configurations; what it makes smaller and what it refuses to test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from client.canary import conformance, interference, synthetic
from client.canary.steps import STEPS
from client.delivery import OWN, deliver
from client.serving_state import ServingFolder
from client.training import local_round
from shared import wire
from shared.config import ComputeConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import ConfigError, StateError

NAMES = [
    "T1 noise",
    "T2 after a crash",
    "T2 rounds",
    "T2 domains",
    "T2 steps",
    "T2 tensors",
    "T2 processes",
    "T3 sensitivity",
    "T3 other bytes",
    "T4 steps",
    "T4 batch sizes",
    "T4 who is in a batch",
    "T5 serving folder",
    "T5 new run",
    "T5 parameters",
    "T5 state",
    "T5 reply",
    "T6 per-user gradients",
    "T6 one user's gradient",
    "T7 debit first",
    "T7 events",
]


@pytest.mark.journey
def test_the_code_of_this_house_passes_every_check(tmp_path: Path) -> None:
    said: list[str] = []
    found = conformance.check(RunConfig(), tmp_path, said.append)
    assert [one.name for one in found] == NAMES
    assert [one.name for one in found if not one.passed] == []
    assert len(said) == len(conformance.TESTS) + 1
    assert all(one.seconds > 0 for one in found)


@pytest.mark.journey
@pytest.mark.parametrize(
    "config",
    [
        RunConfig(privacy=PrivacyConfig(clip_norm=1e3, grid_exponent=8, expected_batch_users=10_000_000, sampling_rate=1.0)),
        RunConfig(
            privacy=PrivacyConfig(clip_norm=1e-6, grid_exponent=40, expected_batch_users=1, sampling_rate=1e-6, noise_multiplier=50.0),
            model=ModelConfig(sharing="shared", dimension=2, rank=1, descriptor_dimension=1, prototypes=2),
            training=TrainingConfig(learning_rate=10.0, temperature=100.0, target_items=1, max_history_items=1, max_items_per_user=2),
            compute=ComputeConfig(micro_batch_users=1),
        ),
    ],
    ids=["coarse", "fine"],
)
def test_the_extremes_of_a_configuration_pass_too(tmp_path: Path, config: RunConfig) -> None:
    found = conformance.check(config, tmp_path, processes=False)
    assert [dataclasses.astuple(one) for one in found if not one.passed] == []


def test_what_decides_about_privacy_is_not_made_smaller() -> None:
    large = RunConfig(
        privacy=PrivacyConfig(clip_norm=0.37, grid_exponent=15, expected_batch_users=9000, noise_multiplier=1.7),
        model=ModelConfig(dimension=256, rank=64, descriptor_dimension=64, sharing="shared"),
        training=TrainingConfig(max_history_items=1000, learning_rate=0.05),
    )
    small, notes = synthetic.shrunk(large)
    assert small.privacy == large.privacy
    assert (small.model.sharing, small.model.encoder) == (large.model.sharing, large.model.encoder)
    assert small.training.learning_rate == large.training.learning_rate
    assert "model.dimension 64 instead of 256" in notes
    assert "training.max_history_items 50 instead of 1000" in notes
    assert synthetic.shrunk(small) == (small, ())


def test_a_configuration_without_privacy_has_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="promises no privacy"):
        conformance.check(RunConfig(privacy=PrivacyConfig(epsilon=float("inf"))), tmp_path)


def test_a_process_that_fails_is_an_error_and_not_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "CHILD", "raise SystemExit('no memory')")
    bench = conformance.Bench(config=synthetic.shrunk(RunConfig())[0], workspace=tmp_path)
    with conformance.other_processes(bench, 1) as elsewhere, pytest.raises(StateError, match="no memory"):
        elsewhere()


def test_a_loud_user_is_heard_so_that_the_check_of_sensitivity_is_not_empty(tmp_path: Path) -> None:
    bench = conformance.Bench(config=synthetic.shrunk(RunConfig())[0], workspace=tmp_path)
    (found,) = dict(conformance.TESTS)["one user more or less"](bench)
    assert 0.9 < found.value <= found.limit


def test_every_step_of_a_round_is_heard_and_a_round_that_is_only_answered_again_is_an_error(tmp_path: Path) -> None:
    bench = conformance.Bench(config=synthetic.shrunk(RunConfig())[0], workspace=tmp_path)
    partner = bench.partner("arts", bench.empty, bench.people(5))
    sums = partner.sums(1)
    assert sums.shape == (STEPS, local_round.round_mechanism(bench.empty).dimension)
    mixed = np.sort(np.array([0.081, 0.09, 0.1]) @ sums / bench.empty.privacy.expected_batch_users)  # Adam's first moment
    np.testing.assert_allclose(mixed, np.sort(synthetic.moments(partner.state)), rtol=1e-4, atol=1e-6 * np.abs(mixed).max())
    with pytest.raises(StateError, match="no step"):
        partner.sums(1)


def test_parameters_are_held_so_that_neighbours_stay_comparable_and_only_while_they_are(tmp_path: Path) -> None:
    bench = conformance.Bench(config=synthetic.shrunk(RunConfig())[0], workspace=tmp_path)
    partner = bench.partner("arts", bench.coupled, bench.people(5))
    partner.sums(1)
    moved = {name: array.copy() for name, array in partner.state.arrays.items()} if partner.state else {}
    held = partner.copied(tmp_path / "held")
    held.sums(2, held=True)
    partner.sums(2)
    assert held.state is not None
    assert partner.state is not None
    names = [name for name in moved if name.startswith("model/") and not name.startswith("model/transfer")]
    assert all(np.array_equal(held.state.arrays[name], moved[name]) for name in names)
    assert not any(np.array_equal(partner.state.arrays[name], moved[name]) for name in names)


def test_watched_histories_are_the_same_histories() -> None:
    data, seen = synthetic.people(9, 16).data("arts"), list[np.ndarray]()
    watched = synthetic.watched(data, seen.append)
    users = np.array([3, 1])
    for mine, theirs in zip(watched.histories.padded(users, 5), data.histories.padded(users, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [list(one) for one in seen] == [[3, 1]]


@pytest.mark.journey
def test_the_whole_home_leaves_exact_popularity_behind_so_that_there_is_something_to_interfere(tmp_path: Path) -> None:
    config = interference.home_config(synthetic.with_privacy(RunConfig()))
    settings = interference.home_of(tmp_path / "home", config)
    update = interference.run_of(settings, config, "run-1")
    deliver(settings, wire.Deliver(run_id="run-1", round=2, arrays=update.arrays))
    serving = ServingFolder(settings.at_home("serving")).current()
    assert serving is not None
    assert serving.arrays[f"head/{OWN}/log_counts"].any()
