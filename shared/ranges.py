"""What a partner accepts in a run configuration, and what of a configuration lies outside of it.

The client holds every run to its own ranges; its card tells them to the coordinator, who thus knows before anybody is asked which runs
would be refused. Both sides compare here, so that they cannot come to different answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .config import RunConfig


class Ranges(Protocol):
    """The ranges of a partner; None where it does not say one."""

    @property
    def max_sampling_rate(self) -> float: ...
    @property
    def min_noise_multiplier(self) -> float | None: ...
    @property
    def max_clip_norm(self) -> float: ...
    @property
    def max_grid_exponent(self) -> int | None: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def min_passport_items(self) -> int | None: ...
    @property
    def min_history_decay(self) -> float | None: ...
    @property
    def methods(self) -> str | None: ...
    @property
    def test_builds(self) -> bool | None: ...


def named(methods: str) -> frozenset[str]:
    """The values of ``model.sharing`` in a text that separates them by commas."""
    return frozenset(name.strip() for name in methods.split(",") if name.strip())


def outside(config: RunConfig, ranges: Ranges, delta: float) -> Iterator[str]:
    """What of a run configuration was not agreed, a line each.

    Args:
        delta: of the domain's ceiling.
    """
    privacy, training = config.privacy, config.training
    if not privacy.private and ranges.test_builds is False:
        yield "the run is a test build (its noise is seeded or absent)"
    if privacy.delta != delta:
        yield f"privacy.delta differs from the ceiling's delta {delta:g}"
    if privacy.sampling_rate > ranges.max_sampling_rate:
        yield f"privacy.sampling_rate is above the agreed {ranges.max_sampling_rate:g}"
    least = ranges.min_noise_multiplier
    if least is not None and privacy.epsilon != float("inf") and not privacy.noise_multiplier >= least:
        yield f"privacy.noise_multiplier is below the agreed {least:g}"
    if privacy.clip_norm > ranges.max_clip_norm:
        yield f"privacy.clip_norm is above the agreed {ranges.max_clip_norm:g}"
    if ranges.max_grid_exponent is not None and privacy.grid_exponent > ranges.max_grid_exponent:
        yield f"privacy.grid_exponent is above the agreed {ranges.max_grid_exponent}"
    if privacy.total_steps > ranges.max_steps:
        yield f"the schedule has more steps than the agreed {ranges.max_steps}"
    if ranges.methods is not None and config.model.sharing not in named(ranges.methods):
        yield "model.sharing is no method that this partner takes part in"
    for name, items in (("passport_min_items", training.passport_min_items), ("max_history_items", training.max_history_items)):
        if ranges.min_passport_items is not None and items < ranges.min_passport_items:
            yield f"training.{name} is below the agreed {ranges.min_passport_items}"
    if ranges.min_history_decay is not None and training.history_decay < ranges.min_history_decay:
        yield f"training.history_decay is below the agreed {ranges.min_history_decay:g}"
