"""A mechanism is a permanent record: it reads back exactly, and a number without meaning never enters one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LedgerError
from shared.privacy.mechanism import Mechanism

ORDINARY = st.floats(min_value=1e-300, max_value=1e300, allow_subnormal=False)


@given(
    q=st.floats(1e-12, 1.0),
    sigma=ORDINARY,
    clip=ORDINARY,
    grid=st.just(0.0) | ORDINARY,
    p=st.integers(1, 2**53),
    steps=st.integers(1, 2**53),
)
def test_every_number_reads_back_exactly(q: float, sigma: float, clip: float, grid: float, p: int, steps: int) -> None:
    written = Mechanism(
        kind="poisson_gaussian", sampling_rate=q, noise_multiplier=sigma, clip_norm=clip, grid=grid, dimension=p, steps=steps
    )
    assert Mechanism.from_record(json.loads(json.dumps(written.to_record()))) == written


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -0.0, 5e-324, 1e-310, 1, True, "0x1p+0", None])
@pytest.mark.parametrize("name", ["sampling_rate", "noise_multiplier", "clip_norm", "grid"])
def test_a_number_without_meaning_is_refused(gaussian: Callable[..., Mechanism], name: str, value: object) -> None:
    with pytest.raises(LedgerError, match=name):
        gaussian(**{name: value})


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, 2**54])
@pytest.mark.parametrize("name", ["dimension", "steps"])
def test_a_count_without_meaning_is_refused(gaussian: Callable[..., Mechanism], name: str, value: object) -> None:
    with pytest.raises(LedgerError, match=name):
        gaussian(**{name: value})


@pytest.mark.parametrize("name", ["sampling_rate", "noise_multiplier", "clip_norm"])
def test_zero_protects_nobody_and_only_the_kind_none_may_say_it(gaussian: Callable[..., Mechanism], name: str) -> None:
    with pytest.raises(LedgerError, match="protects nobody"):
        gaussian(**{name: 0.0})
    assert getattr(gaussian(**{"kind": "none", name: 0.0}), name) == 0.0


def test_a_sampling_rate_is_at_most_one_and_exactly_one_without_sampling(gaussian: Callable[..., Mechanism]) -> None:
    for wrong in ({"sampling_rate": 1.5}, {"kind": "gaussian", "sampling_rate": 0.5}):
        with pytest.raises(LedgerError, match="sampling_rate"):
            gaussian(**wrong)
    assert gaussian(kind="gaussian", sampling_rate=1.0).sampling_rate == 1.0


def test_a_kind_of_a_later_version_is_refused_rather_than_guessed(gaussian: Callable[..., Mechanism]) -> None:
    with pytest.raises(LedgerError, match="none of"):
        gaussian(kind="tree_aggregation")


def test_the_noise_covers_what_rounding_to_the_grid_adds(gaussian: Callable[..., Mechanism]) -> None:
    # sigma (C + g sqrt(p)) = 3 (0.5 + 0.25 * sqrt(16)) = 4.5
    assert gaussian(noise_multiplier=3.0, clip_norm=0.5, grid=0.25, dimension=16).noise_scale == 4.5


def test_a_record_with_another_field_or_another_spelling_is_refused(gaussian: Callable[..., Mechanism]) -> None:
    record = gaussian().to_record()
    missing = {name: value for name, value in record.items() if name != "grid"}
    for wrong in (
        missing,
        {**record, "seed": 7},
        {**record, "clip_norm": "0.5"},
        {**record, "clip_norm": 0.5},
        {**record, "clip_norm": "nan"},
    ):
        with pytest.raises(LedgerError):
            Mechanism.from_record(wrong)
