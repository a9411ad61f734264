"""Averages that can be checked by hand, by Flower's own strategies."""

from __future__ import annotations

import numpy as np
import pytest

from server.aggregation import average, make_strategy, restore_strategy, strategy_state
from shared import wire
from shared.config import AggregationConfig
from shared.errors import StateError
from tests.server.tiny_clients import KEYS

NAMES = ("transfer.descriptor", "transfer.reader")
DOMAINS = ("arts", "books", "cameras", "drums", "easels")


def layer(value: float) -> dict[str, np.ndarray]:
    return {NAMES[0]: np.full((2, 3), value, np.float32), NAMES[1]: np.full((3,), 2 * value, np.float32)}


def update(domain: str, value: float) -> wire.TransferUpdate:
    arrays = layer(value)
    receipt = wire.Receipt.signed(
        KEYS[0], domain=domain, count_of_intents=1, head_hash="0" * 64, payload_sha256="0" * 64, mechanism="{}", epsilon_spent=0.0
    )
    return wire.TransferUpdate(run_id="r", round=1, config_hash="0" * 64, arrays=arrays, receipt=receipt)


def updates(*values: float) -> list[wire.TransferUpdate]:
    return [update(domain, value) for domain, value in zip(DOMAINS, values, strict=False)]


def config(strategy: str, **changes: float) -> AggregationConfig:
    return AggregationConfig(strategy=strategy, **changes)


def test_fedavg_is_the_plain_mean() -> None:
    result = average(make_strategy(config("fedavg")), 1, layer(0.0), updates(1.0, 2.0, 6.0))
    assert np.allclose(result[NAMES[0]], 3.0)  # (1 + 2 + 6) / 3
    assert np.allclose(result[NAMES[1]], 6.0)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "trimmed-mean"])
def test_every_strategy_keeps_float32_names_and_shapes(strategy: str) -> None:
    result = average(make_strategy(config(strategy, server_momentum=0.5)), 1, layer(0.0), updates(1.0, 2.0, 3.0))
    assert {name: (array.dtype.name, array.shape) for name, array in result.items()} == {
        NAMES[0]: ("float32", (2, 3)),
        NAMES[1]: ("float32", (3,)),
    }


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "trimmed-mean"])
def test_the_order_of_replies_changes_no_bit(strategy: str) -> None:
    values = (0.1, 0.7, 1e-3)
    forward = average(make_strategy(config(strategy)), 1, layer(0.0), updates(*values))
    backward = average(make_strategy(config(strategy)), 1, layer(0.0), list(reversed(updates(*values))))
    assert wire.layer_sha256(forward) == wire.layer_sha256(backward)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "trimmed-mean"])
def test_one_client_is_enough_for_a_control(strategy: str) -> None:
    result = average(make_strategy(config(strategy, min_clients=1)), 1, layer(0.0), updates(1.0))
    assert (result[NAMES[0]] > 0).all()


def test_momentum_of_fedavgm_follows_its_formula() -> None:
    strategy = make_strategy(config("fedavgm", server_momentum=0.5))
    first = average(strategy, 1, layer(0.0), updates(1.0))
    second = average(strategy, 2, first, updates(2.0))
    assert np.allclose(first[NAMES[0]], 1.0)  # 0 + 1
    assert np.allclose(second[NAMES[0]], 2.5)  # 1 + (0.5 * 1 + 1)


def test_first_step_of_fedadam_follows_its_formula() -> None:
    strategy = make_strategy(config("fedadam", server_learning_rate=1.0, adam_tau=1e-3))
    result = average(strategy, 1, layer(0.0), updates(1.0))
    # m = .1 * 1, v = .01 * 1, rate = sqrt(1 - .99^2) / (1 - .9^2) = .742460; .742460 * .1 / (.1 + .001) = .735109
    assert np.allclose(result[NAMES[0]], 0.735109, atol=1e-5)


def test_the_trimmed_mean_ignores_a_loud_client() -> None:
    strategy = make_strategy(config("trimmed-mean", trim_fraction=0.2))
    result = average(strategy, 1, layer(0.0), updates(1.0, 2.0, 3.0, 2.0, 900.0))
    assert np.allclose(result[NAMES[0]], 7 / 3)  # 1 and 900 are cut, (2 + 2 + 3) / 3


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "trimmed-mean"])
def test_a_restored_strategy_goes_on_bit_by_bit(strategy: str) -> None:
    settings = config(strategy, server_momentum=0.9, server_learning_rate=0.5)
    whole, broken = make_strategy(settings), make_strategy(settings)
    middle = average(whole, 1, layer(0.0), updates(1.0, 2.0))
    average(broken, 1, layer(0.0), updates(1.0, 2.0))
    resumed = make_strategy(settings)
    restore_strategy(resumed, strategy_state(broken), middle)
    assert wire.layer_sha256(average(whole, 2, middle, updates(3.0, 4.0))) == wire.layer_sha256(
        average(resumed, 2, middle, updates(3.0, 4.0))
    )


def test_the_memory_of_another_strategy_is_refused() -> None:
    adam = make_strategy(config("fedadam"))
    average(adam, 1, layer(0.0), updates(1.0))
    with pytest.raises(StateError, match="another aggregation strategy"):
        restore_strategy(make_strategy(config("fedavg")), strategy_state(adam), layer(0.0))


def test_memory_of_another_shape_is_refused() -> None:
    adam = make_strategy(config("fedadam"))
    average(adam, 1, layer(0.0), updates(1.0))
    wrong = {name: np.zeros((7,), np.float32) for name in NAMES}
    with pytest.raises(StateError, match="does not fit"):
        restore_strategy(make_strategy(config("fedadam")), strategy_state(adam), wrong)


def test_no_reply_at_all_is_no_average() -> None:
    with pytest.raises(ValueError, match="nothing to average"):
        average(make_strategy(config("fedavg")), 1, layer(0.0), [])
