"""Tier 2 through the real training code: silent on correct code, loud on each planted bug it claims to see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.canary import one_run
from client.canary.one_run import OneRunResult, audit, audit_config
from client.model.methods import InterestModel
from client.training import dp_sgd, local_round
from shared.config import ComputeConfig, ModelConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import AuditError, ConfigError
from shared.privacy.mechanism import Mechanism
from tests.client.training import planted_bugs as bugs

CONFIG = RunConfig(privacy=PrivacyConfig(clip_norm=0.37, expected_batch_users=100))


# --- the fixed configuration ---
def test_the_audit_configuration_is_fixed_but_for_what_the_code_path_depends_on():
    partner = RunConfig(
        model=ModelConfig(dimension=32, rank=3, sharing="shared"),
        privacy=PrivacyConfig(
            clip_norm=0.123, grid_exponent=15, sampling_rate=0.01, noise="seeded", noise_multiplier=9.0, steps_per_round=7
        ),
    )
    config = audit_config(partner)
    mechanism = local_round.round_mechanism(config)
    assert (mechanism.sampling_rate, mechanism.noise_multiplier, mechanism.steps, config.privacy.rounds) == (1.0, 3.0, 3, 3)
    assert (mechanism.clip_norm, config.privacy.grid_exponent, config.model.sharing) == (0.123, 15, "shared")
    assert config.privacy.noise == "system"


@pytest.mark.parametrize(("sharing", "tensors"), [("shared-private", 7), ("shared", 5)])
def test_each_canary_has_a_coordinate_of_its_own_in_encoder_and_layer(sharing, tensors):
    config = audit_config(dataclasses.replace(CONFIG, model=ModelConfig(sharing=sharing)))
    canaries = one_run.Canaries(config)
    sizes = {name: p.numel() for name, p in InterestModel(config, seed=0).named_parameters()}
    assert len(canaries.tensors) == tensors
    assert all(sizes[name] >= 4096 for name in canaries.tensors)
    assert {"encoder.expand.weight", "transfer.reader.weight", "transfer.writer.weight"} <= set(canaries.tensors)
    joint = np.concatenate([np.full(size, number) for number, size in enumerate(sizes.values())])
    wide = [number for number, size in enumerate(sizes.values()) if size >= 4000]
    np.testing.assert_array_equal(canaries.part(joint), np.repeat(wide, 4000).reshape(-1, 4000))  # each reads its own tensor


def test_coins_are_fair_and_different_each_time():
    first, second = one_run.Canaries(audit_config(CONFIG)), one_run.Canaries(audit_config(CONFIG))
    assert abs(first.inside.sum() - 2000) < 8 * np.sqrt(1000)  # 8 standard deviations of Bin(4000, 1/2)
    assert 0.35 < (first.inside == second.inside).mean() < 0.65


def test_a_configuration_without_privacy_has_nothing_to_audit(tmp_path):
    with pytest.raises(ConfigError, match="promises no privacy"):
        audit(RunConfig(privacy=PrivacyConfig(epsilon=float("inf"))), tmp_path)


# --- on correct code ---
@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[OneRunResult, Path, list[str]]:
    home, said = tmp_path_factory.mktemp("canary"), list[str]()
    return audit(CONFIG, home, said.append), home, said


@pytest.mark.journey
def test_correct_code_is_not_refuted_and_its_canaries_are_seen(clean):
    result, _, _ = clean
    assert not result.refuted
    assert result.p_value > 1e-3
    assert 1.0 < result.audited_epsilon < result.claimed_epsilon == pytest.approx(4.377, abs=2e-3)
    assert 0.5 < result.steinke_epsilon < result.audited_epsilon
    assert result.signal == pytest.approx(1.0, abs=0.25)  # 8 standard deviations: 2 sigma sqrt(T) / (T sqrt(m)) = .032
    assert [(test.score, test.made) for test in result.tests] == [(s, r) for s in ("sum", "weighted") for r in (400, 800, 2000)]


@pytest.mark.journey
def test_nothing_of_the_audit_stays_behind_and_the_code_is_as_it_was(clean):
    _, home, said = clean
    assert list(home.iterdir()) == []
    assert dp_sgd.PublicOptimizer.__name__ == "PublicOptimizer"
    assert local_round.Examples.__name__ == "Examples"
    assert said[0] == "canaries in round 1 of 3"


@pytest.mark.journey
def test_a_verdict_says_what_it_shows_and_what_not(clean):
    result, _, _ = clean
    record = json.loads(json.dumps(result.to_record()))
    assert record["tests"][0] == {"score": "sum", "canaries": 4000, "made": 400, "correct": result.tests[0].correct}
    assert f"at least epsilon {result.audited_epsilon:.2f}" in record["shows"]
    assert "no proof" in record["shows_not"]


@pytest.mark.slow
def test_twenty_audits_of_correct_code_raise_no_alarm(tmp_path):
    results = [audit(CONFIG, tmp_path) for _ in range(20)]
    assert not any(one.refuted for one in results)
    assert min(one.p_value for one in results) > 1e-3


# --- on planted bugs ---
class ClippedAfterTheSum(dp_sgd.PublicOptimizer):
    """Clips what all users of a micro-batch add up to, not each of them."""

    def clip_and_accumulate(self) -> None:
        sums = [parameter.grad_sample.flatten(1).double().sum(dim=0) for parameter in self.params]
        factor = min(1.0, len(self.params[0].grad_sample) * self.mechanism.clip_norm / float(torch.cat(sums).norm()))
        for parameter, total in zip(self.params, sums, strict=True):
            parameter.summed_grad = factor * total if parameter.summed_grad is None else parameter.summed_grad + factor * total


def trained_with_less_noise_than_booked(*arguments: Any, mechanism: Mechanism, **named: Any) -> None:
    """Sound in itself; only the ledger was told another number."""
    dp_sgd.train(*arguments, mechanism=dataclasses.replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2), **named)


def whole(bug: type[dp_sgd.PublicOptimizer]) -> type[dp_sgd.PublicOptimizer]:
    """The same bug in each micro-batch: as planted for small batches, it forgets all but the last."""

    class InEachMicroBatch(bug):  # type: ignore[misc, valid-type]
        def clip_and_accumulate(self) -> None:
            before = [parameter.summed_grad for parameter in self.params]
            super().clip_and_accumulate()
            for parameter, sum_before in zip(self.params, before, strict=True):
                if sum_before is not None:
                    parameter.summed_grad = parameter.summed_grad + sum_before

    return InEachMicroBatch


@pytest.mark.journey
@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [
        (local_round, "SystemNoise", bugs.HalfNoise),
        (local_round, "SystemNoise", bugs.OneSeedForAll),
        (dp_sgd, "PublicOptimizer", whole(bugs.NoClip)),
        (dp_sgd, "PublicOptimizer", whole(bugs.ClipPerTensor)),
        (dp_sgd, "PublicOptimizer", ClippedAfterTheSum),
        (local_round, "train", trained_with_less_noise_than_booked),
    ],
    ids=[
        "half the noise",
        "the same noise in each round",
        "no clip",
        "a clip for each tensor",
        "a clip for all together",
        "booked wrongly",
    ],
)
def test_a_planted_bug_is_refuted(tmp_path, monkeypatch, module: Any, name: str, bug: object):
    monkeypatch.setattr(module, name, bug)
    result = audit(CONFIG, tmp_path)
    assert result.refuted
    assert result.audited_epsilon > result.claimed_epsilon
    assert getattr(module, name) is bug  # planted, and still there


@pytest.mark.journey
def test_a_bug_that_lets_few_canaries_through_far_too_loud_is_refuted_by_their_mean(tmp_path, monkeypatch):
    class EighthWithoutClip(dp_sgd.PublicOptimizer):
        def clip_and_accumulate(self) -> None:
            for parameter in self.params:
                total = parameter.grad_sample[::8].flatten(1).double().sum(dim=0)
                parameter.summed_grad = total if parameter.summed_grad is None else parameter.summed_grad + total

    monkeypatch.setattr(dp_sgd, "PublicOptimizer", EighthWithoutClip)
    result = audit(CONFIG, tmp_path)
    assert result.audited_epsilon < result.claimed_epsilon  # guesses alone cannot tell: most canaries are not there
    assert result.signal == pytest.approx(100 / 8, rel=0.2)
    assert result.refuted


@pytest.mark.journey
@pytest.mark.parametrize(
    "config",
    [
        RunConfig(privacy=PrivacyConfig(clip_norm=1e3, grid_exponent=8, expected_batch_users=10_000_000)),
        RunConfig(
            privacy=PrivacyConfig(clip_norm=1e-6, grid_exponent=40, expected_batch_users=1),
            model=ModelConfig(sharing="shared"),
            training=TrainingConfig(learning_rate=10.0, temperature=100.0),
            compute=ComputeConfig(micro_batch_users=1),
        ),
    ],
    ids=["coarse", "fine"],
)
def test_the_extremes_of_a_configuration_are_audited_too(tmp_path, config: RunConfig):
    result = audit(config, tmp_path)
    assert not result.refuted
    assert result.audited_epsilon > 0.5
    assert result.signal == pytest.approx(1.0, abs=0.25)


@pytest.mark.journey
def test_canaries_that_do_not_arrive_are_an_error_and_not_a_pass(tmp_path, monkeypatch):
    class Deaf(dp_sgd.PublicOptimizer):
        def clip_and_accumulate(self) -> None:
            for parameter in self.params:
                parameter.summed_grad = torch.zeros(parameter.numel(), dtype=torch.float64)

    monkeypatch.setattr(dp_sgd, "PublicOptimizer", Deaf)
    with pytest.raises(AuditError, match="can say nothing"):
        audit(CONFIG, tmp_path)
    assert dp_sgd.PublicOptimizer is Deaf
