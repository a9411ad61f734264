"""Tier 1 with each of the larger encoders: what was true of the smallest is not taken for granted of the others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from client.canary import conformance, synthetic
from client.canary.one_run import audit_config
from shared.config import ModelConfig, RunConfig
from tests.client.training.tiny_partner import MODEL, TRAINING, config_of


def config(encoder: str) -> RunConfig:
    return config_of(model=dataclasses.replace(MODEL, encoder=encoder, transformer_heads=2), training=TRAINING, sampling_rate=0.1)


@pytest.mark.journey
def test_the_transformer_passes_every_check(tmp_path: Path) -> None:
    refuted = [check for check in conformance.check(config("transformer"), tmp_path, processes=False) if not check.passed]
    assert refuted == []


@pytest.mark.slow
def test_the_adapted_language_model_passes_every_check(tmp_path: Path) -> None:
    checks = conformance.check(config("text-lora"), tmp_path)
    assert [check for check in checks if not check.passed] == []
    assert {check.name[:2] for check in checks} == {f"T{number}" for number in range(1, 8)}


def test_texts_that_are_read_in_a_step_are_made_few_and_short_and_that_is_said() -> None:
    small, notes = synthetic.shrunk(RunConfig(model=ModelConfig(encoder="text-lora")))
    assert (small.model.encoder, small.model.lora_tokens, small.model.lora_rank, small.training.max_history_items) == ("text-lora", 4, 1, 4)
    assert {"model.lora_tokens 4 instead of 32", "training.max_history_items 4 instead of 50"} <= set(notes)
    assert not any("lora" in note for note in synthetic.shrunk(RunConfig())[1])


@pytest.mark.parametrize("encoder", ["transformer", "text-lora"])
def test_the_audit_of_one_run_does_without_a_large_encoder(encoder: str) -> None:
    """Its canaries are gradients that are overwritten, in 512 dimensions; tier 1 tests the encoder."""
    assert audit_config(RunConfig(model=ModelConfig(encoder=encoder))).model.encoder == "attention"
