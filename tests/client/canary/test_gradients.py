"""The self-test before the first round: quick, silent on this installation, and a stop where hooks misread a layer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from client import rounds
from client.canary import gradients
from client.canary.interference import home_config, home_of, run_of
from client.model.methods import residual
from shared.config import ModelConfig, RunConfig
from shared.errors import StateError
from shared.privacy.ledger import read_events
from tests.client.training import planted_bugs as bugs
from tests.client.training.tiny_partner import config_of


@pytest.fixture(autouse=True)
def _in_a_new_process() -> Iterator[None]:
    gradients._error_of.cache_clear()
    yield
    gradients._error_of.cache_clear()


@pytest.fixture
def misread(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder whose per-user gradients are silently wrong."""
    monkeypatch.setattr(
        residual, "make_encoder", lambda config, _: bugs.PositionTableWithoutBatch(config.model.dimension, config.training.history_decay)
    )


@pytest.mark.parametrize("model", [ModelConfig(), ModelConfig(sharing="shared", dimension=2, descriptor_dimension=1), ModelConfig(rank=99)])
def test_this_installation_computes_per_user_gradients_right(model: ModelConfig) -> None:
    gradients.self_test(RunConfig(model=model))


def test_it_is_done_once_in_a_process_and_leaves_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    gradients.self_test(RunConfig())
    begun = time.perf_counter()
    gradients.self_test(RunConfig(seed=1))
    assert time.perf_counter() - begun < 0.01  # the first one takes some 40 ms
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.usefixtures("misread")
def test_gradients_that_are_not_those_of_one_user_are_an_error() -> None:
    with pytest.raises(StateError, match="per-user gradients are off"):
        gradients.self_test(RunConfig())


@pytest.mark.journey
def test_such_an_installation_computes_no_round_and_pays_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = home_config(config_of())
    settings = home_of(tmp_path / "shop", config)
    monkeypatch.setattr(
        residual, "make_encoder", lambda config, _: bugs.PositionTableWithoutBatch(config.model.dimension, config.training.history_decay)
    )
    opened: list[str] = []
    monkeypatch.setattr(rounds, "training_data", lambda settings: opened.append(settings.domain))
    with pytest.raises(StateError, match="per-user gradients are off"):
        run_of(settings, config, "run-1")
    assert [event.kind for event in read_events(settings.ledger_path)] == ["genesis", "schedule"]
    assert opened == []
