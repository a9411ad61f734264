"""Every key of a run configuration is held against the agreement, or free with a reason; and each range refuses on its far side only."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from client import queries
from client.agreed import FREE, HELD, AgreedRanges
from client.settings import ClientSettings
from shared import wire
from shared.config import RunConfig
from shared.enrolment import Ranges
from shared.errors import ConfigError, Refusal
from shared.ranges import outside
from tests.client.opened_files import opened_below, take_data_away
from tests.client.partner_world import CONFIG, RUN, World

DELTA = CONFIG.privacy.delta


def keys() -> dict[str, Any]:
    """Every key of a run configuration by its dotted name, and how it was declared."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(RunConfig):
        value = getattr(CONFIG, one.name)
        if dataclasses.is_dataclass(value):
            found |= {f"{one.name}.{inner.name}": inner.metadata["setting"] for inner in dataclasses.fields(value)}
        else:
            found[one.name] = one.metadata["setting"]
    return found


def changed(key: str, value: Any) -> RunConfig:
    table, _, name = key.rpartition(".")
    if not table:
        return dataclasses.replace(CONFIG, **{name: value})
    return dataclasses.replace(CONFIG, **{table: dataclasses.replace(getattr(CONFIG, table), **{name: value})})


def refusals(config: RunConfig, **agreed: Any) -> list[str]:
    return list(outside(config, AgreedRanges(**agreed), DELTA))


def test_each_key_is_held_or_free_so_that_a_new_one_is_decided_about() -> None:
    assert set(keys()) == HELD | set(FREE)
    assert not HELD & set(FREE)
    assert all(FREE.values())


def test_each_range_is_told_to_the_coordinator_so_that_both_sides_refuse_the_same() -> None:
    assert set(Ranges.RULES) == {one.name for one in dataclasses.fields(AgreedRanges)} == {one.name for one in dataclasses.fields(Ranges)}


BEYOND: dict[str, tuple[Any, Any]] = {
    "privacy.epsilon": (1e6, float("inf")),
    "privacy.delta": (DELTA, 1e-5),
    "privacy.noise_multiplier": (0.3, 0.2999),
    "privacy.sampling_rate": (0.5, 0.5001),
    "privacy.clip_norm": (10.0, 10.01),
    "privacy.grid_exponent": (30, 31),
    "privacy.rounds": (4999, 5000),  # (4999 + 1) x 2 steps = 10,000
    "privacy.reserve_rounds": (4998, 4999),  # (2 + 4998) x 2 = 10,000
    "privacy.steps_per_round": (3333, 3334),  # 3 x 3333 = 9,999
    "privacy.noise": ("system", "seeded"),
    "model.sharing": ("shared", "another"),
    "training.max_history_items": (3, 2),
    "training.passport_min_items": (3, 2),
    "training.history_decay": (0.7, 0.69),
}
"""Key -> the last value that the usual agreement takes, and the next one."""


def test_the_table_below_is_about_every_key_that_is_held() -> None:
    assert set(BEYOND) == HELD


@pytest.mark.parametrize("key", sorted(set(BEYOND) - {"model.sharing"}))
def test_a_value_is_taken_up_to_its_limit_and_refused_beyond_it(world: World, key: str) -> None:
    last, beyond = BEYOND[key]
    assert refusals(changed(key, last)) == []
    settings, question = world["books"], wire.Hello(run_id="run-2", config_toml=changed(key, beyond).to_toml())
    take_data_away(settings.base)

    with opened_below(world.root) as opened, pytest.raises(Refusal) as refused:
        queries.hello(settings, question)

    assert (refused.value.code, opened) == ("range", [])
    assert queries.CurrentRun(settings).run_id() == RUN


def test_a_method_that_was_not_agreed_is_refused() -> None:
    assert refusals(changed("model.sharing", "shared")) == []
    assert "no method" in refusals(changed("model.sharing", "shared"), methods="shared-private")[0]
    assert refusals(changed("model.sharing", "shared"), methods=" shared , shared-private ") == []
    assert "no method" in refusals(CONFIG, methods="")[0]
    with pytest.raises(ConfigError, match=r"'agreed\.methods' names private"):
        AgreedRanges(methods="shared,private")


def test_an_unsolved_noise_multiplier_is_no_noise() -> None:
    assert "privacy.noise_multiplier is below" in refusals(changed("privacy.noise_multiplier", 0.0))[0]


def test_a_passport_of_the_latest_item_alone_is_refused_in_each_of_its_three_forms() -> None:
    """One item in the history, one item that is read, or a weight that forgets all others: the vector would be that item."""
    for key, value in (("training.passport_min_items", 1), ("training.max_history_items", 1), ("training.history_decay", 0.01)):
        assert len(refusals(changed(key, value))) == 1, key


def test_every_reason_is_told_at_once() -> None:
    config = changed("privacy.clip_norm", 500.0)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, passport_min_items=1))
    assert len(refusals(config)) == 2
    with pytest.raises(Refusal, match=r"clip_norm.*; .*passport_min_items"):
        ClientSettings(domain="books").admit(config)


FREE_ENDS = [
    (key, value) for key in FREE if key not in ("name", "model.descriptor_dimension") for value in (keys()[key].low, keys()[key].high)
]


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, value in FREE_ENDS if abs(value) != float("inf")])
def test_a_free_key_is_free_at_both_ends(key: str, value: float) -> None:
    table, _, name = key.rpartition(".")
    kind = type(getattr(getattr(CONFIG, table) if table else CONFIG, name))
    if key == "model.dimension":
        value = max(value, CONFIG.model.descriptor_dimension)
    assert refusals(changed(key, kind(value))) == []


def test_the_widest_ranges_take_whatever_a_configuration_may_say() -> None:
    widest = AgreedRanges.widest(test_builds=True)
    for key in HELD - {"privacy.delta"}:
        declared = keys()[key]
        for value in declared.choices or (declared.low, declared.high):
            kind = type(getattr(getattr(CONFIG, key.partition(".")[0]), key.partition(".")[2]))
            low = max(value, 1e-3) if key == "privacy.noise_multiplier" else value
            config = changed(key, kind(low))
            if config.privacy.total_steps <= 10_000_000:
                assert list(outside(config, widest, DELTA)) == [], key
    assert not AgreedRanges.widest(test_builds=False).test_builds
